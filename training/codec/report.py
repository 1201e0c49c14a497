"""What survives a codec: spectra, chords, beats, notes, loudness and width of whole songs, beside a 64-band mel with Griffin-Lim.

Shapes: C audio channels, N samples, T latent frames, J spectral frames, K frequency bins.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infra.errors import UserError
from model import listen
from model.codec.load import Codec, load_codec
from model.codec.magnitude_vae import FRAMES_PER_LATENT
from model.codec.phase import find_phase, spectrum, waveform
from model.dimensions import AUDIO_CHANNELS, HOP_SAMPLES, LATENT_CHANNELS, SAMPLE_RATE_HZ, SEGMENT_SAMPLES
from training.codec.data import read_stem, song_folders
from training.codec.stft import WINDOWS, stft_distance_db

log = logging.getLogger(__name__)

Through = Callable[[Tensor], Tensor]
"""(2, N) → (2, N): audio as it comes out of a codec."""
BEAT_TOLERANCE_S = 0.07
BASELINE_ROUNDS = 32


@dataclass(frozen=True, kw_only=True)
class CodecReportConfig:
    """A codec measured on held-out songs of a corpus."""

    corpus: Path
    """Song folders; the first `songs` by name are measured."""
    out: Path
    """The Markdown file to write; figures of every song go beside it as JSON."""
    codecs: tuple[str, ...] = ("embedded",)
    """Ids as `model.codec.load.load_codec` takes them; the time is the first one's. A folder's row has the folder's name."""
    songs: int = 3
    threads: int = 2

    def __post_init__(self) -> None:
        if self.songs < 1:
            raise UserError(f"songs={self.songs}: must be 1 or more")
        if self.threads < 1:
            raise UserError(f"threads={self.threads}: must be 1 or more")
        if not self.codecs:
            raise UserError("codecs=(): name one or more, for example embedded")


@dataclass(frozen=True, kw_only=True)
class Survival:
    """One song through one codec. Shares are 0 to 1; errors compare with the original."""

    chords: float
    """Frames of the mixture whose recognised chord is the true one."""
    beats: float
    """F-measure of the beats tracked in the accompaniment, within 70 ms of the true ones."""
    onsets: float
    """F-measure of the accompaniment's onsets against the original's, within 50 ms."""
    note_error_cents: float
    """Median distance of the vocal's F0 from the original's."""
    notes_kept: float
    """Share of the original's voiced frames that are within 50 cents."""
    mel_distance_db: float
    """Mean distance of the mixture's mel spectrum in dB, over what is less than 60 dB below the loudest."""
    stft_distance_db: float
    """The same on all bins of windows of 256 to 4,096 samples, mean over the windows and both channels."""
    si_sdr_db: float
    """Scale-invariant signal-to-distortion ratio of the mixture's samples: poor wherever phase is not transmitted but found anew."""
    level_error_db: float
    """Loudness less the original's."""
    width_error_db: float
    """Side-to-mid ratio less the original's."""


def through_codec(codec: Codec) -> Through:
    """Encode, decode, and cut to length."""

    def through(audio_CN: Tensor) -> Tensor:
        return codec.decode(codec.encode(audio_CN.unsqueeze(0)))[0, :, : audio_CN.shape[1]]

    return through


def mel_griffin_lim(audio_CN: Tensor, *, bands: int = LATENT_CHANNELS, rounds: int = BASELINE_ROUNDS) -> Tensor:
    """The baseline: 64 mel bands at 21.5 Hz of each channel, spread back over the bins, the same search for phase."""
    samples = audio_CN.shape[1]
    padded_CN = torch.nn.functional.pad(audio_CN, (0, -samples % HOP_SAMPLES))
    magnitude_CJK = spectrum(padded_CN).abs()
    filters_MK = mel_filters(bands, magnitude_CJK.shape[-1])
    mel = (magnitude_CJK.square() @ filters_MK.T).unflatten(1, (-1, FRAMES_PER_LATENT)).mean(2)
    # The transposed filters, scaled so that a flat spectrum stays flat, undo the bands.
    spread_KM = filters_MK.T / (filters_MK.T @ filters_MK.sum(1, keepdim=True)).clamp_min(1e-6)
    estimate_CJK = (mel.repeat_interleave(FRAMES_PER_LATENT, dim=1) @ spread_KM.T).clamp_min(0).sqrt()
    return waveform(find_phase(estimate_CJK, rounds=rounds, momentum=0.99, grid_frames=64))[:, :samples]


def mel_filters(bands: int, bins: int) -> Tensor:
    """(bands, bins) triangles, evenly spaced in mels (O'Shaughnessy 1987) from 0 to 22.05 kHz, each at least a bin wide."""
    top = 2595 * math.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1) / (SAMPLE_RATE_HZ / 2) * (bins - 1)
    position = torch.arange(bins)
    rise = (position - edges[:-2, None]) / (edges[1:-1] - edges[:-2]).clamp_min(1)[:, None]
    fall = (edges[2:, None] - position) / (edges[2:] - edges[1:-1]).clamp_min(1)[:, None]
    return torch.minimum(rise, fall).clamp_min(0)


