"""Leader election by a coordination.k8s.io Lease: one of several replicas works, the others stand by."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from kubernetes.aio.client import ApiClient, CoordinationV1Api
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from flywheel_operator.kube.errors import TRANSPORT_ERRORS, from_api

# The last renewal that can succeed begins RETRY + RENEW seconds after the one before and takes two requests at most:
# 2 + 6 + 2 * 3 = 14 seconds. A leader that cannot renew has stopped before its lease ends at 15.
LEASE_SECONDS: Final = 15
RENEW_SECONDS: Final = 6
RETRY_SECONDS: Final = 2
REQUEST_SECONDS: Final = 3

_log = logging.getLogger(__name__)


class Leader:
    """A candidate for the Lease."""

    def __init__(
        self, client: ApiClient, *, name: str, namespace: str, identity: str, clock: Callable[[], float]
    ) -> None:
        """`clock` is monotonic, in seconds."""
        self._lock = _Lock(client, name, namespace, identity, clock)
        self._client = client
        self._election = LeaderElection(
            Config(
                self._lock,
                lease_duration=LEASE_SECONDS,
                renew_deadline=RENEW_SECONDS,
                retry_period=RETRY_SECONDS,
                onstarted_leading=_nothing,
                onstopped_leading=_nothing,
            )
        )
        self.leading = False

    async def acquire(self) -> None:
        """Waits until the Lease is ours."""
        _log.info("%s stands by for the lease %s/%s", self._lock.identity, self._lock.namespace, self._lock.name)
        await self._election.acquire()
        self.leading = True
        _log.info("%s leads", self._lock.identity)

    async def hold(self) -> None:
        """Renews the Lease; returns when it is lost."""
        try:
            await self._election.renew_loop()
        finally:
            self.leading = False
        _log.error("%s lost the lease %s/%s", self._lock.identity, self._lock.namespace, self._lock.name)

    async def release(self) -> None:
        """Gives the Lease back, so that the next leader need not wait until it runs out. Failing is harmless."""
        self.leading = False
        with contextlib.suppress(*TRANSPORT_ERRORS):
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    await self._lock.give_back()
            except ApiException as error:
                _log.warning("the lease was not released: %s", from_api(error, "release"))

    def age(self) -> float | None:
        """Seconds since the API server last answered about the Lease; None where it never has."""
        return self._lock.age()


class _Lock:
    """The library's LeaseLock with short requests, and with a lost connection being an answer like any other: the
    library takes it for a bug and would end the election."""

    def __init__(self, client: ApiClient, name: str, namespace: str, identity: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.namespace = namespace
        self.identity = identity
        self._inner = LeaseLock(name, namespace, identity, client)
        self._leases = CoordinationV1Api(client)
        self._clock = clock
        self._answered: float | None = None

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                found, record = await self._inner.get(name, namespace)
        except TRANSPORT_ERRORS as error:
            return False, ApiException(status=0, reason=repr(error))
        if found or getattr(record, "status", 0) == 404:
            self._answered = self._clock()
        return found, record

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:  # noqa: ANN401 -- the library's
        return await self._write(self._inner.create(name, namespace, election_record))

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:  # noqa: ANN401 -- the library's
        return await self._write(self._inner.update(name, namespace, updated_record))

    async def give_back(self) -> None:
        lease = await self._leases.read_namespaced_lease(self.name, self.namespace)
        if lease.spec.holder_identity != self.identity:
            return
        lease.spec.holder_identity = ""
        lease.spec.lease_duration_seconds = 1
        lease.spec.renew_time = datetime.now(UTC)
        await self._leases.replace_namespaced_lease(self.name, self.namespace, lease)

    def age(self) -> float | None:
        return None if self._answered is None else self._clock() - self._answered

    async def _write(self, call: Any) -> bool:  # noqa: ANN401 -- a coroutine of the untyped library
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                written = bool(await call)
        except TRANSPORT_ERRORS as error:
            _log.warning("the lease was not written: %r", error)
            return False
        if written:
            self._answered = self._clock()
        return written


async def _nothing() -> None:
    """We call the parts of the election ourselves: its `run` would not notice that the work has died."""
