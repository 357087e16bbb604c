"""What a running stage says of itself at `GET /progress`."""

from pydantic import Field

from flywheel_contract.base import Record


class Progress(Record):
    """A snapshot of a running stage. Fields that the stage cannot know are left out."""

    percent: int = Field(0, ge=0, le=100, description="How much of the stage is done, in percent.")
    step: int | None = Field(None, ge=0, description="Optimiser steps, or batches, done.")
    total_steps: int | None = Field(None, ge=0, description="Steps there are in all.")
    loss: float | None = Field(None, description="The last logged training loss.")
    reward: float | None = Field(None, description="The last logged mean reward.")
    eta_seconds: int | None = Field(None, ge=0, description="Estimated seconds until the stage ends.")
    message: str = Field("", max_length=200, description="What it does at the moment.")
