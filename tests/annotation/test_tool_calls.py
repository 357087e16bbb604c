"""Characters and their tools in the model's own template: in rendering, in SFT, DPO, GRPO and the reward model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from e2e import tiny_data, tiny_model
from flywheel_contract.characters import Character
from flywheel_contract.pairs import AgreementParams
from flywheel_contract.stage_result import Reason, StageResult
from flywheel_trainer import prompts
from flywheel_trainer.annotation import tool_calls
from flywheel_trainer.data.rows import Conversation, Preference, read_traffic
from flywheel_trainer.errors import DataError, ModelError
from flywheel_trainer.models import load_tokenizer, read_scorer
from tests.trainer.workshop import Workshop

Json = dict[str, Any]

TOOL_TEMPLATE = (
    "{% if tools %}<|tools|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>\n{% endif %}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}"
    "{{ '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TOOL = {
    "name": "generate_image",
    "description": "Sends a picture.",
    "parameters": [{"name": "prompt", "description": "What it shows."}],
}
CAPTAIN = {"name": tiny_data.CHARACTER, "systemPrompt": tiny_data.SYSTEM_PROMPT, "tools": [TOOL]}
CHARACTER = Character.model_validate(CAPTAIN)
CALL = {"type": "function", "function": {"name": "generate_image", "arguments": {"prompt": "a ship"}}}
ASKED = [{"role": "user", "content": "Show me the ship!"}]
CALLING = {"role": "assistant", "content": "Look:", "tool_calls": [CALL]}
PLAIN = {"role": "assistant", "content": "It is a fine ship."}


def reviews(*choices: str) -> list[Json]:
    return [{"reviewer": f"r{number}", "choice": choice} for number, choice in enumerate(choices)]


def about(number: int = 0, **more: Any) -> Json:  # noqa: ANN401 -- JSON
    return {
        "conversation": f"tool-{number}", "user": f"tool-user-{number}", "origin": "Internal",
        "character": tiny_data.CHARACTER, **more,
    }  # fmt: skip


def calling(number: int = 0, *choices: str, **more: Any) -> Json:  # noqa: ANN401 -- JSON
    return about(number, messages=[*ASKED, CALLING], toolCall="Explicit", reviews=reviews(*choices), **more)


def preferring(number: int = 0, *choices: str) -> Json:
    return about(
        number, prompt=ASKED, chosen=[CALLING], rejected=[PLAIN], toolCall="Explicit", reviews=reviews(*choices)
    )


def with_template(folder: Path, template: str) -> None:
    file = folder / "chat_template.jinja"
    assert file.exists()
    file.write_text(template, encoding="utf-8")


@pytest.fixture(scope="module")
def tools_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model.build(tmp_path_factory.mktemp("tools"))
    with_template(folder, TOOL_TEMPLATE)
    return folder


def tokenizer(template: str = TOOL_TEMPLATE) -> Any:  # noqa: ANN401 -- transformers
    found = tiny_model.build_tokenizer()
    found.chat_template = template
    return found


def test_a_characters_tools_are_written_by_the_models_own_template() -> None:
    messages = prompts.with_character(ASKED, "captain", [CHARACTER])  # type: ignore[arg-type]
    text = prompts.render(tokenizer(), messages, reply_next=True)
    assert text.startswith('<|tools|>{"type": "function", "function": {"name": "generate_image"')
    assert text.endswith("<|assistant|>\n")
    plain, tools = prompts.split_tools(messages)
    assert "tools" not in plain[0]
    assert tools == [CHARACTER.tools[0].schema_of_call()]
    assert prompts.split_tools([]) == ([], [])


def test_tools_stay_when_older_turns_go() -> None:
    turns = [{"role": role, "content": "word " * 30} for role in ("user", "assistant") * 5]
    messages = prompts.with_character([*turns, *ASKED], "captain", [CHARACTER])  # type: ignore[list-item]
    fitted = prompts.fit_prompt(tokenizer(), messages, 10)
    assert [m["role"] for m in fitted] == ["system", "user"]
    assert prompts.split_tools(fitted)[1]


@pytest.mark.parametrize("messages", [ASKED, [*ASKED, CALLING]])
def test_a_template_without_tools_is_refused(messages: list[Any]) -> None:
    told = prompts.with_character(messages, "captain", [CHARACTER])
    with pytest.raises(ModelError, match="the model's chat template writes no tools, and generate_image is one: take"):
        prompts.render(tokenizer(tiny_model.TEMPLATE), told)


def test_trl_sees_the_same_text_as_we_do() -> None:
    own = tokenizer()
    for_trl = prompts.trainer_tokenizer(own, [CHARACTER])
    messages = prompts.with_character(ASKED, "captain", [CHARACTER])  # type: ignore[arg-type]
    plain, _ = prompts.split_tools(messages)
    assert for_trl.apply_chat_template(plain, tokenize=False) == prompts.render(own, messages)
    assert for_trl.apply_chat_template(ASKED, tokenize=False) == prompts.render(own, ASKED)  # type: ignore[arg-type]
    assert own.chat_template == TOOL_TEMPLATE
    assert prompts.trainer_tokenizer(own, [Character(name="kai", description="No tools.")]) is own


def test_only_agreed_calls_are_trained_on() -> None:
    rows = [
        Conversation.model_validate(row)
        for row in (
            calling(1, "Chosen", "Chosen"),
            calling(2, "Chosen", "Rejected"),
            calling(3, "Chosen"),
            calling(4),
            about(5, messages=[*ASKED, PLAIN]),
            about(6, messages=[*ASKED, PLAIN], toolCall="None", reviews=reviews("Chosen", "Chosen")),
        )
    ]
    kept, counts = tool_calls.trainable(rows, AgreementParams(), [CHARACTER])
    assert [row.conversation for row in kept] == ["tool-1", "tool-5", "tool-6"]
    assert counts == {"tool-calls-Explicit": 1, "tool-calls-None": 1, "dropped-no-agreement": 3}


def test_a_call_that_is_only_read_needs_no_agreement() -> None:
    before = Conversation.model_validate(about(1, messages=[*ASKED, CALLING, *ASKED, PLAIN]))
    called = Conversation.model_validate(calling(2))
    kept, counts = tool_calls.trainable([before, called], AgreementParams(), [CHARACTER], last_only=True)
    assert (kept, counts) == ([before], {"dropped-no-agreement": 1})
    kept, _ = tool_calls.trainable([before], AgreementParams(), [CHARACTER])
    assert kept == []
    pair = {**about(3), "prompt": [*ASKED, CALLING, *ASKED], "chosen": [PLAIN], "rejected": [PLAIN]}
    preference = Preference.model_validate(pair)
    assert tool_calls.trainable([preference], AgreementParams(), [CHARACTER]) == ([preference], {})


def test_a_call_that_the_character_has_no_tool_for_is_named() -> None:
    row = Preference.model_validate(preferring(1, "Chosen", "Chosen"))
    with pytest.raises(DataError, match="conversation tool-1 calls generate_image, which the character captain has no"):
        tool_calls.trainable([row], AgreementParams(), [])


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({**CALLING, "tool_calls": []}, "tool_calls is a list of calls in a message of the assistant"),
        ({**CALLING, "tool_calls": "draw"}, "tool_calls is a list of calls in a message of the assistant"),
        ({**ASKED[0], "tool_calls": [CALL]}, "tool_calls is a list of calls in a message of the assistant"),
        ({**CALLING, "tool_calls": ["draw"]}, "with the arguments as an object; write it so"),
        ({**CALLING, "tool_calls": [{"type": "function", "function": {"name": "a", "arguments": "{}"}}]},
         "with the arguments as an object; write it so"),
        ({**CALLING, "tool_calls": [{"type": "function", "function": {"name": None, "arguments": {}}}]},
         "with the arguments as an object; write it so"),
        ({**CALLING, "content": None}, "has no text in content"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_named_with_its_line(tmp_path: Path, message: Json, sentence: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(about(messages=[*ASKED, message])) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: messages") as caught:
        read_traffic(file)
    assert sentence in str(caught.value)


class ToolShop(Workshop):
    """A workshop whose character has a tool."""

    def spec(self, stage: str, inputs: list[Json], **params: Any) -> Path:  # noqa: ANN401 -- JSON
        path = super().spec(stage, inputs, **params)
        spec = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**spec, "characters": [CAPTAIN]}), encoding="utf-8")
        return path


@pytest.fixture
def shop(tmp_path: Path, tools_model: Path) -> ToolShop:
    (tmp_path / "lab").mkdir()
    place = ToolShop(tmp_path)
    place.add_model(tools_model, "tools")
    return place


def policy(shop: ToolShop) -> Json:
    return shop.input("policy", "pvc://lab/models/tools")


SHORT = {"maxSteps": 2, "batchSize": 2, "maxLength": 400, "learningRate": 1e-3}


@pytest.mark.training
def test_sft_imitates_agreed_calls(shop: ToolShop) -> None:
    rows = [calling(n, "Chosen", "Chosen") for n in range(4)] + [calling(9, "Chosen", "Rejected")]
    result = shop.succeed("sft", [policy(shop), shop.input("sft-data", shop.add_data("tools", rows))], **SHORT)
    counts = shop.manifest(result).counts
    assert (counts["tool-calls-Explicit"], counts["dropped-no-agreement"]) == (4, 1)


def drawn(arguments: Json) -> list[Json]:
    """Turns before the ones at issue, in which something was drawn."""
    call = {"type": "function", "function": {"name": "generate_image", "arguments": arguments}}
    return [ASKED[0], {"role": "assistant", "content": "", "tool_calls": [call]}]


MIXED: list[Json] = [{"prompt": "a ship"}, {"prompt": 3}, {"prompt": ["a"], "style": {"ink": True}}, {}]
"""Arguments that no table could hold in one column."""


@pytest.mark.training
def test_dpo_prefers_agreed_calls(shop: ToolShop) -> None:
    rows = [preferring(n, "Chosen", "Chosen") for n in range(4)] + [preferring(9, "Chosen")]
    for row, arguments in zip(rows, MIXED, strict=False):
        row["prompt"] = [*drawn(arguments), *ASKED]
    result = shop.succeed("dpo", [policy(shop), shop.input("preferences", shop.add_data("tools", rows))], **SHORT)
    counts = shop.manifest(result).counts
    assert (counts["tool-calls-Explicit"], counts["dropped-no-agreement"], counts["dropped-length-ratio"]) == (4, 1, 0)


@pytest.mark.training
def test_a_model_without_tools_in_its_template_is_the_users_mistake(shop: ToolShop) -> None:
    with_template(shop.claim / "models/tools", tiny_model.TEMPLATE)
    rows = shop.input("sft-data", shop.add_data("tools", [calling(1, "Chosen", "Chosen")]))
    code, result = shop.run("sft", [policy(shop), rows], **SHORT)
    assert (code, result.reason) == (66, Reason.INVALID_MODEL)
    assert "the model's chat template writes no tools, and generate_image is one" in result.message


def reviewed(rows: list[Json], *choices: str) -> list[Json]:
    return [{**row, "reviews": reviews(*choices)} for row in rows]


@pytest.mark.training
def test_a_reward_model_is_measured_on_agreed_pairs_only(shop: ToolShop) -> None:
    rows = tiny_data.preferences(60)
    half = len(rows) // 2
    data = shop.add_data("pairs", [*reviewed(rows[:half], "Chosen", "Chosen"), *reviewed(rows[half:], "Chosen", "Tie")])
    result: StageResult = shop.succeed("reward-model", [policy(shop), shop.input("preferences", data)], **SHORT)
    counts = shop.manifest(result).counts
    assert counts["measured-pairs"] + counts["held-out-no-agreement"] == counts["held-out-pairs"]
    assert counts["held-out-no-agreement"] > 0
    assert result.metrics["annotatorAgreement"].n == counts["held-out-pairs"]  # type: ignore[index]
    assert -1 <= result.metrics["annotatorAgreement"].value < 1  # type: ignore[index]


@pytest.mark.training
def test_grpo_samples_with_the_characters_tools_and_a_judge_that_knows_none(shop: ToolShop, tiny_judge: Path) -> None:
    shop.add_model(tiny_judge, "judge")
    prompts = tiny_data.traffic(8)
    for row, arguments in zip(prompts, MIXED, strict=False):
        row["messages"] = [*drawn(arguments), *row["messages"]]
    inputs = [
        policy(shop),
        shop.input("prompts", shop.add_data("prompts", prompts)),
        shop.input("reward", "pvc://lab/models/judge"),
    ]
    result = shop.succeed("rl", inputs, **SHORT | {"maxSteps": 1, "numGenerations": 2, "maxNewTokens": 8})
    saved = shop.path(shop.model(result)) / "chat_template.jinja"
    assert saved.read_text(encoding="utf-8") == TOOL_TEMPLATE, "the tools of a character do not end up in the model"


@pytest.fixture
def tiny_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model.build(tmp_path_factory.mktemp("base"))
    judge = tmp_path_factory.mktemp("judge")
    model, own = read_scorer(folder, torch.float32), load_tokenizer(folder)
    torch.nn.init.normal_(model.score.weight)
    model.config.pad_token_id = own.pad_token_id
    model.save_pretrained(judge)
    own.save_pretrained(judge)
    return judge
