"""What no table of styles holds: grooves, bass lines, fills and chord loops of a song's own, drawn within the style."""

from pipelines.chance import Chance
from pipelines.corpus.score.patterns import BassPattern, Groove

_TIMEKEEPERS = ("hat", "ride", "shaker")
_KICK_PLACES = (3, 6, 7, 10, 11, 14)
_GHOST_PLACES = (2, 5, 7, 9, 11, 15)
_DEGREES = {"major": ("I", "ii", "iii", "IV", "V", "vi"), "minor": ("i", "bIII", "iv", "v", "bVI", "bVII")}
_OPENINGS = {"major": ("I", "I", "vi", "IV"), "minor": ("i", "i", "bVI", "iv")}


def vary_groove(groove: Groove, chance: Chance) -> Groove:
    """The groove with another kick or ghost here and there, denser or thinner time, now and then on another cymbal."""
    varied: Groove = {}
    for drum, line in groove.items():
        played, steps = drum, list(line)
        if drum == "kick" and chance.happens(0.5):
            place = chance.choice([place for place in _KICK_PLACES if place < len(line)])
            steps[place] = "0" if steps[place] != "0" else str(chance.integer(4, 8))
        elif drum == "snare" and chance.happens(0.35):
            for _ in range(chance.integer(1, 2)):
                place = chance.choice([place for place in _GHOST_PLACES if place < len(line)])
                steps[place] = max(steps[place], str(chance.integer(1, 3)))
        elif drum in _TIMEKEEPERS:
            if chance.happens(0.2):
                steps = [step if place % 2 == 0 else "0" for place, step in enumerate(steps)]
            elif chance.happens(0.2):
                steps = [step if step != "0" else str(chance.integer(1, 3)) for step in steps]
            others = [other for other in _TIMEKEEPERS if other not in groove and other not in varied]
            if others and chance.happens(0.2):
                played = chance.choice(others)
        varied[played] = "".join(steps)
    return varied


def vary_bass(pattern: BassPattern, chance: Chance) -> BassPattern:
    """The pattern with some notes left out or moved to root, fifth or octave; the first note of the bar stays."""
    first, *others = pattern
    varied = [first]
    for step, length, what in others:
        if chance.happens(0.1):
            continue
        varied.append((step, length, chance.choice(("R", "F", "O")) if what != "A" and chance.happens(0.15) else what))
    return tuple(varied)


def invent_fill(chance: Chance) -> tuple[tuple[int, str, int], ...]:
    """A run from snare down the toms over the last quarter or half of a bar of 4/4, growing louder, on some of its sixteenths."""
    begin = chance.choice((8, 12, 12))
    drums = ("snare", "tom_high", "tom_mid", "tom_low")
    figure = []
    for step in range(begin, 16):
        if step > begin and not chance.happens(0.65):
            continue
        drum = drums[min(3, int((step - begin) / (16 - begin) * 4 * chance.uniform(0.6, 1.2)))]
        figure.append((step, drum, min(9, 5 + (step - begin) // 2 + chance.integer(0, 1))))
    return tuple(figure)


def invent_loop(mode: str, chance: Chance) -> str:
    """Four diatonic chords, none the same as its neighbour, around the end too, as numerals of the mode."""
    loop = [chance.choice(_OPENINGS[mode])]
    while len(loop) < 4:
        avoided = {loop[-1], loop[0]} if len(loop) == 3 else {loop[-1]}
        loop.append(chance.choice([degree for degree in _DEGREES[mode] if degree not in avoided]))
    return " ".join(loop)
