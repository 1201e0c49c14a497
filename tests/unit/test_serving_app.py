"""The HTTP interface in one process: a real engine with a tiny network and the embedded codec behind the real application."""

import asyncio
import json
import struct
import threading
import tomllib
import zipfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import serving_parts as parts
import soundfile
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response

from infra.errors import UserError
from model.accompany import Accompanist
from model.errors import ModelError
from serving.engine.async_engine import LocalBackend
from serving.engine.engine import Engine, EngineConfig
from serving.engine.load import load_engine
from serving.http.admission import FIRST_GUESS_S, Gate, digest
from serving.http.app import AppConfig, create_app
from serving.messages import Message
from serving.schema import AccompanimentRequest, ModelInfo

PROBLEM = "application/problem+json"
HTTP_PATH = "/v1/accompaniments"


class EngineBackend(LocalBackend):
    """The engine in this process; `hold` lets a test keep requests inside."""

    def __init__(self, engine: Engine | None) -> None:
        super().__init__(engine)  # type: ignore[arg-type]
        self.engine = engine
        self.inside = threading.Semaphore(0)
        self.hold = threading.Event()
        self.hold.set()

    async def play(self, vocal: bytes, request: AccompanimentRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Message, None]:
        self.inside.release()
        await asyncio.to_thread(self.hold.wait)
        async for message in super().play(vocal, request, timeout_s=timeout_s):
            yield message

    async def not_ready(self) -> str | None:
        return None if self.engine else "the model is still being loaded"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = parts.tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    return load_engine(checkpoint=str(folder), codec=None, device="cpu", threads=2, max_duration_s=60.0, hang_after_s=60.0)


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[TestClient]:
    with TestClient(create_app(EngineBackend(engine), AppConfig(max_upload_bytes=2**20)), raise_server_exceptions=False) as client:
        yield client


def test_no_other_site_may_read_an_answer(client: TestClient) -> None:
    """CORS is closed: neither an answer nor a preflight names an origin that may."""
    elsewhere = {"Origin": "https://elsewhere.example"}
    preflight = {**elsewhere, "Access-Control-Request-Method": "POST"}
    answers = [client.get("/v1/models", headers=elsewhere), client.options("/v1/accompaniments", headers=preflight)]
    assert [answer.status_code for answer in answers] == [200, 405]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control-")]


def post(client: TestClient, vocal: bytes | None = None, headers: dict[str, str] | None = None, **fields: str) -> Response:
    files = {"vocal": ("vocal.wav", parts.vocal() if vocal is None else vocal, "audio/wav")}
    return client.post(HTTP_PATH, files=files, data={**parts.QUICK, **fields}, headers=headers)


