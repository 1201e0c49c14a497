"""The engine without Ray or HTTP: determinism, limits, cancellation."""

import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import serving_parts as parts

from infra.audio_files import AudioTooLong, decode
from infra.errors import UserError
from model.accompany import Accompanist
from model.errors import ModelError
from model.level import mix
from model.sampling import Sampling
from serving.engine import CancelledRequestError, Engine, EngineConfig, render
from serving.loading import load_engine
from serving.schema import AccompanimentRequest, StageSeconds

QUICK = AccompanimentRequest(seed=7, steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts.tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load_engine(checkpoint=str(folder), codec=None, device="cpu", threads=2, max_duration_s=20.0, hang_after_s=60.0)


def test_threads_do_not_hear_each_other(engine: Engine) -> None:
    """Requests of other lengths, steps and seeds at the same time leave a request's bytes as they are."""
    requests = [(parts.vocal(1.0 + 0.3 * (n % 3)), AccompanimentRequest(seed=n % 2, steps=1 + n % 3)) for n in range(6)]
    alone = [engine.generate(vocal, request).audio for vocal, request in requests]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda asked: engine.generate(*asked).audio, requests))
    assert together == alone
    assert engine.stalled_s() == 0


def test_samples_are_taken_as_well_as_files(engine: Engine) -> None:
    vocal_CN = np.repeat(parts.sung()[None], 2, axis=0)
    result = engine.generate(parts.audio_file(vocal_CN.T, subtype="FLOAT"), QUICK)
    assert engine.generate(vocal_CN, QUICK).audio == result.audio
    assert result.duration_s == 1.0
    assert result.stages.diffuse > 0
    assert result.stages.render > 0


def test_the_best_of_several_candidates(engine: Engine) -> None:
    result = engine.generate(parts.vocal(4.5), QUICK.model_copy(update={"candidates": 2}))
    assert len(result.candidate_fits) == 2
    assert result.fit.overall == max(fit.overall for fit in result.candidate_fits)


class CancelledAt(threading.Event):
    """An event that is set by being asked for the n-th time, so that a test knows exactly when."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.asked = at, 0

    def is_set(self) -> bool:
        self.asked += 1
        if self.asked >= self.at:
            self.set()
        return super().is_set()


def test_cancelled_between_two_candidates(engine: Engine) -> None:
    """Two steps, then the caller goes while the first of four candidates is rendered: the others are not."""
    cancelled = CancelledAt(3)
    with pytest.raises(CancelledRequestError):
        engine.generate(parts.vocal(), AccompanimentRequest(seed=1, steps=2, candidates=4), cancelled=cancelled)
    assert cancelled.asked == 3


def test_cancelled_between_two_steps_steps(engine: Engine) -> None:
    """Cancelled when the third step has begun: of 200 steps only those are made."""
    cancelled = CancelledAt(3)
    with pytest.raises(CancelledRequestError):
        engine.generate(parts.vocal(), AccompanimentRequest(seed=1, steps=200), cancelled=cancelled)
    assert cancelled.asked == 3
    assert engine.generate(parts.vocal(), QUICK).audio  # the model is free again


def test_cancelled_while_waiting(engine: Engine) -> None:
    cancelled = threading.Event()
    with ThreadPoolExecutor(1) as threads, engine._model(threading.Event()):
        waiting = threads.submit(engine.generate, parts.vocal(), QUICK, cancelled=cancelled)
        cancelled.set()
        with pytest.raises(CancelledRequestError):
            waiting.result()


def test_a_models_own_sampling_is_used_and_told(engine: Engine) -> None:
    checkpoint = replace(engine.accompanist.checkpoint, sampling=Sampling(solver="ddim", steps=3, guidance=1.0))
    student = Engine(Accompanist(checkpoint, engine.accompanist.codec))
    assert (student.info().default_steps, student.info().default_guidance) == (3, 1.0)
    own = student.generate(parts.vocal(), AccompanimentRequest(seed=7))
    assert own.audio == student.generate(parts.vocal(), AccompanimentRequest(seed=7, steps=3, guidance=1.0)).audio
    assert own.audio != student.generate(parts.vocal(), QUICK).audio


def test_a_hung_model_is_seen(engine: Engine) -> None:
    assert engine.stalled_s() == 0
    with engine._model(threading.Event()):
        first = engine.stalled_s()
        while engine.stalled_s() <= first:
            pass
        engine._progress(threading.Event())(1, 2)
    assert engine.stalled_s() == 0


def test_a_long_vocal_is_refused(engine: Engine) -> None:
    with pytest.raises(AudioTooLong, match="20 s"):
        engine.generate(parts.audio_file(np.zeros(8_000 * 21), 8_000), QUICK)


def test_stems_alone_do_not_clip() -> None:
    """An accompaniment above full scale is turned down, not cut off."""
    loud_CN = 3 * np.repeat(parts.sung()[None], 2, axis=0) / 0.1
    audio, media_type, name = render(loud_CN / 10, loud_CN.astype(np.float32), AccompanimentRequest(format="flac"))
    assert (media_type, name) == ("audio/flac", "accompaniment.flac")
    samples_CN = decode(audio).samples_CN
    assert np.abs(samples_CN).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)
    assert np.corrcoef(samples_CN[0], loud_CN[0])[0, 1] > 0.9999


def test_stems_are_the_mix_of_the_model() -> None:
    vocal_CN, band_CN = np.repeat(parts.sung()[None], 2, axis=0), np.full((2, 44_100), 0.2, np.float32)
    audio, media_type, _ = render(vocal_CN, band_CN, AccompanimentRequest(output="stems"))
    assert media_type == "application/zip"
    with zipfile.ZipFile(BytesIO(audio)) as archive:
        for name, stem_CN in zip(("vocal", "accompaniment", "mix"), mix(vocal_CN, band_CN), strict=True):
            assert np.abs(decode(archive.read(f"{name}.wav")).samples_CN - stem_CN).max() < 1e-4


def test_what_cannot_be_loaded_says_so(folder: Path, tmp_path: Path) -> None:
    limits = {"device": "cpu", "threads": 1, "max_duration_s": 20.0, "hang_after_s": 60.0}
    assert load_engine(checkpoint=None, codec=None, **limits)  # the one that ships
    with pytest.raises(UserError, match="does not exist"):
        load_engine(checkpoint=str(tmp_path / "nothing"), codec=None, **limits)
    with pytest.raises(ModelError):
        load_engine(checkpoint=str(tmp_path), codec=None, **limits)
    with pytest.raises(ModelError):
        load_engine(checkpoint=str(folder), codec=str(tmp_path), **limits)
    with pytest.raises(UserError, match="max_duration_s is 0"):
        EngineConfig(max_duration_s=0)


def test_headers() -> None:
    stages = StageSeconds(queue=0.5, decode=0.25, encode=1.0)
    assert stages.work_s == 1.25
    assert stages.server_timing().startswith("queue;dur=500.0, decode;dur=250.0, encode;dur=1000.0, diffuse;dur=0.0")
