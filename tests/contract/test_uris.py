"""Artefact URIs: what is taken, what is refused, and that nothing climbs out of its root."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from flywheel_contract.uris import (
    OUTPUT_URI_MAX_LENGTH,
    URI_MAX_LENGTH,
    URI_PATTERN,
    ArtifactUri,
    Location,
    OutputUri,
    UriError,
    claim_of,
    join_uri,
    parse_uri,
)

_USERS: TypeAdapter[str] = TypeAdapter(ArtifactUri)
_OUTPUTS: TypeAdapter[str] = TypeAdapter(OutputUri)


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("pvc://claim", Location("pvc", "claim", "")),
        ("pvc://claim/", Location("pvc", "claim", "")),
        ("pvc://my.claim-1/a/b.jsonl", Location("pvc", "my.claim-1", "a/b.jsonl")),
        ("file:///data/chats", Location("file", "", "data/chats")),
        ("s3://bucket", Location("s3", "bucket", "")),
        ("gs://bucket/key/", Location("gs", "bucket", "key")),
        ("hf://owner/name", Location("hf", "owner/name", "")),
        ("hf://owner/name@main/folder", Location("hf", "owner/name@main", "folder")),
        ("pvc://claim/..hidden/...", Location("pvc", "claim", "..hidden/...")),
    ],
)
def test_what_a_uri_says(uri: str, location: Location) -> None:
    assert parse_uri(uri) == location
    assert parse_uri(str(location)) == location
    assert _USERS.validate_python(uri) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "", "model", "ftp://host/x", "pvc://", "pvc:///x", "pvc://..", "pvc://../x", "pvc://claim/..", "pvc://claim/a/../../b",
        "pvc://claim//x", "pvc://claim/./x", "file://data",
        "file:////data", "file:///../etc/passwd", "s3://", "s3://../x", "s3://bucket/..",
        "hf://owner", "hf://owner/", "hf://../..", "hf://owner/..", "hf://owner/name/..", "pvc://claim/a\0b",
    ],
)  # fmt: skip
def test_what_is_refused(uri: str) -> None:
    with pytest.raises(UriError):
        parse_uri(uri)
    with pytest.raises(ValidationError):
        _USERS.validate_python(uri)


@pytest.mark.parametrize(
    "uri", ["pvc://Claim/x", "s3://bucket/a b", 's3://bucket/"', "s3://bucket/\\", "s3://b/é", "file:///", "file:////"]
)
def test_what_users_may_not_write_though_it_can_be_parsed(uri: str) -> None:
    parse_uri(uri)
    with pytest.raises(ValidationError):
        _USERS.validate_python(uri)


def test_how_long_a_uri_may_be() -> None:
    longest = "pvc://claim/" + "a" * (URI_MAX_LENGTH - 12)
    assert _USERS.validate_python(longest) == longest
    below = join_uri(longest, "l" * 50, "g" * 50, "rejection-sample", "0" * 16, "evaluation", "manifest.json")
    assert len(below) <= OUTPUT_URI_MAX_LENGTH
    assert _OUTPUTS.validate_python(below) == below
    with pytest.raises(ValidationError):
        _USERS.validate_python(longest + "a")


def test_whose_claim_it_is() -> None:
    assert claim_of("pvc://claim/x") == "claim"
    assert claim_of("s3://claim/x") is None


@pytest.mark.parametrize("part", ["..", "a/../..", "", "./a", "a//b", "\0"])
def test_a_part_that_climbs_out_is_refused(part: str) -> None:
    with pytest.raises(UriError):
        join_uri("pvc://claim/runs", part, "model")


_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
_PARTS = st.lists(st.one_of(_TEXT, st.sampled_from(["..", ".", "", "/", "../..", "a/b"])), max_size=4)
_ROOTS = st.sampled_from(["pvc://claim", "pvc://claim/runs/", "s3://bucket/x", "hf://owner/name", "file:///data"])


@given(st.one_of(_TEXT, st.builds("{}://{}".format, st.sampled_from(["pvc", "file", "s3", "hf"]), _TEXT)))
def test_what_parses_stays_in_its_root(uri: str) -> None:
    try:
        location = parse_uri(uri)
    except UriError:
        return
    parts = [p for p in f"{location.root}/{location.path}".split("/") if p]
    assert ".." not in parts
    assert not location.path.startswith("/")
    assert parse_uri(str(location)) == location


@given(_ROOTS, _PARTS)
def test_what_is_joined_lies_below(root: str, parts: list[str]) -> None:
    before = parse_uri(root)
    try:
        after = parse_uri(join_uri(root, *parts))
    except UriError:
        return
    assert (after.scheme, after.root) == (before.scheme, before.root)
    assert f"{after.path}/".startswith(f"{before.path}/" if before.path else "")


@given(st.from_regex(URI_PATTERN, fullmatch=True).filter(lambda u: len(u) <= URI_MAX_LENGTH))
def test_what_the_contract_takes_can_be_parsed(uri: str) -> None:
    """The planner calls `claim_of` and `join_uri` on what was admitted: neither may break on it."""
    try:
        _USERS.validate_python(uri)
    except ValidationError:
        with pytest.raises(UriError):
            parse_uri(uri)
        return
    claim_of(uri)
    join_uri(uri, "lineage", "generation")
