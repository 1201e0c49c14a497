"""What a sweep found: a row a trial, loss against fit, and what both say, in words and as Markdown."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from model.metrics.set_distances import Interval
from training.evaluation import plots as figures
from training.evaluation.measures import GENERATED, means_over_songs
from training.evaluation.report import EvaluationReport, SegmentFit, bracketed
from training.sweep.config import Trial

SCHEMA_VERSION = 1
STATUSES = ("finished", "pruned", "failed", "stopped", "waiting")
# Of more trials than this all orders are too many to count.
EXACT_UP_TO = 8


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a trial's checkpoint fits at one scale of guidance."""

    guidance: float
    fit: Interval
    advantage: Interval | None
    """Over another song's band, segment by segment."""
    segments: tuple[SegmentFit, ...]

    @staticmethod
    def of(guidance: float, report: EvaluationReport) -> "Score":
        row = report.row(GENERATED)
        fit = Interval(value=row.mean.overall, low=row.low.overall, high=row.high.overall)
        return Score(guidance=guidance, fit=fit, advantage=report.advantage, segments=report.segments)


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One trial as it is now."""

    trial: Trial
    status: str
    """One of STATUSES; stopped: it was told to and goes on when the sweep is run again; waiting: not begun, or running."""
    reason: str
    parameters: int
    flops: int
    """Of one sample, forward and backward."""
    step: int
    minutes: float
    validation_loss: float | None
    """Of the best checkpoint, which is the one that is scored."""
    validation_error: float | None
    """The same, unweighted."""
    mlflow_run_id: str | None
    scores: tuple[Score, ...]
    trained: bool
    """Whether its training came to its end, by its own rules."""

    @staticmethod
    def of(document: dict[str, Any]) -> "TrialResult":
        """Inverse of `dataclasses.asdict`."""
        scores = tuple(
            Score(
                guidance=row["guidance"],
                fit=Interval(**row["fit"]),
                advantage=row["advantage"] and Interval(**row["advantage"]),
                segments=tuple(SegmentFit(**segment) for segment in row["segments"]),
            )
            for row in document["scores"]
        )
        trained = document.get("trained", document["status"] == "finished")  # the first sweeps did not say it
        return TrialResult(**{**document, "trial": Trial(**document["trial"]), "scores": scores, "trained": trained})

    def score(self, guidance: float) -> Score | None:
        return next((score for score in self.scores if score.guidance == guidance), None)


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """All trials, and what they were made from."""

    config: dict[str, Any]
    dataset: str
    dataset_digest: str
    weighted: bool
    """Whether trials are compared by their validation loss; else by the error without its weights."""
    trials: tuple[TrialResult, ...]
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "findings": findings(self)}, indent=1)

    @property
    def guidances(self) -> list[float]:
        return list(self.config["guidance"])

    @property
    def loss_name(self) -> str:
        return "validation loss" if self.weighted else "validation error, unweighted"

    def loss(self, result: TrialResult) -> float | None:
        return result.validation_loss if self.weighted else result.validation_error

    def label(self, trial: Trial) -> str:
        """What tells a trial from the others."""
        parts = {"depth": f"depth {trial.depth}", "width": f"width {trial.width:g}", "loss_weighting": trial.loss_weighting}
        parts |= {"seed": f"seed {trial.seed}"}
        varied = [part for name, part in parts.items() if len({getattr(other.trial, name) for other in self.trials}) > 1]
        return ", ".join(varied) or f"depth {trial.depth}"

    def points(self, guidance: float) -> list[tuple[TrialResult, float, Score]]:
        """The trials that were trained to the end, with loss and score; another guidance of theirs may still be to be heard."""
        found = [(result, self.loss(result), result.score(guidance)) for result in self.trials if result.trained]
        return [(result, loss, score) for result, loss, score in found if loss is not None and score is not None]


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's ρ; p: how often chance orders as strictly, either way."""

    rho: float
    p: float
    n: int


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> RankCorrelation | None:
    """None of fewer than three pairs, or where one side is all the same. p counts all orders of up to eight pairs."""
    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    x, y = scipy.stats.rankdata(one), scipy.stats.rankdata(other)
    rho = float(np.corrcoef(x, y)[0, 1])
    if len(one) > EXACT_UP_TO:
        return RankCorrelation(rho=rho, p=float(scipy.stats.spearmanr(one, other).pvalue), n=len(one))
    orders = np.array(list(itertools.permutations(y)))
    rhos = ((orders - y.mean()) @ (x - x.mean())) / (len(x) * x.std() * y.std())
    return RankCorrelation(rho=rho, p=float(np.mean(np.abs(rhos) >= abs(rho) - 1e-9)), n=len(one))


def paired(one: Sequence[Score], other: Sequence[Score]) -> Interval | None:
    """Fit of one group of trials less another's, over the same vocals; None where these are not the same."""
    songs = [[segment.song_id for segment in score.segments] for score in (*one, *other)]
    if not songs[0] or any(ids != songs[0] for ids in songs):
        return None
    ours, theirs = (np.mean([[segment.overall for segment in score.segments] for score in group], axis=0) for group in (one, other))
    value, low, high = (float(row[0]) for row in means_over_songs((ours - theirs)[:, None], songs[0]))
    return Interval(value=value, low=low, high=high)


