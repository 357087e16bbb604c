"""`flywheel-trainer probe`: whether the model server in this pod gives a real reply. Only the standard library."""

import argparse
import http.client
import json
import sys
from typing import Any

from flywheel_contract.paths import SERVER_PORT


def main(arguments: list[str]) -> int:
    """0 when the server has generated at least one token, 1 with a sentence on stderr otherwise."""
    parser = argparse.ArgumentParser(prog="flywheel-trainer probe", description="Asks the model server for a reply.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=SERVER_PORT)
    parser.add_argument("--timeout", type=float, default=50.0, help="seconds (default: %(default)s)")
    parsed = parser.parse_args(arguments)
    try:
        problem = failure(parsed.host, parsed.port, parsed.timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        sys.stderr.write(f"no reply from {parsed.host}:{parsed.port}: {problem}\n")
        return 1
    return 0


def failure(host: str, port: int, timeout: float) -> str | None:
    """What is wrong with the server's reply to a short chat, or None.

    Raises:
        OSError, http.client.HTTPException, ValueError: there is no server, or no JSON from it.
    """
    status, models = _ask(host, port, timeout, "GET", "/v1/models")
    if status != 200:
        return f"/v1/models answered {status}"
    # vLLM refuses any name but those that it lists.
    request = {"model": models["data"][0]["id"], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    status, reply = _ask(host, port, timeout, "POST", "/v1/chat/completions", request)
    if status != 200:
        return f"/v1/chat/completions answered {status}: {str(reply)[:200]}"
    content = reply["choices"][0]["message"].get("content")
    if not isinstance(content, str) or not reply["usage"]["completion_tokens"] > 0:
        return f"the reply has no tokens: {str(reply)[:200]}"
    return None


def _ask(
    host: str, port: int, timeout: float, method: str, path: str, request: dict[str, Any] | None = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        body = None if request is None else json.dumps(request)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        return response.status, json.loads(text) if response.status == 200 else text
    finally:
        connection.close()
