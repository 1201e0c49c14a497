"""Which mode a run's segments come in, and opening them."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch

from infra.dataset.format import Manifest, read_latents, read_truth, split_index
from infra.errors import UserError
from infra.memory import available_bytes
from training.config import TrainConfig
from training.data.datasets import Dataset, Datasets
from training.data.mixture import Mixture, Part
from training.data.ray_stream import stream_segments
from training.data.segments import InMemory, Mixed, Segments, Truths
from training.ranks import Workers

log = logging.getLogger(__name__)

# Of the memory that a machine has left, what the copies of its workers may take: the rest is for the network, the object store and files.
MEMORY_SHARE = 0.25


def open_segments(config: TrainConfig, datasets: Datasets, workers: Workers, *, begin: int) -> Segments:
    """The training split in the config's mode, from step `begin` on; every worker calls it at once."""
    manifests = [member.manifest for member in datasets.members]
    mode, why = (config.data_mode, "as asked") if config.data_mode != "auto" else choose(manifests, workers, available_bytes())
    if workers.leads:
        log.info("training data: %s (%s)", "in memory" if mode == "memory" else "streamed through Ray Data", why)
    span = Span(begin=begin * config.batch_size, end=config.steps * config.batch_size)
    if len(datasets.members) == 1:
        return _open_one(config, datasets.members[0], workers, mode, span)
    mixture = Mixture.of(config.seed, [member.share for member in datasets.members])
    with ExitStack() as opened:  # those before one that cannot be opened are closed
        each = []
        for number, member in enumerate(datasets.members):
            own = Span(begin=mixture.drawn_before(number, span.begin), end=mixture.drawn_before(number, span.end))
            if workers.leads:
                epochs = (own.end - own.begin) / max(1, member.manifest.counts.train_segments)
                log.info("%s: %.1f%% of the samples, %.1f times each of its segments", member.place, 100 * member.share, epochs)
            each.append(_open_one(config, member, workers, mode, own, Part(mixture=mixture, dataset=number)))
            opened.callback(each[-1].close)
        opened.pop_all()
    return Mixed(mixture, each)


class Span(NamedTuple):
    """Samples of a run, or of one of its datasets."""

    begin: int
    end: int


def _open_one(config: TrainConfig, dataset: Dataset, workers: Workers, mode: str, span: Span, part: Part | None = None) -> Segments:
    """One dataset's training split."""
    try:
        truth = read_truth(dataset.place, "train", dataset.manifest) if config.controls else None
        truths = None if truth is None else Truths(truth)
        if mode == "memory":
            return InMemory(read_latents(dataset.place, "train", dataset.manifest), config.seed, truths)
        return stream_segments(
            split_index(dataset.place, "train", dataset.manifest), workers, seed=config.seed, batch_size=config.batch_size,
            begin=span.begin, end=span.end, part=part, truths=truths,
        )  # fmt: skip
    except UserError as error:
        if part is None or str(dataset.place) in str(error):
            raise
        raise UserError(f"{dataset.place}: {error}") from error


def choose(manifests: Sequence[Manifest], workers: Workers, available: int) -> tuple[str, str]:
    """memory where the copies of every machine's workers fit in its share, else stream; and the figures behind it."""
    segments = sum(manifest.counts.train_segments for manifest in manifests)
    split = segments * 2 * 2 * manifests[0].latent_channels * manifests[0].segment_frames
    copies, room = split * workers.on_node, int(MEMORY_SHARE * available)
    too_small = workers.total(torch.tensor([0.0 if copies <= room else 1.0], device=workers.device))
    fits = float(too_small) == 0
    said = f"{segments} segments are {split / 1e9:.3g} GB for each of {workers.on_node} workers on a machine"
    return ("memory" if fits else "stream"), f"{said}, {'within' if fits else 'more than'} {MEMORY_SHARE:.0%} of its free memory"