def findings(report: SweepReport) -> list[str]:
    """What the figures say, a sentence a guidance and question."""
    said = []
    for guidance in report.guidances:
        points = report.points(guidance)
        at = f"At guidance {guidance:g}"
        found = rank_correlation([loss for _, loss, _ in points], [score.fit.value for _, _, score in points])
        if found is None:
            why = "loss or fit is the same in all" if len(points) >= 3 else "loss and fit can be ranked from three on"
            said.append(f"{at}: {len(points)} scored {'trial' if len(points) == 1 else 'trials'}; {why}.")
            continue
        way = f"a lower loss went with a {'better' if found.rho < 0 else 'worse'} fit" if found.p < 0.05 else "no connection is shown"
        said.append(f"{at}: rank correlation (Spearman) of loss and fit {found.rho:+.2f}, n = {found.n}, p = {found.p:.2f}: {way}.")
        said += deeper(report, at, points)
    return said


def deeper(report: SweepReport, at: str, points: list[tuple[TrialResult, float, Score]]) -> list[str]:
    """Of several depths: whether the deepest has the lower loss, and the better fit to the same vocals. Only trials that both depths have
    otherwise alike are compared."""
    depths = sorted({result.trial.depth for result, _, _ in points})
    if len(depths) < 2:
        return []
    groups = [{alike(point[0].trial): point for point in points if point[0].trial.depth == depth} for depth in (depths[0], depths[-1])]
    both = [rest for rest in groups[0] if rest in groups[1]]
    if not both:
        return []
    shallow, deep = ([group[rest] for rest in both] for group in groups)
    before, after = (float(np.mean([loss for _, loss, _ in group])) for group in (shallow, deep))
    gain = paired([score for _, _, score in deep], [score for _, _, score in shallow])
    if gain is None:
        return []
    songs = len({segment.song_id for segment in deep[0][2].segments})
    heard = "fits better" if gain.low > 0 else "fits worse" if gain.high < 0 else "is not shown to fit better or worse"
    if after >= before:
        verdict = (
            f"deeper did not lower the loss and {heard}, so the paper's observation (deeper lowers loss without better sound) cannot show"
        )
    elif gain.low > 0:
        verdict = "deeper lowered the loss and fits better, which is not the paper's observation (deeper lowers loss without better sound)"
    else:
        verdict = f"deeper lowered the loss and {heard}, as the paper observed (deeper lowers loss without better sound)"
    return [
        f"{at}, {depths[-1]} levels against {depths[0]}: {report.loss_name} {after:.4f} against {before:.4f}, fit {gain.value:+.3f} on the "
        f"same vocals (90% interval {gain.low:+.3f} to {gain.high:+.3f} over {songs} songs): {verdict}."
    ]


def alike(trial: Trial) -> tuple[float, str, int]:
    """All of a trial but its depth."""
    return trial.width, trial.loss_weighting, trial.seed


def markdown(report: SweepReport) -> str:
    """The whole page: what was found, the picture, the table."""
    counts = {status: sum(result.status == status for result in report.trials) for status in STATUSES}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    lines = [f"# Sweep: {len(report.trials)} trials of preset {report.config['preset']}, {told}", ""]
    lines += [line for sentence in findings(report) for line in (sentence, "")]
    lines += ["![loss against fit](loss-against-fit.png)", "", *table(report), ""]
    lines.append(
        f"Dataset {report.dataset} ({report.dataset_digest[:12]}). Loss and fit are of the trial's best checkpoint. Fit: overall, 0 to 1, "
        "of accompaniments generated for held-out vocals; in brackets 90% bootstrap intervals over songs. GFLOP: of one training sample, "
        "forward and backward." + (" Waiting: not begun, or running." if counts["waiting"] else "")
    )
    failed = [f"- {report.label(result.trial)}: {result.reason}" for result in report.trials if result.status == "failed"]
    return "\n".join([*lines, *(["", "Failed:", "", *failed] if failed else [])]) + "\n"


def picture(report: SweepReport) -> bytes:
    """loss-against-fit.png."""
    panels, notes = {}, {}
    for guidance in report.guidances:
        points, title = report.points(guidance), f"guidance {guidance:g}"
        panels[title] = [
            (report.label(result.trial), result.trial.depth, loss, (score.fit.value, score.fit.low, score.fit.high))
            for result, loss, score in points
        ]
        found = rank_correlation([loss for _, loss, _ in points], [score.fit.value for _, _, score in points])
        notes[title] = f"rank correlation {found.rho:+.2f}, n = {found.n}, p = {found.p:.2f}" if found else f"n = {len(points)}"
    return figures.loss_against_fit(panels, report.loss_name, notes)


def table(report: SweepReport) -> list[str]:
    header = ["trial", "parameters", "GFLOP", "steps", "minutes", report.loss_name]
    header += [f"fit at guidance {guidance:g}" for guidance in report.guidances] + ["ended"]
    rows = [header, ["---", *("---:" for _ in header[1:-1]), "---"]]
    for result in report.trials:
        loss = report.loss(result)
        cells = [report.label(result.trial), f"{result.parameters / 1e6:.2f} M", f"{result.flops / 1e9:.2f}", f"{result.step:,}"]
        cells += [f"{result.minutes:.1f}", "" if loss is None else f"{loss:.4f}"]
        scores = [result.score(guidance) for guidance in report.guidances]
        rows.append([*cells, *("" if score is None else bracketed(score.fit) for score in scores), result.status])
    return [f"| {' | '.join(row)} |" for row in rows]
