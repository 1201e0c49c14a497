"""A song's notes in lines, as a singer takes them in one breath."""

from pipelines.corpus.score.record import VocalNote

_REST_S = 0.25
_LONGEST_LINE = 16


def lines_of(notes: tuple[VocalNote, ...]) -> list[list[VocalNote]]:
    """Notes between rests, at most sixteen each."""
    lines: list[list[VocalNote]] = []
    for note in notes:
        if not lines or note.onset_s - lines[-1][-1].offset_s > _REST_S or len(lines[-1]) >= _LONGEST_LINE:
            lines.append([])
        lines[-1].append(note)
    return lines
