"""The fixed places and names of a stage's pod: the operator sets them, the trainer reads them."""

from typing import Final

CLAIMS_ROOT: Final = "/mnt/claims"
"""`pvc://claim/path` is mounted at `CLAIMS_ROOT/claim`; the trainer takes another root from FLYWHEEL_CLAIMS_ROOT."""
STAGE_SPEC: Final = "/etc/flywheel/stage.json"
"""The StageSpec; the trainer takes another file by `--spec`."""
STATUS_PORT: Final = 8080
"""`GET /progress` answers a `Progress` here while a stage runs."""
SERVER_PORT: Final = 8000
"""The model server's OpenAI-compatible API."""
TERMINATION_LOG: Final = "/dev/termination-log"
"""The StageResult is written here; FLYWHEEL_TERMINATION_LOG names another file."""
RENDEZVOUS_PORT: Final = 29500
"""Where the first pod of a stage on several nodes waits for the others (torchrun's usual port)."""
NODES_VARIABLE: Final = "FLYWHEEL_NODES"
"""How many pods share the stage; left out, one. Which of them this is stands in JOB_COMPLETION_INDEX."""
MASTER_VARIABLE: Final = "FLYWHEEL_MASTER_ADDRESS"
"""The DNS name of the first of them."""
RAY_ADDRESS: Final = "RAY_ADDRESS"
"""Ray's own variable: the cluster on which curation looks at rows."""
RAY_WORKERS: Final = "FLYWHEEL_RAY_WORKERS"
"""How many workers that cluster is going to have, where it comes up together with the stage: it waits for them."""
REPORT_TO: Final = "FLYWHEEL_REPORT_TO"
"""Environment variable with the experiment trackers of training stages, by comma: WandB, MLflow, TensorBoard."""
