"""Looks at the cluster once per pass: everything that the planner may know, in one record."""

import asyncio
import dataclasses
import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from flywheel_operator.kube import jobs, parsing, servers
from flywheel_operator.kube.client import Api
from flywheel_operator.kube.errors import ForbiddenError, NotFoundError, UnreadableError
from flywheel_operator.kube.progress import Scraper
from flywheel_operator.kube.resources import (
    ABTEST,
    CONFIG_MAP,
    DEPLOYMENT,
    GENERATION,
    JOB,
    NAMESPACE,
    POD,
    RAY_CLUSTER,
    REWARD_MODEL,
    SERVICE,
    WORKLOAD,
    Kind,
    Raw,
    selector,
)
from flywheel_operator.manifests.server import SERVER
from flywheel_operator.manifests.stage import peers_name
from flywheel_operator.model.names import (
    LABEL_COMPONENT,
    LABEL_LINEAGE,
    LABEL_OWNER,
    LABEL_OWNER_KIND,
    LABEL_QUEUE,
    snapshot_name,
)
from flywheel_operator.model.objects import ABTest, Generation, Metadata, RewardModel
from flywheel_operator.model.observed import (
    DeploymentView,
    JobState,
    JobView,
    ObservedABTest,
    ObservedGeneration,
    ObservedRewardModel,
    ServerView,
    Settings,
)
from flywheel_operator.model.production import Production
from flywheel_operator.model.serving import CharacterSpec
from flywheel_operator.model.snapshot import Snapshot

_LABEL_WORKLOAD_JOB: Final = "kueue.x-k8s.io/job-uid"
_GATEWAY_VOLUME: Final = "gateway-config"
"""As `manifests.gateway.container` names it; also in the Deployments that former versions made."""

_log = logging.getLogger(__name__)


