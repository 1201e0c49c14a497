"""What codec 2 learns from: the views of every audio file of a folder, computed once, kept in one file that is mapped into memory.

Shapes: B batch, C audio channels, N samples, T latent frames, F features of a latent frame.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import Tensor
from tqdm import tqdm

from infra.errors import UserError
from model.codec.views import FEATURE_SIZES, FEATURES, FLOOR, SIDE_RANGE, Views, band_places, views_in, views_of
from model.dimensions import HOP_SAMPLES, SAMPLE_RATE_HZ
from training.codec.data import read_stem
from training.codec.fidelity import audio_files

CHUNK_FRAMES = 512
# Of the pieces that are read at another speed, how many are heard together with another piece.
MIXED_SHARE = 0.4


@dataclass(frozen=True, kw_only=True)
class Material:
    """Features (frames, F) float16 of all pieces one after another, and where each begins and ends."""

    features_TF: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def crops(self, batch_size: int, crop_frames: int, rng: np.random.Generator) -> Tensor:
        """Random crops (B, T, F) under random gains, tilts and widths; a function of `rng` alone."""
        room = self.stops - self.starts - crop_frames
        chosen = rng.choice(len(room), size=batch_size, p=room / room.sum())
        at = self.starts[chosen] + (rng.random(batch_size) * room[chosen]).astype(np.int64)
        crops_BTF = torch.from_numpy(np.stack([self.features_TF[start : start + crop_frames] for start in at])).float()
        return varied(crops_BTF, rng)

    def hours(self) -> float:
        return len(self.features_TF) * HOP_SAMPLES / SAMPLE_RATE_HZ / 3600


def varied(features_BTF: Tensor, rng: np.random.Generator) -> Tensor:
    """The features of the same sounds at −18 to +6 dB, tilted by up to 3 dB an octave, half of them with left and right swapped."""
    views = views_in(features_BTF)
    batch = len(features_BTF)

    def drawn(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (batch, 1, 1))).float()

    gain, tilt = drawn(-18, 6) * (np.log(10) / 20), drawn(-3, 3).mul_(rng.random() < 0.5) * (np.log(10) / 20)
    flip = torch.from_numpy(rng.choice([-1.0, 1.0], (batch, 1, 1))).float()
    mel_M, fine_M, attack_M = band_places()

    def louder(log_BJM: Tensor, octaves_M: Tensor) -> Tensor:
        power = ((2 * log_BJM).exp() - FLOOR**2).clamp_min(0)
        return 0.5 * (power * (2 * (gain + tilt * octaves_M)).exp() + FLOOR**2).log()

    return Views(
        mel_BJM=louder(views.mel_BJM, mel_M),
        fine_BJM=louder(views.fine_BJM, fine_M),
        attack_BJM=louder(views.attack_BJM, attack_M),
        side_BTM=(views.side_BTM + drawn(-0.5, 0.5)).clamp(*SIDE_RANGE),
        lean_BTM=views.lean_BTM * flip,
    ).features()


def open_material(corpus: Path, folder: Path, crop_frames: int, speeds: tuple[float, ...], seed: int) -> Material:
    """The views of all 44.1 kHz stereo files under `corpus` at each speed (1.06 is a semitone higher), made at the first call in `folder`.

    Raises UserError where there are none, or where `folder` holds those of other files or speeds.
    """
    files = audio_files(corpus)
    index = folder / "index.json"
    made_of = {
        "files": [[str(path.relative_to(corpus)), path.stat().st_size] for path in files],
        "speeds": list(speeds),
        "seed": seed,
        "views": [*FEATURE_SIZES, FLOOR, *SIDE_RANGE],
    }
    if not index.is_file():
        _write(files, folder, speeds, seed, made_of)
    document = json.loads(index.read_text())
    if document["made_of"] != made_of:
        raise UserError(f"{folder} was made of other files, speeds or views than {corpus} and {speeds}; remove it, or choose another --out")
    lengths = np.array(document["frames"])
    stops = np.cumsum(lengths)
    long_enough = lengths > crop_frames
    if not long_enough.any():
        raise UserError(f"corpus {corpus}: no file is longer than crop_frames={crop_frames} latent frames; take a smaller crop")
    features_TF = np.memmap(folder / "features.f16", dtype=np.float16, mode="r").reshape(-1, FEATURES)
    return Material(features_TF=features_TF, starts=(stops - lengths)[long_enough], stops=stops[long_enough])


def _write(files: list[Path], folder: Path, speeds: tuple[float, ...], seed: int, made_of: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lengths = []
    with (folder / "features.f16").open("wb") as out:
        for path in tqdm(files, desc="codec-2: views", unit="file", disable=None):
            audio_CN = read_stem(path)
            if audio_CN.shape[1] < HOP_SAMPLES or not audio_CN.isfinite().all():
                raise UserError(f"{path} is shorter than a latent frame, or has samples that are no numbers: remove it, or write it anew")
            for speed in speeds:
                piece_CN = audio_CN if speed == 1.0 else _mixed(_at_speed(audio_CN, speed), files, rng)
                features_TF = features_of_piece(piece_CN)
                out.write(features_TF.numpy().tobytes())
                lengths.append(len(features_TF))
    # Last: what says that the features are whole.
    part = folder / "index.json.part"
    part.write_text(json.dumps({"made_of": made_of, "frames": lengths}) + "\n")
    part.replace(folder / "index.json")


def _at_speed(audio_CN: Tensor, speed: float) -> Tensor:
    return torch.from_numpy(soxr.resample(audio_CN.T.numpy(), SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ, quality="MQ").T.copy())


def _mixed(audio_CN: Tensor, files: list[Path], rng: np.random.Generator) -> Tensor:
    """The piece, in some cases together with another one: denser than any single recording."""
    if rng.random() > MIXED_SHARE:
        return audio_CN
    other_CN = read_stem(files[rng.integers(len(files))])
    times = -(-audio_CN.shape[1] // other_CN.shape[1])
    return audio_CN + float(rng.uniform(0.4, 1.0)) * other_CN.repeat(1, times)[:, : audio_CN.shape[1]]


@torch.inference_mode()
def features_of_piece(audio_CN: Tensor) -> Tensor:
    """(2, N) → features (T, F) float16, in chunks so that memory stays small (frames at a chunk's edge see zeros)."""
    whole_CN = audio_CN[:, : audio_CN.shape[1] // HOP_SAMPLES * HOP_SAMPLES]
    parts = [views_of(chunk_CN.unsqueeze(0)).features()[0].half() for chunk_CN in whole_CN.split(CHUNK_FRAMES * HOP_SAMPLES, dim=1)]
    return torch.cat(parts) if parts else torch.empty(0, FEATURES, dtype=torch.float16)
