"""musicnn's VGG against plain numpy loops over its published layers, on random weights in the file's format."""

from pathlib import Path

import numpy as np
import pytest
import scipy
import soxr

from model.metrics.embedding import EmbeddingUnavailable
from model.metrics.embeddings import load_embedding
from model.metrics.musicnn import TAGS, MusicnnEmbedding, load_musicnn, nearest_style, slaney_bank, style_centroids, windows
from tests.bands import band
from tests.musicnn_parts import random_weights

SECONDS = 5.0


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return random_weights()


def plain_mel(audio_CN: np.ndarray) -> np.ndarray:
    """(T, 96) frame by frame: the bank from the published formula in steps of one band and one bin."""
    mono = soxr.resample(audio_CN.astype(np.float64).mean(0), 44_100, 16_000)
    mono = mono / (np.sqrt((mono**2).mean()) + 1e-9) * 0.1
    padded = np.pad(mono, 256)
    window = scipy.signal.get_window("hann", 512)

    def hz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    edges = [hz(mel) for mel in np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), 98)]
    frames = []
    for start in range(0, len(padded) - 511, 256):
        power = np.abs(np.fft.rfft(padded[start : start + 512] * window)) ** 2
        bands = []
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
            weight = [max(0.0, min((f - low) / (centre - low), (high - f) / (high - centre))) for f in np.arange(257) * 31.25]
            bands.append(power @ np.array(weight) * 2 / (high - low))
        frames.append(np.log10(1 + 10_000 * np.array(bands)))
    return np.array(frames)


def plain_network(weights: dict[str, np.ndarray], patch_TM: np.ndarray) -> np.ndarray:
    """(256,) of one window, in float64: channels last, as the network was published."""
    wide = {name: value.astype(np.float64) for name, value in weights.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        moved = (x - wide[f"{name}__moving_mean"]) / np.sqrt(wide[f"{name}__moving_variance"] + 0.001)
        return moved * wide[f"{name}__gamma"] + wide[f"{name}__beta"]

    x = norm(patch_TM[:, :, None].astype(np.float64), "batch_normalization")
    for layer, ((high, wide_pool), stride) in enumerate([((4, 1), 2), ((2, 2), 2), ((2, 2), 2), ((2, 2), 2), ((4, 4), 4)], 1):
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        near = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))  # (T, M, in, 3, 3)
        x = np.einsum("tmiab,abio->tmo", near, wide[f"{layer}CNN__kernel"], optimize=True) + wide[f"{layer}CNN__bias"]
        x = norm(np.maximum(x, 0), f"batch_normalization_{layer}")
        x = np.lib.stride_tricks.sliding_window_view(x, (high, wide_pool), axis=(0, 1)).max(axis=(3, 4))[::stride, ::stride]
    assert x.shape == (2, 1, 128)
    return x.reshape(-1)


def test_the_front_end_is_the_published_one() -> None:
    audio = band(SECONDS)
    mel = plain_mel(audio)
    found = windows(audio)
    assert found.shape == ((len(mel) - 187) // 94 + 1, 187, 96)
    for index, window in enumerate(found):
        assert window == pytest.approx(mel[94 * index : 94 * index + 187], abs=2e-4)
    assert slaney_bank().sum(axis=0).min() > 0


def test_embedding_and_tags_are_the_plain_network_s(weights: dict[str, np.ndarray]) -> None:
    embedding = MusicnnEmbedding(weights)
    audio = band(SECONDS)
    embedded = embedding.embed(audio)
    plain = np.stack([plain_network(weights, patch) for patch in windows(audio)])
    assert embedded == pytest.approx(plain, abs=2e-4 * np.abs(plain).max())
    tags = embedding.tags(embedded)
    assert tags == pytest.approx(1 / (1 + np.exp(-(plain @ weights["dense__kernel"] + weights["dense__bias"]))), abs=1e-3)
    assert tags.shape[1] == len(TAGS) == len(set(TAGS))


def test_a_level_changes_nothing_and_short_or_silent_sounds_have_a_window(weights: dict[str, np.ndarray]) -> None:
    embedding = MusicnnEmbedding(weights)
    audio = band(SECONDS)
    assert embedding.embed(audio) == pytest.approx(embedding.embed(0.1 * audio), abs=1e-3)
    for odd in (audio[:, :4_000], np.zeros((2, 44_100), np.float32), audio[0]):
        assert np.isfinite(embedding.embed(odd)).all()
        assert embedding.embed(odd).shape[1] == embedding.dimension


def test_a_file_is_read_and_a_wrong_one_says_what_to_give(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "vgg.npz", **weights)
    (tmp_path / "text.npz").write_text("no weights")
    np.savez(tmp_path / "half.npz", **{name: value for name, value in weights.items() if not name.startswith("5CNN")})
    loaded = load_embedding(f"musicnn:{tmp_path / 'vgg.npz'}", codec=None)  # type: ignore[arg-type]
    assert loaded.name.startswith("musicnn ")
    assert np.array_equal(loaded.embed(band(SECONDS)), MusicnnEmbedding(weights).embed(band(SECONDS)))
    for name, says in (("none.npz", "cannot be read"), ("text.npz", "cannot be read"), ("half.npz", "5CNN__kernel is missing")):
        with pytest.raises(EmbeddingUnavailable, match=says):
            load_musicnn(str(tmp_path / name))


def test_a_piece_belongs_to_the_style_whose_centroid_is_nearest() -> None:
    centroids = style_centroids({"rock": [np.full((9, 2), 0.0), np.full((1, 2), 2.0)], "waltz": [np.full((3, 2), 5.0)], "unheard": []})
    assert centroids["rock"].tolist() == [1.0, 1.0]
    assert set(centroids) == {"rock", "waltz"}
    assert nearest_style(np.full((4, 2), 2.9), centroids) == "rock"
    assert nearest_style(np.full((4, 2), 3.1), centroids) == "waltz"
