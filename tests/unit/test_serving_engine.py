"""The engine without Ray or HTTP: determinism, limits, cancellation."""

import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving_parts as parts
import torch
from torch import Tensor

from infra.audio.decoders import Decoders
from infra.audio.files import AudioTooLong, decode
from infra.errors import UserError
from model.accompany import Accompanist
from model.diffusion.sampling import Sampling
from model.errors import ModelError
from model.inference.gain import mix
from model.inference.windows import Lane
from serving.engine.door import Door
from serving.engine.engine import Call, CancelledRequestError, DeadlineError, Engine, EngineConfig
from serving.engine.load import load_engine
from serving.engine.output_files import kind_of, render
from serving.schema import AccompanimentRequest, AccompanimentResult, Format, Output, StageSeconds

QUICK = AccompanimentRequest(seed=7, steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts.tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load_engine(checkpoint=str(folder), codec=None, device="cpu", threads=2, max_duration_s=20.0, hang_after_s=60.0)


@pytest.fixture(scope="module")
def door(engine: Engine) -> Iterator[Door]:
    decoders = Decoders(1)
    yield Door(engine, decoders)
    decoders.close()


def played(engine: Engine, vocal_CN: np.ndarray, request: AccompanimentRequest, call: Call | None = None) -> bytes:
    return engine.generate(vocal_CN, request, call).audio_CN.tobytes()


def test_threads_do_not_hear_each_other(engine: Engine) -> None:
    """Requests of other lengths, steps and seeds at the same time leave a request's bytes as they are."""
    requests = [(parts.stereo(1.0 + 0.3 * (n % 3)), AccompanimentRequest(seed=n % 2, steps=1 + n % 3)) for n in range(6)]
    alone = [played(engine, vocal, request) for vocal, request in requests]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda asked: played(engine, *asked), requests))
    assert together == alone
    assert engine.stalled_s() == 0


def test_no_window_is_lost_in_a_crowd(engine: Engine) -> None:
    """Threads that change hands as often as they can: every request of several windows is whole, and the same each time."""
    engine, often_s = long_engine(engine), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as threads:
            made = list(threads.map(lambda _: played(engine, parts.stereo(6), AccompanimentRequest(seed=1, steps=1)), range(24)))
    finally:
        sys.setswitchinterval(often_s)
    assert len(set(made)) == 1
    engine.close()


