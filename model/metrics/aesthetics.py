"""AudioBox-Aesthetics (Tjandra et al. 2025): four scores of 1 to 10 of a sound alone. The only import of audiobox_aesthetics, when asked.

Its weights (CC BY 4.0) come from the hub, or from a local copy. None of the scores knows the vocal.

Shapes: C channels, N samples, W windows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from model.dimensions import SAMPLE_RATE_HZ
from model.errors import ModelError
from model.listen import mono
from model.metrics.hub import hub_folder

HUB_MODEL = "facebook/audiobox-aesthetics"
RATE_HZ = 16_000
BATCH = 8
AXES = ("PQ", "PC", "CE", "CU")


class AestheticsUnavailable(ModelError):
    """The package or the weights are not there; the message says what to install or name."""


@dataclass(frozen=True, kw_only=True)
class AestheticScores:
    """Production quality, production complexity, content enjoyment, content usefulness."""

    PQ: float
    PC: float
    CE: float
    CU: float


class Aesthetics:
    """The scorer, ready for sounds."""

    def __init__(self, network: Any, device: str = "cpu") -> None:
        """network: the package's AesMultiOutput with its weights."""
        self._network, self._device = network.to(device).eval(), torch.device(device)

    @torch.inference_mode()
    def score(self, audio_CN: np.ndarray) -> AestheticScores:
        """44.1 kHz, (C, N): the mean over windows of 10 s, weighted by how much of each is sound, as the package's own predictor does."""
        from audiobox_aesthetics.infer import make_inference_batch

        mono_N = torch.from_numpy(soxr.resample(mono(audio_CN), SAMPLE_RATE_HZ, RATE_HZ))
        pieces, masks, shares, _ = make_inference_batch([mono_N[None]], sample_rate=RATE_HZ)
        parts: dict[str, list[np.ndarray]] = {axis: [] for axis in AXES}
        for start in range(0, len(pieces), BATCH):
            batch = {"wav": torch.stack(pieces[start : start + BATCH]), "mask": torch.stack(masks[start : start + BATCH])}
            scored = self._network({name: tensor.to(self._device) for name, tensor in batch.items()})
            for axis in AXES:
                usual = self._network.target_transform[axis]
                parts[axis].append((scored[axis].float() * usual["std"] + usual["mean"]).cpu().numpy())
        return AestheticScores(**{axis: float(np.average(np.concatenate(parts[axis]), weights=shares)) for axis in AXES})


def load_aesthetics(weights: str | None = None, *, device: str = "cpu") -> Aesthetics:
    """The scorer with the hub's weights, or those of a folder (config.json, model.safetensors) or of a checkpoint.pt.

    Raises AestheticsUnavailable where the package or the weights are not there.
    """
    try:
        from audiobox_aesthetics.infer import AesPredictor
        from audiobox_aesthetics.model.aes import AesMultiOutput
    except ImportError as error:
        raise AestheticsUnavailable(
            f"AudioBox-Aesthetics needs the package audiobox_aesthetics ({error}): run `python -m pip install audiobox_aesthetics` in "
            "backline's environment"
        ) from error
    named = Path(weights) if weights else None
    if named is not None and not named.exists():
        raise AestheticsUnavailable(f"AudioBox-Aesthetics: no weights at {weights}; name its checkpoint.pt, or a folder with its weights")
    try:
        if named is not None and named.is_file():
            network = AesPredictor(checkpoint_pth=str(named)).model
        else:
            network = AesMultiOutput.from_pretrained(str(named or hub_folder(HUB_MODEL, ("config.json",), ("model.safetensors",))))
    except Exception as error:  # the hub's, torch's, safetensors' and the system's kinds; all have this remedy
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise AestheticsUnavailable(
            f"AudioBox-Aesthetics: its weights cannot be loaded ({reason}); they need the network or a filled hub cache (HF_HOME), or "
            "name a local copy with --aesthetics-weights"
        ) from error
    return Aesthetics(network, device)
