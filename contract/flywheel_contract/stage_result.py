"""StageResult: how a stage's outcome reaches the operator, as the container's termination message (4096 bytes)."""

import base64
import json
import zlib
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from flywheel_contract.base import Digest, Name, Record
from flywheel_contract.manifest import Measurement
from flywheel_contract.metric_names import REPORTED_BY, Metric
from flywheel_contract.stage_spec import API_VERSION, MAX_INPUTS
from flywheel_contract.stages import OUTPUTS, Stage
from flywheel_contract.uris import OutputUri

TERMINATION_MESSAGE_BYTES: Final = 4096
"""The kubelet cuts a termination message here."""
MESSAGE_MAX_LENGTH: Final = 1024


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


USER_MISTAKES: Final = frozenset(
    {
        Reason.INVALID_SPEC,
        Reason.INVALID_DATA,
        Reason.INVALID_MODEL,
        Reason.INVALID_URI,
        Reason.INVALID_CONFIG,
        Reason.NOT_FINITE,
    }
)
"""Reasons that no retry mends. They say the same as the exit codes, which a launcher of several processes swallows."""


def _short(value: float | None) -> float | None:
    """Six significant digits: enough for a gate, and bounded in length."""
    return None if value is None else float(f"{value:.6g}")


class Size(NamedTuple):
    """How large an input is: `[rows, tokens]` of data, `[0, parameters]` of a model. As a list it stays short."""

    rows: Annotated[int, Field(ge=0, le=2**53)]
    amount: Annotated[int, Field(ge=0, le=2**53)]


class StageResult(Record):
    """The outcome of a stage. All that does not fit stands in the manifest.

    `outputs` maps output names to digests; for `resolve` it maps the inputs' names to theirs. Outputs and metrics are
    those of the stage and no others, which is what bounds the size of the whole.
    """

    api_version: Literal["contract.characterflywheel.dev/v1alpha1"] = API_VERSION
    stage: Stage
    reason: Reason
    message: Annotated[str, StringConstraints(max_length=MESSAGE_MAX_LENGTH)] = ""
    manifest_uri: OutputUri | None = None
    manifest_digest: Digest | None = None
    outputs: dict[Name, Digest] = Field(default_factory=dict, max_length=MAX_INPUTS)
    metrics: dict[Metric, Measurement] = Field(default_factory=dict)
    sizes: list[Size] = Field(
        default_factory=list,
        max_length=MAX_INPUTS,
        description="Of `resolve` in a dry run, in the order of its inputs.",
    )
    reused: bool = Field(False, description="A manifest was there already; nothing was done again.")

    @model_validator(mode="after")
    def _of_its_stage(self) -> Self:
        strange = [m.value for m in self.metrics if m not in REPORTED_BY[self.stage]]
        if self.stage is not Stage.RESOLVE:
            strange += [name for name in self.outputs if name not in OUTPUTS[self.stage]]
        if self.sizes and (self.stage is not Stage.RESOLVE or self.manifest_uri is not None):
            raise ValueError("only resolve, which leaves no manifest, tells sizes")
        if strange:
            raise ValueError(f"stage {self.stage.value} does not report {', '.join(strange)}")
        return self

    def to_termination_message(self) -> str:
        """Compact JSON of at most 4096 bytes. Where it is longer, the metrics are packed; a message that does not fit
        even then is cut, nothing else ever is.

        Raises:
            ValueError: it does not fit even without a message (the limits above make that impossible for a stage's
                own outputs; a test builds the largest).
        """
        result = self.to_json()
        result["metrics"] = {
            name: {key: _short(v) if key != "n" else v for key, v in m.items()} for name, m in result["metrics"].items()
        }
        text = _compact(result)
        if len(text) > TERMINATION_MESSAGE_BYTES:
            result["metrics"] = _packed(result["metrics"])
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

    @field_validator("metrics", mode="before")
    @classmethod
    def _unpack(cls, value: object) -> object:
        """Metrics as `to_termination_message` packs them: zlib, then base 85, whose alphabet JSON leaves alone."""
        if not isinstance(value, str):
            return value
        try:
            rows = json.loads(zlib.decompress(base64.b85decode(value)))
            keys = ("value", "low", "high", "n")
            return {name: {k: v for k, v in zip(keys, row, strict=True) if v is not None} for name, row in rows.items()}
        except (ValueError, TypeError, AttributeError, zlib.error) as error:
            raise ValueError("the packed metrics cannot be read") from error


def _packed(metrics: dict[str, dict[str, Any]]) -> str:
    rows = {name: [m.get(key) for key in ("value", "low", "high", "n")] for name, m in metrics.items()}
    return base64.b85encode(zlib.compress(_compact(rows).encode(), 9)).decode()


def _compact(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)
