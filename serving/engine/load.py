"""From places to engines: what a model replica does first. Imports torch, so only replicas import this."""

import logging
import os
import time

import torch

from infra.resolve import checkpoint_folder, codec_spec
from infra.settings import Settings
from model.accompany import Accompanist
from model.checkpoint import SHIPPED_CHECKPOINT, Checkpoint, load_checkpoint
from model.codec.base import Codec
from model.codec.load import load_codec
from serving.engine.engine import Engine, EngineConfig, describe
from serving.schema import ModelInfo

log = logging.getLogger(__name__)

# Beyond this the network's small matrices gain nothing.
MOST_THREADS = 8


class EngineLoader:
    """Engines of one process, on one device; codecs are shared, as they answer several threads."""

    def __init__(
        self,
        *,
        codec: str | None,
        device: str,
        threads: int | None,
        max_duration_s: float,
        hang_after_s: float,
        max_audio_s: float = EngineConfig.max_audio_s,
    ) -> None:
        """codec: spec of another than the checkpoints' own. device: auto, cpu, cuda. threads: see `ServeConfig.replica_threads`."""
        # Ray gives an actor one OpenMP thread a CPU ticket. A replica owns its process, so here is the place to say otherwise.
        torch.set_num_threads(threads or min(MOST_THREADS, os.cpu_count() or 1))
        self._settings = Settings.from_environment()
        self._codec = codec_spec(codec, self._settings)
        self._device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self._config = EngineConfig(max_duration_s=max_duration_s, max_audio_s=max_audio_s, hang_after_s=hang_after_s)
        self._codecs: dict[str, Codec] = {}

    def info(self, place: str | None) -> ModelInfo:
        """Of a checkpoint that is not loaded for it. Raises what `engine` raises for a checkpoint that cannot be read."""
        return describe(self._checkpoint(place), self._config)

    def engine(self, place: str | None) -> Engine:
        """The engine of a checkpoint's place (local, S3 or registry). Raises UserError or ModelError with the remedy."""
        start_s = time.perf_counter()
        checkpoint = self._checkpoint(place)
        spec = self._codec or checkpoint.codec.id
        if spec not in self._codecs:
            self._codecs[spec] = load_codec(spec, device=self._device)
        accompanist = Accompanist(checkpoint, self._codecs[spec], device=self._device)
        accompanist.evaluator.warm_up()
        log.info("loaded %s at step %d on %s in %.1f s", checkpoint.name, checkpoint.step, self._device, time.perf_counter() - start_s)
        return Engine(accompanist, self._config)

    def _checkpoint(self, place: str | None) -> Checkpoint:
        return load_checkpoint(checkpoint_folder(place, self._settings, SHIPPED_CHECKPOINT))


def load_engine(
    *,
    checkpoint: str | None,
    codec: str | None,
    device: str,
    threads: int | None,
    max_duration_s: float,
    hang_after_s: float,
    max_audio_s: float = EngineConfig.max_audio_s,
) -> Engine:
    """One engine alone, see `EngineLoader`."""
    loader = EngineLoader(
        codec=codec, device=device, threads=threads, max_duration_s=max_duration_s, hang_after_s=hang_after_s, max_audio_s=max_audio_s
    )
    return loader.engine(checkpoint)
