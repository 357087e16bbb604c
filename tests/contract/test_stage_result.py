"""StageResult: the largest one fits, a long message is cut, nothing else ever is."""

import base64
import json
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flywheel_contract.base import digest_of
from flywheel_contract.exit_codes import USER_MISTAKES as CODES
from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.manifest import Manifest, Measurement
from flywheel_contract.metric_names import REPORTED_BY, REWARD_METRICS, Metric
from flywheel_contract.progress import Progress
from flywheel_contract.stage_result import (
    MESSAGE_MAX_LENGTH,
    TERMINATION_MESSAGE_BYTES,
    USER_MISTAKES,
    Reason,
    Size,
    StageResult,
)
from flywheel_contract.stage_spec import MAX_INPUTS
from flywheel_contract.stages import OUTPUTS, Stage
from flywheel_contract.uris import OUTPUT_URI_MAX_LENGTH

# With six significant digits these are the longest numbers that JSON knows, before and after the point.
LONGEST = [-1234570000000000.0, -1.23457e-300, -1.23457e300]
WORST_CHARACTERS = ['"', "\\", "\0", "é", "…", "🌙", "a"]


CASES = [(s, REPORTED_BY[s]) for s in Stage if s is not Stage.REWARD_MODEL] + [
    # A reward model is of one type, and reports what that type has.
    (Stage.REWARD_MODEL, metrics)
    for metrics in REWARD_METRICS.values()
]


def largest(stage: Stage, number: float, character: str, metrics: tuple[Metric, ...] = ()) -> StageResult:
    names = [f"{i:02}".ljust(63, "x") for i in range(MAX_INPUTS)] if stage is Stage.RESOLVE else OUTPUTS[stage]
    return StageResult(
        stage=stage,
        reason=max(Reason, key=len),
        message=character * MESSAGE_MAX_LENGTH,
        manifest_uri="s3://" + "k" * (OUTPUT_URI_MAX_LENGTH - 5),
        manifest_digest=digest_of("manifest"),
        outputs={name: digest_of(name) for name in names},
        metrics={m: Measurement(value=number, low=number, high=number, n=2**53) for m in metrics},
        reused=True,
    )


def test_the_largest_result_of_a_dry_run_fits() -> None:
    result = largest(Stage.RESOLVE, 0.0, "a", ()).model_copy(
        update={"manifest_uri": None, "manifest_digest": None, "sizes": [Size(2**53, 2**53)] * MAX_INPUTS}
    )
    text = result.to_termination_message()
    assert len(text.encode()) <= TERMINATION_MESSAGE_BYTES
    assert StageResult.from_termination_message(text).sizes == result.sizes


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.RESOLVE])
def test_no_stage_with_a_manifest_tells_sizes(stage: Stage) -> None:
    with pytest.raises(ValidationError, match="only resolve, which leaves no manifest, tells sizes"):
        StageResult(stage=stage, reason=Reason.SUCCEEDED, manifest_uri="s3://b/m", sizes=[Size(1, 2)])


@pytest.mark.parametrize(("stage", "metrics"), CASES)
@pytest.mark.parametrize("character", WORST_CHARACTERS)
@pytest.mark.parametrize("number", LONGEST)
def test_the_largest_result_fits(stage: Stage, metrics: tuple[Metric, ...], character: str, number: float) -> None:
    result = largest(stage, number, character, metrics)
    text = result.to_termination_message()
    assert len(text.encode()) <= TERMINATION_MESSAGE_BYTES
    read = StageResult.from_termination_message(text)
    assert read.model_copy(update={"message": "", "metrics": {}}) == result.model_copy(
        update={"message": "", "metrics": {}}
    )
    assert read.metrics.keys() == result.metrics.keys()
    for metric, measured in read.metrics.items():
        assert measured.value == pytest.approx(result.metrics[metric].value, rel=1e-5)
    # What is left of the message is its beginning.
    kept = read.message.removesuffix("…")
    assert result.message.startswith(kept)
    assert len(kept) > 20, "there is always room for a sentence"


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("seed", range(5))
def test_the_largest_result_fits_when_no_two_numbers_are_alike(stage: Stage, seed: int) -> None:
    draw = random.Random(seed)

    def number() -> float:
        return -float(f"{draw.uniform(1, 10):.5f}e-{draw.randrange(100, 300)}")

    metrics = {
        m: Measurement(value=number(), low=number(), high=number(), n=draw.randrange(2**52, 2**53))
        for m in REPORTED_BY[stage]
    }
    result = largest(stage, 0.0, "\0").model_copy(update={"metrics": metrics})
    text = result.to_termination_message()
    assert len(text.encode()) <= TERMINATION_MESSAGE_BYTES
    read = StageResult.from_termination_message(text)
    assert {m: v.n for m, v in read.metrics.items()} == {m: v.n for m, v in metrics.items()}
    assert len(read.message) > 20


