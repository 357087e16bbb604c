"""`flywheel-trainer serve`: answers chats with one model until SIGTERM, then finishes what it has begun."""

import argparse
import logging
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Final

from flywheel_contract.exit_codes import ExitCode
from flywheel_contract.paths import SERVER_PORT
from flywheel_trainer import logs
from flywheel_trainer.artifacts import Store
from flywheel_trainer.errors import StageError
from flywheel_trainer.model_files import check_model

_log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


def main(arguments: list[str]) -> int:
    """Serves as told and answers the exit code."""
    parsed = _parser().parse_args(arguments)
    logs.configure(stage="serve")
    # A server has nothing to fetch: what is missing shall fail at once, not after the network's timeouts.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # As process 1 of a pod it would otherwise ignore SIGTERM while the model loads.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        folder = Store().local(parsed.model)
        check_model(folder)
    except StageError as error:
        _log.error("cannot serve: %s", error)
        return int(error.exit_code)
    if _has_vllm():
        return _serve_with_vllm(vllm_command(folder, parsed.name, parsed.host, parsed.port, parsed.tool_call_parser))
    from flywheel_trainer.serving.app import serve  # noqa: PLC0415 -- vLLM needs none of it

    serve(folder, parsed.name, parsed.host, parsed.port)
    return int(ExitCode.DONE)


def vllm_command(folder: Path, name: str, host: str, port: int, tool_call_parser: str | None) -> list[str]:
    """vLLM's own command line for the model. Without a parser vLLM refuses requests with `tools`."""
    tools = ["--enable-auto-tool-choice", "--tool-call-parser", tool_call_parser] if tool_call_parser else []
    return ["vllm", "serve", str(folder), "--served-model-name", name, "--host", host, "--port", str(port), *tools]


def _has_vllm() -> bool:
    if shutil.which("vllm") is None:
        return False
    import torch  # noqa: PLC0415 -- seconds, for a question that mostly does not arise

    return torch.cuda.is_available()


def _serve_with_vllm(command: list[str]) -> int:
    _log.info("starting %s", " ".join(command))
    # The same process goes on as vLLM, so that SIGTERM reaches it.
    os.execvp(command[0], command)


def _model_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no Kubernetes name")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flywheel-trainer serve", description="Serves one model by OpenAI's protocol."
    )
    parser.add_argument("--model", required=True, help="URI of the model folder")
    parser.add_argument("--name", required=True, type=_model_name, help="the name that /v1/models lists")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")
    parser.add_argument("--port", type=int, default=SERVER_PORT, help="default: %(default)s")
    parser.add_argument("--tool-call-parser", help="vLLM's parser for the model's tool calls, e.g. hermes")
    return parser
