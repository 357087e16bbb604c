"""Artefact URIs: where data, models and outputs lie.

`pvc://claim/path`, `file:///absolute/path`, `s3://bucket/key`, `gs://bucket/key`, `hf://owner/name[@revision][/path]`.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import AfterValidator, StringConstraints

SCHEMES: Final = ("pvc", "file", "s3", "gs", "hf")

_CHARACTERS: Final = r"[!#-\[\]-~]"
# Printable ASCII but for quote and backslash: a URI never grows in JSON. That no part is empty, `.` or `..` is beyond
# the API server's regular expressions (without lookahead); `parse_uri` sees to it, and a rule in the CRD.
URI_PATTERN: Final = (
    rf"^(pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/{_CHARACTERS}*)?|file:///[!#-.0-\[\]-~]{_CHARACTERS}*|(s3|gs)://{_CHARACTERS}+"
    rf"|hf://[!#-.0-\[\]-~]+/{_CHARACTERS}+)$"
)
URI_MAX_LENGTH: Final = 256
OUTPUT_URI_MAX_LENGTH: Final = 2 * URI_MAX_LENGTH
"""An artifact root with the longest lineage, owner, stage and output below it."""


class UriError(ValueError):
    """The URI is not one of ours, or it leaves its root. The message names the URI and the fix."""


@dataclass(frozen=True, slots=True)
class Location:
    """A parsed URI: `root` is the claim, bucket, repository or `/`; `path` is relative to it and never leaves it."""

    scheme: str
    root: str
    path: str

    def __str__(self) -> str:
        if self.scheme == "file":
            return f"file:///{self.path}"
        return f"{self.scheme}://{self.root}/{self.path}" if self.path else f"{self.scheme}://{self.root}"


def parse_uri(uri: str) -> Location:
    """Splits `uri` into scheme, root and path.

    Raises:
        UriError: an unknown scheme, no root, or a root or path with `..`, an empty part or a NUL byte.
    """
    match = re.match(r"^([a-z0-9]+)://(.*)$", uri, re.DOTALL)
    if match is None or match[1] not in SCHEMES:
        raise UriError(f"artefact URI {uri!r}: start it with one of {', '.join(s + '://' for s in SCHEMES)}")
    scheme, rest = match[1], match[2]
    if scheme == "file":
        root, _, path = "", "", rest.removeprefix("/")
        if not rest.startswith("/"):
            raise UriError(f"artefact URI {uri!r}: write file:///absolute/path")
    elif scheme == "hf":
        owner, _, tail = rest.partition("/")
        name, _, path = tail.partition("/")
        root = f"{owner}/{name}" if owner and name else ""
    else:
        root, _, path = rest.partition("/")
    if scheme != "file" and not root:
        raise UriError(f"artefact URI {uri!r}: name what comes after {scheme}://")
    path = path.rstrip("/")
    parts = path.split("/") if path else []
    if any(part in ("", ".", "..") or "\0" in part for part in [*(root.split("/") if root else []), *parts]):
        raise UriError(f"artefact URI {uri!r} leaves its root or has an empty part: write a plain path without '..'")
    return Location(scheme, root, path)


def join_uri(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it.

    Raises:
        UriError: as `parse_uri`, also when a part would climb out.
    """
    return str(parse_uri("/".join((uri.rstrip("/"), *parts))))


def claim_of(uri: str) -> str | None:
    """The PersistentVolumeClaim that holds `uri`, or None where it is no `pvc://` URI."""
    location = parse_uri(uri)
    return location.root if location.scheme == "pvc" else None


def _checked(uri: str) -> str:
    parse_uri(uri)
    return uri


ArtifactUri = Annotated[
    str, StringConstraints(pattern=URI_PATTERN, max_length=URI_MAX_LENGTH), AfterValidator(_checked)
]
"""A URI as users write it."""
OutputUri = Annotated[
    str, StringConstraints(pattern=URI_PATTERN, max_length=OUTPUT_URI_MAX_LENGTH), AfterValidator(_checked)
]
"""A URI that may have been made by `join_uri` from theirs."""
