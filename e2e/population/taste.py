"""The hidden taste: how much a reply is liked. It judges manner, not content; no reward model is trained on it."""

from typing import Final

NEUTRAL: Final = 0.4
ASKING: Final = 0.6
CURT: Final = -0.4
FEW_WORDS: Final = 4
"""A reply of so many words or fewer is curt."""
CLEARLY_LIKED: Final = 0.7
CLEARLY_DISLIKED: Final = 0.3


def liking(reply: str) -> float:
    """0 (disliked) to 1 (liked): people like to be asked something, and do not like curt replies."""
    asked = ASKING * ("?" in reply)
    curt = CURT * (len(reply.split()) <= FEW_WORDS)
    return min(max(NEUTRAL + asked + curt, 0.0), 1.0)
