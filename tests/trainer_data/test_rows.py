"""Reading traffic and preferences: every refusal is asserted word by word, because it ends in an object's status."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_contract.stages import Origin
from flywheel_trainer.data import files, rows
from flywheel_trainer.errors import DataError

TRAFFIC: dict[str, Any] = {
    "conversation": "c1",
    "user": "u1",
    "character": "luna",
    "origin": "User",
    "time": "2026-05-01T10:00:00Z",
    "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello you"}],
    "signals": {"continued": True, "thumbsUp": False},
    "consent": {"training": True},
}
PREFERENCE: dict[str, Any] = {
    "conversation": "c1",
    "user": "u1",
    "origin": "Internal",
    "prompt": [{"role": "user", "content": "hello"}],
    "chosen": [{"role": "assistant", "content": "hello you"}],
    "rejected": [{"role": "assistant", "content": "no"}],
}


def without(row: dict[str, Any], *fields: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in fields}


def written(folder: Path, *lines: object, name: str = "traffic.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_row_is_read_with_all_it_says(tmp_path: Path) -> None:
    (row,) = rows.read_traffic(written(tmp_path, TRAFFIC))
    assert (row.conversation, row.user, row.character, row.origin) == ("c1", "u1", "luna", Origin.USER)
    assert row.messages == TRAFFIC["messages"]
    assert row.signals == {"continued": True, "thumbsUp": False}
    assert row.consent.training is True
    assert row.to_json() == TRAFFIC


def test_the_source_declares_the_origin_and_blank_lines_do_not_count(tmp_path: Path) -> None:
    path = written(tmp_path, without(TRAFFIC, "origin", "character", "signals", "consent", "time"), "", TRAFFIC)
    first, second = rows.read_traffic(path, Origin.USER)
    assert (first.origin, second.origin) == (Origin.USER, Origin.USER)
    assert (first.character, first.consent.training, first.signals) == (None, None, {})


def test_preferences_are_read_in_trls_format(tmp_path: Path) -> None:
    (row,) = rows.read_preferences(written(tmp_path, PREFERENCE), Origin.INTERNAL)
    assert (row.prompt, row.chosen, row.rejected) == (
        PREFERENCE["prompt"],
        PREFERENCE["chosen"],
        PREFERENCE["rejected"],
    )


def test_fields_of_other_tools_are_left_alone(tmp_path: Path) -> None:
    (row,) = rows.read_traffic(written(tmp_path, {**TRAFFIC, "arm": "treatment", "latencyMs": 12}))
    assert row.conversation == "c1"


def test_gzip_and_a_folder_of_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({**TRAFFIC, "conversation": "second"}))
    written(tmp_path, {**TRAFFIC, "conversation": "first"}, name="a.json")
    written(tmp_path, "no data", name="_report.json")
    (tmp_path / "README.md").write_text("no data either")
    assert [row.conversation for row in rows.read_traffic(tmp_path)] == ["first", "second"]


def test_parquet_gives_the_same_rows_as_json_lines(tmp_path: Path) -> None:
    sparse = without(TRAFFIC, "signals", "character")
    pq.write_table(pa.Table.from_pylist([TRAFFIC, sparse]), tmp_path / "t.parquet")
    assert rows.read_traffic(tmp_path / "t.parquet") == rows.read_traffic(written(tmp_path, TRAFFIC, sparse))


def test_written_rows_are_read_again(tmp_path: Path) -> None:
    assert files.write_rows(tmp_path / "out" / files.DATA_FILE, [TRAFFIC, TRAFFIC]) == 2
    assert len(rows.read_traffic(tmp_path / "out")) == 2


NOT_FINITE = "holds NaN or an infinite number; write a number, or leave it out; docs/data.md describes the row"
HALF = (
    "holds half of a character (a surrogate without its pair), which UTF-8 cannot hold; take it out; "
    "docs/data.md describes the row"
)


def calling(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "draw", "arguments": arguments}}
    return [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "tool_calls": [call]}]


ROW_CASES = [
    ("{", "is no JSON (Expecting property name enclosed in double quotes at column 2); write one JSON object per line"),
    ("[1]", ": a row is a JSON object, this is a list; write one object per line"),
    ("[" * 100_000 + "]" * 100_000, "is nested hundreds of levels deep; write a flat row"),
    (
        '{"user": "u", "conversation": "c", "messages": [{"role": "user", "content": "a"}], "signals": '
        + '{"a": ' * 600
        + "1"
        + "}" * 600
        + "}",
        ": signals is nested hundreds of levels deep; write a flat row; docs/data.md describes the row",
    ),
    ('{"a": ' + "1" * 5000 + "}", "holds a number of thousands of digits; take it out"),
    (
        without(TRAFFIC, "user"),
        ": the row has no user id; give every row the id of its user, the hold-out is split by it",
    ),
    (
        {**TRAFFIC, "user": ""},
        ": the row has no user id; give every row the id of its user, the hold-out is split by it",
    ),
    (
        without(TRAFFIC, "conversation"),
        ": the row has no conversation id; give every row the id of its conversation",
    ),
    (
        without(TRAFFIC, "messages"),
        ": the row has no messages; write a list of objects with role and content",
    ),
    ({**TRAFFIC, "messages": []}, ": the row has no messages; write a list of objects with role and content"),
    (
        {**TRAFFIC, "messages": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]},
        ": messages[1] has the unknown role 'bot'; write one of system, user, assistant, tool",
    ),
    (
        {**TRAFFIC, "messages": [{"role": "user", "content": 3}]},
        ": messages[0] has no text in content; write role and content as strings",
    ),
    (
        {**TRAFFIC, "origin": "Internal"},
        ": the row says origin Internal, its source is declared User; "
        "move the row to a source of its own origin, or correct the declaration",
    ),
    ({**TRAFFIC, "origin": "Web"}, ": origin 'Web' is unknown; write Internal or User"),
    ({**TRAFFIC, "user": 7}, ": user: Input should be a valid string; docs/data.md describes the row"),
    ({**TRAFFIC, "origin": []}, ": origin a list is unknown; write Internal or User"),
    (
        {**TRAFFIC, "time": "someone@example.org"},
        ": time: is no RFC 3339 time; write it like 2026-05-01T10:00:00Z; docs/data.md describes the row",
    ),
    ({**TRAFFIC, "signals": {"rating": math.nan}}, f": signals {NOT_FINITE}"),
    (
        json.dumps({**TRAFFIC, "signals": {"rating": 0}}).replace('"rating": 0', '"rating": 1e999'),
        f": signals {NOT_FINITE}",
    ),
    ({**TRAFFIC, "messages": calling({"size": -math.inf})}, f": messages {NOT_FINITE}"),
    ({**TRAFFIC, "messages": calling({"for": "\ud83d"})}, f": messages {HALF}"),
    ({**TRAFFIC, "messages": calling({"\ude00": "for"})}, f": messages {HALF}"),
    ({**TRAFFIC, "messages": [{"role": "user", "content": "hi \ud83d"}]}, f": messages {HALF}"),
    ({**TRAFFIC, "locale": "\ud83d"}, f": locale {HALF}"),
    ({**TRAFFIC, "reviews": [{"reviewer": "\ud83d", "choice": "Tie"}]}, f": reviews {HALF}"),
]


@pytest.mark.parametrize(("line", "message"), ROW_CASES)
def test_a_wrong_row_is_refused_with_its_line(tmp_path: Path, line: object, message: str) -> None:
    path = written(tmp_path, TRAFFIC, line)
    with pytest.raises(DataError) as caught:
        rows.read_traffic(path, Origin.USER)
    separator = "" if message.startswith(":") else " "
    assert str(caught.value) == f"{path}, line 2{separator}{message}"
    assert caught.value.exit_code == 65


def test_a_row_without_any_origin_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, without(TRAFFIC, "origin"))
    with pytest.raises(DataError) as caught:
        rows.read_traffic(path)
    assert str(caught.value) == (
        f"{path}, line 1: the row has no origin and its source declares none; write Internal or User"
    )


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
def test_a_preference_without_one_of_its_parts_is_refused(tmp_path: Path, field: str) -> None:
    path = written(tmp_path, without(PREFERENCE, field))
    with pytest.raises(DataError) as caught:
        rows.read_preferences(path)
    assert str(caught.value) == f"{path}, line 1: the row has no {field}; write a list of objects with role and content"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.jsonl"
    with pytest.raises(DataError) as caught:
        rows.read_traffic(path)
    assert str(caught.value) == f"{path} does not exist: check the URI, and that the data was written before the start"


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.touch()
    with pytest.raises(DataError) as caught:
        rows.read_traffic(path)
    assert str(caught.value) == f"{path} is empty: write at least one row into it, or take the source away"


def test_a_file_of_blank_lines_holds_no_rows(tmp_path: Path) -> None:
    path = written(tmp_path, "", "")
    with pytest.raises(DataError) as caught:
        rows.read_traffic(path)
    assert str(caught.value) == f"{path} holds no rows: write at least one row into it, or take the source away"


def test_a_folder_without_data_and_a_file_of_another_kind_are_refused(tmp_path: Path) -> None:
    kinds = ".jsonl, .json, .jsonl.gz, .parquet"
    with pytest.raises(DataError) as caught:
        rows.read_traffic(tmp_path)
    assert str(caught.value) == f"the folder {tmp_path} holds no data file: write one of {kinds} into it"
    path = written(tmp_path, "a,b", name="t.csv")
    with pytest.raises(DataError) as caught:
        rows.read_traffic(path)
    assert str(caught.value) == f"{path} is no data file: write one of {kinds}"


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    zipped = tmp_path / "t.jsonl.gz"
    zipped.write_bytes(gzip.compress((json.dumps(TRAFFIC) + "\n").encode())[:-20])
    with pytest.raises(DataError, match=r"t\.jsonl\.gz is damaged after line 0 .*; write the file again$"):
        rows.read_traffic(zipped)
    columns = tmp_path / "t.parquet"
    columns.write_bytes(b"PAR1 is how it starts")
    with pytest.raises(DataError, match=r"t\.parquet is no readable Parquet .*; write the file again$"):
        rows.read_traffic(columns)
    latin = tmp_path / "t.jsonl"
    latin.write_bytes(json.dumps(TRAFFIC).encode() + b"\n\xe9\n")
    with pytest.raises(DataError, match=r"t\.jsonl, line 2 is not UTF-8; save the file as UTF-8$"):
        rows.read_traffic(latin)


def test_parquet_gives_every_message_every_field_and_nulls_are_absent(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "draw", "arguments": {"prompt": "a ship"}}}
    other = {"type": "function", "function": {"name": "draw", "arguments": {"size": 3}}}
    said = [
        {"role": "user", "content": "Show me."},
        {"role": "assistant", "content": "Here.", "tool_calls": [call]},
        {"role": "assistant", "content": "There.", "tool_calls": [other]},
    ]
    table = pa.Table.from_pylist([{"conversation": "c", "user": "u", "origin": "User", "messages": said}])
    pq.write_table(table, tmp_path / "rows.parquet")
    (found,) = rows.read_traffic(tmp_path / "rows.parquet")
    assert found.messages == said


def test_names_and_numbers_in_calls_are_texts_too() -> None:
    function = {"name": "draw", "arguments": {"a@example.org": {"n": [4111, True, None, 1.5]}}}
    message: rows.Message = {
        "role": "assistant",
        "content": "hi",
        "tool_calls": [{"type": "function", "function": function}],
    }
    assert [*rows.texts_of(message)] == ["hi", "draw", "a@example.org", "n", "4111", "1.5"]


def test_parquet_too_is_refused_where_a_number_is_none(tmp_path: Path) -> None:
    rated = [{**TRAFFIC, "signals": {"rating": rating}} for rating in (1.0, math.nan)]
    pq.write_table(pa.Table.from_pylist(rated), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet, row 2: signals holds NaN or an infinite number; write a number"):
        rows.read_traffic(tmp_path / "t.parquet")


def test_whole_characters_and_what_other_tools_left_are_read(tmp_path: Path) -> None:
    emoji = [{"role": "user", "content": "\U0001f600 \\ud83d"}]
    path = written(tmp_path, {**TRAFFIC, "messages": emoji, "latency": math.nan, "note": "\ud83d"})
    (row,) = rows.read_traffic(path)
    assert row.messages == emoji
    assert files.write_rows(tmp_path / "out" / files.DATA_FILE, [row.to_json()]) == 1
