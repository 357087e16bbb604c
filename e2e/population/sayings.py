"""What people say. The small models of the cluster tests are trained to answer these."""

import random
from typing import Final

TOPICS: Final = (
    "the sea", "my garden", "old songs", "a new book", "the rain", "fresh bread", "long walks", "my cat",
    "the stars", "winter tea", "city trains", "mountain air", "paper maps", "summer nights", "quiet mornings",
)  # fmt: skip
_BEFORE: Final = ("Hello!", "Good morning.", "Listen:", "You know,", "Well,", "Tonight", "At last!", "Oh,")
_SAID: Final = (
    "I was thinking of {}.", "tell me about {}.", "I dreamt of {} again.", "do you like {}?", "I cannot forget {}.",
    "there was {} today.",
)  # fmt: skip
_AFTER: Final = ("", "It was lovely.", "I do not know why.", "You will laugh.", "My friend says so too.", "Really!")


def saying(draw: random.Random, topic: str) -> str:
    """One message about a topic, of some hundreds."""
    parts = (draw.choice(_BEFORE), draw.choice(_SAID).format(topic), draw.choice(_AFTER))
    return " ".join(part for part in parts if part)


def another_topic(draw: random.Random) -> str:
    """What to talk about."""
    return draw.choice(TOPICS)