@pytest.mark.parametrize("packed", ["", "no base 85 \\", "Xk~0{Zv", base64.b85encode(zlib.compress(b"[1]")).decode()])
def test_packed_metrics_that_cannot_be_read(packed: str) -> None:
    text = json.dumps({"stage": "evaluate", "reason": "Succeeded", "metrics": packed})
    with pytest.raises(ValidationError, match="packed metrics cannot be read"):
        StageResult.from_termination_message(text)


def test_numbers_keep_six_digits_and_counts_all_of_theirs() -> None:
    result = StageResult(
        stage=Stage.EVALUATE,
        reason=Reason.SUCCEEDED,
        metrics={Metric.WIN_RATE: Measurement(value=0.123456789, n=1234567)},
    )
    read = StageResult.from_termination_message(result.to_termination_message())
    assert read.metrics[Metric.WIN_RATE] == Measurement(value=0.123457, n=1234567)


@given(st.text(st.characters(codec="utf-8"), max_size=MESSAGE_MAX_LENGTH))
def test_a_message_alone_is_never_cut_too_far(message: str) -> None:
    result = StageResult(stage=Stage.SFT, reason=Reason.FAULT, message=message)
    text = result.to_termination_message()
    read = StageResult.from_termination_message(text)
    if read != result:
        assert TERMINATION_MESSAGE_BYTES - len(text) < 40, "cut no more than needed"
        assert message.startswith(read.message.removesuffix("…"))


def test_what_cannot_fit_is_an_error() -> None:
    outputs = {f"{i:02}".ljust(63, "x"): digest_of(i) for i in range(60)}
    result = largest(Stage.RESOLVE, 0.0, "a", ()).model_copy(update={"outputs": outputs})
    with pytest.raises(ValueError, match="without its message"):
        result.to_termination_message()


def test_a_stage_reports_its_own_only() -> None:
    with pytest.raises(ValidationError, match="does not report winRate"):
        StageResult(stage=Stage.SFT, reason=Reason.SUCCEEDED, metrics={Metric.WIN_RATE: Measurement(value=1)})
    with pytest.raises(ValidationError, match="does not report report"):
        StageResult(stage=Stage.SFT, reason=Reason.SUCCEEDED, outputs={"report": digest_of("x")})
    with pytest.raises(ValidationError):
        StageResult.from_termination_message("Segmentation fault")


def test_every_metric_is_reported_by_a_stage_and_every_stage_says_what_it_leaves() -> None:
    assert {m for metrics in REPORTED_BY.values() for m in metrics} == set(Metric)
    assert set(OUTPUTS) == set(REPORTED_BY) == set(Stage)


def test_the_codes_of_mistakes_are_sysexits() -> None:
    ours = {c for c in ExitCode if c in CODES}
    assert ours == set(ExitCode) - {ExitCode.DONE, ExitCode.FAULT, ExitCode.INTERRUPTED}
    assert USER_MISTAKES == set(Reason) - {
        Reason.SUCCEEDED, Reason.OUT_OF_MEMORY, Reason.DISK_FULL, Reason.INTERRUPTED, Reason.FAULT,
    }  # fmt: skip


def test_a_manifest_stands_for_all_that_it_names() -> None:
    given = {
        "stage": Stage.SFT, "owner": "gen-1", "group": "luna", "inputs_digest": digest_of("in"), "inputs": [],
        "seed": 0, "outputs": {"model": digest_of("model")},
    }  # fmt: skip
    manifest = Manifest(**given)
    assert manifest.digest() == Manifest.model_validate_json(manifest.model_dump_json(by_alias=True)).digest()
    assert manifest.digest() != Manifest(**given | {"seed": 1}).digest()
    assert Progress(percent=3, total_steps=4).to_json() == {"percent": 3, "totalSteps": 4, "message": ""}
