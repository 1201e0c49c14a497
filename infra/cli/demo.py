"""`backline demo`: the whole path on this machine, from a corpus to one accompaniment over HTTP, and a page about it."""

import io
import json
import socket
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
from cyclopts import Parameter

from infra.audio import files as audio_files
from infra.cli.demo_page import DemoReport, Sound, StageTime, write_report
from infra.cluster import connect

if TYPE_CHECKING:
    from training.evaluation.evaluate import EvaluationReport
    from training.run.launch import TrainResult

STAGES = 6
# Far from the corpus's own seeds: no stage has seen this song.
UNSEEN_SEED = 900
REQUEST_SEED = 7
REQUEST_TIMEOUT_S = 300.0
BIN = Path(sys.executable).parent


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo makes and where."""

    out: Path = Path("runs/demo")
    """Everything goes here; a second run reuses what is there."""
    songs: int = 12
    """Songs of the demo corpus to train on; one in ten is held out."""
    minutes: float = 5.0
    """Training stops after this long at the latest."""
    seed: int = 3_000
    """Seed of the corpus's first song. (The shipped weights were trained on seeds 1000 to 1199 and 2000 to 2175.)"""

    def __post_init__(self) -> None:
        if not 2 <= self.songs <= 10_000:
            raise ValueError(f"--songs {self.songs}: at least 2 (one is held out) and at most 10000")
        if "s3:" in str(self.out):
            raise ValueError(f"--out {self.out}: the demo writes to a folder of this machine")
        if self.minutes <= 0:
            raise ValueError(f"--minutes {self.minutes}: must be positive")
        if self.seed <= UNSEEN_SEED < self.seed + self.songs:
            raise ValueError(f"--seed {self.seed}: the corpus would hold song {UNSEEN_SEED}, which the demo keeps unseen; use 3000 or more")


@dataclass
class Stages:
    """Prints each stage as it starts and ends, and remembers what it took."""

    times: list[StageTime] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, doing: str) -> Iterator[list[str]]:
        """Times the block; what the block appends to the yielded list is its note."""
        say(f"[{len(self.times) + 1}/{STAGES}] {name}: {doing}")
        notes: list[str] = []
        began = time.monotonic()
        yield notes
        seconds = time.monotonic() - began
        self.times.append(StageTime(name=name, seconds=seconds, note="; ".join(notes)))
        say(f"      {seconds:.1f} s: {'; '.join(notes)}")


def demo(config: DemoConfig = DemoConfig()) -> int:
    """Everything on this machine: corpus, latents, training with MLflow, evaluation, HTTP service, a band for an unseen vocal."""
    out = config.out.expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    say(f"backline demo: a band for a vocal, from nothing, in {out}")
    stages = Stages()
    with stages.stage("corpus", f"{config.songs} songs, and one that no stage will see") as notes:
        vocal_file = make_corpus(config, out, notes)
    say("      starting Ray")
    with connect(include_dashboard=True) as cluster:
        say(f"      Ray dashboard while this runs: {cluster.dashboard_url or 'none'}")
        with stages.stage("prepare", "songs to latents with Ray Data") as notes:
            prepare_latents(out, notes)
        with stages.stage("train", f"preset small with Ray Train, at most {config.minutes:g} minutes") as notes:
            trained = train_network(config, out, notes)
        with stages.stage("evaluate", "held-out songs, beside the baselines") as notes:
            evaluation = evaluate_network(out, trained, notes)
        with stages.stage("serve", "Ray Serve, one vocal over HTTP") as notes:
            answer = ask_the_service(out, trained, vocal_file, notes)
    with stages.stage("report", "a page with players and pictures") as notes:
        report_file = write_demo_report(config, out, stages, trained, evaluation, answer)
        notes.append(str(report_file))
    say_where_to_look(out, report_file, trained)
    return 0


def make_corpus(config: DemoConfig, out: Path, notes: list[str]) -> Path:
    """Writes the training songs and the unseen one; the unseen song's vocal file."""
    from pipelines.corpus import CorpusConfig, write_corpus

    # What needs no install: the demo's songs, and so its figures, are the same on every machine.
    corpus = CorpusConfig(out=str(out / "corpus"), songs=config.songs, seed=config.seed, bank=("numpy",), voice=("numpy",))
    summary = write_corpus(corpus)
    write_corpus(replace(corpus, out=str(out / "unseen"), songs=1, seed=UNSEEN_SEED))
    notes.append(f"{summary.written} songs written, {summary.reused} reused")
    return next((out / "unseen").glob("*/vocals.wav"))


def prepare_latents(out: Path, notes: list[str]) -> None:
    from pipelines.run.prepare import PrepareConfig, prepare

    summary = prepare(PrepareConfig(source=f"demo:{out / 'corpus'}", out=str(out / "latents")))
    if summary.rejects:
        raise RuntimeError(f"demo songs were rejected: {'; '.join(summary.rejects)}")
    notes.append(
        f"{summary.prepared} songs encoded, {summary.already} already there; {summary.manifest.counts if summary.manifest else 'nothing'}"
    )


