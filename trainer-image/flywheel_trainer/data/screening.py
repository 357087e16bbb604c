"""Data that does not come through `curate`: a recipe's preferences and SFT data, and what a reward model learns from.

What may not be trained on is kept out for the same reasons and in the same order. The other filters of curation do not
apply: whoever hands over an unsafe prompt with a good answer to it wants it to be learned.
"""

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Final

from pydantic import AwareDatetime

from flywheel_contract.base import Record
from flywheel_contract.filters import PrivacyMode, ScreeningParams
from flywheel_contract.stage_spec import DpoSpec, RewardModelSpec, SftSpec
from flywheel_trainer.context import LocalInput, StageContext, is_main_process
from flywheel_trainer.data.books import CONSENT, ERASED, PRIVACY, RETENTION, reasons
from flywheel_trainer.data.retention import erased, is_over, latest, receipts
from flywheel_trainer.data.rows import Row, RowT
from flywheel_trainer.errors import DataError, StageError

if TYPE_CHECKING:
    from flywheel_trainer.data.privacy import PrivacyFilter

MOMENT_FILE: Final = "screening.json"
"""Among the checkpoints: what rows were compared with, so that every process and every attempt leaves out the same."""
_WAIT_SECONDS: Final = 600.0


class Moment(Record):
    """What marks of retention and times of erasure are compared with."""

    now: AwareDatetime
    erasures: dict[str, AwareDatetime]


class Screen:
    """Keeps rows out that may not be trained on, counts them, and says so beside the stage's sentence."""

    def __init__(self, ctx: StageContext) -> None:
        """Fixes what rows are compared with.

        Raises:
            DataError: a receipt of an erasure cannot be read.
        """
        spec = ctx.spec
        if not isinstance(spec, RewardModelSpec | SftSpec | DpoSpec):
            raise TypeError(f"stage {spec.stage} reads only what came through curate")
        self._ctx = ctx
        self._params: ScreeningParams = spec.screening
        self._moment = _moment(ctx)
        self.counts: Counter[str] = Counter()
        """`dropped-<reason>`, `dropped-privacy.<ENTITY>` and, where identifiers are replaced, `redacted-privacy`."""

    def __call__(self, rows: list[RowT], source: LocalInput, *, whole: bool = False) -> list[RowT]:
        """The rows of a source that may be trained on. One of weight 0 is not trained on anyway.

        Args:
            rows: as they were read.
            source: where from.
            whole: a conversation goes as a whole where one of its rows goes for consent or privacy. What is left of
                it would say that its user had stopped there.

        Raises:
            DataError: there were rows and none of them may; says why.
            SpecError: an unknown privacy entity, or an expression that cannot be used.
        """
        if not source.weight:
            return rows
        now, erasures = self._moment.now, self._moment.erasures
        steps: dict[str, Callable[[list[RowT]], list[RowT]]] = {
            RETENTION: _without(lambda row: is_over(row, now, self._params.retention.max_age_days)),
            ERASED: _without(lambda row: erased(row, erasures)),
        }
        if self._params.require_consent:
            steps[CONSENT] = _without(lambda row: row.consent.training is False)
        if self._params.privacy.enabled:
            steps[PRIVACY] = self._private
        dropped: Counter[str] = Counter()
        left = rows
        for reason, step in steps.items():
            kept = step(left)
            if whole and reason in (CONSENT, PRIVACY) and len(kept) < len(left):
                kept = _of_whole_conversations(left, kept)
            dropped[reason] = len(left) - len(kept)
            left = kept
        self.counts.update({f"dropped-{reason}": n for reason, n in dropped.items()})
        if not left:
            raise DataError(
                f"{source.path}: none of the {len(rows)} rows may be trained on: {reasons(dropped)}; bring others, or "
                "take the source away"
            )
        if len(left) < len(rows):
            out = len(rows) - len(left)
            self._ctx.notes.append(f"{source.name}: {out} of {len(rows)} rows are left out: {reasons(dropped)}")
        return left

    @cached_property
    def _filter(self) -> "PrivacyFilter":
        from flywheel_trainer.data.privacy import PrivacyFilter  # noqa: PLC0415 -- Presidio takes seconds to import

        return PrivacyFilter(self._params.privacy, [character.name for character in self._ctx.spec.characters])

    def _private(self, rows: list[RowT]) -> list[RowT]:
        screened = self._filter.screen(rows)
        self.counts.update({f"dropped-privacy.{entity}": n for entity, n in sorted(screened.dropped.items())})
        if self._params.privacy.mode is PrivacyMode.REDACT:
            self.counts["redacted-privacy"] += screened.redacted_rows
        return screened.rows


def _moment(ctx: StageContext) -> Moment:
    """Fixed by the first process of the first attempt; the others read it."""
    file = ctx.checkpoints() / MOMENT_FILE
    if is_main_process() and not file.exists():
        erasures = latest(receipts(ctx, [i.uri for i in ctx.spec.inputs if i.kind == "Data"]))
        text = Moment(now=datetime.now(UTC), erasures=erasures).model_dump_json()
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(file)
    until = time.monotonic() + _WAIT_SECONDS
    while not file.exists():
        if time.monotonic() > until:
            raise StageError(f"the first process did not leave {MOMENT_FILE} within {_WAIT_SECONDS:g} s")
        time.sleep(0.2)
    return Moment.model_validate_json(file.read_bytes())


def _without(test: Callable[[Row], bool]) -> Callable[[list[RowT]], list[RowT]]:
    return lambda rows: [row for row in rows if not test(row)]


def _of_whole_conversations(before: list[RowT], kept: list[RowT]) -> list[RowT]:
    """Of `kept`, the rows of conversations that have lost none."""
    rows = Counter((row.user, row.conversation) for row in before)
    left = Counter((row.user, row.conversation) for row in kept)
    return [row for row in kept if left[row.user, row.conversation] == rows[row.user, row.conversation]]
