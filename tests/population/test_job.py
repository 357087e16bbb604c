"""The Job: what goes into the pod is all that it needs, and it may run where pods are restricted."""

import ast
import subprocess
import sys
from pathlib import Path

from e2e.population import job as jobs
from e2e.population.settings import Settings

SETTINGS = Settings("http://luna", users=3, days=2, day_seconds=10)


def test_the_pod_gets_the_files_it_runs_and_they_need_aiohttp_alone(tmp_path: Path) -> None:
    files = jobs.code("p")["data"]
    assert "__main__.py" in files
    assert "job.py" not in files
    folder = tmp_path / "e2e" / "population"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
        for module in _imported(text):
            here = module.startswith("e2e.population.") and f"{module.rpartition('.')[2]}.py" in files
            assert here or module.partition(".")[0] in sys.stdlib_module_names | {"aiohttp"}, f"{name}: {module}"
    command = [sys.executable, "-P", "-m", "e2e.population"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2, done.stderr


def test_the_job_ends_by_itself_and_is_restricted() -> None:
    spec = jobs.job("p", "image", SETTINGS)["spec"]
    assert spec["activeDeadlineSeconds"] > SETTINGS.days * SETTINGS.day_seconds
    assert spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert Settings.from_json(container["command"][-1]) == SETTINGS


def _imported(text: str) -> list[str]:
    nodes = list(ast.walk(ast.parse(text)))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