def problem(answer: Response, status: int) -> str:
    """Checks that `answer` is this problem and returns its detail."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), answer.text
    body = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return body["detail"]


def test_an_answer_is_the_audio_and_says_how_it_was_made(client: TestClient) -> None:
    answer = post(client, parts.vocal(4.5))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "audio/wav"
    audio_NC, rate_hz = soundfile.read(BytesIO(answer.content))
    assert (audio_NC.shape, rate_hz) == ((len(parts.sung(4.5)), 2), 44_100)
    assert answer.headers["x-backline-model"] == parts.MODEL_NAME
    assert answer.headers["x-backline-seed"] == "7"
    fit = json.loads(answer.headers["x-backline-fit"])
    assert set(fit) == {"harmony", "rhythm", "overall", "leakage"}
    assert all(0 <= value <= 1 for value in fit.values())
    timing = dict(part.strip().split(";dur=") for part in answer.headers["server-timing"].split(","))
    assert {"queue", "decode", "encode", "diffuse", "render"} <= set(timing)
    assert all(float(milliseconds) >= 0 for milliseconds in timing.values())


def test_every_candidate_s_scores_are_told_and_the_best_is_played(client: TestClient) -> None:
    answer = post(client, parts.vocal(4.5), candidates="3")
    fits = json.loads(answer.headers["x-backline-candidate-fits"])
    assert len(fits) == 3
    assert json.loads(answer.headers["x-backline-fit"]) == max(fits, key=lambda fit: fit["overall"])
    alone = post(client, parts.vocal(4.5))
    assert json.loads(alone.headers["x-backline-candidate-fits"]) == fits[:1]


def test_one_seed_is_one_answer_and_another_seed_another(client: TestClient) -> None:
    first, again, other = post(client), post(client), post(client, seed="8")
    assert first.content == again.content
    assert first.content != other.content


def test_without_a_seed_one_is_drawn_and_told(client: TestClient) -> None:
    files = {"vocal": ("v.wav", parts.vocal())}
    first, second = (client.post(HTTP_PATH, files=files, data={"steps": "2"}) for _ in range(2))
    assert first.headers["x-backline-seed"] != second.headers["x-backline-seed"]
    assert post(client, seed=first.headers["x-backline-seed"]).content == first.content


@pytest.mark.parametrize(
    ("format", "media_type"), [("wav", "audio/wav"), ("flac", "audio/flac"), ("mp3", "audio/mpeg"), ("ogg", "audio/ogg")]
)
def test_formats(client: TestClient, format: str, media_type: str) -> None:
    answer = post(client, format=format, output="mix")
    assert answer.headers["content-type"] == media_type
    samples_NC, rate_hz = soundfile.read(BytesIO(answer.content))
    assert rate_hz == 44_100
    assert abs(len(samples_NC) - len(parts.sung())) < 5_000
    assert 0.01 < abs(samples_NC).max() <= 1
    assert post(client, format=format, output="mix").content == answer.content


def test_stems_are_a_zip_whose_vocal_and_band_sum_to_the_mix(client: TestClient) -> None:
    answer = post(client, output="stems")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(BytesIO(answer.content)) as archive:
        stems = {name: soundfile.read(BytesIO(archive.read(name)), dtype="int16")[0].astype(int) for name in archive.namelist()}
    assert list(stems) == ["vocal.wav", "accompaniment.wav", "mix.wav"]
    assert abs(stems["vocal.wav"] + stems["accompaniment.wav"] - stems["mix.wav"]).max() <= 2
    assert post(client, output="stems").content == answer.content


def test_a_stream_is_the_same_audio_in_chunks(client: TestClient) -> None:
    with client.stream("POST", HTTP_PATH, files={"vocal": ("v.wav", parts.vocal())}, data={**parts.QUICK, "stream": "true"}) as answer:
        assert "content-length" not in answer.headers
        chunks = list(answer.iter_raw())
    assert len(chunks) > 1
    assert b"".join(chunks) == post(client).content


def test_a_request_is_followed_by_its_id(engine: Engine) -> None:
    """Held before the engine it is queued, behind the one before it; then done; an id that is unfit is replaced."""
    backend = EngineBackend(engine)
    with TestClient(create_app(backend, AppConfig(max_pending=4))) as client, ThreadPoolExecutor() as threads:
        backend.hold.clear()
        asked = []
        for id in ("first-request", "second-request"):
            asked.append(threads.submit(post, client, headers={"X-Request-Id": id}))
            assert backend.inside.acquire(timeout=30)
        found = [client.get(f"/v1/progress/{id}").json() for id in ("first-request", "second-request")]
        assert [(one["state"], one["queue_position"]) for one in found] == [("queued", 0), ("queued", 1)]
        backend.hold.set()
        assert asked[0].result().headers["x-request-id"] == "first-request"
        assert asked[1].result().status_code == 200
        assert client.get("/v1/progress/first-request").json()["state"] == "done"
        problem(client.get("/v1/progress/nobody-s-request"), 404)
        assert post(client, headers={"X-Request-Id": "a b\tc"}).headers["x-request-id"].isalnum()


def test_progress_counts_steps(engine: Engine) -> None:
    """While 200 steps are made, more and more of them are told."""
    with TestClient(create_app(LocalBackend(engine), AppConfig())) as client, ThreadPoolExecutor() as threads:
        asked = threads.submit(post, client, parts.vocal(20), {"X-Request-Id": "long-request"}, steps="200")
        seen = set()
        while not asked.done():
            answer = client.get("/v1/progress/long-request")
            if answer.status_code == 200 and answer.json()["state"] == "running":
                seen.add((answer.json()["steps_done"], answer.json()["steps"]))
        assert asked.result().status_code == 200
    assert seen
    assert all(0 < done <= steps == 200 for done, steps in seen)


def test_a_request_has_a_deadline(engine: Engine) -> None:
    with TestClient(create_app(LocalBackend(engine), AppConfig())) as client:
        answer = post(client, parts.vocal(50), {"X-Backline-Timeout-Seconds": "0.5"}, steps="200", candidates="8")
        assert "X-Backline-Timeout-Seconds" in problem(answer, 504)
        for wrong in ("-1", "0", "nan", "1_0", "soon"):
            assert "X-Backline-Timeout-Seconds" in problem(post(client, headers={"X-Backline-Timeout-Seconds": wrong}), 422)
        assert post(client, headers={"X-Backline-Timeout-Seconds": "1e9"}).status_code == 200


def test_a_long_vocal_is_heard_before_its_end(engine: Engine) -> None:
    """Windows of 3 s: the beginning of 30 s comes with headers of its own, and the whole is what is made without streaming."""
    short = Accompanist(engine.accompanist.checkpoint, engine.accompanist.codec, window_frames=64, overlap_frames=16, slope_frames=8)
    long = Engine(short, EngineConfig(max_duration_s=60.0))
    with TestClient(create_app(LocalBackend(long), AppConfig(max_upload_bytes=2**23, max_pending=1))) as client:
        form = {"files": {"vocal": ("v.wav", parts.vocal(30))}, "data": {**parts.QUICK, "stream": "true"}}
        with client.stream("POST", HTTP_PATH, **form) as answer:
            assert answer.status_code == 200
            assert set(json.loads(answer.headers["x-backline-fit"])) == {"harmony", "rhythm", "overall", "leakage"}
            assert "content-length" not in answer.headers
            pieces = list(answer.iter_raw())
        assert len(pieces) > 1
        assert b"".join(pieces) == post(client, parts.vocal(30)).content  # and the only place at the gate is free again
    long.close()


@pytest.mark.parametrize("name", parts.BAD_VOCALS)
def test_a_bad_vocal_gets_one_clear_error(client: TestClient, name: str) -> None:
    make, status = parts.BAD_VOCALS[name]
    detail = problem(post(client, make()), status)
    assert "\n" not in detail
    assert "Traceback" not in detail


@pytest.mark.parametrize("name", parts.ODD_VOCALS)
def test_an_odd_vocal_is_answered(client: TestClient, name: str) -> None:
    answer = post(client, parts.ODD_VOCALS[name]())
    assert answer.status_code == 200, answer.text
    assert soundfile.info(BytesIO(answer.content)).channels == 2


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"steps": "0"}, "steps"),
        ({"steps": "100000"}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"steps": "1_0"}, "steps"),
        ({"guidance": "1_0"}, "guidance"),
        ({"seed": "-1"}, "seed"),
        ({"seed": str(2**53)}, "seed"),
        ({"guidance": "nan"}, "guidance"),
        ({"guidance": "1e9"}, "guidance"),
        ({"candidates": "99"}, "candidates"),
        ({"output": "karaoke"}, "output"),
        ({"format": "exe"}, "format"),
        ({"stream": "perhaps"}, "stream"),
        ({"tempo": "120"}, "tempo"),
    ],
)
def test_a_field_out_of_range_or_unknown_is_named(client: TestClient, fields: dict[str, str], named: str) -> None:
    answer = post(client, **fields)
    problem(answer, 422)
    assert [fault["field"] for fault in answer.json()["errors"]] == [named]


def test_every_wrong_field_is_named_at_once(client: TestClient) -> None:
    answer = client.post(HTTP_PATH, files={"other": ("v.wav", b"x")}, data={"steps": "0", "nope": "1"})
    problem(answer, 422)
    assert {fault["field"] for fault in answer.json()["errors"]} == {"vocal", "other", "steps", "nope"}


def test_a_form_without_a_vocal_file(client: TestClient) -> None:
    assert "vocal" in problem(client.post(HTTP_PATH, data={"seed": "1"}), 422)
    assert "vocal" in problem(client.post(HTTP_PATH), 422)
    assert "file" in problem(client.post(HTTP_PATH, files={"vocal": (None, "la la la")}), 422)
    twice = client.post(HTTP_PATH, files=[("vocal", ("a.wav", parts.vocal())), ("vocal", ("b.wav", parts.vocal()))])
    assert "more than once" in problem(twice, 422)


def test_other_bodies(client: TestClient) -> None:
    problem(client.post(HTTP_PATH, json={"seed": 1}), 415)
    headers = {"content-type": "multipart/form-data; boundary=x"}
    problem(client.post(HTTP_PATH, content=b"no boundary at all", headers=headers), 400)
    problem(client.post(HTTP_PATH, content=b"", headers={"content-type": "multipart/form-data"}), 400)


def test_a_form_that_was_cut_short_is_not_taken_for_whole(client: TestClient) -> None:
    """Its last field would be missing without a word."""
    head = b'--x\r\nContent-Disposition: form-data; name="vocal"; filename="v.wav"\r\n\r\n' + parts.vocal(0.2)
    body = head + b'\r\n--x\r\nContent-Disposition: form-data; name="steps"\r\n\r\n2\r\n--x--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post(HTTP_PATH, content=body, headers=headers).status_code == 200
    for kept in (len(body) - 6, len(body) - 12, len(body) - 60, len(head)):
        assert "closing boundary" in problem(client.post(HTTP_PATH, content=body[:kept], headers=headers), 400)


def test_a_charset_that_only_python_knows(client: TestClient) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="steps"\r\n\r\n2.\r\n--x--\r\n'
    for charset in ("punycode", "undefined"):
        headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
        assert "UTF-8" in problem(client.post(HTTP_PATH, content=body, headers=headers), 400)


def test_a_large_upload_is_refused_whatever_its_stated_length(client: TestClient) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="vocal"; filename="v.wav"\r\n\r\n' + bytes(2 * 2**20) + b"\r\n--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    stated = client.post(HTTP_PATH, content=body, headers=headers)
    assert "1 MiB" in problem(stated, 413)

    unread = iter([body[at : at + 65_536] for at in range(0, len(body), 65_536)])
    assert "1 MiB" in problem(client.post(HTTP_PATH, content=unread, headers=headers), 413)


def test_a_header_that_claims_ten_hours_is_refused_before_it_is_decoded(client: TestClient) -> None:
    flac = bytearray(parts.audio_file(parts.sung(1.0), format="FLAC"))
    claimed = 36_000 * parts.RATE_HZ  # 36 bits at byte 21 of STREAMINFO
    flac[21] = flac[21] & 0xF0 | claimed >> 32
    flac[22:26] = struct.pack(">I", claimed & 0xFFFFFFFF)
    assert "36000" in problem(post(client, bytes(flac)), 413)


def test_unknown_paths_and_methods_are_problems_too(client: TestClient) -> None:
    problem(client.get("/v2/anything"), 404)
    answer = client.get(HTTP_PATH)
    problem(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_a_fault_of_ours_tells_no_secrets(engine: Engine) -> None:
    class Broken(EngineBackend):
        async def models(self) -> list[ModelInfo]:
            raise RuntimeError("the password is 1234")

    with TestClient(create_app(Broken(engine), AppConfig()), raise_server_exceptions=False) as client:
        assert "1234" not in problem(client.get("/v1/models"), 500)


def test_a_model_that_diverged_is_our_fault(engine: Engine) -> None:
    class Diverged(EngineBackend):
        async def play(self, *_: object, **__: object) -> AsyncGenerator[Message, None]:
            raise ModelError("latents with NaN")
            yield b""

    with TestClient(create_app(Diverged(engine), AppConfig()), raise_server_exceptions=False) as client:
        problem(post(client), 500)


def received_before_the_answer(config: AppConfig, headers: dict[str, str], sizes: list[int]) -> tuple[int, int]:
    """(status, chunks read before it) of a POST whose body comes in chunks of `sizes`: what a client that reads only after it has sent
    everything depends on."""
    chunks = [{"type": "http.request", "body": bytes(size), "more_body": index < len(sizes) - 1} for index, size in enumerate(sizes)]
    unread = list(chunks)

    async def receive() -> dict:
        return unread.pop(0) if unread else {"type": "http.disconnect"}

    return asyncio.run(status_of(create_app(EngineBackend(None), config), headers, receive)), len(chunks) - len(unread)


async def status_of(app: FastAPI, headers: dict[str, str], receive: Callable[[], Awaitable[dict]]) -> int:
    """Of a POST whose body comes by `receive`, which is asked no more once the answer has begun."""
    statuses: list[int] = []

    async def receive_before() -> dict:
        assert not statuses
        return await receive()

    async def send(message: dict) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": HTTP_PATH, "raw_path": HTTP_PATH.encode(), "query_string": b"",
        "root_path": "", "scheme": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    await app(scope, receive_before, send)
    return statuses[0]


def test_a_refusal_reads_the_upload_off_first() -> None:
    form, keyed = {"content-type": "multipart/form-data; boundary=x"}, AppConfig(api_key_digests=(digest("key"),))
    assert received_before_the_answer(keyed, form, [65_536] * 20) == (401, 20)
    assert received_before_the_answer(AppConfig(), {"content-type": "audio/wav"}, [65_536] * 20) == (415, 20)
    assert received_before_the_answer(AppConfig(), {}, [65_536] * 20) == (422, 20)
    # Not without end: four times what is allowed.
    status, chunks = received_before_the_answer(AppConfig(max_upload_bytes=2**16), form, [2**16] * 100)
    assert status == 400
    assert chunks < 20


def test_slow_refused_uploads_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where so many are read off already, the next refusal goes out at once."""
    monkeypatch.setattr("serving.http.app.DROPPED_AT_A_TIME", 1)
    form = {"content-type": "multipart/form-data; boundary=x"}

    async def refuse_two() -> list[int]:
        app = create_app(EngineBackend(None), AppConfig(api_key_digests=(digest("key"),)))
        sends, ends = asyncio.Event(), asyncio.Event()

        async def slowly() -> dict:
            sends.set()
            await ends.wait()
            return {"type": "http.disconnect"}

        first = asyncio.create_task(status_of(app, form, slowly))
        await sends.wait()
        second = await asyncio.wait_for(status_of(app, form, slowly), timeout=30)
        assert not first.done()
        ends.set()
        return [await first, second]

    assert asyncio.run(refuse_two()) == [401, 401]


