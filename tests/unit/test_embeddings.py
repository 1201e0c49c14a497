"""Embeddings: what the weight-free one hears, and that CLAP loads and is called as its own library does it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lacks

from model.codec.load import load_codec
from model.dimensions import SAMPLE_RATE_HZ
from model.metrics.embeddings import CodecEmbedding, EmbeddingUnavailable, SmokeEmbedding, load_embedding
from model.metrics.set_distances import FrechetDistance


def band(seconds: float, *, root_hz: float = 220.0, bpm: float = 120.0, seed: int = 0) -> np.ndarray:
    """A triad that is struck on every beat over a bass, in stereo."""
    time_s = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    decay = np.exp(-6 * np.mod(time_s, 60 / bpm))
    chord = sum(np.sin(2 * np.pi * root_hz * ratio * time_s) for ratio in (1, 5 / 4, 3 / 2)) * decay
    bass = np.sin(2 * np.pi * root_hz / 4 * time_s)
    hiss = np.random.default_rng(seed).standard_normal((2, len(time_s))) * 0.01
    return (0.1 * (np.stack([chord + bass, 0.8 * chord + bass]) + hiss)).astype(np.float32)


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


@pytest.fixture(scope="module")
def tiny_clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLAP of a few thousand random weights, in the files of the published ones."""
    if importlib.util.find_spec("transformers") is None:
        lacks("the optional package transformers is not installed: run `python -m pip install 'transformers>=5'` in this environment")
    import transformers

    folder = tmp_path_factory.mktemp("clap")
    config = transformers.ClapConfig(
        text_config={"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        audio_config={
            "window_size": 8, "hidden_size": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2],
            "num_hidden_layers": 2,
        },
        projection_dim=24,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.ClapModel(config).save_pretrained(folder)
    transformers.ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
    return folder


def test_clap_is_read_from_its_own_files_and_answers_as_its_library_does(tiny_clap: Path, tiny_codec: Path) -> None:
    import soxr
    from transformers import ClapFeatureExtractor, ClapModel

    embedding = load_embedding(str(tiny_clap), codec=load_codec(str(tiny_codec)))
    assert embedding.dimension == 24
    audio = band(12)
    embedded = embedding.embed(audio)
    assert embedded.shape == (2, 24)  # 0 to 10 s, and the last 10 s
    assert np.array_equal(embedded, embedding.embed(audio))
    assert embedding.embed(band(3)).shape == (1, 24)
    assert embedding.embed(band(24)).shape == (4, 24)
    heard = soxr.resample(audio.mean(axis=0), SAMPLE_RATE_HZ, 48_000)[:480_000]
    features = ClapFeatureExtractor.from_pretrained(tiny_clap)(heard, sampling_rate=48_000, return_tensors="pt")
    with torch.inference_mode():
        found = ClapModel.from_pretrained(tiny_clap).eval().get_audio_features(**features)
    plain = found if isinstance(found, torch.Tensor) else found.pooler_output
    assert embedded[0] == pytest.approx(torch.nn.functional.normalize(plain, dim=-1)[0].numpy(), abs=1e-5)
