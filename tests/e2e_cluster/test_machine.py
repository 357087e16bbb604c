"""What touches the machine a little: processes, packages, the toolchain, the forwarder."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from e2e.cluster import __main__ as command_line
from e2e.cluster import debian, mounts, toolchain
from e2e.cluster.errors import CannotRunError, ClusterError
from e2e.cluster.processes import Process, kill


def test_a_process_is_told_from_another_of_the_same_pid() -> None:
    own = Process.of(os.getpid())
    assert own is not None
    assert own.alive
    assert not Process(own.pid, own.started - 1, own.boot).alive
    assert not Process(own.pid, own.started, "another boot").alive


def test_killing_waits_until_it_is_gone_and_ignores_what_is_gone() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        process = Process.of(child.pid)
        assert process is not None
        kill([child.pid])
        assert not process.alive
        kill([child.pid])


def test_only_missing_packages_are_installed_each_once() -> None:
    assert debian.missing(debian.CLUSTER, lambda _: True) == []
    wanted = debian.missing(debian.CLUSTER, lambda program: program not in ("ctr", "containerd", "ip"))
    assert wanted == ["containerd", "iproute2"]


def test_a_machine_that_cannot_gets_one_clear_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert command_line.main(["up", "--name", "nobody"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    assert "root on Debian 12" in said
    assert "CONTEXT=" in said
    with pytest.raises(CannotRunError):
        debian.require(debian.CLUSTER, print)


def test_a_bad_name_gets_one_clear_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["status", "--name", "Not A Name"]) == 2
    assert "cannot name a cluster" in capsys.readouterr().err


def test_status_and_down_of_a_cluster_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert command_line.main(["--name", "absent", "status"]) == 0
    assert '"exists": false' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "version"),
    [("go1.26.8", (1, 26)), ("go version go1.19.8 linux/amd64", (1, 19)), ("", (0, 0)), ("go1.24rc1", (1, 24))],
)
def test_go_versions(answer: str, version: tuple[int, int]) -> None:
    assert toolchain.go_version(answer) == version


def test_a_build_is_known_by_everything_that_goes_into_it(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text("package main")
    first = toolchain.key(tmp_path, [["build"]])
    assert toolchain.key(tmp_path, [["build"]]) == first
    assert toolchain.key(tmp_path, [["build", "-v"]]) != first
    (tmp_path / "README.md").write_text("of no account")
    assert toolchain.key(tmp_path, [["build"]]) == first
    (tmp_path / "go.sum").write_text("of account")
    assert toolchain.key(tmp_path, [["build"]]) != first


def test_durations_read_as_people_say_them() -> None:
    assert toolchain.elapsed(42.4) == "42 s"
    assert toolchain.elapsed(201) == "3 min 21 s"


def test_mounts_are_found_below_a_folder() -> None:
    assert Path("/proc") in mounts.below(Path("/proc"))
    assert mounts.below(Path("/does/not/exist")) == []


def test_the_forwarder_needs_nothing_of_the_project() -> None:
    file = toolchain.SOURCES.parent / "forwarder.py"
    done = subprocess.run(
        [sys.executable, "-I", str(file), "/does/not/exist"], capture_output=True, text=True, check=False
    )
    assert "FileNotFoundError" in done.stderr


def test_errors_carry_their_exit_code() -> None:
    assert (ClusterError.exit_code, CannotRunError.exit_code) == (1, 2)


def test_a_lock_whose_file_was_removed_keeps_nobody_else_out_of_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "lock"
    order: list[str] = []

    def second() -> None:
        with toolchain.locked(file):
            order.append("second")
            assert file.exists()

    waiting = threading.Thread(target=second)
    with toolchain.locked(file):
        waiting.start()
        time.sleep(0.2)
        order.append("first")
        file.unlink()
    waiting.join(timeout=5)
    assert order == ["first", "second"]
