"""A vocal in, its accompaniment out: the one path of inference, for the command line, evaluation and the service.

Shapes: B batch, K candidates, C channels, T latent frames, N samples.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import Checkpoint, load_checkpoint
from model.codec.base import Codec
from model.codec.load import load_codec
from model.controls import Controls
from model.diffusion.objective import Schedule
from model.diffusion.sampling import USUAL_SAMPLING, Progress, Sampling, Solver
from model.dimensions import AUDIO_CHANNELS, HOP_SAMPLES, LATENT_CHANNELS, SAMPLE_RATE_HZ, SEGMENT_FRAMES
from model.errors import ControlError, ModelError
from model.inference.gain import level_gain, without_bumps
from model.inference.intonation import IN_TUNE, speed_into_tune, stretched, stretched_pieces
from model.inference.network_runner import Evaluator, evaluator_for
from model.inference.windows import Lane, Window, noise, windows
from model.inference.windows import denoise as denoise_alone
from model.metrics.fit import Fit, Listener
from model.network.conditions import Conditions, conditions_of
from model.network.unet import UNetConfig, VocalFeatures

# Null features kept, one for each length of window: guided requests of the same length share them.
NULL_LENGTHS = 4

Item = TypeVar("Item")
Denoise = Callable[[Sequence[Lane], Callable[[int], None]], Iterator[tuple[Lane, Tensor]]]
"""Moves a request's lanes to their ends, as `model.inference.windows.denoise` does: (lanes, progress) → settled frames with their lane."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What may be asked of one accompaniment; None is the checkpoint's own, see `Sampling`."""

    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    guidance_rescale: float = 0.7
    """φ of Lin et al. 2023, 0 to 1: how much of guidance's gain in level is taken back."""
    solver: Solver | None = None
    candidates: int = 1
    """How many are made, as many at a time as the device takes; the best fitting is returned."""
    controls: Controls = field(default_factory=Controls)
    """What is asked beside the vocal; a checkpoint says in `network.controls` and `network.styles` what it knows."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ModelError(f"seed={self.seed}: must lie in 0..{2**63 - 1}")
        if not 0 <= self.guidance_rescale <= 1:
            raise ModelError(f"guidance_rescale={self.guidance_rescale}: must lie in 0..1")
        if not 1 <= self.candidates <= 64:
            raise ModelError(f"candidates={self.candidates}: must lie in 1..64")
        if self.sampling(USUAL_SAMPLING).steps > 800:
            raise ModelError(f"steps={self.steps}: must lie in 1..800; 20 is usual")

    def sampling(self, usual: Sampling) -> Sampling:
        """What is asked, and where nothing is, what is usual."""
        return Sampling(
            solver=usual.solver if self.solver is None else self.solver,
            steps=usual.steps if self.steps is None else self.steps,
            guidance=usual.guidance if self.guidance is None else self.guidance,
        )


@dataclass(frozen=True, kw_only=True)
class Accompaniment:
    """audio_CN (2, N) float32, as long as the vocal and at its level; it may exceed full scale as the vocal may, see `mix`."""

    audio_CN: np.ndarray
    seed: int
    fit: Fit
    candidate_fits: tuple[Fit, ...]
    stage_s: dict[str, float]
    """Seconds of encode, diffuse, render (the codec's decoding) and fit, for all that were made in the same call."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """vocal_CN (2, N) float at 44.1 kHz, one sample or more, and what is wanted of its accompaniment."""

    vocal_CN: np.ndarray
    config: GenerationConfig


class StageClock:
    """Seconds by stage. A stage that begins inside another stops the outer one's count until it ends."""

    def __init__(self, device: torch.device) -> None:
        self.stage_s = dict.fromkeys(("encode", "diffuse", "render", "fit"), 0.0)
        self._device, self._open, self._since_s = device, list[str](), 0.0

    def _count(self) -> None:
        if self._device.type == "cuda":
            # This thread's work: a whole device may not be waited for while another thread captures a graph.
            torch.cuda.current_stream(self._device).synchronize()
        now_s = time.perf_counter()
        if self._open:
            self.stage_s[self._open[-1]] += now_s - self._since_s
        self._since_s = now_s

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def each(self, name: str, items: Iterator[Item]) -> Iterator[Item]:
        """The items, with the time that making each takes; not the time until the next is asked for."""
        while True:
            with self.stage(name):
                item = next(items, None)
            if item is None:
                return
            yield item


class Accompanist:
    """A checkpoint's network with its codec, ready for vocals; what it answers depends on its arguments alone.

    One thread at a time, unless they share a `denoise`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        codec: Codec,
        *,
        device: str = "cpu",
        window_frames: int = SEGMENT_FRAMES,
        overlap_frames: int = SEGMENT_FRAMES // 4,
        slope_frames: int = SEGMENT_FRAMES // 16,
        evaluator: Evaluator | None = None,
    ) -> None:
        """overlap_frames: what a window sees of the one before. slope_frames: over how many of these it takes over. evaluator: of
        `checkpoint.build(device)`; by default the device's own."""
        if codec.identity.weights_sha256 != checkpoint.codec.weights_sha256:
            raise ModelError(
                f"checkpoint {checkpoint.name} was trained on latents of codec {checkpoint.codec.id} "
                f"({checkpoint.codec.weights_sha256[:12]}), not {codec.identity.id} ({codec.identity.weights_sha256[:12]}): give that codec"
            )
        if not 0 < overlap_frames < window_frames:
            raise ModelError(f"overlap_frames={overlap_frames}: must lie in 1..{window_frames - 1}")
        if not 0 < slope_frames <= overlap_frames:
            raise ModelError(f"slope_frames={slope_frames}: must lie in 1..{overlap_frames}, the overlap")
        self.checkpoint, self.codec, self.device = checkpoint, codec, torch.device(device)
        self.window_frames, self.overlap_frames, self.slope_frames = window_frames, overlap_frames, slope_frames
        self._evaluator = evaluator or evaluator_for(checkpoint.build(self.device))
        self.schedule = Schedule(steps=checkpoint.network.diffusion_steps)
        self._nulls: OrderedDict[int, VocalFeatures] = OrderedDict()
        self._nulls_lock = threading.Lock()

    @property
    def evaluator(self) -> Evaluator:
        return self._evaluator

    def accompany(
        self,
        vocal_CN: np.ndarray,
        config: GenerationConfig | None = None,
        *,
        progress: Progress | None = None,
        denoise: Denoise | None = None,
    ) -> Accompaniment:
        """(2, N) float at 44.1 kHz, one sample or more → its accompaniment.

        Of what grows with length it holds the vocal, the band (twice where there are candidates) and their latents, 0.3 MB a minute and
        candidate. progress: called after each step, and after each candidate's fit with (steps, steps); what it raises ends the work.
        denoise: who asks the network; with one that several threads may share, as the service's, this may be called from each of them.
        ModelError: another shape, no samples, or not finite.
        """
        request = Request(vocal_CN=vocal_CN, config=config or GenerationConfig())
        return self.accompany_batch([request], progress=progress, denoise=denoise)[0]

    @torch.inference_mode()
    def accompany_batch(
        self,
        requests: Sequence[Request],
        *,
        progress: Progress | None = None,
        denoise: Denoise | None = None,
        clock: StageClock | None = None,
    ) -> list[Accompaniment]:
        """Each request's accompaniment, all candidates denoised together, and each bit for bit what `accompany` gives it alone.

        What one request raises ends them all: look at vocals before they are batched.
        """
        clock = clock or StageClock(self.device)
        songs = [_Song(self, request, clock) for request in requests]
        latents: dict[Lane, list[Tensor]] = {lane: [] for song in songs for lane in song.lanes}
        count = _StepCount(progress, sum(song.steps for song in songs))
        for lane, settled_BCT in clock.each("diffuse", (denoise or self._denoise)(list(latents), count.advance)):
            latents[lane].append(settled_BCT)
        made = [self._best(song, [latents.pop(lane) for lane in song.lanes], clock, count) for song in songs]
        return [replace(accompaniment, stage_s=dict(clock.stage_s)) for accompaniment in made]

    def _best(self, song: "_Song", latents_KBCT: list[list[Tensor]], clock: StageClock, count: "_StepCount") -> Accompaniment:
        best: tuple[Fit, np.ndarray] | None = None
        fits = []
        with clock.stage("fit"):
            listener = Listener(song.vocal_CN)
        for pieces_BCT in latents_KBCT:  # one after the other: a long song's audio is large
            audio_CN = np.empty_like(song.vocal_CN)
            for _ in song.render(iter(pieces_BCT), audio_CN):
                count.advance(0)  # a long song's audio takes minutes: whoever watches sees that it goes on
            with clock.stage("fit"):
                fits.append(listener.fit(audio_CN))
            if best is None or fits[-1].overall > best[0].overall:
                best = fits[-1], audio_CN
            count.finished()
        assert best is not None  # candidates ≥ 1
        return Accompaniment(audio_CN=best[1], seed=song.config.seed, fit=best[0], candidate_fits=tuple(fits), stage_s=clock.stage_s)

    @torch.inference_mode()
    def stream(
        self,
        vocal_CN: np.ndarray,
        config: GenerationConfig | None = None,
        *,
        progress: Progress | None = None,
        denoise: Denoise | None = None,
        clock: StageClock | None = None,
    ) -> Generator[np.ndarray, None, Accompaniment]:
        """The same audio as `accompany`, bit for bit, in pieces (2, n) as soon as each is finished; returns the whole with its fit.

        The first piece needs the first window alone. Of several candidates the best is known, and heard, when all are done. Pieces are
        views that cannot be written to. clock: counts on, for who wants to know the times before the end. Errors are those of
        `accompany`, at the first `next`.
        """
        config = config or GenerationConfig()
        if config.candidates > 1:
            request = Request(vocal_CN=vocal_CN, config=config)
            made = self.accompany_batch([request], progress=progress, denoise=denoise, clock=clock)[0]
            yield made.audio_CN
            return made
        clock = clock or StageClock(self.device)
        song = _Song(self, Request(vocal_CN=vocal_CN, config=config), clock)
        count = _StepCount(progress, song.steps)
        settled = clock.each("diffuse", (denoise or self._denoise)(song.lanes, count.advance))
        audio_CN = np.empty_like(song.vocal_CN)
        yield from song.render((settled_BCT for _, settled_BCT in settled), audio_CN)
        with clock.stage("fit"):
            found = Listener(song.vocal_CN).fit(audio_CN)
        count.finished()
        return Accompaniment(audio_CN=audio_CN, seed=config.seed, fit=found, candidate_fits=(found,), stage_s=clock.stage_s)

    def null_features(self, frames: int) -> VocalFeatures:
        """Features of the null condition for a window of so many frames, the last used ones kept."""
        with self._nulls_lock:
            if frames not in self._nulls:
                (self._nulls[frames],) = self._evaluator.encode([None], frames)
                if len(self._nulls) > NULL_LENGTHS:
                    self._nulls.popitem(last=False)
            self._nulls.move_to_end(frames)
            return self._nulls[frames]

    def _denoise(self, lanes: Sequence[Lane], progress: Callable[[int], None]) -> Iterator[tuple[Lane, Tensor]]:
        return denoise_alone(lanes, self._evaluator, progress)

    def features(self, vocal_BCT: Tensor, conditions: Conditions | None = None) -> VocalFeatures:
        """Features of a window of a normalised vocal latent and of what is given beside it."""
        return self._evaluator.encode([vocal_BCT], vocal_BCT.shape[2], [conditions])[0]


class _Song:
    """One request on its way: its vocal's latent, as far as windows have asked for it, its lanes, and how they become audio."""

    def __init__(self, accompanist: Accompanist, request: Request, clock: StageClock) -> None:
        self.vocal_CN, self.config = _checked(request.vocal_CN), request.config
        self._sampling = self.config.sampling(accompanist.checkpoint.sampling)
        self._accompanist, self._clock = accompanist, clock
        with clock.stage("encode"):
            self._slower = speed_into_tune(self.vocal_CN)
            tuned_CN = without_bumps(self.vocal_CN if self._slower == IN_TUNE else stretched(self.vocal_CN, self._slower))
            self._gain = level_gain(tuned_CN, accompanist.checkpoint.statistics.vocal_level_db)
        self._encoding = accompanist.codec.encode_pieces(torch.from_numpy(tuned_CN)[None], gain=self._gain)
        self._vocal_BCT = torch.empty(1, LATENT_CHANNELS, 0)
        self._features: tuple[Window, VocalFeatures] | None = None
        frames = -(-tuned_CN.shape[1] // HOP_SAMPLES)
        self._conditions = self._given(accompanist.checkpoint.network, frames)
        self._windows = windows(frames, accompanist.window_frames, accompanist.overlap_frames)
        self.lanes = [self._lane(candidate) for candidate in range(self.config.candidates)]

    @property
    def steps(self) -> int:
        """Denoising steps of all candidates and windows."""
        return self.config.candidates * len(self._windows) * self._sampling.steps

    def _lane(self, candidate: int) -> Lane:
        config, accompanist = self.config, self._accompanist
        return Lane(
            windows=self._windows,
            slope=accompanist.slope_frames,
            condition=self._condition,
            draw=lambda window: (drawn.to(accompanist.device) for drawn in noise(config.seed, candidate, window.start, window.frames)),
            schedule=accompanist.schedule,
            sampler=self._sampling,
            guidance=self._sampling.guidance,
            rescale=config.guidance_rescale,
        )

    def _given(self, network: UNetConfig, frames: int) -> Conditions | None:
        """What the request's controls say of each frame."""
        duration_s = self.vocal_CN.shape[1] / SAMPLE_RATE_HZ
        controls = self.config.controls.within(duration_s)
        check_known(controls, network)
        if not controls.names:
            return None
        return conditions_of(controls, frames, styles=network.styles, duration_s=duration_s, slower=float(self._slower))

    def _condition(self, window: Window) -> tuple[VocalFeatures, VocalFeatures | None]:
        """A window's features, which candidates that are in the same window share."""
        if self._features is None or self._features[0] != window:
            cut_BCT = self._vocal_up_to(window.start + window.frames)[:, :, window.start :]
            given = None if self._conditions is None else self._conditions.window(window.start, window.frames)
            self._features = window, self._accompanist.features(cut_BCT, given)
        null = None if self._sampling.guidance == 1 else self._accompanist.null_features(window.frames)
        return self._features[1], null

    def _vocal_up_to(self, stop: int) -> Tensor:
        """The normalised vocal latent's first frames; what is not there yet is encoded."""
        with self._clock.stage("encode"):
            while self._vocal_BCT.shape[2] < stop:
                normal_BCT = self._accompanist.checkpoint.statistics.normalise_vocal(next(self._encoding))
                self._vocal_BCT = torch.cat([self._vocal_BCT, normal_BCT], dim=2)
        return self._vocal_BCT[:, :, :stop]

    def render(self, latents_BCT: Iterator[Tensor], audio_CN: np.ndarray) -> Iterator[np.ndarray]:
        """Fills audio_CN (2, N) with a candidate's audio at the vocal's own level and tuning, and yields each part once it is there."""
        restore = self._accompanist.checkpoint.statistics.restore_accompaniment
        decoded = self._accompanist.codec.decode_pieces(map(restore, latents_BCT), early=len(self._windows) > 1)
        pieces = (piece_BCN[0].numpy() for piece_BCN in decoded)
        if self._slower != IN_TUNE:
            pieces = stretched_pieces(pieces, 1 / self._slower, audio_CN.shape[1])
        filled = 0
        for piece_CN in self._clock.each("render", pieces):
            part_CN = audio_CN[:, filled : filled + piece_CN.shape[1]]
            np.divide(piece_CN[:, : part_CN.shape[1]], np.float32(self._gain), out=part_CN)
            filled += part_CN.shape[1]
            if part_CN.shape[1]:
                part_CN.flags.writeable = False
                yield part_CN
        if filled < audio_CN.shape[1]:
            raise ModelError(f"the accompaniment ended after {filled} of {audio_CN.shape[1]} samples; the model that made it is at fault")


class _StepCount:
    """Counts denoising steps, and tells whoever wants to know."""

    def __init__(self, progress: Progress | None, steps: int) -> None:
        self._progress, self._steps, self._done = progress, steps, 0

    def advance(self, steps: int) -> None:
        self._done += steps
        if self._progress is not None:
            self._progress(self._done, self._steps)

    def finished(self) -> None:
        """A candidate has been heard."""
        self.advance(0)


def load_accompanist(folder: Path, *, codec: str | None = None, device: str = "auto") -> Accompanist:
    """The accompanist of a checkpoint's folder (or a training run's), with its codec or the one that `codec` names.

    device: auto is the accelerator where there is one. Raises ModelError when either cannot be loaded, or they do not belong together.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = load_checkpoint(folder)
    return Accompanist(checkpoint, load_codec(codec or checkpoint.codec.id, device=device), device=device)


def check_known(controls: Controls, network: UNetConfig) -> None:
    """Raises ControlError where controls are asked of a network that was trained without them."""
    for name in controls.names:
        if name not in network.controls:
            known = f"it knows {', '.join(network.controls)}" if network.controls else "it follows the vocal alone"
            raise ControlError(name, f"this model was not trained with it; {known}. Leave it out, or choose another model")
    if controls.style is not None and controls.style not in network.styles:
        raise ControlError("style", f"{controls.style!r} is not one of this model's: {', '.join(network.styles)}")


def _checked(vocal_CN: np.ndarray) -> np.ndarray:
    vocal_CN = np.asarray(vocal_CN)
    if vocal_CN.ndim != 2 or vocal_CN.shape[0] != AUDIO_CHANNELS:
        raise ModelError(f"vocal of shape {vocal_CN.shape}: must be ({AUDIO_CHANNELS}, samples) at 44.1 kHz; decode it to stereo first")
    if vocal_CN.shape[1] == 0:
        raise ModelError("vocal of zero samples: there is nothing to accompany")
    if not np.issubdtype(vocal_CN.dtype, np.floating):
        raise ModelError(f"vocal of type {vocal_CN.dtype}: must be float in -1..1; divide integers by their full scale")
    if not np.isfinite(vocal_CN).all():
        raise ModelError("vocal with NaN or infinite samples: repair the recording")
    return np.ascontiguousarray(vocal_CN, dtype=np.float32)
