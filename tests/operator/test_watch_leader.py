"""One leads, the others stand by; the lease changes hands fast when it is given back, and only then."""

# ruff: noqa: ANN401 -- fixtures that are functions

import asyncio
import time
from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException

from flywheel_operator.kube import errors
from flywheel_operator.kube.client import Api
from flywheel_operator.kube.resources import Raw
from flywheel_operator.watch import leader as leaders
from flywheel_operator.watch.leader import LEASE_SECONDS, RENEW_SECONDS, REQUEST_SECONDS, RETRY_SECONDS, Leader


def test_a_leader_that_cannot_renew_stops_before_its_lease_ends() -> None:
    assert RETRY_SECONDS + RENEW_SECONDS + 2 * REQUEST_SECONDS < LEASE_SECONDS


def candidate(api: Api, namespace: str, identity: str) -> Leader:
    return Leader(api, name="l", namespace=namespace, identity=identity, clock=time.monotonic)


@pytest.mark.apiserver
async def test_hand_over(api: Api, namespace: str, kubectl: Any) -> None:
    first, second = candidate(api, namespace, "first"), candidate(api, namespace, "second")
    assert first.age() is None
    await asyncio.wait_for(first.acquire(), 5)
    assert first.leading
    age = first.age()
    assert age is not None
    assert age < 5
    waiting = asyncio.create_task(second.acquire())
    holding = asyncio.create_task(first.hold())
    await asyncio.sleep(RETRY_SECONDS + 1)
    assert not waiting.done()
    assert not second.leading
    assert kubectl.json("get", "lease", "l")["spec"]["holderIdentity"] == "first"
    # SIGTERM: the lease is given back, and the next leader need not wait until it runs out.
    holding.cancel()
    started = time.monotonic()
    await first.release()
    assert not first.leading
    await asyncio.wait_for(waiting, RETRY_SECONDS + 2)
    assert time.monotonic() - started < RETRY_SECONDS + 1
    assert kubectl.json("get", "lease", "l")["spec"]["holderIdentity"] == "second"
    assert kubectl.json("get", "lease", "l")["spec"]["leaseTransitions"] == 1
    # Releasing what is someone else's, or what is not there, changes nothing.
    await candidate(api, namespace, "third")._lock.give_back()
    await first.release()
    assert kubectl.json("get", "lease", "l")["spec"]["holderIdentity"] == "second"


@pytest.mark.apiserver
async def test_a_restarted_container_takes_its_own_lease_over_at_once(api: Api, namespace: str) -> None:
    await candidate(api, namespace, "pod-1").acquire()
    await asyncio.wait_for(candidate(api, namespace, "pod-1").acquire(), 1)


@pytest.mark.apiserver
async def test_a_lease_that_someone_took_is_lost(
    api: Api, namespace: str, kubectl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaders, "RENEW_SECONDS", 2.5)
    first = candidate(api, namespace, "first")
    await first.acquire()
    holding = asyncio.create_task(first.hold())
    kubectl("patch", "lease", "l", "--type=merge", "-p", '{"spec":{"holderIdentity":"thief"}}')
    await asyncio.wait_for(holding, 12)
    assert not first.leading


class Broken(Api):
    """Where the connection breaks."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def get(self, *_: Any) -> Raw | None:
        if self.error:
            raise self.error
        await asyncio.sleep(60)
        return None

    create = replace = get  # type: ignore[assignment] -- all break alike


@pytest.mark.parametrize(
    "broken", [Broken(errors.UnavailableError("reset")), Broken(errors.ForbiddenError("no")), Broken()]
)
async def test_a_broken_connection_is_no_end_of_the_election(broken: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaders, "REQUEST_SECONDS", 0.01)
    lock = leaders._Lock(broken, "l", "ns", "me", time.monotonic)
    found, record = await lock.get("l", "ns")
    assert not found
    assert isinstance(record, ApiException)
    assert not await lock.create("l", "ns", None)
    assert not await lock.update("l", "ns", None)
    assert lock.age() is None


async def test_a_release_that_fails_is_harmless(caplog: Any) -> None:
    await candidate(Broken(errors.UnavailableError("reset")), "ns", "cut-off").release()
    assert "the lease was not released: reset" in caplog.text