def test_a_slow_upload_has_the_callers_own_deadline() -> None:
    async def slowly() -> dict:
        await asyncio.sleep(3_600)
        raise AssertionError("nobody waits so long")

    form = {"content-type": "multipart/form-data; boundary=x"}
    hurried = form | {"x-backline-timeout-seconds": "0.2"}
    assert asyncio.run(status_of(create_app(EngineBackend(None), AppConfig()), hurried, slowly)) == 504
    assert asyncio.run(status_of(create_app(EngineBackend(None), AppConfig(upload_timeout_s=0.1)), form, slowly)) == 408


def test_steps_beyond_the_model_s_schedule_are_refused(engine: Engine) -> None:
    checkpoint = engine.accompanist.checkpoint
    short = replace(checkpoint, network=replace(checkpoint.network, diffusion_steps=20))
    with TestClient(create_app(EngineBackend(Engine(Accompanist(short, engine.accompanist.codec))), AppConfig())) as client:
        assert "steps" in problem(post(client, steps="21"), 422)
        assert post(client, steps="20").status_code == 200


def test_readiness_is_not_liveness() -> None:
    with TestClient(create_app(EngineBackend(None), AppConfig())) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        answer = client.get("/readyz")
        assert "loaded" in problem(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1


def test_models(client: TestClient, engine: Engine) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert model["id"] == parts.MODEL_NAME
    assert model["codec"] == "embedded"
    assert model["parameters"] == sum(tensor.numel() for tensor in engine.accompanist.checkpoint.state.values())


def test_a_model_is_chosen_by_its_id(client: TestClient) -> None:
    assert post(client, model=parts.MODEL_NAME).content == post(client).content
    assert parts.MODEL_NAME in problem(post(client, model="another"), 422)


def test_keys(engine: Engine) -> None:
    config = AppConfig(api_key_digests=(digest("first"), digest("second")))
    with TestClient(create_app(EngineBackend(engine), config)) as client:
        answer = post(client)
        assert "Authorization" in problem(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        for headers in ({"Authorization": "Bearer wrong"}, {"X-API-Key": "firs"}, {"Authorization": "Basic first"}, {"X-API-Key": ""}):
            problem(post(client, headers=headers), 401)
            problem(client.get("/v1/models", headers=headers), 401)
        for headers in ({"Authorization": "Bearer first"}, {"X-API-Key": "second"}):
            assert post(client, headers=headers).status_code == 200
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200


def test_a_full_service_and_a_greedy_caller(engine: Engine) -> None:
    """Three places, two for one key: the third of one caller gets 429, the fourth of all 503; afterwards there is room again."""
    backend = EngineBackend(engine)
    config = AppConfig(max_pending=3, max_pending_per_caller=2, api_key_digests=(digest("a"), digest("b"), digest("c")))
    with TestClient(create_app(backend, config)) as client, ThreadPoolExecutor() as threads:

        def enter(key: str) -> Future:
            asked = threads.submit(post, client, headers={"X-API-Key": key})
            assert backend.inside.acquire(timeout=30)
            return asked

        backend.hold.clear()
        waiting = [enter("a"), enter("a")]
        greedy = post(client, headers={"X-API-Key": "a"})
        assert "share" in problem(greedy, 429)
        assert int(greedy.headers["retry-after"]) >= 1
        waiting.append(enter("b"))
        full = post(client, headers={"X-API-Key": "c"})
        problem(full, 503)
        assert int(full.headers["retry-after"]) >= 1
        backend.hold.set()
        assert [asked.result().status_code for asked in waiting] == [200, 200, 200]
        assert post(client, headers={"X-API-Key": "a"}).status_code == 200


def test_refusals_at_once_do_not_promise_places(engine: Engine) -> None:
    """Ten files that are no audio say nothing of how long a band takes."""
    backend = EngineBackend(engine)
    with TestClient(create_app(backend, AppConfig(max_pending=1))) as client, ThreadPoolExecutor() as threads:
        for _ in range(10):
            problem(post(client, vocal=b"no sound"), 415)
            assert backend.inside.acquire(timeout=30)
        backend.hold.clear()
        waiting = threads.submit(post, client)
        assert backend.inside.acquire(timeout=30)
        full = post(client)
        backend.hold.set()
        assert waiting.result().status_code == 200
        assert int(full.headers["retry-after"]) == FIRST_GUESS_S


def test_retry_after_follows_the_rate_of_answers() -> None:
    """Ten answers, one each 2 s, whatever each took: with eight waiting, half are answered after 8 s. Idle time does not count."""
    now_s = 0.0
    gate = Gate(max_pending=8, max_per_caller=8, clock=lambda: now_s)
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(gate.admit(None))
        for _ in range(40):
            now_s += 2.0
            gate.served()
        assert gate.full().retry_after_s == pytest.approx(8.0, rel=0.01)
    now_s += 3_600
    with gate.admit(None):
        now_s += 2.0
        gate.served()
        assert gate.full().retry_after_s == pytest.approx(2.0, rel=0.01)


def test_the_page_and_the_documents_need_nothing_from_elsewhere(client: TestClient) -> None:
    import serving.http.app

    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
    page = serving.http.app.PAGE
    for file in (file for file in page.rglob("*") if file.is_file()):
        path = {"index.html": "/", "docs.html": "/docs"}.get(file.name, f"/page/{file.relative_to(page)}")
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].startswith(kinds[file.suffix])
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        text = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert " style=" not in text
    assert (page.parent / "http" / "app.py").exists()
    for path in ("/page/index.html", "/page/nothing.js", "/page/../http/app.py", "/page/%2e%2e/http/app.py"):
        assert client.get(path).status_code == 404


def test_an_example_vocal_is_at_hand(client: TestClient) -> None:
    answer = client.get("/page/example.ogg")
    assert answer.headers["content-type"] == "audio/ogg"
    assert 15 < soundfile.info(BytesIO(answer.content)).duration < 60


def test_the_interface_describes_itself(client: TestClient) -> None:
    api = client.get("/openapi.json").json()
    operation = api["paths"][HTTP_PATH]["post"]
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    controls = {"style", "chords", "beats", "tempo_bpm", "first_beat_s"}
    others = {"vocal", "seed", "steps", "guidance", "model", "candidates", "output", "format", "stream"}
    assert set(form["properties"]) == controls | others
    assert form["required"] == ["vocal"]
    assert form["properties"]["steps"]["maximum"] == 200
    assert {"200", "400", "401", "413", "415", "422", "429", "503"} <= set(operation["responses"])
    assert list(operation["responses"]["422"]["content"]) == [PROBLEM]


def test_limits_must_make_sense() -> None:
    with pytest.raises(UserError, match="max_pending is 0"):
        AppConfig(max_pending=0)


def test_the_folder_of_the_page_is_shipped() -> None:
    import serving.http.app

    shipped = set(tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"])
    files = [path for path in serving.http.app.PAGE.rglob("*") if path.is_file()]
    assert {f"*{path.suffix}" for path in (*files, serving.http.app.EXAMPLE_VOCAL)} <= shipped
