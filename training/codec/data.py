"""What the codec's training reads: features of every stem of a song folder, held in memory, and random crops of them.

Shapes: B batch, F features of a latent frame, T latent frames, C channels, N samples.
"""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor
from tqdm import tqdm

from infra.dataset.format import RESERVED_SEEDS
from infra.errors import UserError
from model.codec.magnitude_vae import FRAMES_PER_LATENT, MAGNITUDE_BANDS, MAGNITUDE_FLOOR, STEREO_BANDS, features_of
from model.codec.phase import spectrum
from model.dimensions import AUDIO_CHANNELS, HOP_SAMPLES, SAMPLE_RATE_HZ

STEMS = ("vocals", "accompaniment", "mixture")
LOG_MAGNITUDES = FRAMES_PER_LATENT * MAGNITUDE_BANDS
CHUNK_SAMPLES = 256 * HOP_SAMPLES

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Songs:
    """Song folders for training, and others held out."""

    training: tuple[Path, ...]
    held_out: tuple[Path, ...]


def song_folders(corpus: Path) -> list[Path]:
    """The folders under `corpus` that hold all three stems, by name."""
    return sorted({path.parent for path in corpus.rglob("vocals.wav") if all((path.parent / f"{stem}.wav").is_file() for stem in STEMS)})


def find_songs(corpus: Path, held_out: int) -> Songs:
    """A corpus's songs; the first ones by name (the lowest seeds) are held out. Raises UserError where others have a reserved seed."""
    folders = song_folders(corpus)
    if len(folders) <= held_out:
        raise UserError(
            f"corpus {corpus}: {len(folders)} song folders with {', '.join(f'{stem}.wav' for stem in STEMS)}, {held_out} of them held out; "
            "need at least one more: backline corpus --out DIR --songs 32 --seed 1000"
        )
    reserved = [folder.name for folder in folders[held_out:] if _seed(folder) in RESERVED_SEEDS]
    if reserved:
        raise UserError(
            f"corpus {corpus}: {reserved[0]} and {len(reserved) - 1} more have seeds {RESERVED_SEEDS.start} to {RESERVED_SEEDS.stop - 1}, "
            "which are for evaluation and never trained on; take them out, or render others: backline corpus --seed 1000"
        )
    return Songs(training=tuple(folders[held_out:]), held_out=tuple(folders[:held_out]))


def _seed(folder: Path) -> int | None:
    """The demo song's seed; None for a song that is no demo."""
    description = folder / "song.json"
    return json.loads(description.read_text()).get("seed") if description.is_file() else None


def read_stem(path: Path) -> Tensor:
    """A 44.1 kHz stereo file → (2, N) float32."""
    audio_NC, sample_rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    if sample_rate_hz != SAMPLE_RATE_HZ or audio_NC.shape[1] != AUDIO_CHANNELS:
        raise UserError(
            f"{path}: {sample_rate_hz} Hz, {audio_NC.shape[1]} channels; need {SAMPLE_RATE_HZ} Hz stereo: convert it or render it again"
        )
    return torch.from_numpy(np.ascontiguousarray(audio_NC.T))


