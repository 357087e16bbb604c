"""Who gets into which arm: over 200,000 ids by the hash that nginx uses, which a running nginx confirms."""

import asyncio
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from flywheel_operator.manifests.router_config import RouterConfig, Timeouts, Upstream
from flywheel_operator.manifests.router_nginx import render
from tests.router.conftest import World
from tests.router.harness import PROXY, needs_nginx, read_head, routing

USERS = 200_000
Hashes = NDArray[np.uint32]
Arms = NDArray[np.str_]


def murmur2(texts: list[str]) -> Hashes:
    """MurmurHash2 with seed 0, as in nginx's `split_clients`, of ASCII texts of one length."""
    data = np.array([list(text.encode()) for text in texts], dtype=np.uint32)
    length, factor = data.shape[1], np.uint32(0x5BD1E995)
    hashed = np.full(len(texts), length, dtype=np.uint32)
    whole = length - length % 4
    for at in range(0, whole, 4):
        word = data[:, at] | data[:, at + 1] << 8 | data[:, at + 2] << 16 | data[:, at + 3] << 24
        word = word * factor
        word ^= word >> 24
        hashed = hashed * factor ^ word * factor
    for at in range(length - 1, whole - 1, -1):
        hashed ^= data[:, at] << (8 * (at - whole))
    if length % 4:
        hashed = hashed * factor
    hashed ^= hashed >> 13
    hashed = hashed * factor
    return hashed ^ hashed >> 15


def config(treatment: float, control: float, salt: str = "uid-1") -> RouterConfig:
    up = Upstream(("127.0.0.1:1",))
    return RouterConfig(
        lineage="luna", test="t", salt=salt, production=up, control=up, treatment=up,
        treatment_percent=treatment, control_percent=control,
    )  # fmt: skip


def arms(config: RouterConfig, hashes: Hashes) -> Arms:
    """The arms by the rendered slices."""
    block = re.search(r"split_clients .*?\{(.*?)\}", render(config), re.DOTALL)
    assert block
    total, bounds, names = 0, [], []
    for share, name in re.findall(r"(\S+) (\w+);", block[1]):
        names.append(name)
        if share != "*":
            total += round(float(share.rstrip("%")) * 100)
            bounds.append(total * 0xFFFFFFFF // 10_000)
    return np.array(names)[np.searchsorted(np.array(bounds, dtype=np.uint32), hashes, side="right")]


@pytest.fixture(scope="module")
def hashes() -> dict[str, Hashes]:
    """Of all users, by salt."""
    return {salt: murmur2([f"{salt}|user-{n:06}" for n in range(USERS)]) for salt in ("uid-1", "uid-2")}


def test_the_arms_have_their_shares(hashes: dict[str, Hashes]) -> None:
    got = arms(config(10, 10), hashes["uid-1"])
    counts = [int((got == name).sum()) for name in ("treatment", "control", "none")]
    assert stats.chisquare(counts, [0.1 * USERS, 0.1 * USERS, 0.8 * USERS]).pvalue > 0.001


def test_another_salt_draws_anew(hashes: dict[str, Hashes]) -> None:
    """Users of an arm of one test are spread over those of the next like all others."""
    one, two = (arms(config(30, 30, salt), hashed) for salt, hashed in hashes.items())
    names = ("treatment", "control", "none")
    table = [[int(((one == a) & (two == b)).sum()) for b in names] for a in names]
    assert stats.chi2_contingency(table).pvalue > 0.001


shares = st.integers(0, 5_000).map(lambda n: n / 100)


@settings(max_examples=50, deadline=None)
@given(st.tuples(shares, shares), st.tuples(shares, shares))
def test_ramping_moves_nobody_between_the_arms(treatment: tuple[float, float], control: tuple[float, float]) -> None:
    hashed = murmur2([f"uid-1|user-{n:06}" for n in range(5_000)])
    before, after = arms(config(treatment[0], control[0]), hashed), arms(config(treatment[1], control[1]), hashed)
    assert not ((before == "treatment") & (after == "control")).any()
    assert not ((before == "control") & (after == "treatment")).any()
    if treatment[0] <= treatment[1]:
        assert (after[before == "treatment"] == "treatment").all()
    if control[0] <= control[1]:
        assert (after[before == "control"] == "control").all()


@needs_nginx
@pytest.mark.parametrize("shares", [(10, 10), (33.33, 50), (0.01, 99.99), (0, 30), (100, 0)])
async def test_nginx_splits_just_so(world: World, shares: tuple[float, float]) -> None:
    ids = [f"user-{n:06}" for n in range(1_000)]
    expected = arms(config(*shares), murmur2([f"uid-1|{user}" for user in ids]))
    split = world.config(treatment_percent=shares[0], control_percent=shares[1], timeouts=Timeouts(turnover=600))
    got = []
    async with routing(split) as router, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", router.config.port, local_addr=(PROXY, 0))
        for user in ids:
            writer.write(f"GET /v1/models HTTP/1.1\r\nHost: luna\r\nX-User-Id: {user}\r\n\r\n".encode())
            _, headers = await read_head(reader)
            got.append((await reader.readexactly(int(dict(headers)["content-length"]))).decode())
        writer.close()
    assert got == ["production" if arm == "none" else arm for arm in expected]
