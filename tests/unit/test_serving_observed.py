"""What the service tells of its requests, and what it does not: log lines, traces, kept files; a real engine, a real collector."""

import asyncio
import base64
import io
import json
import logging
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
import serving_parts as parts
from fastapi.testclient import TestClient
from httpx import Request, Response
from otlp_collector import Collector, Seen, collecting

from infra.logs import JsonLines
from infra.storage.place import Place
from model.accompany import Accompanist
from serving.engine.async_engine import LocalBackend
from serving.engine.engine import Engine, EngineConfig
from serving.engine.load import load_engine
from serving.http.admission import digest
from serving.http.app import AppConfig, create_app
from serving.messages import Message
from serving.observe.tracing import Tracer
from serving.schema import AccompanimentRequest

HTTP_PATH = "/v1/accompaniments"
ID = "an-observed-request"
MARK = b"MARK-5f1c-of-the-vocal"
FILE_NAME = "unreleased song of Ada.wav"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = parts.tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    loaded = load_engine(checkpoint=str(folder), codec=None, device="cpu", threads=1, max_duration_s=60.0, hang_after_s=60.0)
    # Windows of 3 s, so that a short vocal is played in several.
    tiny = Accompanist(loaded.accompanist.checkpoint, loaded.accompanist.codec, window_frames=64, overlap_frames=16, slope_frames=8)
    return Engine(tiny, EngineConfig(max_duration_s=60.0))


class Lines:
    """Log lines as they are printed."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def all(self) -> list[dict]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def of(self, id: str) -> list[dict]:
        return [line for line in self.all() if line.get("request_id") == id]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Everything at DEBUG, of other libraries too."""
    root, lines = logging.getLogger(), Lines()
    handler = logging.StreamHandler(lines.stream)
    handler.setFormatter(JsonLines())
    before = root.level
    root.addHandler(handler)
    root.setLevel("DEBUG")
    yield lines
    root.setLevel(before)
    root.removeHandler(handler)


def post(client: TestClient, vocal: bytes, id: str = ID, headers: dict[str, str] | None = None, **fields: str) -> Response:
    files = {"vocal": (FILE_NAME, vocal, "audio/wav")}
    return client.post(HTTP_PATH, files=files, data={**parts.QUICK, **fields}, headers={"X-Request-Id": id, **(headers or {})})


def test_a_request_s_lines_tell_everything_but_the_vocal(engine: Engine, lines: Lines) -> None:
    config = AppConfig(api_key_digests=(digest("the-key"),))
    with TestClient(create_app(LocalBackend(engine), config)) as client:
        answer = post(client, parts.vocal(4.5), headers={"X-API-Key": "the-key"}, output="mix", format="flac", steps="3")
    assert answer.status_code == 200
    told = lines.of(ID)
    assert [(line["logger"], line["message"]) for line in told if line["level"] != "DEBUG"] == [
        ("serving.http.request_log", "accepted"), ("serving.engine.async_engine", "began"),
        ("serving.engine.async_engine", "answered"), ("serving.http.request_log", "answered"),
    ]  # fmt: skip
    last = [line for line in told if line["logger"] == "serving.http.request_log"][-1]
    assert last["status"] == 200
    assert last["caller"] == digest("the-key")[:8]
    assert last["model"] == parts.MODEL_NAME
    assert last["vocal_s"] == pytest.approx(4.5)
    wanted = {"seed": 7, "steps": 3, "candidates": 1, "output": "mix", "format": "flac", "bytes_out": len(answer.content)}
    assert last.items() >= wanted.items()
    assert set(last["stages"]) == {"queue", "decode", "encode", "diffuse", "fit", "render"}
    assert set(last["fit"]) == {"harmony", "rhythm", "overall", "leakage"}
    assert 0 < last["stages"]["diffuse"] < last["seconds"] < 60
    assert "the-key" not in lines.stream.getvalue()
    assert digest("the-key") not in lines.stream.getvalue()


