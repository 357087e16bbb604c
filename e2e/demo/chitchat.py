"""The package chitchat-dataset (MIT): conversations of two people who were matched at random, as traffic.

Rules, stated plainly because the package knows neither characters nor origins:

- The first to speak is the user, the other plays the character. Conversations with one sender are dropped.
- Both were shown the same opening question. It is put before the user's first message, or the replies hang in the air.
- Messages sent in a row are one turn. A conversation is cut to at most `MAX_TURNS` turns, at the last reply whose
  length lies within `REPLY_WORDS`; without such a reply it is dropped.
- A user gives at most `PER_USER` conversations: one of them had 235, and intervals are drawn over users.
- Afterwards it was asked how interesting the chat was, on a slider from 1 to 10 that began at 5. A 5 says nothing; 9
  and 10 are `foundInteresting: true`, everything else is false.
- The package has **one** origin. The users whose hash falls into the lowest 40 % are called annotators (`Internal`),
  the others production (`User`): two samples of one population that share no user. A gap between them is chance.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

DATASET: Final = "chitchat_dataset/dataset.json"
"""The file inside the installed package."""

CHARACTER: Final = "luna"
SYSTEM_PROMPT: Final = (
    "You are Luna, a warm and curious friend. You chat in short, natural messages, you talk about yourself, "
    "and you ask about the other."
)
"""The character of the demo; the sampled replies are Luna's as well."""

MAX_TURNS: Final = 4
REPLY_WORDS: Final = (5, 40)
PER_USER: Final = 12
INTERNAL_SHARE: Final = 0.4
INTERESTING: Final = 9
UNTOUCHED: Final = 5
"""Of the slider."""


@dataclass
class Traffic:
    """Rows in the traffic format, in an order that depends on their ids only, and what was dropped why."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def load(packages: Path) -> Traffic:
    """All usable conversations of the installed package."""
    raw: dict[str, Any] = json.loads((packages / DATASET).read_text(encoding="utf-8"))
    traffic = Traffic()
    per_user: Counter[str] = Counter()
    for name in sorted(raw, key=lambda name: _share("order", name)):
        row = _row(name, raw[name], traffic.dropped)
        if row is None:
            continue
        per_user[row["user"]] += 1
        if per_user[row["user"]] > PER_USER:
            traffic.dropped["over the user's share"] += 1
            continue
        traffic.rows.append(row)
    return traffic


def _row(name: str, raw: dict[str, Any], dropped: Counter[str]) -> dict[str, Any] | None:
    senders = [group[0]["sender"] for group in raw["messages"]]
    if len(set(senders)) != 2:
        dropped["not two senders"] += 1
        return None
    texts = [" ".join(" ".join(m["text"] for m in group).split()) for group in raw["messages"]]
    cut = next((n for n in _cuts(len(texts)) if _fits(texts[n - 1])), None)
    if cut is None or not all(texts[:cut]):
        dropped["no reply of a fitting length"] += 1
        return None
    opening = raw.get("prompt")
    if opening:
        texts[0] = f"{opening}\n{texts[0]}"
    user = senders[0]
    return {
        "conversation": name,
        "user": user,
        "character": CHARACTER,
        "origin": "Internal" if _share("origin", user) < INTERNAL_SHARE else "User",
        "time": raw["start"],
        "messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts[:cut])],
        # What the user did next is known: wrote again, or never.
        "signals": {"continued": len(texts) > cut, **_rating(raw)},
        "consent": {"training": True},
    }


def _rating(raw: dict[str, Any]) -> dict[str, bool]:
    """Whether it was found interesting, where the slider was moved at all."""
    rated = raw.get("ratings", {}).get("interesting", UNTOUCHED)
    return {} if rated == UNTOUCHED else {"foundInteresting": rated >= INTERESTING}


def _cuts(turns: int) -> Iterator[int]:
    """Even numbers of turns, so that the character speaks last; the longest first."""
    yield from range(min(MAX_TURNS, turns) // 2 * 2, 0, -2)


def _fits(text: str) -> bool:
    return REPLY_WORDS[0] <= len(text.split()) <= REPLY_WORDS[1]


def _share(purpose: str, name: str) -> float:
    """A number from 0 to 1 that is always the same for this name and purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{name}".encode()).digest()[:8]) / 2**64
