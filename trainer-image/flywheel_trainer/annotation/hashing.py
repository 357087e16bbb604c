"""What annotators see instead of ids, and an order of replies that says nothing: both from the team's key."""

import hashlib
import hmac
from pathlib import Path

from flywheel_trainer.errors import ConfigError

KEY_MIN_BYTES = 16


class Blinding:
    """Hashes under a key. The same key gives the same ids and orders, so a second export matches the first."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def id(self, kind: str, *parts: str) -> str:
        """The id that stands for `parts`; without the key nobody can tell what is behind it."""
        return self._hash("\x1f".join((kind, *parts)))[:24]

    def order(self, item: str, count: int) -> list[int]:
        """The positions 0 to count - 1 in an order that depends on the item alone."""
        return sorted(range(count), key=lambda index: self._hash(f"order\x1f{item}\x1f{index}"))

    def _hash(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def read_key(path: Path) -> Blinding:
    """The blinding under the key in a file.

    Raises:
        ConfigError: there is no file, or it is too short to be a key.
    """
    if not path.is_file():
        raise ConfigError(f"--key-file {path} is no file: make one, e.g. head -c 32 /dev/urandom > {path}, and keep it")
    key = path.read_bytes()
    if len(key) < KEY_MIN_BYTES:
        raise ConfigError(f"--key-file {path} has {len(key)} bytes: a key has at least {KEY_MIN_BYTES}")
    return Blinding(key)
