"""Where an object is in its life, what came out, and which way leads where.

The tables below are the source of docs/transitions.md and of the planner's property test.
"""

from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """The phase of a Generation."""

    PENDING = "Pending"
    QUEUED = "Queued"
    RUNNING = "Running"
    EVALUATING = "Evaluating"
    TESTING = "Testing"
    AWAITING_PROMOTION = "AwaitingPromotion"
    SUSPENDED = "Suspended"
    COMPLETED = "Completed"
    FAILED = "Failed"
    ABORTED = "Aborted"


TERMINAL: Final = frozenset({Phase.COMPLETED, Phase.FAILED, Phase.ABORTED})

MEANING: Final[dict[Phase, str]] = {
    Phase.PENDING: "waits for its parent, its reward models or its characters",
    Phase.QUEUED: "its Job waits for quota, a node or an image",
    Phase.RUNNING: "its stages run",
    Phase.EVALUATING: "the candidate is judged against the baseline",
    Phase.TESTING: "the gates passed: its ABTest tries it on live users",
    Phase.AWAITING_PROMOTION: "the gates passed: it waits for the word of a person, or for its model server",
    Phase.SUSPENDED: "spec.suspend is true; no Job runs, time does not count",
    Phase.COMPLETED: "it has a verdict",
    Phase.FAILED: "a stage, its server or its inputs failed for good, or the deadline passed",
    Phase.ABORTED: "the abort annotation ended it",
}

_ACTIVE: Final = frozenset(
    {
        Phase.PENDING,
        Phase.QUEUED,
        Phase.RUNNING,
        Phase.EVALUATING,
        Phase.TESTING,
        Phase.AWAITING_PROMOTION,
        Phase.SUSPENDED,
    }
)

TRANSITIONS: Final[dict[Phase, frozenset[Phase]]] = {
    # A stage whose result is already in the artefact store ends between two looks, so phases may be skipped forward.
    Phase.PENDING: _ACTIVE | TERMINAL,
    Phase.QUEUED: (_ACTIVE - {Phase.PENDING}) | TERMINAL,
    Phase.RUNNING: (_ACTIVE - {Phase.PENDING}) | TERMINAL,
    Phase.EVALUATING: (_ACTIVE - {Phase.PENDING, Phase.RUNNING}) | TERMINAL,
    Phase.TESTING: frozenset({Phase.TESTING, Phase.AWAITING_PROMOTION, Phase.SUSPENDED}) | TERMINAL,
    Phase.AWAITING_PROMOTION: frozenset({Phase.TESTING, Phase.AWAITING_PROMOTION, Phase.SUSPENDED}) | TERMINAL,
    Phase.SUSPENDED: _ACTIVE | TERMINAL,
    Phase.COMPLETED: frozenset({Phase.COMPLETED}),
    Phase.FAILED: frozenset({Phase.FAILED}),
    Phase.ABORTED: frozenset({Phase.ABORTED}),
}


RERUN: Final = frozenset({Phase.RUNNING, Phase.EVALUATING, Phase.SUSPENDED})
"""Where rerun-from leads, from every phase behind the snapshot but Testing: the only way out of an end."""


class Verdict(StrEnum):
    """What came out of a Generation."""

    PROMOTED = "Promoted"
    GATED = "Gated"
    REJECTED = "Rejected"
    INCONCLUSIVE = "Inconclusive"
    STALE_BASELINE = "StaleBaseline"
    DRY_RUN = "DryRun"


class StageState(StrEnum):
    """The state of one stage."""

    PENDING = "Pending"
    QUEUED = "Queued"
    RUNNING = "Running"
    RETRYING = "Retrying"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class RewardModelPhase(StrEnum):
    """The phase of a RewardModel."""

    PENDING = "Pending"
    QUEUED = "Queued"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    READY = "Ready"
    GATED = "Gated"
    FAILED = "Failed"
    ABORTED = "Aborted"


