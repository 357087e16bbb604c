"""Conversations as a model reads them: the character first, and no longer than there is room for."""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, cast

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from flywheel_contract.characters import Character
from flywheel_trainer.data.rows import Message
from flywheel_trainer.errors import DataError, ModelError

TOOLS: Final = "tools"
"""The key under which a character's system message carries the character's tools, until a template writes them."""


def with_character(
    messages: Sequence[Message], character_name: str | None, characters: Sequence[Character]
) -> list[Message]:
    """`messages` with the character's system prompt first, which also carries the character's tools.

    A system message of the row's own is replaced. An unknown character, or none, leaves the messages as they are.
    """
    found = next((c for c in characters if c.name == character_name), None)
    if found is None:
        return list(messages)
    rest = messages[1:] if messages and messages[0]["role"] == "system" else messages
    system: dict[str, Any] = {"role": "system", "content": found.prompt}
    if found.tools:
        system[TOOLS] = [tool.schema_of_call() for tool in found.tools]
    return [cast(Message, system), *rest]


def split_tools(messages: Sequence[Message]) -> tuple[list[Message], list[dict[str, Any]]]:
    """The messages without the tools that `with_character` put in, and these."""
    first = cast(Mapping[str, Any], messages[0]) if messages else {}
    plain = [cast(Message, {k: v for k, v in message.items() if k != TOOLS}) for message in messages]
    return plain, list(first.get(TOOLS, []))


def spoken(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[Message]:
    """The messages with a space in every control token that somebody wrote, so that it stays text.

    Otherwise a user could end their own turn, and begin one of the system's.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    pattern = _any_of(tuple(sorted(special | set(tokenizer.all_special_tokens))))
    return [cast(Message, {k: v if k == TOOLS else _harmless(pattern, v) for k, v in m.items()}) for m in messages]


def _harmless(pattern: re.Pattern[str], value: Any) -> Any:  # noqa: ANN401 -- any JSON value
    if isinstance(value, str):
        return pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", value)
    if isinstance(value, Mapping):
        return {key: _harmless(pattern, inner) for key, inner in value.items()}
    return [_harmless(pattern, inner) for inner in value] if isinstance(value, list) else value


@lru_cache(maxsize=16)
def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    # The longest first, where one begins another. Without tokens it must match nothing.
    return re.compile("|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True) if t) or r"(?!)")


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, reply_next: bool = False) -> str:
    """The text of `messages` in the model's chat template; with `reply_next` it ends where the reply begins.

    Raises:
        DataError: the template refuses the order of the roles.
        ModelError: there are tools or calls, and the template has no place for them.
    """
    plain, tools = split_tools(spoken(tokenizer, messages))
    try:
        text = str(
            tokenizer.apply_chat_template(plain, tools=tools or None, tokenize=False, add_generation_prompt=reply_next)
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"the model's chat template refuses a conversation with the roles {roles}: {error}") from error
    offered = {tool["function"]["name"] for tool in tools}
    called = {call["function"]["name"] for message in plain for call in message.get("tool_calls", [])}
    missing = sorted(name for name in offered | called if name not in text)
    if missing:
        raise ModelError(
            f"the model's chat template writes no tools, and {', '.join(missing)} is one: take a model whose template "
            "does, or take the tools away from spec.characters and the calls from the data"
        )
    return text


def trainer_tokenizer(tokenizer: PreTrainedTokenizerBase, characters: Sequence[Character]) -> PreTrainedTokenizerBase:
    """A tokenizer for TRL, which renders by itself: it knows each character's tools by the character's prompt.

    TRL 1.16 takes a row's tools in SFT and DPO and a trainer's in GRPO, where prompts differ in them. The template
    therefore begins with the tools of each system prompt; `split_tools` must have taken them out of the messages. The
    tokenizer given stays as it is: it is the one to save.
    """
    tools = {c.prompt: [tool.schema_of_call() for tool in c.tools] for c in characters if c.tools}
    if not tools or not isinstance(tokenizer.chat_template, str):
        return tokenizer
    # JSON is a Jinja literal, but for null, which no schema of ours holds.
    lookup = f"{{%- set {TOOLS} = {TOOLS} or {json.dumps(tools)}.get(messages[0]['content']) %}}"
    own = copy.copy(tokenizer)
    own.chat_template = lookup + tokenizer.chat_template
    return own


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a rendered text. The template has put the special tokens in already."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def fit_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_tokens: int) -> list[Message]:
    """`messages` without as many of the oldest turns as it takes to render a prompt of at most `max_tokens`.

    The system prompt and the last message always stay, so the result can still be too long.
    """
    system = list(messages[:1]) if messages and messages[0]["role"] == "system" else []
    turns = list(messages[len(system) :])
    while len(turns) > 1 and len(token_ids(tokenizer, render(tokenizer, system + turns, reply_next=True))) > max_tokens:
        turns = turns[1:]
        # A conversation begins with the user's turn; many templates refuse anything else.
        while len(turns) > 1 and turns[0]["role"] in ("assistant", "tool"):
            turns = turns[1:]
    return system + turns
