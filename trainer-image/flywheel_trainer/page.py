"""report.html: the report as a page that needs no network. What people and models wrote is hostile: all is escaped."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from flywheel_trainer import plots

SAMPLES: Final = 20
MESSAGES: Final = 6
"""Of a prompt, the last messages are shown."""
CHARACTERS: Final = 3000
"""Of a message, this much is shown."""

_WIN_RATES: Final = (
    ("winRate", "against production", "metrics"),
    ("winRateInternal", "  on internal prompts", "metrics"),
    ("winRateUser", "  on user prompts", "metrics"),
    ("winRate", "against the parent", "againstParent"),
    ("winRateInternal", "  on internal prompts", "againstParent"),
    ("winRateUser", "  on user prompts", "againstParent"),
    ("pairwiseWinRate", "pairwise judge", "metrics"),
    ("pairwiseWinRateInternal", "  on internal prompts", "metrics"),
    ("pairwiseWinRateUser", "  on user prompts", "metrics"),
)


def render(owner: str, group: str, report: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> str:
    """The page of a report (as it stands in report.json) with samples side by side."""
    template = _environment().get_template("report.html.j2")
    text = template.render(
        owner=owner,
        group=group,
        report=report,
        same=report["models"]["baseline"] == report["models"]["parent"],
        rates=plots.rates(_win_rates(report)),
        way=plots.way(report["way"]),
        samples=chosen(samples),
        messages=MESSAGES,
    )
    # A lone surrogate cannot be written; what stands for it can.
    return text.encode("utf-8", "replace").decode("utf-8")


def chosen(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Twenty samples: of each origin the first ten of the draw, so nobody picks them; others where one has too few."""
    by_origin = [[s for s in samples if s["origin"] == origin] for origin in sorted({s["origin"] for s in samples})]
    share = SAMPLES // max(1, len(by_origin))
    first = [s for own in by_origin for s in own[:share]]
    rest = [s for own in by_origin for s in own[share:]]
    return [*first, *rest[: SAMPLES - len(first)]]


def _win_rates(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    same = report["models"]["baseline"] == report["models"]["parent"]
    found = []
    for metric, label, part in _WIN_RATES:
        if metric in report[part] and not (same and part == "againstParent"):
            found.append(
                ("against the parent" if same and label == "against production" else label, report[part][metric])
            )
    return found


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("flywheel_trainer"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(short=_short, cut=_cut)
    return environment


def _short(value: float) -> str:
    """A number for a table."""
    return f"{value:.4g}"


def _cut(text: str) -> str:
    """The beginning of a text that is too long for a page."""
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} … ({len(text) - CHARACTERS} more characters)"
