"""Separation against the demucs command, on small networks with random weights."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.separation.load import SeparatedStems, Separator, load_separator
from tests.demucs_parts import BAG, FIRST, SEGMENT, tiny_convolutional, write_hub_layout, write_th, write_tiny_repository

RATE_HZ = 44_100
CHUNK = int(SEGMENT * RATE_HZ)
LENGTHS = {"chunks": 4 * CHUNK + 1_234, "exact": CHUNK, "short": CHUNK // 3, "more": CHUNK + 1}


def song(samples: int, seed: int) -> np.ndarray:
    """(2, N) float32: chords and noise with an offset, quiet enough that demucs' file does not clip its stems."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(samples) / RATE_HZ
    tones = sum(np.sin(2 * np.pi * hz * time_s + rng.uniform(0, 6)) for hz in rng.uniform(80, 3000, 5))
    return (0.03 * tones * np.array([[1.0], [0.6]]) + 0.02 * rng.normal(size=(2, samples)) + 0.01).astype(np.float32)


SONGS = {name: song(samples, seed) for seed, (name, samples) in enumerate(LENGTHS.items())}


def command(folder: Path, name: str, scratch: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(vocals, no_vocals) of each song, as `python -m demucs.separate` writes them."""
    for title, audio_CN in SONGS.items():
        soundfile.write(scratch / f"{title}.wav", audio_CN.T, RATE_HZ, subtype="FLOAT")
    line = [sys.executable, "-m", "demucs.separate", "-n", name, "--repo", str(folder), "--two-stems", "vocals", "--shifts", "0"]
    line += ["--float32", "--clip-mode", "none", "-d", "cpu", "-o", str(scratch / "out")]
    answered = subprocess.run([*line, *(str(scratch / f"{title}.wav") for title in SONGS)], capture_output=True, text=True, check=False)
    assert answered.returncode == 0, answered.stderr
    return {
        title: tuple(soundfile.read(scratch / f"out/{name}/{title}/{stem}.wav", dtype="float32")[0].T for stem in ("vocals", "no_vocals"))
        for title in SONGS
    }


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]:
    scratch = tmp_path_factory.mktemp("bag")
    folder = write_tiny_repository(scratch / "repository", bag=True)
    return folder, command(folder, BAG, scratch)


def check(separated: dict[str, SeparatedStems], wanted: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for title, stems in separated.items():
        for found_CN, wanted_CN in zip((stems.vocal_CN, stems.accompaniment_CN), wanted[title], strict=True):
            assert found_CN.shape == wanted_CN.shape == (2, LENGTHS[title])
            assert found_CN.dtype == np.float32
            assert 0.005 < np.abs(wanted_CN).max() < 1, "the command's file holds what demucs gave, unclipped"
            assert np.abs(found_CN - wanted_CN).max() < 1e-4, title


def whole(separator: Separator) -> dict[str, SeparatedStems]:
    return dict(zip(SONGS, separator.separate(list(SONGS.values())), strict=True))


def streamed(separator: Separator, audio_CN: np.ndarray) -> SeparatedStems:
    at, vocals, bands = 0, [], []
    for start, stems in separator.stream(audio_CN):
        assert start == at
        at += stems.vocal_CN.shape[1]
        vocals.append(stems.vocal_CN)
        bands.append(stems.accompaniment_CN)
    return SeparatedStems(vocal_CN=np.concatenate(vocals, axis=1), accompaniment_CN=np.concatenate(bands, axis=1))


def test_a_bag_of_two_that_count_differently(bag: tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]) -> None:
    folder, wanted = bag
    separator = load_separator(str(folder))
    separator.batch_chunks = 3
    check(whole(separator), wanted)
    check({title: streamed(separator, audio_CN) for title, audio_CN in SONGS.items()}, wanted)


def test_the_same_bag_in_the_hubs_layout(bag: tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]], tmp_path: Path) -> None:
    folder, wanted = bag
    separator = load_separator(str(write_hub_layout(tmp_path / "hub")))
    assert separator.identity == load_separator(str(folder)).identity
    check(whole(separator), wanted)


def test_one_network(tmp_path: Path) -> None:
    folder = write_tiny_repository(tmp_path / "repository")
    check(whole(load_separator(str(folder))), command(folder, FIRST, tmp_path))


def test_a_network_whose_last_chunk_is_shorter(tmp_path: Path) -> None:
    write_th(tmp_path / "repository", FIRST, tiny_convolutional(3))
    separator = load_separator(str(tmp_path / "repository"))
    separator.batch_chunks = 4
    check(whole(separator), command(tmp_path / "repository", FIRST, tmp_path))
