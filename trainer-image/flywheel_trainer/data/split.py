"""The hold-out: a fixed share of the users, chosen by a hash of the user id.

The hash depends on nothing but the id. A user who is held out in one generation is so in every later one and in every
reward model with the same share, so nobody's prompts are trained on first and judged on afterwards. A smaller share
is always a part of a larger one.
"""

import hashlib


def held_out(user: str, fraction: float) -> bool:
    """Whether this user's conversations are kept for measuring; `fraction` (0 to 1) is the share of such users."""
    digest = hashlib.sha256(f"hold-out:{user}".encode()).digest()
    return int.from_bytes(digest[:8]) < fraction * 2**64


def draw_key(seed: int, name: str) -> bytes:
    """Sorting by this key draws in an order that depends on the seed and the name alone, not on the other rows."""
    return hashlib.sha256(f"draw:{seed}:{name}".encode()).digest()
