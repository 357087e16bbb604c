"""The ASGI applications: one for users, one for Prometheus and the kubelet."""

import time
from collections.abc import Awaitable, Callable
from typing import Final

from flywheel_gateway.chat import CHAT, COMPLETIONS, Conversation
from flywheel_gateway.errors import ApiError, UpstreamError
from flywheel_gateway.identity import Identity
from flywheel_gateway.services import Services
from flywheel_gateway.sessions import open_session, take_events
from flywheel_gateway.web import DisconnectedError, Headers, Message, Receive, Request, Send, send_bytes, send_json

App = Callable[[Message, Receive, Send], Awaitable[None]]

_METHODS: Final = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/sessions": "POST",
    "/v1/events": "POST",
    "/v1/models": "GET",
    "/health": "GET",
}
GONE: Final = 499
"""What is counted for a client that left; nobody gets it."""


def user_app(services: Services) -> App:
    """What users reach, and the router."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        path = request.path if request.path in _METHODS else "other"
        began = time.monotonic()
        services.metrics.in_flight.inc()
        status = 500
        headers: Headers = []
        try:
            status = await _route(services, request, send, headers)
        except ApiError as error:
            status = error.status
            if error.retry_after is not None:
                headers.append((b"retry-after", str(error.retry_after).encode()))
            if status in (408, 413, 431):
                headers.append((b"connection", b"close"))  # the rest of the body is not waited for
            await send_json(send, status, error.body(), headers)
        except DisconnectedError:
            status = GONE
            services.metrics.disconnects.inc()
        finally:
            services.metrics.in_flight.dec()
            services.metrics.answered(path, status, began)

    return app


async def _route(services: Services, request: Request, send: Send, headers: Headers) -> int:
    """Answers, and says with which status; `headers` gets what goes with every answer."""
    path = request.path
    if path not in _METHODS or (path == "/v1/completions" and not services.config.completions):
        raise ApiError(404, "not_found", "there is nothing at this path")
    if request.method != _METHODS[path]:
        raise ApiError(405, "method_not_allowed", f"use {_METHODS[path]}")
    if request.too_large_headers:
        raise ApiError(431, "headers_too_large", "the headers are too large")
    if path == "/health":
        return await _health(services, send)
    if path == "/v1/models":
        return await _models(services, send)
    identity = _identify(services, request, headers)
    if path == "/v1/sessions":
        await send_json(send, 201, await open_session(services, request, identity), headers)
        return 201
    if path == "/v1/events":
        await send_json(send, 202, await take_events(services, request, identity), headers)
        return 202
    dialect = CHAT if path == "/v1/chat/completions" else COMPLETIONS
    return await Conversation(services, request, send, identity, headers).answer(dialect)


def _identify(services: Services, request: Request, headers: Headers) -> Identity:
    """Who it is, counted and within the rate."""
    identity = services.identifier.identify(request)
    headers += services.identifier.set_cookie(identity)
    metrics = services.metrics
    if identity.forged:
        metrics.forged.inc()
    if identity.impostor:
        metrics.impostors.inc()
    if identity.cookie is not None:
        metrics.new_users.inc()
    wait = services.limiter.wait(identity.hashed, time.monotonic())
    if wait:
        metrics.limited.inc()
        raise ApiError(429, "rate_limited", "too many requests: wait a little", retry_after=wait)
    return identity


async def _models(services: Services, send: Send) -> int:
    try:
        body = await services.upstream.get("/v1/models")
    except UpstreamError as error:
        services.metrics.upstream_errors.labels(error.kind).inc()
        raise ApiError(502, f"upstream_{error.kind}", "the model server does not answer") from error
    await send_bytes(send, 200, body, b"application/json", [])
    return 200


async def _health(services: Services, send: Send) -> int:
    """Ready where a request would be served: not while we drain."""
    ready = await services.is_ready()
    status = 200 if ready else 503
    reason = "draining" if services.draining else "the model server does not answer"
    await send_json(send, status, {"status": "ok" if ready else reason}, [])
    return status


def metrics_app(services: Services) -> App:
    """/metrics, /health (ready) and /live; never reachable through the router."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path == "/metrics":
            await send_bytes(send, 200, services.metrics.text(), b"text/plain; version=0.0.4; charset=utf-8", [])
        elif path == "/health":
            await _health(services, send)
        elif path == "/live":
            alive = services.writer.alive
            await send_json(send, 200 if alive else 503, {"status": "ok" if alive else "the log's writer ended"}, [])
        else:
            await send_json(send, 404, ApiError(404, "not_found", "there is nothing at this path").body(), [])

    return app
