"""What SFT imitates: a weighted mixture of named sources, and how much of it each source made up in the end."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from flywheel_contract.params import SftParams
from flywheel_contract.stages import Origin, Role
from flywheel_trainer.annotation import tool_calls
from flywheel_trainer.context import StageContext
from flywheel_trainer.data.rows import Conversation, read_traffic
from flywheel_trainer.data.screening import Screen
from flywheel_trainer.errors import ConfigError
from flywheel_trainer.examples import IGNORED, encode_replies, share, without_judged
from flywheel_trainer.prompts import with_character

Example = dict[str, list[int]]
"""`input_ids` and `labels` of a conversation."""


@dataclass
class Source:
    """A named part of the mixture."""

    name: str
    weight: float
    given: list[Conversation]
    all_replies: bool
    """Whether every reply is imitated, or the last one only: of an accepted row only that was sampled."""
    held_out: int = 0
    too_long: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    """Rows with tool calls, and those that were dropped because reviewers do not agree."""
    examples: list[Example] = field(default_factory=list)

    @property
    def reply_tokens(self) -> int:
        """Tokens that the loss falls on."""
        return sum(label != IGNORED for each in self.examples for label in each["labels"])


def sources(ctx: StageContext, params: SftParams, screen: Screen) -> list[Source]:
    """The sources that the stage was given: accepted replies by origin, then the user's own by name.

    Without either, the replies of the curated conversations themselves, by origin.

    Raises:
        ConfigError: there is nothing to imitate, or all of it has weight 0.
    """
    roles = {each.role for each in ctx.spec.inputs}
    sampled = Role.ACCEPTED if roles & {Role.ACCEPTED, Role.SFT_DATA} else Role.PROMPTS
    if not roles & {Role.ACCEPTED, Role.SFT_DATA, Role.PROMPTS}:
        raise ConfigError("stage sft has nothing to imitate; add rejection sampling, sft data or traffic")
    of_origin = {Origin.INTERNAL: params.accepted_weight.internal, Origin.USER: params.accepted_weight.user}
    found = []
    for each in ctx.inputs(sampled):
        rows = read_traffic(each.path, each.origin)
        for origin, weight in of_origin.items():
            own = [row for row in rows if row.origin is origin]
            name = f"{each.name}-{origin.value}"
            if own:
                found.append(Source(name, each.weight * weight, own, sampled is Role.PROMPTS))
    for each in ctx.inputs(Role.SFT_DATA):
        own = screen(read_traffic(each.path, each.origin), each)
        found.append(Source(each.name.removeprefix("sft-"), each.weight, own, True))
    if not any(source.weight for source in found):
        raise ConfigError("stage sft: every source has weight 0; give one of them a weight in the mixture")
    return found


def encode(ctx: StageContext, tokenizer: PreTrainedTokenizerBase, found: list[Source]) -> list[Example]:
    """The examples of all sources in their weights; what is left out is counted in each source."""
    for source in found:
        unjudged = without_judged(ctx, source.given, source.name)
        source.held_out = len(source.given) - len(unjudged)
        kept, source.calls = tool_calls.trainable(
            unjudged, ctx.spec.params.agreement, ctx.spec.characters, last_only=not source.all_replies
        )
        for row in share(ctx, kept, source.weight):
            messages = with_character(row.messages, row.character, ctx.spec.characters)
            example = encode_replies(tokenizer, messages, ctx.spec.params.max_length, all_replies=source.all_replies)
            if example is None:
                source.too_long += 1
            else:
                source.examples.append(example)
    return [example for source in found for example in source.examples]


def report(found: list[Source]) -> dict[str, dict[str, Any]]:
    """Of each source: rows given and used, weight, reply tokens, and its exact shares of both in the mixture."""
    rows, tokens = sum(len(s.examples) for s in found), sum(s.reply_tokens for s in found)
    return {
        source.name: {
            "weight": source.weight,
            "rowsGiven": len(source.given),
            "droppedHeldOut": source.held_out,
            "droppedTooLong": source.too_long,
            "toolCalls": source.calls,
            "rows": len(source.examples),
            "replyTokens": source.reply_tokens,
            "shareOfRows": len(source.examples) / rows,
            "shareOfReplyTokens": source.reply_tokens / tokens,
        }
        for source in found
    }


def counts(found: list[Source]) -> dict[str, int]:
    """For the manifest."""
    told: Counter[str] = Counter()
    for source in found:
        told.update({"dropped-too-long": source.too_long, "dropped-held-out": source.held_out, **source.calls})
        told[f"rows-{source.name}"] = len(source.examples)
    return dict(told)


def sentence(found: list[Source]) -> str:
    """The shares of rows, for the status; nothing where there is but one source."""
    if len(found) < 2:
        return ""
    rows = sum(len(s.examples) for s in found)
    return "; mixture: " + ", ".join(f"{s.name} {len(s.examples) / rows:.1%}" for s in found)
