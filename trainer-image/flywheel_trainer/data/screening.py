"""Data that does not come through `curate`: a recipe's preferences and SFT data, and what a reward model learns from.

What may not be trained on is kept out for the same reasons and in the same order. The other filters of curation do not
apply: whoever hands over an unsafe prompt with a good answer to it wants it to be learned.
"""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from flywheel_contract.filters import PrivacyMode, ScreeningParams
from flywheel_contract.stage_spec import DpoSpec, RewardModelSpec, SftSpec
from flywheel_trainer.context import LocalInput, StageContext
from flywheel_trainer.data.books import CONSENT, ERASED, PRIVACY, RETENTION, reasons
from flywheel_trainer.data.retention import erased, is_over, latest, receipts
from flywheel_trainer.data.rows import Row, RowT
from flywheel_trainer.errors import DataError

if TYPE_CHECKING:
    from flywheel_trainer.data.privacy import PrivacyFilter


class Screen:
    """Keeps rows out that may not be trained on, counts them, and says so beside the stage's sentence."""

    def __init__(self, ctx: StageContext) -> None:
        spec = ctx.spec
        if not isinstance(spec, RewardModelSpec | SftSpec | DpoSpec):
            raise TypeError(f"stage {spec.stage} reads only what came through curate")
        self._ctx = ctx
        self._params: ScreeningParams = spec.screening
        self._now = datetime.now(UTC)
        self.counts: Counter[str] = Counter()
        """`dropped-<reason>`, `dropped-privacy.<ENTITY>` and, where identifiers are replaced, `redacted-privacy`."""

    def __call__(self, rows: list[RowT], source: LocalInput) -> list[RowT]:
        """The rows of a source that may be trained on.

        Raises:
            DataError: there were rows and none of them may; says why. Or a receipt of an erasure cannot be read.
            SpecError: an unknown privacy entity, or an expression that cannot be used.
        """
        erasures = latest(receipts(self._ctx, [source.spec.uri]))
        tests: dict[str, Callable[[Row], bool]] = {
            RETENTION: lambda row: is_over(row, self._now, self._params.retention.max_age_days),
            ERASED: lambda row: erased(row, erasures),
            CONSENT: lambda row: self._params.require_consent and row.consent.training is False,
        }
        dropped: Counter[str] = Counter()
        left = rows
        for reason, test in tests.items():
            kept = [row for row in left if not test(row)]
            dropped[reason] = len(left) - len(kept)
            left = kept
        if self._params.privacy.enabled:
            kept = self._private(left)
            dropped[PRIVACY] = len(left) - len(kept)
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
