"""Demo songs straight to latents: every song once at each speed, nothing done twice, no reserved seed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.dataset.format import RESERVED_SEEDS, read_latents, read_manifest
from infra.errors import UserError
from infra.storage.place import Place
from model import listen
from pipelines.corpus import compose, render
from pipelines.corpus.latents import DemoLatentsConfig, at_speed, make_demo_latents, take_seed, take_splits, take_url
from pipelines.dataset import write as dataset
from pipelines.dataset.contents import read_stored
from pipelines.stages.segment import SegmentConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DemoLatentsConfig:
    folder = tmp_path_factory.mktemp("demo-latents")
    return DemoLatentsConfig(out=str(folder / "latents"), songs=3, seed=1200, duration_s=10.0, speeds=(1.0, 1.059), validation_share=0.4)


def test_every_song_is_there_once_at_each_speed_and_a_second_run_makes_nothing(config: DemoLatentsConfig) -> None:
    first = make_demo_latents(config)
    assert (first.made, first.rejected) == (3, 0)
    manifest = read_manifest(Place(config.out))
    assert manifest.counts.songs == 6
    assert manifest.counts.train_songs > 0
    assert manifest.counts.validation_songs > 0
    again = make_demo_latents(config)
    assert again.made == 0
    assert again.manifest == manifest
    more = make_demo_latents(DemoLatentsConfig(**{**vars(config), "songs": 4}))
    assert (more.made, more.manifest.counts.songs) == (1, 8)


def test_a_song_that_was_cut_short_is_made_again(config: DemoLatentsConfig) -> None:
    made = make_demo_latents(config)
    before = read_latents(Place(config.out), "train")
    lost = next(Path(config.out).glob("songs/*.parquet"))
    lost.unlink()
    again = make_demo_latents(config)
    assert again.made == 1
    after = read_latents(Place(config.out), "train")
    assert after.song_ids == before.song_ids, "the same song again, to the bit of its audio"
    assert np.array_equal(after.vocal_RCT, before.vocal_RCT)
    assert made.manifest == again.manifest


def test_takes_of_a_song_share_its_split(config: DemoLatentsConfig) -> None:
    make_demo_latents(config)
    counts = read_manifest(Place(config.out)).counts
    assert counts.train_songs % len(config.speeds) == counts.validation_songs % len(config.speeds) == 0
    wide = take_splits(DemoLatentsConfig(out="latents", songs=2_000, validation_share=0.1))
    assert 140 < list(wide.values()).count("validation") < 260
    for seed in range(1000, 1050):
        assert sorted(take_splits(DemoLatentsConfig(out="latents", songs=2, seed=seed)).values()) == ["train", "validation"]


def test_several_bands_share_a_vocals_takes_and_split(config: DemoLatentsConfig, tmp_path: Path) -> None:
    """What one band a vocal gave is kept, and the further bands join it."""
    several = DemoLatentsConfig(**{**vars(config), "out": str(tmp_path / "latents"), "songs": 2, "speeds": (1.0,)})
    before = make_demo_latents(several)
    made = make_demo_latents(replace(several, bands_per_vocal=2))
    assert (before.manifest.counts.songs, made.manifest.counts.songs, made.rejected) == (2, 4, 0)
    assert make_demo_latents(replace(several, bands_per_vocal=2)).made == 0
    rows = {row["url"]: row for row in read_stored(Place(several.out)).songs.values()}
    latents = {}
    for split in ("train", "validation"):
        table = read_latents(Place(several.out), split)
        latents |= {name: (table.vocal_RCT[index], table.accompaniment_RCT[index]) for index, name in enumerate(table.song_ids)}
    for seed in (1200, 1201):
        first, other = rows[take_url(seed, 1.0, several)], rows[take_url(seed, 1.0, several, 1)]
        assert other["vocal_of"] == first["song_id"]
        assert first["split"] == other["split"]
        assert first["title"] != other["title"]
        one, two = latents[first["song_id"]], latents[other["song_id"]]
        assert not np.array_equal(one[1], two[1])
        assert np.corrcoef(one[0].ravel(), two[0].ravel())[0, 1] > 0.9, "the vocal is the same but for the pair's gain"
    with pytest.raises(UserError, match="--bands-per-vocal 9: must be from 1 to 4"):
        replace(several, bands_per_vocal=9)


def test_takes_of_another_generator_are_made_again_in_their_split(config: DemoLatentsConfig) -> None:
    made = make_demo_latents(config)
    out = Place(config.out)
    stored = read_stored(out)
    row = min(stored.songs.values(), key=lambda row: row["url"])
    dataset.write_row(out, {**stored.whole_row(out, row["song_id"]), "song_id": "0" * 16, "source_version": "generator 0"})
    dataset.latents_place(out, "0" * 16, row["split"]).write_bytes(b"")
    dataset.remove_rows(out, stored, {row["song_id"]})
    again = make_demo_latents(config)
    assert again.made == 1
    assert again.manifest == made.manifest
    takes = {one["url"]: one["split"] for one in read_stored(out).songs.values()}
    assert {split for url, split in takes.items() if take_seed(url) == take_seed(row["url"])} == {row["split"]}
    assert len(takes) == made.manifest.counts.songs


def test_a_take_that_no_segment_of_can_be_used_is_a_reject_and_not_made_again(tmp_path: Path) -> None:
    strict = DemoLatentsConfig(
        out=str(tmp_path / "latents"), songs=2, seed=1200, duration_s=10.0, speeds=(1.0, 1.9), workers=1,
        segment=SegmentConfig(min_duration_s=8.0),
    )  # fmt: skip
    summary = make_demo_latents(strict)
    assert (summary.made, summary.rejected, summary.manifest.counts.songs) == (2, 2, 2)
    assert make_demo_latents(strict).made == 0


def test_a_faster_take_is_shorter_and_a_semitone_higher() -> None:
    song = render(compose(1201, 8.0))
    faster_CN = at_speed(song.vocals_CN, 2 ** (1 / 12))
    assert faster_CN.shape[1] == pytest.approx(song.vocals_CN.shape[1] / 2 ** (1 / 12), abs=2)
    medians = []
    for audio_CN in (song.vocals_CN, faster_CN):
        _, hz, voiced = listen.f0(audio_CN)
        medians.append(np.median(hz[voiced]))
    assert 1200 * np.log2(medians[1] / medians[0]) == pytest.approx(100, abs=15)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": RESERVED_SEEDS.stop - 1}, "never trained on"),
        ({"songs": 1}, "at least 2"),
        ({"speeds": (1.0, 1.0)}, "all different"),
        ({"speeds": ()}, "one or more"),
        ({"workers": 0}, "at least 1"),
        ({"duration_s": 1.0}, "4 to 600"),
        ({"validation_share": 0.0}, "above 0"),
    ],
)
def test_wrong_settings_are_named(changed: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        DemoLatentsConfig(**{"out": "latents", "songs": 4, **changed})  # type: ignore[arg-type]
