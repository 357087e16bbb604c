"""Conversations as a model reads them: the character first, and no longer than there is room for."""

from collections.abc import Sequence

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from flywheel_contract.characters import Character
from flywheel_trainer.data.rows import Message
from flywheel_trainer.errors import DataError


def with_character(
    messages: Sequence[Message], character_name: str | None, characters: Sequence[Character]
) -> list[Message]:
    """`messages` with the character's system prompt first. One of the row's own is replaced by it.

    An unknown character, or none, leaves the messages as they are.
    """
    prompt = next((c.prompt for c in characters if c.name == character_name), None)
    if prompt is None:
        return list(messages)
    rest = messages[1:] if messages and messages[0]["role"] == "system" else messages
    return [{"role": "system", "content": prompt}, *rest]


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, reply_next: bool = False) -> str:
    """The text of `messages` in the model's chat template; with `reply_next` it ends where the reply begins.

    Raises:
        DataError: the template refuses the order of the roles.
    """
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=reply_next))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"the model's chat template refuses a conversation with the roles {roles}: {error}") from error


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
        while len(turns) > 1 and turns[0]["role"] == "assistant":
            turns = turns[1:]
    return system + turns
