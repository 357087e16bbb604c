"""The metrics that stages report and gates may name. A gate on any other name is refused at admission."""

from enum import StrEnum
from typing import Final

from flywheel_contract.stages import Origin, RewardModelType, Stage


class Metric(StrEnum):
    """Every metric by its name on the wire. Rates and shares are 0 to 1."""

    # curate, in conversations
    ROWS_READ = "rowsRead"
    ROWS_KEPT = "rowsKept"
    DROPPED_PRIVACY = "droppedPrivacy"
    REDACTED_PRIVACY = "redactedPrivacy"
    DROPPED_SAFETY = "droppedSafety"
    DROPPED_RETENTION = "droppedRetention"
    DROPPED_ERASED = "droppedErased"
    DROPPED_CONSENT = "droppedConsent"
    DROPPED_DUPLICATE = "droppedDuplicate"
    DROPPED_DIVERSITY = "droppedDiversity"
    DROPPED_CONSTRAINTS = "droppedConstraints"
    ROWS_READ_INTERNAL = "rowsReadInternal"
    ROWS_READ_USER = "rowsReadUser"
    ROWS_KEPT_INTERNAL = "rowsKeptInternal"
    ROWS_KEPT_USER = "rowsKeptUser"
    DROPPED_PRIVACY_INTERNAL = "droppedPrivacyInternal"
    DROPPED_PRIVACY_USER = "droppedPrivacyUser"
    DROPPED_SAFETY_INTERNAL = "droppedSafetyInternal"
    DROPPED_SAFETY_USER = "droppedSafetyUser"
    EVALUATION_PROMPTS_INTERNAL = "evaluationPromptsInternal"
    EVALUATION_PROMPTS_USER = "evaluationPromptsUser"

    # reward-model, on held-out users
    REWARD_ACCURACY = "rewardAccuracy"
    REWARD_ACCURACY_INTERNAL = "rewardAccuracyInternal"
    REWARD_ACCURACY_USER = "rewardAccuracyUser"
    ANNOTATOR_AGREEMENT = "annotatorAgreement"
    """Krippendorff's alpha of the reviews of held-out pairs; -1 to 1."""
    LENGTH_ONLY_ACCURACY = "lengthOnlyAccuracy"
    SHUFFLED_LABEL_ACCURACY = "shuffledLabelAccuracy"
    LENGTH_CORRELATION = "lengthCorrelation"
    REWARD_MEAN = "rewardMean"
    REWARD_STD = "rewardStd"
    CALIBRATION_ERROR = "calibrationError"
    CALIBRATION_ERROR_INTERNAL = "calibrationErrorInternal"
    CALIBRATION_ERROR_USER = "calibrationErrorUser"
    SURFACE_ACCURACY = "surfaceAccuracy"
    ACCURACY_OVER_SURFACE = "accuracyOverSurface"
    ORDER_AGREEMENT = "orderAgreement"
    SIGNAL_RATE = "signalRate"
    SIGNAL_AUC = "signalAuc"
    SIGNAL_AUC_INTERNAL = "signalAucInternal"
    SIGNAL_AUC_USER = "signalAucUser"
    SIGNAL_AUC_LOWEST_SLICE = "signalAucLowestSlice"
    SIGNAL_DRIFT = "signalDrift"
    SURFACE_AUC = "surfaceAuc"
    AUC_OVER_SURFACE = "aucOverSurface"
    SHUFFLED_LABEL_AUC = "shuffledLabelAuc"

    # rejection-sample
    SAMPLES_DRAWN = "samplesDrawn"
    ACCEPTED_REWARD = "acceptedReward"
    REJECTED_REWARD = "rejectedReward"

    # sft, dpo, rl, reward-model
    TRAIN_LOSS_FIRST = "trainLossFirst"
    TRAIN_LOSS_LAST = "trainLossLast"
    STEP_SECONDS = "stepSeconds"
    PEAK_MEMORY_BYTES = "peakMemoryBytes"
    KL_AT_START = "klAtStart"
    PREFERENCE_ACCURACY = "preferenceAccuracy"
    PREFERENCE_MARGIN = "preferenceMargin"
    PREFERENCE_ACCURACY_INTERNAL = "preferenceAccuracyInternal"
    PREFERENCE_ACCURACY_USER = "preferenceAccuracyUser"
    PREFERENCE_MARGIN_INTERNAL = "preferenceMarginInternal"
    PREFERENCE_MARGIN_USER = "preferenceMarginUser"
    RL_REWARD_FIRST = "rlRewardFirst"
    RL_REWARD_LAST = "rlRewardLast"
    KL_TO_POLICY = "klToPolicy"
    KL_TO_PARENT = "klToParent"
    IMPORTANCE_WEIGHT = "importanceWeight"

    # evaluate: candidate against baseline
    WIN_RATE = "winRate"
    WIN_RATE_INTERNAL = "winRateInternal"
    WIN_RATE_USER = "winRateUser"
    WIN_RATE_GAP = "winRateGap"
    WIN_RATE_PARENT = "winRateParent"
    PAIRWISE_WIN_RATE = "pairwiseWinRate"
    PAIRWISE_WIN_RATE_INTERNAL = "pairwiseWinRateInternal"
    PAIRWISE_WIN_RATE_USER = "pairwiseWinRateUser"
    PAIRWISE_WIN_RATE_GAP = "pairwiseWinRateGap"
    PAIRWISE_WIN_RATE_PARENT = "pairwiseWinRateParent"
    PAIRWISE_DISAGREEMENT = "pairwiseDisagreement"
    REWARD_GAIN = "rewardGain"
    HELD_OUT_KL = "heldOutKl"
    KL_WITHOUT_REWARD = "klWithoutReward"
    STYLE_JUMPS = "styleJumps"
    PERPLEXITY = "perplexity"
    PERPLEXITY_RATIO = "perplexityRatio"
    REPLY_LENGTH = "replyLength"
    REPLY_LENGTH_RATIO = "replyLengthRatio"
    LIST_RATE = "listRate"
    LIST_RATE_INCREASE = "listRateIncrease"
    EMOJI_RATE = "emojiRate"
    EMOJI_RATE_INCREASE = "emojiRateIncrease"
    STOCK_PHRASE_RATE = "stockPhraseRate"
    STOCK_PHRASE_RATE_INCREASE = "stockPhraseRateIncrease"
    WALL_OF_TEXT_RATE = "wallOfTextRate"
    WALL_OF_TEXT_RATE_INCREASE = "wallOfTextRateIncrease"
    POSITIVE_SENTIMENT_RATE = "positiveSentimentRate"
    POSITIVE_SENTIMENT_RATE_INCREASE = "positiveSentimentRateIncrease"
    FALSE_REFUSAL_RATE = "falseRefusalRate"
    FALSE_REFUSAL_RATE_INCREASE = "falseRefusalRateIncrease"
    PREACHY_RATE = "preachyRate"
    PREACHY_RATE_INCREASE = "preachyRateIncrease"
    COOPERATION_RATE = "cooperationRate"
    COOPERATION_RATE_INCREASE = "cooperationRateIncrease"
    INSTRUCTION_FOLLOWING_RATE = "instructionFollowingRate"
    INSTRUCTION_FOLLOWING_RATE_INCREASE = "instructionFollowingRateIncrease"
    INSTRUCTION_VIOLATION_RATE = "instructionViolationRate"
    INSTRUCTION_VIOLATION_RATE_INCREASE = "instructionViolationRateIncrease"
    TEMPLATED_RATE = "templatedRate"
    TEMPLATED_RATE_INCREASE = "templatedRateIncrease"
    JUDGE_AGREEMENT = "judgeAgreement"
    BENCHMARK_CHANGE = "benchmarkChange"


