"""A page on what a dataset holds: counts, hours, rejects, latent statistics, and pairs to listen to.

It reads through the manifest's snapshot: one commit, whatever a running prepare adds. The same dataset gives the same pairs.
"""

import json
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm import tqdm

from infra.dataset.format import MANIFEST, READ_ATTEMPTS, SPLITS, Manifest, read_manifest
from infra.dataset.snapshots import read_rows
from infra.errors import UserError
from infra.settings import Settings
from infra.storage.place import MissingObjectError, Place
from model.errors import ModelError
from pipelines.dataset.contents import read_stored
from pipelines.report.figures import Group, Histogram, RejectKind, group, groups, histogram, reject_kinds
from pipelines.report.pairs import SOUNDS, DrawnPair, Pair, read_pairs, write_sounds
from pipelines.report.sample import Sample, SampleFigures, by_file, draw_songs, song_batches
from pipelines.stages.encode import open_codec

if TYPE_CHECKING:
    from model.codec.base import Codec

PAGE, NUMBERS = "index.html", "report.json"
OURS = re.compile(r"pair-\d{2}-(vocal|accompaniment|mix)\.(ogg|png)")
MOST_PAIRS = 99
SHOWN_KINDS = 25


@dataclass(frozen=True, kw_only=True)
class DatasetReportConfig:
    """A page on what a dataset holds, with pairs to listen to."""

    data: str
    """The dataset's place."""
    out: str
    """Where index.html, report.json, sounds and pictures go."""
    pairs: int = 10
    """How many pairs to listen to; 0 needs no codec."""
    codec: str | None = None
    """The dataset's codec, when it is not the embedded one and is kept somewhere else than where its name says."""
    sample_segments: int = 1000
    """About how many segments' latents are read for their statistics, in whole songs."""

    def __post_init__(self) -> None:
        if not 0 <= self.pairs <= MOST_PAIRS:
            raise UserError(f"pairs is {self.pairs}: choose 0 to {MOST_PAIRS}")
        if self.sample_segments < 1:
            raise UserError(f"sample_segments is {self.sample_segments}: choose at least 1, 1000 is a good start")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which dataset it is, and when it was looked at."""

    data: str
    digest: str
    schema_version: int
    codec_id: str
    codec_weights_sha256: str
    separator_id: str | None
    commit: str
    committed: str
    """When the manifest was written, ISO 8601, UTC."""
    reported: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the page shows."""

    identity: Identity
    total: Group
    splits: tuple[Group, ...]
    missing_songs: int
    """Songs of the manifest whose row or latents are not there, as while a prepare replaces them; all figures are without them."""
    sources: tuple[Group, ...]
    licenses: tuple[Group, ...]
    artists: tuple[Group, ...]
    truths: tuple[Group, ...]
    """By where what the band plays is known from."""
    styles: tuple[Group, ...]
    keys: tuple[Group, ...]
    metres: tuple[Group, ...]
    tempi: Histogram | None
    durations: Histogram | None
    rejected_songs: tuple[RejectKind, ...]
    rejected_segments: tuple[RejectKind, ...]
    sample: SampleFigures
    pairs: tuple[Pair, ...]
    silence: str
    """Why there is no sound; empty when there is."""


@dataclass(frozen=True, kw_only=True)
class DatasetReportSummary:
    """Where the page is, and the most important of it."""

    page: str
    report: Report

    def __str__(self) -> str:
        report, equal = self.report, self.report.sample.statistics_equal
        rejects = sum(kind.count for kind in (*report.rejected_songs, *report.rejected_segments))
        verdict = {
            True: "are those of its latents",
            False: "are NOT those of its latents: run `backline check`",
            None: "cannot be compared",
        }
        sound = report.silence or f"{len(report.pairs)} pairs to listen to"
        return "\n".join(
            [
                f"{report.identity.data}: {report.total.songs} songs, {report.total.segments} segments, {report.total.hours:.2f} h; "
                f"{len(report.sources)} sources, {len(report.licenses)} licences, {rejects} rejects",
                f"the manifest's statistics {verdict[equal]} ({report.sample.segments_read} of {report.total.segments} segments read)",
                sound,
                f"open {self.page}",
            ]
        )