def test_a_refusal_is_one_line(engine: Engine, lines: Lines) -> None:
    config = AppConfig(max_upload_bytes=2**20, api_key_digests=(digest("key"),))
    keyed = {"X-API-Key": "key"}
    with TestClient(create_app(LocalBackend(engine), config)) as client:
        post(client, parts.vocal(), "no-key-here")
        post(client, bytes(2 * 2**20), "too-large-one", keyed)
        post(client, parts.vocal(), "a-wrong-field", keyed, steps="0")
        post(client, b"%PDF-1.7", "not-any-audio", keyed)
        post(client, parts.vocal(8), "a-late-request", {**keyed, "X-Backline-Timeout-Seconds": "0.01"}, steps="200")
    for id, status in (
        ("no-key-here", 401),
        ("too-large-one", 413),
        ("a-wrong-field", 422),
        ("not-any-audio", 415),
        ("a-late-request", 504),
    ):
        (line,) = [line for line in lines.of(id) if line["logger"] == "serving.http.request_log" and line["message"] != "accepted"]
        assert (line["level"], line["message"], line["status"]) == ("INFO", "refused", status)
        assert line["reason"]


def test_a_stream_is_told_at_its_end(engine: Engine, lines: Lines) -> None:
    class CutShort(LocalBackend):
        async def play(
            self, vocal: bytes, request: AccompanimentRequest, *, timeout_s: float | None = None
        ) -> AsyncGenerator[Message, None]:
            async for message in super().play(vocal, request, timeout_s=timeout_s):
                if isinstance(message, bytes) and request.seed == 8:
                    raise RuntimeError("the device is gone")
                yield message

    with TestClient(create_app(CutShort(engine), AppConfig()), raise_server_exceptions=False) as client:
        answer = post(client, parts.vocal(16), stream="true")
        assert answer.status_code == 200
        post(client, parts.vocal(16), "a-broken-stream", stream="true", seed="8")
    (line,) = [line for line in lines.of(ID) if line["message"] == "answered" and line["logger"] == "serving.http.request_log"]
    assert line["bytes_out"] == len(answer.content)
    assert line["first_s"] < line["seconds"]
    (line,) = [line for line in lines.of("a-broken-stream") if "status" in line]
    assert (line["message"], line["status"], line["reason"]) == ("failed", 500, "RuntimeError")
    assert 0 < line["bytes_out"] < len(answer.content)


def test_a_caller_that_leaves_is_told_in_both_places(engine: Engine, lines: Lines) -> None:
    """The request's task is cancelled, as a server does it, while the engine is at work."""
    form = Request("POST", "http://host", files={"vocal": (FILE_NAME, parts.vocal(40))}, data={"steps": "200", "candidates": "8"})
    body = form.read()
    headers = [(name.lower().encode(), value.encode()) for name, value in {**form.headers, "x-request-id": "one-that-leaves"}.items()]
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": HTTP_PATH, "raw_path": HTTP_PATH.encode(), "query_string": b"",
        "root_path": "", "scheme": "http", "headers": headers,
    }  # fmt: skip

    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(_: dict) -> None:
        pytest.fail("an answer")

    async def said(*wanted: str) -> None:
        async with asyncio.timeout(30):
            while not set(wanted) <= {line["message"] for line in lines.of("one-that-leaves")}:
                await asyncio.sleep(0.02)

    async def leave() -> None:
        asked = asyncio.ensure_future(create_app(LocalBackend(engine), AppConfig())(scope, receive, send))
        await said("began")
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await said("left", "cancelled")

    asyncio.run(leave())
    (line,) = [line for line in lines.of("one-that-leaves") if line["message"] == "left"]
    assert (line["status"], line["level"]) == (499, "INFO")


