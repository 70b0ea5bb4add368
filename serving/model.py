"""What both servers' models have in common: protocols in, one answer out, readiness, and who gave the answer."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import uuid
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import orjson
from kserve import InferRequest, Model
from kserve.errors import ModelNotReady
from kserve.model import InferenceVerb

from serving import tensors
from serving.device import Busy, Device, Stopping, U
from serving.refusal import Refused
from vca.monitoring import metrics
from vca.service import ServingSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")

REQUEST_ID, RELEASE, TIMEOUT = "x-request-id", "x-vca-release", "x-request-timeout"


@dataclass(kw_only=True)
class Call:
    """One request on its way: its id, when it is given up (`time.monotonic`), and which release answered."""

    request_id: str
    deadline: float
    release: str = ""

    @classmethod
    def of(cls, headers: Mapping[str, str] | None, *, settings: ServingSettings) -> Call:
        """From a request's headers; X-Request-Timeout (seconds) may shorten the deadline, never lengthen it."""
        found = {name.lower(): value for name, value in (headers or {}).items()}
        seconds = settings.deadline_s
        if asked := found.get(TIMEOUT):
            try:
                seconds = min(seconds, float(asked))
            except ValueError:
                seconds = math.nan
            if not seconds > 0:
                raise Refused(f"X-Request-Timeout {asked[:20]!r}: give seconds above 0")
        return cls(request_id=request_id(found.get(REQUEST_ID)), deadline=time.monotonic() + seconds)

    def headers(self) -> dict[str, str]:
        return {REQUEST_ID: self.request_id, RELEASE: self.release}


