"""Identifiers that are planted in the traffic are looked for in everything that the stages leave or say."""

import logging
from pathlib import Path
from typing import Any

import pytest

from e2e import tiny_data
from flywheel_contract.stage_result import StageResult
from tests.trainer_data.test_curate import row
from tests.trainer_data.workbench import Workbench

CANARIES = {
    "EMAIL_ADDRESS": "rebecca.canary@example.org",
    "PHONE_NUMBER": "(212) 736-5011",
    "CREDIT_CARD": "5555 5555 5555 4444",
    "IBAN_CODE": "GB82 WEST 1234 5698 7654 32",
    "IP_ADDRESS": "198.51.100.77",
    "PERSON": "Rebecca Hawthorne",
    "CUSTOMER_ID": "CU-774411",
}
ENTITIES = [*CANARIES][:6]
OWN = [{"name": "CUSTOMER_ID", "pattern": r"\bCU-\d{6}\b"}]


def planted() -> list[dict[str, Any]]:
    """Ordinary traffic, and each canary as the user says it, as the character does, beside it, deep in a long text."""
    rows = tiny_data.traffic(80)
    for number, canary in enumerate(CANARIES.values(), start=1):
        place = 1000 * number
        rows += [
            row(place, f"Hello, my friend {canary} is here.", "Nice to meet you."),
            row(place + 1, "Who was it again?", f"It was my friend {canary}, of course."),
            row(place + 2, "well " * 4000 + f"and my friend {canary} said so.", "I see."),
            row(place + 3, "Do you like it?", "Very much.", signals={"comment": f"My friend {canary} wrote it."}),
        ]
    mail, card = CANARIES["EMAIL_ADDRESS"], int(CANARIES["CREDIT_CARD"].replace(" ", ""))
    beside: list[dict[str, Any]] = [
        *({field: canary} for field in ("character", "locale") for canary in (mail, CANARIES["CUSTOMER_ID"])),
        *({table: {mail: 1, "paid": card}} for table in ("signals", "metadata")),
        {"reviews": [{"reviewer": mail, "choice": "Chosen"}]},
    ]
    rows += [row(8000 + n, "Do you like it?", "Very much.", **more) for n, more in enumerate(beside)]
    rows.append(row(9000, "Hi.", "Hello.", user=CANARIES["EMAIL_ADDRESS"]))
    rows.append(row(9001, "Hi.", "Hello.", conversation=CANARIES["EMAIL_ADDRESS"]))
    return rows


def planted_pairs() -> list[dict[str, Any]]:
    """Ordinary pairs, and each canary in the prompt, in the reply that is chosen and in the one that is not."""
    pairs = tiny_data.preferences(80 + 3 * len(CANARIES))
    places = [(place, canary) for place in ("prompt", "chosen", "rejected") for canary in CANARIES.values()]
    for pair, (place, canary) in zip(pairs[80:], places, strict=True):
        pair[place][-1]["content"] += f" My friend {canary} said so."
    return pairs


def found_in(folder: Path) -> list[str]:
    """Which canary stands in which file."""
    return [
        f"{name} in {file.relative_to(folder)}"
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        for name, canary in {**CANARIES, "number": CANARIES["CREDIT_CARD"].replace(" ", "")}.items()
        if canary.encode() in file.read_bytes()
    ]


@pytest.mark.training
@pytest.mark.parametrize("mode", ["Drop", "Redact"])
def test_no_canary_reaches_an_artefact_or_a_log(
    model_bench: Workbench,
    mode: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bench = model_bench
    caplog.set_level(logging.DEBUG)
    privacy = {"mode": mode, "entities": ENTITIES, "recognizers": OWN}
    traffic = bench.input("traffic", bench.data(f"canaries-{mode}", planted()))
    said: list[str] = []

    def done(stage: str, inputs: list[dict[str, Any]], **params: Any) -> StageResult:  # noqa: ANN401 -- JSON
        result = bench.succeed(stage, inputs, **params)
        said.append((bench.root / "termination-log").read_text(encoding="utf-8"))
        return result

    def output(role: str, result: StageResult, name: str) -> dict[str, Any]:
        return bench.input(role, bench.output(result.manifest_uri, name))

    curated = done("curate", [traffic], privacy=privacy, nearDuplicates={"enabled": False})
    counts = bench.manifest(curated).counts
    kind = "droppedPrivacy" if mode == "Drop" else "redactedPrivacy"
    assert {name: counts[f"{kind}.{name}"] >= 4 for name in CANARIES} == dict.fromkeys(CANARIES, True)

    policy = bench.input("policy", "pvc://lab/models/one")
    reward = bench.input("reward", "pvc://lab/models/judge")
    prompts = output("prompts", curated, "prompts")
    pairs, own = planted_pairs(), planted()
    screening = {"privacy": privacy}
    preferences = bench.input("preferences", bench.data(f"pairs-{mode}", pairs))
    fixes = bench.input("sft-data", bench.data(f"fixes-{mode}", own))
    train = {"batchSize": 8, "maxLength": 96, "maxSteps": 2, "saveSteps": 1, "screening": screening}
    counted = "dropped-privacy" if mode == "Drop" else "redacted-privacy"
    for stage in ("reward-model", "dpo"):
        screened = bench.manifest(done(stage, [policy, preferences], **train)).counts
        assert screened[counted] == 3 * len(CANARIES), stage
    short = {"maxNewTokens": 8, "maxPromptTokens": 64, "batchSize": 16}
    sampled = done("rejection-sample", [prompts, policy, reward], **short, samplesPerPrompt=2, maxPrompts=40)
    trained = done("sft", [policy, output("accepted", sampled, "accepted"), fixes], **train)
    assert bench.manifest(trained).counts[counted] >= 4 * len(CANARIES)
    parent = bench.input("parent", "pvc://lab/models/one")
    online = {"batchSize": 4, "numGenerations": 2, "maxNewTokens": 8, "maxPrompts": 8, "maxSteps": 1, "saveSteps": 1}
    done("rl", [prompts, policy, parent, reward], **online)
    candidate = bench.input("policy", bench.model(trained))
    baseline = bench.input("baseline", "pvc://lab/models/one")
    judged = output("evaluation", curated, "evaluation")
    done("evaluate", [judged, candidate, baseline, reward], **short, maxPromptsPerOrigin=8, bootstrapSamples=100)

    assert len(found_in(bench.claim / "data" / f"canaries-{mode}")) == len(CANARIES) + 1, "the search itself works"
    assert found_in(bench.claim / "artifacts") == []
    written = capfd.readouterr()
    everything = "\n".join([*said, caplog.text, written.out, written.err])
    assert [name for name, canary in CANARIES.items() if canary in everything] == []


@pytest.mark.parametrize("broken", ["role", "origin", "line", "time"])
def test_a_row_that_is_refused_is_not_quoted(bench: Workbench, broken: str, caplog: pytest.LogCaptureFixture) -> None:
    secret = f"My friend wrote from {CANARIES['EMAIL_ADDRESS']}"
    bad = row(1, "hi", "ho")
    if broken == "role":
        bad["messages"][0]["role"] = secret
    elif broken == "origin":
        bad["origin"] = secret
    elif broken == "time":
        bad["retain_until"] = secret
    uri = bench.data("refused", [bad])
    if broken == "line":
        (bench.path(uri) / "data.jsonl").write_text('{"conversation": "' + secret + "\n", encoding="utf-8")
    code, result = bench.run("curate", [bench.input("traffic", uri)])
    assert code == 65
    assert CANARIES["EMAIL_ADDRESS"] not in result.message + caplog.text
