"""The report as a page: what it says, what it must not do, and the geometry of its plots."""

from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_trainer import page, plots

HOSTILE = [
    "<script>alert(1)</script>",
    "</div></article></body><h1>You win</h1>",
    '"><img src=x onerror=alert(1)>',
    "'; DROP TABLE replies; --",
    "{{ 7 * 7 }} {% for x in y %} {# #}",
    "<!-- -->\x00\x1b[31m \u202eesrever",
    "&lt;b&gt; & é 🌙",
    "<style>*{display:none}</style><svg onload=alert(1)>",
]


def m(value: float, half: float = 0.05, n: int = 100) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def report(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 -- JSON
    rates = {"winRate": m(0.59), "winRateInternal": m(0.58), "winRateUser": m(0.6), "winRateGap": m(0.02)}
    way = [
        {"model": name, "rewardGain": m(gain), "kl": m(kl, 0.01), "style": {"emoji": share, "length": 20 + 40 * share}}
        for name, gain, kl, share in [
            ("parent", 0, 0, 0.1), ("sft", 0.4, 0.05, 0.2), ("dpo", 0.7, 0.2, 0.25), ("policy", 0.6, 0.5, 0.5),
        ]
    ]  # fmt: skip
    return {
        "metrics": {**rates, "winRateParent": m(0.62), "styleJumps": {"value": 1, "n": 100}},
        "counts": {"promptsInternal": 60, "promptsUser": 60, "usersInternal": 50, "usersUser": 55},
        "models": {"candidate": "policy", "baseline": "baseline", "parent": "parent", "checkpoints": ["sft", "dpo"]},
        "againstParent": {name: m(v["value"] + 0.03) for name, v in rates.items()},
        "byOrigin": {"Internal": {"emojiRate": m(0.125)}, "User": {"emojiRate": m(0.375)}},
        "rewardModels": {"taste": rates, "humour": rates},
        "way": way,
        "artefacts": {
            "emoji": {
                "parent": m(0.1), "candidate": m(0.5), "increase": m(0.4), "rewardCorrelation": m(0.3), "jumped": True,
            },
            "length": {"parent": m(0), "candidate": m(30)},
        },
        "jumps": ["emoji"],
        "judge": {
            "name": "judge-1", "prompts": "v1 sha256:0123",
            "agreement": {"n": 48, "unanswered": 1, "accuracy": 0.9, "kappa": 0.8},
            "questions": {"Preachy": {"asked": 20, "answered": 19, "candidate": 0.1, "baseline": 0.2, "kappa": 0.75},
                          "FalseRefusal": {"asked": 20, "answered": 3}},
        },
        "benchmarks": [{"task": "sums", "metric": "acc", "candidate": 0.5, "baseline": 0.52, "change": m(-0.02)}],
        **changes,
    }  # fmt: skip


def sample(number: int, text: str = "fine", origin: str = "User") -> dict[str, Any]:
    return {
        "conversation": f"c{number}", "user": f"u{number}", "origin": origin,
        "prompt": [{"role": "user", "content": f"prompt {number}"}, {"role": "assistant", "content": text},
                   {"role": "user", "content": text}],
        "human": text, "candidate": text, "baseline": text, "candidateReward": 0.5, "baselineReward": -0.25,
    }  # fmt: skip


class Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(" ".join([tag, *sorted(name for name, _ in attrs)]))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    return tags


def test_everything_is_said() -> None:
    text = page.render("luna-7", "luna", report(), [sample(i) for i in range(3)])
    for said in (
        "luna-7", "against production", "against the parent", "59.0%", "Jumped, and the reward prefers it: emoji",
        "taste", "judge-1", "kappa", "not measured", "sums", "prompt 2", "By origin", "0.375 [0.325, 0.425]",
    ):  # fmt: skip
        assert said in text, said
    assert "said once" not in text


def test_one_baseline_is_said_once() -> None:
    models = {"candidate": "policy", "baseline": "baseline", "parent": "baseline", "checkpoints": []}
    bare = report(models=models, jumps=[])
    del bare["judge"], bare["benchmarks"]
    text = page.render("luna-1", "luna", bare, [])
    assert "against production" not in text
    assert "said once" in text
    assert "No artefact rose" in text
    assert "Judge" not in text


def test_the_page_needs_no_network_and_runs_nothing() -> None:
    text = page.render("luna-7", "luna", report(), [sample(1)])
    assert "default-src 'none'" in text
    tags = {tag.split()[0] for tag in parsed(text).seen}
    assert not tags & {"script", "img", "link", "iframe", "object", "base", "form"}
    assert "http://" not in text
    assert "https://" not in text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_replies_stay_text(text: str) -> None:
    plain = parsed(page.render("luna-7", "luna", report(), [sample(1, "x")]))
    found = parsed(page.render("luna-7", "luna", report(), [sample(1, text)]))
    assert found.seen == plain.seen, "no tag and no attribute more"
    shown = "".join(found.text)
    assert shown.count(text.replace("\x00", "\x00")) >= 5, "prompt twice, human, candidate, baseline"


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_no_text_becomes_markup(text: str) -> None:
    plain = parsed(page.render("luna-7", "luna", report(), [sample(1, "x")]))
    assert parsed(page.render("luna-7", "luna", report(), [sample(1, text)])).seen == plain.seen


def test_a_name_of_ones_own_is_escaped_too() -> None:
    hostile = report(
        rewardModels={"<b>x</b>": report()["rewardModels"]["taste"], "y": report()["rewardModels"]["taste"]}
    )
    assert "<b>" not in page.render("luna-7", "luna", hostile, [])


def test_a_reply_a_hundred_times_too_long_is_cut_and_a_broken_one_is_written() -> None:
    text = page.render("luna-7", "luna", report(), [sample(1, "y" * 300_000), sample(2, "half a \ud83d pair")])
    assert len(text) < 60_000
    assert "297000 more characters" in text
    text.encode()


def test_twenty_samples_of_both_origins_nobody_picked() -> None:
    given_ = [sample(i, origin="Internal") for i in range(30)] + [sample(i) for i in range(30)]
    assert [s["conversation"] for s in page.chosen(given_)] == [f"c{i}" for i in range(10)] * 2
    few = [sample(i, origin="Internal") for i in range(3)] + [sample(i) for i in range(30)]
    assert len(page.chosen(few)) == 20
    assert page.chosen([]) == []


def test_plots_stay_on_their_canvas() -> None:
    drawn = plots.rates([("a", m(0.99)), ("b", {"value": 0.0})])
    assert all(plots._LEFT <= bar.low <= bar.value <= bar.high <= plots.WIDTH for bar in drawn.bars)
    way = plots.way(report()["way"])
    assert [dot.label for dot in way.dots] == ["parent", "sft", "dpo", "policy"]
    assert all(0 <= dot.x <= plots.WIDTH and 0 <= dot.y <= 262 for dot in way.dots)
    assert way.dots[-1].turned
    flat = plots.way([{"model": "parent", "rewardGain": m(0, 0), "kl": m(-0.1, 0), "style": {}}])
    assert flat.dots[0].x == 60