REWARD_MODEL_TERMINAL: Final = frozenset(
    {RewardModelPhase.READY, RewardModelPhase.GATED, RewardModelPhase.FAILED, RewardModelPhase.ABORTED}
)

REWARD_MODEL_MEANING: Final[dict[RewardModelPhase, str]] = {
    RewardModelPhase.PENDING: "not looked at yet, or it waits for a character's system prompt",
    RewardModelPhase.QUEUED: "its Job waits for quota, a node or an image",
    RewardModelPhase.RUNNING: "its stages run",
    RewardModelPhase.SUSPENDED: "spec.suspend is true; no Job runs",
    RewardModelPhase.READY: "trained, its gates passed: Generations may use it",
    RewardModelPhase.GATED: "trained, a gate did not pass: Generations may not use it",
    RewardModelPhase.FAILED: "a stage failed for good, or the deadline passed",
    RewardModelPhase.ABORTED: "the abort annotation ended it",
}

_RM_ACTIVE: Final = frozenset(RewardModelPhase) - REWARD_MODEL_TERMINAL

REWARD_MODEL_TRANSITIONS: Final[dict[RewardModelPhase, frozenset[RewardModelPhase]]] = {
    RewardModelPhase.PENDING: frozenset(RewardModelPhase),
    RewardModelPhase.QUEUED: (_RM_ACTIVE - {RewardModelPhase.PENDING}) | REWARD_MODEL_TERMINAL,
    RewardModelPhase.RUNNING: (_RM_ACTIVE - {RewardModelPhase.PENDING}) | REWARD_MODEL_TERMINAL,
    RewardModelPhase.SUSPENDED: frozenset(RewardModelPhase),
    **{phase: frozenset({phase}) for phase in REWARD_MODEL_TERMINAL},
}


class ABTestPhase(StrEnum):
    """The phase of an ABTest."""

    PENDING = "Pending"
    PROVISIONING = "Provisioning"
    RUNNING = "Running"
    ANALYZING = "Analyzing"
    COMPLETED = "Completed"
    FAILED = "Failed"
    ABORTED = "Aborted"


ABTEST_TERMINAL: Final = frozenset({ABTestPhase.COMPLETED, ABTestPhase.FAILED, ABTestPhase.ABORTED})

ABTEST_MEANING: Final[dict[ABTestPhase, str]] = {
    ABTestPhase.PENDING: "waits for its arms, or in line behind another test of the lineage",
    ABTestPhase.PROVISIONING: "servers, gateways and router start; the power is computed from the users' log",
    ABTestPhase.RUNNING: "users are split; every day is looked at for harm",
    ABTestPhase.ANALYZING: "the window is over: the last analysis runs",
    ABTestPhase.COMPLETED: "it has a verdict",
    ABTestPhase.FAILED: "it broke, and no verdict could be given",
    ABTestPhase.ABORTED: "the abort annotation, or the end of its Generation, ended it",
}

ABTEST_TRANSITIONS: Final[dict[ABTestPhase, frozenset[ABTestPhase]]] = {
    ABTestPhase.PENDING: frozenset({ABTestPhase.PENDING, ABTestPhase.PROVISIONING}) | ABTEST_TERMINAL,
    ABTestPhase.PROVISIONING: frozenset({ABTestPhase.PROVISIONING, ABTestPhase.RUNNING}) | ABTEST_TERMINAL,
    # Back to Running: an inconclusive test that is extended.
    ABTestPhase.RUNNING: frozenset({ABTestPhase.RUNNING, ABTestPhase.ANALYZING}) | ABTEST_TERMINAL,
    ABTestPhase.ANALYZING: frozenset({ABTestPhase.RUNNING, ABTestPhase.ANALYZING}) | ABTEST_TERMINAL,
    ABTestPhase.COMPLETED: frozenset({ABTestPhase.COMPLETED}),
    ABTestPhase.FAILED: frozenset({ABTestPhase.FAILED}),
    ABTestPhase.ABORTED: frozenset({ABTestPhase.ABORTED}),
}
