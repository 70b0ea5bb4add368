"""KServe's model server as VCA runs it.

Three things differ from the stock server: it listens where it is told (KServe binds every interface); readiness means
that the models have answered once; and V2 over REST is served by our own routes, because stock ones refuse versioned
paths, which are the only ones that the protocol documents, and break binary pictures. V1, gRPC and /metrics are
KServe's.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from grpc import StatusCode, aio
from grpc_interceptor.exceptions import GrpcException
from kserve import ModelServer
from kserve.errors import ModelNotFound, ModelNotReady
from kserve.model_server import app
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.rest.server import RESTServer, metrics_handler
from kserve.protocol.rest.v1_endpoints import V1Endpoints
from starlette.exceptions import HTTPException

import vca
from serving.guard import Guard
from serving.model import VcaModel
from serving.refusal import Refused
from vca.service import ServingSettings

logger = logging.getLogger(__name__)

Routes = Callable[[FastAPI], None]
_GRPC = {
    400: StatusCode.INVALID_ARGUMENT,
    404: StatusCode.NOT_FOUND,
    413: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    503: StatusCode.UNAVAILABLE,
}


class Server(ModelServer):  # type: ignore[misc]
    """Serves one model. `routes` adds what the model speaks besides KServe's protocols."""

    def __init__(
        self,
        model: VcaModel[Any],
        *,
        settings: ServingSettings,
        http_port: int,
        grpc_port: int,
        routes: Routes = lambda app: None,
    ) -> None:
        super().__init__(http_port=http_port, grpc_port=grpc_port, workers=1, grace_period=settings.grace_s)
        self.model, self.settings, self.routes = model, settings, routes
        self.register_model(model)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then finish what is under way. Raises what kept the model from loading."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, lambda *_: None)  # uvicorn takes them while it serves, and raises them again after
        rest, grpc = _Rest(self), _Grpc(self)

        async def serve() -> None:
            loading = asyncio.create_task(self.model.become_ready())
            loading.add_done_callback(lambda task: self._loaded(task, rest))
            grpc_task = asyncio.create_task(grpc.start())
            await rest.start()  # ends after a signal, when every answer is out
            await grpc.stop(self.settings.grace_s)
            await grpc_task
            loading.cancel()

        asyncio.run(serve())
        if self.model.failure is not None:
            raise self.model.failure
        self.model.close()

    def _loaded(self, task: asyncio.Task[None], rest: _Rest) -> None:
        if not task.cancelled() and task.exception() is not None:
            rest._server.should_exit = True


class _Rest(RESTServer):  # type: ignore[misc]
    def __init__(self, server: Server) -> None:
        model = server.model
        guarded: Any = Guard(
            app,
            limit=server.settings.max_body_mb * 1_000_000,
            release=lambda: model.release_name if model.ready else "none",
        )
        super().__init__(
            guarded,
            server.dataplane,
            server.model_repository_extension,
            server.http_port,
            grace_period=server.settings.grace_s,
        )
        self.config.host = server.settings.host
        logging.getLogger("uvicorn.access").setLevel(logging.WARNING)  # health probes; requests count in the metrics
        self.server = server

    def _register_endpoints(self, app: FastAPI) -> None:
        root = APIRouter()
        root.add_api_route("/", self.dataplane.live, include_in_schema=False)
        root.add_api_route("/metrics", metrics_handler, methods=["GET"], include_in_schema=False)
        app.include_router(root)
        app.include_router(v1(self.dataplane))
        app.include_router(v2(self.server.model))
        self.server.routes(app)
        app.title, app.version = f"VCA {self.server.model.name}", vca.__version__

    def _add_middlewares(self, app: FastAPI) -> None:
        """KServe's one writes a log line per request."""

    def _add_exception_handlers(self, app: FastAPI) -> None:
        super()._add_exception_handlers(app)
        app.add_exception_handler(Refused, _refused)
        app.add_exception_handler(ModelNotReady, _not_ready)
        app.add_exception_handler(ModelNotFound, _not_found)
        app.add_exception_handler(RequestValidationError, _invalid)
        app.add_exception_handler(HTTPException, _http)
        app.add_exception_handler(Exception, _unexpected)


def error(request: Request, refusal: Refused) -> Response:
    """A refusal in the shape of the API that was called."""
    body = refusal.body(openai=request.url.path.startswith("/openai/"))
    return JSONResponse(body, status_code=refusal.status, headers=refusal.headers())


async def _refused(request: Request, exc: Any) -> Response:
    return error(request, exc)


async def _not_ready(request: Request, exc: Any) -> Response:
    return error(request, Refused(str(exc), status=503, code="not_ready", retry_after=5))


async def _not_found(request: Request, exc: Any) -> Response:
    return error(request, Refused(str(exc), status=404, code="unknown_model"))


