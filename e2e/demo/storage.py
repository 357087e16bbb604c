"""The claim that holds data, models and runs: filled and read through the loader pod, never copied to twice."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from e2e.demo.errors import DemoError
from e2e.installation import CLAIM_FOLDER, LOADER, Loader, claim_manifest
from e2e.kubectl import Kubectl

Say = Callable[[str], None]

CLAIM = "flywheel"
SIZE = "16Gi"
RECEIPT = ".loaded.json"
"""On the claim: folder -> digest of what was put there, written after it."""


class Claim:
    """The demo's claim."""

    def __init__(self, kubectl: Kubectl, image: str) -> None:
        """Wrap a claim that may not exist yet. The loader runs the trainer's image, which is there anyway."""
        self._kubectl, self._image = kubectl, image
        self._loader = Loader(kubectl, CLAIM, image)

    def open(self) -> None:
        """Create claim and loader where they are missing; a loader that has ended or is outdated is replaced."""
        self._kubectl.apply(claim_manifest(CLAIM, SIZE))
        old = self._kubectl.get("pod", LOADER)
        if old is not None:
            usable = old["status"].get("phase") in ("Pending", "Running") and "deletionTimestamp" not in old["metadata"]
            if not usable or old["spec"]["containers"][0]["image"] != self._image:
                self._loader.down()
        self._loader.up()

    def put(self, folders: Mapping[str, Path], say: Say) -> list[str]:
        """Bring folders (place on the claim -> local path) onto the claim.

        Returns:
            The places that were written; those that held the same already are left alone.
        """
        there = self._receipt()
        written = []
        for place, source in folders.items():
            digest = digest_of(source)
            if there.get(place) == digest:
                continue
            say(f"copying {place} ({size_of(source) / 1e6:.0f} MB)")
            self._loader.run("rm", "-rf", f"{CLAIM_FOLDER}/{place}")
            self._loader.put(source, place)
            there[place] = digest
            receipt = f"{CLAIM_FOLDER}/{RECEIPT}"
            self.shell(f"cat > {receipt}.new && mv {receipt}.new {receipt}", json.dumps(there))
            written.append(place)
        return written

    def text(self, path: str) -> str | None:
        """The text of the file at `path` on the claim, or None where there is none."""
        file = f"{CLAIM_FOLDER}/{path}"
        answer, _, content = self.shell(f'if [ -f "{file}" ]; then echo yes; cat "{file}"; else echo no; fi').partition(
            "\n"
        )
        return content if answer == "yes" else None

    def python(self, program: str, argument: object) -> str:
        """Run a Python program in the loader, with `argument` as JSON on its standard input."""
        return self._kubectl("exec", "--stdin", LOADER, "--", "python", "-c", program, stdin=json.dumps(argument))

    def shell(self, script: str, stdin: str = "") -> str:
        """Run a shell script in the loader."""
        return self._kubectl("exec", "--stdin", LOADER, "--", "sh", "-ec", script, stdin=stdin)

    def _receipt(self) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads(self.text(RECEIPT) or "{}")
        except json.JSONDecodeError:
            return {}
        return found


def digest_of(folder: Path) -> str:
    """A digest over the names and contents of the files below `folder`.

    Raises:
        DemoError: there are none.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if not files:
        raise DemoError(f"there is nothing in {folder}")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()}\n".encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def size_of(folder: Path) -> int:
    """Bytes below `folder`."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
