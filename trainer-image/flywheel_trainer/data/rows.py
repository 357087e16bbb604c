"""Traffic and preferences: reading JSON Lines and Parquet into checked rows. docs/data.md describes the formats.

Every refusal is one sentence that names the file, the line and the fix, because it ends in the status of a Generation.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Literal, NotRequired, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from typing_extensions import TypedDict

from flywheel_contract.stages import Origin
from flywheel_trainer.data.feedback import FOLDER as FEEDBACK
from flywheel_trainer.data.feedback import with_feedback
from flywheel_trainer.data.files import TOO_DEEP, NotFiniteNumberError, RawRow, raw_rows, without_nulls
from flywheel_trainer.errors import DataError

ROLES: Final = ("system", "user", "assistant", "tool")
_WORD: Final = 16


class FunctionCall(TypedDict):
    """Which tool is called, and with what."""

    name: str
    arguments: dict[str, Any]


class ToolCall(TypedDict):
    """A call of a tool, as chat templates take it."""

    type: Literal["function"]
    function: FunctionCall


class Message(TypedDict):
    """One turn, as chat templates take it."""

    role: str
    content: str
    tool_calls: NotRequired[list[ToolCall]]
    """What the character calls beside what it says; `content` may then be empty."""


def _text_of_time(value: object) -> object:
    """Parquet gives times as datetime, JSON as text."""
    isoformat = getattr(value, "isoformat", None)
    return isoformat() if isoformat is not None else value


def _is_time(text: str | None) -> str | None:
    try:
        if text is not None:
            datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("is no RFC 3339 time; write it like 2026-05-01T10:00:00Z") from None
    return text


Time = Annotated[str | None, BeforeValidator(_text_of_time), AfterValidator(_is_time)]
"""A time as text, or none."""


class Consent(BaseModel):
    """What the user allowed. Nothing said about training means that the source was collected with consent."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    training: bool | None = None


class Review(BaseModel):
    """What one reviewer said of a row: which reply is better, or whether a tool is to be called."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    reviewer: str = Field(min_length=1)
    choice: Literal["Chosen", "Rejected", "Tie"]


class Row(BaseModel):
    """What traffic and preferences share. Fields that we do not know are left alone: other tools own them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    conversation: str = Field(min_length=1)
    user: str = Field(min_length=1)
    character: str | None = None
    origin: Origin
    time: Time = None
    locale: str | None = None
    signals: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    metadata: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    consent: Consent = Consent()
    retain_until: AwareDatetime | None = Field(
        None, validation_alias=AliasChoices("retain_until", "retainUntil"), description="Gone after this time."
    )
    reviews: list[Review] = Field(default_factory=list)
    """Of annotated rows: whether each reviewer finds it right (Chosen), wrong (Rejected) or neither (Tie)."""
    tool_call: Literal["Explicit", "Implicit", "None"] | None = Field(None, alias="toolCall")
    """Of rows about tool calls: asked for by the user, the character's own idea, or rightly left out."""

    @model_validator(mode="before")
    @classmethod
    def _writable(cls, value: Any) -> Any:  # noqa: ANN401 -- whatever stands in a file
        """What we know of the row, as it can be written again: JSON has no NaN, and UTF-8 no half characters."""
        if not isinstance(value, Mapping):
            return value
        known = {name: value[name] for name in _names(cls) if value.get(name) is not None}
        for name, inner in known.items():
            try:
                known[name] = without_nulls(inner)
            except UnicodeEncodeError:
                raise ValueError(
                    f"{name} holds half of a character (a surrogate without its pair), which UTF-8 cannot hold; take "
                    "it out"
                ) from None
            except RecursionError:
                raise ValueError(f"{name} {TOO_DEEP}") from None
            except NotFiniteNumberError:
                raise ValueError(f"{name} holds NaN or an infinite number; write a number, or leave it out") from None
        return known

    @property
    def choices(self) -> list[str]:
        """What the reviewers chose; one who reviewed twice counts once, with the last choice."""
        return list({review.reviewer: review.choice for review in self.reviews}.values())

    def to_json(self) -> dict[str, Any]:
        """The row as it is written, without what is not known."""
        dumped = self.model_dump(mode="json", exclude_none=True, by_alias=True)
        return {key: value for key, value in dumped.items() if value not in ({}, [])}


class Conversation(Row):
    """A conversation between one user and one character, oldest message first."""

    messages: list[Message] = Field(min_length=1)
    turn: str | None = Field(None, exclude=True, description="The id of the last reply, by which feedback names it.")


def texts_of(message: Message) -> Iterator[str]:
    """Every text of a message: what it says, and what its tool calls say, also in names and numbers."""
    yield message["content"]
    for call in message.get("tool_calls", []):
        yield call["function"]["name"]
        yield from texts_in(call["function"]["arguments"], names=True)


