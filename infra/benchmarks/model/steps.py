"""How few steps will do: fit by solver and number of steps, and how far each result is from the many-step one.

`python infra/benchmarks/model/steps.py --data LATENTS --out DIR [--checkpoint RUN] [--students RUN/steps-4 …] [--songs 8] [--seconds 24]`
plays to vocals of the validation split, decoded from their latents. Prints each row when it is done; writes DIR/steps.md and
DIR/steps.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from infra.benchmarks.model.subject import machine

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint
    from model.codec.base import Codec
    from model.diffusion.sampling import Sampling
    from model.inference.network_runner import Evaluator
    from model.metrics.fit import Fit, Listener
    from model.network.unet import VocalFeatures

STEPS = (4, 8, 12, 20, 50, 800)
FIGURES = ("harmony", "rhythm", "overall", "leakage")
# How far apart two songs are needs no fine solution.
OTHER_SEED_STEPS = 20
NOTES = """
*Evaluations* of the network for one accompaniment: guidance takes two a step, a student one. *Overall, of the reference*: the mean over
that of DDIM's most steps ({reference:.3f}), with the standard error of the difference over songs. *To its own* and *to DDIM*: RMS in
normalised latents to the result of the same solver's most steps, and of DDIM's, from the same noise; in brackets relative to the distance
between the results for two seeds ({apart:.3f}), so that 1 is another song. DPM-Solver++ and DDIM follow one differential equation: their
distances are errors. The ancestral solver draws noise at every step: its results are other songs of the same distribution, its distances
say how far the noise has taken it and nothing of quality; fit does. A row without a student asks the checkpoint itself.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of sampling, over all songs; distances are None where there is nothing to be distant to."""

    name: str
    sampling: "Sampling"
    evaluations: int
    seconds: float
    """Of denoising, a song."""
    fits: tuple["Fit", ...]
    to_own: float | None
    to_ddim: float | None

    def mean(self, figure: str) -> float:
        return float(np.mean([getattr(fit, figure) for fit in self.fits]))


class Song:
    """A held-out vocal: what the network is told, and who hears its band."""

    def __init__(self, vocal_1CT: Tensor, listener: "Listener") -> None:
        """vocal_1CT: the codec's latent."""
        self.vocal_1CT, self.listener = vocal_1CT, listener
        self.frames = vocal_1CT.shape[2]


class Player:
    """A checkpoint that plays to songs, their vocals encoded once."""

    def __init__(self, checkpoint: "Checkpoint", songs: Sequence[Song]) -> None:
        from model.diffusion.objective import Schedule
        from model.inference.network_runner import evaluator_for

        self.checkpoint, self.songs = checkpoint, songs
        self.schedule = Schedule(steps=checkpoint.network.diffusion_steps)
        self.evaluator: Evaluator = evaluator_for(checkpoint.build())
        self.features = [self._features(song) for song in songs]

    def _features(self, song: Song) -> "list[VocalFeatures]":
        """With the vocal, and with none."""
        return self.evaluator.encode([self.checkpoint.statistics.normalise_vocal(song.vocal_1CT), None], song.frames)

    def play(self, sampling: "Sampling", rescale: float, *, seed: int = 0, step: Callable[[int], None]) -> list[Tensor]:
        """Normalised latents (1, C, T), one a song; step: told of each step."""
        from model.inference.windows import Lane, Window, denoise, noise

        made = []
        for index, (song, (vocal, null)) in enumerate(zip(self.songs, self.features, strict=True)):
            lane = Lane(
                windows=[Window(start=0, frames=song.frames, shared=0, settled=song.frames)],
                slope=1,
                condition=lambda _, vocal=vocal, null=null: (vocal, None if sampling.guidance == 1 else null),  # type: ignore[misc]
                draw=lambda window, index=index: noise(seed, index, 0, window.frames),  # type: ignore[misc]
                schedule=self.schedule,
                sampler=sampling,
                guidance=sampling.guidance,
                rescale=rescale,
            )
            ((_, latent_BCT),) = denoise([lane], self.evaluator, step)
            made.append(latent_BCT)
        return made


def distance(some_BCT: Sequence[Tensor], others_BCT: Sequence[Tensor]) -> float:
    """RMS, the mean over songs."""
    pairs = zip(some_BCT, others_BCT, strict=True)
    return float(np.mean([float((one_BCT - other_BCT).square().mean().sqrt()) for one_BCT, other_BCT in pairs]))


def held_out(arguments: argparse.Namespace, checkpoint: "Checkpoint", codec: "Codec") -> list[Song]:
    from infra.dataset.format import read_latents, read_manifest
    from infra.storage.place import Place
    from model.dimensions import FRAME_RATE_HZ
    from model.metrics.fit import Listener

    place = Place(arguments.data)
    if read_manifest(place).codec_weights_sha256 != checkpoint.codec.weights_sha256:
        sys.exit(f"{arguments.data} holds latents of another codec than {checkpoint.name} plays: prepare it with {checkpoint.codec.id}")
    store, songs = read_latents(place, "validation"), list[Song]()
    longest = np.argsort(-store.valid_frames_R, kind="stable")
    for row in sorted(longest[: arguments.songs]):
        frames = min(int(store.valid_frames_R[row]), int(arguments.seconds * FRAME_RATE_HZ))
        vocal_1CT = torch.from_numpy(store.vocal_RCT[row : row + 1, :, :frames].astype(np.float32))
        songs.append(Song(vocal_1CT, Listener(codec.decode(vocal_1CT)[0].numpy())))
    return songs


