"""`evaluate`: how well generated accompaniments fit held-out vocals, with the rows beside them that say what a figure means.

A latent dataset keeps no audio: vocals and real accompaniments are decoded from their latents, so that every row went through the
codec once. Rows that game a metric (a copy of the vocal) are there to be seen. Reasons: infra/decisions/0015-evaluation.md.

Shapes: C channels, N samples, T frames.
"""

import logging
from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

from infra.audio import files as audio_files
from infra.resolve import checkpoint_place
from infra.settings import Settings
from infra.storage.place import Place
from infra.tracking.tracking import RunHandle, Tracker, open_run, read_handle, store_of
from model.checkpoint import Checkpoint
from model.dimensions import SAMPLE_RATE_HZ
from model.inference.gain import mix, within_full_scale
from model.network.unet import count_parameters
from training.evaluation import plots as figures
from training.evaluation.config import EvaluateConfig
from training.evaluation.following import FollowingRow, note_of
from training.evaluation.markdown import markdown
from training.evaluation.material import Loaded, embedded_references, load, play_all, retrieve
from training.evaluation.measures import GENERATED, OTHER, RETRIEVED
from training.evaluation.playing import Band, Costs, Player, other_players
from training.evaluation.report import Absent, Distances, EvaluationReport
from training.evaluation.rows import HeldOut, baseline_rows, claim_rows, decode_row, round_trip, strangers
from training.evaluation.scoring import Clock, Scoring
from training.evaluation.truth import TruthReader

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig, *, called: str = "evaluation", truths: TruthReader | None = None) -> EvaluationReport:
    """Scores a checkpoint on held-out segments, beside its baselines; writes the tables and some audio, and logs all to MLflow.

    called: under which name in the run, of which one may have several. truths: what is known of a segment beside its sound; by default what
    the dataset holds of composed songs.

    Raises: UserError or ModelError when checkpoint, dataset and codec do not belong together, nothing is held out, or what was asked for
    cannot be had.
    """
    settings, clock = Settings.from_environment(), Clock()
    place, data, out = checkpoint_place(config.checkpoint, settings), Place(config.data), Place(config.out)
    with clock("load"):
        loaded = load(config, place, data, settings, truths)
    others = strangers(loaded.store, loaded.chosen, data)
    borrowed = {other_store.song_ids[row] for other_store, row in others}
    costs = Costs()
    pairs, generated = play_all(config, loaded, costs, clock)
    with clock("retrieve"):
        retrieved, why_not = retrieve(config, loaded, data, pairs, borrowed)
    players, absent = other_players(loaded.accompanist, loaded.student, config.generation, config.rows)
    scoring = Scoring(loaded.embeddings, loaded.scorer, clock, adherence=config.apa)
    for index, (other_store, other_row) in enumerate(tqdm(others, desc="score", unit="segment", disable=None)):
        truth = loaded.truth(pairs[index])
        with clock("decode"):
            if other_store is loaded.store and other_row in loaded.chosen:
                other_CN = pairs[loaded.chosen.index(other_row)].real_CN
            else:
                other_CN = decode_row(other_store, other_row, loaded.codec, config.seconds, vocal=False)[0]
            found_CN = retrieved[index].decode() if retrieved else None
        rows: list[tuple[str, Band]] = [(name, Band(audio_CN=band_CN)) for name, band_CN in claim_rows(pairs, generated, index, other_CN)]
        if found_CN is not None:
            rows.append((RETRIEVED, Band(audio_CN=found_CN)))
        with clock("generate other rows"):
            rows += [(player.name, band) for player in players if (band := costs.play(player, pairs[index], truth)) is not None]
        if config.baselines:
            with clock("round trip"):
                baselines = baseline_rows(pairs, generated, index, round_trip(pairs[index].real_CN, loaded.codec))
                rows += [(name, Band(audio_CN=band_CN)) for name, band_CN in baselines]
        scoring.add(pairs[index], rows, truth)
    retrieved_songs = {found.song_id for found in retrieved}
    distances: tuple[Distances, ...] = ()
    if config.reference:
        with clock("reference"):
            references = embedded_references(data, config, loaded, borrowed | retrieved_songs)
        with clock("distances"):
            distances = scoring.distances(references)
    report = report_of(loaded, scoring, clock, pairs, place=place, data=data, out=out)
    report = replace(
        report,
        distances=distances[0] if distances else None,
        further_distances=distances[1:],
        costs=costs.rows(),
        segment_s=costs.segment_s(GENERATED),
        absent=(*absent, *why_not, *unknown_rows(players, costs), *absent_columns(config, report.following, distances)),
    )
    log.info("seconds: %s", ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in clock.stage_s.items()))
    files = write(report, out, pairs[: config.audio_files], generated)
    track(config, called, report, loaded.checkpoint, run_handle(place), data, out, settings, files)
    return report


