"""transformers' own server with one model in it.

`transformers serve` takes only the folder's path for a model name, lists the Hub's cache as its models, lets anybody
unload the model, and has the first request decide the temperature of all. The pieces are its own; what stands before
them here settles these four: every request means the one model, `/v1/models` names it, there is no unloading, and the
sampling is the model's generation_config. A request's own temperature, top_p and seed are therefore not followed (vLLM
follows them).
"""

import json
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

import torch
import uvicorn
from transformers import ContinuousBatchingConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import GenerationState

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

COMPLETIONS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
HIDDEN: Final = ("/load_model", "/reset", "/v1/audio/transcriptions")
NOT_FOLLOWED: Final = ("temperature", "top_p", "seed", "generation_config", "max_completion_tokens")

CPU_BATCHING: Final = {"block_size": 32, "num_blocks": 512, "max_batch_tokens": 512}
"""16,384 tokens of context for all requests together: 1.1 GB with a model of 135 M parameters. Unbounded, it takes what
there is."""


def serve(folder: Path, name: str, host: str, port: int) -> None:
    """Loads the model, serves it, and returns when SIGTERM has come and all requests are answered."""
    with tempfile.TemporaryDirectory(prefix="flywheel-serve-") as home:
        # The server calls a model by its path. A link of the right name, and a path of one word, make that the name.
        (Path(home) / name).symlink_to(folder.resolve())
        os.chdir(home)
        manager = _load(name)
        state = GenerationState(continuous_batching=True, cb_config=_batching())
        app = OneModel(_server(manager, state), name)
        # uvicorn handles SIGTERM itself, and raises it again when it is done: an answered SIGTERM is no failure.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False)).run()
        finally:
            state.shutdown()
            manager.shutdown()
            os.chdir("/")


def _load(name: str) -> ModelManager:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    manager = ModelManager(device=device, dtype="bfloat16", force_model=name)
    for loaded in manager.loaded_models.values():
        # Without it temperature and top_p are ignored.
        loaded.model.generation_config.do_sample = True
    return manager


def _batching() -> ContinuousBatchingConfig:
    return ContinuousBatchingConfig() if torch.cuda.is_available() else ContinuousBatchingConfig(**CPU_BATCHING)


def _server(manager: ModelManager, state: GenerationState) -> App:
    return build_server(
        manager,
        ChatCompletionHandler(model_manager=manager, generation_state=state, chat_template_kwargs={}),
        completion_handler=CompletionHandler(model_manager=manager, generation_state=state),
        response_handler=ResponseHandler(model_manager=manager, generation_state=state, chat_template_kwargs={}),
        transcription_handler=TranscriptionHandler(manager, state),
        generation_state=state,
    )


class OneModel:
    """An ASGI application before another one, as the module's docstring tells."""

    def __init__(self, app: App, name: str) -> None:
        self._app, self._name = app, name
        self._since = int(time.time())

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it."""
        path = scope.get("path") if scope["type"] == "http" else None
        if path == "/v1/models":
            card = {"id": self._name, "object": "model", "created": self._since, "owned_by": "flywheel"}
            await _answer(send, 200, {"object": "list", "data": [card]})
        elif path in HIDDEN:
            await _answer(send, 404, {"error": {"message": f"there is no {path} here", "type": "not_found"}})
        elif path in COMPLETIONS and scope["method"] == "POST":
            body = rewritten(await _body(receive), self._name)
            length = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
            headers = [*length, (b"content-length", str(len(body)).encode())]
            await self._app({**scope, "headers": headers}, _replay(body, receive), send)
        else:
            await self._app(scope, receive, send)


def rewritten(body: bytes, name: str) -> bytes:
    """The request's body, meant for the one model. What is no JSON object is left to the server to refuse."""
    try:
        request = json.loads(body)
    except ValueError:
        return body
    if not isinstance(request, dict):
        return body
    limit = request.get("max_completion_tokens")
    if limit is not None:
        request.setdefault("max_tokens", limit)
    kept = {key: value for key, value in request.items() if key not in NOT_FOLLOWED}
    return json.dumps({**kept, "model": name}).encode()


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, and afterwards what the client does next (hang up)."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _answer(send: Send, status: int, value: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})
