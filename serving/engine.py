"""One vocal to one finished file, without Ray or HTTP: decode, accompany, render.

Shape legend: C channels (2), N samples at 44.1 kHz.
"""

import io
import logging
import secrets
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from infra import audio_files
from infra.errors import UserError
from model.accompany import Accompaniment, Accompanist, GenerationConfig
from model.fit import Fit as ModelFit
from model.geometry import SAMPLE_RATE_HZ
from model.level import mix, within_full_scale
from serving.schema import AccompanimentRequest, AccompanimentResult, Fit, ModelInfo, StageSeconds

log = logging.getLogger(__name__)

# How often a waiting request looks whether its caller went away.
WAIT_POLL_S = 0.05
# ZIP keeps a date for each file; a fixed one (the earliest that it can hold) makes equal answers equal bytes.
ZIP_DATE = (1980, 1, 1, 0, 0, 0)


class CancelledRequestError(Exception):
    """The caller went away before the end."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Limits of one engine."""

    max_duration_s: float = 600.0
    hang_after_s: float = 300.0
    """A busy engine that has made no denoising step for so long counts as hung (a device that no longer answers)."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_duration_s <= audio_files.MAX_DURATION_S:
            longest_s = audio_files.MAX_DURATION_S
            raise UserError(f"max_duration_s is {self.max_duration_s}, which is not within 1 to {longest_s:g}: give seconds")
        if self.hang_after_s <= 0:
            raise UserError(f"hang_after_s is {self.hang_after_s}, which is not positive: give seconds")


class Engine:
    """Answers requests from several threads: audio files are read and written side by side, the model works on one vocal at a time.

    Each request's noise comes from its own seed, so its audio does not depend on what else is asked at the same time.
    """

    def __init__(self, accompanist: Accompanist, config: EngineConfig | None = None) -> None:
        self.accompanist = accompanist
        self.config = config or EngineConfig()
        self._model_lock = threading.Lock()
        self._progress_at_s: float | None = None

    def generate(
        self, vocal: bytes | np.ndarray, request: AccompanimentRequest, *, cancelled: threading.Event | None = None
    ) -> AccompanimentResult:
        """The band for `vocal`: an audio file's bytes, or samples_CN at 44.1 kHz.

        Raises AudioError (the vocal), ModelError (the model, say one that diverged), CancelledRequestError (within a denoising step of
        `cancelled` being set).
        """
        cancelled = cancelled or threading.Event()
        start_s = time.perf_counter()
        vocal_CN = self._decode(vocal)
        decode_s = time.perf_counter() - start_s
        config = self._generation_config(request)
        with self._model(cancelled) as waited_s:
            made = self.accompanist.accompany(vocal_CN, config, progress=self._progress(cancelled))
        if cancelled.is_set():
            raise CancelledRequestError
        render_start_s = time.perf_counter()
        audio, media_type, file_name = render(vocal_CN, made.audio_CN, request)
        # The codec's own decoding is rendering too, as a listener sees it.
        render_s = time.perf_counter() - render_start_s + made.stage_s.get("render", 0.0)
        return AccompanimentResult(
            audio=audio,
            media_type=media_type,
            file_name=file_name,
            model=self.accompanist.checkpoint.name,
            seed=made.seed,
            fit=_fit(made.fit),
            candidate_fits=tuple(_fit(fit) for fit in made.candidate_fits),
            duration_s=vocal_CN.shape[1] / SAMPLE_RATE_HZ,
            stages=_stages(made, queue_s=waited_s, decode_s=decode_s, render_s=render_s),
        )

    def info(self) -> ModelInfo:
        """What `GET /v1/models` says of this model."""
        checkpoint = self.accompanist.checkpoint
        return ModelInfo(
            id=checkpoint.name,
            step=checkpoint.step,
            parameters=sum(tensor.numel() for tensor in checkpoint.state.values()),
            codec=checkpoint.codec.id,
            dataset=checkpoint.dataset.uri,
            dataset_digest=checkpoint.dataset.digest,
            sample_rate_hz=SAMPLE_RATE_HZ,
            max_duration_s=self.config.max_duration_s,
            default_steps=checkpoint.sampling.steps,
            default_guidance=checkpoint.sampling.guidance,
            streams_windows=False,
        )

    def stalled_s(self) -> float:
        """Seconds since the model last made progress; 0 when it is idle."""
        at_s = self._progress_at_s
        return 0.0 if at_s is None else time.monotonic() - at_s

    def _decode(self, vocal: bytes | np.ndarray) -> np.ndarray:
        if isinstance(vocal, np.ndarray):
            return vocal
        return audio_files.to_stereo_44k(audio_files.decode(vocal, max_duration_s=self.config.max_duration_s))

    def _generation_config(self, request: AccompanimentRequest) -> GenerationConfig:
        seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        return GenerationConfig(seed=seed, candidates=request.candidates, steps=request.steps, guidance=request.guidance)

    @contextmanager
    def _model(self, cancelled: threading.Event) -> Iterator[float]:
        """The model to oneself; yields the seconds waited for it."""
        start_s = time.perf_counter()
        while not self._model_lock.acquire(timeout=WAIT_POLL_S):
            if cancelled.is_set():
                raise CancelledRequestError
        try:
            self._progress_at_s = time.monotonic()
            yield time.perf_counter() - start_s
        finally:
            self._progress_at_s = None
            self._model_lock.release()

    def _progress(self, cancelled: threading.Event) -> Callable[[int, int], None]:
        def step(done: int, total: int) -> None:
            self._progress_at_s = time.monotonic()
            if cancelled.is_set():
                log.info("cancelled at step %d of %d", done, total)
                raise CancelledRequestError

        return step


def render(vocal_CN: np.ndarray, accompaniment_CN: np.ndarray, request: AccompanimentRequest) -> tuple[bytes, str, str]:
    """(file, media type, file name) as the request wants it."""
    media_type = audio_files.MIME_TYPES[request.format]
    if request.output == "accompaniment":
        # It has the vocal's own level, which a mix can keep; alone it is turned down where it would clip.
        return audio_files.encode(within_full_scale(accompaniment_CN), request.format), media_type, f"accompaniment.{request.format}"
    mixed_vocal_CN, mixed_accompaniment_CN, mixture_CN = mix(vocal_CN, accompaniment_CN)
    if request.output == "mix":
        return audio_files.encode(mixture_CN, request.format), media_type, f"mix.{request.format}"
    stems = {"vocal": mixed_vocal_CN, "accompaniment": mixed_accompaniment_CN, "mix": mixture_CN}
    return _zip({f"{name}.{request.format}": audio_files.encode(stem_CN, request.format) for name, stem_CN in stems.items()})


def _zip(files: dict[str, bytes]) -> tuple[bytes, str, str]:
    """Stored, not deflated: audio hardly shrinks, and a browser reads it without a library."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, ZIP_DATE), data)
    return buffer.getvalue(), "application/zip", "stems.zip"


def _fit(fit: ModelFit) -> Fit:
    return Fit(harmony=fit.harmony, rhythm=fit.rhythm, overall=fit.overall, leakage=fit.leakage)


def _stages(made: Accompaniment, *, queue_s: float, decode_s: float, render_s: float) -> StageSeconds:
    model_s = made.stage_s
    return StageSeconds(
        queue=queue_s,
        decode=decode_s,
        encode=model_s.get("encode", 0.0),
        diffuse=model_s.get("diffuse", 0.0),
        fit=model_s.get("fit", 0.0),
        render=render_s,
    )
