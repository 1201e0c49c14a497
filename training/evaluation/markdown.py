"""The report of an evaluation as Markdown: the result in a sentence, then tables small enough to read."""

from collections.abc import Sequence

from model.dimensions import SAMPLE_RATE_HZ, SEGMENT_SAMPLES
from model.metrics.set_distances import Interval
from training.evaluation.measures import GENERATED, OTHER, ROUND_TRIP
from training.evaluation.report import Distances, EvaluationReport, bracketed

# Below this many songs a reader is told that an interval says little.
FEW_SONGS = 5
SEGMENT_S = SEGMENT_SAMPLES / SAMPLE_RATE_HZ
# Table II of arXiv 2507.19991: PQ, PC, CE, CU, parameters, time for 47 s.
PAPER = (
    ("pop recordings", "7.92", "6.26", "7.36", "7.61", "", ""),
    ("MusicGen", "7.99", "5.62", "7.99", "8.14", "3.3B / 300M", "1083 s / 236 s"),
    ("Stable Audio Open", "7.54", "4.06", "6.84", "7.71", "1.2B", "25 s"),
    ("Jukebox", "5.30", "5.97", "4.83", "4.66", "5B", "6 h"),
    ("the paper's model", "5.73", "5.14", "2.93", "4.97", "15M", "21 s"),
)


def markdown(report: EvaluationReport) -> str:
    """The whole page; its first two lines are the title."""
    lines = [f"# Evaluation of {report.checkpoint} (step {report.step})", "", result(report), "", *_basis(report)]
    lines += ["", "## Fit to the vocal, 0 to 1", "", *_fit(report)]
    if report.following:
        lines += ["", "## What the band follows", "", *_following(report)]
    for found in report.all_distances:
        lines += ["", f"## Distance from real accompaniments: {found.embedding}", "", *_distances(found)]
    lines += ["", "## Sound", "", *_sound(report)]
    if report.aesthetics or report.aesthetics_note:
        lines += ["", "## AudioBox-Aesthetics, 1 to 10", "", *_aesthetics(report)]
    if report.costs:
        lines += ["", "## What it costs", "", *_costs(report)]
    if report.absent:
        lines += ["", "## Not in these tables", "", *(f"- {absent.what}: {absent.why}." for absent in report.absent)]
    return "\n".join(lines) + "\n"


def result(report: EvaluationReport) -> str:
    """What the evaluation says, in a sentence or two."""
    generated, other = report.row(GENERATED).overall, report.row(OTHER).overall
    share = f"it fits better in {100 * report.wins:.0f}% of segments"
    against = f"overall fit {generated:.2f} against {other:.2f}"
    gain = report.advantage
    if gain is None:
        verdict = f"Generated accompaniment and another song's real one: {against}; {share}."
    elif report.songs < 2:
        verdict = f"Generated accompaniment and another song's real one: {against}; {share}. One song alone gives no interval."
    else:
        interval = f"difference {gain.value:+.2f}, 90% interval {gain.low:+.2f} to {gain.high:+.2f} over {report.songs} songs"
        if gain.low > 0:
            verdict = f"The generated accompaniment fits its vocal better than another song's real one: {against} ({interval}); {share}."
        elif gain.high < 0:
            verdict = f"The generated accompaniment fits its vocal worse than another song's real one: {against} ({interval}); {share}."
        else:
            verdict = (
                f"The generated accompaniment is not shown to fit better than another song's real one: {against} ({interval}); {share}."
            )
    ways = [f"{name} {100 * way:.0f}%" for name in ("harmony", "rhythm") if (way := report.way(name)) == way]
    return verdict + (f" On the way from another song's to the real one: {', '.join(ways)}." if ways else "")


def _basis(report: EvaluationReport) -> list[str]:
    lines = [
        f"{report.rows[0].segments} held-out segments of {report.songs} {_songs(report.songs)} of {report.dataset}, at most "
        f"{report.seconds:.1f} s each. Means; in brackets 90% bootstrap intervals over songs"
        + (", which say little for so few songs." if report.songs < FEW_SONGS else ".")
        + " A latent dataset keeps no audio: vocals and real accompaniments are decoded from their latents, so *real* has been through the "
        "codec once, as the generated one has."
    ]
    if any(row.name == ROUND_TRIP for row in report.rows):
        lines[0] += f" *{ROUND_TRIP}* is the real one encoded and decoded once more: what it loses against *real* is the codec's own cost."
    return lines


def _fit(report: EvaluationReport) -> list[str]:
    return _table(
        ("accompaniment", "harmony", "rhythm", "overall", "leakage"),
        [
            (
                row.name,
                *(
                    bracketed(Interval(value=getattr(row.mean, name), low=getattr(row.low, name), high=getattr(row.high, name)))
                    for name in ("harmony", "rhythm", "overall", "leakage")
                ),
            )
            for row in report.rows
        ],
    )


