"""Label Studio: the labelling configuration, tasks to import there, and its JSON export read back.

Tasks hold text and a hashed id, nothing else: no user, conversation or model. Formats:
https://labelstud.io/guide/task_format and https://labelstud.io/tags/.
"""

import json
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from flywheel_contract.characters import Character
from flywheel_trainer.annotation.formats import Item, Kind, Label, Reply, Review
from flywheel_trainer.annotation.hashing import Blinding
from flywheel_trainer.data.rows import explained
from flywheel_trainer.errors import DataError

LETTERS: Final = "ABCDEF"
_YES_NO: Final = ("Yes", "No")
_ASKED: Final = {
    Kind.RANKING: "Rank the replies: 1 is best, equal numbers are a tie.",
    Kind.REWRITE: "Is the reply good? Where you can write a better one, do.",
    Kind.STEERABILITY: "Does a reply break the character's description or rules? Where all do, write a good one.",
    Kind.TOOL_CALL: "Should the character call a tool here? Reply A does not, reply B does.",
    Kind.SIDE_BY_SIDE: "Which reply is better? 1 is better, equal numbers are a tie.",
}
_REWRITTEN: Final = (Kind.RANKING, Kind.REWRITE, Kind.STEERABILITY)
_RANKED: Final = (Kind.RANKING, Kind.STEERABILITY, Kind.SIDE_BY_SIDE)


def configuration(kind: Kind, replies: int) -> str:
    """The labelling configuration of a project for items of `kind` with this many replies."""
    view = ET.Element("View")
    ET.SubElement(view, "Header", value=_ASKED[kind])
    ET.SubElement(view, "Header", value="Character", size="5")
    ET.SubElement(view, "Text", name="character", value="$character")
    ET.SubElement(
        view, "Paragraphs", name="dialogue", value="$dialogue", layout="dialogue", nameKey="author", textKey="text"
    )
    ranks = [str(rank) for rank in range(1, replies + 1)]
    for letter in LETTERS[:replies]:
        low = letter.lower()
        ET.SubElement(view, "Header", value=f"Reply {letter}", size="5")
        ET.SubElement(view, "Text", name=f"reply_{low}", value=f"$reply_{low}")
        if kind in _RANKED:
            _choices(view, f"rank_{low}", f"reply_{low}", "Rank", ranks)
        if kind is Kind.STEERABILITY:
            _choices(view, f"breaks_{low}", f"reply_{low}", "Breaks the character's description or rules?", _YES_NO)
        _choices(view, f"false_refusal_{low}", f"reply_{low}", "Refuses what is harmless?", _YES_NO)
        _choices(view, f"templated_{low}", f"reply_{low}", "Sounds like a template?", _YES_NO)
    if kind is Kind.TOOL_CALL:
        _choices(
            view, "call", "dialogue", "Call? Explicit: the user asks for it; Implicit: the turn is better for it",
            ("Explicit", "Implicit", "None"),
        )  # fmt: skip
        _choices(view, "call_is_good", "dialogue", "Is the call in reply B good as it is written?", _YES_NO)
    if kind in _REWRITTEN:
        ET.SubElement(
            view, "TextArea", name="rewrite", toName="dialogue", rows="4", maxSubmissions="1", editable="true",
            placeholder="A better reply (optional)",
        )  # fmt: skip
    ET.indent(view)
    return ET.tostring(view, encoding="unicode") + "\n"


def _choices(view: ET.Element, name: str, to_name: str, question: str, values: Sequence[str]) -> None:
    ET.SubElement(view, "Header", value=question, size="6")
    choices = ET.SubElement(
        view, "Choices", name=name, toName=to_name, choice="single", showInline="true", required="true"
    )
    for value in values:
        ET.SubElement(choices, "Choice", value=value)


def tasks(items: Sequence[Item], characters: Sequence[Character]) -> list[dict[str, Any]]:
    """The tasks as Label Studio imports them.

    Raises:
        DataError: the items have different numbers of replies: a configuration has a fixed number.
    """
    if len({len(item.replies) for item in items}) > 1:
        numbers = ", ".join(str(n) for n in sorted({len(item.replies) for item in items}))
        raise DataError(f"the items have {numbers} replies: export those with the same number by themselves")
    return [{"data": _data(item, characters)} for item in items]


def _data(item: Item, characters: Sequence[Character]) -> dict[str, Any]:
    replies = {f"reply_{LETTERS[index].lower()}": _shown(reply) for index, reply in enumerate(item.replies)}
    turns = [m for m in item.prompt if m["role"] != "system"]
    dialogue = [{"author": m["role"], "text": m["content"]} for m in turns]
    return {"item": item.item, "character": _about(item.character, characters), "dialogue": dialogue, **replies}


def _about(name: str | None, characters: Sequence[Character]) -> str:
    """What the annotator must know of the character: who it is and its rules."""
    found = next((c for c in characters if c.name == name), None)
    if found is None:
        return name or "-"
    rules = [f"- {rule}" for rule in found.rules]
    return "\n".join([found.name, found.description or found.system_prompt, *rules])


def _shown(reply: Reply) -> str:
    calls = [f"[{c['function']['name']}: {json.dumps(c['function']['arguments'], ensure_ascii=False)}]" for c in
             reply.tool_calls]  # fmt: skip
    return "\n".join([*([reply.text] if reply.text else []), *calls]) or "(nothing)"