def train_network(config: DemoConfig, out: Path, notes: list[str]) -> "TrainResult":
    from training.config import small_demo
    from training.run.launch import train

    result = train(small_demo(data=str(out / "latents"), out=str(out / "train"), max_minutes=config.minutes, resume=True))
    notes.append(f"{result.step} steps, validation loss {result.metrics['validation_loss']:.3f}")
    return result


def evaluate_network(out: Path, trained: "TrainResult", notes: list[str]) -> "EvaluationReport":
    from training.evaluation.evaluate import EvaluateConfig, evaluate

    # Adherence and retrieval would add half a minute, and say little of four segments.
    report = evaluate(
        EvaluateConfig(
            checkpoint=trained.checkpoint, data=str(out / "latents"), out=str(out / "evaluation"), samples=4, apa=False, retrieval=0
        )
    )
    notes.append("fit " + ", ".join(f"{row.name} {row.overall:.2f}" for row in report.rows))
    return report


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the service sent back."""

    fit: dict[str, float]
    headers: dict[str, str]
    sounds: list[Sound]


def ask_the_service(out: Path, trained: "TrainResult", vocal_file: Path, notes: list[str]) -> Answer:
    """Starts the service, sends the vocal, writes vocal.wav, accompaniment.wav and mix.wav, stops the service."""
    from serving.deployments import ServeConfig, start

    service = start(ServeConfig(checkpoint=trained.checkpoint, port=free_port()))
    try:
        answered = httpx.post(
            f"{service.url}/v1/accompaniments",
            files={"vocal": ("vocal.wav", vocal_file.read_bytes(), "audio/wav")},
            data={"seed": str(REQUEST_SEED), "output": "stems", "candidates": "2"},
            timeout=REQUEST_TIMEOUT_S,
        )
    finally:
        service.stop()
    if answered.status_code != 200:
        raise RuntimeError(f"the service answered {answered.status_code}: {answered.text[:500]}")
    sounds = []
    with zipfile.ZipFile(io.BytesIO(answered.content)) as stems:
        for name in ("vocal", "accompaniment", "mix"):
            data = stems.read(f"{name}.wav")
            (out / f"{name}.wav").write_bytes(data)
            sounds.append(Sound(name=name, file=f"{name}.wav", samples_CN=audio_files.decode(data).samples_CN))
    check_audible(sounds[1])
    fit = json.loads(answered.headers["X-Backline-Fit"])
    notes.append(f"{answered.headers['Server-Timing']}; fit {fit['overall']:.2f}")
    return Answer(fit=fit, headers=dict(answered.headers), sounds=sounds)


def check_audible(sound: Sound) -> None:
    """Raises unless the accompaniment can be heard and changes over time: the demo must not end with silence or a hum."""
    halves = np.array_split(sound.samples_CN.mean(axis=0), max(1, sound.samples_CN.shape[1] // 22_050))
    rms_db = 20 * np.log10(np.array([np.sqrt(np.mean(half**2)) for half in halves]) + 1e-9)
    if np.median(rms_db) < -45 or np.std(rms_db) < 0.1:
        raise RuntimeError(
            f"the accompaniment is not audible music: level {np.median(rms_db):.1f} dBFS, changing by {np.std(rms_db):.2f} dB"
        )


def write_demo_report(
    config: DemoConfig, out: Path, stages: Stages, trained: "TrainResult", evaluation: "EvaluationReport", answer: Answer
) -> Path:
    """Writes report.html beside the sounds."""
    path = out / "report.html"
    write_report(
        path,
        DemoReport(
            sounds=answer.sounds,
            stages=stages.times,
            training_loss=trained.training_loss,
            validation_loss=trained.validation_loss,
            fit=answer.fit,
            evaluation_header=evaluation.header(),
            evaluation_rows=evaluation.cells(),
            facts={
                "songs": str(config.songs),
                "network": answer.headers["x-backline-model"],
                "seed": answer.headers["x-backline-seed"],
                "Server-Timing": answer.headers["server-timing"],
            },
            commands={
                "training runs in MLflow": mlflow_command(trained),
                "the service and its page": f"{BIN}/backline serve --checkpoint {out / 'train'}",
                "another vocal without a server": f"{BIN}/backline generate VOCAL.wav --checkpoint {out / 'train'} --out band.wav",
                "a Ray dashboard that stays": f"{BIN}/ray start --head --include-dashboard=true, then http://127.0.0.1:8265",
            },
        ),
        sample_rate_hz=44_100,
    )
    return path


def mlflow_command(trained: "TrainResult") -> str:
    """How to see the training run: MLflow's page over the local store, or the server it went to."""
    uri = trained.tracking_uri
    return f"{BIN}/mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else uri


def say_where_to_look(out: Path, report_file: Path, trained: "TrainResult") -> None:
    say("")
    say(f"Listen:   {out / 'mix.wav'} ({out / 'vocal.wav'} with {out / 'accompaniment.wav'})")
    say(f"Look:     {report_file}")
    say(f"MLflow:   {mlflow_command(trained)}  (then http://127.0.0.1:5000)")
    say(f"Serve:    {BIN}/backline serve --checkpoint {out / 'train'}  (then http://127.0.0.1:8000)")
    say("Nothing is left running.")


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def say(line: str) -> None:
    print(line, flush=True)
