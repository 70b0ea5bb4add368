"""The studio as one application, and the process that serves it.

python -m serving.studio --preset local --port 8090
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

import vca
from serving.refusal import Refused
from serving.studio import app as api
from serving.studio import limits, pages
from vca.errors import VcaError
from vca.feedback.errors import Conflict, NotFound, StoreDown, Unacceptable
from vca.feedback.store import Store
from vca.service import StudioSettings

logger = logging.getLogger(__name__)

PROBES = ("/healthz", "/readyz")
_STATUS: dict[type[Exception], tuple[int, str, int | None]] = {
    NotFound: (404, "not_found", None),
    Conflict: (409, "conflict", None),
    Unacceptable: (422, "unacceptable", None),
    StoreDown: (503, "store_down", 2),
}


def application(studio: api.Studio) -> Any:
    """An ASGI application."""
    app = FastAPI(title="VCA studio", version=vca.__version__, lifespan=studio.running, docs_url=None, redoc_url=None)
    rendered = pages.Pages()

    def answer(request: Request, refusal: Refused) -> Response:
        if request.url.path.startswith(("/v1/", *PROBES)):
            response: Response = JSONResponse(limits.error_body(refusal), status_code=refusal.status)
        else:
            response = rendered.error(refusal)
        response.headers.update(refusal.headers())
        return response

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Any) -> Response:
        return answer(request, error)

    @app.exception_handler(VcaError)
    async def told(request: Request, error: Any) -> Response:
        status, code, retry = next(
            (known for kind, known in _STATUS.items() if isinstance(error, kind)), (500, "internal", None)
        )
        if status == 500:
            logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        message = str(error) if status != 500 else "a fault of this server's own; what you did is kept"
        return answer(request, Refused(message, status=status, code=code, retry_after=retry))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Any) -> Response:
        first = error.errors()[0]
        if first["loc"][0] == "path":  # an id that is none leads nowhere
            return answer(request, Refused("not found", status=404, code="not_found"))
        return answer(request, limits.invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: Any) -> Response:
        return answer(request, Refused(str(error.detail), status=error.status_code, code="not_found"))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Any) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(request, Refused("a fault of this server's own; what you did is kept", status=500))

    @app.get(PROBES[0], include_in_schema=False)
    async def live() -> Any:
        return {"live": True}

    @app.get(PROBES[1], include_in_schema=False)
    def ready() -> Any:
        studio.store.database.ping()
        return {"ready": True}

    app.include_router(api.routes(studio))
    app.include_router(pages.routes(studio, rendered))
    app.mount("/static", _Static(directory=pages.STATIC))
    return limits.Guard(app, settings=studio.settings)


class _Static(StaticFiles):
    async def get_response(self, path: str, scope: Any) -> Response:
        """Modules import each other by plain names, so browsers ask whether they are still the same (ETag)."""
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


class _Server(uvicorn.Server):
    """Tells those who follow a round that this server ends, since uvicorn waits for them."""

    def __init__(self, config: uvicorn.Config, studio: api.Studio) -> None:
        super().__init__(config)
        self.studio = studio

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.studio.changes.closed = True
        super().handle_exit(sig, frame)


def serve(store: Store, settings: StudioSettings, *, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    studio = api.Studio(store, settings)
    config = uvicorn.Config(
        application(studio),
        host=settings.host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=32_000,
        lifespan="on",
    )
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: None)  # uvicorn takes them while it serves, and raises them again after
    _Server(config, studio).run()


def main() -> None:
    from serving.parent import end_with_parent
    from vca.cli import guard
    from vca.settings import load

    parser = argparse.ArgumentParser(prog="python -m serving.studio", description=__doc__)
    parser.add_argument("--preset", default="local")
    parser.add_argument("--settings", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="sets", help="a setting, as in `vca run`")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--with_parent", action="store_true", help="end when the process that started this one ends")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    with guard():
        settings = load(preset=given.preset, file=given.settings, overrides=given.sets)
        if given.with_parent:
            end_with_parent()
        serve(Store.open(settings.feedback, pool=16), settings.studio, port=given.port)