async def _invalid(request: Request, exc: Any) -> Response:
    first = exc.errors()[0]
    return error(request, Refused(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"))


async def _unexpected(request: Request, exc: Any) -> Response:
    """A fault of ours. The log has it, whole; the caller learns that there was one."""
    logger.error("%s %s failed", request.method, request.url.path, exc_info=exc)
    return error(request, Refused("an error of this server's own", status=500, code="internal"))


async def _http(request: Request, exc: Any) -> Response:
    response = error(request, Refused(str(exc.detail), status=exc.status_code, code="not_found"))
    response.headers.update(exc.headers or {})
    return response


def v1(dataplane: Any) -> APIRouter:
    """KServe's V1, without explanations, which these models don't give."""
    endpoints, router = V1Endpoints(dataplane), APIRouter(prefix="/v1", tags=["V1"])
    router.add_api_route("/models", endpoints.models, methods=["GET"])
    router.add_api_route("/models/{model_name}", endpoints.model_ready, methods=["GET"], responses=_errors(404, 503))
    router.add_api_route(
        "/models/{model_name}:predict",
        endpoints.predict,
        response_model=None,
        methods=["POST"],
        responses=_errors(400, 404, 413, 422, 429, 503),
        openapi_extra=_json_body({"type": "object", "required": ["instances"]}),
    )
    return router


def v2(model: VcaModel[Any]) -> APIRouter:
    """The Open Inference Protocol over REST, with and without a version in the path."""
    router = APIRouter(prefix="/v2", tags=["V2"])

    def named(name: str, version: str | None = None) -> VcaModel[Any]:
        if name != model.name:
            raise Refused(f"model {name[:60]!r} is not served here; {model.name} is", status=404, code="unknown_model")
        model.check_version(version if model.ready else None)
        return model

    async def server() -> Any:
        return {"name": "vca", "version": vca.__version__, "extensions": ["binary_tensor_data", "model_repository"]}

    async def live() -> Any:
        return {"live": True}

    async def ready() -> Any:
        if not model.ready:
            raise ModelNotReady(model.name)
        return {"ready": True}

    async def models() -> Any:
        return {"models": [model.name]}

    async def metadata(model_name: str, model_version: str | None = None) -> Any:
        found = named(model_name, model_version)
        if not found.ready:
            raise ModelNotReady(found.name)
        return found.metadata()

    async def model_ready(model_name: str, model_version: str | None = None) -> Any:
        found = named(model_name, model_version)
        if not found.ready:
            raise ModelNotReady(found.name)
        return {"name": found.name, "ready": True}

    async def infer(request: Request, model_name: str, model_version: str | None = None) -> Response:
        found = named(model_name, model_version)
        content, headers = await found.infer_rest(await request.body(), request.headers, model_version)
        return Response(content, headers=headers)

    async def load(model_name: str) -> Any:
        return {"name": model_name, "load": True, "release": await named(model_name).swap()}

    async def unload(model_name: str) -> Any:
        named(model_name)
        raise Refused("this server serves one model for as long as it runs; stop the server instead")

    both: list[tuple[str, Any, str, tuple[int, ...]]] = [
        ("", metadata, "GET", (404, 503)),
        ("/ready", model_ready, "GET", (404, 503)),
        ("/infer", infer, "POST", (400, 404, 413, 422, 429, 503)),
    ]
    for path in ("", "/"):
        router.add_api_route(path, server, methods=["GET"])
    router.add_api_route("/health/live", live, methods=["GET"])
    router.add_api_route("/health/ready", ready, methods=["GET"], responses=_errors(503))
    router.add_api_route("/models", models, methods=["GET"])
    for path, endpoint, method, statuses in both:
        body = _json_body({"type": "object", "required": ["inputs"]}) if method == "POST" else None
        for versioned in ("", "/versions/{model_version}"):
            router.add_api_route(
                f"/models/{{model_name}}{versioned}{path}",
                endpoint,
                methods=[method],
                responses=_errors(*statuses),
                openapi_extra=body,
                response_model=None,
            )
    repository: list[tuple[str, Any]] = [("load", load), ("unload", unload)]
    for name, endpoint in repository:
        router.add_api_route(
            f"/repository/models/{{model_name}}/{name}",
            endpoint,
            methods=["POST"],
            responses=_errors(400, 404, 503),
        )
    return router


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    content = {"application/json": {"schema": schema}}
    return {status: {"description": "refused", "content": content} for status in statuses}


def _json_body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class _Interceptor(ExceptionToStatusInterceptor):  # type: ignore[misc]
    async def handle_exception(self, ex: Exception, request_or_iterator: Any, context: Any, method_name: str) -> None:
        if isinstance(ex, Refused):
            await context.abort(_GRPC.get(ex.status, StatusCode.INVALID_ARGUMENT), ex.message)
        elif isinstance(ex, ModelNotReady):  # KServe's own branch for it fails
            await context.abort(StatusCode.UNAVAILABLE, str(ex))
        elif isinstance(ex, GrpcException):
            await context.abort(ex.status_code, ex.details)
        else:
            await super().handle_exception(ex, request_or_iterator, context, method_name)


class _Servicer(InferenceServicer):  # type: ignore[misc]
    """KServe's, but a swap instead of a load, and no unloading by strangers."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.dataplane, server.model_repository_extension)
        self.server = server

    async def ServerReady(self, request: Any, context: Any) -> Any:
        answer = await super().ServerReady(request, context)
        answer.ready = self.server.model.ready
        return answer

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        raise Refused("releases are changed over REST: POST /v2/repository/models/NAME/load")

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        raise Refused("this server serves one model for as long as it runs; stop the server instead")


class _Grpc:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.grpc: Any = None

    async def start(self) -> None:
        limit = self.server.settings.max_body_mb * 1_000_000
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", limit)]
        self.grpc = aio.server(interceptors=(_Interceptor(),), options=options)
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(self.server), self.grpc)
        self.grpc.add_insecure_port(f"{self.server.settings.host}:{self.server.grpc_port}")
        await self.grpc.start()
        await self.grpc.wait_for_termination()

    async def stop(self, grace: float) -> None:
        if self.grpc is not None:
            await self.grpc.stop(grace)
