"""Pairs through prepare on a real Ray cluster: several bands of one vocal, and songs with a sheet, from the folder to the model card."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.cluster import Cluster
from infra.dataset.credits import stored_credits
from infra.dataset.format import read_manifest
from infra.errors import UserError
from infra.storage.place import Place
from pipelines.corpus import CorpusConfig, write_corpus
from pipelines.run.prepare import PrepareConfig, prepare
from tests.song_parts import files_of, write_song
from training.config import TrainConfig
from training.publish.release import ReleaseConfig, release
from training.run.launch import train

pytestmark = pytest.mark.ray


def rows(out: Path) -> dict[str, dict[str, object]]:
    table = pq.read_table(out / "songs").drop_columns(["fingerprint"])
    return {str(row["url"]).rpartition("/")[2]: row for row in table.to_pylist()}


def test_the_bands_of_a_vocal_stay_together(tmp_path: Path, ray_cluster: Cluster, tiny_codec: Path) -> None:
    assert ray_cluster.address
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    write_corpus(CorpusConfig(out=str(corpus), songs=4, seed=1, duration_s=6.0, bands_per_vocal=3, bank=("numpy",)))
    config = PrepareConfig(source=f"demo:{corpus}", out=str(out), codec=str(tiny_codec), validation_share=0.4)
    summary = prepare(config)
    assert (summary.found, summary.prepared, summary.rejects) == (12, 12, ()), "bands of one vocal are no copies of one another"
    held = rows(out)
    for vocal in range(1, 5):
        first, *others = (held[f"song-{vocal:06d}{band}"] for band in ("", "-band-1", "-band-2"))
        assert first["vocal_of"] == ""
        assert {row["vocal_of"] for row in others} == {first["song_id"]}
        assert {row["split"] for row in others} == {first["split"]}
        assert len({row["title"] for row in (first, *others)}) >= 2
    assert {row["split"] for row in held.values()} == {"train", "validation"}
    # A band that is added later goes where its vocal is.
    write_corpus(CorpusConfig(out=str(corpus), songs=4, seed=1, duration_s=6.0, bands_per_vocal=4, bank=("numpy",)))
    assert (prepare(config).prepared, len(rows(out))) == (4, 16)
    for name, row in rows(out).items():
        assert row["split"] == held[name[:11]]["split"]


def test_a_sheet_travels_to_the_rows_and_the_card(tmp_path: Path, ray_cluster: Cluster, tiny_codec: Path) -> None:
    assert ray_cluster.address
    songs, out, run = tmp_path / "songs", tmp_path / "out", tmp_path / "run"
    for seed in range(5):
        write_song(songs / f"song{seed}", seed)
    header = "folder,title,artist,license,credit,url,split"
    lines = [f"song{seed},Tone {seed},Ann,CC0-1.0,,https://ann.example,train" for seed in range(3)]
    lines += ["song3,Held,Bob,CC-BY-4.0,,,validation", "song4,Also held,Bob,CC0-1.0,,,validation"]
    config = PrepareConfig(source=f"pairs:{songs}", out=str(out), codec=str(tiny_codec))

    def write(*rows: str) -> None:
        (songs / "songs.csv").write_text("\n".join((header, *rows)) + "\n")

    write(*lines[:3], lines[3].replace("song3", "song9"), lines[4])
    with pytest.raises(UserError, match="row 4: there is no song folder 'song9', which it holds out"):
        prepare(config)
    assert not out.exists()
    write(*lines)
    assert prepare(config).prepared == 5
    held = rows(out)
    assert {name: row["split"] for name, row in held.items()} == {
        "song0": "train", "song1": "train", "song2": "train", "song3": "validation", "song4": "validation",
    }  # fmt: skip
    assert (held["song3"]["license"], held["song3"]["artist"], held["song3"]["credit"]) == ("CC-BY-4.0", "Bob", "Held by Bob")
    assert (held["song0"]["title"], held["song0"]["page_url"]) == ("Tone 0", "https://ann.example")
    latents = pq.read_table(out / "latents", columns=["song_id", "license"]).to_pydict()
    assert dict(zip(latents["song_id"], latents["license"], strict=True))[held["song3"]["song_id"]] == "CC-BY-4.0"

    # The sheet is corrected: rows follow, one song moves, nothing is encoded anew.
    before = {name: digest for name, (digest, _) in files_of(out).items() if name.startswith("latents")}
    write(*lines[:2], "song2,Tone 2,Cy,CC-BY-4.0,Tone 2 © Cy,,train", lines[3].replace("validation", "train"), lines[4])
    assert prepare(config).prepared == 0
    held = rows(out)
    assert (held["song2"]["credit"], held["song3"]["split"], held["song4"]["split"]) == ("Tone 2 © Cy", "train", "validation")
    assert (read_manifest(Place(str(out))).counts.train_songs, len(before)) == (4, 5)

    train(
        TrainConfig(
            data=str(out), out=str(run), preset="small", workers=0, steps=2, batch_size=2, crop_frames=16, warmup_steps=1, validate_every=2,
            samples=0, register=None, codec=str(tiny_codec),
        )
    )  # fmt: skip
    folder = release(
        ReleaseConfig(run=str(run), out=str(tmp_path / "released"), name="x", licence="Apache-2.0", data="d", limits="l", machine="m")
    )
    card = (folder / "README.md").read_text()
    assert "| pairs | CC-BY-4.0 | 2 | 0.00 | learnt from |" in card
    assert "- Tone 2 © Cy (CC-BY-4.0)" in card
    assert "- Held by Bob (CC-BY-4.0)" in card
    assert "Tone 0, Tone 1 by Ann (CC0-1.0), https://ann.example" in card
    assert stored_credits(Place(str(folder))) == stored_credits(Place(str(run))) != ()
    # A run that begins with this one's weights names what these learnt from too.
    tuned = tmp_path / "tuned"
    write_song(tmp_path / "mine" / "a", 50)
    write_song(tmp_path / "mine" / "b", 51)
    prepare(PrepareConfig(source=f"pairs:{tmp_path / 'mine'}", out=str(tmp_path / "mine-latents"), codec=str(tiny_codec)))
    train(
        TrainConfig(
            data=str(tmp_path / "mine-latents"), out=str(tuned), preset="small", workers=0, steps=1, batch_size=2, crop_frames=16,
            warmup_steps=1, validate_every=1, samples=0, register=None, codec=str(tiny_codec), init=str(run / "best"),
        )
    )  # fmt: skip
    names = [row["credit"] for row in json.loads((tuned / "credits.json").read_text())]
    assert "Tone 2 © Cy" in names
    assert "" in names
