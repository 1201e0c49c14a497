"""A student that says what its lesson says lands where its teacher lands, guided or not; phases train, stop and go on as trainings do."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from infra.errors import UserError
from infra.storage.place import Place
from model.checkpoint import Checkpoint, DatasetIdentity, LatentStatistics, load_checkpoint, save_checkpoint
from model.codec.base import CodecIdentity
from model.diffusion.distillation import lesson
from model.diffusion.objective import Denoiser, DiffusionLossConfig, Schedule
from model.diffusion.sampling import SamplerConfig, Sampling, sample, timesteps
from model.inference.network_runner import ThreadedEvaluator
from model.inference.windows import Lane, Window, denoise
from model.network.conditions import Conditions
from model.network.unet import PRESETS, AccompanimentUNet, UNetConfig, sized
from tests.tiny_latents import write_latents
from training.config import Distillation, TrainConfig
from training.data.batches import Batch
from training.data.teacher import Teacher
from training.run.distil import DistilConfig, phase_config
from training.run.loop import run
from training.state import read_metrics

SCHEDULE = Schedule()
NETWORK = UNetConfig(channels=(16, 32), vocal_blocks=(1, 1), heads=2, head_channels=16, time_channels=32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def bent(x_BCT: Tensor, t_B: Tensor) -> Tensor:
    """A teacher whose steps do not commute: v̂ is not linear in x and depends on t."""
    return torch.sin(3 * x_BCT + t_B.view(-1, 1, 1) / 100) + 0.5 * x_BCT.roll(1, dims=2)


def obedient(learn: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], steps: int) -> Denoiser:
    """The student whose v̂ is its lesson's."""
    places = {t: place for place, t in enumerate(timesteps(SCHEDULE, steps))}

    def denoiser(x_BCT: Tensor, t_B: Tensor) -> Tensor:
        return SCHEDULE.velocity(*learn(x_BCT, torch.tensor([places[int(t)] for t in t_B])), t_B)

    return denoiser


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("steps", [1, 2, 4, 16, 100])
def test_an_obedient_student_makes_what_its_teacher_makes(steps: int, dtype: torch.dtype, tolerance: float) -> None:
    noise = normal(1, 3, 4, 9, dtype=dtype)
    student = obedient(lambda x_BCT, place_B: lesson(bent, SCHEDULE, x_BCT, place_B, steps), steps)
    wanted = sample(bent, noise, SCHEDULE, SamplerConfig(solver="ddim", steps=2 * steps))
    made = sample(student, noise, SCHEDULE, SamplerConfig(solver="ddim", steps=steps))
    torch.testing.assert_close(made, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


def test_samples_of_a_lesson_may_be_at_different_places() -> None:
    x, place = normal(1, 4, 2, 5), torch.tensor([3, 0, 1, 3])
    together = lesson(bent, SCHEDULE, x, place, 4)
    for row in range(4):
        alone = lesson(bent, SCHEDULE, x[row : row + 1], place[row : row + 1], 4)
        for one, of_all in zip(alone, together, strict=True):
            torch.testing.assert_close(one, of_all[row : row + 1])
    t = torch.tensor(timesteps(SCHEDULE, 4))[place]
    torch.testing.assert_close(SCHEDULE.add_noise(*together, t), x)


def tiny_checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    unet = AccompanimentUNet(NETWORK)
    torch.nn.init.normal_(unet.output.weight, std=0.05)
    torch.nn.init.normal_(unet.null_vocal_C)
    return checkpoint_of(unet, "any")


def checkpoint_of(unet: AccompanimentUNet, codec_sha256: str) -> Checkpoint:
    flat, unit = (0.0,) * 64, (1.0,) * 64
    return Checkpoint(
        name="teacher",
        network=unet.config,
        state=unet.state_dict(),
        statistics=LatentStatistics(vocal_mean=flat, vocal_std=unit, accompaniment_mean=flat, accompaniment_std=unit, vocal_level_db=-20.0),
        codec=CodecIdentity(id="tiny", weights_sha256=codec_sha256),
        dataset=DatasetIdentity(uri="none", digest="0"),
        step=1,
        metrics={},
    )


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("padding", [0, 9])
def test_a_folded_student_makes_what_guided_generation_makes(guidance: float, padding: int) -> None:
    """Against the path of generation: evaluator, lane, two evaluations a step. Padding of a batch changes nothing, neither does rescale."""
    frames, steps, checkpoint = 23, 3, tiny_checkpoint()
    vocal_BCT, noise_BCT = normal(1, 1, 64, frames, dtype=torch.float32), normal(2, 1, 64, frames, dtype=torch.float32)
    evaluator = ThreadedEvaluator(checkpoint.build(), 1)
    vocal, null = evaluator.encode([vocal_BCT, None], frames)
    lane = Lane(
        windows=[Window(start=0, frames=frames, shared=0, settled=frames)],
        slope=1,
        condition=lambda _: (vocal, None if guidance == 1 else null),
        draw=lambda _: iter([noise_BCT]),
        schedule=SCHEDULE,
        sampler=SamplerConfig(solver="ddim", steps=2 * steps),
        guidance=guidance,
        rescale=0.7,
    )
    ((_, wanted_BCT),) = denoise([lane], evaluator)
    teacher = Teacher(checkpoint, Distillation(steps=steps, guidance=guidance, guidance_rescale=0.7), SCHEDULE)
    pad = torch.nn.functional.pad
    valid_BT = (torch.arange(frames + padding) < frames)[None]

    def learn(x_BCT: Tensor, place_B: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = SCHEDULE.rates(torch.tensor(timesteps(SCHEDULE, steps))[place_B], x_BCT)
        asked = Batch(
            vocal_BCT=pad(vocal_BCT, (0, padding)), valid_BT=valid_BT, t_B=place_B, drop_B=torch.tensor([False]),
            # αx and σx are the latent and the noise whose mixture is x itself
            accompaniment_BCT=alpha * x_BCT, noise_BCT=sigma * x_BCT, **vars(Conditions.none(1, frames + padding)),
        )  # fmt: skip
        taught = teacher.lesson(asked)
        assert torch.equal(taught.t_B, torch.tensor(timesteps(SCHEDULE, steps))[place_B])
        return taught.accompaniment_BCT, taught.noise_BCT

    made_BCT = sample(obedient(learn, steps), pad(noise_BCT, (0, padding), value=5.0), SCHEDULE, SamplerConfig(solver="ddim", steps=steps))
    torch.testing.assert_close(made_BCT[:, :, :frames], wanted_BCT, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A `small` network that says something."""
    torch.manual_seed(0)
    unet = AccompanimentUNet(PRESETS["small"]())
    torch.nn.init.normal_(unet.output.weight, std=0.03)
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    save_checkpoint(folder, checkpoint_of(unet, "c0dec" * 12))
    return str(folder)


def phase(data: str, teacher: str, out: Path, **changes) -> TrainConfig:
    settings = {
        "preset": "small", "workers": 0, "steps": 8, "batch_size": 4, "crop_frames": 16, "warmup_steps": 2, "validate_every": 4,
        "validation_timesteps": 2, "log_every": 2, "condition_dropout": 0.0, "loss": DiffusionLossConfig(weighting="uniform"),
        "learning_rate": 3e-4, "ema_decay": 0.9, "init": teacher, "distillation": Distillation(steps=2, guidance=2.0), **changes,
    }  # fmt: skip
    return TrainConfig(data=data, out=str(out), **settings)


def test_a_student_learns_and_says_how_it_is_sampled(data: str, teacher: str, tmp_path: Path) -> None:
    run(phase(data, teacher, tmp_path, steps=40, validate_every=20))
    student = load_checkpoint(tmp_path)
    assert student.sampling == Sampling(solver="ddim", steps=2, guidance=1.0)
    assert student.name.endswith("-in-2")
    assert student.statistics == load_checkpoint(Path(teacher)).statistics
    rows = [row for row in read_metrics(Place(str(tmp_path))) if "validation/loss" in row]
    assert {"validation/error_t799", "validation/error_t399"} < rows[0].keys()
    # The student begins as its teacher: whatever error is less than that one's is learned.
    untaught = run(phase(data, teacher, tmp_path / "untaught", steps=1, validate_every=1, learning_rate=1e-12)).metrics["validation/loss"]
    assert rows[-1]["validation/loss"] < rows[0]["validation/loss"] < untaught
    assert rows[-1]["validation/loss"] < 0.95 * untaught


def test_a_resumed_phase_equals_an_uninterrupted_one(data: str, teacher: str, tmp_path: Path) -> None:
    def interrupt(metrics: dict[str, float]) -> None:
        if metrics["step"] == 4:
            raise KeyboardInterrupt

    run(phase(data, teacher, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run(phase(data, teacher, tmp_path / "interrupted"), report=interrupt)
    assert run(phase(data, teacher, tmp_path / "interrupted")).step == 8
    whole, resumed = (
        safetensors.torch.load((tmp_path / name / "last" / "training_state.safetensors").read_bytes()) for name in ("whole", "interrupted")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_phases_halve_and_only_the_first_is_guided(teacher: str) -> None:
    config = DistilConfig(teacher=teacher, data="data", out="out", student_steps=2, first_steps=16, max_minutes=10.0)
    assert config.phases == [16, 8, 4, 2]
    first = phase_config(config, 0, load_checkpoint(Path(teacher)), Place(teacher))
    assert first.distillation == Distillation(steps=16, guidance=2.0)
    assert (first.preset, first.max_minutes, first.anneal_by_time) == ("small", 4.0, True)
    student = dataclasses.replace(load_checkpoint(Path(teacher)), sampling=Sampling(solver="ddim", steps=4, guidance=1.0))
    last = phase_config(dataclasses.replace(config, guidance=3.0), 3, student, Place("out/steps-4/best"))
    assert last.distillation == Distillation(steps=2, guidance=1.0)
    assert last.max_minutes == 2.0
    assert last.seed != first.seed
    assert DistilConfig(teacher="t", data="d", out="o", student_steps=4, first_steps=4).phases == [4]


@pytest.mark.parametrize(("preset", "depth", "width"), [("small", 4, 1.0), ("paper", 4, 1.0), ("small", 3, 0.7), ("paper", 5, 0.3)])
def test_a_teacher_of_any_size_is_found_again(teacher: str, preset: str, depth: int, width: float) -> None:
    network = sized(PRESETS[preset](), depth=depth, width=width)
    checkpoint = dataclasses.replace(load_checkpoint(Path(teacher)), network=network)
    config = DistilConfig(teacher=teacher, data="data", out="out")
    assert phase_config(config, 0, checkpoint, Place(teacher)).network == network
    foreign = dataclasses.replace(checkpoint, network=dataclasses.replace(network, window=3))
    with pytest.raises(UserError, match="of no preset"):
        phase_config(config, 0, foreign, Place(teacher))


@pytest.mark.parametrize(("student", "first"), [(4, 12), (4, 2), (3, 16)])
def test_steps_that_do_not_halve_are_refused(student: int, first: int) -> None:
    with pytest.raises(ValueError, match="doubled"):
        DistilConfig(teacher="t", data="d", out="o", student_steps=student, first_steps=first)


def test_a_lesson_needs_a_teacher() -> None:
    with pytest.raises(ValueError, match="without init"):
        TrainConfig(data="d", out="o", distillation=Distillation(steps=4, guidance=2.0))
    with pytest.raises(ValueError, match="below 1"):
        Distillation(steps=0, guidance=2.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps is 0, below 1"),
        ({"student_steps": 0}, "student_steps is 0, below 1"),
        ({"first_steps": 512, "student_steps": 4}, "give 400 or fewer"),
    ],
)
def test_wrong_settings_are_named_before_any_work(changes: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DistilConfig(teacher="t", data="d", out="o", **changes)  # type: ignore[arg-type]
