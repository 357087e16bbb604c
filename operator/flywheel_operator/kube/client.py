"""The one place that builds a client, and the few requests that we make with it."""

import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final

from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.resource import Resource

from flywheel_operator.kube.errors import TRANSPORT_ERRORS, NotFoundError, UnavailableError, from_api, from_transport
from flywheel_operator.kube.resources import Kind, Raw, kind_of
from flywheel_operator.model.names import FIELD_MANAGER

REQUEST_SECONDS: Final = 30
PAGE_SIZE: Final = 500
_MERGE_PATCH: Final = "application/merge-patch+json"


@contextlib.asynccontextmanager
async def connect(kubeconfig: str | None) -> AsyncIterator[ApiClient]:
    """A client from `kubeconfig`, or, where it is None, from the service account of the pod that we run in.

    Raises:
        UnavailableError: there is neither.
    """
    configuration = Configuration()
    try:
        if kubeconfig:
            await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException as error:
        raise UnavailableError(
            f"no way to the cluster: {error} Run in a pod with a service account, or set KUBECONFIG."
        ) from error
    async with ApiClient(configuration) as client:
        yield client


class Api:
    """Typed requests on raw objects. Every error that it raises is a KubeError."""

    def __init__(self, client: ApiClient, field_manager: str = FIELD_MANAGER) -> None:
        self._dynamic = DynamicClient(client)
        self._field_manager = field_manager
        self._resources: dict[Kind, Resource] = {}

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Raw | None:
        """The object; None where the API server says that it does not exist, and only then."""
        try:
            call = self._dynamic.get(self._resource(kind), name=name, namespace=namespace, **_PLAIN)
            return _stripped(await _answer(call, f"get {kind.kind} {namespace or ''}/{name}"))
        except NotFoundError:
            return None

    async def list(self, kind: Kind, namespace: str | None, labels: str | None = None) -> list[Raw]:
        """All objects of `kind` (in `namespace`, with `labels`), page by page.

        Raises:
            NotFoundError: the kind itself is not served: its CRD is missing.
        """
        found: list[Raw] = []
        token: str | None = None
        while True:
            call = self._dynamic.get(
                self._resource(kind),
                namespace=namespace,
                label_selector=labels,
                limit=PAGE_SIZE,
                _continue=token,
                **_PLAIN,
            )
            page = await _answer(call, f"list {kind.plural} in {namespace or 'all namespaces'}")
            # The items of a list carry neither apiVersion nor kind.
            found += [{"apiVersion": kind.api_version, "kind": kind.kind} | _stripped(item) for item in page["items"]]
            token = page["metadata"].get("continue")
            if not token:
                return found

    async def create(self, manifest: Raw) -> Raw:
        """Raises AlreadyExistsError where the name is taken."""
        kind = _kind(manifest)
        call = self._dynamic.create(
            self._resource(kind),
            body=manifest,
            namespace=_namespace(manifest),
            field_manager=self._field_manager,
            **_PLAIN,
        )
        return _stripped(await _answer(call, f"create {_label(manifest)}"))

    async def replace(self, manifest: Raw) -> Raw:
        """Raises ConflictError where metadata.resourceVersion is not the current one."""
        call = self._dynamic.replace(
            self._resource(_kind(manifest)),
            body=manifest,
            namespace=_namespace(manifest),
            field_manager=self._field_manager,
            **_PLAIN,
        )
        return _stripped(await _answer(call, f"replace {_label(manifest)}"))

    async def merge_patch(self, kind: Kind, namespace: str, name: str, patch: Raw) -> Raw:
        """A JSON merge patch; with a resourceVersion in it, ConflictError where that is not the current one."""
        call = self._dynamic.patch(
            self._resource(kind),
            body=patch,
            name=name,
            namespace=namespace,
            content_type=_MERGE_PATCH,
            field_manager=self._field_manager,
            **_PLAIN,
        )
        return _stripped(await _answer(call, f"patch {kind.kind} {namespace}/{name}"))

    async def apply(self, manifest: Raw, *, status: bool = False, field_manager: str | None = None) -> Raw:
        """Server-side apply, by force: what we own, we own. `status` applies to the status subresource."""
        resource = self._resource(_kind(manifest))
        call = self._dynamic.server_side_apply(
            resource.subresources["status"] if status else resource,
            body=manifest,
            namespace=_namespace(manifest),
            force_conflicts=True,
            field_manager=field_manager or self._field_manager,
            **_PLAIN,
        )
        return _stripped(await _answer(call, f"apply {_label(manifest)}{' status' if status else ''}"))

    async def delete(self, kind: Kind, namespace: str | None, name: str) -> None:
        """Deletes; absent is fine. A Job stays until its pods are gone, so that one that is still saving shows."""
        policy = "Foreground" if kind.kind == "Job" else "Background"
        with contextlib.suppress(NotFoundError):
            call = self._dynamic.delete(
                self._resource(kind), name=name, namespace=namespace, propagation_policy=policy, **_PLAIN
            )
            await _answer(call, f"delete {kind.kind} {namespace or ''}/{name}")

    def _resource(self, kind: Kind) -> Resource:
        if kind not in self._resources:
            self._resources[kind] = Resource(
                prefix="apis" if kind.group else "api",
                group=kind.group,
                api_version=kind.version,
                kind=kind.kind,
                name=kind.plural,
                namespaced=kind.kind != "Namespace",
                client=self._dynamic,
                subresources={"status": {"kind": kind.kind, "name": f"{kind.plural}/status", "namespaced": True}},
            )
        return self._resources[kind]


def _plain(_client: DynamicClient, data: Any) -> Any:  # noqa: ANN401 -- any JSON value
    return data


_PLAIN: Final[dict[str, Any]] = {"serializer": _plain, "_request_timeout": REQUEST_SECONDS}
"""Answers as plain JSON, and no request for ever."""


async def _answer(call: Awaitable[Any], doing: str) -> Raw:
    try:
        answer = await call
    except ApiException as error:
        raise from_api(error, doing) from error
    except TRANSPORT_ERRORS as error:
        raise from_transport(error, doing) from error
    return dict(answer)


def _stripped(obj: Raw) -> Raw:
    obj.get("metadata", {}).pop("managedFields", None)
    return obj


def _kind(manifest: Raw) -> Kind:
    return kind_of(manifest["apiVersion"], manifest["kind"])


def _namespace(manifest: Raw) -> str | None:
    namespace = manifest["metadata"].get("namespace")
    return None if namespace is None else str(namespace)


def _label(manifest: Raw) -> str:
    return f"{manifest['kind']} {_namespace(manifest) or ''}/{manifest['metadata']['name']}"
