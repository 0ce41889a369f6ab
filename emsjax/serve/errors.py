"""Errors in the form of the OpenAI API."""

from typing import Any

from starlette.exceptions import HTTPException

from emsjax.engine.waiting import LineFullError
from emsjax.errors import UserError, reason
from emsjax.requests.service import ServiceClosedError

Body = dict[str, Any]


class ApiError(Exception):
    """An error with its HTTP status, and its type and code in the OpenAI API."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ):
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param

    def body(self) -> Body:
        """Returns the error as the body of an answer."""
        error = {
            "message": str(self),
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        return {
            401: {"www-authenticate": "Bearer"},
            429: {"retry-after": "1"},
        }.get(self.status, {})


# The status, the type and the code of errors that say all that a client needs to know.
_KNOWN: dict[type[Exception], tuple[int, str, str | None]] = {
    UserError: (400, "invalid_request_error", None),
    LineFullError: (429, "rate_limit_error", "too_many_requests"),
    ServiceClosedError: (503, "server_error", "shutting_down"),
    TimeoutError: (504, "server_error", "timeout"),
}


def api_error(error: Exception) -> ApiError:
    """Returns any error as an error of the API."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    for kind, (status, name, code) in _KNOWN.items():
        if isinstance(error, kind):
            return ApiError(status, str(error), name, code)
    return ApiError(500, f"the server failed on this request ({reason(error)})", "server_error")