_TRAINING: Final = (
    Metric.TRAIN_LOSS_FIRST,
    Metric.TRAIN_LOSS_LAST,
    Metric.STEP_SECONDS,
    Metric.PEAK_MEMORY_BYTES,
)

_ANY_REWARD: Final = (
    *_TRAINING,
    Metric.LENGTH_CORRELATION,
    Metric.CALIBRATION_ERROR,
    Metric.CALIBRATION_ERROR_INTERNAL,
    Metric.CALIBRATION_ERROR_USER,
)
_PAIR_REWARD: Final = (
    *_ANY_REWARD,
    Metric.REWARD_ACCURACY,
    Metric.REWARD_ACCURACY_INTERNAL,
    Metric.REWARD_ACCURACY_USER,
    Metric.ANNOTATOR_AGREEMENT,
    Metric.LENGTH_ONLY_ACCURACY,
    Metric.SURFACE_ACCURACY,
    Metric.ACCURACY_OVER_SURFACE,
    Metric.SHUFFLED_LABEL_ACCURACY,
)

REWARD_METRICS: Final[dict[RewardModelType, tuple[Metric, ...]]] = {
    RewardModelType.POINTWISE: (*_PAIR_REWARD, Metric.REWARD_MEAN, Metric.REWARD_STD),
    RewardModelType.PAIRWISE: (*_PAIR_REWARD, Metric.ORDER_AGREEMENT),
    RewardModelType.USER_SIGNAL: (
        *_ANY_REWARD,
        Metric.REWARD_MEAN,
        Metric.REWARD_STD,
        Metric.SIGNAL_RATE,
        Metric.SIGNAL_AUC,
        Metric.SIGNAL_AUC_INTERNAL,
        Metric.SIGNAL_AUC_USER,
        Metric.SIGNAL_AUC_LOWEST_SLICE,
        Metric.SIGNAL_DRIFT,
        Metric.SURFACE_AUC,
        Metric.AUC_OVER_SURFACE,
        Metric.SHUFFLED_LABEL_AUC,
    ),
}
"""Which kind of reward model reports which metrics; one that cannot be measured is left out."""