def request_id(given: str | None) -> str:
    """The caller's own id where it is a sane one, else a new one: it is the key of feedback, and goes to logs."""
    return given if given and re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """An input or output of the V2 protocol, as metadata tells it."""

    name: str
    datatype: str
    shape: list[int]

    def entry(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": self.shape}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """outputs of V2; parameters go with them."""

    outputs: Sequence[tensors.Tensor]
    parameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)


class VcaModel(Model):  # type: ignore[misc]
    """A KServe model that becomes ready by itself: `open` loads and warms up in a thread while liveness answers."""

    inputs: tuple[Tensors, ...] = ()
    outputs: tuple[Tensors, ...] = ()
    as_text: ClassVar[Mapping[str, Callable[[bytes], str]]] = {}

    def __init__(self, name: str, *, settings: ServingSettings) -> None:
        super().__init__(name)
        self.settings = settings
        self.born = time.monotonic()
        self.failure: BaseException | None = None

    # What a model is

    @property
    @abstractmethod
    def release_name(self) -> str: ...

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """What V2 metadata tells of the model besides its tensors."""

    @abstractmethod
    def open(self) -> None:
        """Load everything. Runs in a thread of its own."""

    @abstractmethod
    async def warm_up(self) -> None:
        """Answer once. Readiness follows."""

    @abstractmethod
    async def swap(self) -> str:
        """Serve what lies at the configured place now; the release's name. The old one serves until then, or on."""

    @abstractmethod
    async def answer(self, request: tensors.Request, call: Call) -> Answer: ...

    @abstractmethod
    async def answer_v1(self, instances: list[dict[str, Any]], call: Call) -> list[dict[str, Any]]: ...

    @abstractmethod
    def close(self) -> None:
        """Finish what is under way."""

    # What KServe asks for

    async def become_ready(self) -> None:
        marks = {"imports": self.born, "loading": time.monotonic()}
        try:
            await asyncio.to_thread(self.open)
            marks["warm_up"] = time.monotonic()
            await self.warm_up()
        except BaseException as error:
            self.failure = error
            raise
        self.ready = True
        metrics.RELEASE.labels(self.name, self.release_name).set(1)
        ends = [*list(marks.values())[1:], time.monotonic()]
        spent = {part: end - start for (part, start), end in zip(marks.items(), ends, strict=True)}
        for part, seconds in spent.items():
            metrics.COLD_START.labels(self.name, part).set(seconds)
        told = ", ".join(f"{part.replace('_', ' ')} {seconds:.1f} s" for part, seconds in spent.items())
        logger.info("%s is ready, release %s (%s)", self.name, self.release_name, told)

    def load(self) -> bool:
        """KServe calls this for a model that isn't ready. It becomes so by itself."""
        raise ModelNotReady(self.name, "It is loading.")

    async def get_input_types(self) -> list[dict[str, Any]]:
        return [tensor.entry() for tensor in self.inputs]

    async def get_output_types(self) -> list[dict[str, Any]]:
        return [tensor.entry() for tensor in self.outputs]

    def metadata(self) -> dict[str, Any]:
        """Model metadata of V2. The release is the version."""
        return {
            "name": self.name,
            "versions": [self.release_name],
            "platform": "vca",
            "inputs": [tensor.entry() for tensor in self.inputs],
            "outputs": [tensor.entry() for tensor in self.outputs],
            "properties": {"release": self.release_name, **self.facts()},
        }

    def check_version(self, version: str | None) -> None:
        """Raises Refused for a version that isn't the one that serves."""
        if version and version != self.release_name:
            raise Refused(
                f"version {version[:60]!r} of {self.name} is not served; {self.release_name} is",
                status=404,
                code="unknown_version",
            )

    async def __call__(
        self,
        body: dict[str, Any] | bytes | InferRequest,
        headers: dict[str, str] | None = None,
        verb: InferenceVerb = InferenceVerb.PREDICT,
    ) -> tuple[Any, dict[str, str]]:
        """V1 over REST and V2 over gRPC; V2 over REST has `infer_rest`."""
        if not self.ready:
            raise ModelNotReady(self.name)
        call = Call.of(headers, settings=self.settings)
        if isinstance(body, InferRequest):
            self.check_version(body.model_version)
            request = tensors.from_grpc(body)
            answer = await self.timed("v2-grpc", call, self.answer(request, call))
            return tensors.to_grpc(answer.outputs, request=request, head=self._head(answer, call)), call.headers()
        if isinstance(body, bytes):  # KServe leaves a body alone whose Content-Type isn't JSON's, as curl's isn't
            with suppress(orjson.JSONDecodeError):
                body = orjson.loads(body)
        if not isinstance(body, dict) or not isinstance(body.get("instances"), list):
            raise Refused('V1 expects {"instances": [{…}, …]}', param="instances")
        if not all(isinstance(instance, dict) for instance in body["instances"]):
            raise Refused("instances: each must be an object", param="instances")
        if not body["instances"]:
            raise Refused("instances: give at least one", param="instances")
        predictions = await self.timed("v1", call, self.answer_v1(body["instances"], call))
        return {"predictions": predictions}, call.headers()

    async def infer_rest(self, body: bytes, headers: Mapping[str, str], version: str | None) -> Any:
        """The body and headers of a V2 inference over REST."""
        if not self.ready:
            raise ModelNotReady(self.name)
        self.check_version(version)
        call = Call.of(headers, settings=self.settings)
        request = tensors.from_rest(body, header_length=headers.get(tensors.HEADER_LENGTH))
        answer = await self.timed("v2", call, self.answer(request, call))
        content, found = tensors.to_rest(
            answer.outputs, request=request, head=self._head(answer, call), as_text=self.as_text
        )
        return content, {**found, **call.headers()}

    def _head(self, answer: Answer, call: Call) -> dict[str, Any]:
        parameters = {"request_id": call.request_id, "release": call.release, **answer.parameters}
        return {"model_name": self.name, "model_version": call.release, "parameters": parameters}

    async def timed(self, api: str, call: Call, answer: Awaitable[Any]) -> Any:
        """Count and time an answer, whatever becomes of it."""
        started, outcome = time.monotonic(), "failed"
        try:
            result = await answer
            outcome = "ok"
            return result
        except Refused as refusal:
            outcome = "busy" if refusal.status in (429, 503) else "refused"
            raise
        except asyncio.CancelledError:
            outcome = "left"
            raise
        finally:
            metrics.REQUESTS.labels(self.name, api, outcome).inc()
            metrics.REQUEST_SECONDS.labels(self.name, api).observe(time.monotonic() - started)


async def on_device(device: Device[U], units: Sequence[U]) -> None:
    """Have units done, what the device says being put into the callers' words."""
    try:
        await device.run(units)
    except Busy as busy:
        if busy.full:
            message, status, code = f"too many pictures are waiting ({busy}); try again later", 429, "queue_full"
        else:
            message, status, code = f"not done in time: {busy}; try again later", 503, "deadline"
        raise Refused(message, status=status, code=code, retry_after=busy.retry_after) from None
    except Stopping as stopping:
        raise Refused(str(stopping), status=503, code="stopping", retry_after=1) from None


async def together(parts: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All of them, or the first one's error: the others are given up then."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
