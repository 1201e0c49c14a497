"""AudioBox-Aesthetics: what is said without it, and that its network is called as its own predictor does it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.metrics.aesthetics import AXES, AestheticsUnavailable, load_aesthetics


def test_without_the_package_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics.infer", None)  # as if it were not there
    with pytest.raises(AestheticsUnavailable, match="pip install audiobox_aesthetics"):
        load_aesthetics()


@pytest.fixture
def tiny_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """checkpoint.pt and a folder, as published, of a network of a few thousand random weights. Its size is no part of its files."""
    from audiobox_aesthetics.model import aes

    sizes = {
        "encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2,
        "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
    }  # fmt: skip
    monkeypatch.setattr(aes, "DEFAULT_AUDIO_CFG", type(aes.DEFAULT_AUDIO_CFG)({**vars(aes.DEFAULT_AUDIO_CFG), **sizes}))
    usual = {axis: {"mean": 5.0 + index, "std": 2.0} for index, axis in enumerate(aes.AXES_NAME)}
    options = {
        "proj_num_layer": 1, "proj_ln": False, "proj_act_fn": "gelu", "proj_dropout": 0, "nth_layer": 3, "use_weighted_layer_sum": True,
        "precision": "32", "normalize_embed": True, "output_dim": 1,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = aes.AesMultiOutput(**options, target_transform=usual)
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "model_cfg": options, "target_transform": usual}, tmp_path / "checkpoint.pt")
    network.save_pretrained(tmp_path / "folder")
    return tmp_path


def test_scores_are_those_of_its_own_predictor_from_either_file(tiny_weights: Path) -> None:
    from audiobox_aesthetics.infer import AesPredictor

    audio_CN = 0.1 * np.random.default_rng(0).standard_normal((2, 44_100 * 13), dtype=np.float32)
    scorer = load_aesthetics(str(tiny_weights / "checkpoint.pt"))
    found = scorer.score(audio_CN)
    assert found == load_aesthetics(str(tiny_weights / "folder")).score(audio_CN)
    import soxr

    heard = torch.from_numpy(soxr.resample(audio_CN.mean(axis=0), 44_100, 16_000))[None]
    (expected,) = AesPredictor(checkpoint_pth=str(tiny_weights / "checkpoint.pt")).forward([{"path": heard, "sample_rate": 16_000}])
    assert [getattr(found, axis) for axis in AXES] == pytest.approx([expected[axis] for axis in AXES], abs=1e-5)


def test_weights_that_are_not_there_or_no_weights_are_refused(tiny_weights: Path) -> None:
    with pytest.raises(AestheticsUnavailable, match="no weights at"):
        load_aesthetics(str(tiny_weights / "nowhere.pt"))
    (tiny_weights / "broken.pt").write_bytes(b"no checkpoint")
    with pytest.raises(AestheticsUnavailable, match="--aesthetics-weights"):
        load_aesthetics(str(tiny_weights / "broken.pt"))