def dataset_report(config: DatasetReportConfig) -> DatasetReportSummary:
    """Write the page; UserError when there is no dataset, ModelError or UserError when `config.codec` is not its codec."""
    data, out = Place(config.data), Place(config.out)
    codec, silence = _open_codec(config, read_manifest(data)) if config.pairs else (None, "No sound was asked for.")
    for attempt in range(1, READ_ATTEMPTS + 1):
        manifest = read_manifest(data)
        try:
            report, drawn = _read(config, data, manifest)
            break
        except MissingObjectError as error:
            if attempt == READ_ATTEMPTS or read_manifest(data) == manifest:
                raise UserError(f"{data} lacks a file that its {MANIFEST} counts on ({error}): run prepare again") from error
    if codec is None:
        pairs = tuple(each.pair for each in drawn)
    else:
        pairs = tuple(write_sounds(out, each, codec) for each in tqdm(drawn, desc="pairs", unit="pair", disable=None))
    report = replace(report, pairs=pairs, silence=silence)
    (out / NUMBERS).write_bytes((json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n").encode())
    (out / PAGE).write_bytes(render_page(report).encode())
    # An earlier report here may have had more pairs.
    kept = {pair.name for pair in pairs} if codec else set()
    for place in out.list(prefix="pair-"):
        if OURS.fullmatch(place.name) and place.name[:7] not in kept:
            place.delete()
    return DatasetReportSummary(page=str(out / PAGE), report=report)


def _open_codec(config: DatasetReportConfig, manifest: Manifest) -> "tuple[Codec | None, str]":
    """The dataset's codec, or None and a sentence why it cannot be had; a codec that was named must be it."""
    try:
        codec = open_codec(config.codec or manifest.codec_id, Settings.from_environment().s3)
        here, there = codec.identity.weights_sha256, manifest.codec_weights_sha256
        if here != there:
            raise UserError(
                f"codec {codec.identity.id!r} has weights {here[:12]} here, the dataset was encoded with {manifest.codec_id!r}, weights "
                f"{there[:12]}: name the place of that one with --codec"
            )
    except (ModelError, UserError) as error:
        if config.codec:
            raise
        return None, f"There is no sound, for the dataset's codec cannot be had: {error}"
    return codec, ""


def _read(config: DatasetReportConfig, data: Place, manifest: Manifest) -> tuple[Report, list[DrawnPair]]:
    """Everything but the sounds."""
    if manifest.snapshot is None:
        raise UserError(f"{data} was written before snapshots were: run prepare once, then ask for its report")
    stored = read_stored(data)
    named = read_rows(data, manifest.snapshot).to_pylist()
    held = [row for row in named if row["song_id"] in stored.songs]
    stored = stored.only({row["song_id"] for row in held})
    rows = list(stored.songs.values())
    sampled = draw_songs(held, manifest.digest, config.sample_segments)
    sample = Sample(manifest, [row["song_id"] for row in held if row["split"] == "train"])
    with tqdm(total=sum(row["segments"] for row in sampled), desc="latents", unit="segment", disable=None) as bar:
        for table in song_batches(data, by_file(sampled), manifest):
            sample.add(table)
            bar.update(len(table))
    filesystem, root = data.filesystem()
    written = filesystem.get_file_info(f"{root}/{MANIFEST}").mtime
    report = Report(
        identity=Identity(
            data=str(data),
            digest=manifest.digest,
            schema_version=manifest.schema_version,
            codec_id=manifest.codec_id,
            codec_weights_sha256=manifest.codec_weights_sha256,
            separator_id=manifest.separator_id,
            commit=manifest.commit,
            committed=written.astimezone(UTC).isoformat(timespec="seconds"),
            reported=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        total=group("all", rows),
        splits=tuple(group(split, [row for row in rows if row["split"] == split]) for split in SPLITS),
        missing_songs=len(named) - len(held),
        sources=groups(rows, "source"),
        licenses=groups(rows, "license"),
        artists=groups(rows, "artist"),
        truths=groups(rows, "truth_source"),
        styles=groups(rows, "style"),
        keys=groups(rows, "key"),
        metres=groups(rows, "metre"),
        tempi=histogram("Tempo", [row["tempo_bpm"] for row in rows if row["tempo_bpm"] is not None], "bpm"),
        durations=histogram("Length of a song", [row["duration_s"] for row in rows], "s"),
        rejected_songs=reject_kinds([row for row in stored.rejects if row["segment"] is None]),
        rejected_segments=reject_kinds([row for row in stored.rejects if row["segment"] is not None]),
        sample=sample.figures(data, stored, complete=len(named) == len(held)),
        pairs=(),
        silence="",
    )
    return report, read_pairs(data, manifest, held, stored.songs, config.pairs)


def render_page(report: Report) -> str:
    """The page; everything that came with a song is escaped."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    stems = report.sample.stems
    ends = [mean + side * far for stem in stems for mean, far in zip(stem.mean_C, stem.deviation_C, strict=True) for side in (-1, 1)]
    return environment.get_template("page.html.j2").render(
        report=report,
        histograms=[each for each in (report.durations, report.tempi, *report.sample.histograms) if each],
        lowest=min(0.0, *ends),
        highest=max(0.0, *ends),
        sounds=SOUNDS,
        shown_kinds=SHOWN_KINDS,
    )
