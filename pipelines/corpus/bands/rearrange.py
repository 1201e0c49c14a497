"""Several bands for one vocal: each a song of its own, with the melody, tempo, form and key of the first."""

import math
from dataclasses import replace

from pipelines.chance import Chance
from pipelines.corpus.bands.reharmonise import reharmonise
from pipelines.corpus.score.band import arrange
from pipelines.corpus.score.compose import DEFAULT_DURATION_S, LeadSheet, choose_mix, compose_sheet, timed_chords, write_lead_sheet
from pipelines.corpus.score.form import Frame
from pipelines.corpus.score.record import SongRecord
from pipelines.corpus.score.styles import STYLES, Style

MOST_BANDS = 4
# How far a style may leave its own range of tempi: a tenth is a lively ballad.
_TEMPO_LEEWAY = 0.1
_STRAIGHT = 0.505


def compose_bands(seed: int, bands: int, duration_s: float = DEFAULT_DURATION_S) -> tuple[SongRecord, ...]:
    """The song of a seed, as `compose` gives it, and the same vocal with `bands - 1` others. Band k is the same for any number of bands."""
    sheet = write_lead_sheet(seed, duration_s)
    original = compose_sheet(sheet)
    return original, *(_rearrange(sheet, original, band) for band in range(1, bands))


def _rearrange(sheet: LeadSheet, original: SongRecord, band: int) -> SongRecord:
    style = band_style(sheet.frame, sheet.seed, band)
    frame = replace(sheet.frame, style=style)
    name = f"{sheet.seed}/{band}"
    chords = reharmonise(frame, sheet.chords, sheet.melody, style, Chance("reharmony", name))
    mix = choose_mix(frame, Chance("mix", name))
    sung_in = original.mix
    return replace(
        original,
        title=f"{original.title} ({style.name} version)",
        style=style.name,
        chords=timed_chords(frame, chords),
        tracks=arrange(frame, chords, list(sheet.melody), sheet.hook, name),
        # The vocal was recorded in its own room.
        mix=replace(
            mix,
            vocal_room_s=sung_in.vocal_room_s,
            vocal_reverb_db=sung_in.vocal_reverb_db,
            vocal_echo_db=sung_in.vocal_echo_db,
            peak_dbfs=sung_in.peak_dbfs,
        ),
        band=band,
        vocal_of=original.song_id,
    )


def band_style(frame: Frame, seed: int, band: int) -> Style:
    """What the band with this number plays; the swing is the song's, for the vocal swings already.

    Styles of the metre that know the tempo come in a drawn order. A metre with one style keeps its patterns, on other styles' instruments.
    """
    fitting = _fitting(frame)
    chance = Chance("bands", seed)
    order = sorted(fitting, key=lambda style: (chance.uniform(), style.name))
    if len(order) >= band:
        return replace(order[band - 1], swing_unit=frame.style.swing_unit)
    lenders = sorted(_players(frame), key=lambda style: (chance.uniform(), style.name))
    lender = lenders[(band - 1) % len(lenders)]
    return replace(
        frame.style,
        bass_instruments=lender.bass_instruments,
        chord_instruments=lender.chord_instruments,
        arpeggio_instruments=lender.arpeggio_instruments or frame.style.arpeggio_instruments,
        pad_instruments=lender.pad_instruments,
        answer_instruments=lender.answer_instruments,
        kits=lender.kits,
    )


def _fitting(frame: Frame) -> list[Style]:
    return [style for style in _players(frame) if style.metre == frame.style.metre and _strain(style, frame) <= _TEMPO_LEEWAY]


def _players(frame: Frame) -> list[Style]:
    """Other styles; machines neither swing nor follow a singer's tempo."""
    human = frame.drift > 0 or frame.swing > _STRAIGHT
    return [style for style in STYLES if style.name != frame.style.name and (style.loose_s or not human)]


def _strain(style: Style, frame: Frame) -> float:
    """How far outside the style's tempi the song is, as a logarithm of their ratio."""
    low, high = style.tempo_bpm
    return max(0.0, math.log(low / frame.tempo_bpm), math.log(frame.tempo_bpm / high))
