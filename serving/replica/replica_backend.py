"""What stands behind an ingress on Ray Serve: model replicas, asked again elsewhere when one dies, and the choice between models."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from ray import serve as ray_serve
from ray.exceptions import ObjectLostError, RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatus, ReplicaState

from infra import logs
from serving.config import DEFAULT_MODEL
from serving.messages import Message
from serving.observe import tracing
from serving.observe.tracing import Origin
from serving.problems import Problem, ProblemError, unknown_model
from serving.replica.quarantine import QUARANTINE_S, Quarantine
from serving.schema import AccompanimentRequest, AccompanimentResult, ModelInfo

log = logging.getLogger(__name__)

STATUS_CACHE_S = 1.0
WAITING_LOOK_S = 3.0
"""How often who waits for a place in a replica looks whether there will be one."""
CONTROLLER_TIMEOUT_S = 5.0
INFO_TIMEOUT_S = 5.0
MOST_DEATHS = 2
"""Replicas that one request may cost."""
MOST_ATTEMPTS = 5
"""Replicas that it is sent to: they may die of others before they begin with it."""
HEARD_S = 2.0
"""A replica that has told anything so lately is there. One that works on a request tells of it four times a second."""


_ABSENT = (RayActorError, BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError)
"""What Serve raises where no replica takes a call."""


class _EndingError(Exception):
    """The service is being taken down, and no replica has begun with the request."""


class _ReplicaDiedError(Exception):
    """The replica that had the request is gone."""


class _Sent:
    """What the caller has of an answer already, and so needs no more when a second replica makes it anew."""

    def __init__(self) -> None:
        self.model: str | None = None
        self._bytes, self._skip = 0, 0

    def fresh(self, message: Message) -> Message | None:
        """What of a replica's message is new."""
        if isinstance(message, AccompanimentResult) and self.model is None:
            self.model, self._bytes = message.model, len(message.audio)
            return message
        if isinstance(message, AccompanimentResult):
            self._skip = self._bytes  # another replica begins anew
            message = message.audio
        if not isinstance(message, bytes):
            return message
        fresh, self._skip = message[self._skip :], max(0, self._skip - len(message))
        self._bytes += len(fresh)
        return fresh or None


