"""What a training run is: one frozen config, and experiments as functions that return a whole one."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter

from infra.cli.exit_codes import LISTED
from model.diffusion.objective import DiffusionLossConfig
from model.dimensions import SEGMENT_FRAMES
from model.network.conditions import CONTROLS
from model.network.unet import PRESETS, UNetConfig, sized, with_controls

# What a field left at 0 becomes. `paper` is the paper's training on a GPU (method: AdamW 3.5e-4, batch 16); `small` learns on two CPU
# cores in minutes: short crops, a higher rate, and an average of the weights that forgets within the run.
PRESET_VALUES: dict[str, dict[str, float]] = {
    "paper": {
        "steps": 100_000,
        "warmup_steps": 1_000,
        "learning_rate": 3.5e-4,
        "ema_decay": 0.9995,
        "crop_frames": SEGMENT_FRAMES,
        "validate_every": 1_000,
    },
    "small": {
        "steps": 2_000,
        "warmup_steps": 50,
        "learning_rate": 1.5e-3,
        "ema_decay": 0.99,
        "crop_frames": 256,
        "validate_every": 200,
    },
}

DataMode = Literal["auto", "memory", "stream"]


def _one_or_several(_: Any, tokens: Sequence[Any]) -> str | tuple[str, ...]:
    named = tuple(token.value for token in tokens)
    return named[0] if len(named) == 1 else named


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What the checkpoint that a training begins from teaches its student; `backline distil` sets it phase by phase."""

    steps: int
    """The student's; the teacher takes twice as many."""
    guidance: float
    """The teacher's, folded into the student."""
    guidance_rescale: float = 0.7

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"distillation.steps is {self.steps}, below 1: give the student's number of steps")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run; fields that are 0 take the preset's value, so that a config in hand is always whole."""

    data: Annotated[str | tuple[str, ...], Parameter(converter=_one_or_several, consume_multiple=True, n_tokens=-1, negative="")]
    """The latent dataset, a folder or an S3 URI; or several, each with a weight: URI[=WEIGHT] and again. A weight is a dataset's share of
    the samples that the network sees, whatever the dataset's size: `--data band=3 demo=1` draws three of four samples from band. Without
    one it is 1. All must hold latents of one codec."""
    out: str
    """The run's place: best/, last/, metrics.jsonl and, without a tracking server, mlflow.db."""
    preset: Literal["paper", "small"] = "paper"
    depth: int = 0
    """Levels of the network, each of half the frames of the one before."""
    width: float = 1.0
    """Factor on the channels of every level of the preset, in whole groups of the normalisation."""
    workers: int = 1
    """Ray Train workers; 0 runs the loop in this process, without Ray."""
    min_workers: int = 0
    """Elastic: begin and go on with as few workers as this when the cluster has no room for all; 0 waits for all of them."""
    resume: bool = False
    """Go on from the run at `out`; starts it if there is none."""
    init: str | None = None
    """A checkpoint, run or models:/NAME@ALIAS to begin from (fine-tuning): its weights and normalisation. None begins from the seed."""
    seed: int = 0

    steps: int = 0
    batch_size: int = 16
    """Segments a step over all workers."""
    micro_batch_size: int = 0
    """The most segments that a worker puts through the network at once; gradients accumulate over the rest. 0 = its whole share."""
    crop_frames: int = 0
    """Frames of each random crop; 1,024 is the whole segment."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto = bf16 where there is a GPU that has it, else float32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the step; auto = on a GPU."""

    data_mode: DataMode = "auto"
    """memory = each worker holds the split; stream = Ray Data sorts each epoch a whole one ahead; auto = memory where it fits."""

    learning_rate: float = 0.0
    warmup_steps: int = 0
    final_rate: float = 0.05
    """Share of the learning rate at which cosine annealing ends."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    ema_decay: float = 0.0
    condition_dropout: float = 0.1
    """Share of samples that see no vocal, so that guidance has something to lean on."""
    controls: Annotated[tuple[str, ...], LISTED] = ()
    """What the network learns to follow beside the vocal, where the data know it: style, chords, beats. None adds nothing to it."""
    styles: Annotated[tuple[str, ...], LISTED] = ()
    """Names of the styles that it learns; by default those of the checkpoint it begins from, else of the training songs."""
    control_dropout: float = 0.4
    """Share of the samples from which each control is hidden, independently, so that any of them may be left out."""
    loss: DiffusionLossConfig = field(default_factory=DiffusionLossConfig)
    distillation: Distillation | None = None
    """Learn from `init` as a teacher instead of from the latents alone."""

    validate_every: int = 0
    validation_segments: int = 64
    """At most this many held-out segments, evenly spread over the split."""
    validation_timesteps: int = 4
    """Fixed timesteps of each held-out crop."""
    patience: int = 0
    """Validations without improvement before the run stops; 0 = never."""
    max_minutes: float = 0.0
    """Stop cleanly, saved, after so much training time, counted over resumes; 0 = no limit."""
    anneal_by_time: bool = False
    """Let the annealing follow the minutes too, so that a run cut by `max_minutes` has annealed (and depends on the machine's speed)."""
    log_every: int = 10
    save_every: int = 0
    """Steps between saves beside those at each validation; 0 = none."""

    codec: str | None = None
    """Codec for the sample audio, when the dataset's codec id does not name it."""
    experiment: str = "backline"
    """Experiment name in MLflow."""
    samples: int = 1
    """Held-out vocals, always the same, whose accompaniments are generated and logged; at most 10 s of each."""
    samples_every: int = 5
    """Validations between these, beside those at the end; 0 = only at the end."""
    register: str | None = "backline"
    """Model in MLflow's registry of which the best checkpoint becomes a version; "" = none."""
    max_failures: int = 2
    """Lost workers that Ray Train replaces, going on from the last save."""

    def __post_init__(self) -> None:
        datasets_of(self.data)  # says what is wrong with them
        if unknown := [name for name in self.controls if name not in CONTROLS]:
            raise ValueError(f"controls holds {', '.join(unknown)}: choose among {', '.join(CONTROLS)}")
        object.__setattr__(self, "controls", tuple(name for name in CONTROLS if name in self.controls))
        if self.preset not in PRESET_VALUES:
            raise ValueError(f"preset is {self.preset!r}, which is not one of {', '.join(PRESET_VALUES)}: choose one of these")
        for name, value in PRESET_VALUES[self.preset].items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, type(getattr(self, name))(value))
        if self.depth == 0:
            object.__setattr__(self, "depth", len(PRESETS[self.preset]().channels))
        sized(PRESETS[self.preset](), depth=self.depth, width=self.width)  # says what is wrong with them
        if self.data_mode not in get_args(DataMode):
            raise ValueError(f"data_mode is {self.data_mode!r}, which is not one of {', '.join(get_args(DataMode))}: choose one of these")
        counts = ("steps", "batch_size", "crop_frames", "validate_every", "validation_segments", "validation_timesteps", "log_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, below 1: give a positive number, or leave it out")
        for name in (
            "workers",
            "min_workers",
            "micro_batch_size",
            "warmup_steps",
            "patience",
            "save_every",
            "samples",
            "samples_every",
            "max_failures",
            "max_minutes",
            "seed",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, below 0: give 0 or more")
        if not self.register:
            object.__setattr__(self, "register", None)
        elif set(self.register) & set("/:@"):
            raise ValueError(f"register is {self.register!r}, a model's name has no / : or @: choose another name, for example backline")
        if self.crop_frames > SEGMENT_FRAMES:
            raise ValueError(f"crop_frames is {self.crop_frames}, over the {SEGMENT_FRAMES} of a segment: give at most that")
        if self.workers > self.batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} leaves some of {self.workers} workers nothing: give at most one worker a segment"
            )
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, above the {self.workers} workers: give at most that")
        for name in ("condition_dropout", "control_dropout", "ema_decay", "final_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, outside [0.0, 1.0): choose a share inside")
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, not above 0: give a positive number")
        if self.distillation is not None and self.init is None:
            raise ValueError("distillation is set without init: give the checkpoint that teaches")
        if self.anneal_by_time and not self.max_minutes:
            raise ValueError("anneal_by_time is set without max_minutes: give the minutes that the annealing should follow")

    @property
    def data_names(self) -> str:
        """The datasets as a message names them."""
        return self.data if isinstance(self.data, str) else " ".join(self.data)

    @property
    def micro_batch(self) -> int:
        """The most segments that go through the network at once."""
        return self.micro_batch_size or self.batch_size

    @property
    def network(self) -> UNetConfig:
        """The sizes of the network."""
        plain = sized(PRESETS[self.preset](), depth=self.depth, width=self.width)
        return with_controls(plain, styles=self.styles, controls=self.controls) if self.controls else plain

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def hash(self) -> str:
        """Eight hex digits of the recipe. Not in them: the dataset, how long it runs, where it is written, how it is watched."""
        usual = before_sizes(self.preset)  # the hashes of these are older than the fields
        values = {name: value for name, value in self.to_dict().items() if name not in WATCHING and (name, value) not in usual.items()}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def datasets_of(data: str | Sequence[str]) -> list[tuple[str, float]]:
    """(URI, weight) of each dataset that `data` names. ValueError for none, one that is named twice, or a weight that is not above 0."""
    found = [parse_dataset(spec) for spec in ([data] if isinstance(data, str) else data)]
    if not found:
        raise ValueError("data names no dataset: give at least one")
    uris = [uri for uri, _ in found]
    if twice := {uri for uri in uris if uris.count(uri) > 1}:
        raise ValueError(f"data names {min(twice)} twice: name it once, with a larger weight")
    return found


