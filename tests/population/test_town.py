"""The population against a product on loopback: cookies, retries, counts, and that it ends."""

import asyncio
import subprocess
import sys

import pytest

from e2e.population import town as towns
from e2e.population.browser import ATTEMPTS, Browser, RequestError
from e2e.population.settings import Habits, Settings
from e2e.population.tally import EXAMPLES, Tally
from e2e.population.town import DAYS_OVER, OVERDUE, REQUESTS_SPENT, STOPPED, Town
from tests.population.product import Product, serving

QUICK = Habits(think_seconds=0.0, streamed=0.5, thumbs=0.5)


def settings(url: str, **given: object) -> Settings:
    base = {"users": 12, "days": 3, "day_seconds": 0.3, "seed": 1, "habits": QUICK, "report_seconds": 0.05}
    return Settings(url, **{**base, **given})  # type: ignore[arg-type] # of the fields' own types


async def lived(product: Product, **given: object) -> tuple[Tally, list[str]]:
    lines: list[str] = []
    async with serving(product) as url:
        tally = await Town(settings(url, **given), lambda t: lines.append(t.to_json())).run()
    return tally, lines


async def test_people_come_talk_and_keep_their_cookie_and_arm() -> None:
    product = Product()
    tally, lines = await lived(product)
    assert tally.lost == 0, tally.examples
    assert tally.users == len(product.users) > 5
    assert tally.visits == product.sessions > tally.users
    assert tally.answered == tally.asked == len(product.bodies)
    assert 0 < tally.streamed < tally.asked
    assert product.strangers == tally.switched == 0
    assert sum(tally.arms["t"].values()) == tally.users
    assert tally.liking("treatment") > tally.liking("control")
    assert tally.feedback == len(product.feedback) > 0
    assert {f["type"] for f in product.feedback} == {"thumbs_up"}
    assert (tally.done, tally.why) == (True, DAYS_OVER)
    assert Tally.from_json(lines[-1]) == tally
    assert len(lines) > 3


async def test_a_conversation_grows_but_not_without_bounds() -> None:
    product = Product()
    await lived(product, habits=Habits(going_on=50.0, longest=12, think_seconds=0.0), users=4)
    lengths = {len(body["messages"]) for body in product.bodies}  # type: ignore[arg-type] # a list
    assert {1, 3, 5, towns.REMEMBERED} <= lengths
    assert max(lengths) == towns.REMEMBERED


async def test_who_is_not_enrolled_is_counted_apart() -> None:
    tally, _ = await lived(Product(test=None))
    assert tally.arms == {}
    assert set(tally.replies) == {"none"}


async def test_a_changed_arm_is_seen() -> None:
    tally, _ = await lived(Product(fickle=True))
    assert tally.switched > 0


async def test_a_broken_connection_is_tried_again_and_an_error_is_not() -> None:
    tally, _ = await lived(Product(cut=3))
    assert tally.lost == 0
    assert sum(tally.retried.values()) == 3
    failing = Product(status=502)
    tally, _ = await lived(failing)
    assert tally.answered == 0
    assert tally.failed == {"502": len(failing.bodies)}
    assert len(tally.examples) == min(EXAMPLES, tally.lost)
    assert "no" in tally.examples[0]


async def test_replies_without_text_and_streams_without_end_are_failures() -> None:
    tally, _ = await lived(Product(broken=True))
    assert set(tally.failed) == {"broken"}


async def test_a_product_that_is_gone_fails_after_all_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e2e.population.browser.FIRST_WAIT_SECONDS", 0.001)
    async with serving(Product()) as url:
        pass
    retried: list[str] = []
    async with Browser(url, 5, retried.append).visit() as visit:
        with pytest.raises(RequestError, match=f"{ATTEMPTS} times"):
            await visit.session(training=True)
    assert len(retried) == ATTEMPTS - 1


async def test_a_product_that_never_answers_times_out() -> None:
    product = Product(hold=asyncio.Event())
    async with serving(product) as url, Browser(url, 0.2, lambda _: None).visit() as visit:
        await visit.session(training=True)
        with pytest.raises(RequestError, match="no answer") as failed:
            await visit.chat([{"role": "user", "content": "hi"}], max_tokens=4, stream=False)
        product.hold.set()  # type: ignore[union-attr] # set above
    assert failed.value.kind == "timeout"


async def test_it_ends_when_its_requests_are_spent() -> None:
    tally, _ = await lived(Product(), max_requests=7, days=1000, day_seconds=0.1)
    assert (tally.asked, tally.why) == (7, REQUESTS_SPENT)


async def test_it_ends_when_it_is_told_to() -> None:
    product = Product()
    async with serving(product) as url:
        town = Town(settings(url, days=1000), lambda tally: town.stop() if tally.answered else None)
        tally = await town.run()
    assert (tally.why, tally.done) == (STOPPED, True)


def test_the_program_says_what_it_does_not_understand() -> None:
    for arguments in ([], ["{"], ['{"url": "x"}']):
        command = [sys.executable, "-m", "e2e.population", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr


async def test_the_program_prints_reports_and_ends() -> None:
    product = Product()
    async with serving(product) as url:
        given = settings(url, users=4, days=1).to_json()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "e2e.population", given, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert Tally.from_json(out.decode().splitlines()[-1]).done


async def test_visits_that_do_not_end_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towns, "CLOSING_SECONDS", 0.0)
    monkeypatch.setattr("e2e.population.browser.FIRST_WAIT_SECONDS", 30)
    tally, _ = await lived(Product(cut=100), days=1, timeout_seconds=0.3)
    assert (tally.why, tally.done) == (OVERDUE, True)
