"""What a sweep is: one frozen config, its trials, and experiments as functions that return a whole one.

Depth, width, loss and seed are trained, every combination a trial; guidance is no part of training, so each finished trial is scored
once for each of its values.
"""

import itertools
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from infra.cli.exit_codes import LISTED
from model.accompany import GenerationConfig
from model.diffusion.objective import DiffusionLossConfig
from model.diffusion.sampling import USUAL_SAMPLING
from training.config import TrainConfig

Weighting = Literal["min-snr", "uniform"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a sweep. Its name is that of its folder, so a sweep may grow."""

    depth: int
    width: float
    loss_weighting: Weighting
    seed: int

    @property
    def name(self) -> str:
        return f"depth-{self.depth}-width-{self.width:g}-{self.loss_weighting}-seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Which trainings are compared, on what budget each, and how they are scored."""

    data: str
    """The latent dataset: a folder or an S3 URI."""
    out: str
    """Place of trials/, sweep.json, sweep.md, loss-against-fit.png and, without a tracking server, mlflow.db."""
    preset: Literal["paper", "small"] = "small"
    depth: Annotated[tuple[int, ...], LISTED] = (0,)
    """Levels of the network, for example 2,3,4,5; 0 = the preset's."""
    width: Annotated[tuple[float, ...], LISTED] = (1.0,)
    """Factors on the channels of every level, for example 0.5,1."""
    loss_weighting: Annotated[tuple[Weighting, ...], LISTED] = ("min-snr",)
    """How the loss weighs the timesteps."""
    guidance: Annotated[tuple[float, ...], LISTED] = (USUAL_SAMPLING.guidance,)
    """Scales of guidance at which each finished trial is scored; 1 is none."""
    seed: Annotated[tuple[int, ...], LISTED] = (0,)
    """Several say how much of a difference is chance."""

    steps: int = 0
    """Of each trial; 0 = the preset's."""
    max_minutes: float = 0.0
    """Training time of each trial, whose annealing follows it; 0 = no limit."""
    batch_size: int = 16
    crop_frames: int = 0
    """Frames of each random crop; 0 = the preset's."""
    learning_rate: float = 0.0
    """0 = the preset's."""
    validate_every: int = 0
    """Steps between validations, at which a trial may be pruned; 0 = the preset's."""

    prune: bool = True
    """Stop a trial whose validation loss is not among the better half when it comes to a rung: `grace` of its budget, and each doubling."""
    grace: float = 0.25
    """Share of its budget that every trial gets."""
    concurrent: int = 0
    """Trials at a time; 0 = one a GPU, else one for two CPU cores."""
    samples: int = 8
    """Held-out segments on which each finished trial is scored."""
    seconds: float = 24.0
    """Length of each; 0 = all of it."""
    sampling_steps: int = 0
    """Denoising steps of those; 0 = the checkpoint's own."""
    codec: str | None = None
    """Codec, when the dataset's codec id does not name it."""
    experiment: str = "backline"
    """Experiment name in MLflow."""
    max_failures: int = 2
    """Times that a trial whose process dies goes on from its last save."""

    def __post_init__(self) -> None:
        for name in ("depth", "width", "loss_weighting", "guidance", "seed"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} is empty: give at least one value, or leave it out")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} is {', '.join(map(str, values))}, with a value twice: give each once")
        for name in ("concurrent", "max_failures"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, below 0: give 0 or more")
        if not 0 < self.grace < 1:
            raise ValueError(f"grace is {self.grace}, not between 0 and 1: give the share of its budget that every trial gets")
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}, below 1: give the number of held-out segments to score")
        if self.seconds and self.seconds < 4:
            raise ValueError(f"seconds is {self.seconds}, too short to hear a fit: give 4 or more, or 0 for whole segments")
        for name in ("width", "guidance"):
            if written := _alike([(f"{value:g}", value) for value in getattr(self, name)]):
                raise ValueError(
                    f"{name} is {written[0]!r} and {written[1]!r}, which are both {written[0]:g} in a folder's name: give values that "
                    "differ in their first six digits"
                )
        for guidance in self.guidance:
            self.generation(guidance)
        # This also says what is wrong with a size or a setting before anything is trained.
        networks = [((self.training(trial).network, trial.loss_weighting, trial.seed), trial.width) for trial in self.trials]
        if same := _alike(networks):
            raise ValueError(
                f"width is {same[0]:g} and {same[1]:g}, which make the same network, for its channels come in whole groups: give widths "
                "that lie further apart, for example 0.5 and 1"
            )
        if len(self.trials) == 1 and len(self.guidance) == 1:
            raise ValueError("nothing varies in this sweep: give several values of one thing at least, for example --depth 2,3,4,5")

    @property
    def trials(self) -> list[Trial]:
        """Every combination, in the order given."""
        usual = TrainConfig(data=self.data, out=self.out, preset=self.preset).depth
        every = itertools.product(self.depth, self.width, self.loss_weighting, self.seed)
        made = (Trial(depth=depth or usual, width=width, loss_weighting=loss, seed=seed) for depth, width, loss, seed in every)
        return list(dict.fromkeys(made))

    @property
    def compares_losses(self) -> bool:
        """Whether the trials' losses are of one kind; else the unweighted error is what is compared."""
        return len(self.loss_weighting) == 1

    def generation(self, guidance: float) -> GenerationConfig:
        return GenerationConfig(guidance=guidance, steps=self.sampling_steps or None)

    def training(self, trial: Trial) -> TrainConfig:
        """The training of one trial, in the process that asks for it."""
        return TrainConfig(
            data=self.data,
            out=f"{self.out.rstrip('/')}/trials/{trial.name}",
            preset=self.preset,
            depth=trial.depth,
            width=trial.width,
            loss=DiffusionLossConfig(weighting=trial.loss_weighting),
            seed=trial.seed,
            workers=0,
            resume=True,
            steps=self.steps,
            max_minutes=self.max_minutes,
            anneal_by_time=bool(self.max_minutes),
            batch_size=self.batch_size,
            crop_frames=self.crop_frames,
            learning_rate=self.learning_rate,
            validate_every=self.validate_every,
            codec=self.codec,
            experiment=self.experiment,
            samples=0,
            register=None,
        )


def _alike(named: Iterable[tuple[Hashable, float]]) -> tuple[float, float] | None:
    """The first two values of one name."""
    found: dict[Hashable, float] = {}
    for name, value in named:
        if name in found:
            return found[name], value
        found[name] = value
    return None


# What may differ between a sweep and its resumption: which trials, how they are scored beside what is scored already, how many at a time.
MAY_CHANGE = ("data", "out", "depth", "width", "loss_weighting", "guidance", "seed", "prune", "concurrent", "codec", "max_failures")


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of settings that another sweep at the same place had otherwise."""
    return [name for name in now if name not in MAY_CHANGE and before.get(name) != now[name]]


def depth_sweep(*, data: str, out: str, seed: tuple[int, ...] = (0,), steps: int = 600) -> SweepConfig:
    """The paper's observation, that deeper networks lower the loss without sounding better: every depth in full, for equal steps."""
    return SweepConfig(
        data=data, out=out, depth=(2, 3, 4, 5), seed=seed, guidance=(1.0, USUAL_SAMPLING.guidance), steps=steps, validate_every=100,
        prune=False,
    )  # fmt: skip


def guidance_sweep(*, data: str, out: str, steps: int = 0) -> SweepConfig:
    """One training, heard at five scales of guidance."""
    return SweepConfig(data=data, out=out, guidance=(1.0, 1.5, 2.0, 3.0, 5.0), steps=steps)
