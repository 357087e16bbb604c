"""Synthetic conversations and preferences in the project's formats, from two origins.

The rule behind them is learnable by a tiny model: a warm reply is preferred to a cold one, whatever their lengths.
"""

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ORIGINS = ("Internal", "User")
CHARACTER = "captain"
SYSTEM_PROMPT = "You are the captain of a small boat, warm and curious."

_TOPICS = (
    "the sea", "my garden", "old songs", "a new book", "the rain", "fresh bread", "long walks", "my cat",
    "the stars", "winter tea", "city trains", "mountain air", "paper maps", "summer nights", "quiet mornings",
)  # fmt: skip
_ASKED = ("What do you think about {}?", "Tell me about {}.", "I was dreaming of {} again.", "Do you like {}?")
_WARM = (
    "Oh, I love {}! It makes me smile every day.",
    "What a lovely thought. Please tell me more about {}!",
    "How wonderful, {} is dear to me. Shall we talk about it, friend?",
    "I love that you ask! With {} every day is a good day, my friend. Please go on!",
)
_COLD = (
    "No. I have nothing to say about {}.",
    "That is a boring question and {} is a boring thing to ask me about, so stop it.",
    "Whatever. Ask someone else about {}.",
    "I cannot discuss {}. It is not of any interest and never was, stop asking me.",
)


def traffic(count: int, seed: int = 0, origin: str | None = None, users: int = 24) -> list[dict[str, Any]]:
    """`count` conversations of one to three exchanges with `users` users; without `origin`, in turn from both."""
    draw = random.Random(seed)
    return [_conversation(draw, number, origin or ORIGINS[number % 2], users) for number in range(count)]


def preferences(count: int, seed: int = 0, origin: str | None = None, users: int = 24) -> list[dict[str, Any]]:
    """`count` pairs in which the warm reply is chosen."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        row = _conversation(draw, number, origin or ORIGINS[number % 2], users)
        topic = draw.choice(_TOPICS)
        rows.append(
            {
                **{key: row[key] for key in ("conversation", "user", "character", "origin", "time")},
                "prompt": [{"role": "user", "content": draw.choice(_ASKED).format(topic)}],
                "chosen": [{"role": "assistant", "content": draw.choice(_WARM).format(topic)}],
                "rejected": [{"role": "assistant", "content": draw.choice(_COLD).format(topic)}],
            }
        )
    return rows


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Writes `rows` as JSON Lines and answers `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def text(draw: random.Random, count: int) -> Iterator[str]:
    """Sentences of the kind that the conversations consist of, to train a tokenizer on."""
    yield SYSTEM_PROMPT
    for _ in range(count):
        yield draw.choice((*_ASKED, *_WARM, *_COLD)).format(draw.choice(_TOPICS))


def _conversation(draw: random.Random, number: int, origin: str, users: int) -> dict[str, Any]:
    messages = []
    for _ in range(draw.randint(1, 3)):
        topic = draw.choice(_TOPICS)
        # Half warm, half cold: imitation alone leaves room for DPO and RL to move.
        answers = _WARM if draw.random() < 0.5 else _COLD
        messages.append({"role": "user", "content": draw.choice(_ASKED).format(topic)})
        messages.append({"role": "assistant", "content": draw.choice(answers).format(topic)})
    user = f"{origin.lower()}-{draw.randrange(users):03d}"
    return {
        "conversation": f"{origin.lower()}-{number:05d}",
        "user": user,
        "character": CHARACTER,
        "origin": origin,
        "time": f"2025-01-{1 + number % 28:02d}T12:00:00Z",
        "messages": messages,
        "signals": {"continues": draw.random() < 0.5},
        "consent": {"training": True},
    }
