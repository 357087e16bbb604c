"""The stages of the wheel and what each leaves behind."""

from enum import StrEnum
from typing import Final


class Stage(StrEnum):
    """A stage by its name on the command line (`flywheel-trainer <stage>`)."""

    RESOLVE = "resolve"
    """Looks at everything that is named by URI and answers its digests; refuses what cannot be used."""
    CURATE = "curate"
    REWARD_MODEL = "reward-model"
    REJECTION_SAMPLE = "rejection-sample"
    SFT = "sft"
    DPO = "dpo"
    RL = "rl"
    EVALUATE = "evaluate"


DISTRIBUTED: Final = (Stage.REWARD_MODEL, Stage.SFT, Stage.DPO, Stage.RL)
"""The stages that know how to share their work among several processes, and several nodes."""


class Origin(StrEnum):
    """Where traffic comes from; the two are kept apart everywhere."""

    INTERNAL = "Internal"
    """Employees and annotators."""
    USER = "User"
    """Production."""


class RewardModelType(StrEnum):
    """What a reward model reads and what it answers."""

    POINTWISE = "Pointwise"
    """One reply; one score (Bradley-Terry). The main term of a composite reward."""
    PAIRWISE = "Pairwise"
    """Both replies at once; which is better. For evaluation only."""
    USER_SIGNAL = "UserSignal"
    """One reply; whether the user will give a signal (go on, thumbs up, ...). An auxiliary term."""


class Role(StrEnum):
    """What an input is to its stage."""

    TRAFFIC = "traffic"
    """Conversations as they were captured (curate, reward-model of a user signal)."""
    PREFERENCES = "preferences"
    """Pairs `chosen`/`rejected` (reward-model, dpo)."""
    SFT_DATA = "sft-data"
    """Conversations to imitate, given by the user (sft)."""
    PROMPTS = "prompts"
    """Curated conversations that may be trained on (rejection-sample, sft, rl)."""
    EVALUATION = "evaluation"
    """Curated conversations that training never saw (evaluate)."""
    ACCEPTED = "accepted"
    """The best sampled replies (sft)."""
    PAIRS = "pairs"
    """Best against worst sampled replies (dpo)."""
    GENERAL = "general"
    """General conversations on which the perplexity must not rise (evaluate)."""
    POLICY = "policy"
    """The model that the stage starts from, or judges."""
    POOL = "pool"
    """A further model that replies are drawn from (rejection-sample)."""
    BASELINE = "baseline"
    """The model that the candidate is judged against: what is in production, else the parent (evaluate)."""
    SAFETY = "safety"
    """A classifier that says which texts are unsafe (curate)."""
    PARENT = "parent"
    """The model that the Generation started from (rl measures the divergence from it; evaluate, where it is not the
    baseline)."""
    CHECKPOINT = "checkpoint"
    """The model of a stage between parent and candidate (evaluate)."""
    JUDGE = "judge"
    """A language model that answers questions about replies (evaluate)."""
    BENCHMARK = "benchmark"
    """A folder of task files of lm-evaluation-harness (evaluate)."""
    REWARD = "reward"
    """A trained reward model, with its weight."""
    PAIRWISE = "pairwise"
    """A trained pairwise reward model, which only judges (evaluate)."""
    EMBEDDER = "embedder"
    """A sentence-transformers model (curate); without one the embedded model is used."""


OUTPUTS: Final[dict[Stage, tuple[str, ...]]] = {
    Stage.RESOLVE: (),
    Stage.CURATE: ("prompts", "evaluation"),
    Stage.REWARD_MODEL: ("model",),
    Stage.REJECTION_SAMPLE: ("accepted", "pairs"),
    Stage.SFT: ("model",),
    Stage.DPO: ("model",),
    Stage.RL: ("model",),
    Stage.EVALUATE: ("report",),
}
"""The outputs of each stage: folders below the stage's own, named in its manifest with their digests."""

EVALUATION_PAGE: Final = "report.html"
"""In the output `report` of stage evaluate: what a person reads."""