def parse_dataset(spec: str) -> tuple[str, float]:
    """URI and weight of `URI[=WEIGHT]`; what follows an equals sign and is no number is the URI's own. ValueError for a weight that is not
    above 0."""
    uri, equals, weight = spec.rpartition("=")
    try:
        number = float(weight)
    except ValueError:
        return spec, 1.0
    if not equals:
        return spec, 1.0  # a folder whose name is a number
    if not (uri and 0 < number < math.inf):
        raise ValueError(f"data is {spec}, whose weight is not above 0: give for example {uri or 'latents'}=1")
    return uri, number


def named_dataset(uri: str, weight: float) -> str:
    """Inverse of `parse_dataset`."""
    return uri if weight == 1 and parse_dataset(uri) == (uri, 1.0) else f"{uri}={weight!r}"


# Fields that may differ between a run and its resumption: how long, how many hands, how it is watched.
WATCHING = (
    "out", "data", "init", "workers", "min_workers", "resume", "micro_batch_size", "compile", "max_minutes", "patience", "log_every",
    "save_every", "codec", "experiment", "samples", "samples_every", "register", "max_failures", "data_mode",
)  # fmt: skip
MAY_CHANGE = (*WATCHING, "steps", "validate_every", "validation_segments", "anneal_by_time")


