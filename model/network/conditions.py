"""What a musician adds to the vocal, as the network takes it: a style, and frame by frame chords and the beat, any subset of them.

Shapes: B batch, C channels, T latent frames (each level has half the frames of the one before).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.chords import NO_CHORD, UNTOLD, quality_chroma
from model.controls import Controls, phases
from model.dimensions import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.errors import ModelError

CONTROLS = ("style", "chords", "beats")
# Root, notes and bass by pitch class, and whether the frame has been told (a frame without a chord is told too: it has none).
CHORD_CHANNELS = 3 * 12 + 1
# Two harmonics of the beat's phase, three of the bar's (its beats may be 2, 3 or 4), and whether the frame has been told.
BEAT_HARMONICS, BAR_HARMONICS = (1, 2), (1, 2, 3)
BEAT_CHANNELS = 2 * (len(BEAT_HARMONICS) + len(BAR_HARMONICS)) + 1


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Of a batch. Zeros stand for what was not given, in a whole sample or in some of its frames."""

    style_B: Tensor
    """int64: 1 + the style's place in the network's list; 0: none given."""
    chords_BCT: Tensor
    """(B, 37, T) of `chord_frames`."""
    beats_BCT: Tensor
    """(B, 11, T) of `beat_frames`."""

    @classmethod
    def none(cls, batch: int, frames: int, device: torch.device | None = None) -> Self:
        """Nothing given."""
        return cls(
            style_B=torch.zeros(batch, dtype=torch.long, device=device),
            chords_BCT=torch.zeros(batch, CHORD_CHANNELS, frames, device=device),
            beats_BCT=torch.zeros(batch, BEAT_CHANNELS, frames, device=device),
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Every tensor changed along its batch dimension, or moved."""
        return type(self)(style_B=change(self.style_B), chords_BCT=change(self.chords_BCT), beats_BCT=change(self.beats_BCT))

    def kept(self, style_B: Tensor, chords_B: Tensor, beats_B: Tensor) -> Self:
        """Only what these bool masks say is given of each sample."""
        return type(self)(
            style_B=self.style_B * style_B,
            chords_BCT=self.chords_BCT * chords_B[:, None, None],
            beats_BCT=self.beats_BCT * beats_B[:, None, None],
        )

    def window(self, start: int, frames: int) -> Self:
        """Frames start … start + frames − 1; zeros beyond the end."""

        def cut(frames_BCT: Tensor) -> Tensor:
            part_BCT = frames_BCT[:, :, start : start + frames]
            return F.pad(part_BCT, (0, frames - part_BCT.shape[2]))

        return type(self)(style_B=self.style_B, chords_BCT=cut(self.chords_BCT), beats_BCT=cut(self.beats_BCT))


def chord_frames(root_T: Tensor, quality_T: Tensor, bass_T: Tensor) -> Tensor:
    """(37, T) float from integers of `model.chords`; `UNTOLD` as root where nothing has been told."""
    told_T = root_T > UNTOLD
    root_T, quality_T, bass_T = (torch.where(told_T, value_T.long(), NO_CHORD) for value_T in (root_T, quality_T, bass_T))

    def one_hot(class_T: Tensor) -> Tensor:
        return F.one_hot(class_T + 1, 13)[:, 1:]

    steps_T12 = torch.cat([torch.zeros(1, 12), torch.from_numpy(quality_chroma())])[quality_T + 1]
    place_T12 = (torch.arange(12) - root_T[:, None]) % 12  # of each pitch class above the root
    notes_T12 = steps_T12.gather(1, place_T12)
    return torch.cat([one_hot(root_T), notes_T12, one_hot(bass_T), told_T[:, None]], dim=1).float().T.contiguous()


def beat_frames(beat_T: Tensor, bar_T: Tensor) -> Tensor:
    """(11, T) float from phases in 0..1, 0 on the beat and on the downbeat; NaN where nothing has been told. A known beat may lie in an
    unknown bar."""
    parts = [
        wave(2 * math.pi * harmonic * phase_T)
        for phase_T, harmonics in ((beat_T.float(), BEAT_HARMONICS), (bar_T.float(), BAR_HARMONICS))
        for harmonic in harmonics
        for wave in (torch.cos, torch.sin)
    ]
    return torch.stack([*parts, (~beat_T.isnan()).float()]).nan_to_num(0.0)


def frame_times_s(frames: int) -> Tensor:
    """(T,) middles of latent frames."""
    return (torch.arange(frames, dtype=torch.float64) + 0.5) * HOP_SAMPLES / SAMPLE_RATE_HZ


def conditions_of(controls: Controls, frames: int, *, styles: tuple[str, ...], duration_s: float, slower: float = 1.0) -> Conditions:
    """A batch of one. slower: how much longer the latent lasts than the vocal whose seconds the controls count."""
    times_s = frame_times_s(frames) / slower
    chord_3T = torch.full((3, frames), NO_CHORD)
    chord_3T[0] = UNTOLD
    for span in controls.chords:
        inside_T = (times_s >= span.start_s) & (times_s < span.end_s)
        chord_3T[:, inside_T] = torch.tensor([span.chord.root, span.chord.quality, span.chord.bass])[:, None]
    grid = controls.grid(duration_s)
    beat, bar = phases(grid, times_s.tolist()) if grid else ([math.nan] * frames, [math.nan] * frames)
    return Conditions(
        style_B=torch.tensor([0 if controls.style is None else 1 + styles.index(controls.style)]),
        chords_BCT=chord_frames(*chord_3T)[None],
        beats_BCT=beat_frames(torch.tensor(beat), torch.tensor(bar))[None],
    )


class ConditionStream(nn.Module):
    """Conditions → what is added to the vocal stream at the beginning of each level; nothing, before training."""

    def __init__(self, widths: tuple[int, ...], controls: tuple[str, ...], styles: int, channels: int) -> None:
        super().__init__()
        self.controls = controls
        self.style = nn.Embedding(styles + 1, channels, padding_idx=0) if "style" in controls else None
        self.chords = nn.Conv1d(CHORD_CHANNELS, channels, 3, padding=1, bias=False) if "chords" in controls else None
        self.beats = nn.Conv1d(BEAT_CHANNELS, channels, 3, padding=1, bias=False) if "beats" in controls else None
        # Without biases up to here, so that what is not given is 0; with one, two notes of a chord could not be told from either alone.
        self.mix = nn.Conv1d(channels, channels, 3, padding=1)
        self.levels = nn.ModuleList(nn.Conv1d(channels, width, 1) for width in widths)
        for parameter in self.levels.parameters():
            nn.init.zeros_(parameter)

    def forward(self, conditions: Conditions, valid_B1T: Tensor | None) -> list[Tensor]:
        """(B, C, T) of each level, finest first; frames must be a multiple of the coarsest level's."""
        given = []
        if self.style is not None:
            given.append(self.style(conditions.style_B)[:, :, None].expand(-1, -1, conditions.chords_BCT.shape[2]))
        if self.chords is not None:
            given.append(self.chords(conditions.chords_BCT))
        if self.beats is not None:
            given.append(self.beats(conditions.beats_BCT))
        mask_B1T = 1.0 if valid_B1T is None else valid_B1T.to(given[0].dtype)
        sum_BCT = torch.stack(given).sum(0) * mask_B1T
        h_BCT = (sum_BCT + self.mix(F.silu(sum_BCT))) * mask_B1T
        found: list[Tensor] = []
        for level in self.levels:
            if found:
                h_BCT = F.avg_pool1d(h_BCT, 2)
            found.append(level(h_BCT))
        return found


def check_controls(controls: tuple[str, ...], styles: tuple[str, ...]) -> None:
    """Raises ModelError where a network of these cannot be."""
    if unknown := sorted(set(controls) - set(CONTROLS)):
        raise ModelError(f"controls={controls}: {unknown} are not among {', '.join(CONTROLS)}")
    if tuple(name for name in CONTROLS if name in controls) != controls:
        raise ModelError(f"controls={controls}: name each once, in the order {', '.join(CONTROLS)}")
    if bool(styles) != ("style" in controls) or len(set(styles)) != len(styles):
        raise ModelError(f"styles={styles} with controls={controls}: give distinct names of styles where style is a control, else none")
