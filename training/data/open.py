"""Which mode a run's segments come in, and opening them."""

import logging

import torch

from infra.dataset.format import Manifest, read_latents, split_index
from infra.memory import available_bytes
from infra.storage.place import Place
from training.config import TrainConfig
from training.data.ray_stream import stream_segments
from training.data.segments import InMemory, Segments
from training.ranks import Workers

log = logging.getLogger(__name__)

# Of the memory that a machine has left, what the copies of its workers may take: the rest is for the network, the object store and files.
MEMORY_SHARE = 0.25


def open_segments(config: TrainConfig, data: Place, manifest: Manifest, workers: Workers, *, begin: int) -> Segments:
    """The training split in the config's mode, from step `begin` on; every worker calls it at once."""
    mode, why = (config.data_mode, "as asked") if config.data_mode != "auto" else choose(manifest, workers, available_bytes())
    if workers.leads:
        log.info("training data: %s (%s)", "in memory" if mode == "memory" else "streamed through Ray Data", why)
    if mode == "memory":
        return InMemory(read_latents(data, "train", manifest), config.seed)
    return stream_segments(
        split_index(data, "train", manifest), workers, seed=config.seed, batch_size=config.batch_size,
        begin=begin * config.batch_size, end=config.steps * config.batch_size,
    )  # fmt: skip


def choose(manifest: Manifest, workers: Workers, available: int) -> tuple[str, str]:
    """memory where the copies of every machine's workers fit in its share, else stream; and the figures behind it."""
    split = manifest.counts.train_segments * 2 * 2 * manifest.latent_channels * manifest.segment_frames
    copies, room = split * workers.on_node, int(MEMORY_SHARE * available)
    too_small = workers.total(torch.tensor([0.0 if copies <= room else 1.0], device=workers.device))
    fits = float(too_small) == 0
    said = f"{manifest.counts.train_segments} segments are {split / 1e9:.3g} GB for each of {workers.on_node} workers on a machine"
    return ("memory" if fits else "stream"), f"{said}, {'within' if fits else 'more than'} {MEMORY_SHARE:.0%} of its free memory"
