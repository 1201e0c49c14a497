"""Embeddings: what the weight-free one hears, and what a wrong name says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.codec.load import load_codec
from model.dimensions import SAMPLE_RATE_HZ
from model.metrics.embedding import EmbeddingUnavailable
from model.metrics.embeddings import CodecEmbedding, SmokeEmbedding, load_embedding
from model.metrics.set_distances import FrechetDistance
from tests.bands import band


def noise(seconds: float) -> np.ndarray:
    return 0.1 * np.random.default_rng(1).standard_normal((2, int(seconds * SAMPLE_RATE_HZ)), dtype=np.float32)


def test_the_smoke_embedding_gives_a_row_a_second_always_the_same() -> None:
    smoke = SmokeEmbedding()
    assert "weight-free" in smoke.note
    embedded = smoke.embed(band(5.5))
    assert embedded.shape == (5, smoke.dimension)
    assert np.array_equal(embedded, smoke.embed(band(5.5)))
    for odd in (np.zeros((2, 3 * SAMPLE_RATE_HZ), np.float32), band(0.2), band(2.0)[:1], band(2.0)[0]):
        found = smoke.embed(odd)
        assert found.shape == (max(1, odd.shape[-1] // SAMPLE_RATE_HZ), smoke.dimension)
        assert np.isfinite(found).all()


def test_the_smoke_embedding_puts_music_near_music_and_noise_and_silence_far() -> None:
    smoke = SmokeEmbedding()
    reference = FrechetDistance(np.concatenate([smoke.embed(band(6, root_hz=hz)) for hz in (196.0, 220.0, 262.0, 294.0)]))
    other_key = reference(smoke.embed(band(8, root_hz=247.0, seed=3)))
    slow = reference(smoke.embed(band(8, root_hz=247.0, bpm=60, seed=3)))
    hiss, silence = reference(smoke.embed(noise(8))), reference(smoke.embed(np.zeros((2, 8 * SAMPLE_RATE_HZ))))
    assert other_key < slow < min(hiss, silence)
    assert hiss > 10 * other_key


def test_a_level_moves_levels_alone() -> None:
    smoke = SmokeEmbedding()
    loud, quiet = smoke.embed(band(4)), smoke.embed(0.5 * band(4))
    assert np.abs(loud - quiet)[:, 64:76].max() < 0.05  # chroma shares, times 5
    assert (loud[:, -3] - quiet[:, -3]) == pytest.approx(np.full(4, 6.02 / 20), abs=0.01)


def test_codec_latents_are_pooled_by_the_second(tiny_codec: Path) -> None:
    codec = load_codec(str(tiny_codec))
    embedding = load_embedding("codec", codec=codec)
    assert isinstance(embedding, CodecEmbedding)
    assert codec.identity.id in embedding.name
    audio = band(3.4)
    embedded = embedding.embed(audio)
    assert embedded.shape == (3, 128) == (3, embedding.dimension)
    latent = codec.encode(torch.from_numpy(audio)[None])[0].numpy()
    assert embedded[1, :64] == pytest.approx(latent[:, 22:43].mean(axis=1), abs=1e-5)


def test_an_unknown_embedding_and_a_folder_without_a_model_say_what_to_give(tiny_codec: Path, tmp_path: Path) -> None:
    codec = load_codec(str(tiny_codec))
    with pytest.raises(EmbeddingUnavailable, match="auto, smoke, codec, clap"):
        load_embedding("mert", codec=codec)
    with pytest.raises(EmbeddingUnavailable, match=r"pip install|config\.json"):
        load_embedding(str(tmp_path), codec=codec)
