"""The model server with the tiny model, in a process of its own; and what stands before transformers' server."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flywheel_trainer.serving import probe, serve
from flywheel_trainer.serving.app import OneModel, rewritten
from tests.trainer_data.workbench import Workbench


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def chat(port: int, **request: Any) -> tuple[int, Any]:  # noqa: ANN401 -- JSON
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"messages": [{"role": "user", "content": "Do you like the sea?"}], **request}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, json.loads(text)


@pytest.fixture
def server(model_bench: Workbench, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = free_port()
    command = [sys.executable, "-m", "flywheel_trainer", "serve", "--model", "pvc://lab/models/one"]
    log = (tmp_path / "log").open("wb")
    environment = {**os.environ, **model_bench.environment()}
    process = subprocess.Popen(
        [*command, "--name", "luna-1", "--port", str(port)], env=environment, stderr=log, stdout=log
    )
    try:
        until = time.monotonic() + 400
        while probe.main(["--port", str(port), "--timeout", "60"]) != 0:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.5)
        yield process, port
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.mark.training
def test_the_server_answers_any_name_and_finishes_what_it_has_begun(
    server: tuple[subprocess.Popen[bytes], int],
) -> None:
    process, port = server
    for name in ("luna-1", "luna", "gpt-4"):
        status, reply = chat(port, model=name, max_completion_tokens=5, temperature=0.2, user="u1")
        assert status == 200, reply
        assert reply["usage"]["completion_tokens"] <= 5
        assert reply["model"].startswith("luna-1")
    assert chat(port, model="luna", n_choices_of_an_unknown_kind=3)[0] == 422
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for method, path, expected in (("GET", "/health", 200), ("POST", "/reset", 404), ("POST", "/load_model", 404)):
        connection.request(method, path)
        response = connection.getresponse()
        response.read()
        assert response.status == expected, path
    connection.close()

    answers: list[tuple[int, Any]] = []
    client = threading.Thread(target=lambda: answers.append(chat(port, model="luna", max_tokens=200)))
    client.start()
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    client.join()
    assert answers[0][0] == 200, answers
    assert process.wait(30) == 0


def test_a_server_without_a_usable_model_ends_with_the_reason(bench: Workbench) -> None:
    (bench.claim / "empty").mkdir()
    command = [sys.executable, "-m", "flywheel_trainer", "serve", "--model", "pvc://lab/empty", "--name", "luna"]
    found = subprocess.run(
        command, env={**os.environ, **bench.environment()}, capture_output=True, text=True, check=False
    )
    assert found.returncode == 66
    assert "has no config.json" in found.stderr + found.stdout


def test_the_name_must_be_one_of_kubernetes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serve.main(["--model", "pvc://lab/m", "--name", "../up"])
    assert "'../up' is no Kubernetes name" in capsys.readouterr().err


def test_vllm_is_started_with_the_same_name_and_port() -> None:
    command = serve.vllm_command(Path("/m"), "luna-1", "0.0.0.0", 8000, None)
    plain = "vllm serve /m --served-model-name luna-1 --host 0.0.0.0 --port 8000"
    assert " ".join(command) == plain
    with_tools = serve.vllm_command(Path("/m"), "luna-1", "0.0.0.0", 8000, "hermes")
    assert " ".join(with_tools) == f"{plain} --enable-auto-tool-choice --tool-call-parser hermes"


def test_no_server_is_no_reply(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert probe.main(["--port", str(port)]) == 1
    assert f"no reply from 127.0.0.1:{port}: ConnectionRefusedError" in capsys.readouterr().err


def test_the_probe_imports_neither_torch_nor_the_stages() -> None:
    code = (
        "import sys; from flywheel_trainer.__main__ import main; main(['probe', '--port', '1']);"
        "print(sorted({'torch', 'transformers', 'pyarrow', 'fsspec'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in found.stdout
    assert "transformers" not in found.stdout


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ((500, "broken"), "/v1/chat/completions answered 500: broken"),
        (
            (200, {"choices": [{"message": {"content": ""}}], "usage": {"completion_tokens": 0}}),
            "the reply has no tokens",
        ),
        ((200, {"choices": [{"message": {"content": "Hi"}}], "usage": {"completion_tokens": 1}}), None),
    ],
)
def test_only_a_reply_with_tokens_counts(
    monkeypatch: pytest.MonkeyPatch, reply: tuple[int, Any], problem: str | None
) -> None:
    answers = iter([(200, {"data": [{"id": "m"}]}), reply])
    monkeypatch.setattr(probe, "_ask", lambda *_: next(answers))
    found = probe.failure("h", 1, 1.0)
    assert found is None if problem is None else found is not None and found.startswith(problem)


def test_a_request_is_rewritten_for_the_one_model() -> None:
    body = json.dumps({"model": "x", "temperature": 2, "seed": 1, "max_completion_tokens": 7, "messages": []}).encode()
    assert json.loads(rewritten(body, "luna")) == {"model": "luna", "max_tokens": 7, "messages": []}
    assert rewritten(b"no json", "luna") == b"no json"
    assert rewritten(b"[1]", "luna") == b"[1]"


async def test_the_models_are_listed_and_a_body_in_pieces_is_put_together() -> None:
    seen: list[dict[str, Any]] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 -- ASGI
        seen.append({"body": (await receive())["body"], "headers": scope["headers"], "next": await receive()})

    pieces = iter(
        [
            {"type": "http.request", "body": b'{"model":', "more_body": True},
            {"type": "http.request", "body": b'"x"}'},
            {"type": "http.disconnect"},
        ]
    )
    sent: list[Any] = []

    async def receive() -> Any:  # noqa: ANN401
        return next(pieces)

    async def send(message: Any) -> None:  # noqa: ANN401
        sent.append(message)

    app = OneModel(inner, "luna-1")
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [(b"content-length", b"13")]}
    await app(scope, receive, send)
    body = b'{"model": "luna-1"}'
    assert seen == [
        {"body": body, "headers": [(b"content-length", str(len(body)).encode())], "next": {"type": "http.disconnect"}}
    ]
    await app({"type": "http", "method": "GET", "path": "/v1/models", "headers": []}, receive, send)
    assert json.loads(sent[-1]["body"])["data"][0]["id"] == "luna-1"
