"""kopf as the watcher, and as nothing else: events go to our queue, and no handler does any work.

kopf runs in a thread with an event loop of its own: in ours it would take every task that starts after it for its
own and end it when it stops, and it would take the signal handlers over.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final

import kopf

from flywheel_operator.kube.resources import CHILDREN, OWN, Kind, Raw
from flywheel_operator.model.names import LABEL_MANAGED_BY, MANAGED_BY

SERVER_TIMEOUT: Final = 300
CLIENT_TIMEOUT: Final = 330
CHUNK_SIZE: Final = 500
DELETED: Final = "DELETED"

Notify = Callable[[Kind, Raw, bool], None]
"""Called in our event loop with the kind, the object, and whether it is gone."""


def settings() -> kopf.OperatorSettings:
    """kopf's settings. It looks for no namespaces and CRDs that come and go: we need not be allowed to list them."""
    out = kopf.OperatorSettings()
    out.posting.enabled = False
    out.scanning.disabled = True
    out.watching.server_timeout = SERVER_TIMEOUT
    out.watching.client_timeout = CLIENT_TIMEOUT
    out.watching.chunk_size = CHUNK_SIZE
    out.process.ultimate_exiting_timeout = None
    for kind in CHILDREN:
        out.watching.label_selectors[kind.group, kind.version, kind.plural] = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
    return out


def registry(emit: Callable[[Kind, Raw], None], *, in_cluster: bool) -> kopf.OperatorRegistry:
    """Handlers that pass every event of our kinds, and of what we made, to `emit` (in kopf's thread)."""
    out = kopf.OperatorRegistry()

    def login(**kwargs: Any) -> Any:  # noqa: ANN401 -- kopf's keyword arguments and its ConnectionInfo, both untyped here
        return kopf.login_with_service_account(**kwargs) if in_cluster else kopf.login_with_kubeconfig(**kwargs)

    kopf.on.login(registry=out)(login)
    for kind in OWN.values():
        kopf.on.event(kind.group, kind.version, kind.plural, id=kind.plural, registry=out)(_handler(kind, emit))
    for kind in CHILDREN:
        # The selector of `settings` filters at the server; the filter here is what kopf looks at once more.
        kopf.on.event(
            kind.group,
            kind.version,
            kind.plural,
            id=kind.plural,
            labels={LABEL_MANAGED_BY: MANAGED_BY},
            registry=out,
        )(_handler(kind, emit))
    return out


def _handler(kind: Kind, emit: Callable[[Kind, Raw], None]) -> Callable[..., Awaitable[None]]:
    async def handle(event: Raw, **_: object) -> None:
        emit(kind, event)

    return handle


class Watcher:
    """kopf in its thread."""

    def __init__(self, notify: Notify, namespaces: tuple[str, ...], *, in_cluster: bool) -> None:
        """Without `namespaces`, the whole cluster is watched."""
        self._notify = notify
        self._namespaces = namespaces
        self._in_cluster = in_cluster
        self._stop = threading.Event()

    async def run(self) -> None:
        """Watches until it is cancelled, or until kopf ends; its error is raised."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        thread = threading.Thread(target=self._kopf, args=(loop, ended), name="kopf", daemon=True)
        thread.start()
        try:
            await ended
        finally:
            self._stop.set()

    def _kopf(self, loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[None]") -> None:
        def emit(kind: Kind, event: Raw) -> None:
            loop.call_soon_threadsafe(self._notify, kind, event["object"], event["type"] == DELETED)

        def finish(error: BaseException | None) -> None:
            if not ended.done():
                ended.set_exception(error) if error else ended.set_result(None)

        error: BaseException | None = None
        try:
            kopf.run(
                registry=registry(emit, in_cluster=self._in_cluster),
                settings=settings(),
                # Its own default asks for the user's name, and an arbitrary uid in a container has none.
                identity="flywheel-operator",
                standalone=True,
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                stop_flag=self._stop,
            )
        except BaseException as caught:  # noqa: BLE001 -- the thread ends here; who awaits `run` gets the error
            error = caught
        try:
            loop.call_soon_threadsafe(finish, error)
        except RuntimeError:  # the loop is closed: nobody waits for the end of the thread any more
            logging.getLogger(__name__).debug("kopf ended after our event loop: %r", error)
