"""What the drummer plays: the section's groove with ghosts and accents, a fill where a section ends, a crash where one begins."""

from pipelines.chance import Chance
from pipelines.corpus.score.arrange import Hit, Part
from pipelines.corpus.score.patterns import Groove
from pipelines.corpus.score.styles import DRUM_KEYS
from pipelines.corpus.score.variation import invent_fill

# Fills over the last beats of a bar: rows of (step of 16, drum, velocity digit).
_FILLS: tuple[tuple[tuple[int, str, int], ...], ...] = (
    ((12, "snare", 6), (13, "snare", 6), (14, "snare", 7), (15, "snare", 8)),
    ((8, "snare", 7), (10, "tom_high", 7), (12, "tom_mid", 8), (14, "tom_low", 8), (15, "tom_low", 7)),
    ((12, "tom_high", 7), (13, "tom_high", 6), (14, "tom_mid", 8), (15, "tom_low", 8)),
    ((8, "snare", 7), (9, "snare", 4), (10, "snare", 6), (12, "tom_mid", 8), (14, "tom_low", 8)),
    ((14, "snare", 7), (15, "snare", 8)),
)


def play_drums(
    part: Part, groove: Groove, *, fill: bool, crash: bool, wild: bool, enter: float, swung_eighths: bool, ghosts: float, chance: Chance
) -> list[Hit]:
    """Hits of one section: `enter` is the share of its bars before the kit joins; swung eighths drop the sixteenths, which would clash;
    `ghosts` is the chance of a soft stroke on the snare at each step that it leaves free."""
    hits: list[Hit] = []
    last = part.first_bar + part.bars - 1
    for bar in range(part.first_bar + int(part.bars * enter), part.first_bar + part.bars):
        base = float(bar * part.bar_beats)
        if part.final and bar == last:
            hits += [Hit(base, 1.0, DRUM_KEYS["kick"], 0.9), Hit(base, 2.0, DRUM_KEYS["crash"], 0.6)]
            break
        filling = fill and bar == last
        figure: tuple[tuple[int, str, int], ...] = ()
        if filling:
            figure = invent_fill(chance) if wild and chance.happens(0.5) else chance.choice(_FILLS if wild else (*_FILLS[::4], _FILLS[2]))
            figure = tuple((step + 4 * part.bar_beats - 16, drum, strength) for step, drum, strength in figure)
        begin = min((step for step, _, _ in figure), default=4 * part.bar_beats)
        for drum, line in groove.items():
            for step, digit in enumerate(line):
                if digit == "0" or (step >= begin and drum not in ("kick", "shaker")) or (swung_eighths and step % 2):
                    continue
                velocity = int(digit) / 9 * (0.64 + 0.36 * part.intensity) + chance.spread(0.04)
                hits.append(Hit(base + step / 4, 0.25, DRUM_KEYS[drum], max(0.05, min(1.0, velocity)), chance.spread(0.004)))
        for step in range(begin) if "snare" in groove else ():
            if groove["snare"][step] == "0" and not (swung_eighths and step % 2) and chance.happens(ghosts * (1 + step % 2)):
                hits.append(Hit(base + step / 4, 0.25, DRUM_KEYS["snare"], chance.uniform(0.12, 0.24), chance.spread(0.006)))
        for step, drum, strength in figure:
            if swung_eighths and step % 2:
                continue
            hits.append(
                Hit(base + step / 4, 0.25, DRUM_KEYS[drum], min(1.0, strength / 9 * 0.9 + chance.spread(0.04)), chance.spread(0.004))
            )
    if crash:
        hits.append(Hit(part.start, 2.0, DRUM_KEYS["crash"], 0.62 + 0.2 * part.intensity))
    return hits
