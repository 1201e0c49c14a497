"""The service as it runs: real Ray Serve, real HTTP, a model replica in a process of its own."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import serving_parts as parts
from otlp_collector import Collector, collecting

from infra.audio.files import decode, encode
from infra.cluster import Cluster
from serving.deployments import RunningService, ServeConfig, start

pytestmark = pytest.mark.ray
TIMEOUT_S = 120
KEY = "a-key-for-this-test"
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def service(ray_cluster: Cluster, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    assert ray_cluster.address
    folder = parts.tiny_checkpoint(tmp_path_factory.mktemp("serving") / "tiny")
    config = ServeConfig(
        checkpoint=str(folder),
        port=parts.free_port(),
        max_duration_s=60,
        max_upload_mb=1,
        max_pending=8,
        max_pending_per_caller=6,
        replica_threads=2,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BACKLINE_API_KEYS", f"another-key,{KEY}")
        patch.setenv("BACKLINE_LOG_FORMAT", "json")
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        running = start(config, wait_until_ready=False)
    with running:
        yield running


def ask(service: RunningService, vocal: bytes | None = None, headers: dict[str, str] | None = None, **fields: str) -> httpx.Response:
    return httpx.post(
        f"{service.url}/v1/accompaniments",
        files={"vocal": ("vocal.wav", parts.vocal() if vocal is None else vocal)},
        data={**parts.QUICK, **fields},
        headers=HEADERS if headers is None else headers,
        timeout=TIMEOUT_S,
    )


def wait_until_ready(service: RunningService) -> list[httpx.Response]:
    """Asks /readyz until it says yes; every answer."""
    answers = []
    while not answers or answers[-1].status_code != 200:
        with suppress(httpx.TransportError):
            answers.append(httpx.get(f"{service.url}/readyz", timeout=TIMEOUT_S))
        time.sleep(0.3)
    return answers


def replica_processes() -> list[psutil.Process]:
    """The processes of the model replica."""
    return parts.processes(psutil.Process(), "ServeReplica:backline:Model")


def check_problem(answer: httpx.Response, status: int) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert answer.json()["status"] == status
    assert answer.json()["title"]
    assert answer.json()["detail"]


def test_ready_only_once_the_model_is_loaded(service: RunningService) -> None:
    """First in this file: the service has just been started, and its ingress answers before its model can."""
    answers = wait_until_ready(service)
    for answer in answers[:-1]:
        assert answer.status_code in (404, 503)  # 404: Serve's proxy, before it knows of any application
    assert any(answer.headers["content-type"] == "application/problem+json" for answer in answers[:-1])
    assert answers[-1].json() == {"status": "ready"}
    assert httpx.get(f"{service.url}/healthz").json() == {"status": "alive"}


def test_an_accompaniment(service: RunningService) -> None:
    answer = ask(service, parts.vocal(4.5), output="stems", format="flac")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["x-backline-model"] == parts.MODEL_NAME
    assert answer.headers["x-backline-seed"] == "7"
    assert set(json.loads(answer.headers["x-backline-fit"])) == {"harmony", "rhythm", "overall", "leakage"}
    for stage in ("queue", "decode", "encode", "diffuse", "render"):
        assert f"{stage};dur=" in answer.headers["server-timing"]


def test_the_same_seed_gives_the_same_bytes_alone_and_in_a_crowd(service: RunningService) -> None:
    alone = ask(service)
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ask, service, seed=seed, steps=steps) for seed, steps in (("7", "2"), ("8", "3"), ("7", "2"), ("7", "2"))]
        crowd = [future.result() for future in asked]
    assert [answer.status_code for answer in crowd] == [200] * 4
    assert [answer.content == alone.content for answer in crowd] == [True, False, True, True]


@pytest.mark.parametrize("name", parts.BAD_VOCALS)
def test_a_bad_vocal_gets_one_clear_error(service: RunningService, name: str) -> None:
    make, status = parts.BAD_VOCALS[name]
    check_problem(ask(service, make()), status)


@pytest.mark.parametrize("name", ["8 kHz mono", "six channels"])
def test_an_odd_vocal_is_answered(service: RunningService, name: str) -> None:
    assert ask(service, parts.ODD_VOCALS[name]()).status_code == 200


def test_refusals(service: RunningService) -> None:
    check_problem(ask(service, headers={}), 401)
    check_problem(ask(service, headers={"X-API-Key": "wrong"}), 401)
    check_problem(ask(service, tempo="120"), 422)
    check_problem(ask(service, steps="0"), 422)
    check_problem(httpx.post(f"{service.url}/v1/accompaniments", headers=HEADERS), 422)
    check_problem(httpx.post(f"{service.url}/v1/accompaniments", headers=HEADERS, json={}), 415)
    check_problem(httpx.get(f"{service.url}/nothing"), 404)
    check_problem(httpx.get(f"{service.url}/v1/accompaniments"), 405)


@pytest.mark.parametrize("stated", [True, False])
def test_a_large_upload_is_refused(service: RunningService, stated: bool) -> None:
    """Also when its length is not stated: it is counted while it arrives."""
    head = b'--x\r\nContent-Disposition: form-data; name="vocal"; filename="v.wav"\r\n\r\n'
    chunks = [head, *([bytes(2**16)] * 40), b"\r\n--x--\r\n"]
    headers = {**HEADERS, "content-type": "multipart/form-data; boundary=x"}
    body = b"".join(chunks) if stated else iter(chunks)
    check_problem(httpx.post(f"{service.url}/v1/accompaniments", content=body, headers=headers, timeout=TIMEOUT_S), 413)


def test_a_stream_arrives_in_chunks(service: RunningService) -> None:
    url, files = f"{service.url}/v1/accompaniments", {"vocal": ("v.wav", parts.vocal())}
    with httpx.stream("POST", url, files=files, data={**parts.QUICK, "stream": "true"}, headers=HEADERS, timeout=TIMEOUT_S) as answer:
        assert answer.headers["transfer-encoding"] == "chunked"
        content = b"".join(answer.iter_raw())
    assert content == ask(service).content


def test_a_long_vocal_is_heard_window_by_window_and_followed(service: RunningService) -> None:
    """55 s are two windows: the first sound leaves before the last step, and all of it is what is made in one piece, but for the level."""
    vocal = encode(np.repeat(parts.sung(55.0)[None], 2, axis=0), "ogg")
    url, id = f"{service.url}/v1/accompaniments", "a-long-vocal"
    fields = {**parts.QUICK, "steps": "40", "stream": "true"}
    with httpx.stream(
        "POST", url, files={"vocal": ("v.ogg", vocal)}, data=fields, headers={**HEADERS, "X-Request-Id": id}, timeout=TIMEOUT_S
    ) as answer:
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == id
        progress = httpx.get(f"{service.url}/v1/progress/{id}", headers=HEADERS).json()
        content = b"".join(answer.iter_raw())
    assert progress["state"] == "running"
    check_problem(httpx.get(f"{service.url}/v1/progress/{id}"), 401)
    assert httpx.get(f"{service.url}/v1/progress/{id}", headers=HEADERS).json()["state"] == "done"
    streamed_CN, whole_CN = (decode(data).samples_CN for data in (content, ask(service, vocal, steps="40").content))
    assert streamed_CN.shape == whole_CN.shape
    for part in (slice(0, 441_000), slice(-441_000, None)):  # an untrained network is loud: a stream is turned down only from where it must
        assert np.corrcoef(streamed_CN[0, part], whole_CN[0, part])[0, 1] > 0.999


def test_a_deadline_that_a_caller_sets(service: RunningService) -> None:
    vocal = parts.audio_file(parts.sung(30.0), format="FLAC")
    answer = ask(service, vocal, {**HEADERS, "X-Backline-Timeout-Seconds": "1"}, steps="200", candidates="8")
    check_problem(answer, 504)


def test_prometheus_is_told(service: RunningService) -> None:
    """Requests, stages, fit and batches, as Ray exports them within its period."""
    import ray

    ask(service, parts.vocal(4.5))
    check_problem(ask(service, steps="0"), 422)
    (node,) = (node for node in ray.nodes() if node["Alive"])  # others of this cluster may have been killed
    labelled = {
        "requests_total": 'status="422"', "request_seconds_bucket": "", "stage_seconds_sum": 'stage="diffuse"',
        "fit_count": 'measure="overall"', "audio_seconds_total": "", "pending_requests": "",
        "evaluations_total": "", "batch_evaluations": "", "denoiser_busy": "",
    }  # fmt: skip
    wanted = {f"ray_backline_{name}{{.*{label}" for name, label in labelled.items()}
    until_s = time.monotonic() + 60
    while wanted and time.monotonic() < until_s:
        text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10).text
        wanted = {pattern for pattern in wanted if not re.search(pattern, text)}
        time.sleep(1)
    assert not wanted


def logged(id: str) -> list[dict]:
    """What all processes of the cluster have logged about a request, each line where its process wrote it."""
    import ray

    found = []
    for path in Path(ray._private.worker._global_node.get_logs_dir_path()).rglob("*"):
        if path.is_file():
            found += [json.loads(line) for line in path.read_text(errors="replace").splitlines() if f'"{id}"' in line]
    return sorted(found, key=lambda line: line["time"])


def test_both_processes_tell_of_a_request(service: RunningService, collector: Collector) -> None:
    """Lines of JSON with its id, each written once; and one trace, which is the caller's."""
    trace, above = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    answer = ask(service, parts.vocal(4.5), {**HEADERS, "X-Request-Id": "abc", "traceparent": f"00-{trace}-{above}-01"})
    assert answer.headers["x-request-id"] == "abc"
    assert [(line["logger"], line["message"]) for line in logged("abc")] == [
        ("serving.http.request_log", "accepted"), ("serving.engine.async_engine", "began"),
        ("serving.engine.async_engine", "answered"), ("serving.http.request_log", "answered"),
    ]  # fmt: skip
    last = logged("abc")[-1]
    assert last.items() >= {"request_id": "abc", "status": 200, "seed": 7, "bytes_out": len(answer.content)}.items()
    assert len(last["caller"]) == 8

    spans = {span.name: span for span in collector.of("abc", "request", "replica", "render")}
    assert {span.trace for span in spans.values()} == {trace}
    assert spans["request"].parent == above
    assert [spans[name].parent for name in ("backend call", "replica")] == [spans["request"].id, spans["backend call"].id]
    assert {name: spans[name].service for name in ("request", "replica")} == {"request": "backline-ingress", "replica": "backline-model"}
    assert {"decode", "wait", "encode", "denoise", "fit", "render"} <= {
        name for name, span in spans.items() if span.parent == spans["replica"].id
    }
    assert spans["backend call"].attributes["attempt"] == 1


