"""What a model replica holds when models share it: as many engines as it may, also when callers leave and requests cross."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest
import serving_parts as parts

from model.checkpoint import SHIPPED_CHECKPOINT, load_checkpoint, save_checkpoint
from serving.config import ServeConfig
from serving.observe.metrics import Reporting
from serving.observe.tracing import Origin
from serving.problems import Problem
from serving.replica.model_server import Claim, Held, ModelServer
from serving.schema import AccompanimentRequest, AccompanimentResult

NAMES = ("default", "b", "c")
SHORT = AccompanimentRequest(seed=7, steps=2)
LONG = AccompanimentRequest(seed=7, steps=200, candidates=8)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    folder = tmp_path_factory.mktemp("models")
    tiny = load_checkpoint(parts.tiny_checkpoint(folder / "tiny"))
    for name in NAMES:
        save_checkpoint(folder / name, dataclasses.replace(tiny, name=name))
    return {name: str(folder / name) for name in NAMES}


@pytest.fixture
def server(places: dict[str, str | None]) -> Iterator[ModelServer]:
    server = ModelServer(ServeConfig(replica_threads=1), places, 1, Reporting())
    yield server
    for held in list(server._held.values()):
        held._claims = 0
        held.close_if_idle()


def closed(held: Held) -> bool:
    return held.engine.denoiser.closed


async def until(said: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not said():
            await asyncio.sleep(0.01)


async def answered(held: Held, request: AccompanimentRequest) -> str:
    found = [message async for message in held.play(parts.vocal(), request, None, Origin()) if isinstance(message, AccompanimentResult)]
    return found[0].model


def test_a_model_that_makes_room_is_taken_back_while_it_works(server: ModelServer) -> None:
    async def crossing() -> None:
        first = await server._claimed("default")
        long = asyncio.ensure_future(answered(first, LONG))
        await until(lambda: first.engine.denoiser.waiting > 0)
        first.release()  # Serve makes room for b
        second = await server._claimed("b")
        assert not closed(first)
        second.release()
        await until(lambda: closed(second) and "b" not in server._held)
        assert await server._claimed("default") is first
        assert list(server._held) == ["default"]
        assert await answered(first, SHORT) == "default"
        long.cancel()

    asyncio.run(crossing())


def test_a_third_model_waits_until_one_has_made_room(server: ModelServer) -> None:
    async def crowding() -> None:
        first = await server._claimed("default")
        long = asyncio.ensure_future(answered(first, LONG))
        await until(lambda: first.engine.denoiser.waiting > 0)
        first.release()
        second = await server._claimed("b")
        other = asyncio.ensure_future(answered(second, LONG))
        await until(lambda: second.engine.denoiser.waiting > 0)
        second.release()
        third = asyncio.ensure_future(server._claimed("c"))
        await asyncio.sleep(0.3)
        assert not third.done()
        assert sorted(server._held) == ["b", "default"]
        long.cancel()
        assert await answered(await third, SHORT) == "c"
        assert closed(first)
        other.cancel()

    asyncio.run(crowding())


def test_who_leaves_while_a_model_is_loaded_leaves_no_engine_behind(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    load = server._loader.engine

    def slowly(place: str | None) -> object:
        time.sleep(0.3)
        return load(place)

    monkeypatch.setattr(server._loader, "engine", slowly)

    async def leaving() -> None:
        (await server._claimed("default")).release()
        asked = asyncio.ensure_future(server._claimed("b"))
        await asyncio.sleep(0.1)
        asked.cancel()
        # One at a time: this one waits for the load that nobody wants any longer.
        third = await server._claimed("c")
        await until(lambda: list(server._held) == ["c"])
        assert await answered(third, SHORT) == "c"

    asyncio.run(leaving())


def test_what_serve_lets_go_is_let_go_once(server: ModelServer) -> None:
    held = server._held["default"]
    assert held.claim()
    assert held.claim()
    claim = Claim(held)
    claim.__del__()
    claim.__del__()
    assert not closed(held)
    Claim(held).__del__()
    assert held.ended


def test_a_replica_loads_what_ships_where_nothing_was_named_whatever_its_machine_says(
    places: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKLINE_CHECKPOINT", str(places["b"]))
    server = ModelServer(ServeConfig(replica_threads=1), {"default": None}, 1, Reporting())
    shipped = load_checkpoint(SHIPPED_CHECKPOINT).name
    assert shipped not in NAMES
    assert asyncio.run(server.info("default")).id == shipped
    server._held["default"].close_if_idle()


def refused(places: dict[str, str | None], spoil: Callable[[ModelServer], Awaitable[None] | None], timeout_s: float | None) -> Problem:
    async def asking() -> Problem:
        server = ModelServer(ServeConfig(replica_threads=1), places, 1, Reporting())
        spoil(server)

        async def kept(name: str) -> Claim:
            return Claim(await server._claimed(name))

        server._of = kept  # what Serve makes of it needs a replica around it
        (problem,) = [message async for message in server.play("b", parts.vocal(), SHORT, timeout_s, Origin())]
        assert isinstance(problem, Problem)
        return problem

    return asyncio.run(asking())


def test_a_model_that_cannot_be_loaded_is_a_refusal(places: dict[str, str | None]) -> None:
    def spoil(server: ModelServer) -> None:
        server._places = {**places, "b": "/nowhere"}

    problem = refused(places, spoil, None)
    assert (problem.status, problem.retry_after_s) == (503, 5.0)
    assert "/nowhere" not in problem.detail


def test_the_time_of_a_load_counts(places: dict[str, str | None]) -> None:
    assert refused(places, lambda _: None, 0.001).status == 504