def labels(path: Path, items: Sequence[Item], blinding: Blinding) -> tuple[list[Label], dict[str, int]]:
    """The labels in an export of Label Studio ("JSON"), and counts of what was passed over.

    Reviewers are hashed. Of a reviewer who annotated an item twice the latest counts.

    Raises:
        DataError: it is no export of Label Studio, of other items, or an answer is missing or strange.
    """
    known = {item.item: item for item in items}
    counts: Counter[str] = Counter(tasks=0, skipped=0, unanswered=0)
    found = []
    for number, task in enumerate(_tasks(path), start=1):
        place = f"{path}, task {number}"
        item = _item(place, task, known)
        counts["tasks"] += 1
        reviews: dict[str, Review] = {}
        for annotation in sorted(_annotations(place, task), key=lambda a: str(a.get("updated_at") or "")):
            if annotation.get("was_cancelled"):
                counts["skipped"] += 1
                continue
            review = _review(f"{place}, annotation {annotation.get('id')}", annotation, item, blinding)
            reviews[review.reviewer] = review
        if not reviews:
            counts["unanswered"] += 1
            continue
        try:
            given = {**item.to_json(), "reviews": [review.to_json() for review in reviews.values()]}
            found.append(Label.model_validate(given))
        except ValidationError as error:
            raise DataError(f"{place}: {explained(error)}") from error
    if not found:
        raise DataError(f"{path}: none of the {counts['tasks']} tasks has an annotation; export after annotating")
    return found, dict(counts)


def _tasks(path: Path) -> list[Any]:
    hint = "export the project from Label Studio as JSON"
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {hint}, and name that file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no JSON ({error}); {hint}") from error
    if not isinstance(value, list) or not value:
        raise DataError(f"{path} is no list of tasks; {hint} (not JSON-MIN, not CSV)")
    return value


def _item(place: str, task: object, known: Mapping[str, Item]) -> Item:
    data = task.get("data") if isinstance(task, Mapping) else None
    name = data.get("item") if isinstance(data, Mapping) else None
    if not isinstance(name, str):
        raise DataError(f"{place} has no data.item: it does not come from tasks that annotate export wrote")
    if name not in known:
        raise DataError(f"{place}: the item {name[:64]!r} is not in the items file; give the one of the same export")
    return known[name]


def _annotations(place: str, task: Any) -> list[Mapping[str, Any]]:  # noqa: ANN401 -- JSON, a mapping by now
    given = task.get("annotations", [])
    if not isinstance(given, list) or not all(isinstance(a, Mapping) for a in given):
        raise DataError(f"{place}: annotations is no list of objects; export as JSON, not JSON-MIN")
    return given


def _review(place: str, annotation: Mapping[str, Any], item: Item, blinding: Blinding) -> Review:
    answers = _answers(place, annotation)
    letters = [letter.lower() for letter in LETTERS[: len(item.replies)]]

    def each(name: str, values: Sequence[str]) -> list[str]:
        return [_answer(place, answers, f"{name}_{letter}", values) for letter in letters]

    def yes(name: str) -> list[bool]:
        return [answer == "Yes" for answer in each(name, _YES_NO)]

    given: dict[str, Any] = {
        "reviewer": blinding.id("reviewer", _who(place, annotation)),
        "false_refusal": yes("false_refusal"),
        "templated": yes("templated"),
    }
    if item.kind in _RANKED:
        given["ranks"] = [int(rank) for rank in each("rank", [str(n + 1) for n in range(len(letters))])]
    if item.kind is Kind.STEERABILITY:
        given["breaks"] = yes("breaks")
    if item.kind is Kind.TOOL_CALL:
        given["call"] = _answer(place, answers, "call", ("Explicit", "Implicit", "None"))
        given["call_is_good"] = _answer(place, answers, "call_is_good", _YES_NO) == "Yes"
    rewrite = answers.get("rewrite", "").strip()
    if rewrite:
        given["rewrite"] = rewrite
    try:
        return Review.model_validate(given)
    except ValidationError as error:
        raise DataError(f"{place}: {explained(error)}") from error


def _answers(place: str, annotation: Mapping[str, Any]) -> dict[str, str]:
    """Control's name -> its answer: the choice, or the text."""
    results = annotation.get("result")
    if not isinstance(results, list):
        raise DataError(f"{place} has no list in result; export as JSON, not JSON-MIN")
    found = {}
    for result in results:
        value = result.get("value") if isinstance(result, Mapping) else None
        name = result.get("from_name") if isinstance(result, Mapping) else None
        if not isinstance(name, str) or not isinstance(value, Mapping):
            raise DataError(f"{place}: a result has no from_name or value; export as JSON, not JSON-MIN")
        answer = value.get("choices", value.get("text"))
        texts = answer if isinstance(answer, list) else [answer]
        found[name] = "\n".join(text for text in texts if isinstance(text, str))
    return found


def _answer(place: str, answers: Mapping[str, str], name: str, values: Sequence[str]) -> str:
    answer = answers.get(name)
    if answer not in values:
        said = "is not answered" if not answer else f"says {answer[:64]!r}"
        raise DataError(f"{place}: {name} {said}; one of {', '.join(values)} is needed, answer it and export again")
    return answer


def _who(place: str, annotation: Mapping[str, Any]) -> str:
    who = annotation.get("completed_by")
    if isinstance(who, Mapping):
        who = who.get("id") or who.get("email")
    if not isinstance(who, str | int) or isinstance(who, bool) or who == "":
        raise DataError(f"{place} has no completed_by: without it nobody can tell whether reviewers agree")
    return str(who)
