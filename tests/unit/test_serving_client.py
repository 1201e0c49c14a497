"""The Python client against the real application and a real engine."""

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import httpx
import pytest
import serving_parts as parts
from fastapi.testclient import TestClient

from model.accompany import Accompanist
from serving.client import Client, RefusedError
from serving.engine.async_engine import LocalBackend
from serving.engine.engine import Engine, EngineConfig
from serving.engine.load import load_engine
from serving.http.admission import digest
from serving.http.app import AppConfig, create_app
from serving.messages import Message
from serving.problems import Problem
from serving.schema import AccompanimentRequest


class OftenFull(LocalBackend):
    """Refuses as often as `refusals` says before it answers."""

    refusals = 0

    async def play(self, vocal: bytes, request: AccompanimentRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Message, None]:
        if self.refusals:
            self.refusals -= 1
            yield Problem(status=503, detail="all places are taken", retry_after_s=7)
            return
        async for message in super().play(vocal, request, timeout_s=timeout_s):
            yield message


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OftenFull]:
    folder = parts.tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    loaded = load_engine(checkpoint=str(folder), codec=None, device="cpu", threads=2, max_duration_s=60.0, hang_after_s=60.0)
    short = Accompanist(loaded.accompanist.checkpoint, loaded.accompanist.codec, window_frames=64, overlap_frames=16, slope_frames=8)
    engine = Engine(short, EngineConfig(max_duration_s=60.0))
    yield OftenFull(engine)
    engine.close()
    loaded.close()


@pytest.fixture
def slept_s() -> list[float]:
    return []


@pytest.fixture
def client(backend: OftenFull, slept_s: list[float]) -> Iterator[Client]:
    config = AppConfig(api_key_digests=(digest("key"),), max_upload_bytes=2**23)
    with TestClient(create_app(backend, config)) as http:
        yield Client(key="key", attempts=3, http=http, sleep=slept_s.append)


def test_an_accompaniment(client: Client, tmp_path: Path) -> None:
    (tmp_path / "vocal.wav").write_bytes(parts.vocal())
    answer = client.accompany(tmp_path / "vocal.wav", seed=7, steps=2, candidates=2, format="flac")
    assert (answer.media_type, answer.model, answer.seed) == ("audio/flac", parts.MODEL_NAME, 7)
    assert set(answer.fit) == {"harmony", "rhythm", "overall", "leakage"}
    assert len(answer.candidate_fits) == 2
    assert answer.timing_ms["diffuse"] > 0
    assert client.accompany(parts.vocal(), seed=7, steps=2, candidates=2, format="flac").audio == answer.audio
    assert client.models()[0]["id"] == parts.MODEL_NAME


def test_a_stream_is_the_same_file(client: Client) -> None:
    with client.stream(parts.vocal(30), steps=2) as (answer, pieces):
        audio = b"".join(pieces)
    assert answer.audio == b""
    assert audio == client.accompany(parts.vocal(30), seed=answer.seed, steps=2).audio


def test_a_refusal_that_passes_is_waited_for(client: Client, backend: OftenFull, slept_s: list[float]) -> None:
    backend.refusals = 2
    assert client.accompany(parts.vocal(), steps=1).audio
    assert slept_s == [7.0, 7.0]
    backend.refusals = 3
    with pytest.raises(RefusedError, match="all places are taken") as refused:
        client.accompany(parts.vocal(), steps=1)
    assert (refused.value.status, refused.value.retry_after_s, backend.refusals) == (503, 7.0, 0)


def test_what_is_wrong_is_said_at_once(client: Client, slept_s: list[float]) -> None:
    with pytest.raises(RefusedError, match="415"):
        client.accompany(b"%PDF-1.7", steps=1)
    with pytest.raises(RefusedError, match="422: steps"):
        client.accompany(parts.vocal(), steps=0)
    assert not slept_s
    with pytest.raises(ValueError, match="attempts is 0"):
        Client(attempts=0)


class Broken(httpx.BaseTransport):
    """A service's answers, one a request: a response, or an exception where its connection breaks."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.seeds = list(answers), list[bytes]()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.seeds.append(request.content.partition(b'name="seed"\r\n\r\n')[2].partition(b"\r\n")[0])
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class CutShort(httpx.SyncByteStream):
    """A body whose connection breaks after these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")


HEADS = {
    "Content-Type": "audio/wav", "X-Backline-Model": "tiny", "X-Backline-Seed": "7", "X-Backline-Fit": "{}",
    "X-Backline-Candidate-Fits": "[]", "Server-Timing": "total;dur=1.0",
}  # fmt: skip
PLAIN_500 = {"status_code": 500, "text": "Internal Server Error"}


def broken(slept_s: list[float], *answers: httpx.Response | Exception) -> tuple[Client, Broken]:
    transport = Broken(*answers)
    return Client(http=httpx.Client(base_url="http://service", transport=transport), sleep=slept_s.append), transport


def test_who_died_with_a_request_is_asked_again_with_the_same_seed(slept_s: list[float]) -> None:
    """Ray Serve's proxy says 500 in plain text when an ingress dies, and closes connections, also in an answer, when it dies itself."""
    client, transport = broken(
        slept_s, httpx.Response(**PLAIN_500), httpx.RemoteProtocolError("disconnected"), httpx.ConnectError("refused"),
        httpx.Response(404, text="Path '/v1/accompaniments' not found."), httpx.Response(200, headers=HEADS, stream=CutShort(b"au")),
        httpx.Response(200, headers=HEADS, content=b"audio"),
    )  # fmt: skip
    assert client.accompany(b"vocal").audio == b"audio"
    assert slept_s == [1, 2, 4, 8, 16]
    assert len(set(transport.seeds)) == 1
    assert transport.seeds[0].isdigit()
    client, transport = broken(slept_s, *(httpx.ConnectError("refused") for _ in range(6)))
    with pytest.raises(httpx.ConnectError):
        client.accompany(b"vocal")
    assert not transport.answers


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500, json={"detail": "failed"}, headers={"Content-Type": "application/problem+json"}),
        httpx.Response(504, json={"detail": "late"}, headers={"Content-Type": "application/problem+json"}),
        httpx.Response(408, text="Request timed out."),
        httpx.ReadTimeout("no answer"),
    ],
)
def test_nothing_is_sent_twice_without_need(slept_s: list[float], answer: httpx.Response | Exception) -> None:
    client, transport = broken(slept_s, answer)
    with pytest.raises((RefusedError, httpx.ReadTimeout)):
        client.accompany(b"vocal")
    assert (len(transport.seeds), slept_s) == (1, [])


def test_a_broken_stream_goes_on_where_it_broke(slept_s: list[float]) -> None:
    def pieces() -> httpx.Response:
        return httpx.Response(200, headers=HEADS, content=b"abcdefgh")

    client, transport = broken(
        slept_s, httpx.Response(200, headers=HEADS, stream=CutShort(b"ab", b"cd")), httpx.ConnectError("no"), pieces()
    )
    with client.stream(b"vocal") as (_, read):
        assert b"".join(read) == b"abcdefgh"
    assert len(set(transport.seeds)) == 1
    other = httpx.Response(200, headers={**HEADS, "X-Backline-Model": "next"}, content=b"12345678")
    client, _ = broken(slept_s, httpx.Response(200, headers=HEADS, stream=CutShort(b"ab")), other)
    with client.stream(b"vocal") as (_, read), pytest.raises(httpx.RemoteProtocolError):
        list(read)