def audio_features(audio_CN: Tensor) -> Tensor:
    """(2, N) → features (T, F) float16, in chunks so that memory stays small (frames at a chunk's edge see zeros: seams, not truth)."""
    whole = audio_CN[:, : audio_CN.shape[1] // HOP_SAMPLES * HOP_SAMPLES]
    parts = []
    for chunk_CN in whole.split(CHUNK_SAMPLES, dim=1):
        mid, side = (chunk_CN[:1] + chunk_CN[1:]) / 2, (chunk_CN[:1] - chunk_CN[1:]) / 2
        parts.append(features_of(spectrum(mid), spectrum(side))[0].half())
    return torch.cat(parts)


def corpus_features(folders: tuple[Path, ...], crop_frames: int, speeds: tuple[float, ...]) -> list[Tensor]:
    """Features (T, F) of each stem at each speed (a speed of 1.06 is a semitone higher and shorter); short stems are left out."""
    found = []
    for folder in tqdm(folders, desc="codec: features", unit="song", disable=None):
        for stem in STEMS:
            audio_CN = read_stem(folder / f"{stem}.wav")
            for speed in speeds:
                faster = audio_CN
                if speed != 1.0:
                    faster = torch.from_numpy(
                        soxr.resample(audio_CN.T.numpy(), SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ, quality="MQ").T.copy()
                    )
                features = audio_features(faster)
                if len(features) > crop_frames:
                    found.append(features)
    if not found:
        raise UserError(
            f"no stem of the corpus is longer than crop_frames={crop_frames} latent frames; take a smaller crop or longer songs"
        )
    return found


def feature_statistics(features: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(mean, deviation) of each feature over everything; deviations are kept above 0.05."""
    count, total, squares = (
        0,
        torch.zeros(features[0].shape[1], dtype=torch.float64),
        torch.zeros(features[0].shape[1], dtype=torch.float64),
    )
    for part in features:
        exact = part.double()
        count, total, squares = count + len(part), total + exact.sum(0), squares + exact.square().sum(0)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(0.05).float()


def crop(features: list[Tensor], batch_size: int, crop_frames: int, rng: np.random.Generator, device: torch.device) -> Tensor:
    """Random crops (B, T, F) at random gains of −18 to +6 dB, left and right swapped in half of them; a pure function of `rng`."""
    lengths = np.array([len(part) for part in features], dtype=np.float64)
    chosen = rng.choice(len(features), size=batch_size, p=lengths / lengths.sum())
    starts = [int(rng.integers(0, len(features[index]) - crop_frames + 1)) for index in chosen]
    crops = torch.stack([features[index][start : start + crop_frames] for index, start in zip(chosen, starts, strict=True)])
    gain = torch.from_numpy(10 ** (rng.uniform(-18, 6, batch_size) / 20)).float().to(device).view(-1, 1, 1)
    flip = torch.from_numpy(rng.choice([-1.0, 1.0], batch_size)).float().to(device).view(-1, 1, 1)
    crops = crops.to(device).float()
    power = (crops[..., :LOG_MAGNITUDES] * 2).exp() - MAGNITUDE_FLOOR**2
    louder = 0.5 * (power.clamp_min(0) * gain**2 + MAGNITUDE_FLOOR**2).log()
    pan, width = crops[..., LOG_MAGNITUDES : LOG_MAGNITUDES + STEREO_BANDS], crops[..., LOG_MAGNITUDES + STEREO_BANDS :]
    return torch.cat([louder, pan * flip, width], dim=-1)


@dataclass(frozen=True, kw_only=True)
class AudioCrops:
    """Random crops of stems, read from disk a step ahead by `readers` threads; a crop is a function of the seed and the step alone."""

    stems: tuple[Path, ...]
    samples: int
    batch_size: int
    speeds: tuple[float, ...]
    seed: int
    pool: ThreadPoolExecutor
    ahead: dict[int, list[Future[Tensor]]]

    def at(self, step: int) -> Tensor:
        """The crops (B, 2, N) of a step."""
        futures = self.ahead.pop(step, None) or self._ask(step)
        self.ahead[step + 1] = self._ask(step + 1)
        return torch.stack([future.result() for future in futures])

    def _ask(self, step: int) -> list[Future[Tensor]]:
        return [self.pool.submit(self._read, step, index) for index in range(self.batch_size)]

    def _read(self, step: int, index: int) -> Tensor:
        """One crop at one of the speeds and a gain of −18 to +6 dB, left and right swapped in half of them."""
        rng = np.random.default_rng([self.seed, step, index])
        speed = float(rng.choice(self.speeds))
        path = self.stems[rng.integers(len(self.stems))]
        wanted = self.samples if speed == 1.0 else int(self.samples * speed) + 1
        with soundfile.SoundFile(path) as file:
            file.seek(int(rng.integers(0, file.frames - wanted + 1)))
            audio_NC = file.read(wanted, dtype="float32", always_2d=True)
        if speed != 1.0:
            audio_NC = soxr.resample(audio_NC, SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ, quality="MQ")[: self.samples]
            audio_NC = np.pad(audio_NC, ((0, self.samples - len(audio_NC)), (0, 0)))
        audio_NC = audio_NC * np.float32(10 ** (rng.uniform(-18, 6) / 20))
        return torch.from_numpy(np.ascontiguousarray(audio_NC.T if rng.random() < 0.5 else audio_NC.T[::-1]))


def audio_crops(
    folders: tuple[Path, ...], *, samples: int, batch_size: int, speeds: tuple[float, ...], seed: int, readers: int
) -> AudioCrops:
    """Crops of the songs' stems; stems that are too short are left out."""
    stems = [folder / f"{stem}.wav" for folder in folders for stem in STEMS]
    found = []
    for path in stems:
        header = soundfile.info(path)
        if header.samplerate != SAMPLE_RATE_HZ or header.channels != AUDIO_CHANNELS:
            raise UserError(f"{path}: {header.samplerate} Hz, {header.channels} channels; need {SAMPLE_RATE_HZ} Hz stereo: convert it")
        if header.frames > samples * max(*speeds, 1.0) + 1:
            found.append(path)
    if not found:
        raise UserError(f"no stem of the corpus is longer than {samples / SAMPLE_RATE_HZ:.1f} s; take smaller crops or longer songs")
    return AudioCrops(
        stems=tuple(found),
        samples=samples,
        batch_size=batch_size,
        speeds=speeds,
        seed=seed,
        pool=ThreadPoolExecutor(readers, "crops"),
        ahead={},
    )


def passes(features: list[Tensor], crop_frames: int, device: torch.device) -> Iterator[Tensor]:
    """Every feature once, as (1, T, F) of at most `crop_frames` frames, for statistics."""
    for part in features:
        for piece in part.split(crop_frames):
            yield piece.unsqueeze(0).to(device).float()
