"""The safety filter of curation: the gateway's classifier, a model by URI, an endpoint; and no answer at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from flywheel_contract.filters import SafetyParams
from flywheel_contract.metric_names import Metric
from flywheel_contract.safety import ClassifierParams, ModerationEndpoint
from flywheel_contract.stage_result import Reason
from flywheel_safety.choice import chosen
from flywheel_safety.classifier import BrokenAnswerError, Classifier, Scores, UnavailableError, judge
from flywheel_trainer.data import safety
from flywheel_trainer.data.safety import classifier, unsafe_rows
from flywheel_trainer.data.safety_model import TextClassifier
from flywheel_trainer.errors import ConfigError, ModelError, StageError
from tests.safety.moderation_server import moderation_server
from tests.trainer_data.test_curate import many, row
from tests.trainer_data.workbench import Workbench

ONLY_SAFETY: dict[str, Any] = {"privacy": {"enabled": False}, "nearDuplicates": {"enabled": False}}
SAFE = SafetyParams().safe_labels


class Broken(Classifier):
    """Answers with an error."""

    name = "broken/1"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def score(self, texts: Sequence[str]) -> Sequence[Scores]:
        raise self._error


def test_curation_and_gateway_ask_the_same_classifier() -> None:
    curation, gateway = classifier(SafetyParams(), None), chosen(ClassifierParams(), {})
    texts = ["fuck you, you stupid bitch", "how to make a bomb", "what a lovely evening", ""]
    assert curation.name == gateway.name
    assert curation.score(texts) == gateway.score(texts)


def test_a_row_is_unsafe_by_its_first_unsafe_message() -> None:
    rows = [["hi", "how to make a bomb", "fuck you, you stupid bitch"], ["hi"], [], ["kill yourself"]]
    assert unsafe_rows(classifier(SafetyParams(), None), rows, 0.8) == ["violence", None, None, "selfHarm"]


def test_batches_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["hi", "how to make a bomb", "ho"], ["well", "kill yourself"]]
    monkeypatch.setattr(safety, "_BATCH", 2)
    assert unsafe_rows(classifier(SafetyParams(), None), rows, 0.8) == ["violence", "selfHarm"]


def test_what_the_classifier_cannot_say_stops_the_stage() -> None:
    with pytest.raises(StageError, match=r"^curation\.safety: no route; nothing is curated without a verdict") as away:
        unsafe_rows(Broken(UnavailableError("no route")), [["hi"]], 0.5)
    assert away.value.exit_code == 1, "another attempt may succeed"
    with pytest.raises(ConfigError, match=r"^curation\.safety: no scores; nothing is curated") as broken:
        unsafe_rows(Broken(BrokenAnswerError("no scores")), [["hi"]], 0.5)
    assert broken.value.exit_code == 78


def test_categories_and_own_words_are_counted(bench: Workbench) -> None:
    rows = [*many(20), row(100, "how to make a bomb?", "no"), row(101, "hi", "the butler did it"), row(102, "x", "kys")]
    words = [{"category": "spoiler", "phrases": ["butler did it"]}]
    code, result = bench.run(
        "curate", [bench.input("traffic", bench.data("traffic", rows))], **ONLY_SAFETY, safety={"words": words}
    )
    assert code == 0, result.message
    counts = {k: n for k, n in bench.manifest(result).counts.items() if k.startswith("droppedSafety.")}
    assert counts == {"droppedSafety.violence": 1, "droppedSafety.spoiler": 1, "droppedSafety.selfHarm": 1}
    assert result.metrics[Metric.DROPPED_SAFETY].value == 3


def test_an_endpoint_judges_and_its_failures_are_told_apart(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "ATTEMPTS", 1)
    source = bench.input("traffic", bench.data("traffic", [*many(20), row(100, "a badword", "ho")]))
    with moderation_server() as server:
        endpoint = {"url": server.url, "apiKeyEnv": "MODERATION_KEY"}
        code, result = bench.run("curate", [source], **ONLY_SAFETY, safety={"endpoint": endpoint})
        assert (code, result.reason) == (78, Reason.INVALID_CONFIG)
        assert result.message.startswith("curation.safety: endpoint.apiKeyEnv: no variable MODERATION_KEY")
        monkeypatch.setenv("MODERATION_KEY", "k-123")
        server.answers.append((401, b""))
        code, result = bench.run("curate", [source], **ONLY_SAFETY, safety={"endpoint": endpoint})
        assert code == 78
        assert "answered 401: check the endpoint's url, model and API key; nothing is curated" in result.message
        server.answers.append((503, b""))
        code, result = bench.run("curate", [source], **ONLY_SAFETY, safety={"endpoint": endpoint})
        assert (code, result.reason) == (1, Reason.FAULT)
        code, result = bench.run("curate", [source], **ONLY_SAFETY, safety={"endpoint": endpoint})
        assert code == 0
        assert bench.manifest(result).counts["droppedSafety.rude"] == 1
        assert "k-123" not in (bench.folder(result) / "manifest.json").read_text()


def guard(base: Path, folder: Path, labels: Sequence[str], **config: object) -> Path:
    """A tiny text classifier with random weights, of these labels."""
    set_seed(3)
    settings = AutoConfig.from_pretrained(base)
    settings.id2label = dict(enumerate(labels))
    settings.label2id = {label: index for index, label in enumerate(labels)}
    for name, value in config.items():
        setattr(settings, name, value)
    tokenizer = AutoTokenizer.from_pretrained(base)
    settings.pad_token_id = tokenizer.pad_token_id
    settings.architectures = None
    model = AutoModelForSequenceClassification.from_config(settings)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def guards(model_bench: Workbench) -> Path:
    """Where guards are built; beside it lie the claim's models."""
    return model_bench.claim / "models"


