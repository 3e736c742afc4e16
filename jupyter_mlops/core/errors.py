"""The error tree: every failure that a user may cause or meet, with its HTTP status and a hint.

Edges (REST handlers, magics, CLI) turn these into a status code and one line; nothing else decides on wording.
"""

from __future__ import annotations

from typing import Any


class MlopsError(Exception):
    """Base of all expected failures.

    ``message`` says what is wrong in one line, ``hint`` what to do next, ``detail`` is optional structured data
    (for example the list of offending fields). ``code`` is stable and machine readable, ``status`` the HTTP status.
    """

    code = "error"
    status = 500

    def __init__(self, message: str, hint: str = "", detail: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def body(self) -> dict[str, Any]:
        """The JSON error body of the REST API."""
        body: dict[str, Any] = {"message": self.message, "code": self.code, "hint": self.hint}
        if self.detail is not None:
            body["detail"] = self.detail
        return body

    def _render_traceback_(self) -> list[str]:
        # IPython shows just these lines, and still reports the cell as failed.
        lines = [f"{type(self).__name__}: {self.message}"]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return lines

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ParameterError(MlopsError):
    """The request or the command line is malformed."""

    code = "bad_parameter"
    status = 400


class Unauthenticated(MlopsError):
    """No valid token or key came with the request."""

    code = "unauthenticated"
    status = 401


class Forbidden(MlopsError):
    """The caller is known, but its role does not allow the action."""

    code = "forbidden"
    status = 403


class NotFound(MlopsError):
    """The named thing does not exist."""

    code = "not_found"
    status = 404


class Conflict(MlopsError):
    """The thing exists already, or is in a state that does not allow the action."""

    code = "conflict"
    status = 409


class Gone(MlopsError):
    """The change feed no longer reaches back that far: list anew."""

    code = "gone"
    status = 410


class PreconditionFailed(MlopsError):
    """``If-Match`` or ``If-None-Match`` did not hold."""

    code = "precondition_failed"
    status = 412


class TooLarge(MlopsError):
    """The body is over its limit."""

    code = "too_large"
    status = 413


class UnsupportedMedia(MlopsError):
    """The content type is not understood."""

    code = "unsupported_media_type"
    status = 415


class Refused(MlopsError):
    """Well formed, but it cannot be done (no such GPU, no signature, no interpreter …)."""

    code = "refused"
    status = 422


class ModelError(MlopsError):
    """The input was right, but the model raised; 424 as in Azure ML, since neither client nor gateway is at fault."""

    code = "model_error"
    status = 424


class RequestTimeout(MlopsError):
    """The body did not arrive in time."""

    code = "request_timeout"
    status = 408


class TooManyRequests(MlopsError):
    """More requests at once than are taken; try again in a moment."""

    code = "too_many_requests"
    status = 429


class VersionMismatch(MlopsError):
    """Client and control plane are of versions that do not work together."""

    code = "version_mismatch"
    status = 426


class Unavailable(MlopsError):
    """Busy or starting; try again in a moment."""

    code = "unavailable"
    status = 503


class BackendUnreachable(MlopsError):
    """A system behind us (MLflow, a scorer, a cluster) does not answer."""

    code = "backend_unreachable"
    status = 502


class BackendTimeout(MlopsError):
    """A system behind us did not answer in time."""

    code = "backend_timeout"
    status = 504


BY_CODE: dict[str, type[MlopsError]] = {
    cls.code: cls
    for cls in (
        MlopsError, ParameterError, Unauthenticated, Forbidden, NotFound, RequestTimeout, Conflict, Gone,
        PreconditionFailed, TooLarge, UnsupportedMedia, Refused, ModelError, VersionMismatch, TooManyRequests,
        BackendUnreachable, Unavailable, BackendTimeout,
    )
}


def from_body(body: dict[str, Any], status: int = 500) -> MlopsError:
    """The exception that an error body of the REST API stands for."""
    cls = BY_CODE.get(str(body.get("code", "")), MlopsError)
    error = cls(str(body.get("message") or f"HTTP {status}"), str(body.get("hint") or ""), body.get("detail"))
    error.status = status
    return error