def test_a_full_service_says_when_to_come_back(service: RunningService) -> None:
    """One key may hold 6 of 8 places, so of 12 requests at once at least the last is over its share; those let in are answered."""
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: ask(service, steps="30"), range(12)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    assert len(refused) <= 6
    for answer in refused:
        check_problem(answer, 429)
        assert int(answer.headers["retry-after"]) >= 1


def test_a_caller_that_goes_away_frees_its_places(service: RunningService) -> None:
    """All six places of a key are taken by long requests whose callers leave; were they kept, the next would get 429."""
    vocal = parts.audio_file(parts.sung(30.0), format="FLAC")

    def leave(_: int) -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{service.url}/v1/accompaniments",
                files={"vocal": ("v.flac", vocal)},
                data={"steps": "200", "candidates": "8"},
                headers=HEADERS,
                timeout=httpx.Timeout(TIMEOUT_S, read=1.0),
            )

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(leave, range(6)))
    answer = ask(service)
    assert answer.status_code == 200, answer.text


def test_a_killed_replica_is_replaced_and_its_requests_are_asked_again(service: RunningService, collector: Collector) -> None:
    expected = ask(service, steps="30")
    (before,) = replica_processes()
    with ThreadPoolExecutor(2) as threads:
        ids = ("asked-twice-a", "asked-twice-b")
        in_flight = [threads.submit(ask, service, headers={**HEADERS, "X-Request-Id": id}, steps="30") for id in ids]
        while before.cpu_percent(0.1) < 20 and not any(future.done() for future in in_flight):
            pass  # until it works on them
        os.kill(before.pid, signal.SIGKILL)
        for future in in_flight:
            assert future.result().content == expected.content
    wait_until_ready(service)
    assert ask(service, steps="30").content == expected.content
    assert [process.pid for process in replica_processes()] != [before.pid]
    told = [collector.of(id, "request", "replica") for id in ids]
    attempts = [[(span.attributes["attempt"], span.failed) for span in spans if span.name == "backend call"] for spans in told]
    assert [(1, True), (2, False)] in attempts
    for id, made in zip(ids, attempts, strict=True):
        died = [line["level"] for line in logged(id) if "asking another" in line["message"]]
        assert died == ["WARNING"] * (len(made) - 1)
