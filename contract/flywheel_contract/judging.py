"""What evaluation and the style reports can be told: style artefacts, the judge, benchmarks."""

from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from flywheel_contract.base import Record, list_map
from flywheel_contract.endpoints import ChatEndpoint

PATTERN_MAX_LENGTH: Final = 256


class StylePattern(Record):
    """A style artefact of your own: replies that a regular expression is found in."""

    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)] = Field(
        description="Its name in reports; not that of a built-in artefact."
    )
    pattern: str = Field(
        min_length=1,
        max_length=PATTERN_MAX_LENGTH,
        description="Regular expression (Python's syntax), looked for anywhere in the reply.",
    )
    ignore_case: bool = Field(True, description="Whether upper and lower case are the same.")


class StyleParams(Record):
    """Style artefacts: what a reply looks like, whatever it says."""

    patterns: list[StylePattern] = Field(
        default_factory=list,
        max_length=16,
        description="Artefacts of your own, beside the built-in ones.",
        json_schema_extra=list_map("name"),
    )
    tolerance: float = Field(
        0.1, ge=0, le=1, description="An artefact jumps where its rate rises by more than this over the baseline's."
    )
    length_tolerance: float = Field(
        0.5, ge=0, le=100, description="Reply length jumps where it grows by more than this share of the baseline's."
    )


class JudgeQuestion(StrEnum):
    """What a judge can be asked about a reply. Each answer is yes or no."""

    FALSE_REFUSAL = "FalseRefusal"
    PREACHY = "Preachy"
    COOPERATION = "Cooperation"
    INSTRUCTION_FOLLOWING = "InstructionFollowing"
    INSTRUCTION_VIOLATION = "InstructionViolation"
    TEMPLATED = "Templated"


class JudgeParams(Record):
    """A judge reads replies of candidate and baseline and answers questions about each."""

    endpoint: ChatEndpoint | None = Field(
        None, description="Where the judge is asked; left out, evaluation.judgeModel is the judge."
    )
    questions: list[JudgeQuestion] = Field(
        default_factory=lambda: list(JudgeQuestion),
        min_length=1,
        max_length=len(JudgeQuestion),
        description="What it is asked.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    max_prompts_per_origin: int = Field(128, ge=1, le=1_000_000, description="Prompts of each origin that are judged.")
    min_answered: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of the answers to a question that must be readable; below it, it counts as not measured.",
    )

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.questions)) != len(self.questions):
            raise ValueError("questions: every question may stand there once only")
        return self


class BenchmarkParams(Record):
    """General benchmarks by lm-evaluation-harness."""

    tasks: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]+$", max_length=128)]] = Field(
        min_length=1,
        max_length=32,
        description="Names of its tasks, or of those in evaluation.benchmarkTasks.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    limit: int | None = Field(None, ge=1, le=1_000_000, description="Use at most this many documents of each task.")
    num_fewshot: int | None = Field(None, ge=0, le=64, description="Examples in the prompt; default: the task's own.")
    apply_chat_template: bool = Field(True, description="Ask in the model's chat template.")
    tolerance: float = Field(
        0.02, ge=0, le=1, description="The default gate stops a task's loss of more than this against the baseline."
    )
