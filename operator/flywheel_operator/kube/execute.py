"""Carries a Plan out: what the planners want of the cluster is done here and nowhere else."""

import secrets
from typing import Any, Final, Generic, TypeVar

from flywheel_contract.base import Record
from flywheel_contract.gateway_config import KEY_FILE, ROUTER_TOKEN_FILE
from flywheel_operator.kube.client import Api
from flywheel_operator.kube.errors import (
    AlreadyExistsError,
    ConflictError,
    GiveUpError,
    NameBusyError,
    NotOursError,
    RetryLaterError,
)
from flywheel_operator.kube.resources import ABTEST, JOB, OWN, SECRET, SERVICE, Key, Raw, kind_of
from flywheel_operator.model.abtest_status import ABTestStatus, AnalysisRun
from flywheel_operator.model.names import LABEL_MANAGED_BY, LABEL_OWNER, LABEL_OWNER_KIND, MANAGED_BY
from flywheel_operator.model.objects import Metadata
from flywheel_operator.plan.actions import Manifest, Plan, Ref, SwitchProduction

SECRET_BYTES: Final = 32

StatusT = TypeVar("StatusT", bound=Record)


class Execution(Generic[StatusT]):
    """One Plan about one object, carried out in the order that `Plan` documents. The first error ends it, but for the
    refusal of an ABTest's Job."""

    def __init__(self, api: Api, key: Key, metadata: Metadata, status: StatusT) -> None:
        """`metadata` and `status` are the object's as they were observed."""
        self._api = api
        self._key = key
        self._metadata = metadata
        self._status = status
        self._version = metadata.resource_version

    async def run(self, plan: Plan[StatusT]) -> bool:
        """Carries `plan` out, but for its events and wakes; says whether anything was asked of the cluster.

        Raises:
            ConflictError: something changed since it was observed; look again.
            KubeError: the class says what to do.
        """
        # 1. What must be there before anything is made that depends on it.
        asked = await self._add_finalizer(plan.add_finalizer)
        # 2. Children.
        jobs = [manifest for manifest in plan.create if manifest["kind"] == JOB.kind]
        for manifest in plan.create:
            if manifest["kind"] != JOB.kind:
                asked = await self._create(manifest) or asked
        for manifest in plan.apply:
            await self._apply(manifest)
            asked = True
        # 3. Production, by compare-and-swap.
        if plan.switch is not None:
            await self._switch(plan.switch)
            asked = True
        # 4. Jobs. Where one is refused, an ABTest goes on without it: users hang on the rest. A Generation does not:
        # its status would say that it has started, which freezes its spec and counts against its deadline.
        status, refusal = plan.status, None
        for manifest in jobs:
            try:
                asked = await self._create(manifest) or asked
            except (GiveUpError, RetryLaterError) as error:
                if self._key.kind != ABTEST.kind:
                    raise
                status = _without_run(status, self._status, manifest["metadata"]["name"])
                refusal = refusal or error
        # 5. What we know of it all, before anything that it speaks of goes away.
        asked = await self._write_status(status) or asked
        for ref in plan.delete:
            await self._delete(ref)
            asked = True
        asked = await self._remove_finalizer(plan.remove_finalizer) or asked
        if refusal is not None:
            raise refusal
        return asked

    async def _add_finalizer(self, name: str | None) -> bool:
        if name is None or name in self._metadata.finalizers:
            return False
        await self._set_finalizers([*self._metadata.finalizers, name])
        return True

    async def _remove_finalizer(self, name: str | None) -> bool:
        if name is None or name not in self._metadata.finalizers:
            return False
        await self._set_finalizers([f for f in self._metadata.finalizers if f != name])
        return True

    async def _set_finalizers(self, names: list[str]) -> None:
        # With the version: the list is written whole, and others have finalizers too.
        patch = {"metadata": {"resourceVersion": self._version, "finalizers": names}}
        written = await self._api.merge_patch(OWN[self._key.kind], self._key.namespace, self._key.name, patch)
        self._version = written["metadata"]["resourceVersion"]

    async def _create(self, manifest: Manifest) -> bool:
        """Creates `manifest`; one of that name that is ours already is left as it is.

        Raises:
            NameBusyError: the one of that name is being deleted, or belonged to a former object of the owner's name.
            NotOursError: the one of that name is someone else's.
        """
        try:
            if manifest["kind"] == SECRET.kind:
                return await self._create_secret(manifest)
            await self._api.create(manifest)
        except AlreadyExistsError as error:
            await self._check_ours(manifest, error)
        return True

    async def _create_secret(self, manifest: Manifest) -> bool:
        """Creates the Secret with new random values; one that is there stays, unread, whoever made it."""
        drawn = {key: secrets.token_hex(SECRET_BYTES) for key in (KEY_FILE, ROUTER_TOKEN_FILE)}
        try:
            await self._api.create(manifest | {"stringData": drawn})
        except AlreadyExistsError:
            return False
        return True

    async def _check_ours(self, manifest: Manifest, taken: AlreadyExistsError) -> None:
        metadata = manifest["metadata"]
        found = await self._api.get(
            kind_of(manifest["apiVersion"], manifest["kind"]), metadata["namespace"], metadata["name"]
        )
        where = f"{manifest['kind']} {metadata['namespace']}/{metadata['name']}"
        if found is None or found["metadata"].get("deletionTimestamp"):
            raise NameBusyError(f"{where} is being deleted; the name will be free") from taken
        if _uids(manifest) & _uids(found):
            return
        if not _same_owner_labels(manifest, found):
            raise NotOursError(f"{where} exists and is not ours: rename or delete it") from taken
        if _uids(manifest):
            raise NameBusyError(f"{where} belongs to a former {self._key.kind} of this name; it will go") from taken

    async def _switch(self, switch: SwitchProduction) -> None:
        wanted = switch.service
        if switch.resource_version is None:
            try:
                await self._api.create(wanted)
            except AlreadyExistsError as error:
                raise ConflictError(f"the Service came into being meanwhile: {error}") from error
            return
        metadata = wanted["metadata"]
        found = await self._api.get(SERVICE, metadata["namespace"], metadata["name"])
        if found is None or found["metadata"]["resourceVersion"] != switch.resource_version:
            raise ConflictError(f"Service {metadata['name']} changed since it was looked at")
        await self._api.replace(_switched(found, wanted))

    async def _write_status(self, status: StatusT) -> bool:
        if status == self._status:
            return False
        kind = OWN[self._key.kind]
        written = await self._api.apply(
            {
                "apiVersion": kind.api_version,
                "kind": kind.kind,
                # With the version: what was decided on another spec, on an object that was deleted and made anew
                # meanwhile, or by a leader who has lost the lease, is not written. (A uid alone is not checked here.)
                "metadata": {
                    "name": self._key.name,
                    "namespace": self._key.namespace,
                    "resourceVersion": self._version,
                },
                "status": status.to_json(),
            },
            status=True,
        )
        self._version = written["metadata"]["resourceVersion"]
        return True

    async def _apply(self, manifest: Manifest) -> None:
        """Applies `manifest`; where one of that name is someone else's, nothing is written.

        Raises:
            NotOursError: it is someone else's.
        """
        metadata = manifest["metadata"]
        kind = kind_of(manifest["apiVersion"], manifest["kind"])
        found = await self._api.get(kind, metadata["namespace"], metadata["name"])
        if found is not None and not _same_owner_labels(manifest, found):
            where = f"{manifest['kind']} {metadata['namespace']}/{metadata['name']}"
            raise NotOursError(f"{where} exists and is not ours: rename or delete it")
        await self._api.apply(manifest)

    async def _delete(self, ref: Ref) -> None:
        """Deletes what is ours; an object of that name that someone else made is left alone."""
        kind = kind_of(ref.api_version, ref.kind)
        found = await self._api.get(kind, self._key.namespace, ref.name)
        if found is not None and (found["metadata"].get("labels") or {}).get(LABEL_MANAGED_BY) == MANAGED_BY:
            await self._api.delete(kind, self._key.namespace, ref.name)