BY_ORIGIN: Final = (
    Metric.ROWS_READ,
    Metric.ROWS_KEPT,
    Metric.DROPPED_PRIVACY,
    Metric.DROPPED_SAFETY,
)
"""What curate reports of each origin too; a result has no room for every reason, its report has (_report.json)."""


def of_origin(metric: Metric, origin: Origin) -> Metric:
    """The metric of one origin's rows that belongs to the metric of all."""
    return Metric(f"{metric.value}{origin.value}")


REPORTED_BY: Final[dict[Stage, tuple[Metric, ...]]] = {
    Stage.RESOLVE: (),
    Stage.CURATE: (
        Metric.ROWS_READ,
        Metric.ROWS_KEPT,
        Metric.DROPPED_PRIVACY,
        Metric.REDACTED_PRIVACY,
        Metric.DROPPED_SAFETY,
        Metric.DROPPED_RETENTION,
        Metric.DROPPED_ERASED,
        Metric.DROPPED_CONSENT,
        Metric.DROPPED_DUPLICATE,
        Metric.DROPPED_DIVERSITY,
        Metric.DROPPED_CONSTRAINTS,
        *(of_origin(m, o) for m in BY_ORIGIN for o in Origin),
        Metric.EVALUATION_PROMPTS_INTERNAL,
        Metric.EVALUATION_PROMPTS_USER,
    ),
    Stage.REWARD_MODEL: tuple(dict.fromkeys(m for metrics in REWARD_METRICS.values() for m in metrics)),
    Stage.REJECTION_SAMPLE: (Metric.SAMPLES_DRAWN, Metric.ACCEPTED_REWARD, Metric.REJECTED_REWARD),
    Stage.SFT: (*_TRAINING, Metric.KL_AT_START),
    Stage.DPO: (
        *_TRAINING,
        Metric.KL_AT_START,
        Metric.PREFERENCE_ACCURACY,
        Metric.PREFERENCE_MARGIN,
        Metric.PREFERENCE_ACCURACY_INTERNAL,
        Metric.PREFERENCE_ACCURACY_USER,
        Metric.PREFERENCE_MARGIN_INTERNAL,
        Metric.PREFERENCE_MARGIN_USER,
    ),
    Stage.RL: (
        *_TRAINING,
        Metric.KL_AT_START,
        Metric.RL_REWARD_FIRST,
        Metric.RL_REWARD_LAST,
        Metric.KL_TO_POLICY,
        Metric.KL_TO_PARENT,
        Metric.IMPORTANCE_WEIGHT,
    ),
    Stage.EVALUATE: (
        Metric.WIN_RATE,
        Metric.WIN_RATE_INTERNAL,
        Metric.WIN_RATE_USER,
        Metric.WIN_RATE_GAP,
        Metric.PERPLEXITY,
        Metric.PERPLEXITY_RATIO,
        Metric.REPLY_LENGTH,
        Metric.REPLY_LENGTH_RATIO,
        Metric.LIST_RATE,
        Metric.LIST_RATE_INCREASE,
        Metric.EMOJI_RATE,
        Metric.EMOJI_RATE_INCREASE,
        Metric.STOCK_PHRASE_RATE,
        Metric.STOCK_PHRASE_RATE_INCREASE,
        Metric.WIN_RATE_PARENT,
        Metric.PAIRWISE_WIN_RATE,
        Metric.PAIRWISE_WIN_RATE_INTERNAL,
        Metric.PAIRWISE_WIN_RATE_USER,
        Metric.PAIRWISE_WIN_RATE_GAP,
        Metric.PAIRWISE_WIN_RATE_PARENT,
        Metric.PAIRWISE_DISAGREEMENT,
        Metric.REWARD_GAIN,
        Metric.HELD_OUT_KL,
        Metric.KL_WITHOUT_REWARD,
        Metric.STYLE_JUMPS,
        Metric.WALL_OF_TEXT_RATE,
        Metric.WALL_OF_TEXT_RATE_INCREASE,
        Metric.POSITIVE_SENTIMENT_RATE,
        Metric.POSITIVE_SENTIMENT_RATE_INCREASE,
        Metric.FALSE_REFUSAL_RATE,
        Metric.FALSE_REFUSAL_RATE_INCREASE,
        Metric.PREACHY_RATE,
        Metric.PREACHY_RATE_INCREASE,
        Metric.COOPERATION_RATE,
        Metric.COOPERATION_RATE_INCREASE,
        Metric.INSTRUCTION_FOLLOWING_RATE,
        Metric.INSTRUCTION_FOLLOWING_RATE_INCREASE,
        Metric.INSTRUCTION_VIOLATION_RATE,
        Metric.INSTRUCTION_VIOLATION_RATE_INCREASE,
        Metric.TEMPLATED_RATE,
        Metric.TEMPLATED_RATE_INCREASE,
        Metric.JUDGE_AGREEMENT,
        Metric.BENCHMARK_CHANGE,
    ),
}
"""Which stage reports which metrics. A stage that cannot measure one leaves it out; it never reports a stand-in."""
