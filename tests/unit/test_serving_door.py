"""Where files become samples: in processes that may die, and before a request enters the engine."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import serving_parts as parts
from fastapi.testclient import TestClient

from infra.audio.decoders import Decoders
from infra.audio.files import NotAudio
from serving.engine.async_engine import LocalBackend
from serving.engine.door import Door
from serving.engine.engine import Call, CancelledRequestError, DeadlineError, Engine, EngineConfig
from serving.engine.load import load_engine
from serving.http.app import AppConfig, create_app
from serving.schema import AccompanimentRequest

QUICK = AccompanimentRequest(seed=7, steps=2)
AT_A_TIME = 2


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Iterator[Engine]:
    folder = parts.tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    loaded = load_engine(checkpoint=str(folder), codec=None, device="cpu", threads=1, max_duration_s=60.0, hang_after_s=60.0)
    engine = Engine(loaded.accompanist, EngineConfig(max_duration_s=60.0), clock)
    yield engine
    engine.close()
    loaded.close()


@pytest.fixture
def others() -> set[int]:
    """Decoders that other tests of this process have left."""
    return {child.pid for child in parts.processes(psutil.Process(), "infra.audio.decoder_child")}


@pytest.fixture
def decoders(others: set[int]) -> Iterator[Decoders]:
    decoders = Decoders(AT_A_TIME)
    decoders.start()
    assert len(children(others)) == AT_A_TIME
    yield decoders
    decoders.close()


def children(others: set[int]) -> list[psutil.Process]:
    return [child for child in parts.processes(psutil.Process(), "infra.audio.decoder_child") if child.pid not in others]


def test_uploads_that_are_rejected_never_make_the_engine_look_hung(
    engine: Engine, decoders: Decoders, others: set[int], clock: Clock
) -> None:
    """However many there are and however long their decoding takes: they are not in the engine, and a band is played meanwhile."""
    door = Door(engine, decoders)
    for child in children(others):
        child.suspend()
    with ThreadPoolExecutor(6) as threads:
        rejected = [threads.submit(door.generate, b"%PDF-1.7 no vocal", QUICK) for _ in range(6)]
        for _ in range(3):
            clock.now_s += 1_000
            assert (engine.calls, engine.stalled_s()) == (0, 0)
        assert engine.generate(parts.stereo(), QUICK).audio_CN.any()
        assert engine.stalled_s() == 0
        for child in children(others):
            child.resume()
        for future in rejected:
            assert isinstance(future.exception(), NotAudio)
    assert (engine.calls, engine.stalled_s()) == (0, 0)


@pytest.mark.parametrize(("timeout_s", "end"), [(None, CancelledRequestError), (1.0, DeadlineError)])
def test_a_file_whose_request_ends_ends_the_process_that_decodes_it(
    engine: Engine, decoders: Decoders, others: set[int], timeout_s: float | None, end: type[Exception]
) -> None:
    """And who waited for that process has another one."""
    door, before, call = Door(engine, decoders), {child.pid for child in children(others)}, Call(timeout_s)
    for child in children(others):
        child.suspend()
    with ThreadPoolExecutor(6) as threads:
        ending = [threads.submit(door.generate, parts.vocal(), QUICK, call) for _ in range(AT_A_TIME)]
        while decoders.free and not all(future.done() for future in ending):
            time.sleep(0.01)
        waiting = threads.submit(door.generate, parts.vocal(), QUICK)
        if end is CancelledRequestError:
            call.cancel()
        for future in ending:
            assert isinstance(future.exception(), end)
        assert waiting.result().audio
    assert not before & {child.pid for child in children(others)}


def test_a_codec_that_crashes_costs_a_process_and_not_the_engine(engine: Engine, decoders: Decoders, others: set[int]) -> None:
    door = Door(engine, decoders)
    for child in children(others):
        child.suspend()
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(door.generate, parts.vocal(), QUICK) for _ in range(AT_A_TIME)]
        for child in children(others):
            os.kill(child.pid, signal.SIGSEGV)
            child.resume()
        assert len({future.result().audio for future in asked}) == 1


def test_crafted_files_are_rejected_over_http_and_others_answered(engine: Engine) -> None:
    boxes = b"\0\0\0\x10ftypM4A \0\0\0\0" + b"\0\0\0\x08free" * (99 * 2**20 // 8)
    chunks = b"RIFF\xff\xff\xff\x7fWAVE" + b"junk\0\0\0\0" * (99 * 2**20 // 8)
    with TestClient(create_app(LocalBackend(engine), AppConfig())) as client, ThreadPoolExecutor(3) as threads:

        def post(vocal: bytes) -> tuple[int, str]:
            answer = client.post("/v1/accompaniments", files={"vocal": ("v", vocal)}, data=parts.QUICK)
            return answer.status_code, answer.json()["detail"] if answer.status_code != 200 else ""

        asked = [threads.submit(post, vocal) for vocal in (boxes, chunks, parts.vocal())]
        found = [future.result() for future in asked]
    assert [status for status, _ in found] == [400, 400, 200]
    assert "boxes" in found[0][1]
    assert "chunks" in found[1][1]
