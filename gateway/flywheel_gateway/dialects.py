"""The two shapes of OpenAI's protocol that are served: chat completions and completions.

A dialect checks a request body, says which text the user wrote, and reads and writes replies and their parts.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flywheel_contract.gateway_config import CharacterPrompt, Limits
from flywheel_gateway.calls import Said, calls_in
from flywheel_gateway.control_tokens import as_text
from flywheel_gateway.errors import ApiError

ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_SYSTEM: Final = ("system", "developer")
_OURS: Final = ("metadata", "user", "safety_identifier", "prompt_cache_key")
"""Fields that are for us, or hold ids of users: the model server sees none of them."""
_ABOUT_TOOLS: Final = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")


@dataclass(frozen=True, slots=True)
class Turn:
    """A message: who says what."""

    role: str
    said: Said


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request. `body` goes to the model; `prompt` is what the user wrote last."""

    body: dict[str, Any]
    stream: bool
    prompt: tuple[str, ...]
    turns: tuple[Turn, ...] = ()
    """The conversation, for the log; empty for completions."""
    metadata: Mapping[str, Any] | None = None


class Chat:
    """`/v1/chat/completions`."""

    upstream_path: Final = "/v1/chat/completions"
    object_of_part: Final = "chat.completion.chunk"

    def check(self, value: object, limits: Limits) -> Asked:
        """The request in a JSON value.

        Raises:
            ApiError: it is not a chat request, or larger than it may be.
        """
        body, stream, metadata = _common(value)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise ApiError(400, "invalid_request", "messages: a list with at least one message")
        if len(messages) > limits.messages:
            raise ApiError(400, "too_many_messages", f"messages: at most {limits.messages}")
        turns = tuple(_turn(message) for message in messages)
        if sum(len(text) for turn in turns for text in turn.said.texts()) > limits.prompt_chars:
            raise ApiError(413, "prompt_too_long", f"the messages may have {limits.prompt_chars} characters together")
        return Asked(body, stream, _newest(turns), turns, metadata)

    @staticmethod
    def for_model(asked: Asked, character: CharacterPrompt | None) -> dict[str, Any]:
        """What the model is asked: control tokens are text, whoever wrote them.

        With a character its prompt stands first, with its tools, and none of the client's own of either.
        """
        own: dict[str, Any] = {key: as_text(asked.body[key]) for key in ("messages", "tools") if key in asked.body}
        if character is None:
            return {**asked.body, **own}
        rest = [m for m in own["messages"] if m["role"] not in _SYSTEM]
        body = {**asked.body, **own, "messages": [{"role": "system", "content": character.system_prompt}, *rest]}
        if not character.tools:
            return body
        tools = [tool.schema_of_call() for tool in character.tools]
        return {**{key: value for key, value in body.items() if key not in _ABOUT_TOOLS}, "tools": tools}

    @staticmethod
    def reply_said(reply: Mapping[str, Any]) -> Said | None:
        """What a whole reply says, or None where it is no reply."""
        choice = _choice(reply)
        message = choice.get("message") if choice else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(message, dict) or not isinstance(content, str | None):
            return None
        return Said(content or "", calls_in(message.get("tool_calls")))  # a tool call may have no text

    @staticmethod
    def part_text(part: Mapping[str, Any]) -> str:
        """The text of a streamed part."""
        content = _delta(part).get("content")
        return content if isinstance(content, str) else ""

    @staticmethod
    def part_calls(part: Mapping[str, Any]) -> list[Any]:
        """The pieces of tool calls in a streamed part."""
        pieces = _delta(part).get("tool_calls")
        return pieces if isinstance(pieces, list) else []

    @staticmethod
    def reply(about: Mapping[str, Any], said: Said, finish: str) -> dict[str, Any]:
        """A whole reply of nothing but `said`; ids, model and usage are those of `about`."""
        message: dict[str, Any] = {"role": "assistant", "content": said.text}
        if said.calls:
            message |= {"content": said.text or None, "tool_calls": [call.to_protocol() for call in said.calls]}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return {**_head(about, "chat.completion", "chatcmpl"), "choices": [choice], **_usage(about)}

    def part(self, about: Mapping[str, Any], said: Said | None, finish: str | None) -> dict[str, Any]:
        """A streamed part of nothing but `said`."""
        delta: dict[str, Any] = {}
        if said is not None:
            calls = [{"index": index, **call.to_protocol()} for index, call in enumerate(said.calls)]
            delta = {"role": "assistant", "tool_calls": calls} if calls else {"role": "assistant", "content": said.text}
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**_head(about, self.object_of_part, "chatcmpl"), "choices": [choice]}