def test_nothing_of_a_vocal_is_logged_or_left_behind(engine: Engine, lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Good vocals and bad ones, small and larger than what is held in memory, answered and failed: at DEBUG, with every library's lines."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    class Failing(LocalBackend):
        async def play(self, *_: object, **__: object) -> AsyncGenerator[Message, None]:
            raise RuntimeError("a fault of ours")
            yield b""

    good = parts.vocal(16) + MARK * 100
    assert len(good) > 2**20
    flac = parts.audio_file(parts.sung(2), format="FLAC")
    vocals = [good, parts.vocal() + MARK, MARK * 20, b"", flac[:3_000] + MARK * 50, b"RIFF" + MARK * 10, b"\x1aE\xdf\xa3" + MARK * 200]
    answers = []
    with TestClient(create_app(LocalBackend(engine), AppConfig()), raise_server_exceptions=False) as client:
        answers += [post(client, vocal) for vocal in vocals]
        answers.append(client.post(HTTP_PATH, files={"vocal": (FILE_NAME, good), "other": (FILE_NAME, good)}))
        answers.append(client.post(HTTP_PATH, content=MARK * 100, headers={"content-type": "multipart/form-data; boundary=x"}))
    with TestClient(create_app(Failing(engine), AppConfig()), raise_server_exceptions=False) as client:
        answers.append(post(client, good))
    assert [answer.status_code for answer in answers] == [200, 200, 415, 415, 400, 400, 400, 422, 400, 500]
    said = lines.stream.getvalue() + "".join(answer.text for answer in answers if answer.status_code != 200)
    assert "a fault of ours" in said  # the traceback is there
    for secret in (MARK.decode(), base64.b64encode(MARK * 3)[8:-8].decode(), MARK.hex(), "unreleased", "Ada"):
        assert secret not in said
    assert list(tmp_path.iterdir()) == []


def wait_for(path: Path) -> Path:
    until_s = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until_s, f"{path} was not written"
        time.sleep(0.02)
    return path


def kept_as(day: Path, id: str, number: int = 1) -> Path:
    """The folder of a request, once as many with this id are there."""
    until_s = time.monotonic() + 20
    while len(found := sorted(day.glob(f"{id}-*/request.json"))) < number:
        assert time.monotonic() < until_s, f"{id} was not kept"
        time.sleep(0.02)
    return found[number - 1].parent


def test_kept_requests_with_one_id_do_not_mix(engine: Engine, tmp_path: Path) -> None:
    config = AppConfig(keep_requests=Place(str(tmp_path / "kept")), api_key_digests=(digest("alice"), digest("bob")))
    sent = {}
    with TestClient(create_app(LocalBackend(engine), config)) as client:
        for key, format, seconds in (("alice", "wav", 1.0), ("bob", "flac", 1.5), ("bob", "ogg", 2.0)):
            vocal = parts.vocal(seconds)
            answer = post(client, vocal, headers={"X-API-Key": key}, format=format)
            sent[digest(key)[:8], format] = {"vocal": vocal, f"accompaniment.{format}": answer.content}
    (day,) = (tmp_path / "kept").iterdir()
    kept_as(day, ID, 3)
    found = {}
    for folder in day.iterdir():
        facts = json.loads((folder / "request.json").read_text())
        wait_for(folder / f"accompaniment.{facts['format']}")
        found[facts["caller"], facts["format"]] = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}
    assert found == sent


def test_requests_are_kept_where_that_is_asked_for(engine: Engine, tmp_path: Path) -> None:
    config = AppConfig(keep_requests=Place(str(tmp_path / "kept")))
    vocal = parts.vocal(16)
    with TestClient(create_app(LocalBackend(engine), config)) as client:
        answer = post(client, vocal, format="flac", stream="true")
        post(client, MARK, "a-bad-request")
        post(client, parts.vocal(), "../../etc")
    (day,) = (tmp_path / "kept").iterdir()
    kept, bad = kept_as(day, ID), kept_as(day, "a-bad-request")
    wait_for(kept / "accompaniment.flac")
    wait_for(bad / "vocal")
    assert (kept / "vocal").read_bytes() == vocal
    assert (kept / "accompaniment.flac").read_bytes() == answer.content
    facts = json.loads((kept / "request.json").read_text())
    assert facts.items() >= {"status": 200, "seed": 7, "steps": 2, "format": "flac", "stream": True, "model": parts.MODEL_NAME}.items()
    assert (bad / "vocal").read_bytes() == MARK
    assert json.loads((bad / "request.json").read_text())["status"] == 415
    until_s = time.monotonic() + 20
    while len(list(day.iterdir())) < 3 and time.monotonic() < until_s:
        time.sleep(0.02)
    assert len(list(day.iterdir())) == 3
    assert not (tmp_path / "etc").exists()