def survival(through: Through, folder: Path) -> Survival:
    """One song's three stems through a codec. A song without `song.json`, as recorded ones are, is compared with what is heard in it."""
    original = {stem: read_stem(folder / f"{stem}.wav")[:, :SEGMENT_SAMPLES] for stem in ("vocals", "accompaniment", "mixture")}
    duration_s = original["mixture"].shape[1] / SAMPLE_RATE_HZ
    decoded = {stem: through(audio_CN) for stem, audio_CN in original.items()}
    beats_s, chords = _truth(folder, duration_s) or _heard(original)
    accompaniment, mixture = decoded["accompaniment"].numpy(), decoded["mixture"].numpy()
    _, hz, voiced = listen.f0(original["vocals"].numpy())
    _, heard_hz, heard = listen.f0(decoded["vocals"].numpy())
    both = voiced & heard
    cents = 1200 * np.abs(np.log2(heard_hz[both] / hz[both]))
    return Survival(
        chords=listen.chord_agreement(chords, listen.recognise_chords(mixture)),
        beats=f_measure(beats_s, listen.track_beats(accompaniment), BEAT_TOLERANCE_S),
        onsets=f_measure(listen.onsets(original["accompaniment"].numpy()), listen.onsets(accompaniment), 0.05),
        note_error_cents=float(np.median(cents)) if cents.size else float("inf"),
        notes_kept=float((cents <= 50).sum() / max(1, voiced.sum())),
        mel_distance_db=_mel_distance_db(original["mixture"], decoded["mixture"]),
        stft_distance_db=float(np.mean([stft_distance_db(original["mixture"], decoded["mixture"], window) for window in WINDOWS])),
        si_sdr_db=_si_sdr_db(original["mixture"], decoded["mixture"]),
        level_error_db=listen.rms_db(mixture) - listen.rms_db(original["mixture"].numpy()),
        width_error_db=_width_db(decoded["mixture"]) - _width_db(original["mixture"]),
    )


def _truth(folder: Path, duration_s: float) -> tuple[np.ndarray, list[tuple[float, float, int]]] | None:
    """(beats in s, chords as (start, end, label)) as they were composed; None where nobody wrote them down."""
    written = folder / "song.json"
    if not written.is_file():
        return None
    truth = json.loads(written.read_text())
    chords = [
        (row["start_s"], row["end_s"], _label(row["root"], row["pitch_classes"])) for row in truth["chords"] if row["start_s"] < duration_s
    ]
    return np.array([beat for beat in truth["beats_s"] if beat < duration_s]), chords


def _heard(original: Mapping[str, Tensor]) -> tuple[np.ndarray, list[tuple[float, float, int]]]:
    """The same, as `listen` finds them in the original: a chord a frame."""
    labels_T = listen.recognise_chords(original["mixture"].numpy())
    edges_s = np.arange(len(labels_T) + 1) / listen.CHROMA_RATE_HZ
    chords = [(edges_s[frame], edges_s[frame + 1], int(label)) for frame, label in enumerate(labels_T) if label >= 0]
    return listen.track_beats(original["accompaniment"].numpy()), chords


def _label(root: int, pitch_classes: Sequence[int]) -> int:
    """root · 2 + 1 where the third is minor, as `listen` labels chords."""
    classes = {pitch % 12 for pitch in pitch_classes}
    return 2 * root + int((root + 3) % 12 in classes and (root + 4) % 12 not in classes)


def f_measure(truth_s: np.ndarray, found_s: np.ndarray, tolerance_s: float) -> float:
    """F-measure with each found time matched to at most one true time, in order."""
    hits, index = 0, 0
    for time_s in found_s:
        while index < len(truth_s) and truth_s[index] < time_s - tolerance_s:
            index += 1
        if index < len(truth_s) and truth_s[index] <= time_s + tolerance_s:
            hits, index = hits + 1, index + 1
    return 2 * hits / (len(truth_s) + len(found_s)) if len(truth_s) + len(found_s) else 1.0


def _mel_distance_db(original_CN: Tensor, decoded_CN: Tensor) -> float:
    """128 mel bands, windows of 2,048 samples every 1,024."""
    mels = []
    for audio_CN in (original_CN, decoded_CN):
        frames = audio_CN.unfold(-1, 2048, 1024) * torch.hann_window(2048)
        mels.append(torch.fft.rfft(frames).abs().square() @ mel_filters(128, 1025).T)
    loudest = float(mels[0].max())
    low = loudest * 1e-6
    audible = mels[0] > low
    difference = 10 * (mels[0].clamp_min(low).log10() - mels[1].clamp_min(low).log10()).abs()
    return float(difference[audible].mean()) if bool(audible.any()) else 0.0


