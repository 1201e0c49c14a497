"""From the page to the hands: what players add to their parts. Timing that strays and returns, accents, slides, short and held notes.

Machines (styles whose `loose_s` is 0) play drums, bass and sequences as written.
"""

from dataclasses import replace

from pipelines.chance import Chance
from pipelines.corpus.score.arrange import Hit
from pipelines.corpus.score.form import Frame

_LAG_S = {"drums": 0.0, "bass": 0.002, "chords": 0.004, "arpeggio": 0.0, "pad": 0.0, "answer": 0.006}
_SEQUENCED = ("drums", "bass", "arpeggio")
_MACHINE_LOOSE_S = 0.004
_BENDING = ("sax", "lead_guitar", "clean_guitar", "fiddle", "harmonica", "synth_lead", "brass")
_PLUCKED_BASS = ("finger_bass", "pick_bass", "upright_bass", "round_bass")
_RINGING = ("piano", "electric_piano", "vibraphone", "nylon_guitar", "guitar")
_PHRASE_BARS = 4


def perform(name: str, instrument: str, hits: list[Hit], frame: Frame, chance: Chance) -> list[Hit]:
    """The part as this song's player plays it, in order of position and pitch."""
    ordered = sorted(hits, key=lambda hit: (hit.beat, hit.midi))
    machine = not frame.style.loose_s
    if machine and name in _SEQUENCED:
        return [replace(hit, delay_s=0.0) for hit in ordered]
    loose_s = frame.style.loose_s or _MACHINE_LOOSE_S
    lag_s = _LAG_S[name] + (0.5 * frame.style.layback_s if name != "drums" else 0.0)
    strays_s, beat, played = 0.0, -1.0, []
    for hit in ordered:
        if hit.beat != beat:  # a chord's notes stray together
            strays_s, beat = 0.85 * strays_s + chance.spread(loose_s), hit.beat
        arc = (hit.beat / frame.bar_beats / _PHRASE_BARS) % 1.0
        accent = 1.04 if hit.beat % frame.accent == 0 else 1.0 if hit.beat % 1 == 0 else 0.94
        loud = hit.velocity * accent * (0.95 + 0.1 * arc) + chance.spread(0.04)
        slide = _slide(name, instrument, hit, chance)
        played.append(replace(hit, velocity=loud, delay_s=hit.delay_s + lag_s + strays_s, slide=slide))
    return _ring(played, frame) if name == "arpeggio" and instrument in _RINGING else played


def _slide(name: str, instrument: str, hit: Hit, chance: Chance) -> float:
    """Semitones below, now and then, where one string or breath makes one note at a time."""
    if name == "answer" and instrument in _BENDING and hit.beats >= 0.4 and chance.happens(0.16):
        return -chance.choice((1.0, 1.0, 2.0))
    if name == "bass" and instrument in _PLUCKED_BASS and hit.beats >= 0.8 and chance.happens(0.05):
        return -2.0
    return 0.0


def _ring(hits: list[Hit], frame: Frame) -> list[Hit]:
    """Broken chords ring to the end of their bar, as under a pedal, or until their own string is struck again."""
    rung: list[Hit] = []
    following: dict[int, float] = {}
    for hit in reversed(hits):
        bar_end = (hit.beat // frame.bar_beats + 1) * frame.bar_beats
        end = min(bar_end, following.get(hit.midi, bar_end))
        rung.append(replace(hit, beats=max(hit.beats, 0.97 * (end - hit.beat)) if end - hit.beat > hit.beats else hit.beats))
        following[hit.midi] = hit.beat
    return rung[::-1]
