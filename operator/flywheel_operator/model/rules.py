"""CEL rules and other extensions of the CRDs' schemas."""

from typing import Any


def cel(rule: str, message: str, field_path: str | None = None) -> dict[str, str]:
    """One entry of `x-kubernetes-validations`."""
    return {"rule": rule, "message": message} | ({"fieldPath": field_path} if field_path else {})


def validations(*rules: dict[str, str]) -> dict[str, Any]:
    """The schema extension that carries CEL rules."""
    return {"x-kubernetes-validations": list(rules)}


def unique_list(key: str) -> dict[str, Any]:
    """The schema extension of a list, told apart by `key`, below an object that may be left empty (`abTest: {}`).

    Server-side apply takes an object away that is applied empty a second time, where defaults have put a list of type
    `map` into it. An atomic list does not have that.
    """
    rule = cel(f"self.all(a, self.exists_one(b, b.{key} == a.{key}))", f"two entries have the same {key}")
    return {"x-kubernetes-list-type": "atomic", **validations(rule)}


def frozen_rules(frozen: dict[str, bool], kind: str) -> list[dict[str, str]]:
    """CEL rules for the root of the object: the `frozen` spec fields keep their values once status.startTime is set."""
    rules = []
    for name, always in frozen.items():
        key = "".join(w if i == 0 else w.capitalize() for i, w in enumerate(name.split("_")))
        new, old = f"self.spec.{key}", f"oldSelf.spec.{key}"
        same = f"{new} == {old}" if always else f"has({new}) == has({old}) && (!has({new}) || {new} == {old})"
        rules.append(
            cel(
                f"!has(oldSelf.status) || !has(oldSelf.status.startTime) || ({same})",
                f"spec.{key} cannot change once the {kind} has started: create a new {kind} instead",
                f".spec.{key}",
            )
        )
    return rules
