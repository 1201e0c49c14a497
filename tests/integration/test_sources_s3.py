"""Sources on a real S3 server: the same songs as on disk."""

from pathlib import Path

from infra.storage.place import Place
from pipelines.dataset.kept_stems import NAMES, kept_stems, remove_stems_but
from pipelines.sources import list_songs, parse_source
from tests.source_examples import write_catalogue, write_folder, write_moisesdb, write_musdb18, write_musdb18_hq

SEARCH = "yt-dlp:ytsearch1"


def test_folders_are_listed_on_s3_as_on_disk(tmp_path: Path, bucket: str) -> None:
    examples = {"folder": write_folder, "musdb18": write_musdb18, "moisesdb": write_moisesdb}
    for kind, write in examples.items():
        write(tmp_path / kind)
        if kind == "musdb18":
            write_musdb18_hq(tmp_path / kind / "hq")
        Place(f"{bucket}/{kind}").upload(tmp_path / kind)
        here = list_songs(parse_source(f"{kind}:{tmp_path / kind}"))
        there = list_songs(parse_source(f"{kind}:{bucket}/{kind}"))
        assert [song.url.replace(str(tmp_path), bucket) for song in here] == [song.url for song in there]
        assert [(song.title, song.artist, len(song.media), song.fault) for song in here] == [
            (song.title, song.artist, len(song.media), song.fault) for song in there
        ]
        assert Place(there[0].media[-1].address).read_bytes() == Place(here[0].media[-1].address).read_bytes()


def test_tables_are_read_from_s3_as_from_disk(tmp_path: Path, bucket: str) -> None:
    write_catalogue(tmp_path)
    (tmp_path / "urls.csv").write_text("url,title\nhttps://h/a.mp3,A\n")
    Place(f"{bucket}/tables").upload(tmp_path)
    here = list_songs(parse_source(f"catalogue:{tmp_path}/song_data.csv"), provider=SEARCH)
    assert list_songs(parse_source(f"catalogue:{bucket}/tables/song_data.csv"), provider=SEARCH) == here
    assert {song.artist for song in here} > {"Ann", "Bob"}
    assert list_songs(parse_source(f"urls:{bucket}/tables/urls.csv")) == list_songs(parse_source(f"urls:{tmp_path}/urls.csv"))


def test_a_catalogue_finds_its_media_in_a_library_on_s3(tmp_path: Path, bucket: str) -> None:
    write_folder(tmp_path / "library")
    Place(f"{bucket}/library").upload(tmp_path / "library")
    (tmp_path / "c.csv").write_text("title,artist\nRed,Bob\n")
    (song,) = list_songs(parse_source(f"catalogue:{tmp_path}/c.csv"), provider=f"library:{bucket}/library")
    assert [file.address for file in song.media] == [f"{bucket}/library/album/01 Bob - Red.flac"]


def test_stems_in_a_bucket_stay_as_whole_pairs_of_stored_songs(bucket: str) -> None:
    out = Place(bucket) / "latents"
    for song_id, names in (("stored", NAMES), ("half", NAMES[:1]), ("gone", NAMES)):
        for name in names:
            (out / f"stems/{song_id}/{name}").write_bytes(b"fLaC")
    remove_stems_but(out, {"stored", "half"})
    assert kept_stems(out) == {"stored": set(NAMES)}
