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
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import orjson
from kserve import InferRequest, Model
from kserve.errors import ModelNotReady
from kserve.metrics import PREDICT_HIST_TIME, get_labels
from kserve.model import InferenceVerb

from serving import tensors
from serving.device import Busy, Device, Stopping, U
from serving.refusal import Refused
from vca.errors import ArtifactError
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
                wanted = float(asked)
            except ValueError:
                wanted = math.nan
            if not wanted > 0:
                raise Refused(f"X-Request-Timeout {asked[:20]!r}: give seconds above 0")
            seconds = min(seconds, wanted)
        return cls(request_id=request_id(found.get(REQUEST_ID)), deadline=time.monotonic() + seconds)

    def headers(self) -> dict[str, str]:
        return {REQUEST_ID: self.request_id, RELEASE: self.release}


def request_id(given: str | None) -> str:
    """The caller's own id where it is a sane one, else a new one: it is the key of feedback, and goes to logs."""
    return given if given and re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or output of the V2 protocol, as metadata tells it."""

    name: str
    datatype: str
    shape: list[int]

    def entry(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": self.shape}


class Named(Protocol):
    """A release: what every answer, metric and picture of it carries is its name."""

    @property
    def name(self) -> str: ...


R = TypeVar("R", bound=Named)


class VcaModel(Model, Generic[R]):  # type: ignore[misc]
    """A KServe model that becomes ready by itself: `open` loads and warms up in a thread while liveness answers."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    as_text: ClassVar[Mapping[str, Callable[[bytes], str]]] = {}

    def __init__(self, name: str, *, settings: ServingSettings) -> None:
        super().__init__(name)
        self.settings = settings
        self.release: R
        self.device: Device[Any]
        self._swapping = asyncio.Lock()
        self.born = time.monotonic()
        self.failure: BaseException | None = None

    # What a model is

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """What V2 metadata tells of the model besides its tensors."""

    @abstractmethod
    def open(self) -> None:
        """Load everything and start the device. Runs in a thread of its own."""

    @abstractmethod
    def open_release(self) -> R:
        """What lies at the configured place now. Runs in a thread of its own; raises ArtifactError."""

    @abstractmethod
    async def try_release(self, release: R) -> None:
        """Have it answer once. Raises ArtifactError where nothing sensible comes out."""

    @abstractmethod
    async def answer(self, request: tensors.Request, call: Call) -> Sequence[tensors.Tensor]: ...

    @abstractmethod
    async def answer_v1(self, instances: list[dict[str, Any]], call: Call) -> list[dict[str, Any]]: ...

    @property
    def release_name(self) -> str:
        return self.release.name

    async def swap(self) -> str:
        """Serve what lies at the configured place now; the release's name. The old one serves until then, or on."""
        if not self.ready:
            raise ModelNotReady(self.name)
        async with self._swapping:
            try:
                new = await asyncio.to_thread(self.open_release)
                await self.try_release(new)
            except ArtifactError as error:
                metrics.SWAPS.labels(self.name, "refused").inc()
                raise Refused(f"{error}; {self.release_name} goes on serving", code="bad_release") from None
            metrics.RELEASE.labels(self.name, self.release_name).set(0)
            self.release = new
            metrics.RELEASE.labels(self.name, self.release_name).set(1)
            metrics.SWAPS.labels(self.name, "done").inc()
            logger.info("%s: release %s serves", self.name, self.release_name)
            return self.release_name

    def close(self) -> None:
        """Finish what is under way."""
        self.device.stop()

    # What KServe asks for

    async def become_ready(self) -> None:
        marks = {"imports": self.born, "loading": time.monotonic()}
        try:
            await asyncio.to_thread(self.open)
            marks["warm_up"] = time.monotonic()
            await self.try_release(self.release)
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
            outputs = await self.timed("v2-grpc", call, self.answer(request, call))
            return tensors.to_grpc(outputs, request=request, head=self._head(call)), call.headers()
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
        outputs = await self.timed("v2", call, self.answer(request, call))
        content, found = tensors.to_rest(outputs, request=request, head=self._head(call), as_text=self.as_text)
        return content, {**found, **call.headers()}

    def _head(self, call: Call) -> dict[str, Any]:
        parameters = {"request_id": call.request_id, "release": call.release}
        return {"model_name": self.name, "model_version": call.release, "parameters": parameters}

    async def timed(self, api: str, call: Call, answer: Awaitable[Any]) -> Any:
        """Count and time an answer, whatever becomes of it."""
        started, outcome = time.monotonic(), "failed"
        try:
            with PREDICT_HIST_TIME.labels(**get_labels(self.name)).time():  # KServe's own, which its base class fills
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
    except Exception:  # its cause is in the log, and no caller's business
        raise Refused("the device failed; try again later", status=503, code="device_failed", retry_after=5) from None


async def together(parts: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All of them, or the first one's error: the others are given up then."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
