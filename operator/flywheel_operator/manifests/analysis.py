"""The Job that measures an ABTest: the baseline before it, a look at a day's end, or the whole window."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from flywheel_contract.durations import seconds
from flywheel_contract.experiment import AnalysisSpec
from flywheel_contract.online import traffic_uri
from flywheel_contract.uris import claim_of, join_uri
from flywheel_operator.manifests.common import Manifest, labels, owner_reference, pod_spec, resources, volumes
from flywheel_operator.manifests.stage import CONTAINER, FINISHED_JOB_TTL_SECONDS
from flywheel_operator.model.names import LABEL_QUEUE, bounded_name
from flywheel_operator.model.objects import ABTest

ANALYSIS: Final = "analysis"
BASELINE: Final = "baseline"
SPEC_FOLDER: Final = "/etc/flywheel"
DEADLINE_SECONDS: Final = 3600


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of the analysis."""

    name: str
    """baseline, day-1, ..., final."""
    start: datetime
    end: datetime


def report_uri(test: ABTest, run: str) -> str:
    """Where the whole report of a run goes."""
    spec = test.spec
    return join_uri(spec.artifacts.uri, spec.lineage, "abtests", test.metadata.name, test.metadata.uid, f"{run}.json")


def config_name(test: ABTest) -> str:
    """The ConfigMap with what to measure."""
    return bounded_name(test.metadata.name, ANALYSIS, unique=test.metadata.uid)


def config_map(test: ABTest) -> Manifest:
    """The immutable ConfigMap with the AnalysisSpec."""
    spec = test.spec
    measured = AnalysisSpec(
        test=test.metadata.name,
        allocation=spec.allocation,
        day_length_seconds=seconds(spec.day_length),
        metrics=spec.metrics,
        primaries=spec.primaries,
        guardrails=spec.guardrails,
        dimensions=spec.dimensions,
    )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(test, config_name(test)),
        "immutable": True,
        "data": {"analysis.json": json.dumps(measured.to_json(), indent=1)},
    }


def job_name(test: ABTest, run: str, attempt: int) -> str:
    """The Job of an attempt."""
    return bounded_name(test.metadata.name, run, str(attempt), unique=f"{test.metadata.uid}/{run}/{attempt}")


def job(test: ABTest, run: Measurement, attempt: int, image: str, pull_secrets: tuple[str, ...]) -> Manifest:
    """The Job of attempt number `attempt`. It runs one pod once: retries are ours."""
    spec, runtime = test.spec, test.spec.runtime
    log = traffic_uri(spec.artifacts.uri, spec.lineage)
    claims = {claim: True for uri in (log, spec.artifacts.uri) if (claim := claim_of(uri))}
    vols, mounts = volumes(claims)
    vols.append({"name": "spec", "configMap": {"name": config_name(test)}})
    mounts.append({"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True})
    container: Manifest = {
        "name": CONTAINER,
        "image": image,
        "args": _arguments(test, run, log),
        "terminationMessagePolicy": "File",
        "resources": resources(spec.analysis.resources, 0),
        "volumeMounts": mounts,
    }
    marks = labels("ABTest", test.metadata.name, ANALYSIS, spec.lineage)
    queue = {LABEL_QUEUE: runtime.queue_name} if runtime.queue_name else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(test, job_name(test, run.name, attempt)) | {"labels": {**marks, **queue}},
        "spec": {
            "suspend": bool(queue),
            "backoffLimit": 0,
            "activeDeadlineSeconds": DEADLINE_SECONDS,
            "ttlSecondsAfterFinished": FINISHED_JOB_TTL_SECONDS,
            "template": {
                "metadata": {"labels": marks},
                "spec": {"restartPolicy": "Never", **pod_spec(runtime, container, vols, pull_secrets)},
            },
        },
    }


def _arguments(test: ABTest, run: Measurement, log: str) -> list[str]:
    wanted = test.spec.analysis
    command = [BASELINE] if run.name == BASELINE else []
    window = ["--start", _stamp(run.start), "--end", _stamp(run.end)]
    own = {"--exposures": wanted.exposures, "--events": wanted.events, "--covariates": wanted.covariates}
    given = [part for flag, value in own.items() if value is not None for part in (flag, value)]
    # Tables of one's own take the place of the log, all three together.
    source = given if given else ["--log", log]
    return [
        *command,
        "--spec",
        f"{SPEC_FOLDER}/analysis.json",
        *source,
        *window,
        "--report",
        report_uri(test, run.name),
        "--format",
        "json",
    ]


def _stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _metadata(test: ABTest, name: str) -> Manifest:
    return {
        "name": name,
        "namespace": test.metadata.namespace,
        "labels": labels("ABTest", test.metadata.name, ANALYSIS, test.spec.lineage),
        "ownerReferences": [owner_reference("ABTest", test.metadata)],
    }