def line(row: Row, reference: Row, apart: float) -> str:
    def far(value: float | None) -> str:
        return "" if value is None else f"{value:.3f} ({value / apart:.2f})"

    share, wanted = "", reference.mean("overall")
    if wanted:
        differences = [fit.overall - known.overall for fit, known in zip(row.fits, reference.fits, strict=True)]
        error = np.std(differences, ddof=1) / len(differences) ** 0.5 / wanted if len(differences) > 1 else np.nan
        share = f"{100 * row.mean('overall') / wanted:.0f} ± {100 * error:.0f}%"
    fits = " | ".join(f"{row.mean(figure):.3f}" for figure in FIGURES)
    return (
        f"| {row.name} | {row.sampling.steps} | {row.evaluations} | {row.seconds:.2f} s | {fits} | {share} | "
        f"{far(row.to_own)} | {far(row.to_ddim)} |"
    )


@torch.inference_mode()
def measure(arguments: argparse.Namespace) -> tuple[list[str], list[Row]]:
    """Lines of the table, and what they say."""
    from model.accompany import GenerationConfig
    from model.checkpoint import SHIPPED_CHECKPOINT, load_checkpoint
    from model.codec.load import load_codec
    from model.diffusion.sampling import Sampling, Solver

    checkpoint = load_checkpoint(arguments.checkpoint or SHIPPED_CHECKPOINT)
    codec = load_codec(arguments.codec or checkpoint.codec.id)
    songs = held_out(arguments, checkpoint, codec)
    students = [load_checkpoint(folder) for folder in arguments.students]
    guidance = checkpoint.sampling.guidance if arguments.guidance is None else arguments.guidance
    rescale = GenerationConfig().guidance_rescale
    usual = Player(checkpoint, songs)
    solvers: list[Solver] = [solver for solver in get_args(Solver) if solver in arguments.solvers]
    # What students have learned is asked of the checkpoint too.
    counts = sorted({*arguments.steps, *(student.sampling.steps for student in students)}, reverse=True)
    # The most steps first: distances are measured to them.
    most = counts[0]
    asked = [Sampling(solver=solver, steps=steps, guidance=guidance) for solver in solvers for steps in counts]
    reference_sampling = Sampling(solver="ddim", steps=most, guidance=guidance)
    asked = [reference_sampling, *(sampling for sampling in asked if sampling != reference_sampling)]
    players = [(usual, sampling, str(sampling.solver)) for sampling in asked]
    players += [(Player(student, songs), student.sampling, f"student, {student.sampling.solver}") for student in students]

    limits: dict[str, list[Tensor]] = {}
    rows = list[Row]()
    lines = [
        f"{checkpoint.name}, guidance {guidance:g}; {len(songs)} held-out segments of at most {arguments.seconds:g} s of "
        f"{Path(arguments.data).name}; {machine()}\n",
        f"| solver | steps | evaluations | denoising | {' | '.join(FIGURES)} | overall, of the reference | to its own | to DDIM |",
        "|" + "---|" * (7 + len(FIGURES)),
    ]
    print("\n".join(lines), flush=True)
    total = (OTHER_SEED_STEPS + sum(sampling.steps for _, sampling, _ in players)) * len(songs)
    with tqdm(total=total, unit="step", disable=not sys.stderr.isatty()) as bar:

        def stepped(steps: int) -> None:
            bar.update(steps)

        other = usual.play(Sampling(steps=OTHER_SEED_STEPS, guidance=guidance), rescale, seed=1, step=stepped)
        apart = np.nan
        for player, sampling, name in players:
            start_s = time.perf_counter()
            made = player.play(sampling, rescale, step=stepped)
            seconds = (time.perf_counter() - start_s) / len(songs)
            if player is usual and sampling.steps == most:
                limits[sampling.solver] = made
            if not rows:
                apart = distance(made, other)
            restore = player.checkpoint.statistics.restore_accompaniment
            fits = [song.listener.fit(codec.decode(restore(latent))[0].numpy()) for song, latent in zip(songs, made, strict=True)]
            own = None if player is not usual or sampling.steps == most else distance(made, limits[sampling.solver])
            row = Row(
                name=name,
                sampling=sampling,
                evaluations=sampling.steps * (1 if sampling.guidance == 1 else 2),
                seconds=seconds,
                fits=tuple(fits),
                to_own=own,
                to_ddim=None if sampling == reference_sampling else distance(made, limits["ddim"]),
            )
            rows.append(row)
            lines.append(line(row, rows[0], apart))
            with tqdm.external_write_mode():
                print(lines[-1], flush=True)
    lines.append(NOTES.format(reference=rows[0].mean("overall"), apart=apart))
    return lines, rows


def main() -> None:
    from model.diffusion.sampling import Solver

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint's or a training run's folder; by default the one that ships")
    parser.add_argument("--data", help="a latent dataset; its validation split is played to", required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder for steps.md and steps.json")
    parser.add_argument("--students", type=Path, nargs="*", default=[], help="folders of students, each at its own steps")
    parser.add_argument("--songs", type=int, default=8, help="held-out segments, the longest ones")
    parser.add_argument("--seconds", type=float, default=24.0, help="of each, from its start; at least 4")
    parser.add_argument("--guidance", type=float, help="by default the checkpoint's own")
    parser.add_argument("--solvers", nargs="*", choices=get_args(Solver), default=list(get_args(Solver)))
    parser.add_argument("--steps", type=int, nargs="*", default=list(STEPS), help="the most of them is the reference")
    parser.add_argument("--codec", help="when the checkpoint's codec id does not name it")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines, rows = measure(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "steps.md").write_text("\n".join(lines))
    (arguments.out / "steps.json").write_text(json.dumps({"title": lines[0], "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    print(lines[-1])


if __name__ == "__main__":
    main()
