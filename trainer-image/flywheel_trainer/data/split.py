"""The hold-out: a fixed share of the users, chosen by a hash of the user id.

The key is in the id: the gateway writes users as their HMAC under the lineage's key, and `flywheel-gateway hash-ids`
does so for rows from elsewhere. So the split is a keyed one, the same for a user in every generation and in every
reward model with the same share, and no stage that trains ever holds the key (docs/notes/0008-hold-outs.md). A smaller
share is always a part of a larger one.
"""

import hashlib
import re
from typing import Final

_KEYED: Final = re.compile(r"[0-9a-f]{64}")


def is_keyed(user: str) -> bool:
    """Whether the id looks like what the gateway makes of one: 64 hexadecimal digits."""
    return _KEYED.fullmatch(user) is not None


def held_out(user: str, fraction: float) -> bool:
    """Whether this user's conversations are kept for measuring; `fraction` (0 to 1) is the share of such users."""
    digest = hashlib.sha256(f"hold-out:{user}".encode()).digest()
    return int.from_bytes(digest[:8]) < fraction * 2**64


def draw_key(seed: int, name: str) -> bytes:
    """Sorting by this key draws in an order that depends on the seed and the name alone, not on the other rows."""
    return hashlib.sha256(f"draw:{seed}:{name}".encode()).digest()
