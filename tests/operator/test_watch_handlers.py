"""kopf as the watcher: what it is told to watch, and that it writes nothing."""

# ruff: noqa: ANN401 -- fixtures that are functions

import asyncio
import gc
import json
import threading
import time
import warnings
from typing import Any

import kopf
import pytest

from flywheel_operator.kube.client import Api
from flywheel_operator.kube.resources import CHILDREN, CONFIG_MAP, GENERATION, OWN, Kind, Raw
from flywheel_operator.watch import handlers
from tests.operator.kube_objects import MARKS, generation_raw


def test_settings_follow_what_production_taught() -> None:
    settings = handlers.settings()
    assert not settings.posting.enabled
    assert settings.scanning.disabled
    assert (settings.watching.server_timeout, settings.watching.client_timeout) == (300, 330)
    assert len(settings.watching.label_selectors) == len(CHILDREN)


def test_only_raw_events_are_handled() -> None:
    registry = handlers.registry(lambda *_: None, in_cluster=True)
    assert len(registry._watching.get_all_handlers()) == len(CHILDREN) + len(OWN)
    for others in (registry._changing, registry._spawning, registry._indexing, registry._webhooks):
        assert others.get_all_handlers() == []


async def the_end_of_the_thread() -> None:
    for thread in threading.enumerate():
        if thread.name == "kopf":
            await asyncio.to_thread(thread.join, 15)
            assert not thread.is_alive()
    with warnings.catch_warnings():
        # kopf leaves the closing of its connections to the end of the process, which here does not come.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.apiserver
async def test_events_arrive_and_kopf_writes_nothing(
    api: Api, namespace: str, kubectl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubectl.kubeconfig)
    heard: list[tuple[str, str, bool]] = []
    times: dict[str, float] = {}

    def notify(kind: Kind, raw: Raw, deleted: bool) -> None:
        name = raw["metadata"]["name"]
        heard.append((kind.kind, name, deleted))
        times[name] = time.monotonic()

    async def until(event: tuple[str, str, bool]) -> None:
        async with asyncio.timeout(15):
            while event not in heard:
                await asyncio.sleep(0.005)

    def manifest(name: str) -> Raw:
        raw = generation_raw(name)
        raw["metadata"]["namespace"] = namespace
        return raw

    before = await api.create(manifest("before"))
    watching = asyncio.create_task(handlers.Watcher(notify, (namespace,), in_cluster=False).run())
    await until(("Generation", "before", False))
    delays = []
    for number in range(5):
        started = time.monotonic()
        await api.create(manifest(f"g{number}"))
        await until(("Generation", f"g{number}", False))
        delays.append(times[f"g{number}"] - started)
    ours = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "ours", "namespace": namespace, "labels": MARKS},
    }
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "theirs", "namespace": namespace}}
    await api.create(theirs)
    await api.create(ours)
    await until(("ConfigMap", "ours", False))
    await api.delete(CONFIG_MAP, namespace, "ours")
    await until(("ConfigMap", "ours", True))
    assert not any(name == "theirs" for _, name, _ in heard)
    after = await api.get(GENERATION, namespace, "before")
    assert json.dumps(after, sort_keys=True) == json.dumps(before, sort_keys=True)
    assert sorted(delays)[2] < 0.5
    print(f"from the request to the queue: median {sorted(delays)[2] * 1000:.0f} ms")
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    await the_end_of_the_thread()


async def test_when_kopf_ends_so_does_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> None:
        raise kopf.LoginError("no credentials")

    watcher = handlers.Watcher(lambda *_: None, (), in_cluster=False)
    monkeypatch.setattr(kopf, "run", fails)
    with pytest.raises(kopf.LoginError):
        await asyncio.wait_for(watcher.run(), 5)
    monkeypatch.setattr(kopf, "run", lambda **_: None)
    await asyncio.wait_for(watcher.run(), 5)
