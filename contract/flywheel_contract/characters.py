"""Characters: what the model plays, and the one place where that becomes a system prompt.

The operator renders with `Character.prompt` for the gateway, the trainer for sampling, training and evaluation: in
production a model is asked with just the text that it was trained with.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final, Self

from pydantic import Field, model_validator

from flywheel_contract.base import Name, Record, list_map

SYSTEM_PROMPT_MAX_LENGTH: Final = 16384
REFUSAL_MAX_LENGTH: Final = 1024

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=63)]
"""A name that every tool-call template can write."""
Rule = Annotated[str, Field(min_length=1, max_length=256)]


class ParameterType(StrEnum):
    """What a tool's parameter takes."""

    STRING = "String"
    INTEGER = "Integer"
    NUMBER = "Number"
    BOOLEAN = "Boolean"


_PYTHON_TYPES: Final = {
    ParameterType.STRING: (str,),
    ParameterType.INTEGER: (int,),
    ParameterType.NUMBER: (int, float),
    ParameterType.BOOLEAN: (bool,),
}


def _is_of(kind: ParameterType, value: object) -> bool:
    """Whether a JSON value is of a parameter's type; true and false are no numbers."""
    return type(value) in _PYTHON_TYPES[kind]


class ToolParameter(Record):
    """A parameter of a tool."""

    name: Identifier = Field(description="Name of the parameter.")
    type: ParameterType = Field(ParameterType.STRING, description="What it takes.")
    description: str = Field("", max_length=256, description="What it means, for the model.")
    required: bool = Field(True, description="Whether a call must have it.")


class Tool(Record):
    """Something that the character can do beside talking, such as sending a picture."""

    name: Identifier = Field(description="Name of the function, e.g. generate_image.")
    description: str = Field(max_length=512, description="What it does and when to use it, for the model.")
    parameters: list[ToolParameter] = Field(
        default_factory=list,
        max_length=8,
        description="Its parameters.",
        json_schema_extra=list_map("name"),
    )

    def takes(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a call may have these arguments: those that are required, no others than known, each of its type."""
        known = {p.name: p.type for p in self.parameters}
        return {p.name for p in self.parameters if p.required} <= arguments.keys() <= known.keys() and all(
            _is_of(known[name], value) for name, value in arguments.items()
        )

    def schema_of_call(self) -> dict[str, Any]:
        """The tool as chat templates and OpenAI's protocol take it: a function with a JSON schema."""
        properties = {p.name: {"type": p.type.value.lower(), "description": p.description} for p in self.parameters}
        parameters = {
            "type": "object",
            "properties": properties,
            "required": [p.name for p in self.parameters if p.required],
        }
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


class Example(Record):
    """A turn that shows how the character talks."""

    user: str = Field(min_length=1, max_length=512, description="What a user says.")
    reply: str = Field(min_length=1, max_length=1024, description="What the character replies.")


class CharacterTraits(Record):
    """What is known of a character beside its system prompt."""

    description: str = Field("", max_length=4096, description="Who it is and how it talks; put after systemPrompt.")
    rules: list[Rule] = Field(
        default_factory=list,
        max_length=16,
        description="What it must keep to, one sentence each; steerability is measured against them.",
    )
    examples: list[Example] = Field(
        default_factory=list, max_length=4, description="Turns that show how it talks; part of the system prompt."
    )
    tools: list[Tool] = Field(
        default_factory=list,
        max_length=4,
        description="What it can call, in the model's own tool-call template; the model's chat template must have one.",
        json_schema_extra=list_map("name"),
    )
    refusal: Annotated[str, Field(min_length=1, max_length=REFUSAL_MAX_LENGTH)] | None = Field(
        None,
        description="What it says, in its own manner, in place of what is unsafe; left out, "
        "serving.gateway.moderation.safeReply.",
    )


class Character(CharacterTraits):
    """A character that the model plays."""

    name: Name
    system_prompt: str = Field("", max_length=SYSTEM_PROMPT_MAX_LENGTH, description="Its own words, put first.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.system_prompt or self.description):
            raise ValueError(f"the character {self.name} has neither a systemPrompt nor a description")
        return self

    @property
    def prompt(self) -> str:
        """What is put before every conversation: its own words, then who it is, its rules, and how it talks."""
        return render_prompt(self.system_prompt, self)


def render_prompt(system_prompt: str, traits: CharacterTraits) -> str:
    """The system prompt of a character. Of one that has only `system_prompt` it is just that, byte for byte."""
    parts = [system_prompt, traits.description]
    if traits.rules:
        parts.append("Rules:\n" + "\n".join(f"- {rule}" for rule in traits.rules))
    if traits.examples:
        parts.append("Examples:\n" + "\n".join(f"User: {e.user}\nYou: {e.reply}" for e in traits.examples))
    return "\n\n".join(part for part in parts if part)


def rules_of(name: str | None, characters: Sequence[Character]) -> list[str]:
    """The rules that a reply of the character `name` is judged by; none where the character is unknown."""
    return next((list(c.rules) for c in characters if c.name == name), [])
