"""The datasets of a run: one, or several with weights, which must hold latents of one codec."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from infra.dataset.format import Manifest, read_latents, read_manifest, read_truth
from infra.dataset.splits import LatentTable
from infra.errors import UserError
from infra.storage.place import Place
from model.checkpoint import DatasetIdentity, LatentStatistics
from model.codec.base import CodecIdentity
from training.config import TrainConfig, datasets_of, named_dataset
from training.data.batches import statistics_of
from training.state import codec_identity, dataset_identity


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One dataset of a run, as its manifest was when the run read it."""

    place: Place
    manifest: Manifest
    share: float
    """Of the samples of a run, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Datasets:
    """All datasets of a run, in the order in which they were named."""

    members: tuple[Dataset, ...]

    @property
    def codec(self) -> CodecIdentity:
        return codec_identity(self.members[0].manifest)

    @property
    def identity(self) -> DatasetIdentity:
        """Of a single dataset its own; of several, their names with weights, and a digest over their digests and shares."""
        if len(self.members) == 1:
            return dataset_identity(self.members[0].place.uri, self.members[0].manifest)
        parts = [[member.manifest.digest, round(member.share, 9)] for member in self.members]
        uri = " ".join(f"{member.place.uri}={member.share:.6g}" for member in self.members)
        return DatasetIdentity(uri=uri, digest=hashlib.sha256(json.dumps(parts).encode()).hexdigest())

    @property
    def statistics(self) -> LatentStatistics:
        """Mean and deviation of what is drawn: those of a mixture of the datasets by their shares. The vocal level is their mean."""
        each = [statistics_of(member.manifest) for member in self.members]
        if len(each) == 1:
            return each[0]
        shares_D = np.array([member.share for member in self.members])
        moments = {}
        for stem in ("vocal", "accompaniment"):
            means_DC, deviations_DC = (np.array([getattr(one, f"{stem}_{name}") for one in each]) for name in ("mean", "std"))
            mean_C = shares_D @ means_DC
            moments[f"{stem}_mean"] = tuple(mean_C.tolist())
            moments[f"{stem}_std"] = tuple(np.sqrt(shares_D @ (deviations_DC**2 + means_DC**2) - mean_C**2).tolist())
        level_db = float(shares_D @ [one.vocal_level_db for one in each])
        return LatentStatistics(**moments, vocal_level_db=level_db)

    def styles(self) -> tuple[str, ...]:
        """Names of all styles that a training song has, sorted."""
        truths = [read_truth(member.place, "train", member.manifest) for member in self.members]
        return tuple(sorted({style for truth in truths if truth is not None for style in truth.styles_R if style}))

    def held_out(self, at_most: int) -> LatentTable:
        """Held-out segments, of each dataset its share of `at_most` and one at least, where it has so many."""
        tables = [
            read_latents(member.place, "validation", member.manifest, at_most=max(1, round(member.share * at_most)))
            for member in self.members
        ]
        if len(tables) == 1:
            return tables[0]
        return LatentTable(
            song_ids=tuple(song_id for table in tables for song_id in table.song_ids),
            segments=tuple(segment for table in tables for segment in table.segments),
            vocal_RCT=np.concatenate([table.vocal_RCT for table in tables]),
            accompaniment_RCT=np.concatenate([table.accompaniment_RCT for table in tables]),
            valid_frames_R=np.concatenate([table.valid_frames_R for table in tables]),
        )


def open_datasets(config: TrainConfig, places: Sequence[Place] | None = None) -> Datasets:
    """The config's datasets, as they are now; `places`: theirs with their access, in a process that may not have it.

    Raises: UserError when one is unfinished, or two of them hold latents of different codecs or shapes.
    """
    named = datasets_of(config.data)
    total = sum(weight for _, weight in named)
    places = places or [Place(uri) for uri, _ in named]
    members = tuple(
        Dataset(place=place, manifest=read_manifest(place), share=weight / total) for place, (_, weight) in zip(places, named, strict=True)
    )
    first = members[0]
    for other in members[1:]:
        codecs = [codec_identity(member.manifest) for member in (first, other)]
        if codecs[0] != codecs[1]:
            here, there = (f"{codec.id} ({codec.weights_sha256[:8]})" for codec in codecs)
            raise UserError(
                f"{first.place} holds latents of codec {here} and {other.place} of {there}: prepare the songs of both with one codec"
            )
        shapes = [(member.manifest.latent_channels, member.manifest.segment_frames) for member in (first, other)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{first.place} holds latents of {shapes[0][0]} × {shapes[0][1]} and {other.place} of {shapes[1][0]} × {shapes[1][1]}: "
                "train on datasets of one shape"
            )
    return Datasets(members=members)


def with_styles(config: TrainConfig, datasets: Datasets, initial: tuple[str, ...]) -> TrainConfig:
    """The config with the names of its styles. `initial`: those of the checkpoint that it begins from.

    Raises: UserError when something is to be learnt that no song says.
    """
    if config.styles and "style" not in config.controls:
        raise UserError(f"--styles {' '.join(config.styles)} without --controls style: give that too, or leave --styles out")
    if config.controls and all(member.manifest.truth_sha256 is None for member in datasets.members):
        raise UserError(
            f"--controls {' '.join(config.controls)}: nothing is known of what the bands of {config.data_names} play; prepare them again "
            "(prepare adds what is missing), or learn without controls"
        )
    if "style" not in config.controls:
        return config
    if config.styles:
        if unknown := [style for style in config.styles if style not in (*initial, *datasets.styles())]:
            raise UserError(
                f"--styles {unknown[0]}: no song of {config.data_names} has it; there are {', '.join(datasets.styles()) or 'none'}"
            )
        return config
    found = initial or datasets.styles()
    if not found:
        raise UserError(f"--controls style: no song of {config.data_names} says its style; leave style out")
    return replace(config, styles=found)


def with_uris(config: TrainConfig) -> TrainConfig:
    """The config with the datasets' places as whole URIs, so that a worker elsewhere finds them."""
    named = datasets_of(config.data)
    if isinstance(config.data, str) and named == [(config.data, 1.0)]:
        return replace(config, data=Place(config.data).uri)
    return replace(config, data=tuple(named_dataset(Place(uri).uri, weight) for uri, weight in named))