def test_what_cannot_be_kept_costs_no_answer(engine: Engine, lines: Lines, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with TestClient(create_app(LocalBackend(engine), AppConfig(keep_requests=Place(str(tmp_path / "file"))))) as client:
        assert post(client, parts.vocal()).status_code == 200
    until_s = time.monotonic() + 20
    while not (failed := [line for line in lines.of(ID) if line["message"].startswith("not kept")]):
        assert time.monotonic() < until_s
    assert failed[0]["level"] == "ERROR"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def trace_of(collector: Collector, engine: Engine, id: str, headers: dict[str, str] | None = None, **fields: str) -> list[Seen]:
    tracer = Tracer(collector.endpoint, component="ingress")
    with TestClient(create_app(LocalBackend(engine), AppConfig(), tracer=tracer)) as client:
        answer = post(client, parts.vocal(5), id, headers, **fields)
    # Before the tracer is closed: the request's thread ends its span after its answer.
    spans = collector.of(id, "request", *(("replica", "fit", "render") if answer.status_code == 200 else ()))
    tracer.close()
    return spans


def test_a_trace_is_one_tree_of_all_stages(engine: Engine, collector: Collector) -> None:
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    spans = trace_of(collector, engine, "a-traced-request", {"traceparent": caller}, candidates="2")
    root = spans[0]
    assert (root.name, root.trace, root.parent) == ("request", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert {span.trace for span in spans} == {root.trace}
    replica = next(span for span in spans if span.name == "replica")
    below = {parent: {span.name for span in spans if span.parent == parent} for parent in (root.id, replica.id)}
    assert below == {
        root.id: {"admission", "upload", "replica"},
        replica.id: {"decode", "wait", "encode", "denoise", "fit", "render"},
    }
    assert {"request", "replica", *below[root.id], *below[replica.id]} == {span.name for span in spans}
    assert root.attributes["status"] == 200
    for span in spans:
        assert root.start_s - 0.01 <= span.start_s <= span.end_s <= root.end_s + 0.01
        assert not span.failed
    denoise_s = sum(span.end_s - span.start_s for span in spans if span.name == "denoise")
    assert 0 < denoise_s < root.end_s - root.start_s


def test_a_trace_begins_here_without_a_caller_s_and_tells_a_refusal(engine: Engine, collector: Collector) -> None:
    for id, headers in (("no-traceparent", {}), ("a-wrong-traceparent", {"traceparent": "00-zz-1-01"})):
        spans = trace_of(collector, engine, id, headers, steps="0")
        assert [span.name for span in spans] == ["request", "admission", "upload"]
        assert spans[0].parent == ""
        assert spans[0].attributes["status"] == 422
        assert spans[2].failed


def test_a_collector_that_is_away_costs_no_answer(engine: Engine, lines: Lines) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    tracer = Tracer(f"http://127.0.0.1:{port}", component="ingress")
    with TestClient(create_app(LocalBackend(engine), AppConfig(), tracer=tracer)) as client:
        assert post(client, parts.vocal()).status_code == 200
    began_s = time.monotonic()
    tracer.close()
    assert time.monotonic() - began_s < 10
    assert any("otlp" in line["logger"] and line["level"] in ("WARNING", "ERROR") for line in lines.all())


def test_without_the_extra_the_remedy_is_told() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.exporter'] = None\n"
        "from infra.errors import UserError\nfrom serving.observe.tracing import Tracer\n"
        "try: Tracer('http://127.0.0.1:4318', component='model')\nexcept UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'backline[traces]'" in done.stdout


def test_off_it_imports_nothing() -> None:
    code = (
        "import sys; from serving.observe import tracing; from serving.observe.tracing import Origin\n"
        "with tracing.span('a') as one: one.note(x=1); one.fail('b')\n"
        "tracing.passed('c', 0, 1); tracing.continued(None, 'd', Origin(request_id='e', traceparent=None)).end()\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