def _without_run(status: StatusT, before: StatusT, job: str) -> StatusT:
    """`status` with the run that was to have the Job `job` as it was `before`: the next pass makes the same attempt."""
    former = {run.name: run for run in _runs(before)}
    runs = [former.get(run.name) if run.job == job else run for run in _runs(status)]
    return status.model_copy(update={"runs": [run for run in runs if run is not None]})


def _runs(status: Record) -> list[AnalysisRun]:
    return status.runs if isinstance(status, ABTestStatus) else []


def _uids(obj: Raw) -> set[Any]:
    return {reference["uid"] for reference in obj["metadata"].get("ownerReferences") or ()}


def _same_owner_labels(manifest: Raw, found: Raw) -> bool:
    names = (LABEL_MANAGED_BY, LABEL_OWNER_KIND, LABEL_OWNER)
    wanted, there = manifest["metadata"].get("labels") or {}, found["metadata"].get("labels") or {}
    return LABEL_MANAGED_BY in wanted and all(wanted.get(name) == there.get(name) for name in names)


def _switched(found: Raw, wanted: Raw) -> Raw:
    """The Service as it is, pointing where `wanted` points: what others put on it (addresses, annotations) stays."""
    metadata, target = found["metadata"], wanted["metadata"]
    return found | {
        "metadata": metadata
        | {
            "labels": (metadata.get("labels") or {}) | target["labels"],
            "annotations": (metadata.get("annotations") or {}) | target["annotations"],
        },
        "spec": found["spec"] | {"selector": wanted["spec"]["selector"]},
    }
