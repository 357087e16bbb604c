"""The API's models and the CRDs generated from them."""

import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from flywheel_contract.base import Record
from flywheel_contract.stage_spec import StageSpec, inputs_digest
from flywheel_operator.model import crds, phases, transitions_doc
from flywheel_operator.model.generation import FROZEN, ROOT_RULES, GenerationSpec
from flywheel_operator.model.objects import Generation
from flywheel_operator.model.reward_model import RewardModelSpec
from flywheel_operator.model.runtime import Quantity
from flywheel_operator.model.status import GenerationStatus, Output, RewardModelStatus
from flywheel_operator.plan import stage_specs
from flywheel_operator.plan.stage_specs import resolve_reward_model
from tests.unit.build import digest, generation_spec, reward_model, reward_model_spec

ROOT = Path(__file__).parents[2]


class Inner(Record):
    """Inner."""

    share: float = Field(0.5, gt=0, lt=1, description="A share.")
    names: list[str] = Field(default_factory=lambda: ["a"], max_length=3, description="Names.")


class Outer(Record):
    """Outer."""

    inner: Inner = Field(default_factory=Inner, description="Always there.")
    other: Inner | None = Field(None, description="May be left out.")
    ratio: float | None = Field(4.0, gt=1, description="Null keeps all.")
    count: int | None = Field(None, ge=0, le=9, description="May be left out.")
    limits: dict[str, Quantity] | None = Field(None, description="Numbers or text.")
    kind: Literal["One"] = Field("One", description="The only one.")
    choice: Literal["A", "B"] = Field("A", description="One of two.")
    labels: dict[str, str] = Field(default_factory=dict, description="Text.")


def schema() -> dict[str, Any]:
    built: dict[str, Any] = crds.fill_defaults(crds.structural(Outer), Outer)["properties"]
    return built


def test_defaults_of_nested_objects_are_filled_in_level_by_level() -> None:
    assert schema()["inner"]["default"] == {}
    assert schema()["inner"]["properties"]["share"]["default"] == 0.5
    assert schema()["inner"]["properties"]["names"]["default"] == ["a"]
    assert "default" not in schema()["other"], "what may be left out is not made up"
    assert schema()["other"]["properties"]["share"]["default"] == 0.5
    assert schema()["labels"] == {
        "type": "object", "additionalProperties": {"type": "string"}, "default": {}, "description": "Text.",
    }  # fmt: skip


def test_null_is_allowed_only_where_it_says_something_else_than_the_default() -> None:
    assert schema()["ratio"] == {
        "type": "number", "minimum": 1, "exclusiveMinimum": True, "default": 4.0, "nullable": True,
        "description": "Null keeps all.",
    }  # fmt: skip
    assert schema()["count"] == {"type": "integer", "minimum": 0, "maximum": 9, "description": "May be left out."}


def test_bounds_that_exclude_themselves() -> None:
    share = schema()["inner"]["properties"]["share"]
    assert (share["minimum"], share["exclusiveMinimum"], share["maximum"], share["exclusiveMaximum"]) == (
        0, True, 1, True,
    )  # fmt: skip


