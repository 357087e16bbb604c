"""From the settings to the classifier."""

from collections.abc import Mapping

from flywheel_contract.safety import ClassifierParams
from flywheel_safety.classifier import Classifier, RefusedError
from flywheel_safety.embedded import Embedded
from flywheel_safety.endpoint import ModerationApi


def chosen(params: ClassifierParams, environ: Mapping[str, str], *, attempts: int = 1) -> Classifier:
    """The classifier that the settings name; `attempts` is how often an endpoint is asked before it counts as away.

    Raises:
        RefusedError: the variable that should hold the API key is not there.
    """
    endpoint = params.endpoint
    if endpoint is None:
        return Embedded(params.words)
    key = environ.get(endpoint.api_key_env) if endpoint.api_key_env is not None else None
    if endpoint.api_key_env is not None and not key:
        raise RefusedError(
            f"endpoint.apiKeyEnv: no variable {endpoint.api_key_env}: runtime.secretEnv names no Secret with it"
        )
    return ModerationApi(endpoint, key, attempts=attempts)
