"""Names, folders and addresses of clusters."""

import itertools
from pathlib import Path

import pytest

from e2e.cluster.errors import CannotRunError
from e2e.cluster.layout import BENCHMARK_RANGE, MAX_ROOT, SLOTS, Addresses, Layout, cache_home, check_name, state_home
from e2e.cluster.record import Record, addresses_for, free_slot

HOME = {"HOME": "/root"}


@pytest.mark.parametrize("name", ["flywheel", "flywheel-test", "a", "a1"])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "Flywheel", "-a", "a-", "1a", "a/b", "..", "a" * 25, "a b"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(CannotRunError, match="cannot name a cluster"):
        check_name(name)


def test_homes_follow_the_xdg_variables() -> None:
    assert cache_home(HOME) == Path("/root/.cache/characterflywheel")
    assert cache_home({**HOME, "XDG_CACHE_HOME": "/c"}) == Path("/c/characterflywheel")
    assert state_home(HOME) == Path("/root/.local/state/characterflywheel")
    assert state_home({**HOME, "XDG_STATE_HOME": "/s"}) == Path("/s/characterflywheel")


def test_a_short_state_folder_is_used_as_it_is() -> None:
    layout = Layout.of("flywheel", HOME)
    assert layout.root == layout.link == Path("/root/.local/state/characterflywheel/clusters/flywheel")


def test_a_long_state_folder_becomes_a_link_to_a_short_one() -> None:
    layout = Layout.of("flywheel", {"XDG_STATE_HOME": "/var/" + "long/" * 12})
    assert layout.root != layout.link
    assert len(str(layout.root)) <= MAX_ROOT
    assert Layout.of("flywheel", {"XDG_STATE_HOME": "/elsewhere/" + "long/" * 12}).root != layout.root


@pytest.mark.parametrize("home", ["/root", "/home/" + "x" * 60])
def test_every_socket_fits_into_the_kernels_108_bytes(home: str) -> None:
    layout = Layout.of("f" * 24, {"HOME": home})
    for socket in (
        layout.containerd_socket,
        layout.containerd_socket.with_suffix(".sock.ttrpc"),
        layout.kubelet / "pod-resources" / "kubelet.sock",
        layout.kubelet / "device-plugins" / "kubelet.sock",
    ):
        assert len(str(socket)) < 108


def test_no_two_slots_share_an_address() -> None:
    plans = [Addresses(slot) for slot in range(SLOTS)]
    networks = [network for plan in plans for network in (plan.services, plan.pods)]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(networks, 2))
    assert all(network.subnet_of(BENCHMARK_RANGE) for network in networks)
    assert len({plan.node for plan in plans}) == len({plan.api_port for plan in plans}) == SLOTS
    assert all(plan.dns_service in plan.services and plan.api_service in plan.services for plan in plans)


@pytest.mark.parametrize("slot", [-1, SLOTS])
def test_a_slot_outside_the_range_is_a_mistake(slot: int) -> None:
    with pytest.raises(ValueError, match="slot"):
        Addresses(slot)


def test_the_lowest_free_slot_is_taken() -> None:
    assert free_slot([]) == 0
    assert free_slot([0, 1, 3]) == 2
    with pytest.raises(CannotRunError, match="take one down"):
        free_slot(range(SLOTS))


def test_a_cluster_keeps_its_slot_when_its_record_is_lost_and_a_lower_one_is_free(tmp_path: Path) -> None:
    first, second = (Layout(name, tmp_path / name, tmp_path / name) for name in ("first", "second"))
    for layout in (first, second):
        layout.root.mkdir()
    assert addresses_for(first)[1] == Addresses(0)
    record, addresses = addresses_for(second)
    assert addresses == Addresses(1)
    record.save(second.record)
    (first.root / "slot").unlink()
    first.root.rmdir()
    second.record.write_text("{")
    assert addresses_for(second) == (Record(1, Addresses(1).api_port), Addresses(1))
    assert [path.name for path in tmp_path.iterdir()] == ["second"]


def test_a_record_survives_writing_and_reading(tmp_path: Path) -> None:
    file = tmp_path / "cluster.json"
    assert Record.load(file) is None
    record = Record(3, 16446)
    record.save(file)
    assert Record.load(file) == record
    file.write_text('{"slot": 3')  # cut off: as good as none, the processes are found by their cgroup
    assert Record.load(file) is None