def texts_in(value: Any, *, names: bool = False) -> Iterator[str]:  # noqa: ANN401 -- any JSON value
    """Every text in a JSON value, however deep; with `names` also the names of fields, and numbers as text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if names:
                yield str(name)
            yield from texts_in(inner, names=names)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner, names=names)
    elif names and isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def prompt_text(row: Conversation) -> str:
    """What was said before the last reply; a system prompt is the same in all conversations with a character."""
    return "\n".join(m["content"] for m in row.messages[:-1] if m["role"] != "system")


class Preference(Row):
    """Two replies to one prompt, of which `chosen` is the better one (TRL's conversational format)."""

    prompt: list[Message] = Field(min_length=1)
    chosen: list[Message] = Field(min_length=1)
    rejected: list[Message] = Field(min_length=1)


RowT = TypeVar("RowT", bound=Row)
"""Conversations or preferences."""


class _Reader(Generic[RowT]):
    def __init__(
        self, row: type[RowT], message_fields: tuple[str, ...], origin: Origin | None, *, nameless: bool = False
    ) -> None:
        """`nameless` rows need no ids: each is a conversation and a user of its own."""
        self._row, self._message_fields, self._origin, self._nameless = row, message_fields, origin, nameless

    def read(self, path: Path) -> list[RowT]:
        rows = [self._parse(raw) for raw in raw_rows(path)]
        if not rows:
            raise DataError(f"{path} holds no rows: write at least one row into it, or take the source away")
        return rows

    def _parse(self, raw: RawRow) -> RowT:
        value = raw.value
        if not isinstance(value, Mapping):
            raise DataError(f"{raw.place}: a row is a JSON object, this is {_named(value)}; write one object per line")
        if self._nameless:
            own = f"{raw.file.name}:{raw.number}"
            value = {"conversation": own, "user": own, **{name: v for name, v in value.items() if v is not None}}
        for field, fix in (
            ("user", "give every row the id of its user, the hold-out is split by it"),
            ("conversation", "give every row the id of its conversation"),
        ):
            if value.get(field) in (None, ""):
                raise DataError(f"{raw.place}: the row has no {field} id; {fix}")
        for field in self._message_fields:
            _check_messages(raw.place, field, value.get(field))
        try:
            return self._row.model_validate({**value, "origin": self._checked_origin(raw)})
        except ValidationError as error:
            raise DataError(f"{raw.place}: {explained(error)}; docs/data.md describes the row") from error

    def _checked_origin(self, raw: RawRow) -> Origin:
        known = " or ".join(o.value for o in Origin)
        said = raw.value.get("origin")
        if said is None and self._origin is None:
            raise DataError(f"{raw.place}: the row has no origin and its source declares none; write {known}")
        if said is not None and said not in list(Origin):
            raise DataError(f"{raw.place}: origin {_quoted(said)} is unknown; write {known}")
        if said is not None and self._origin is not None and said != self._origin:
            raise DataError(
                f"{raw.place}: the row says origin {said}, its source is declared {self._origin.value}; "
                "move the row to a source of its own origin, or correct the declaration"
            )
        return Origin(said) if said is not None else self._origin  # type: ignore[return-value] # one of them is given


def read_traffic(path: Path, origin: Origin | None = None) -> list[Conversation]:
    """Reads conversations from a file, or from all files of a folder in the order of their names.

    Args:
        path: a `.jsonl`, `.json` (lines), `.jsonl.gz` or `.parquet` file, or a folder of them.
        origin: what the source is declared to be; a row may repeat it, never contradict it.

    Raises:
        DataError: it is missing, empty, or a row is wrong; names the file and the line.
    """
    rows = _Reader(Conversation, ("messages",), origin).read(path)
    feedback = path / FEEDBACK
    return with_feedback(rows, raw_rows(feedback)) if feedback.is_dir() else rows


def read_preferences(path: Path, origin: Origin | None = None) -> list[Preference]:
    """Reads preference pairs; arguments and errors as in `read_traffic`."""
    return _Reader(Preference, ("prompt", "chosen", "rejected"), origin).read(path)


def read_general(path: Path) -> list[Conversation]:
    """Reads general conversations, which need only `messages`; errors as in `read_traffic`."""
    return _Reader(Conversation, ("messages",), Origin.INTERNAL, nameless=True).read(path)


def _check_messages(place: str, field: str, value: object) -> None:
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: the row has no {field}; write a list of objects with role and content")
    for index, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise DataError(f"{place}: {field}[{index}] has no text in content; write role and content as strings")
        if message.get("role") not in ROLES:
            raise DataError(
                f"{place}: {field}[{index}] has the unknown role {_quoted(message.get('role'))}; "
                f"write one of {', '.join(ROLES)}"
            )
        _check_calls(f"{place}: {field}[{index}]", message)


def _check_calls(place: str, message: Mapping[str, Any]) -> None:
    calls = message.get("tool_calls")
    if calls is None:
        return
    if message["role"] != "assistant" or not isinstance(calls, list) or not calls:
        raise DataError(f"{place}: tool_calls is a list of calls in a message of the assistant; correct or remove it")
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        named = isinstance(function, Mapping) and isinstance(function.get("name"), str) and function["name"]
        if not named or not isinstance(function.get("arguments"), Mapping):  # type: ignore[union-attr] -- looked at
            raise DataError(
                f'{place}: a call is {{"type": "function", "function": {{"name": ..., "arguments": {{...}}}}}} with '
                "the arguments as an object; write it so"
            )


@cache
def _names(row: type[Row]) -> tuple[str, ...]:
    """What a row's fields may be called in a file."""
    aliases = ((name, field.validation_alias) for name, field in row.model_fields.items())
    return tuple(
        str(called)
        for name, alias in aliases
        for called in (alias.choices if isinstance(alias, AliasChoices) else [alias or name])
    )


def explained(error: ValidationError) -> str:
    """The first thing that is wrong, with the field's path, in one clause."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def _quoted(value: object) -> str:
    """What stands where a short word should. Of anything longer only its length: a sentence of an error is no place
    for what users wrote."""
    if isinstance(value, str) and len(value) > _WORD:
        return f"(a text of {len(value)} characters)"
    return repr(value) if isinstance(value, str | int | None) else _named(value)


def _named(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
