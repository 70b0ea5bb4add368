"""Why a request is not answered, and how each protocol says so."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """A request that is refused: an HTTP status of 4xx or 503, one line for the caller, and what it is about.

    code: a word for programs ("invalid_value", "queue_full", "moderation_blocked"); param: the field at fault.
    retry_after: whole seconds after which it may work.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_value",
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param, self.retry_after = message, status, code, param, retry_after

    @property
    def reason(self) -> str:
        """What KServe's own handlers read."""
        return self.message

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def body(self, *, openai: bool) -> dict[str, Any]:
        """The error object of the Open Inference Protocol, or of OpenAI's API."""
        if not openai:
            return {"error": self.message}
        kinds = {429: "rate_limit_error", 503: "server_error", 404: "not_found_error", 413: "invalid_request_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
