"""Covariates out of a lineage's own log: what each user did before a test."""

import tempfile
from datetime import timedelta
from pathlib import Path

from flywheel_analysis import users
from flywheel_analysis.errors import SpecError
from flywheel_analysis.period import Period
from flywheel_analysis.sources import Source
from flywheel_analysis.stores import Store


def write(source: Source, period: Period, days: int | None, output: str, store: Store) -> int:
    """Leaves `user_id`, `pre_messages`, `pre_active_days` at `output`; answers the number of users.

    `period` begins at T0; `days` before it are looked at, or all.

    Raises:
        SpecError: `output` is neither Parquet nor JSON lines by its name.
        AnalysisError: one of its kinds, as source and store found it.
    """
    if not output.endswith((".parquet", ".jsonl")):
        raise SpecError(f"--output {output}: let it end with .parquet or .jsonl")
    since = None if days is None else period.start - timedelta(seconds=days * period.day_seconds)
    found = users.covariates_before(source.once(source.events), period, since)
    table = source.materialise("fw_covariates", found)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "covariates" + Path(output).suffix)
        source.engine.copy(table.order_by(users.USER), str(file), place=output)
        store.write(output, file.read_bytes())
    return int(source.engine.rows(table.aggregate(n=table.count()))[0]["n"])
