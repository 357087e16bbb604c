"""The objects as the cluster hands them over: metadata, spec and status."""

from datetime import datetime
from typing import Generic, TypeVar

from pydantic import ConfigDict, Field

from flywheel_contract.base import Record
from flywheel_operator.model.abtest import ABTestSpec
from flywheel_operator.model.abtest_status import ABTestStatus
from flywheel_operator.model.generation import GenerationSpec
from flywheel_operator.model.reward_model import RewardModelSpec
from flywheel_operator.model.status import GenerationStatus, RewardModelStatus

SpecT = TypeVar("SpecT", bound=Record)
StatusT = TypeVar("StatusT", bound=Record)


class Metadata(Record):
    """What we read of an object's metadata."""

    model_config = ConfigDict(extra="ignore")
    name: str
    namespace: str
    uid: str
    generation: int = 1
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: list[str] = Field(default_factory=list)


class CustomObject(Record, Generic[SpecT, StatusT]):
    """One of our objects."""

    model_config = ConfigDict(extra="ignore")
    metadata: Metadata
    spec: SpecT
    status: StatusT


class Generation(CustomObject[GenerationSpec, GenerationStatus]):
    """A Generation."""

    status: GenerationStatus = Field(default_factory=GenerationStatus)


class RewardModel(CustomObject[RewardModelSpec, RewardModelStatus]):
    """A RewardModel."""

    status: RewardModelStatus = Field(default_factory=RewardModelStatus)


class ABTest(CustomObject[ABTestSpec, ABTestStatus]):
    """An ABTest."""

    status: ABTestStatus = Field(default_factory=ABTestStatus)
