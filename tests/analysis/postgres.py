"""A PostgreSQL server of Debian's package in a temporary folder, on loopback, never as root."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_USER = "postgres"
_DATABASE = "flywheel"


def binaries() -> Path | None:
    """The folder of the newest installed server; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4]))
    return found[-1].parent if found else None


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Starts a server and yields the URL of an empty database; it is stopped and removed afterwards."""
    programs = folder.resolve()
    home = Path(tempfile.mkdtemp(prefix="flywheel-postgres-"))
    as_user: list[str] = []
    user = pwd.getpwuid(os.getuid()).pw_name
    if os.getuid() == 0:
        shutil.chown(home, _USER, _USER)
        as_user, user = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"], _USER
    data, port = home / "data", _free_port()

    def call(*words: str) -> None:
        done = subprocess.run([*as_user, *words], cwd=home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        call(str(programs / "initdb"), "-D", str(data), "-U", user, "-A", "trust", "-E", "UTF8", "--no-sync")
        # Its sessions would be in another zone than UTC, were they not set right.
        options = f"-h 127.0.0.1 -p {port} -k {home} -c fsync=off -c timezone=Asia/Tokyo"
        call(str(programs / "pg_ctl"), "-D", str(data), "-o", options, "-l", str(home / "log"), "-w", "start")
        try:
            call(str(programs / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", user, _DATABASE)
            yield f"postgres://{user}@127.0.0.1:{port}/{_DATABASE}"
        finally:
            call(str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
