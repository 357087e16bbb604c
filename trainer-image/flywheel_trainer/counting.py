"""How large the inputs are, for a dry run: rows, tokens as the parent's tokenizer counts them, parameters of models.

Every row is read, so that what a stage would refuse hours later is refused now. Tokens are counted on a sample.
"""

import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flywheel_contract.stage_result import Size
from flywheel_contract.stages import Role
from flywheel_trainer.context import LocalInput, StageContext
from flywheel_trainer.data.rows import Conversation, Preference, read_general, read_preferences, read_traffic
from flywheel_trainer.data.split import draw_key
from flywheel_trainer.errors import ConfigError, ModelError

SAMPLE: Final = 2000
"""Rows of a source whose tokens are counted; the others count for the mean of these."""


def sizes(ctx: StageContext, found: Sequence[LocalInput]) -> list[Size]:
    """The size of each input, in the order of the spec.

    Raises:
        ConfigError: there is no model whose tokenizer could count.
        DataError: a row is not what its source must hold.
        ModelError: a file of weights cannot be read.
    """
    by_name = {item.name: item for item in found}
    policy = next((item for item in found if item.spec.role is Role.POLICY), None)
    if policy is None:
        raise ConfigError("a dry run counts with the parent's tokenizer, and no parent was given to resolve")
    # Imported only here: resolving alone needs no torch.
    from flywheel_trainer.models import load_tokenizer  # noqa: PLC0415
    from flywheel_trainer.prompts import render, token_ids, with_character  # noqa: PLC0415

    tokenizer = load_tokenizer(policy.path)

    def length(row: Conversation | Preference) -> int:
        """Tokens of a row, each of its conversations no longer than a stage would take."""
        if isinstance(row, Conversation):
            conversations = [row.messages]
        else:
            conversations = [[*row.prompt, *row.chosen], [*row.prompt, *row.rejected]]
        whole = [render(tokenizer, with_character(m, row.character, ctx.spec.characters)) for m in conversations]
        return sum(min(len(token_ids(tokenizer, text)), ctx.spec.params.max_tokens) for text in whole)

    measured = []
    for spec in ctx.spec.inputs:
        ctx.progress(message=f"counting {spec.name}")
        item = by_name[spec.name]
        if spec.kind == "Model":
            measured.append(Size(0, parameters(item.path)))
            continue
        if spec.role is Role.BENCHMARK:
            measured.append(Size(0, 0))  # tasks of a harness, no rows of ours
            continue
        rows = _rows(item)
        order = sorted(range(len(rows)), key=lambda index: draw_key(ctx.spec.seed, f"{spec.name}/{index}"))
        sample = [length(rows[index]) for index in order[:SAMPLE]]
        measured.append(Size(len(rows), round(sum(sample) * len(rows) / len(sample))))
    return measured


def parameters(folder: Path) -> int:
    """The number of weights in a model folder, from the headers of its safetensors files; no weight is read.

    Raises:
        ModelError: a header cannot be read.
    """
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(min(length, file.stat().st_size)))
            total += sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{file} is no safetensors file, or was cut short: copy it whole") from error
    return total


def _rows(item: LocalInput) -> Sequence[Conversation | Preference]:
    """All rows of a source, checked. They are at least one: readers refuse an empty source."""
    if item.spec.role is Role.PREFERENCES:
        return read_preferences(item.path, item.origin)
    if item.spec.role is Role.GENERAL:
        return read_general(item.path)
    return read_traffic(item.path, item.origin)
