"""LAION-CLAP's audio tower (Wu et al. 2023) as an embedding, through transformers: the only import of transformers, when one is loaded.

Shapes: C channels, N samples, R windows, D dimensions.
"""

from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from model.dimensions import SAMPLE_RATE_HZ
from model.listen import mono
from model.metrics.embedding import EmbeddingUnavailable
from model.metrics.hub import hub_folder

HUB_MODEL = "laion/larger_clap_music"
# The model hears 10 s at once; half-overlapping windows use every second twice at twice the cost.
WINDOW_S, HOP_S = 10.0, 5.0
BATCH = 8
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class ClapEmbedding:
    """Projected audio embeddings of 10 s windows, 5 s apart, of length 1 as CLAP was trained with."""

    window_s = WINDOW_S

    def __init__(self, network: Any, extractor: Any, name: str, *, device: str = "cpu") -> None:
        self._network, self._extractor, self._device = network.to(device).eval(), extractor, torch.device(device)
        self.name = f"clap {name}"
        self.note = f"LAION-CLAP audio embeddings of {name}, windows of {WINDOW_S:g} s, {HOP_S:g} s apart"
        self.dimension = int(network.config.projection_dim)

    @torch.inference_mode()
    def embed(self, audio_CN: np.ndarray) -> np.ndarray:
        """A sound shorter than a window is one window, which the model's own extractor repeats or pads."""
        rate_hz = int(self._extractor.sampling_rate)
        mono_N = soxr.resample(mono(audio_CN), SAMPLE_RATE_HZ, rate_hz)
        window, hop = round(WINDOW_S * rate_hz), round(HOP_S * rate_hz)
        starts = range(0, max(1, len(mono_N) - window + hop), hop)
        pieces = [mono_N[max(0, min(start, len(mono_N) - window)) :][:window] for start in starts]
        embedded = []
        for start in range(0, len(pieces), BATCH):
            heard = self._extractor(pieces[start : start + BATCH], sampling_rate=rate_hz, return_tensors="pt").to(self._device)
            hidden = self._network.audio_model(**heard).pooler_output
            embedded.append(torch.nn.functional.normalize(self._network.audio_projection(hidden), dim=-1).float().cpu().numpy())
        return np.concatenate(embedded)


def load_clap(name: str, *, device: str = "cpu") -> ClapEmbedding:
    """A CLAP model in transformers' format: a folder with config.json, preprocessor_config.json and weights, or a name on the hub.

    Raises EmbeddingUnavailable where the package or the weights are not there.
    """
    try:
        from transformers import ClapFeatureExtractor, ClapModel
    except ImportError as error:
        raise EmbeddingUnavailable(
            f"embedding clap needs the package transformers ({error}): run `python -m pip install 'transformers>=5'` in backline's "
            "environment, or use --embedding smoke"
        ) from error
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise EmbeddingUnavailable(f"embedding {name!r}: no config.json in that folder; give what `ClapModel.save_pretrained` wrote")
    try:
        held = folder if folder.is_dir() else hub_folder(name, ("config.json", "preprocessor_config.json"), WEIGHTS)
        network = ClapModel.from_pretrained(held)
        extractor = ClapFeatureExtractor.from_pretrained(held)
    except Exception as error:  # the hub's, transformers', safetensors' and the system's kinds; all have this remedy
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise EmbeddingUnavailable(
            f"embedding clap: {name} cannot be loaded ({reason}); it needs the network or a filled hub cache (HF_HOME), or give a "
            "downloaded folder with config.json, preprocessor_config.json and model.safetensors, or use --embedding smoke"
        ) from error
    return ClapEmbedding(network, extractor, folder.resolve().name if folder.is_dir() else name, device=device)
