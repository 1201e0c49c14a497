"""From places to an engine: what a model replica does first. Imports torch, so only replicas import this."""

import logging
import os
import time

import torch

from infra.errors import UserError
from infra.settings import Settings
from infra.storage import localise
from model.accompany import Accompanist
from model.checkpoint import load_checkpoint
from model.codec import load_codec
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
) -> Engine:
    """The engine of a checkpoint's place (local or S3), on `device` (auto, cpu, cuda).

    Raises UserError or ModelError with the remedy.
    """
    start_s = time.perf_counter()
    # Ray gives an actor one OpenMP thread a CPU ticket. A replica owns its process, so here is the place to say otherwise.
    torch.set_num_threads(threads or min(MOST_THREADS, os.cpu_count() or 1))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = Settings.from_environment()
    place = checkpoint or settings.checkpoint
    if not place:
        raise UserError("no checkpoint is named: give --checkpoint PLACE (a checkpoint or a training run), or set BACKLINE_CHECKPOINT")
    loaded = load_checkpoint(localise(place, settings.cache))
    spec = codec or loaded.codec.id
    scheme, _, s3 = spec.partition("s3://")
    if s3:
        spec = f"{scheme}{localise(f's3://{s3}', settings.cache)}"
    accompanist = Accompanist(loaded, load_codec(spec, device=device), device=device)
    log.info("loaded %s at step %d on %s in %.1f s", loaded.name, loaded.step, device, time.perf_counter() - start_s)
    return Engine(accompanist, EngineConfig(max_duration_s=max_duration_s, hang_after_s=hang_after_s))
