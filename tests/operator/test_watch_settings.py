"""Arguments, environment and log lines."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from flywheel_operator import logs, settings

IMAGES = {f"FLYWHEEL_{what}_IMAGE": f"{what.lower()}:1" for what in ("TRAINER", "GATEWAY", "ROUTER", "ANALYSIS")}
KUBECONFIG = {"KUBECONFIG": "/k"} | IMAGES


def test_arguments_and_defaults(tmp_path: Path) -> None:
    given = settings.parse(["--trainer-image=t:1", "--namespace=a", "--namespace=b"], KUBECONFIG, tmp_path / "none")
    assert given.namespaces == ("a", "b")
    assert (given.lease_namespace, given.lease_name) == ("a", "flywheel-operator")
    assert (given.workers, given.port, given.resync_seconds, given.log_level) == (4, 8080, 300, "info")
    assert given.kubeconfig == "/k"
    planner = given.for_planner()
    assert (planner.trainer_image, planner.image_pull_secrets) == ("t:1", ())
    assert (planner.gateway_image, planner.router_image) == ("gateway:1", "router:1")
    assert planner.analysis_image == "analysis:1"


def test_the_environment_says_the_same_and_arguments_win(tmp_path: Path) -> None:
    environment = KUBECONFIG | {
        "FLYWHEEL_TRAINER_IMAGE": "t:2",
        "FLYWHEEL_NAMESPACES": "a, b,a",
        "FLYWHEEL_LEASE_NAMESPACE": "system",
        "FLYWHEEL_WORKERS": "9",
        "FLYWHEEL_PORT": "0",
        "FLYWHEEL_IMAGE_PULL_SECRETS": "x,y",
        "FLYWHEEL_LOG_LEVEL": "",
    }
    given = settings.parse(["--workers=2"], environment, tmp_path / "none")
    assert given.trainer_image == "t:2"
    assert given.namespaces == ("a", "b")
    assert given.lease_namespace == "system"
    assert (given.workers, given.port, given.log_level) == (2, 0, "info")
    assert given.image_pull_secrets == ("x", "y")


def test_in_a_pod_the_lease_lives_beside_it_and_its_name_is_its_identity(tmp_path: Path) -> None:
    file = tmp_path / "namespace"
    file.write_text("flywheel-system\n")
    arguments = ["--trainer-image=t:1"]
    first, second = (settings.parse(arguments, IMAGES, file) for _ in range(2))
    assert (first.namespaces, first.lease_namespace, first.kubeconfig) == ((), "flywheel-system", None)
    assert first.identity == second.identity
    outside = [settings.parse(arguments, KUBECONFIG, file).identity for _ in range(2)]
    assert outside[0] != outside[1]


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        ([], {}, "set KUBECONFIG"),
        ([], {"KUBECONFIG": "/k"}, "say which image it is: --trainer-image or FLYWHEEL_TRAINER_IMAGE"),
        ([], KUBECONFIG | {"FLYWHEEL_ROUTER_IMAGE": ""}, "--router-image or FLYWHEEL_ROUTER_IMAGE"),
        (["--trainer-image=t"], KUBECONFIG, "say where the lease lives"),
        (["--trainer-image=t", "--namespace=A_B"], KUBECONFIG, "'A_B' is no namespace's name"),
        (["--trainer-image=t", "--workers=0"], KUBECONFIG, "0 is not positive"),
        (["--trainer-image=t", "--port=70000"], KUBECONFIG, "70000 is no port"),
        (["--trainer-image=t"], KUBECONFIG | {"FLYWHEEL_WORKERS": "many"}, "invalid"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environment: dict[str, str],
    sentence: str,
) -> None:
    with pytest.raises(SystemExit):
        settings.parse(arguments, environment, tmp_path / "none")
    assert sentence in capsys.readouterr().err


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    names = ("kopf", "kubernetes", "aiohttp.access", "kopf._core.reactor.running")
    levels = {name: logging.getLogger(name).level for name in names}
    stream = io.StringIO()
    logs.configure("info", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def test_a_line_is_json_and_says_what_it_is_about(lines: io.StringIO) -> None:
    log = logging.getLogger("some.module")
    with logs.about(kind="Generation", name="g1"), logs.about(stage="sft"):
        log.info("hello %s", "world")
    log.debug("not shown")
    logging.getLogger("kopf").info("not shown")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it broke")
    first, second = (json.loads(line) for line in lines.getvalue().splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "some.module",
        "message": "hello world",
        "kind": "Generation",
        "name": "g1",
        "stage": "sft",
    }
    assert "kind" not in second
    assert "ValueError: broken" in second["error"]
