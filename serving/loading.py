"""From places to an engine: what a model replica does first. Imports torch, so only replicas import this."""

import logging
import os
import time

import torch

from infra.places import checkpoint_folder, codec_spec
from infra.settings import Settings
from model.accompany import load_accompanist
from model.checkpoint import SHIPPED_CHECKPOINT
from serving.engine import Engine, EngineConfig

log = logging.getLogger(__name__)

# Beyond this the network's small matrices gain nothing.
MOST_THREADS = 8


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
    """The engine of a checkpoint's place (local or S3), on `device` (auto, cpu, cuda).

    Raises UserError or ModelError with the remedy.
    """
    start_s = time.perf_counter()
    # Ray gives an actor one OpenMP thread a CPU ticket. A replica owns its process, so here is the place to say otherwise.
    torch.set_num_threads(threads or min(MOST_THREADS, os.cpu_count() or 1))
    settings = Settings.from_environment()
    folder = checkpoint_folder(checkpoint, settings, SHIPPED_CHECKPOINT)
    accompanist = load_accompanist(folder, codec=codec_spec(codec, settings), device=device)
    loaded = accompanist.checkpoint
    log.info("loaded %s at step %d on %s in %.1f s", loaded.name, loaded.step, accompanist.device, time.perf_counter() - start_s)
    return Engine(accompanist, EngineConfig(max_duration_s=max_duration_s, max_audio_s=max_audio_s, hang_after_s=hang_after_s))