def report_of(
    loaded: Loaded, scoring: Scoring, clock: Clock, pairs: list[HeldOut], *, place: Place, data: Place, out: Place
) -> EvaluationReport:
    """All of it but distances, costs and what is absent."""
    measured = scoring.measures
    return EvaluationReport(
        rows=scoring.rows(),
        songs=len(set(scoring.song_ids)),
        seconds=max(pair.vocal_CN.shape[1] for pair in pairs) / SAMPLE_RATE_HZ,
        checkpoint=place.uri,
        model=loaded.checkpoint.name,
        step=loaded.checkpoint.step,
        dataset=data.uri,
        out=out.uri,
        wins=float(np.mean([a.overall > b.overall for a, b in zip(measured[GENERATED], measured[OTHER], strict=True)])),
        advantage=scoring.advantage(GENERATED, OTHER),
        segments=scoring.segments(),
        following=scoring.following(),
        following_note=note_of([loaded.truth(pair) for pair in pairs]),
        aesthetics=scoring.aesthetics(),
        aesthetics_note=loaded.aesthetics_note,
        parameters=count_parameters(loaded.checkpoint.build("cpu")),
        device=device_name(),
        stage_s=dict(clock.stage_s),
    )


def unknown_rows(players: list[Player], costs: Costs) -> list[Absent]:
    """Rows that no segment could be played for."""
    played = {row.name for row in costs.rows()}
    return [
        Absent(what=player.name, why="of these segments nothing is known that could be given")
        for player in players
        if player.name not in played
    ]


def absent_columns(config: EvaluateConfig, following: tuple[FollowingRow, ...], distances: tuple[Distances, ...]) -> list[Absent]:
    """Columns that a reader of the field looks for."""
    absent = []
    if all(row.chords is None for row in following):
        absent.append(Absent(what="agreement with chords", why="of these segments no chords are known as composed"))
    if not distances:
        return [*absent, Absent(what="Fréchet distance, KAD and APA", why="not asked for (--reference 0)")]
    for known, flag in (("clap", "clap"), ("musicnn", "musicnn:FILE")):
        if not any(table.embedding.startswith(known) for table in distances):
            absent.append(Absent(what=f"Fréchet distance, KAD and APA in {known}", why=f"not asked for (--embedding {flag})"))
    if not config.apa:
        absent.append(Absent(what="APA", why="not asked for (--no-apa)"))
    elif all(row.apa is None for table in distances for row in table.rows):
        absent.append(Absent(what="APA", why="the reference holds a single song, whose vocal has no other's band to be mixed with"))
    return absent


def sounds_of(pair: HeldOut, generated_CN: np.ndarray) -> dict[str, np.ndarray]:
    """What is written of a pair, none of it above full scale."""
    alone = {"vocal": pair.vocal_CN, "real": pair.real_CN, "generated": generated_CN}
    return {name: within_full_scale(audio_CN) for name, audio_CN in alone.items()} | {"mix": mix(pair.vocal_CN, generated_CN)[2]}


def write(report: EvaluationReport, out: Place, pairs: list[HeldOut], generated: list[np.ndarray]) -> dict[str, bytes]:
    """Writes tables, audio and pictures, and returns them by their names below `out`."""
    files = {"evaluation.json": report.to_json().encode(), "evaluation.md": markdown(report).encode()}
    for pair, generated_CN in zip(pairs, generated, strict=False):
        sounds = sounds_of(pair, generated_CN)
        files |= {f"audio/{pair.name}-{name}.wav": audio_files.encode(audio_CN, "wav") for name, audio_CN in sounds.items()}
        files[f"{pair.name}.png"] = figures.spectrograms(sounds)
    for name, content in files.items():
        (out / name).write_bytes(content)
    return files


def track(
    config: EvaluateConfig, called: str, report: EvaluationReport, checkpoint: Checkpoint, handle: RunHandle | None, data: Place,
    out: Place, settings: Settings, files: dict[str, bytes],
) -> None:  # fmt: skip
    """Adds all figures and what was written to the training's run, or to a run of its own."""
    if handle is not None and handle.run_id is None and not handle.key:  # of a time when a server that was away left nothing to find
        handle = None
    if handle is None:
        store = store_of(out, settings.mlflow_tracking_uri)
        tracker = open_run(store, experiment=config.experiment, name=f"evaluate {checkpoint.name}", run=out, source="backline evaluate")
        tracker.dataset(name=data.name, digest=checkpoint.dataset.digest, uri=data.uri, context="evaluation")
    else:
        tracker = Tracker(handle, out, repeats=True)
    tracker.metrics({f"{called}/{name}": value for name, value in report.metrics().items()}, report.step)
    for name, content in files.items():  # not the folder: a run of its own has its store in there
        tracker.content(content, f"{called}/{name}")
    if handle is None:
        tracker.end("FINISHED")
    else:
        tracker.close()


def run_handle(place: Place) -> RunHandle | None:
    """The MLflow run of a training, from the place of the run or of its checkpoint."""
    return read_handle(place) or read_handle(Place(place.uri.rsplit("/", 1)[0], place.access))


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
