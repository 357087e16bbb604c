"""What can go wrong, by who has to act on it.

`ApiError` ends in an OpenAI-style error object; its text is ours and never holds what a user or a model wrote.
"""

from typing import Final


class GatewayError(Exception):
    """The root of this package's errors."""


class ConfigError(GatewayError):
    """Configuration, key or store cannot work; the message names the fix."""


class UnsafeTextError(GatewayError):
    """The classifier could not say whether a text is safe: it counts as unsafe."""


class UpstreamError(GatewayError):
    """The model server gave no reply. `kind` is one of a closed set, for the metric."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class ApiError(GatewayError):
    """A request that is answered with an error. `code` is for programs, `message` for people."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    def body(self) -> dict[str, dict[str, str]]:
        """The error object that OpenAI's clients know."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "code": self.code}}
