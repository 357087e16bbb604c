"""StageSpecs: what their digest depends on, and what it does not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from flywheel_contract.base import digest_of
from flywheel_contract.characters import Character
from flywheel_contract.params import ResolveParams, SftParams
from flywheel_contract.stage_spec import (
    DateRange,
    EvaluateSpec,
    Input,
    ResolveSpec,
    SftSpec,
    StageSpec,
    inputs_digest,
    stage_uri,
)
from flywheel_contract.stages import Origin, Role, Stage

_ANY: TypeAdapter[Any] = TypeAdapter(StageSpec)
A, B = digest_of("a"), digest_of("b")


def policy(**changes: Any) -> Input:  # noqa: ANN401 -- fields of Input
    given = {"name": "policy", "role": Role.POLICY, "kind": "Model", "uri": "pvc://models/a", "digest": A}
    return Input(**given | changes)


def sft(**changes: Any) -> SftSpec:  # noqa: ANN401 -- fields of SftSpec
    given = {"owner": "gen-1", "group": "luna", "artifacts": "pvc://artifacts/runs", "inputs": [policy()], "seed": 1}
    return SftSpec(**given | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"owner": "gen-2"},
        {"group": "sol"},
        {"artifacts": "s3://bucket/moved"},
        {"inputs": [policy(uri="s3://bucket/moved")]},
        {"resume": False},
    ],
)
def test_where_things_lie_and_what_they_are_called_does_not_count(changes: dict[str, Any]) -> None:
    assert inputs_digest(sft(**changes)) == inputs_digest(sft())


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"params": SftParams(epochs=2)},
        {"params": SftParams(max_steps=3)},
        {"inputs": [policy(digest=B)]},
        {"inputs": [policy(role=Role.BASELINE)]},
        {"inputs": [policy(weight=2)]},
        {"inputs": [policy(origin=Origin.USER)]},
        {"inputs": []},
        {"holdout_fraction": 0.2},
        {"characters": [Character(name="luna", system_prompt="You are Luna.")]},
    ],
)
def test_what_the_result_depends_on_counts(changes: dict[str, Any]) -> None:
    assert inputs_digest(sft(**changes)) != inputs_digest(sft())


def test_stages_of_the_same_inputs_differ() -> None:
    common = {"owner": "gen-1", "group": "luna", "artifacts": "pvc://artifacts/runs"}
    assert inputs_digest(SftSpec(**common)) != inputs_digest(EvaluateSpec(**common))


def test_to_resolve_the_place_is_the_input() -> None:
    """Its Job is named after the digest: a spec that names another place must not find the Job of the first."""

    def resolve(uri: str) -> ResolveSpec:
        inputs = [policy(uri=uri, digest=None)]
        return ResolveSpec(owner="gen-1", group="luna", artifacts="pvc://artifacts/runs", inputs=inputs)

    assert inputs_digest(resolve("pvc://models/a")) != inputs_digest(resolve("pvc://models/b"))
    assert resolve("pvc://models/a").params == ResolveParams()


def test_the_folder_of_the_outputs() -> None:
    short = inputs_digest(sft()).removeprefix("sha256:")[:16]
    assert stage_uri(sft()) == f"pvc://artifacts/runs/luna/gen-1/sft/{short}"


@given(st.permutations(["seed", "owner", "group", "artifacts", "inputs", "stage"]))
def test_the_digest_survives_the_wire_in_any_order_of_keys(order: list[str]) -> None:
    wire = sft().to_json()
    read = _ANY.validate_python({key: wire[key] for key in order})
    assert inputs_digest(read) == inputs_digest(sft())


def test_the_stage_chooses_the_model() -> None:
    for stage in Stage:
        spec = _ANY.validate_python({"stage": stage, "owner": "a", "group": "b", "artifacts": "pvc://c"})
        assert spec.stage is stage
        assert _ANY.validate_json(spec.model_dump_json(by_alias=True)) == spec


def test_two_inputs_of_a_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="once only"):
        sft(inputs=[policy(), policy(uri="pvc://models/b")])


def test_what_nobody_knows_is_refused() -> None:
    with pytest.raises(ValidationError):
        _ANY.validate_python(sft().to_json() | {"extra": 1})
    with pytest.raises(ValidationError):
        SftParams(learning_rate=float("nan"))


@pytest.mark.parametrize(("first", "last"), [("2026-03-02", "2026-03-01"), ("2026-01-01", "2027-01-02")])
def test_days_that_are_no_range_are_refused(first: str, last: str) -> None:
    with pytest.raises(ValidationError, match="dates: last is"):
        DateRange.model_validate({"first": first, "last": last})


def test_a_range_holds_both_ends() -> None:
    dates = DateRange.model_validate({"first": "2026-02-27", "last": "2026-03-01"})
    assert [str(day) for day in dates.days()] == ["2026-02-27", "2026-02-28", "2026-03-01"]
