"""CLAP is loaded and called as its own library does it; transformers, which it needs, is no part of what users install."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lacks

from model.codec.load import load_codec
from model.dimensions import SAMPLE_RATE_HZ
from model.metrics.embeddings import load_embedding
from tests.bands import band

# Where `make peers` puts what no user needs.
PEERS = str(Path(__file__).resolve().parents[2] / ".venv" / "peers")


@pytest.fixture(scope="module")
def tiny_clap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A CLAP of a few thousand random weights, in the files of the published ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PEERS)
        if importlib.util.find_spec("transformers") is None:
            lacks("the optional package transformers is not installed: run `make .venv/peers/.installed`")
        yield _tiny_clap(tmp_path_factory.mktemp("clap"))


def _tiny_clap(folder: Path) -> Path:
    import transformers

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
