"""What an image is made of, and what a build is given of this machine."""

from pathlib import Path

import pytest

from e2e.cluster.errors import CannotRunError, ClusterError
from e2e.images import base, builders, recipes, surroundings, targets

DOCKERFILE = """
# syntax comment
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE_IMAGE} AS build
ARG TORCH_VARIANT=cuda
COPY requirements/thing.txt /tmp/
RUN --mount=type=bind,source=scripts,target=/s \\
    pip install -r /tmp/thing.txt
FROM ${BASE_IMAGE}
COPY --from=build /opt/venv /opt/venv
COPY --chown=1:1 ["thing one", "contract/*.toml", "/app/"]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> recipes.Recipe:
    """An image whose context holds what it copies, and much that it does not."""
    for name in (
        "requirements/thing.txt",
        "requirements/other.txt",
        "scripts/run.sh",
        "thing one/main.py",
        "thing one/__pycache__/main.pyc",
        "thing one/.cache/x",
        "thing one/thing.egg-info/PKG",
        "contract/pyproject.toml",
        "contract/code.py",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (tmp_path / "thing-image").mkdir()
    (tmp_path / "thing-image" / "Dockerfile").write_text(DOCKERFILE)
    return recipes.find(tmp_path)["thing"]


def test_a_folder_with_a_dockerfile_is_an_image(recipe: recipes.Recipe) -> None:
    assert recipe.repository == "docker.io/characterflywheel/thing"


def test_exactly_what_the_dockerfile_copies_goes_in(recipe: recipes.Recipe, tmp_path: Path) -> None:
    expected = ["contract/pyproject.toml", "requirements/thing.txt", "scripts/run.sh", "thing one/main.py"]
    assert [str(file) for file in recipe.files()] == expected
    staged = tmp_path / "staged"
    staged.mkdir()
    recipe.stage(staged)
    assert sorted(str(p.relative_to(staged)) for p in staged.rglob("*") if p.is_file()) == expected


def test_the_tag_follows_the_content(recipe: recipes.Recipe) -> None:
    arguments = {"BASE_IMAGE": "b", "TORCH_VARIANT": "cpu", "UNUSED": "1"}
    first = recipe.tag(arguments)
    (recipe.context / "requirements" / "other.txt").write_text("not copied")
    (recipe.context / "thing one" / "__pycache__" / "new.pyc").write_text("not copied")
    assert recipe.tag({**arguments, "UNUSED": "2"}) == first
    assert recipe.tag({**arguments, "TORCH_VARIANT": "cuda"}) != first
    (recipe.context / "scripts" / "run.sh").chmod(0o755)
    second = recipe.tag(arguments)
    assert second != first
    (recipe.context / "thing one" / "main.py").write_text("changed")
    assert recipe.tag(arguments) not in (first, second)


def test_copying_what_is_not_there_is_said(recipe: recipes.Recipe) -> None:
    (recipe.context / "requirements" / "thing.txt").unlink()
    with pytest.raises(ClusterError, match=r"copies requirements/thing\.txt"):
        recipe.files()


def test_arguments_that_a_dockerfile_declares() -> None:
    assert recipes.declared(DOCKERFILE) == ["BASE_IMAGE", "TORCH_VARIANT"]


def test_an_unknown_image_is_said() -> None:
    with pytest.raises(ClusterError, match="there is no image nonsense"):
        targets.Foreign("kind-x", "", print).images(["nonsense"])


def test_pip_settings_of_the_environment_win() -> None:
    listed = ":env:.index-url='https://two'\nglobal.index-url='https://one'\nglobal.timeout='9'\nnoise\n"
    assert surroundings.parse_pip_settings(listed) == {"index-url": "https://two", "timeout": "9"}


def test_the_mounted_pip_conf() -> None:
    conf = surroundings.pip_conf({"index-url": "https://index", "cert": "/here"}, wheels=2)
    assert "index-url = https://index" in conf
    assert "/here" not in conf  # the file is mounted where every client looks
    assert conf.endswith("find-links =\n    /mnt/wheels/0\n    /mnt/wheels/1\n")
    assert "find-links" not in surroundings.pip_conf({}, wheels=0)


def test_wheels_and_authorities_are_mounted_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "ca.pem").write_text("")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path / 'wheels'} /does/not/exist https://page")
    monkeypatch.setattr(surroundings, "pip_settings", lambda: {"cert": str(tmp_path / "ca.pem")})
    assert surroundings.mounts(tmp_path, {}) == [
        f"{tmp_path / 'pip.conf'}:/etc/pip.conf:ro",
        f"{tmp_path / 'wheels'}:/mnt/wheels/0:ro",
        f"{tmp_path / 'ca.pem'}:/etc/ssl/certs/ca-certificates.crt:ro",
    ]


def test_the_base_has_an_identity() -> None:
    assert base.digest() == base.digest()
    assert len(base.digest()) == 16


def test_the_environment_chooses_the_cluster() -> None:
    assert isinstance(targets.choose("flywheel", {}), targets.Local)
    foreign = targets.choose("flywheel", {"CONTEXT": "kind-dev"})
    assert isinstance(foreign, targets.Foreign)
    assert (foreign.context, foreign.kind) == ("kind-dev", "dev")


def test_a_context_without_a_way_for_images_gets_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotRunError, match="set REGISTRY="):
        targets.Foreign("production", "", print).up()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CannotRunError, match="kind is not on PATH"):
        targets.Foreign("kind-dev", "", print).up()


def test_a_build_that_runc_could_not_start_is_tried_once_more(tmp_path: Path) -> None:
    said: list[str] = []
    first = tmp_path / "first"
    script = f"if [ -e {first} ]; then echo built; else touch {first}; echo '{builders._RUNC_BUSY}'; exit 1; fi"
    assert builders._watched(["sh", "-c", script], said.append) == "built"
    assert said == ["  runc was busy; once more"]


def test_a_build_that_fails_for_another_reason_is_not(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(ClusterError, match="no space"):
        builders._watched(["sh", "-c", f"echo run >> {runs}; echo no space; exit 1"], lambda _: None)
    assert runs.read_text().splitlines() == ["run"]
