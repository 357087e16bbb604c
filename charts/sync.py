"""Brings the generated files of chart and manifests up to date: `python charts/sync.py [--check]`.

    crds/                       -> charts/flywheel/files/crds/     copies, since a chart reads only files inside itself
    charts/flywheel/ (defaults) -> manifests/base/{crds,operator}.yaml     what `helm template` gives
    charts/flywheel/ (one namespace) -> manifests/overlays/namespaced/roles.yaml

`--check` writes nothing, needs no helm and takes a moment: each rendered file names the digest of the chart that it was
made from and of its own text.
"""

import argparse
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from flywheel_operator.model.crds import ManifestDumper

ROOT: Final = Path(__file__).resolve().parents[1]
CHART: Final = ROOT / "charts" / "flywheel"
CRDS: Final = ROOT / "crds"
CRD_COPIES: Final = CHART / "files" / "crds"
RELEASE: Final = "flywheel"
NAMESPACE: Final = "flywheel-system"
WATCHED: Final = "characters"
"""The namespace of the overlay and of the examples."""
KUBE_VERSION: Final = "1.34.0"
"""What helm takes the cluster for while it renders without one."""
HELM_ONLY: Final = ("helm.sh/", "meta.helm.sh/")

Manifest = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Reads numbers as Go writes them: without this, 1e-06 would be a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _is_crd(manifest: Manifest) -> bool:
    return bool(manifest["kind"] == "CustomResourceDefinition")


@dataclass(frozen=True, slots=True)
class Rendering:
    """A file that is made from the chart."""

    path: Path
    wanted: Callable[[Manifest], bool]
    values: tuple[str, ...] = ()


RENDERINGS: Final = (
    Rendering(ROOT / "manifests" / "base" / "crds.yaml", _is_crd),
    Rendering(ROOT / "manifests" / "base" / "operator.yaml", lambda manifest: not _is_crd(manifest)),
    Rendering(
        ROOT / "manifests" / "overlays" / "namespaced" / "roles.yaml",
        lambda manifest: bool(manifest["metadata"].get("namespace") == WATCHED),
        (f"watchNamespaces={{{WATCHED}}}",),
    ),
)


def render(helm: Path, values: tuple[str, ...] = ()) -> list[Manifest]:
    """What `helm template` gives, without the labels and annotations that only helm itself reads.

    Raises:
        subprocess.CalledProcessError: helm refuses; its sentence is on stderr.
    """
    where = (f"--namespace={NAMESPACE}", f"--kube-version={KUBE_VERSION}")
    command = [str(helm), "template", RELEASE, str(CHART), *where, *(f"--set={value}" for value in values)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [without_helm(document) for document in parsed(text)]


def parsed(text: str) -> list[Manifest]:
    """The objects in what helm prints."""
    return [document for document in yaml.load_all(text, Loader=_Loader) if document]


def rendered(helm: Path, rendering: Rendering) -> str:
    """The whole text of a rendered file."""
    documents = [document for document in render(helm, rendering.values) if rendering.wanted(document)]
    body = yaml.dump_all(documents, Dumper=ManifestDumper, sort_keys=False, width=1_000_000)
    return _header(body) + body


def without_helm(manifest: Manifest) -> Manifest:
    """`manifest` as it is without helm: kubectl and Kustomize are no release."""
    metadata = dict(manifest["metadata"])
    for name in ("labels", "annotations"):
        kept = {
            key: value
            for key, value in metadata.pop(name, {}).items()
            if not key.startswith(HELM_ONLY) and (key, value) != ("app.kubernetes.io/managed-by", "Helm")
        }
        if kept:
            metadata[name] = kept
    out = {**manifest, "metadata": metadata}
    template = manifest.get("spec", {}).get("template")
    if isinstance(template, dict) and "metadata" in template:
        out["spec"] = {**manifest["spec"], "template": without_helm(template)}
    return out


def stale() -> list[str]:
    """What is out of date, a sentence for each; empty where all is well."""
    wrong = [
        f"{path.relative_to(ROOT)} is not what crds/ says"
        for path, text in _copies()
        if text is None or not path.exists() or path.read_text() != text
    ]
    for rendering in RENDERINGS:
        text = rendering.path.read_text() if rendering.path.exists() else ""
        _, _, body = text.partition("\n---\n")
        if not text.startswith(_header(body)):
            wrong.append(f"{rendering.path.relative_to(ROOT)} is not what charts/flywheel gives, or was edited by hand")
    return wrong


def regenerate() -> None:
    """Writes what is out of date."""
    if not stale():
        return
    CRD_COPIES.mkdir(parents=True, exist_ok=True)
    for path, text in list(_copies()):
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
    helm = _helm()
    for rendering in RENDERINGS:
        rendering.path.parent.mkdir(parents=True, exist_ok=True)
        rendering.path.write_text(rendered(helm, rendering))


def _helm() -> Path:
    """The pinned helm, built if need be."""
    command = [sys.executable, "-m", "e2e.cluster", "tools"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return Path(dict(line.split(maxsplit=1) for line in lines)["helm"])


def _copies() -> Iterator[tuple[Path, str | None]]:
    """The copies of the CRDs and their texts; None where there is no such CRD any more."""
    sources = {path.name: path.read_text() for path in CRDS.glob("*.yaml")}
    for name in sorted(sources.keys() | {path.name for path in CRD_COPIES.glob("*.yaml")}):
        yield CRD_COPIES / name, sources.get(name)


def _header(body: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in CHART.rglob("*") if p.is_file() and not p.name.startswith(".")):
        digest.update(f"{path.relative_to(CHART)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return (
        "# Generated from charts/flywheel by `make regen`; do not edit.\n"
        f"# chart sha256:{digest.hexdigest()}\n"
        f"# text sha256:{hashlib.sha256(body.encode()).hexdigest()}\n"
        "---\n"
    )


def main() -> int:
    """Regenerates, or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    if not parser.parse_args().check:
        regenerate()
        return 0
    wrong = stale()
    for sentence in wrong:
        print(f"{sentence}: run make regen", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
