"""curate: which conversations may be trained on, which only judge, and which are dropped, each with a counted reason.

The order is fixed: retention, erasure, latest turns, structure, tools, consent, privacy, safety, near-duplicates,
diversity, constraints, cap, split by user. A conversation counts under the first reason that drops it, and later
filters never see it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from flywheel_contract.filters import PrivacyMode
from flywheel_contract.params import CurateParams
from flywheel_contract.stage_spec import CurateSpec
from flywheel_contract.stages import Origin, Role
from flywheel_trainer.context import StageContext, StageOutcome
from flywheel_trainer.data import constraints
from flywheel_trainer.data.books import (
    CONSENT,
    CONSTRAINTS,
    DIVERSITY,
    DUPLICATE,
    EARLIER,
    ERASED,
    FOREIGN_CALL,
    NO_REPLY,
    OVER_CAP,
    PRIVACY,
    RETENTION,
    SAFETY,
    SHARED,
    Curation,
    all_counts,
    all_metrics,
    reasons,
    refuse_empty,
)
from flywheel_trainer.data.constraints import Share, sentence
from flywheel_trainer.data.executors import executor
from flywheel_trainer.data.files import DATA_FILE, write_rows
from flywheel_trainer.data.retention import erased, is_over, latest, receipts
from flywheel_trainer.data.rows import Conversation, prompt_text, read_traffic, texts_of
from flywheel_trainer.data.safety import SafetyFilter
from flywheel_trainer.data.split import draw_key, held_out
from flywheel_trainer.errors import ConfigError, DataError

REPORT: Final = "_report.json"
"""Beside the rows; its name starts with `_`, so readers of the folder pass it by."""


def run(ctx: StageContext) -> StageOutcome:
    """Reads the traffic, filters it, and leaves `prompts` and `evaluation`, which share no user and no conversation.

    Raises:
        ConfigError: no traffic.
        DataError: a row is wrong, or no rows are left; says how many were dropped for which reason.
        SpecError: an unknown privacy entity, or an expression that cannot be used.
        StageError: the safety classifier, or the Ray cluster, cannot be reached.
    """
    spec = ctx.spec
    if not isinstance(spec, CurateSpec):
        raise TypeError(f"curate was given the spec of {spec.stage}")
    inputs = ctx.inputs(Role.TRAFFIC)
    if not inputs:
        raise ConfigError("stage curate has no traffic: name at least one source in data.traffic")
    read = [row for i in inputs for row in read_traffic(i.path, i.origin)]
    with executor(lambda message: ctx.progress(message=message)) as chosen:
        curation = Curation(read, ctx, chosen)
        for number, (message, step) in enumerate(_STEPS):
            ctx.progress(percent=5 + 90 * number / len(_STEPS), message=message)
            step(curation, spec.params, spec.seed)
    if not curation.rows:
        raise DataError(f"no conversation of {len(read)} is left: {reasons(curation.dropped)}")
    evaluation = [row for row in curation.rows if held_out(row.user, spec.params.holdout_fraction)]
    prompts = [row for row in curation.rows if not held_out(row.user, spec.params.holdout_fraction)]
    refuse_empty(prompts, evaluation, spec.params)
    write_rows(ctx.output("prompts") / DATA_FILE, _handed_on(prompts))
    write_rows(ctx.output("evaluation") / DATA_FILE, _handed_on(evaluation))
    counts = all_counts(curation, read, prompts, evaluation)
    kept = f"kept {len(curation.rows)} of {len(read)} conversations, {len(evaluation)} of them for evaluation"
    _report(ctx, counts, curation.shares)
    return StageOutcome(
        metrics=all_metrics(curation, read, evaluation),
        counts=counts,
        message="; ".join([kept, *([sentence(curation.shares)] if curation.shares else [])]),
    )


def _handed_on(rows: list[Conversation]) -> Iterator[dict[str, Any]]:
    """Metadata is there for the constraints, and no later stage needs it: nothing of it leaves this one."""
    return (row.model_copy(update={"metadata": {}}).to_json() for row in rows)


def _report(ctx: StageContext, counts: dict[str, int], shares: list[Share]) -> None:
    """Every count and, where there are constraints, each target beside what was achieved."""
    told = {**counts, **({"constraints": [share.to_json() for share in shares]} if shares else {})}
    (ctx.output("prompts") / REPORT).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _retention(curation: Curation, params: CurateParams, _seed: int) -> None:
    days = params.retention.max_age_days
    curation.keep([row for row in curation.rows if not is_over(row, curation.now, days)], RETENTION)


def _erased(curation: Curation, _params: CurateParams, _seed: int) -> None:
    found = receipts(curation.ctx, [i.uri for i in curation.ctx.spec.inputs if i.role is Role.TRAFFIC])
    curation.counts["erasureReceipts"] = len(found)
    times = latest(found)
    curation.keep([row for row in curation.rows if not erased(row, times)], ERASED)


def _fullest(curation: Curation, _params: CurateParams, _seed: int) -> None:
    """The gateway's log has a row for each turn, with all that was said before it: the latest one says it all."""
    latest: dict[tuple[str, str], Conversation] = {}
    for row in curation.rows:
        key = (row.user, row.conversation)
        before = latest.get(key)
        if before is None or (row.time or "", len(row.messages)) >= (before.time or "", len(before.messages)):
            latest[key] = row
    kept = {id(row) for row in latest.values()}
    curation.keep([row for row in curation.rows if id(row) in kept], EARLIER)


