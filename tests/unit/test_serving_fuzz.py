"""Whatever is uploaded is answered: an accompaniment, or one problem of the documented kinds. Nothing hangs, leaks or falls over."""

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO

import av
import numpy as np
import pytest
import serving_parts as parts
from fastapi.testclient import TestClient
from httpx import Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.audio.files import Audio, AudioError, decode, encode
from serving.engine.async_engine import LocalBackend
from serving.engine.load import load_engine
from serving.http.app import AppConfig, create_app
from tests.examples import examples

FORM = "multipart/form-data; boundary=x"
CALM = settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])


def m4a() -> bytes:
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(parts.sung()[None], format="fltp", layout="mono")
        frame.sample_rate = 44_100
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return buffer.getvalue()


SUNG_CN = np.repeat(parts.sung(0.5)[None], 2, axis=0)
FILES = [*(encode(SUNG_CN, format) for format in ("wav", "flac", "mp3", "ogg")), m4a(), b"", b"%PDF-1.7", b"RIFF\xff\xff\xff\xffWAVEfmt "]


def damaged(file: bytes, seed: int) -> bytes:
    """A file cut, repeated, glued to another, with bits turned: mostly where headers are."""
    chance = random.Random(seed)
    data = bytearray(file)
    for _ in range(chance.randint(0, 6)):
        if not data:
            break
        at = chance.randrange(min(len(data), chance.choice([16, 64, 4_096, 10**9])))
        match chance.randrange(5):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"])
            case 2:
                del data[at : at + chance.randint(1, 2_000)]
            case 3:
                data[at:at] = data[: chance.randint(1, 500)]
            case 4:
                data += chance.choice(FILES)[: chance.randint(0, 3_000)]
    return bytes(data)


@CALM
@given(file=st.sampled_from(FILES), seed=st.integers(0, 2**32))
def test_a_decoder_gives_audio_or_one_error(file: bytes, seed: int) -> None:
    with suppress(AudioError):
        found = decode(damaged(file, seed), max_duration_s=5.0)
        assert isinstance(found, Audio)
        assert np.isfinite(found.samples_CN).all()
        assert 0 < found.duration_s <= 5.0


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = parts.tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    engine = load_engine(checkpoint=str(folder), codec=None, device="cpu", threads=2, max_duration_s=5.0, hang_after_s=60.0)
    config = AppConfig(max_upload_bytes=2**20, max_pending=1)
    with TestClient(create_app(LocalBackend(engine), config), raise_server_exceptions=False) as client:
        yield client
    engine.close()


names = st.sampled_from(["vocal", "seed", "steps", "guidance", "candidates", "output", "format", "stream", "model", "", "x", "vocal\x00"])
values = st.one_of(
    st.text(max_size=20), st.sampled_from(["1", "2", "true", "mix", "flac", "NaN", "-1", "1e400", "9" * 400, "\x00", "../../etc/passwd"])
)


@CALM
@given(fields=st.lists(st.tuples(names, values), max_size=5), file=st.sampled_from(FILES), seed=st.integers(0, 2**32), steps=st.booleans())
def test_a_form_is_answered_whatever_it_holds(
    client: TestClient, fields: list[tuple[str, str]], file: bytes, seed: int, steps: bool
) -> None:
    given_fields = [*fields, *([("steps", "1")] if steps else [])]
    body = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode(errors="surrogatepass")
        for name, value in given_fields
    )
    body += b'--x\r\nContent-Disposition: form-data; name="vocal"; filename="../v.wav"\r\n\r\n' + damaged(file, seed) + b"\r\n--x--\r\n"
    check(client.post("/v1/accompaniments", content=body, headers={"content-type": FORM}))


@CALM
@given(
    body=st.one_of(st.binary(max_size=300), st.binary(max_size=200).map(lambda data: b"--x\r\n" + data + b"\r\n--x--\r\n")),
    kind=st.sampled_from([FORM, "multipart/form-data", "", "audio/wav", "multipart/form-data; boundary=" + "y" * 200]),
)
def test_a_body_that_is_no_form_is_a_problem(client: TestClient, body: bytes, kind: str) -> None:
    answer = client.post("/v1/accompaniments", content=body, headers={"content-type": kind})
    check(answer)
    assert answer.status_code != 200


def check(answer: Response) -> None:
    assert answer.status_code in (200, 400, 413, 415, 422), answer.text
    if answer.status_code != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        assert json.loads(answer.content)["detail"]