def test_quantities_are_numbers_or_text() -> None:
    value = schema()["limits"]["additionalProperties"]
    pattern = value.pop("pattern")
    assert value == {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
    assert all(re.search(pattern, good) for good in ("1", "500m", "1.5", "8Gi", "2e3"))
    assert not any(re.search(pattern, bad) for bad in ("", "lots", "1 Gi", "Gi", "1GiB"))


def test_one_choice_and_several() -> None:
    assert schema()["kind"]["enum"] == ["One"]
    assert schema()["choice"]["enum"] == ["A", "B"]


def test_a_field_of_several_types_is_refused() -> None:
    class Mixed(BaseModel):
        value: int | list[str]

    with pytest.raises(TypeError, match="not structural"):
        crds.structural(Mixed)


def filled(schema: dict[str, Any], value: Any) -> Any:  # noqa: ANN401 -- JSON
    """What the API server makes of `value`: defaults, level by level."""
    if schema.get("type") == "array":
        return [filled(schema["items"], v) for v in value]
    if schema.get("type") != "object" or "properties" not in schema:
        return value
    out = dict(value)
    for name, child in schema["properties"].items():
        if name not in out and "default" in child:
            out[name] = child["default"]
        if name in out:
            out[name] = filled(child, out[name])
    return out


EVERYTHING = {
    "recipe": {
        "rejectionSampling": {}, "sft": {"lora": {}}, "dpo": {}, "rl": {},
    },
    "rewards": [{"rewardModel": "rm-1"}],
    "characters": [{"name": "luna", "systemPrompt": "x", "tools": [{"name": "draw", "description": "Draws."}]}],
    "gates": {"rules": [{"name": "mine", "metric": "winRate", "min": 0.5}]},
    "runtime": {"env": [{"name": "A"}], "tolerations": [{}], "stages": [{"stage": "sft"}]},
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["smallest", "everything"])
def test_the_api_servers_defaults_are_ours(changes: dict[str, Any]) -> None:
    """A default stands in one place: an object that the API server filled in is the one that we would have read."""
    schema = crds.generation_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    given = generation_spec(**changes)
    assert filled(schema, given) == GenerationSpec.model_validate(given).to_json()
    assert GenerationSpec.model_validate(filled(schema, given)) == GenerationSpec.model_validate(given)


def test_the_api_servers_defaults_are_ours_for_reward_models_too() -> None:
    schema = crds.reward_model_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    given = reward_model_spec()
    assert filled(schema, given) == RewardModelSpec.model_validate(given).to_json()
    kept = reward_model_spec(training={"pairFilter": {"maxLengthRatio": None}})
    assert RewardModelSpec.model_validate(kept).training.pair_filter.max_length_ratio is None
    assert filled(schema, kept)["training"]["pairFilter"]["maxLengthRatio"] is None


def test_null_survives_status_and_stage_spec() -> None:
    """Where null says something else than leaving out, a copy must not fall back to the default."""
    given = reward_model("rm-1", reward_model_spec(training={"pairFilter": {"maxLengthRatio": None}}))
    status = RewardModelStatus(resolved=given.spec)
    assert RewardModelStatus.model_validate(status.to_json()) == status
    resolve = resolve_reward_model("rm-1", given)
    resolved = [Output(name=i.name, uri=i.uri, digest=digest(i.name)) for i in resolve.inputs]
    spec = stage_specs.reward_model_spec(given, resolve, resolved, [])
    read = TypeAdapter(StageSpec).validate_python(spec.to_json())
    assert read == spec
    assert inputs_digest(read) == inputs_digest(spec)
    assert read.params.pair_filter.max_length_ratio is None
    assert "maxSteps" not in spec.to_json()["params"]
    assert GenerationStatus.model_validate({"fieldOfANewerVersion": 1}) == GenerationStatus()


def test_everything_but_three_fields_is_frozen() -> None:
    assert set(GenerationSpec.model_fields) - set(FROZEN) == {"suspend", "rollout", "ttl_seconds_after_finished"}
    assert FROZEN["lineage"] is True
    assert FROZEN["data"] is True
    assert FROZEN["active_deadline_seconds"] is False
    optional = [r["rule"] for r in ROOT_RULES if "activeDeadlineSeconds" in r["rule"]]
    assert len(optional) == 1
    assert "has(self.spec.activeDeadlineSeconds) == has(oldSelf.spec.activeDeadlineSeconds)" in optional[0]


def test_an_object_is_read_as_the_cluster_hands_it_over() -> None:
    raw = {
        "metadata": {"name": "a", "namespace": "b", "uid": "c", "managedFields": [], "resourceVersion": "1"},
        "spec": generation_spec(),
    }
    assert Generation.model_validate(raw).status == GenerationStatus()
    with pytest.raises(ValidationError):
        Generation.model_validate(raw | {"spec": generation_spec(unknown=1)})


def test_the_crds_are_written_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = crds.documents()
    monkeypatch.setattr(crds, "documents", lambda: documents)
    folder = tmp_path / "crds"
    assert crds.main([str(folder), "--check"]) == 1
    assert "run make regen" in capsys.readouterr().err
    assert crds.main([str(folder)]) == 0
    assert {p.name: p.read_text() for p in folder.iterdir()} == documents
    assert {p.name: p.read_text() for p in (ROOT / "crds").iterdir()} == documents
    assert crds.main([str(folder), "--check"]) == 0


def test_the_transition_tables_are_written_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "docs" / "transitions.md"
    assert transitions_doc.main([str(file), "--check"]) == 1
    assert "run make regen" in capsys.readouterr().err
    assert transitions_doc.main([str(file)]) == 0
    assert transitions_doc.main([str(file), "--check"]) == 0
    file.write_text("stale")
    assert transitions_doc.main([str(file), "--check"]) == 1


@pytest.mark.parametrize(("module", "target"), [(crds, "crds"), (transitions_doc, "docs/transitions.md")])
def test_the_commands_of_the_makefile(module: ModuleType, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["module", str(ROOT / target), "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(module.__file__ or "", run_name="__main__")
    assert ended.value.code == 0


def test_the_document_is_what_the_tables_say() -> None:
    assert (ROOT / "docs" / "transitions.md").read_text() == transitions_doc.document()
    row = next(line for line in transitions_doc.document().splitlines() if line.startswith("| `Completed`"))
    assert row.endswith("| nothing: it is the end |")


@pytest.mark.parametrize(
    ("meaning", "transitions", "terminal"),
    [
        (phases.MEANING, phases.TRANSITIONS, phases.TERMINAL),
        (phases.REWARD_MODEL_MEANING, phases.REWARD_MODEL_TRANSITIONS, phases.REWARD_MODEL_TERMINAL),
    ],
)
def test_the_tables_are_whole(meaning: dict[Any, str], transitions: dict[Any, Any], terminal: frozenset[Any]) -> None:
    every = set(type(next(iter(meaning))))
    assert set(meaning) == set(transitions) == every
    for phase, following in transitions.items():
        assert phase in following, "to stay is always allowed"
        assert (following == {phase}) == (phase in terminal)
        assert phase in terminal or terminal <= following, "every phase has an exit"
