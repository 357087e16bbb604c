from collections.abc import Callable
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from e2e.demo import manifests, storage
from e2e.demo.chitchat import CHARACTER, SYSTEM_PROMPT
from e2e.demo.objects import Turn
from flywheel_contract.stages import Origin
from flywheel_contract.uris import parse_uri
from flywheel_operator.decide.gates import GENERATION_GATES, rules_in_force
from flywheel_operator.model.generation import GenerationSpec
from flywheel_operator.model.reward_model import RewardModelSpec

Load = Callable[[str], Turn]

FILES = (manifests.REWARD_MODEL, *manifests.GENERATIONS)


def spec(file: str) -> GenerationSpec | RewardModelSpec:
    model = RewardModelSpec if file == manifests.REWARD_MODEL else GenerationSpec
    parsed: GenerationSpec | RewardModelSpec = TypeAdapter(model).validate_python(manifests.load(file)["spec"])
    return parsed


@pytest.mark.parametrize("file", FILES)
def test_each_file_is_valid_and_on_the_claim(file: str) -> None:
    text = yaml.safe_dump(manifests.load(file))
    spec(file)
    uris = [word.rstrip(",}") for word in text.split() if "://" in word]
    assert uris
    assert {parse_uri(uri).root for uri in uris} == {storage.CLAIM}


@pytest.mark.parametrize("file", FILES)
def test_the_character_is_the_one_that_the_pairs_were_sampled_with(file: str) -> None:
    (character,) = spec(file).characters
    assert (character.name, character.system_prompt) == (CHARACTER, SYSTEM_PROMPT)


@pytest.mark.parametrize("file", manifests.GENERATIONS)
def test_the_gates_are_the_default_ones(file: str) -> None:
    found = spec(file)
    assert rules_in_force(found.gates, GENERATION_GATES) == list(GENERATION_GATES)


def test_both_generations_have_both_origins_and_different_slices() -> None:
    first, second = (spec(file) for file in manifests.GENERATIONS)
    assert isinstance(first, GenerationSpec)
    assert isinstance(second, GenerationSpec)
    assert {s.origin for s in first.data.traffic} == set(Origin)
    assert not {s.uri for s in first.data.traffic} & {s.uri for s in second.data.traffic}
    same: Any = {"lineage", "recipe", "evaluation", "rewards", "curation"}
    assert first.model_dump(include=same) == second.model_dump(include=same)


def test_the_second_is_trained_from_what_then_serves(recorded: Load) -> None:
    manifest = manifests.load(manifests.GENERATIONS[1])
    base = manifest["spec"]["parent"]
    assert manifests.with_parent(manifest, recorded("promoted"))["spec"]["parent"] == {"generation": "luna-1"}
    assert manifests.with_parent(manifest, recorded("gated"))["spec"]["parent"] == base
    assert manifests.with_parent(manifest, None)["spec"]["parent"] == base
    assert manifest["spec"]["parent"] == base, "the file's own content is left alone"
