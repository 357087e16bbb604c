"""Training examples: conversations and pairs, with the character, within the length, in their inputs' shares."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from flywheel_contract.stage_spec import DpoSpec, SftSpec
from flywheel_contract.stages import Role
from flywheel_trainer.context import StageContext
from flywheel_trainer.data.rows import Conversation, Message, Preference, RowT, read_preferences, read_traffic
from flywheel_trainer.data.screening import Screen
from flywheel_trainer.data.split import draw_key, held_out
from flywheel_trainer.errors import ConfigError, DataError
from flywheel_trainer.prompts import fit_prompt, render, spoken, token_ids, with_character

IGNORED = -100
"""The label of a token that the loss leaves out."""


def conversations(ctx: StageContext, role: Role) -> list[Conversation]:
    """All conversations of a role, which curation has left, each input in its share."""
    return [row for each in ctx.inputs(role) for row in share(ctx, read_traffic(each.path, each.origin), each.weight)]


def screened_traffic(ctx: StageContext, screen: Screen) -> list[Conversation]:
    """All traffic that has not come through curation, without conversations that may not be trained on."""
    inputs = ctx.inputs(Role.TRAFFIC)
    return [row for i in inputs for row in share(ctx, screen(read_traffic(i.path, i.origin), i, whole=True), i.weight)]


def screened_preferences(ctx: StageContext, screen: Screen) -> list[Preference]:
    """All pairs of the inputs of role preferences, without what may not be trained on.

    Raises:
        ConfigError: there is no such input.
    """
    inputs = ctx.inputs(Role.PREFERENCES)
    if not inputs:
        raise ConfigError(f"stage {ctx.spec.stage} needs an input of role preferences; name one in the recipe")
    return [row for i in inputs for row in share(ctx, screen(read_preferences(i.path, i.origin), i), i.weight)]


def without_judged(ctx: StageContext, rows: Sequence[RowT], source: str) -> list[RowT]:
    """The rows of users and conversations that judge neither this candidate nor a later one: data that a person hands
    over beside the traffic may come from the same people, and who is held out without traffic today may judge tomorrow.

    Raises:
        DataError: nothing of `source` is left.
        TypeError: the stage is told nothing of the hold-out.
    """
    spec = ctx.spec
    if not isinstance(spec, SftSpec | DpoSpec):
        raise TypeError(f"stage {spec.stage} does not know who is held out")
    judging = conversations(ctx, Role.EVALUATION)
    users, names = {row.user for row in judging}, {row.conversation for row in judging}
    left = [
        row
        for row in rows
        if row.user not in users and row.conversation not in names and not held_out(row.user, spec.holdout_fraction)
    ]
    if rows and not left:
        raise DataError(
            f"input {source}: all {len(rows)} rows are of users who are held out to judge the models; give everybody "
            "who wrote some of them a `user` id of their own"
        )
    return left


def share(ctx: StageContext, rows: list[RowT], weight: float) -> list[RowT]:
    """Weight 1 takes every row once, 2 twice, 0.5 a half of them, drawn by the seed."""
    whole, part = divmod(weight, 1)
    return rows * int(whole) + draw(ctx, rows, round(part * len(rows)))


def draw(ctx: StageContext, rows: Sequence[RowT], count: int) -> list[RowT]:
    """At most `count` rows, drawn by the seed; the order of the rows that are left stays."""
    keys = sorted(range(len(rows)), key=lambda index: draw_key(ctx.spec.seed, f"{rows[index].conversation}/{index}"))
    return [rows[index] for index in sorted(keys[:count])]


def prompt_of(messages: Sequence[Message]) -> list[Message]:
    """A conversation without its last reply."""
    return list(messages[:-1]) if messages and messages[-1]["role"] == "assistant" else list(messages)


def encode_replies(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int, *, all_replies: bool
) -> dict[str, list[int]] | None:
    """Tokens of a conversation, and labels for its replies (all, or the last) and for nothing else.

    Older turns are dropped until it fits into `max_length`. None where no token of a reply is left.
    """
    if messages[-1]["role"] != "assistant":
        return None
    room = max_length - _reply_length(tokenizer, messages)
    messages = [*fit_prompt(tokenizer, messages[:-1], max(room, 1)), messages[-1]]
    ids = token_ids(tokenizer, render(tokenizer, messages))
    labels = [IGNORED] * len(ids)
    for index, message in enumerate(messages):
        last = index == len(messages) - 1
        if index and message["role"] == "assistant" and (last or all_replies):
            start, end = _span(tokenizer, messages, index, ids)
            labels[start:end] = ids[start:end]
    ids, labels = ids[:max_length], labels[:max_length]
    return {"input_ids": ids, "labels": labels} if any(label != IGNORED for label in labels) else None


def encode_pair(
    ctx: StageContext, tokenizer: PreTrainedTokenizerBase, row: Preference, max_length: int
) -> tuple[list[Message], list[Message]] | None:
    """The two whole conversations of a pair over the same prompt, which is shortened until both fit; or None."""
    prompt = spoken(tokenizer, with_character(row.prompt, row.character, ctx.spec.characters))
    chosen, rejected = (spoken(tokenizer, reply) for reply in (row.chosen, row.rejected))
    longest = max(_reply_length(tokenizer, [*prompt, *reply]) for reply in (chosen, rejected))
    prompt = fit_prompt(tokenizer, prompt, max(max_length - longest, 1))
    pair = [*prompt, *chosen], [*prompt, *rejected]
    if any(len(token_ids(tokenizer, render(tokenizer, messages))) > max_length for messages in pair):
        return None
    return pair


def require(rows: Sequence[Any], what: str) -> None:
    """Refuses to go on with nothing.

    Raises:
        DataError: there are no rows.
    """
    if not rows:
        raise DataError(f"{what}: no row is left; give more data, or loosen the limits on length")


def _reply_length(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> int:
    prompt = token_ids(tokenizer, render(tokenizer, messages[:-1], reply_next=True)) if len(messages) > 1 else []
    return len(token_ids(tokenizer, render(tokenizer, messages))) - len(prompt)


def _span(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], index: int, ids: list[int]
) -> tuple[int, int]:
    """Where the tokens of reply `index` begin and end within `ids`.

    A template may write earlier turns differently once others follow (some leave out the thinking). Such a reply is
    not trained on; of the last one, what comes behind the common beginning.
    """
    before = token_ids(tokenizer, render(tokenizer, messages[:index], reply_next=True))
    start = _common(ids, before)
    if index == len(messages) - 1:
        return start, len(ids)
    through = token_ids(tokenizer, render(tokenizer, messages[: index + 1]))
    end = _common(ids, through)
    return (start, end) if start == len(before) and end == len(through) else (0, 0)


def _common(first: list[int], second: list[int]) -> int:
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)