def _following(report: EvaluationReport) -> list[str]:
    note = (
        f"{report.following_note} *Shadowing*: share of the sung frames in which the band's strongest pitch class is the voice's own; "
        "*beyond*: more than the true band does. *Key*: share of segments in the song's key. *Chords*: share of the frames with the root "
        "and third that were given or composed. *Beats*: F-measure within 70 ms. *Drift*: milliseconds per minute by which the "
        "band's beats run away from the song's; none where fewer than eight of them lie near."
    )

    def cell(interval: Interval | None, digits: int = 2) -> str:
        return "–" if interval is None else bracketed(interval, digits)

    header = ("accompaniment", "shadowing", "beyond the true band's", "key", "chords", "beats", "drift, ms/min")
    rows = [
        (
            row.name,
            *(cell(part) for part in (row.shadowing, row.shadowing_beyond, row.key, row.chords, row.beats)),
            cell(row.drift_ms, 0),
        )
        for row in report.following
    ]
    return [note, "", *_table(header, rows)]


def _costs(report: EvaluationReport) -> list[str]:
    note = (
        f"{report.device}. Real-time factor: seconds of encoding, sampling and decoding per second of sound; below 1 is faster than it "
        "sounds. Memory: of an accelerator what was allocated at most, else the most that the whole process held, with the evaluation's "
        "own sounds."
    )
    rows = [(row.name, f"{row.real_time_factor:.3f}", f"{row.peak_bytes / 2**30:.2f} GiB") for row in report.costs]
    return [note, "", *_table(("accompaniment", "real-time factor", "peak memory"), rows)]


def _distances(found: Distances) -> list[str]:
    songs = f"{found.reference_windows} windows of {found.reference_songs} {_songs(found.reference_songs)}"
    adhered = any(row.apa is not None for row in found.rows)
    intro = (
        f"Embedding: {found.note}; {found.dimension} values a window of {found.window_s:.3g} s. The reference is {songs} "
        "of the training split, none of which stands in a row where there are others. Smaller is nearer. Few songs make a Fréchet distance "
        "too large; *extrapolated* takes that off. KAD, the kernel audio distance (100 × MMD²), has no such bias: it is about 0, now and "
        "then below, where nothing tells the two apart. A distance does not hear which vocal a sound belongs to: rows that deal the same "
        "sounds to other vocals have the same."
    )
    if adhered:
        intro += (
            f" APA, accompaniment prompt adherence, does: 1 where mixes with the vocal are like the {found.reference_mixes} windows of "
            "true pairs, 0 where they are like the same vocals with other songs' bands, as far as this embedding tells these apart."
        )
    digits = 2 if max(row.frechet.value for row in found.rows) > 10 else 3  # vectors of length 1 lie near each other
    header = ("accompaniment", "Fréchet", "extrapolated", "KAD", *(("APA",) if adhered else ()))
    rows = [
        (
            row.name,
            bracketed(row.frechet, digits),
            "" if row.frechet_extrapolated is None else f"{row.frechet_extrapolated:.{digits}f}",
            bracketed(row.kernel),
            *((("–" if row.apa is None else bracketed(row.apa)),) if adhered else ()),
        )
        for row in found.rows
    ]
    return [intro, "", *_table(header, rows)]


def _sound(report: EvaluationReport) -> list[str]:
    header = ("accompaniment", "loudness, LUFS", "centroid, Hz", "flatness", "flux", "spectrum, dB from the real one's")
    rows = [
        (
            row.name,
            f"{row.mean.loudness_lufs:.1f}",
            f"{row.mean.centroid_hz:.0f}",
            f"{row.mean.flatness:.3f}",
            f"{row.mean.flux:.2f}",
            f"{row.mean.spectrum_db:.1f}",
        )
        for row in report.rows
    ]
    return _table(header, rows)


def _aesthetics(report: EvaluationReport) -> list[str]:
    if not report.aesthetics:
        return [report.aesthetics_note]
    size = "" if report.parameters is None else f"{report.parameters / 1e6:.1f}M"
    took = "" if report.segment_s is None else f"{report.segment_s:.1f} s"
    rows = [
        (
            row.name,
            *(bracketed(getattr(row, axis)) for axis in ("PQ", "PC", "CE", "CU")),
            *((size, took) if row.name == GENERATED else ("", "")),
        )
        for row in report.aesthetics
    ]
    note = (
        f"{report.aesthetics_note} Scores of a sound alone: none knows the vocal. Time is for {SEGMENT_S:.0f} s at the rate measured here "
        f"({report.device}); the last rows are the paper's figures, of other songs on another machine."
    )
    theirs = [(f"*{row[0]}, in the paper*", *row[1:]) for row in PAPER]
    return [note, "", *_table(("accompaniment", "PQ", "PC", "CE", "CU", "parameters", "time"), [*rows, *theirs])]


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ("---", *("---:" for _ in header[1:])), *rows)]


def _songs(count: int) -> str:
    return "song" if count == 1 else "songs"
