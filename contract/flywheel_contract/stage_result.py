"""StageResult: how a stage's outcome reaches the operator, as the container's termination message (4096 bytes)."""

import json
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StringConstraints

from flywheel_contract.base import Digest, Record
from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import Metric
from flywheel_contract.stage_spec import API_VERSION, MAX_INPUTS
from flywheel_contract.stages import Stage
from flywheel_contract.uris import URI_MAX_LENGTH

TERMINATION_MESSAGE_BYTES: Final = 4096
"""The kubelet cuts a termination message here."""
MESSAGE_MAX_LENGTH: Final = 1024
MAX_METRICS: Final = 16


class Reason(StrEnum):
    """Why a stage ended as it did; a closed set that the operator may act on."""

    SUCCEEDED = "Succeeded"
    INVALID_SPEC = "InvalidSpec"
    INVALID_DATA = "InvalidData"
    INVALID_MODEL = "InvalidModel"
    INVALID_URI = "InvalidUri"
    INVALID_CONFIG = "InvalidConfig"
    NOT_FINITE = "NotFinite"
    OUT_OF_MEMORY = "OutOfMemory"
    DISK_FULL = "DiskFull"
    INTERRUPTED = "Interrupted"
    FAULT = "Fault"


def _short(value: float | None) -> float | None:
    """Six significant digits: enough for a gate, and bounded in length."""
    return None if value is None else float(f"{value:.6g}")


class StageResult(Record):
    """The outcome of a stage. All that does not fit stands in the manifest.

    `outputs` maps output names to digests; for `resolve` it maps the inputs' names to theirs.
    """

    api_version: Literal["contract.characterflywheel.dev/v1alpha1"] = API_VERSION
    stage: Stage
    reason: Reason
    message: Annotated[str, StringConstraints(max_length=MESSAGE_MAX_LENGTH)] = ""
    manifest_uri: Annotated[str, StringConstraints(max_length=2 * URI_MAX_LENGTH)] | None = None
    manifest_digest: Digest | None = None
    outputs: dict[Annotated[str, StringConstraints(max_length=63)], Digest] = Field(
        default_factory=dict, max_length=MAX_INPUTS
    )
    metrics: dict[Metric, Measurement] = Field(default_factory=dict, max_length=MAX_METRICS)
    reused: bool = Field(False, description="A manifest was there already; nothing was done again.")

    def to_termination_message(self) -> str:
        """Compact JSON of at most 4096 bytes; a message that does not fit is cut, nothing else ever is.

        Raises:
            ValueError: it does not fit even without a message (the limits above make that impossible for a stage's
                own outputs; a test builds the largest).
        """
        result = self.to_json()
        result["metrics"] = {
            name: {key: _short(v) if key != "n" else v for key, v in m.items()} for name, m in result["metrics"].items()
        }
        text = _compact(result)
        while len(text) > TERMINATION_MESSAGE_BYTES and result.get("message"):
            surplus = len(text) - TERMINATION_MESSAGE_BYTES
            # An escaped character takes at most 12 bytes (a surrogate pair), so this never cuts too little for ever.
            keep = len(result["message"]) - max(1, surplus // 12)
            result["message"] = result["message"][: max(0, keep - 1)] + "…" if keep > 1 else ""
            text = _compact(result)
        if len(text) > TERMINATION_MESSAGE_BYTES:
            raise ValueError(f"the result of stage {self.stage} takes {len(text)} bytes without its message")
        return text

    @classmethod
    def from_termination_message(cls, text: str) -> Self:
        """Parses what `to_termination_message` wrote.

        Raises:
            pydantic.ValidationError: it is no StageResult.
        """
        return cls.model_validate_json(text)


def _compact(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)
