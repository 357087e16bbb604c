"""Replies from an endpoint: the larger siblings that are served elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flywheel_contract.endpoints import ChatEndpoint
from flywheel_contract.params import SamplingParams
from flywheel_trainer.chat_api import WAIT_SECONDS, ChatApi
from flywheel_trainer.data.rows import Message
from flywheel_trainer.prompts import split_tools
from flywheel_trainer.sampling import Report


@dataclass
class EndpointDrawer:
    """An endpoint as a source of replies. Its seed is a wish: few servers repeat a reply exactly."""

    name: str
    params: ChatEndpoint
    wait: float = WAIT_SECONDS

    def draw(
        self, prompts: Sequence[Sequence[Message]], params: SamplingParams, *, count: int, seed: int, report: Report
    ) -> list[list[str]]:
        """As `engines.Drawer` says; the endpoint itself decides what it does with prompts that are too long for it.

        Raises:
            ConfigError: the key is missing or refused, the model unknown, or the answer is no chat completion.
            StageError: the endpoint stayed away.
        """
        api = ChatApi(f"policy {self.name}", self.params, wait=self.wait)
        bodies = [
            _body(prompt, params, seed + index * count + k)
            for index, prompt in enumerate(prompts)
            for k in range(count)
        ]
        texts: list[str] = []
        for answer in api.ask(bodies):
            if not isinstance(answer, str):
                raise answer
            texts.append(answer)
            report(len(texts) / len(bodies))
        return [texts[start : start + count] for start in range(0, len(texts), count)]


def _body(prompt: Sequence[Message], params: SamplingParams, seed: int) -> dict[str, Any]:
    messages, tools = split_tools(prompt)
    return {
        "messages": messages,
        **({"tools": tools} if tools else {}),
        "temperature": params.temperature,
        "top_p": params.top_p,
        "max_tokens": params.max_new_tokens,
        "seed": seed,
    }