@pytest.mark.training
def test_a_model_gives_its_harmful_labels_whatever_the_batch(guards: Path) -> None:
    model = TextClassifier(guard(guards / "one", guards / "guard", ["safe", "toxic", "hate"]), SAFE)
    assert model.name == "guard/LlamaForSequenceClassification"
    texts = ["Do you like the sea?", "", "I do. " * 400, "No."]
    together, alone = model.score(texts), [model.score([text])[0] for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
        assert set(one) == {"toxic", "hate"}
        assert sum(one.values()) < 2
    assert together[1] == {"toxic": 0, "hate": 0}
    assert judge(model, texts, 1.0) == [None] * 4


@pytest.mark.training
def test_several_labels_at_once_are_each_a_probability(guards: Path) -> None:
    folder = guard(guards / "one", guards / "multi", ["rude", "mean"], problem_type="multi_label_classification")
    scores = TextClassifier(folder, SAFE).score(["Do you like the sea?"])[0]
    assert set(scores) == {"rude", "mean"}
    assert all(0 < value < 1 for value in scores.values())


@pytest.mark.training
def test_labels_of_which_none_means_safe_are_refused(guards: Path) -> None:
    folder = guard(guards / "one", guards / "unclear", ["LABEL_0", "LABEL_1"])
    with pytest.raises(ConfigError, match=r"^curation\.safety\.safeLabels: the model's labels are LABEL_0, LABEL_1;"):
        TextClassifier(folder, SAFE)
    assert set(TextClassifier(folder, ["label_0"]).score(["hi"])[0]) == {"LABEL_1"}
    with pytest.raises(ConfigError, match="name those that mean safe, not all and not none"):
        TextClassifier(folder, ["label_0", "label_1"])


@pytest.mark.training
def test_what_is_no_classifier_is_refused(guards: Path) -> None:
    with pytest.raises(ModelError, match="no text classifier"):
        TextClassifier(guards / "one", SAFE)


@pytest.mark.training
def test_a_model_by_uri_judges_in_the_stage(model_bench: Workbench, guards: Path) -> None:
    """The model is an input like any other: by digest, resolved, refused where it changed."""
    guard(guards / "one", guards / "stage", ["toxic", "safe"])
    source = model_bench.input("traffic", model_bench.data("guarded", many(40)))
    model = model_bench.input("safety", "pvc://lab/models/stage", kind="Model")
    code, result = model_bench.run("resolve", [source, {**model, "digest": None}])
    assert code == 0, result.message
    assert result.outputs["safety"] == model["digest"]
    code, result = model_bench.run("curate", [source, model], **ONLY_SAFETY, safety={"threshold": 1.0})
    assert code == 0, result.message
    counts = model_bench.manifest(result).counts
    assert counts["droppedSafety"] == 0
    code, result = model_bench.run("curate", [source, model], **ONLY_SAFETY, safety={"threshold": 1e-6})
    assert (code, result.message) == (65, "no conversation of 40 is left: 40 were unsafe")
    code, result = model_bench.run("resolve", [{**model, "uri": "pvc://lab/models/one", "digest": None}])
    assert (code, result.reason) == (66, Reason.INVALID_MODEL)


def test_nobody_there_is_retried(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "ATTEMPTS", 1)
    gone = SafetyParams(endpoint=ModerationEndpoint(url="http://127.0.0.1:9", timeout_seconds=1))
    with pytest.raises(StageError, match=r"cannot be reached \(.*\); nothing is curated") as failure:
        unsafe_rows(classifier(gone, None), [["hi"]], 0.5)
    assert failure.value.exit_code == 1
