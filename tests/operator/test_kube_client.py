"""The client against a real API server: what is absent, what is forbidden, what is refused."""

import asyncio
import json

import aiohttp
import pytest
from kubernetes.aio.client.exceptions import ApiException

from flywheel_operator.kube import errors
from flywheel_operator.kube.client import Api, connect
from flywheel_operator.kube.resources import CONFIG_MAP, GENERATION, NAMESPACE, WORKLOAD, Kind, kind_of, selector
from tests.operator.kube_objects import generation_raw


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (400, "BadRequest", errors.InvalidError),
        (401, "Unauthorized", errors.UnavailableError),
        (403, "Forbidden", errors.ForbiddenError),
        (404, "NotFound", errors.NotFoundError),
        (409, "AlreadyExists", errors.AlreadyExistsError),
        (409, "Conflict", errors.ConflictError),
        (409, None, errors.ConflictError),
        (422, "Invalid", errors.InvalidError),
        (429, "TooManyRequests", errors.UnavailableError),
        (500, "AlreadyExists", errors.UnavailableError),
        (503, None, errors.UnavailableError),
        (0, None, errors.UnavailableError),
    ],
)
def test_the_class_of_an_error_says_whether_to_try_again(status, reason, expected):  # noqa: ANN001, ANN201
    answer = ApiException(status=status, reason="R")
    answer.body = json.dumps({"reason": reason, "message": "because"})
    error = errors.from_api(answer, "create x")
    assert type(error) is expected
    assert str(error) == f"create x: because (HTTP {status})"
    retries = (errors.RetryNowError, errors.RetryLaterError, errors.GiveUpError)
    assert sum(isinstance(error, cls) for cls in retries) == 1


@pytest.mark.parametrize("body", [None, "<html>", "[]"])
def test_an_answer_of_something_in_between_is_an_error_too(body: str | None) -> None:
    answer = ApiException(status=502, reason="Bad Gateway")
    answer.body = body
    assert str(errors.from_api(answer, "get x")) == "get x: Bad Gateway (HTTP 502)"
    answer.reason = None
    assert str(errors.from_api(answer, "get x")) == "get x: no reason given (HTTP 502)"


def test_no_answer_is_unavailable() -> None:
    assert str(errors.from_transport(TimeoutError(), "get x")) == "get x: TimeoutError"
    assert str(errors.from_transport(aiohttp.ClientError("reset"), "get x")) == "get x: ClientError: reset"


def test_the_table_of_kinds() -> None:
    assert kind_of("v1", "ConfigMap") is CONFIG_MAP
    assert (CONFIG_MAP.group, CONFIG_MAP.version) == ("", "v1")
    assert (GENERATION.group, GENERATION.version) == ("characterflywheel.dev", "v1alpha1")
    assert selector({"b": "2", "a": "1"}) == "a=1,b=2"
    with pytest.raises(LookupError, match="v1 Node is not among the kinds"):
        kind_of("v1", "Node")


async def test_no_way_to_the_cluster(tmp_path) -> None:  # noqa: ANN001
    with pytest.raises(errors.UnavailableError, match="set KUBECONFIG"):
        async with connect(str(tmp_path / "none")):
            pass
    with pytest.raises(errors.UnavailableError, match="set KUBECONFIG"):
        async with connect(None):
            pass


@pytest.mark.apiserver
async def test_only_404_is_absent(api: Api, namespace: str, kubectl, tmp_path) -> None:  # noqa: ANN001
    assert await api.get(CONFIG_MAP, namespace, "none") is None
    assert await api.get(CONFIG_MAP, "no-such-namespace", "none") is None
    with pytest.raises(errors.NotFoundError):
        await api.list(WORKLOAD, namespace)  # Kueue is not installed
    kubectl("create", "serviceaccount", "nobody")
    token = kubectl("create", "token", "nobody").strip()
    async with connect(kubectl.kubeconfig_with(token, tmp_path)) as nobody:
        with pytest.raises(errors.ForbiddenError, match=r"get ConfigMap .*none: configmaps .* is forbidden"):
            await Api(nobody).get(CONFIG_MAP, namespace, "none")
    async with connect(kubectl.kubeconfig_with("wrong", tmp_path)) as stranger:
        with pytest.raises(errors.UnavailableError, match="HTTP 401"):
            await Api(stranger).get(CONFIG_MAP, namespace, "none")


@pytest.mark.apiserver
async def test_an_unreachable_server_is_unavailable(kubectl) -> None:  # noqa: ANN001
    async with connect(kubectl.kubeconfig) as client:
        client.configuration.host = "https://127.0.0.1:1"
        with pytest.raises(errors.UnavailableError, match="ClientConnectorError"):
            await Api(client).get(CONFIG_MAP, "default", "none")


@pytest.mark.apiserver
async def test_lists_page_by_page_and_without_managed_fields(api: Api, namespace: str, monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr("flywheel_operator.kube.client.PAGE_SIZE", 2)
    for number in range(5):
        labels = {"part": "even" if number % 2 == 0 else "odd"}
        metadata = {"name": f"c{number}", "namespace": namespace, "labels": labels}
        await api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    found = await api.list(CONFIG_MAP, namespace, "part=even")
    assert [raw["metadata"]["name"] for raw in found] == ["c0", "c2", "c4"]
    assert all(raw["kind"] == "ConfigMap" and raw["apiVersion"] == "v1" for raw in found)
    assert "managedFields" not in json.dumps(found)
    assert await api.get(NAMESPACE, None, namespace) is not None


@pytest.mark.apiserver
async def test_the_server_refuses_what_is_wrong(api: Api, namespace: str) -> None:
    bad = generation_raw(parent={"generation": "g1"})
    bad["metadata"]["namespace"] = namespace
    with pytest.raises(errors.InvalidError, match="cannot be its own parent"):
        await api.create(bad)


@pytest.mark.apiserver
async def test_deleting_what_is_gone_is_fine(api: Api, namespace: str) -> None:
    await api.delete(CONFIG_MAP, namespace, "none")


@pytest.mark.apiserver
async def test_two_requests_at_once_share_the_client(api: Api, namespace: str) -> None:
    kind = Kind("v1", "ConfigMap", "configmaps")
    await asyncio.gather(*(api.get(kind, namespace, "none") for _ in range(20)))