def _si_sdr_db(original_CN: Tensor, decoded_CN: Tensor) -> float:
    """Le Roux et al. 2019, eq. 5, over both channels, between −100 and 100 dB."""
    original, decoded = original_CN.double().flatten(), decoded_CN.double().flatten()
    target = (decoded @ original) / original.square().sum().clamp_min(1e-12) * original
    share = float(target.square().sum() / (decoded - target).square().sum().clamp_min(1e-12))
    return 10 * math.log10(min(max(share, 1e-10), 1e10))


def _width_db(audio_CN: Tensor) -> float:
    mid, side = audio_CN.sum(0), audio_CN[0] - audio_CN[1]
    return 10 * math.log10((float(side.square().mean()) + 1e-12) / (float(mid.square().mean()) + 1e-12))


def measure_songs(codec: Codec, folders: Sequence[Path]) -> dict[str, float]:
    """Mean figures of songs through a codec: what training logs at each evaluation."""
    rows = [survival(through_codec(codec), folder) for folder in folders]
    errors = ("level_error_db", "width_error_db")  # either way is wrong, and must not cancel
    values = {name: [getattr(row, name) for row in rows] for name in Survival.__dataclass_fields__}
    return {name: float(np.mean(np.abs(found) if name in errors else found)) for name, found in values.items()}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of the wall clock, and of all cores together, for one segment of 47.55 s."""

    encode_s: float
    decode_s: float
    encode_cpu_s: float
    decode_cpu_s: float


def cost(codec: Codec, *, rounds: int = 3) -> Cost:
    """The least of a few rounds, so that a busy machine tells little."""
    audio_BCN = torch.randn(1, AUDIO_CHANNELS, SEGMENT_SAMPLES, generator=torch.Generator().manual_seed(0)) * 0.1
    marks = []
    for _ in range(rounds):
        walls, cores = [time.perf_counter()], [time.process_time()]
        latent_BCT = codec.encode(audio_BCN)
        walls.append(time.perf_counter())
        cores.append(time.process_time())
        codec.decode(latent_BCT)
        walls.append(time.perf_counter())
        cores.append(time.process_time())
        marks.append([walls[1] - walls[0], walls[2] - walls[1], cores[1] - cores[0], cores[2] - cores[1]])
    encode_s, decode_s, encode_cpu_s, decode_cpu_s = np.min(marks, axis=0).tolist()
    return Cost(encode_s=encode_s, decode_s=decode_s, encode_cpu_s=encode_cpu_s, decode_cpu_s=decode_cpu_s)


def report(config: CodecReportConfig) -> dict[str, dict[str, float]]:
    """Measures original, codecs and baseline, writes the table, returns the means by system."""
    torch.set_num_threads(config.threads)
    folders = song_folders(config.corpus)[: config.songs]
    if len(folders) < config.songs:
        raise UserError(f"corpus {config.corpus}: {len(folders)} song folders, fewer than songs={config.songs}; ask for fewer")
    codecs = [load_codec(name) for name in config.codecs]
    systems: dict[str, Through] = {"original": lambda audio_CN: audio_CN}
    systems |= {codec.identity.id: through_codec(codec) for codec in codecs}
    if len(systems) <= len(codecs):
        raise UserError(f"codecs={', '.join(config.codecs)}: two have the same name, {codecs[-1].identity.id}; rename a folder")
    systems["64-band mel"] = mel_griffin_lim
    rows = {name: [survival(through, folder) for folder in folders] for name, through in systems.items()}
    fields = list(Survival.__dataclass_fields__)
    means = {name: {field: float(np.mean([getattr(row, field) for row in found])) for field in fields} for name, found in rows.items()}
    spent = cost(codecs[0])
    lines = ["| " + " | ".join(["song", "system", *fields]) + " |", "|" + "---|" * (len(fields) + 2)]
    for name, found in rows.items():
        for folder, row in zip(folders, found, strict=True):
            lines.append("| " + " | ".join([folder.name, name, *(f"{getattr(row, field):.3g}" for field in fields)]) + " |")
        lines.append("| " + " | ".join(["mean", name, *(f"{means[name][field]:.3g}" for field in fields)]) + " |")
    lines.append("")
    lines.append(
        f"One segment of 47.55 s on {config.threads} threads: encode {spent.encode_s:.2f} s, decode {spent.decode_s:.2f} s "
        f"({spent.encode_cpu_s:.2f} and {spent.decode_cpu_s:.2f} s of core time)."
    )
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text("\n".join(lines) + "\n")
    config.out.with_suffix(".json").write_text(json.dumps(means, indent=2) + "\n")
    log.info("codec report: %s", config.out)
    return means
