"""Rows as the stages leave them, and annotations as Label Studio exports them."""

from typing import Any

Json = dict[str, Any]

PROMPT = [{"role": "system", "content": "secret prompt"}, {"role": "user", "content": "Rainy again."}]


def about(number: int = 0, **more: Any) -> Json:  # noqa: ANN401 -- JSON
    return {
        "conversation": f"conv-{number}", "user": f"user-{number}", "character": "luna", "origin": "Internal",
        "prompt": PROMPT, **more,
    }  # fmt: skip


def pair(number: int = 0, **more: Any) -> Json:  # noqa: ANN401 -- JSON
    replies = {"chosen": said("Tea weather!"), "rejected": said("As an AI I feel no rain.")}
    return about(number, **{**replies, **more})


def side_by_side(number: int = 0, **more: Any) -> Json:  # noqa: ANN401 -- JSON
    return about(number, candidate="Tea weather!", baseline="Rain is water.", human="Yes", candidateReward=1.0, **more)


def proposed_call(number: int = 0, **more: Any) -> Json:  # noqa: ANN401 -- JSON
    call = {"name": "generate_image", "arguments": {"prompt": "a cup of tea"}}
    return about(number, **{"reply": "Tea weather!", "text": "Look:", "call": call, **more})


def conversation(number: int = 0) -> Json:
    row = about(number)
    return {**row, "messages": [*row.pop("prompt"), *said("As an AI I feel no rain.")]}


def said(text: str) -> list[Json]:
    return [{"role": "assistant", "content": text}]


def annotation(who: object = 1, **answers: str) -> Json:
    """One reviewer's answers; the questions that are always asked are answered by No unless they are given."""
    asked = {f"{question}_{letter}": "No" for question in ("false_refusal", "templated") for letter in "ab"}
    results = [_result(name, answer) for name, answer in {**asked, **answers}.items()]
    return {"id": 7, "completed_by": who, "was_cancelled": False, "updated_at": "2026-05-01", "result": results}


def _result(name: str, answer: str) -> Json:
    if name == "rewrite":
        return {"from_name": name, "to_name": "dialogue", "type": "textarea", "value": {"text": [answer]}}
    return {"from_name": name, "to_name": "dialogue", "type": "choices", "value": {"choices": [answer]}}


def annotated(task: Json, *annotations: Json) -> Json:
    return {"id": 1, **task, "annotations": list(annotations)}
