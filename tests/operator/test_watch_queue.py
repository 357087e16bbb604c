"""The queue: nothing is lost, nothing runs twice at once, pauses grow and stay within their bounds."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flywheel_operator.watch.workqueue import AT_ONCE, LONGEST_PAUSE, SHORTEST_PAUSE, WorkQueue, pause


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock, lambda: 0.5)


def test_a_key_stands_in_the_queue_once(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.add("b")
    queue.add("a")
    assert [queue.poll(), queue.poll(), queue.poll()] == ["a", "b", None]


def test_a_key_that_is_added_during_its_pass_is_looked_at_again_afterwards(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert queue.poll() == "a"
    queue.add("a")
    queue.add("a")
    assert queue.poll() is None
    queue.done("a")
    assert queue.poll() == "a"
    queue.done("a")
    assert queue.poll() is None


def test_timers(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add_after("late", 10)
    queue.add_after("soon", 5)
    queue.add_after("soon", 50)
    assert queue.poll() is None
    clock.now += 60
    assert [queue.poll(), queue.poll()] == ["soon", "late"]


def test_a_pass_ends_the_timer_that_was_set_before_it(queue: WorkQueue[str], clock: Clock) -> None:
    queue.add_after("a", 5)
    queue.add("a")
    assert queue.poll() == "a"
    queue.done("a")
    clock.now += 60
    assert queue.poll() is None


def test_failures_pause_longer_and_longer_until_one_pass_succeeds(queue: WorkQueue[str], clock: Clock) -> None:
    assert [queue.retry("a") for _ in range(4)] == [1, 2, 4, 8]
    assert queue.failures("a") == 4
    queue.succeeded("a")
    assert queue.failures("a") == 0
    assert queue.retry("a") == 1


def test_a_conflict_is_tried_again_at_once_but_not_for_ever(queue: WorkQueue[str]) -> None:
    delays = [queue.retry("a", at_once=True) for _ in range(AT_ONCE + 1)]
    assert delays == [0.0] * AT_ONCE + [8.0]
    assert queue.poll() == "a"


def test_ages(queue: WorkQueue[str], clock: Clock) -> None:
    assert (queue.oldest_seconds(), queue.longest_pass_seconds(), len(queue)) == (0, 0, 0)
    queue.add("a")
    clock.now += 3
    queue.add("b")
    assert (queue.oldest_seconds(), len(queue)) == (3, 2)
    queue.poll()
    clock.now += 2
    assert (queue.oldest_seconds(), queue.longest_pass_seconds(), len(queue)) == (2, 2, 1)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_pauses_are_between_a_second_and_five_minutes(failures: int, chance: float) -> None:
    assert SHORTEST_PAUSE <= pause(failures, chance) <= LONGEST_PAUSE
    assert pause(failures, chance) >= 0.8 * min(2.0 ** min(failures - 1, 20), LONGEST_PAUSE)


async def test_get_waits_for_a_key_for_a_timer_and_for_the_end() -> None:
    queue: WorkQueue[str] = WorkQueue(asyncio.get_running_loop().time)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    assert await waiting == "a"
    queue.add_after("b", 0.02)
    assert await queue.get() == "b"
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.close()
    assert await waiting is None
    queue.add("c")
    assert await queue.get() is None


async def test_workers_share_the_work_and_never_one_key() -> None:
    queue: WorkQueue[str] = WorkQueue(asyncio.get_running_loop().time)
    busy: set[str] = set()
    passes: list[str] = []

    async def work() -> None:
        while (key := await queue.get()) is not None:
            assert key not in busy
            busy.add(key)
            await asyncio.sleep(0.001)
            busy.remove(key)
            passes.append(key)
            queue.done(key)

    workers = [asyncio.create_task(work()) for _ in range(4)]
    for _ in range(20):
        for key in "abc":
            queue.add(key)
        await asyncio.sleep(0.0005)
    while len(queue) or busy:
        await asyncio.sleep(0.001)
    queue.close()
    await asyncio.gather(*workers)
    assert set(passes) == set("abc")


KEYS = st.sampled_from("abc")


class QueueMachine(RuleBasedStateMachine):
    """Whatever happens: every request for a look is answered by a pass that begins after it."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue: WorkQueue[str] = WorkQueue(self.clock, lambda: 0.5)
        self.wanted: dict[str, float] = {}
        self.active: set[str] = set()

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.wanted[key] = self.clock.now

    @rule(key=KEYS, delay=st.floats(0, 20))
    def add_after(self, key: str, delay: float) -> None:
        self.queue.add_after(key, delay)
        self.wanted[key] = min(self.wanted.get(key, float("inf")), self.clock.now + delay)

    @rule(key=KEYS)
    def retry(self, key: str) -> None:
        delay = self.queue.retry(key)
        self.wanted[key] = min(self.wanted.get(key, float("inf")), self.clock.now + delay)

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def poll(self) -> None:
        due = {key for key, at in self.wanted.items() if at <= self.clock.now and key not in self.active}
        key = self.queue.poll()
        assert (key is None) == (not due)
        if key is not None:
            assert key in due
            del self.wanted[key]
            self.active.add(key)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.active)))
        self.active.remove(key)
        self.queue.done(key)

    @invariant()
    def depth_is_bounded(self) -> None:
        assert 0 <= len(self.queue) <= 3
        assert self.queue.oldest_seconds() >= 0


TestQueueMachine = QueueMachine.TestCase