class Observer:
    """Takes the looks. 404 means absent; every other error is raised: a missing permission never reads as absence."""

    def __init__(self, api: Api, settings: Settings, scraper: Scraper) -> None:
        self._api = api
        self._settings = settings
        self._scraper = scraper

    async def observe_generation(self, raw: Raw, now: datetime) -> ObservedGeneration:
        """Everything around the Generation `raw`.

        Raises:
            UnreadableError: it, or something that it depends on, does not parse.
            KubeError: the cluster could not be asked.
        """
        generation = parsing.generation(raw)
        metadata, spec = generation.metadata, generation.spec
        namespace, name = metadata.namespace, metadata.name
        others, reward_models, config_maps, snapshot, (views, pods) = await asyncio.gather(
            self._generations(generation),
            self._reward_models(namespace, spec.reward_models),
            self._config_maps(namespace, spec.characters),
            self._snapshot(generation),
            self._jobs(GENERATION, namespace, name, metadata.uid),
        )
        server_views, service, terminating, tests, ray_clusters = await asyncio.gather(
            self._servers(namespace, spec.lineage, pods, own=name),
            self._production(namespace, spec.lineage),
            self._namespace_terminating(metadata),
            self._tests(namespace, spec.lineage),
            self._ray_clusters(generation),
        )
        return ObservedGeneration(
            generation=generation,
            now=now,
            settings=self._settings,
            generations=others | {name: generation},
            reward_models=reward_models,
            config_maps=config_maps,
            snapshot=snapshot,
            jobs=views,
            servers=server_views,
            production=service if isinstance(service, Production) else None,
            service_taken=service is False,
            tests=tests,
            ray_clusters=ray_clusters,
            namespace_terminating=terminating,
        )

    async def observe_ab_test(self, raw: Raw, now: datetime) -> ObservedABTest:
        """Everything around the ABTest `raw`. Raises as `observe_generation`."""
        test = parsing.ab_test(raw)
        metadata, spec = test.metadata, test.spec
        namespace, name = metadata.namespace, metadata.name
        arms = {a.generation for a in (spec.control, spec.treatment) if a.generation is not None}
        generations, tests, config_maps, (views, pods), service, terminating = await asyncio.gather(
            self._named(GENERATION, namespace, arms),
            self._tests(namespace, spec.lineage),
            self._config_maps(namespace, spec.characters),
            self._jobs(ABTEST, namespace, name, metadata.uid),
            self._production(namespace, spec.lineage),
            self._namespace_terminating(metadata),
        )
        deployments, servers_of = await asyncio.gather(
            self._deployments(namespace, name, pods), self._servers(namespace, spec.lineage, [])
        )
        return ObservedABTest(
            test=test,
            now=now,
            settings=self._settings,
            generations={name: parsing.generation(raw) for name, raw in generations.items()},
            tests=tests | {name: test},
            config_maps=config_maps,
            jobs=views,
            deployments=deployments,
            servers=servers_of,
            production=service if isinstance(service, Production) else None,
            service_taken=service is False,
            namespace_terminating=terminating,
        )

    async def observe_reward_model(self, raw: Raw, now: datetime) -> ObservedRewardModel:
        """Everything around the RewardModel `raw`. Raises as `observe_generation`."""
        reward_model = parsing.reward_model(raw)
        metadata, spec = reward_model.metadata, reward_model.spec
        config_maps, (views, _) = await asyncio.gather(
            self._config_maps(metadata.namespace, spec.characters),
            self._jobs(REWARD_MODEL, metadata.namespace, metadata.name, metadata.uid),
        )
        return ObservedRewardModel(
            reward_model=reward_model, now=now, settings=self._settings, config_maps=config_maps, jobs=views
        )

    async def _generations(self, own: Generation) -> dict[str, Generation]:
        """All Generations of the namespace. One that does not parse is left out, unless `own` depends on it."""
        found = {}
        for raw in await self._api.list(GENERATION, own.metadata.namespace):
            name = raw["metadata"]["name"]
            try:
                found[name] = parsing.generation(raw)
            except UnreadableError as error:
                mate = (raw.get("spec") or {}).get("lineage") == own.spec.lineage
                if name != own.metadata.name and (mate or name == own.spec.parent.generation):
                    raise
                _log.warning("left out: %s", error)
        return found

    async def _reward_models(self, namespace: str, names: Iterable[str]) -> dict[str, RewardModel]:
        raws = await self._named(REWARD_MODEL, namespace, names)
        return {name: parsing.reward_model(raw) for name, raw in raws.items()}

    async def _config_maps(self, namespace: str, characters: Iterable[CharacterSpec]) -> dict[str, Mapping[str, str]]:
        names = [c.system_prompt_from.name for c in characters if c.system_prompt_from]
        raws = await self._named(CONFIG_MAP, namespace, names)
        return {name: raw.get("data") or {} for name, raw in raws.items()}

    async def _named(self, kind: Kind, namespace: str, names: Iterable[str]) -> dict[str, Raw]:
        """Those of `names` that exist."""
        wanted = list(dict.fromkeys(names))
        raws = await asyncio.gather(*(self._api.get(kind, namespace, name) for name in wanted))
        return {name: raw for name, raw in zip(wanted, raws, strict=True) if raw is not None}

    async def _snapshot(self, own: Generation) -> Snapshot | None:
        raw = await self._api.get(
            CONFIG_MAP, own.metadata.namespace, snapshot_name(own.metadata.name, own.metadata.uid)
        )
        return None if raw is None else parsing.snapshot(raw)

    async def _jobs(self, kind: Kind, namespace: str, name: str, uid: str) -> tuple[dict[str, JobView], list[Raw]]:
        """The Jobs of the object with this `uid`, and all its pods."""
        labels = selector({LABEL_OWNER_KIND: kind.kind, LABEL_OWNER: name})
        found, pods = await asyncio.gather(
            self._api.list(JOB, namespace, labels), self._api.list(POD, namespace, labels)
        )
        # Jobs of a former object of the same name are the garbage collector's.
        own = [job for job in found if any(r["uid"] == uid for r in job["metadata"].get("ownerReferences", ()))]
        views = await asyncio.gather(*(self._job(job, pods) for job in own))
        return {view.name: view for view in views}, pods

    async def _job(self, job: Raw, pods: list[Raw]) -> JobView:
        view = jobs.job_view(job, pods)
        if view.state is JobState.SUSPENDED and LABEL_QUEUE in job["metadata"].get("labels", {}):
            return jobs.job_view(job, pods, await self._workload(job))
        if view.nodes > 1 and view.state in (JobState.PENDING, JobState.RUNNING):
            service = await self._api.get(SERVICE, job["metadata"]["namespace"], peers_name(view.name))
            view = dataclasses.replace(view, peers=service is not None)
        address = ((jobs.telling_pod(job, pods) or {}).get("status") or {}).get("podIP")
        if view.state is JobState.RUNNING and view.exit_code is None and address:
            return dataclasses.replace(view, progress=await self._scraper.scrape(address))
        return view

    async def _ray_clusters(self, own: Generation) -> frozenset[str] | None:
        """Looked for only where one is asked for; None: KubeRay is not installed."""
        if own.spec.curation.ray is None:
            return frozenset()
        labels = selector({LABEL_OWNER_KIND: GENERATION.kind, LABEL_OWNER: own.metadata.name})
        try:
            found = await self._api.list(RAY_CLUSTER, own.metadata.namespace, labels)
        except NotFoundError:
            return None
        return frozenset(raw["metadata"]["name"] for raw in found if not raw["metadata"].get("deletionTimestamp"))

    async def _workload(self, job: Raw) -> Raw | None:
        """What Kueue says of a Job that it holds back. Only a sentence for people hangs on it."""
        metadata = job["metadata"]
        try:
            found = await self._api.list(
                WORKLOAD, metadata["namespace"], selector({_LABEL_WORKLOAD_JOB: metadata["uid"]})
            )
        except (NotFoundError, ForbiddenError) as error:
            _log.debug("why Kueue holds %s back is not known: %s", metadata["name"], error)
            return None
        return found[0] if found else None

    async def _servers(
        self, namespace: str, lineage: str, pods: list[Raw], own: str | None = None
    ) -> dict[str, ServerView]:
        """The model servers of the lineage. Of that of the Generation `own`, what its pods mount is looked at too."""
        labels = selector({LABEL_LINEAGE: lineage, LABEL_COMPONENT: SERVER})
        views = {}
        for deployment in await self._api.list(DEPLOYMENT, namespace, labels):
            view = servers.server_view(deployment, pods)
            if view.generation == own:
                view = dataclasses.replace(view, config_lost=await self._config_lost(deployment))
            views[view.generation] = view
        return views

    async def _config_lost(self, deployment: Raw) -> bool:
        """Whether a server that is up mounts a gateway's ConfigMap that is gone. (Users' own ones are theirs.)"""
        volumes = deployment["spec"]["template"]["spec"].get("volumes") or ()
        names = [volume["configMap"]["name"] for volume in volumes if volume["name"] == _GATEWAY_VOLUME]
        if deployment["spec"].get("replicas", 1) == 0:
            return False
        namespace = deployment["metadata"]["namespace"]
        return len(await self._named(CONFIG_MAP, namespace, names)) < len(set(names))

    async def _deployments(self, namespace: str, test: str, pods: list[Raw]) -> dict[str, DeploymentView]:
        labels = selector({LABEL_OWNER_KIND: ABTEST.kind, LABEL_OWNER: test})
        views = [servers.deployment_view(d, pods) for d in await self._api.list(DEPLOYMENT, namespace, labels)]
        return {view.name: view for view in views}

    async def _tests(self, namespace: str, lineage: str) -> dict[str, ABTest]:
        raws = [
            raw for raw in await self._api.list(ABTEST, namespace) if (raw.get("spec") or {}).get("lineage") == lineage
        ]
        return {raw["metadata"]["name"]: parsing.ab_test(raw) for raw in raws}

    async def _production(self, namespace: str, lineage: str) -> Production | bool:
        """What serves; True where the Service does not exist, False where it is not ours."""
        raw = await self._api.get(SERVICE, namespace, lineage)
        if raw is None:
            return True
        return parsing.production(raw) if parsing.is_lineage_service(raw, lineage) else False

    async def _namespace_terminating(self, own: Metadata) -> bool:
        if own.deletion_timestamp is None:
            return False
        raw = await self._api.get(NAMESPACE, None, own.namespace)
        return raw is None or bool(raw["metadata"].get("deletionTimestamp"))