class ReplicaBackend:
    """One model: its replicas behind a Serve handle."""

    def __init__(
        self, handle: DeploymentHandle, application: str, deployment: str, model: str, *, may_sleep: bool, retry_after_s: float = 5.0
    ) -> None:
        """model: what its replicas know it by. may_sleep: no replica at all is a healthy state; a request wakes one."""
        self._handle, self._model = handle, model
        self._application, self._deployment = application, deployment
        self._may_sleep = may_sleep
        self._retry_after_s = retry_after_s
        self._info: ModelInfo | None = None
        self._asking = asyncio.Lock()
        self._quarantine = Quarantine()
        self._heard_s = -HEARD_S
        self._known: tuple[float, ApplicationStatusOverview | None] = (-STATUS_CACHE_S, None)

    async def play(self, vocal: bytes, request: AccompanimentRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Message, None]:
        """A request is a function of its seed, so one whose replica died is simply asked again; of a stream that had begun, the bytes that
        were sent are made again and skipped. A replica works on one such request at a time: of two of them, the one in work when the next
        replica dies is sent to no third, and the other is."""
        if await self._quarantine.holds(vocal, request):
            yield _quarantined()
            return
        sent, began_s, deaths = _Sent(), time.monotonic(), 0
        for _ in range(MOST_ATTEMPTS):
            left_s = None if timeout_s is None else max(0.001, timeout_s - (time.monotonic() - began_s))
            begun = not deaths  # the first time, whatever was in the replica is suspected
            async with aclosing(self._attempt(vocal, request, left_s, deaths)) as messages:
                try:
                    async for message in messages:
                        begun = True
                        if isinstance(message, AccompanimentResult) and sent.model not in (None, message.model):
                            # A rollout came between: the rest of a stream has to be the same model's.
                            detail = "the replica working on this stream died, and its model is replaced by now"
                            yield self._unavailable("Replica lost", detail)
                            return
                        if (fresh := sent.fresh(message)) is not None:
                            yield fresh
                    return
                except _ReplicaDiedError:
                    deaths += begun
            if deaths == MOST_DEATHS:
                await self._quarantine.add(vocal, request)
                log.error("%d model replicas died of this request, which is sent to none for %g s", deaths, QUARANTINE_S)
                yield _quarantined()
                return
        yield self._unavailable("Replica lost", "the replicas working on this request died; try again after the time in Retry-After")

    async def _attempt(
        self, vocal: bytes, request: AccompanimentRequest, timeout_s: float | None, deaths: int
    ) -> AsyncGenerator[Message, None]:
        """What one replica says of a request, or why none takes it; _ReplicaDiedError where it dies with it. deaths: of those before."""
        span = tracing.started("backend call", attempt=deaths + 1)
        origin = Origin(request_id=logs.request_id(), traceparent=span.traceparent, suspect=deaths > 0)
        answers: Any = self._handle.options(stream=True).play.remote(self._model, vocal, request, timeout_s, origin)
        try:
            async with aclosing(self._begun(answers)) as messages:
                async for message in messages:
                    self._heard_s = time.monotonic()
                    yield message
        except _EndingError:
            yield self._unavailable("Not ready", "the service is ending; try again after the time in Retry-After")
        except BackPressureError:
            yield self._unavailable("Full", "all places in the queue are taken; try again after the time in Retry-After")
        except DeploymentUnavailableError:
            yield self._unavailable("Not ready", "no model could be loaded; the service's log has the reason")
        except (RayActorError, ReplicaUnavailableError, ObjectLostError) as error:
            log.warning("a model replica died with a request%s: %s", "" if deaths else ", asking another", error)
            span.fail("replica died")
            raise _ReplicaDiedError from error
        finally:
            answers.cancel()
            span.end()

    async def _begun(self, answers: AsyncIterator[Message]) -> AsyncGenerator[Message, None]:
        """Those of a replica, and _EndingError where none has said anything and the deployment goes: Serve itself would let it wait."""

        async def begin() -> Message:
            return await anext(answers)

        first = asyncio.create_task(begin())
        first.add_done_callback(lambda done: done.cancelled() or done.exception())  # or asyncio logs one that nobody waits for any more
        try:
            while not (await asyncio.wait({first}, timeout=WAITING_LOOK_S))[0]:
                if await self._is_ending() and not first.done():
                    raise _EndingError
            yield await first
        except StopAsyncIteration:
            return
        finally:
            first.cancel()
        async for message in answers:
            yield message

    async def info(self) -> ModelInfo:
        """Asked once: it does not change for as long as a deployment lives. Raises ProblemError 503."""
        if self._info is None:
            try:
                async with asyncio.timeout(INFO_TIMEOUT_S):
                    self._info = await self._handle.info.remote(self._model)
            except (TimeoutError, *_ABSENT) as error:
                problem = self._unavailable(
                    "Not ready", "the model is still being loaded, or busy; try again after the time in Retry-After"
                )
                raise ProblemError(problem) from error
        return self._info

    async def not_ready(self) -> str | None:
        """As Serve's controller knows it, so that a busy model does not look like a missing one. It knows no deployments while it builds
        an application anew, and after it failed to; then, and where it does not answer itself, the replicas are asked."""
        try:
            application = await self._status()
        except TimeoutError:
            return None if await self._answers() else "neither Ray Serve's controller nor a model replica answers"
        if application is None or application.status == ApplicationStatus.DELETING:
            return "the service is ending"
        model = application.deployments.get(self._deployment)
        if model is None:
            if (self._may_sleep and not application.deployments) or await self._answers():
                return None
            return f"no model replica answers ({application.message or application.status.value})"
        asleep = self._may_sleep and model.status == DeploymentStatus.HEALTHY
        if model.replica_states.get(ReplicaState.RUNNING, 0) or asleep:
            return None
        return f"no model replica is running ({model.message or model.status.value})"

    async def _answers(self) -> bool:
        """Whether a replica tells anything: to a request of somebody's, or when it is asked."""
        if time.monotonic() - self._heard_s < HEARD_S:
            return True
        try:
            async with asyncio.timeout(HEARD_S):
                self._info = await self._handle.info.remote(self._model)
        except (TimeoutError, *_ABSENT):
            return False
        return True

    async def _is_ending(self) -> bool:
        try:
            application = await self._status()
        except TimeoutError:
            return False
        if application is None or application.status == ApplicationStatus.DELETING:
            return True
        return bool(application.deployments) and self._deployment not in application.deployments

    async def _status(self) -> ApplicationStatusOverview | None:
        """What Serve's controller knows of the application, asked at most once a second. Raises TimeoutError."""
        async with self._asking:
            asked_s, known = self._known
            if time.monotonic() - asked_s >= STATUS_CACHE_S:
                async with asyncio.timeout(CONTROLLER_TIMEOUT_S):
                    status = await asyncio.to_thread(ray_serve.status)
                known = status.applications.get(self._application)
                self._known = (time.monotonic(), known)
        return known

    def _unavailable(self, title: str, detail: str) -> Problem:
        return Problem(status=503, title=title, detail=detail, retry_after_s=self._retry_after_s)


def _quarantined() -> Problem:
    """No 503: asked again, it would cost further replicas."""
    detail = f"two replicas died while they worked on this request; it is not tried again for {QUARANTINE_S / 60:g} minutes"
    return Problem(status=500, title="Quarantined", detail=detail)


class ModelsBackend:
    """Several models; a request names one by the name that it was given here or by its id, or takes the first."""

    def __init__(self, backends: dict[str, ReplicaBackend]) -> None:
        self._backends = backends

    async def play(self, vocal: bytes, request: AccompanimentRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Message, None]:
        """See `ReplicaBackend.play`; a model that is not known is a problem of the caller's."""
        backend = self._backends.get(request.model or DEFAULT_MODEL)
        if backend is None:
            known = {info.id: one for one, info in zip(self._backends.values(), await self.models(), strict=True)}
            backend = known.get(request.model or DEFAULT_MODEL)
            if backend is None:
                yield unknown_model(request.model or "", list(self._backends) + list(known))
                return
        async with aclosing(backend.play(vocal, request, timeout_s=timeout_s)) as messages:
            async for message in messages:
                yield message

    async def models(self) -> list[ModelInfo]:
        """The default first."""
        return list(await asyncio.gather(*(backend.info() for backend in self._backends.values())))

    async def not_ready(self) -> str | None:
        """Of the default model."""
        return await self._backends[DEFAULT_MODEL].not_ready()