def before_sizes(preset: str) -> dict[str, Any]:
    """The values, in runs that were saved before they could be chosen, of the network's sizes and controls."""
    return {"depth": len(PRESETS[preset]().channels), "width": 1.0, "controls": (), "styles": (), "control_dropout": 0.4}


def size_name(given: Mapping[str, Any]) -> str:
    """The preset, and what of its sizes was changed; `given`: a config as a dictionary."""
    usual = before_sizes(given["preset"])
    depth, width = (given.get(name, usual[name]) for name in ("depth", "width"))
    levels = f" of {depth} levels" if depth != usual["depth"] else ""
    return f"{given['preset']}{levels}" + (f", {width:g} times as wide" if width != 1 else "")


def paper(*, data: str, out: str, workers: int = 1) -> TrainConfig:
    """The paper's network and training (method.md, Training): for GPUs."""
    return TrainConfig(data=data, out=out, preset="paper", workers=workers, patience=20)


def small_demo(*, data: str, out: str, max_minutes: float = 4.0, workers: int = 1, resume: bool = False) -> TrainConfig:
    """A few minutes on two CPU cores over the demo corpus, annealed to whatever the machine manages in that time."""
    return TrainConfig(
        data=data,
        out=out,
        preset="small",
        workers=workers,
        max_minutes=max_minutes,
        anneal_by_time=True,
        resume=resume,
        log_every=20,
        validate_every=100,
    )