def _cut_to_reply(curation: Curation, _params: CurateParams, _seed: int) -> None:
    kept = []
    for row in curation.rows:
        last = max(
            (i for i, m in enumerate(row.messages) if m["role"] == "assistant" and m["content"].strip()), default=0
        )
        if any(m["role"] == "user" for m in row.messages[:last]):
            kept.append(row.model_copy(update={"messages": row.messages[: last + 1]}))
    curation.keep(kept, NO_REPLY)


def _belongs_to_one_user(curation: Curation, _params: CurateParams, _seed: int) -> None:
    """A conversation of two users could end up on both sides of the split."""
    owners: dict[str, set[str]] = {}
    for row in curation.rows:
        owners.setdefault(row.conversation, set()).add(row.user)
    curation.keep([row for row in curation.rows if len(owners[row.conversation]) == 1], SHARED)


def _without_foreign_calls(curation: Curation, _params: CurateParams, _seed: int) -> None:
    """A character may have lost a tool since; and a client can have said anything before the last reply."""
    tools = {(c.name, tool.name): tool for c in curation.ctx.spec.characters for tool in c.tools}

    def fits(row: Conversation) -> bool:
        calls = (call["function"] for message in row.messages for call in message.get("tool_calls", []))
        found = ((tools.get((row.character or "", call["name"])), call["arguments"]) for call in calls)
        return all(tool is not None and tool.takes(arguments) for tool, arguments in found)

    curation.keep([row for row in curation.rows if fits(row)], FOREIGN_CALL)


def _consent(curation: Curation, params: CurateParams, _seed: int) -> None:
    if params.require_consent:
        curation.keep([row for row in curation.rows if row.consent.training is not False], CONSENT)


def _privacy(curation: Curation, params: CurateParams, _seed: int) -> None:
    if not params.privacy.enabled:
        return
    from flywheel_trainer.data.privacy import PrivacyFilter  # noqa: PLC0415 -- Presidio takes seconds to import

    names = [character.name for character in curation.ctx.spec.characters]
    screened = PrivacyFilter(params.privacy, names).screen(curation.rows, curation.executor)
    curation.keep(screened.rows, PRIVACY)
    curation.counts |= {f"droppedPrivacy.{entity}": n for entity, n in sorted(screened.dropped.items())}
    if params.privacy.mode is PrivacyMode.REDACT:
        curation.redacted = screened.redacted_rows
        curation.counts["redactedPrivacy"] = screened.redacted_rows
        curation.counts |= {f"redactedPrivacy.{entity}": n for entity, n in sorted(screened.redacted.items())}


