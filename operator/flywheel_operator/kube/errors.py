"""Our error tree of the cluster: the class says whether to try again. Mapped here and nowhere else, cause kept."""

import asyncio
import json
from typing import Any

import aiohttp
from kubernetes.aio.client.exceptions import ApiException

_FORBIDDEN = 403
_TOO_MANY_REQUESTS = 429
_QUOTA = "exceeded quota"
"""What the API server's quota admission says; the code and the reason are those of a missing permission."""


class KubeError(Exception):
    """Anything that goes wrong between us and the cluster.

    `reason` is one word for conditions, events and metrics; the text of the error is a sentence for people.
    """

    reason = "ClusterError"


class RetryNowError(KubeError):
    """Look again at once: what the pass decided on is no longer so."""


class ConflictError(RetryNowError):
    """Someone else wrote first."""

    reason = "Conflict"


class RetryLaterError(KubeError):
    """It may work after a while, with nothing changed."""


class UnavailableError(RetryLaterError):
    """The API server cannot be reached, is overloaded, or failed itself."""

    reason = "Unavailable"


class NotFoundError(RetryLaterError):
    """What was to be changed is gone, or its namespace or CRD is not there (yet)."""

    reason = "NotFound"


class AlreadyExistsError(RetryLaterError):
    """The name is taken."""

    reason = "AlreadyExists"


class NameBusyError(RetryLaterError):
    """The name is taken by an object that is being deleted: it will be free."""

    reason = "NameBusy"


class QuotaError(RetryLaterError):
    """A ResourceQuota of the namespace is full: there is room again once something ends, or once it is raised."""

    reason = "QuotaExceeded"


class GiveUpError(KubeError):
    """Trying again changes nothing: someone has to change a spec, a role or the operator."""


class ForbiddenError(GiveUpError):
    """We lack the permission."""

    reason = "Forbidden"


class InvalidError(GiveUpError):
    """The API server refuses the object or the request."""

    reason = "Invalid"


class NotOursError(GiveUpError):
    """The name is taken by an object that we did not make, or that we made for another owner."""

    reason = "NameTaken"


class UnreadableError(GiveUpError):
    """An object does not parse: it was written for an older or a newer version of the API, or by hand."""

    reason = "Unreadable"


_BY_REASON: dict[str, type[KubeError]] = {"AlreadyExists": AlreadyExistsError, "Conflict": ConflictError}
_BY_STATUS: dict[int, type[KubeError]] = {
    401: UnavailableError,  # a token that is being rotated; the next request carries the new one
    _FORBIDDEN: ForbiddenError,
    404: NotFoundError,
    408: UnavailableError,
    409: ConflictError,
    410: UnavailableError,
    _TOO_MANY_REQUESTS: UnavailableError,
}

TRANSPORT_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""What the client raises when no answer came at all."""


def from_api(error: ApiException, doing: str) -> KubeError:
    """Our error for an answer of the API server that is not 2xx; `doing` says what was tried."""
    status = _status_of(error)
    message = f"{doing}: {status.get('message') or error.reason or 'no reason given'} (HTTP {error.status})"
    code = int(error.status or 0)
    known = _BY_REASON.get(str(status.get("reason"))) if code == 409 else None
    if code == _FORBIDDEN and _QUOTA in message:
        known = QuotaError
    cls = known or _BY_STATUS.get(code) or (InvalidError if 400 <= code < 500 else UnavailableError)
    return cls(message)


def from_transport(error: BaseException, doing: str) -> UnavailableError:
    """Our error for a request that got no answer."""
    return UnavailableError(f"{doing}: {type(error).__name__}: {error}".rstrip(": "))


def _status_of(error: ApiException) -> dict[str, Any]:
    """The metav1.Status in the body; empty where something in between answered with another body."""
    try:
        status = json.loads(error.body or "")
    except (TypeError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
