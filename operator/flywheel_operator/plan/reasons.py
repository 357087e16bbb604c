"""The reasons that stand in conditions, events and verdicts; each is spelled here and nowhere else."""

from typing import Final

# Progressing
WAITING: Final = "Waiting"
STAGE_RUNNING: Final = "StageRunning"
STAGE_QUEUED: Final = "StageQueued"
STAGE_RETRYING: Final = "StageRetrying"
STAGE_FAILED: Final = "StageFailed"
SUSPENDED: Final = "Suspended"
ABORTED: Final = "Aborted"
DEADLINE_EXCEEDED: Final = "DeadlineExceeded"
SNAPSHOT_LOST: Final = "SnapshotLost"
SNAPSHOT_TAKEN: Final = "SnapshotTaken"
AWAITING_APPROVAL: Final = "AwaitingApproval"
SERVER_STARTING: Final = "ServerStarting"
SWITCHING: Final = "Switching"
SERVER_NOT_READY: Final = "ServerNotReady"
PROMOTION_REFUSED: Final = "PromotionRefused"
RERUN: Final = "Rerun"
RERUN_REFUSED: Final = "RerunRefused"

# what a Generation waits for
PARENT_NOT_FOUND: Final = "ParentNotFound"
PARENT_NOT_PROMOTED: Final = "ParentNotPromoted"
PARENT_CYCLE: Final = "ParentCycle"
REWARD_MODEL_NOT_FOUND: Final = "RewardModelNotFound"
REWARD_MODEL_NOT_READY: Final = "RewardModelNotReady"
REWARD_MODEL_UNFIT: Final = "RewardModelUnfit"
SIGNAL_NOT_STABLE: Final = "SignalNotStable"
REWARD_MODEL_SAW_JUDGES: Final = "RewardModelHoldoutTooSmall"
"""The reward model was trained on users who would judge the candidate."""
CHARACTER_NOT_FOUND: Final = "CharacterNotFound"
CHARACTER_INVALID: Final = "CharacterInvalid"
SERVICE_NAME_TAKEN: Final = "ServiceNameTaken"
KUBERAY_MISSING: Final = "KubeRayMissing"
SERVICE_GONE: Final = "ServiceGone"

# verdicts
ALL_GATES_PASSED: Final = "AllGatesPassed"
GATES_FAILED: Final = "GatesFailed"
PRODUCTION_MOVED: Final = "ProductionMoved"
ALREADY_SERVING: Final = "AlreadyServing"
SERVED_BEFORE: Final = "ServedBefore"
DRY_RUN: Final = "DryRun"

# the online test of a Generation
TESTING: Final = "Testing"
TEST_DELETED: Final = "TestDeleted"
TEST_FAILED: Final = "TestFailed"
TEST_ABORTED: Final = "TestAborted"

# Serving
PRODUCTION: Final = "Production"
CANARY: Final = "Canary"
TEST_ENDED: Final = "TestEnded"
DELETION_BLOCKED: Final = "DeletionBlocked"
SERVICE_RESTORED: Final = "ServiceRestored"
ROLLED_BACK: Final = "RolledBack"
ROLLBACK_REFUSED: Final = "RollbackRefused"
ROLLING_BACK: Final = "RollingBack"
RETIRED: Final = "Retired"

# conditions
PROGRESSING: Final = "Progressing"
COMPLETE: Final = "Complete"
READY: Final = "Ready"
GATES_PASSED: Final = "GatesPassed"
SERVING: Final = "Serving"
PARENT_CYCLE_CONDITION: Final = "ParentCycle"
PREREQUISITES_MET: Final = "PrerequisitesMet"
