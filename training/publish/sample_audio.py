"""What is heard and seen of a training while it goes on: the same held-out vocals every time, and the error by timestep.

It takes nothing from the training: networks of its own, no random stream of the process, and a pause of seconds that is bounded by the
config's `samples` and `samples_every`.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from infra.audio import files as audio_files
from infra.dataset.format import LatentTable, read_latents
from infra.errors import UserError
from infra.resolve import codec_spec
from infra.settings import Settings
from infra.storage.place import Place
from infra.tracking.tracking import Tracker
from model.accompany import Accompanist, GenerationConfig
from model.checkpoint import Checkpoint
from model.codec.base import Codec
from model.codec.load import load_codec
from model.dimensions import FRAME_RATE_HZ
from model.errors import ModelError
from training.config import TrainConfig
from training.evaluation import plots as figures
from training.evaluation.evaluate import sounds_of
from training.evaluation.material import device
from training.evaluation.rows import HeldOut, spread
from training.state import read_metrics

log = logging.getLogger(__name__)

SAMPLE_S = 10.0
MOST_STEPS = 20
ERROR_AT = "validation/error_t"


@dataclass(frozen=True, kw_only=True)
class Ears:
    """What stays the same from one listening to the next."""

    codec: Codec
    pairs: tuple[HeldOut, ...]


class Listener:
    """Logs audio and pictures of a checkpoint to the tracker."""

    def __init__(self, config: TrainConfig, tracker: Tracker, data: Place, run: Place) -> None:
        self._config, self._tracker, self._data, self._run = config, tracker, data, run
        self._ears: Ears | None = None
        self._deaf = config.samples == 0
        self._errors: dict[int, dict[str, float]] | None = None

    def __call__(self, checkpoint: Checkpoint, step: int) -> None:
        """At a validation: the figure, and every `samples_every`-th time the sounds too."""
        self.draw(checkpoint.metrics, step)
        every = self._config.samples_every
        if every and (step // self._config.validate_every) % every == 0:
            self.play(checkpoint, step)

    def draw(self, metrics: dict[str, float], step: int) -> None:
        """figures/error_by_timestep.png: this validation's error at each of the fixed timesteps, against the earlier ones."""
        if self._errors is None:  # a resumed run goes on with what it has
            self._errors = {int(row["step"]): errors for row in read_metrics(self._run, up_to=step) if (errors := _errors_of(row))}
        if errors := _errors_of(metrics):
            self._errors[step] = errors
            curves = {at: [(int(name.removeprefix(ERROR_AT)), value) for name, value in row.items()] for at, row in self._errors.items()}
            self._tracker.content(figures.error_by_timestep(curves), "figures/error_by_timestep.png")

    def play(self, checkpoint: Checkpoint, step: int) -> None:
        """samples/step-…: what a checkpoint plays to the held-out vocals. A codec that is not here costs the samples only."""
        if self._deaf:
            return
        began_s = time.monotonic()
        try:
            with _streams_untouched():
                self._play(checkpoint, step)
        except (ModelError, UserError, torch.OutOfMemoryError) as error:
            self._deaf = True
            log.warning("no sample audio: %s", error)
        else:
            log.info("step %d heard, in %.1f s", step, time.monotonic() - began_s)

    def _play(self, checkpoint: Checkpoint, step: int) -> None:
        ears = self._ears = self._ears or self._open(checkpoint)
        accompanist = Accompanist(checkpoint, ears.codec, device=device())
        config = GenerationConfig(steps=min(MOST_STEPS, checkpoint.sampling.steps))
        for pair in ears.pairs:
            sounds = sounds_of(pair, accompanist.accompany(pair.vocal_CN, config).audio_CN)
            for name in ("generated", "mix"):
                self._tracker.content(audio_files.encode(sounds[name], "ogg"), f"samples/step-{step:06d}/{pair.name}-{name}.ogg")
            self._tracker.content(figures.spectrograms(sounds), f"samples/step-{step:06d}/{pair.name}.png")

    def _open(self, checkpoint: Checkpoint) -> Ears:
        """The codec, and the vocals with what was really played to them, which are logged once."""
        store = read_latents(self._data, "validation")
        codec = load_codec(codec_spec(self._config.codec, Settings.from_environment()) or checkpoint.codec.id, device=device())
        rows = spread(store, self._config.samples) if len(store) else []
        pairs = tuple(liveliest(store, row, codec) for row in rows)
        for pair in pairs:
            sounds = sounds_of(pair, pair.real_CN)
            for name in ("vocal", "real"):
                self._tracker.content(audio_files.encode(sounds[name], "ogg"), f"samples/held-out/{pair.name}-{name}.ogg")
        return Ears(codec=codec, pairs=pairs)


def liveliest(store: LatentTable, row: int, codec: Codec) -> HeldOut:
    """The 10 s of a segment where most goes on in the vocal, decoded: songs begin without it, and silence says little."""
    frames = int(store.valid_frames_R[row])
    width = min(frames, int(SAMPLE_S * FRAME_RATE_HZ))
    changes_T = np.abs(np.diff(store.vocal_RCT[row, :, :frames].astype(np.float32), axis=1)).sum(axis=0)
    before_T = np.concatenate([[0.0], np.cumsum(changes_T)])
    start = int(np.argmax(before_T[width - 1 :] - before_T[: frames - width + 1]))
    latents_BCT = np.stack([latent[row, :, start : start + width] for latent in (store.vocal_RCT, store.accompaniment_RCT)])
    with torch.inference_mode():
        audio_BCN = codec.decode(torch.from_numpy(latents_BCT).float().to(device())).cpu().numpy()
    return HeldOut(song_id=store.song_ids[row], segment=store.segments[row], vocal_CN=audio_BCN[0], real_CN=audio_BCN[1])


def _errors_of(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith(ERROR_AT)}


@contextmanager
def _streams_untouched() -> Iterator[None]:
    """torch's random state of the process as it was, whatever a codec draws."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        yield