def _safety(curation: Curation, params: CurateParams, _seed: int) -> None:
    if not params.safety.enabled:
        return
    model = next((i.path for i in curation.ctx.inputs(Role.SAFETY)), None)
    texts = [[text for m in row.messages for text in texts_of(m)] for row in curation.rows]
    unsafe = SafetyFilter(params.safety, model).screen(texts, curation.executor)
    curation.keep([row for row, category in zip(curation.rows, unsafe, strict=True) if category is None], SAFETY)
    categories = Counter(category for category in unsafe if category is not None)
    curation.counts |= {f"droppedSafety.{category}": n for category, n in sorted(categories.items())}


def _near_duplicates(curation: Curation, params: CurateParams, _seed: int) -> None:
    if not params.near_duplicates.enabled:
        return
    from flywheel_trainer.data.duplicates import near_duplicates  # noqa: PLC0415 -- so does datasketch

    repeated = near_duplicates((prompt_text(row) for row in curation.rows), params.near_duplicates.similarity)
    curation.keep([row for row, out in zip(curation.rows, repeated, strict=True) if not out], DUPLICATE)


def _diversity(curation: Curation, params: CurateParams, seed: int) -> None:
    if params.diversity is None or not curation.rows:
        return
    from flywheel_trainer.data.embeddings import Embedder, embedded_model  # noqa: PLC0415 -- FAISS, torch: seconds
    from flywheel_trainer.data.selection import diverse  # noqa: PLC0415

    ctx = curation.ctx
    folder = next((i.path for i in ctx.inputs(Role.EMBEDDER)), None) or embedded_model()
    kept, counts = diverse(
        curation.rows,
        params.diversity,
        Embedder(folder, params.diversity.batch_size),
        seed=seed,
        executor=curation.executor,
        scratch=ctx.work / "embeddings.f16",
        say=lambda message: ctx.progress(message=message),
    )
    curation.counts |= counts
    curation.keep([row for n, row in enumerate(curation.rows) if n in kept], DIVERSITY)


def _take_stock(curation: Curation, params: CurateParams, _seed: int) -> None:
    if params.constraints is not None:
        curation.traffic = constraints.count(curation.rows, params.constraints.dimensions)


def _constraints(curation: Curation, params: CurateParams, seed: int) -> None:
    if params.constraints is None or not curation.rows:
        return
    kept, curation.shares = constraints.sample(
        curation.rows, curation.traffic, params.constraints, cap=params.max_conversations, seed=seed
    )
    curation.keep([row for n, row in enumerate(curation.rows) if n in kept], CONSTRAINTS)
    curation.counts["constraintsWanted"] = len(curation.shares)
    curation.counts["constraintsUnmet"] = sum(bool(share.reason) for share in curation.shares)


def _cap(curation: Curation, params: CurateParams, seed: int) -> None:
    if params.max_conversations is None:
        return
    drawn: set[int] = set()
    for origin in Origin:
        numbers = [n for n, row in enumerate(curation.rows) if row.origin is origin]
        numbers.sort(key=lambda n: draw_key(seed, curation.rows[n].conversation))
        drawn.update(numbers[: params.max_conversations])
    curation.keep([row for n, row in enumerate(curation.rows) if n in drawn], OVER_CAP)


_STEPS: Final[tuple[tuple[str, Callable[[Curation, CurateParams, int], None]], ...]] = (
    ("looking for rows whose time is over", _retention),
    ("looking for users who were erased", _erased),
    ("taking the latest turn of each conversation", _fullest),
    ("cutting conversations to the last reply", _cut_to_reply),
    ("looking for conversations of several users", _belongs_to_one_user),
    ("looking for calls of unknown tools", _without_foreign_calls),
    ("counting the traffic", _take_stock),
    ("checking consent", _consent),
    ("looking for personal identifiers", _privacy),
    ("looking for unsafe messages", _safety),
    ("looking for near-duplicates", _near_duplicates),
    ("comparing what the prompts mean", _diversity),
    ("matching the shares that were asked for", _constraints),
    ("drawing conversations", _cap),
)