def test_a_process_ends_that_closed_no_engine(folder: Path) -> None:
    program = (
        "from serving.engine.load import load_engine\n"
        f"load_engine(checkpoint={str(folder)!r}, codec=None, device='cpu', threads=1, max_duration_s=20.0, hang_after_s=60.0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, cwd=Path(__file__).resolve().parents[2])


def test_a_file_is_its_samples(engine: Engine, door: Door) -> None:
    vocal_CN = parts.stereo()
    result, band = door.generate(parts.audio_file(vocal_CN.T, subtype="FLOAT"), QUICK), engine.generate(vocal_CN, QUICK)
    assert result.audio == render(vocal_CN, band.audio_CN, QUICK)
    assert (result.duration_s, result.seed, result.fit.leakage) == (1.0, band.seed, band.fit.leakage)
    assert min(result.stages.decode, result.stages.render, band.stages.diffuse) > 0
    assert band.stages.decode == 0


def test_the_best_of_several_candidates(engine: Engine) -> None:
    result = engine.generate(parts.stereo(4.5), QUICK.model_copy(update={"candidates": 2}))
    assert len(result.candidate_fits) == 2
    assert result.fit.overall == max(fit.overall for fit in result.candidate_fits)


class EndsAt(Call):
    """A call that is cancelled when it is looked at for the n-th time, so that a test knows exactly when."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.looked = at, 0

    def look(self) -> None:
        self.looked += 1
        if self.looked == self.at:
            self.cancel()
        super().look()


@pytest.mark.parametrize("at", [1, 3])
def test_cancelled_between_two_steps(engine: Engine, at: int) -> None:
    """Of 200 steps no more are made than were before."""
    call, steps = EndsAt(at), engine.denoiser.steps
    with pytest.raises(CancelledRequestError):
        engine.generate(parts.stereo(), AccompanimentRequest(seed=1, steps=200), call)
    assert call.looked == at
    assert engine.denoiser.steps - steps <= at
    assert engine.calls == engine.denoiser.waiting == 0
    assert played(engine, parts.stereo(), QUICK)


def test_cancelled_between_two_candidates(engine: Engine) -> None:
    """Two steps of four candidates, then the caller goes while the first is rendered: the others are not."""
    made = []

    class Watched(Call):
        def stepped(self, done: int, steps: int) -> None:
            made.append(done)
            if made[-2:] == [8, 8]:
                self.cancel()
            super().stepped(done, steps)

    with pytest.raises(CancelledRequestError):
        engine.generate(parts.stereo(), AccompanimentRequest(seed=1, steps=2, candidates=4), Watched())
    assert made.count(8) == 2  # the last step, and the first candidate's fit


def test_a_request_that_waits_can_be_cancelled_and_has_a_deadline(engine: Engine) -> None:
    """A long request holds the device; one that is due later ends where it waits, and costs no step."""
    with ThreadPoolExecutor(3) as threads:
        long = Call()
        first = threads.submit(engine.generate, parts.stereo(5), AccompanimentRequest(seed=1, steps=200, candidates=3), long)
        while not long.progress.steps_done:
            time.sleep(0.01)
        waiting, late = Call(), Call(timeout_s=0.3)
        asked = [
            threads.submit(engine.generate, parts.stereo(19), AccompanimentRequest(seed=1, steps=200), call) for call in (waiting, late)
        ]
        with pytest.raises(DeadlineError):
            asked[1].result()
        assert waiting.progress.state == "queued"
        waiting.cancel()
        with pytest.raises(CancelledRequestError):
            asked[0].result()
        assert (waiting.progress.steps_done, late.progress.steps_done) == (0, 0)
        long.cancel()
        with pytest.raises(CancelledRequestError):
            first.result()


def test_a_short_request_passes_a_long_one(engine: Engine) -> None:
    """Continuous batching: a second of vocal is answered while 19 s with 200 steps are under way."""
    long = Call()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(engine.generate, parts.stereo(19), AccompanimentRequest(seed=1, steps=200), long)
        while not long.progress.steps_done:
            time.sleep(0.01)
        assert engine.generate(parts.stereo(), QUICK).stages.queue < 5
        assert long.progress.state == "running"
        assert long.progress.steps_done < long.progress.steps == 200
        long.cancel()
        with pytest.raises(CancelledRequestError):
            first.result()


def test_a_long_request_is_not_starved_by_short_ones(engine: Engine) -> None:
    """Short requests never stop coming; the long one ends, because its due time comes."""
    over = threading.Event()

    def short(number: int) -> int:
        answered = 0
        while not over.is_set():
            engine.generate(parts.stereo(), AccompanimentRequest(seed=number, steps=4))
            answered += 1
        return answered

    with ThreadPoolExecutor(3) as threads:
        crowd = [threads.submit(short, number) for number in range(3)]
        try:
            long = engine.generate(parts.stereo(8), AccompanimentRequest(seed=1, steps=20), Call(timeout_s=120))
        finally:
            over.set()
    assert long.audio_CN.tobytes()
    assert all(answered.result() for answered in crowd)


def test_a_long_request_is_not_starved_by_short_ones_that_run_beside_each_other(engine: Engine) -> None:
    """On a device that takes its time something short is always under way, beside which the long one may not run: others wait then."""

    class Slow(type(engine.accompanist.evaluator)):
        def __call__(self, evaluations: Any) -> Any:
            time.sleep(0.02)
            return super().__call__(evaluations)

    evaluator = Slow(engine.accompanist.checkpoint.build(torch.device("cpu")), threads=2)
    assert evaluator.askers == 2
    slow, over = Engine(Accompanist(engine.accompanist.checkpoint, engine.accompanist.codec, evaluator=evaluator)), threading.Event()

    def short(number: int) -> None:
        while not over.is_set():
            slow.generate(parts.stereo(6.5), AccompanimentRequest(seed=number, steps=20))

    with ThreadPoolExecutor(6) as threads:
        crowd = [threads.submit(short, number) for number in range(6)]
        try:
            assert played(slow, parts.stereo(12), AccompanimentRequest(seed=1, steps=4), Call(timeout_s=20))
        finally:
            over.set()
    for asking in crowd:
        asking.result()
    slow.close()


def test_room_is_given_in_order(folder: Path) -> None:
    """Of three vocals of 4 s two fit; the third waits, and can go away while it does."""
    engine = load_engine(
        checkpoint=str(folder), codec=None, device="cpu", threads=2, max_duration_s=20.0, max_audio_s=8.0, hang_after_s=60.0
    )
    calls = [Call() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        asked = []
        for call in calls:
            asked.append(threads.submit(engine.generate, parts.stereo(4), AccompanimentRequest(seed=1, steps=200), call))
            while engine.calls < len(asked):
                time.sleep(0.01)
        while not calls[1].progress.steps_done and not calls[0].progress.steps_done:
            time.sleep(0.01)
        assert engine.denoiser.waiting <= 2
        assert calls[2].progress.steps == 0
        for call in reversed(calls):
            call.cancel()
        for future in asked:
            with pytest.raises(CancelledRequestError):
                future.result()
    assert engine.calls == 0
    engine.close()


def test_many_candidates_of_a_long_vocal_take_more_room(engine: Engine) -> None:
    """Eight of 200 steps keep from window to window what five seconds of a vocal take: one such request has the room alone."""
    accompanist = long_engine(engine).accompanist
    request, vocal_CN = AccompanimentRequest(seed=1, steps=200, candidates=8), parts.stereo(6)
    narrow = Engine(accompanist, EngineConfig(max_duration_s=60.0, max_audio_s=13.0))
    calls = [Call() for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        asked = []
        for call in calls:
            asked.append(threads.submit(narrow.generate, vocal_CN, request, call))
            while narrow.calls < len(asked):
                time.sleep(0.01)
        while not calls[0].progress.steps_done and not calls[1].progress.steps_done:
            time.sleep(0.01)
        assert 0 in (calls[0].progress.steps, calls[1].progress.steps), "12 s of vocal would fit"
        for call in calls:
            call.cancel()
        for future in asked:
            with pytest.raises(CancelledRequestError):
                future.result()
    narrow.close()


def long_engine(engine: Engine) -> Engine:
    """The same model with windows of 3 s, so that a few seconds are a long vocal."""
    short = Accompanist(engine.accompanist.checkpoint, engine.accompanist.codec, window_frames=64, overlap_frames=16, slope_frames=8)
    return Engine(short, EngineConfig(max_duration_s=60.0))


def door_of(engine: Engine) -> Door:
    return Door(engine, Decoders(1))


@pytest.mark.parametrize("output", ["accompaniment", "mix"])
def test_a_stream_is_the_whole_in_pieces(engine: Engine, output: Output) -> None:
    engine = long_engine(engine)
    vocal = parts.vocal(30)
    request = AccompanimentRequest(seed=7, steps=2, output=output, stream=True)
    head, *rest = door_of(engine).play(vocal, request, Call())
    assert isinstance(head, AccompanimentResult)
    assert head.more
    assert rest
    whole = door_of(engine).generate(vocal, request)
    assert not whole.more
    assert head.audio + b"".join(rest) == whole.audio
    assert len(head.audio) < len(whole.audio) * 0.8
    assert (head.seed, head.file_name, head.media_type) == (whole.seed, whole.file_name, whole.media_type)
    assert head.stages.diffuse < whole.stages.diffuse * 2
    engine.close()


@pytest.mark.parametrize("stream", [True, False])
def test_nothing_is_done_for_the_second_window_of_a_stream_before_the_first_is_there(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    engine = long_engine(engine)
    prepare, denoise, prepared, when_settled = Lane.prepare, engine.denoiser.denoise, list[Lane](), list[int]()

    def counted(lane: Lane) -> None:
        prepared.append(lane)
        prepare(lane)

    def watched(*args: Any, **options: Any) -> Iterator[tuple[Lane, Tensor]]:
        for found in denoise(*args, **options):
            when_settled.append(len(prepared))
            yield found

    monkeypatch.setattr(Lane, "prepare", counted)
    monkeypatch.setattr(engine.denoiser, "denoise", watched)
    for _ in engine.play(parts.stereo(12), AccompanimentRequest(seed=1, steps=2, stream=stream)):
        pass
    assert len(when_settled) == len(prepared) > 3
    assert when_settled[0] == (1 if stream else 2)


@pytest.mark.parametrize("format", ["flac", "ogg", "mp3"])
def test_a_stream_in_other_formats_decodes_to_the_whole(engine: Engine, format: Format) -> None:
    engine = long_engine(engine)
    door = door_of(engine)
    request = AccompanimentRequest(seed=7, steps=1, format=format, stream=True)
    head, *rest = door.play(parts.vocal(16), request, Call())
    assert isinstance(head, AccompanimentResult)
    streamed_CN = decode(head.audio + b"".join(rest)).samples_CN
    whole_CN = decode(door.generate(parts.vocal(16), request).audio).samples_CN
    if format == "mp3":  # its coder's silence before and after stays in a stream
        lag = streamed_CN.shape[1] - whole_CN.shape[1]
        assert 0 <= lag < 4_000
        best = min(range(lag + 1), key=lambda shift: float(np.abs(streamed_CN[:, shift : shift + 20_000] - whole_CN[:, :20_000]).max()))
        streamed_CN = streamed_CN[:, best : best + whole_CN.shape[1]]
    assert streamed_CN.shape == whole_CN.shape
    assert np.abs(streamed_CN - whole_CN).max() < 1e-3
    engine.close()


def test_a_failed_step_ends_its_requests_and_no_others(engine: Engine) -> None:
    class Failing(type(engine.accompanist.evaluator)):  # the real evaluator, with a device that fails once
        failing = False

        def __call__(self, evaluations: Any) -> Any:
            if self.failing:
                self.failing = False
                raise RuntimeError("the device is gone")
            return super().__call__(evaluations)

    checkpoint = engine.accompanist.checkpoint
    evaluator = Failing(checkpoint.build(torch.device("cpu")), threads=1)
    failing = Engine(Accompanist(checkpoint, engine.accompanist.codec, evaluator=evaluator))
    evaluator.failing = True
    with pytest.raises(RuntimeError, match="a step of the network failed: the device is gone"):
        failing.generate(parts.stereo(), QUICK)
    assert failing.denoiser.failures == 1
    assert played(failing, parts.stereo(), QUICK) == played(engine, parts.stereo(), QUICK)
    assert failing.denoiser.failures == 0
    failing.close()


def test_a_models_own_sampling_is_used_and_told(engine: Engine) -> None:
    checkpoint = replace(engine.accompanist.checkpoint, sampling=Sampling(solver="ddim", steps=3, guidance=1.0))
    student = Engine(Accompanist(checkpoint, engine.accompanist.codec))
    assert (student.info().default_steps, student.info().default_guidance) == (3, 1.0)
    own = student.generate(parts.stereo(), AccompanimentRequest(seed=7))
    assert own.audio_CN.tobytes() == played(student, parts.stereo(), AccompanimentRequest(seed=7, steps=3, guidance=1.0))
    assert own.audio_CN.tobytes() != played(student, parts.stereo(), QUICK)


def test_a_hung_model_is_seen(engine: Engine) -> None:
    """A device that does not answer shows as seconds without a step."""
    asked, answer = threading.Event(), threading.Event()

    class Hanging(type(engine.accompanist.evaluator)):
        def __call__(self, evaluations: Any) -> Any:
            asked.set()
            answer.wait()
            return super().__call__(evaluations)

    checkpoint = engine.accompanist.checkpoint
    evaluator = Hanging(checkpoint.build(torch.device("cpu")), threads=1)
    hung = Engine(Accompanist(checkpoint, engine.accompanist.codec, evaluator=evaluator))
    assert hung.stalled_s() == 0
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(hung.generate, parts.stereo(), QUICK)
        asked.wait()
        first = hung.stalled_s()
        while hung.stalled_s() < first + 0.2:
            time.sleep(0.01)
        answer.set()
        assert waiting.result().audio_CN.tobytes()
    assert hung.stalled_s() == 0
    hung.close()


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def hang(patch: pytest.MonkeyPatch, codec: Any, name: str, at: int) -> tuple[threading.Semaphore, threading.Event]:
    """(released when a thread hangs, what lets it go on): the first piece number `at` that the codec is asked for hangs."""
    hanging, answer, whole, once = threading.Semaphore(0), threading.Event(), getattr(codec, name), threading.Lock()

    def pieces(*args: Any, **options: Any) -> Iterator[Tensor]:
        for number, piece in enumerate(whole(*args, **options)):
            if number == at and once.acquire(blocking=False):
                hanging.release()
                answer.wait()
            yield piece

    patch.setattr(codec, name, pieces)
    return hanging, answer


@pytest.mark.parametrize(("name", "at"), [("encode_pieces", 0), ("encode_pieces", 1), ("decode_pieces", 0)])
def test_who_comes_later_does_not_hide_that_the_codec_hangs(engine: Engine, monkeypatch: pytest.MonkeyPatch, name: str, at: int) -> None:
    """Not even who is answered meanwhile, and whose steps the one that hangs is told of."""
    model, clock = engine.accompanist, Clock()
    short = Accompanist(model.checkpoint, model.codec, window_frames=64, overlap_frames=16, slope_frames=8)
    engine = Engine(short, EngineConfig(max_duration_s=60.0), clock)
    hanging, answer = hang(monkeypatch, model.codec, name, at)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(engine.generate, parts.stereo(12), AccompanimentRequest(seed=1, steps=2))
        hanging.acquire()
        try:
            clock.now_s += 100
            assert engine.generate(parts.stereo(5), QUICK).audio_CN.any()
            assert engine.stalled_s() == 100
        finally:
            answer.set()
        assert waiting.result().audio_CN.any()
    assert engine.stalled_s() == 0
    engine.close()


def test_who_waits_for_its_turn_does_not_stand_still(engine: Engine) -> None:
    """As long as the denoiser makes steps of others."""
    clock, request = Clock(), AccompanimentRequest(seed=1, steps=200, candidates=8)
    engine = Engine(engine.accompanist, EngineConfig(max_duration_s=60.0), clock)
    long, waiting = Call(), Call()
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(engine.generate, parts.stereo(19), request, call) for call in (long, waiting)]
        while engine.denoiser.waiting < 2:
            time.sleep(0.01)
        for _ in range(3):
            clock.now_s += 100
            while engine.stalled_s() >= 100:
                time.sleep(0.01)
        assert not any(future.done() for future in asked)
        for call, future in zip((long, waiting), asked, strict=True):
            call.cancel()
            with pytest.raises(CancelledRequestError):
                future.result()
    engine.close()


def test_a_long_vocal_is_refused(door: Door) -> None:
    with pytest.raises(AudioTooLong, match="20 s"):
        door.generate(parts.audio_file(np.zeros(8_000 * 21), 8_000), QUICK)


def test_stems_alone_do_not_clip() -> None:
    """An accompaniment above full scale is turned down, not cut off."""
    loud_CN = 3 * parts.stereo() / 0.1
    request = AccompanimentRequest(format="flac")
    audio = render(loud_CN / 10, loud_CN.astype(np.float32), request)
    assert kind_of(request) == ("audio/flac", "accompaniment.flac")
    samples_CN = decode(audio).samples_CN
    assert np.abs(samples_CN).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)
    assert np.corrcoef(samples_CN[0], loud_CN[0])[0, 1] > 0.9999


def test_stems_are_the_mix_of_the_model() -> None:
    vocal_CN, band_CN = parts.stereo(), np.full((2, 44_100), 0.2, np.float32)
    request = AccompanimentRequest(output="stems")
    audio = render(vocal_CN, band_CN, request)
    assert kind_of(request) == ("application/zip", "stems.zip")
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