class Completions:
    """`/v1/completions`: a bare prompt, without character and without turns in the log."""

    upstream_path: Final = "/v1/completions"
    object_of_part: Final = "text_completion"

    def check(self, value: object, limits: Limits) -> Asked:
        """As `Chat.check`."""
        body, stream, metadata = _common(value)
        prompt = body.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise ApiError(400, "invalid_request", "prompt: one text")
        if len(prompt) > limits.prompt_chars:
            raise ApiError(413, "prompt_too_long", f"the prompt may have {limits.prompt_chars} characters")
        return Asked(body, stream, (prompt,), (), metadata)

    @staticmethod
    def for_model(asked: Asked, character: CharacterPrompt | None) -> dict[str, Any]:
        """The body as it is: it has no place for a character, and who writes a bare prompt writes its tokens too."""
        return asked.body

    @staticmethod
    def reply_said(reply: Mapping[str, Any]) -> Said | None:
        """As `Chat.reply_said`."""
        choice = _choice(reply)
        text = choice.get("text") if choice else None
        return Said(text) if isinstance(text, str) else None

    @staticmethod
    def part_text(part: Mapping[str, Any]) -> str:
        """As `Chat.part_text`."""
        choice = _choice(part)
        text = choice.get("text") if choice else None
        return text if isinstance(text, str) else ""

    @staticmethod
    def part_calls(part: Mapping[str, Any]) -> list[Any]:
        """None: a completion calls nothing."""
        return []

    @staticmethod
    def reply(about: Mapping[str, Any], said: Said, finish: str) -> dict[str, Any]:
        """As `Chat.reply`."""
        choice = {"index": 0, "text": said.text, "finish_reason": finish, "logprobs": None}
        return {**_head(about, "text_completion", "cmpl"), "choices": [choice], **_usage(about)}

    def part(self, about: Mapping[str, Any], said: Said | None, finish: str | None) -> dict[str, Any]:
        """As `Chat.part`."""
        choice = {"index": 0, "text": said.text if said else "", "finish_reason": finish, "logprobs": None}
        return {**_head(about, self.object_of_part, "cmpl"), "choices": [choice]}


Dialect = Chat | Completions


def finish_reason(part: Mapping[str, Any]) -> str | None:
    """Why a reply or its last part ended, or None where it goes on."""
    choice = _choice(part)
    reason = choice.get("finish_reason") if choice else None
    return reason if isinstance(reason, str) else None


def _common(value: object) -> tuple[dict[str, Any], bool, Mapping[str, Any] | None]:
    if not isinstance(value, dict):
        raise ApiError(400, "invalid_request", "the body is a JSON object")
    stream, metadata, several = value.get("stream"), value.get("metadata"), value.get("n")
    if stream is not None and not isinstance(stream, bool):
        raise ApiError(400, "invalid_request", "stream: true or false")
    if metadata is not None and not isinstance(metadata, dict):
        raise ApiError(400, "invalid_request", "metadata: an object")
    if several is not None and (type(several) is not int or several != 1):
        raise ApiError(400, "invalid_request", "n: one reply a request")
    best = value.get("best_of")
    if best is not None and (type(best) is not int or best != 1):
        raise ApiError(400, "invalid_request", "best_of: one reply a request")
    return {k: v for k, v in value.items() if k not in _OURS}, stream is True, metadata


def _turn(message: object) -> Turn:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise ApiError(400, "invalid_request", f"messages: each has a role, one of {', '.join(ROLES)}")
    content = message.get("content")
    if content is None and message["role"] in ("assistant", "tool"):
        content = ""
    if isinstance(content, list):
        content = "\n".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise ApiError(400, "invalid_request", "messages: content is text, or a list of text parts")
    calls = calls_in(message.get("tool_calls")) if message["role"] == "assistant" else []
    return Turn(message["role"], Said(content, calls))


def _part(part: object) -> str:
    """Only text can be moderated and trained on."""
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise ApiError(400, "invalid_request", "messages: a part of a content is of the type text")
    return text


def _newest(turns: Sequence[Turn]) -> tuple[str, ...]:
    """The texts since the last reply, and a beginning that the client put into the model's mouth."""
    found: list[Turn] = []
    asked = False
    for turn in reversed(turns):
        if turn.role == "assistant" and asked:
            break
        asked = asked or turn.role == "user"
        if turn.role not in _SYSTEM:
            found.append(turn)
    return tuple(text for turn in reversed(found) for text in turn.said.texts())


def _choice(value: Mapping[str, Any]) -> dict[str, Any] | None:
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else None


def _delta(part: Mapping[str, Any]) -> dict[str, Any]:
    choice = _choice(part)
    delta = choice.get("delta") if choice else None
    return delta if isinstance(delta, dict) else {}


def _head(about: Mapping[str, Any], kind: str, prefix: str) -> dict[str, Any]:
    return {
        "id": about.get("id") or f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": about.get("created") or int(time.time()),
        "model": about.get("model") or "",
    }


def _usage(about: Mapping[str, Any]) -> dict[str, Any]:
    usage = about.get("usage")
    return {"usage": usage} if isinstance(usage, dict) else {}
