"""A vocal in, its band out, through the real embedded codec and a tiny network."""

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from model.accompany import (
    Accompanist,
    GenerationConfig,
    Request,
)
from model.checkpoint import Checkpoint, DatasetIdentity, LatentStatistics, load_checkpoint, save_checkpoint
from model.codec.base import CodecIdentity
from model.codec.load import load_codec
from model.controls import Controls, read_chords
from model.diffusion.sampling import Sampling
from model.errors import ModelError
from model.inference.gain import active_level_db, level_gain, mix, without_bumps
from model.inference.intonation import speed_into_tune, stretched
from model.inference.network_runner import BatchedEvaluator, Evaluation
from model.metrics.fit import NO_FIT, fit
from model.network.unet import AccompanimentUNet, UNetConfig, with_controls
from pipelines.stages.segment import SegmentConfig, voice

NETWORK = UNetConfig(channels=(16, 32), vocal_blocks=(1, 1), heads=2, head_channels=16, time_channels=32, bottleneck_blocks=1)
QUICK = GenerationConfig(steps=2, seed=5)
ROOT = Path(__file__).resolve().parents[2]


def tiny_checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    unet = AccompanimentUNet(NETWORK)
    torch.nn.init.normal_(unet.output.weight, std=0.05)
    torch.nn.init.normal_(unet.null_vocal_C)
    return Checkpoint(
        name="tiny",
        network=NETWORK,
        state=unet.state_dict(),
        statistics=LatentStatistics(
            vocal_mean=(0.0,) * 64,
            vocal_std=(1.0,) * 64,
            accompaniment_mean=(0.1,) * 64,
            accompaniment_std=(0.8,) * 64,
            vocal_level_db=-24.0,
        ),
        codec=load_codec("embedded").identity,
        dataset=DatasetIdentity(uri="test", digest="0"),
        step=1,
        metrics={},
    )


@pytest.fixture(scope="module")
def accompanist() -> Accompanist:
    return Accompanist(tiny_checkpoint(), load_codec("embedded"))


@pytest.fixture(scope="module", params=["threads", "slots"])
def windowed(request: pytest.FixtureRequest) -> Accompanist:
    """Windows of 32 frames (1.5 s), so that a few seconds are a long song; evaluated as on a CPU, and as on an accelerator."""
    checkpoint, options = tiny_checkpoint(), {"window_frames": 32, "overlap_frames": 8, "slope_frames": 4}
    slots = BatchedEvaluator(checkpoint.build(), 4, lengths=(16, 32), bfloat16=False)
    return Accompanist(checkpoint, load_codec("embedded"), evaluator=slots if request.param == "slots" else None, **options)


def vocal(samples: int, level: float = 0.1) -> np.ndarray:
    """Notes with gaps."""
    time_N = np.arange(samples) / 44_100
    pitch_hz = 220 * 2 ** (np.array([0, 4, 7, 4, 5, 9, 7, 2])[(time_N * 2).astype(int) % 8] / 12)
    phase_N = 2 * np.pi * np.cumsum(pitch_hz) / 44_100
    voice_N = level * np.clip(8 * (0.5 - time_N % 0.5), 0, 1) * sum(np.sin(k * phase_N) / k for k in range(1, 5))
    return np.stack([voice_N, 0.9 * voice_N]).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 4_410, 100_001, 220_500])
def test_any_length_gives_as_much(accompanist: Accompanist, samples: int) -> None:
    made = accompanist.accompany(vocal(samples), QUICK)
    assert made.audio_CN.shape == (2, samples)
    assert made.audio_CN.dtype == np.float32
    assert np.isfinite(made.audio_CN).all()
    assert set(made.stage_s) == {"encode", "diffuse", "render", "fit"}
    assert made.seed == 5
    if samples > 4_410:
        assert made.audio_CN.std() > 1e-3


@pytest.mark.parametrize("samples", [33 * 2_048, 100 * 2_048 - 7])
def test_longer_than_a_window(windowed: Accompanist, samples: int) -> None:
    made = windowed.accompany(vocal(samples), replace(QUICK, candidates=2))
    assert made.audio_CN.shape == (2, samples)
    assert len(made.candidate_fits) == 2


def test_the_same_request_gives_the_same_audio_in_another_process(accompanist: Accompanist, tmp_path: Path) -> None:
    here = accompanist.accompany(vocal(60_000), QUICK).audio_CN
    save_checkpoint(tmp_path / "checkpoint", tiny_checkpoint())
    np.save(tmp_path / "vocal.npy", vocal(60_000))
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from model.accompany import Accompanist, GenerationConfig\n"
        "from model.checkpoint import load_checkpoint\n"
        "from model.codec.load import load_codec\n"
        "folder = Path(sys.argv[1])\n"
        "accompanist = Accompanist(load_checkpoint(folder / 'checkpoint'), load_codec('embedded'))\n"
        f"config = GenerationConfig(steps={QUICK.steps}, seed={QUICK.seed})\n"
        "np.save(folder / 'audio.npy', accompanist.accompany(np.load(folder / 'vocal.npy'), config).audio_CN)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=ROOT, timeout=300)
    assert np.array_equal(here, np.load(tmp_path / "audio.npy"))


def test_the_same_request_twice_and_after_a_reload(accompanist: Accompanist, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", tiny_checkpoint())
    reloaded = Accompanist(load_checkpoint(tmp_path / "checkpoint"), load_codec("embedded"))
    first = accompanist.accompany(vocal(60_000), QUICK).audio_CN
    accompanist.accompany(vocal(80_000), replace(QUICK, seed=9))
    assert np.array_equal(first, accompanist.accompany(vocal(60_000), QUICK).audio_CN)
    assert np.array_equal(first, reloaded.accompany(vocal(60_000), QUICK).audio_CN)
    assert not np.array_equal(first, accompanist.accompany(vocal(60_000), replace(QUICK, seed=6)).audio_CN)


@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddim", "ancestral"])
def test_a_candidate_has_the_same_bits_alone_and_among_others(windowed: Accompanist, solver: str) -> None:
    sung_CN, config = vocal(220_500), replace(QUICK, solver=solver)
    alone = windowed.accompany(sung_CN, config)
    together = windowed.accompany(sung_CN, replace(config, candidates=3))
    assert together.candidate_fits[0] == alone.fit
    assert len({candidate.harmony for candidate in together.candidate_fits}) == 3  # and candidates differ


def test_a_request_has_the_same_bits_alone_and_in_a_batch_of_sixteen(windowed: Accompanist) -> None:
    """Other lengths, seeds, steps, guidance and candidates beside it."""
    requests = [
        Request(
            vocal_CN=vocal(20_000 + 9_000 * index),
            config=GenerationConfig(seed=index % 5, steps=1 + index % 3, guidance=(1.0, 2.0, 3.5)[index % 3], candidates=1 + (index == 4)),
        )
        for index in range(16)
    ]
    told: list[tuple[int, int]] = []
    together = windowed.accompany_batch(requests, progress=lambda *now: told.append(now))
    for request, made in zip(requests, together, strict=True):
        alone = windowed.accompany(request.vocal_CN, request.config)
        assert np.array_equal(made.audio_CN, alone.audio_CN)
        assert (made.seed, made.fit, made.candidate_fits) == (alone.seed, alone.fit, alone.candidate_fits)
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_batch_of_nothing_is_nothing(accompanist: Accompanist) -> None:
    assert accompanist.accompany_batch([]) == []


@pytest.mark.parametrize("samples", [1, 70_000, 400_003])
def test_a_stream_is_the_same_audio_earlier(windowed: Accompanist, samples: int) -> None:
    sung_CN = vocal(samples)
    whole = windowed.accompany(sung_CN, QUICK)
    told: list[tuple[int, int]] = []
    streaming = windowed.stream(sung_CN, QUICK, progress=lambda *now: told.append(now))
    pieces, steps_at_first = [], 0
    while True:
        try:
            pieces.append(next(streaming).copy())
            steps_at_first = steps_at_first or len(told)
        except StopIteration as end:
            made = end.value
            break
    with pytest.raises(ValueError, match="read-only"):
        next(windowed.stream(sung_CN, QUICK))[:] = 0  # it is still to be judged
    assert np.array_equal(np.concatenate(pieces, axis=1), whole.audio_CN)
    assert np.array_equal(made.audio_CN, whole.audio_CN)
    assert made.fit == whole.fit
    assert told[-1] == (told[-1][1], told[-1][1])
    assert set(made.stage_s) == {"encode", "diffuse", "render", "fit"}


def test_a_flat_singer_gets_the_band_of_one_in_tune_as_flat_as_she_is(windowed: Accompanist) -> None:
    flat_CN = stretched(vocal(300_000), Fraction(44, 43))
    ratio = speed_into_tune(flat_CN)
    assert 1200 * np.log2(float(ratio)) == pytest.approx(-1200 * np.log2(44 / 43), abs=3)
    made = windowed.accompany(flat_CN, QUICK)
    assert made.audio_CN.shape == flat_CN.shape
    in_tune = windowed.accompany(stretched(flat_CN, ratio), QUICK)
    moved_CN = stretched(in_tune.audio_CN, 1 / ratio)[:, : flat_CN.shape[1]]
    assert np.abs(made.audio_CN - moved_CN)[:, :-200].max() < 1e-4 * np.abs(moved_CN).max()
    assert np.array_equal(np.concatenate(list(windowed.stream(flat_CN, QUICK)), axis=1), made.audio_CN)


def test_the_first_sound_comes_before_the_last_window(windowed: Accompanist) -> None:
    """What a codec has of its first chunk, it gives, while most of the song is still noise."""
    told: list[tuple[int, int]] = []
    sung_CN = np.tile(vocal(400 * 2_048), (1, 5))
    streaming = windowed.stream(sung_CN, replace(QUICK, steps=1), progress=lambda *now: told.append(now))
    first_CN = next(streaming)
    assert 0 < first_CN.shape[1] < windowed.codec.chunk_frames * 2_048
    assert told[-1][0] < 0.1 * told[-1][1]
    streaming.close()


def test_a_stream_of_candidates_gives_the_best(windowed: Accompanist) -> None:
    sung_CN, config = vocal(220_500), replace(QUICK, candidates=3)
    assert np.array_equal(np.concatenate(list(windowed.stream(sung_CN, config)), axis=1), windowed.accompany(sung_CN, config).audio_CN)


def test_the_best_fitting_candidate_is_returned(accompanist: Accompanist) -> None:
    sung_CN = vocal(220_500)
    made = accompanist.accompany(sung_CN, replace(QUICK, candidates=3))
    assert len(made.candidate_fits) == 3
    assert made.fit.overall == max(candidate.overall for candidate in made.candidate_fits)
    assert fit(sung_CN, made.audio_CN) == made.fit


def listening(accompanist: Accompanist) -> list[Evaluation]:
    """The evaluations of the network, filled as they are asked for."""
    asked: list[Evaluation] = []
    evaluate = accompanist._evaluator._evaluate
    accompanist._evaluator._evaluate = lambda evaluation: asked.append(evaluation) or evaluate(evaluation)
    return asked


def test_a_checkpoint_is_sampled_as_it_says() -> None:
    """A student of four steps with guidance folded in: four evaluations, at its timesteps, unless the caller asks for others."""
    student = replace(tiny_checkpoint(), sampling=Sampling(solver="ddim", steps=4, guidance=1.0))
    accompanist = Accompanist(student, load_codec("embedded"))
    asked = listening(accompanist)
    own = accompanist.accompany(vocal(60_000)).audio_CN
    assert [evaluation.t for evaluation in asked] == [799, 599, 399, 199]
    named = GenerationConfig(solver="ddim", steps=4, guidance=1.0)
    assert np.array_equal(own, Accompanist(tiny_checkpoint(), load_codec("embedded")).accompany(vocal(60_000), named).audio_CN)
    asked.clear()
    accompanist.accompany(vocal(60_000), GenerationConfig(steps=2, guidance=2.0))
    assert [evaluation.t for evaluation in asked] == [799, 799, 399, 399]


def test_guidance_one_needs_no_null_branch() -> None:
    accompanist = Accompanist(tiny_checkpoint(), load_codec("embedded"))
    asked = listening(accompanist)
    plain = accompanist.accompany(vocal(60_000), replace(QUICK, guidance=1.0)).audio_CN
    assert len(asked) == QUICK.steps
    nearly = accompanist.accompany(vocal(60_000), replace(QUICK, guidance=1.0 + 1e-6, guidance_rescale=0.0)).audio_CN
    assert len(asked) == 3 * QUICK.steps
    assert np.abs(plain - nearly).max() < 1e-2 * np.abs(plain).max()


def test_progress_counts_steps(accompanist: Accompanist) -> None:
    told: list[tuple[int, int]] = []
    accompanist.accompany(vocal(5_000), replace(QUICK, steps=3), progress=lambda *now: told.append(now))
    assert list(dict.fromkeys(told)) == [(1, 3), (2, 3), (3, 3)]
    assert told.count((3, 3)) > 2  # each piece that is rendered, and the one candidate that is judged
    told.clear()
    accompanist.accompany(vocal(5_000), replace(QUICK, steps=3, candidates=2), progress=lambda *now: told.append(now))
    assert told[-3:] == [(6, 6), (6, 6), (6, 6)]


def test_what_progress_raises_ends_the_work(windowed: Accompanist) -> None:
    asked = 0

    def stop(_: int, __: int) -> None:
        nonlocal asked
        asked += 1
        raise InterruptedError

    with pytest.raises(InterruptedError):
        windowed.accompany(vocal(300_000), QUICK, progress=stop)
    assert asked == 1


def test_a_quieter_vocal_gets_the_same_band_quieter(accompanist: Accompanist) -> None:
    loud, quiet = (accompanist.accompany(vocal(100_000, level), QUICK).audio_CN for level in (0.08, 0.02))
    assert np.abs(loud / 4 - quiet).max() < 1e-2 * np.abs(quiet).max()


def test_silence_is_accompanied(accompanist: Accompanist) -> None:
    made = accompanist.accompany(np.zeros((2, 50_000), np.float32), QUICK)
    assert np.isfinite(made.audio_CN).all()
    assert made.fit == NO_FIT


def test_a_click_in_a_quiet_vocal_does_not_raise_the_band(accompanist: Accompanist) -> None:
    quiet_CN = vocal(220_500, 0.005)
    clicked_CN = quiet_CN.copy()
    clicked_CN[:, 100_000:100_090] = 0.9
    assert level_gain(without_bumps(clicked_CN), -24.0) > 0.5 * level_gain(quiet_CN, -24.0)
    bands_db = [active_level_db(accompanist.accompany(sung_CN, QUICK).audio_CN) for sung_CN in (quiet_CN, clicked_CN)]
    assert bands_db[1] < bands_db[0] + 8


def test_what_is_sung_is_no_bump() -> None:
    sung_CN = vocal(220_500)
    clapped_CN = np.zeros_like(sung_CN)
    clapped_CN[:, ::22_050] = 0.8  # twice a second
    shout_CN = 0.001 * sung_CN
    shout_CN[:, 88_200:99_225] = sung_CN[:, :11_025]
    for vocal_CN in (sung_CN, clapped_CN, shout_CN, np.zeros_like(sung_CN), sung_CN[:, :3_000]):
        assert without_bumps(vocal_CN) is vocal_CN


def test_level_is_of_the_sung_frames_only() -> None:
    sung = vocal(20 * 2_048)
    with_rest = np.concatenate([np.zeros((2, 80 * 2_048), np.float32), sung], axis=1)
    assert active_level_db(with_rest) == pytest.approx(active_level_db(sung), abs=0.01)
    assert active_level_db(0.5 * sung) == pytest.approx(active_level_db(sung) - 6.02, abs=0.01)
    assert active_level_db(np.zeros((2, 5_000), np.float32)) == -np.inf
    assert 20 * np.log10(level_gain(sung, -30.0)) == pytest.approx(-30.0 - active_level_db(sung), abs=1e-6)
    assert np.abs(sung * level_gain(sung, 0.0)).max() <= 1.0 + 1e-6


def test_level_is_the_one_that_datasets_state() -> None:
    """A request is brought to `vocal_level_db`, so both must measure alike."""
    voice_CN = np.concatenate([vocal(30 * 2_048, 0.3), np.zeros((2, 9_000), np.float32), vocal(20 * 2_048 + 5, 0.1)], axis=1)
    assert active_level_db(voice_CN) == pytest.approx(voice(voice_CN, SegmentConfig())[1], abs=0.05)


def test_mix_is_one_gain_and_peaks_at_minus_one() -> None:
    one, other = vocal(5_000, 0.8), vocal(5_000, 0.6)
    singer, band, mixture = mix(one, other)
    assert np.abs(mixture).max() == pytest.approx(10 ** (-1 / 20), rel=1e-4)
    np.testing.assert_allclose(singer + band, mixture, atol=1e-6)
    np.testing.assert_allclose(singer * 0.6, band * 0.8, atol=1e-5)
    soft = mix(0.01 * one, 0.01 * other)
    np.testing.assert_array_equal(soft[0], np.float32(0.01) * one)
    cancelling = mix(one, -one)
    assert np.abs(cancelling[0]).max() <= 10 ** (-1 / 20) * (1 + 1e-6)
    with pytest.raises(ModelError, match="both must be equal"):
        mix(one, other[:, 1:])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((2, 0), np.float32), "zero samples"),
        (np.full((2, 5_000), np.nan, np.float32), "NaN"),
        (np.full((2, 5_000), np.inf, np.float32), "infinite"),
        (np.zeros(5_000, np.float32), r"shape \(5000,\)"),
        (np.zeros((1, 5_000), np.float32), r"shape \(1, 5000\)"),
        (np.zeros((5_000, 2), np.float32), r"shape \(5000, 2\)"),
        (np.zeros((2, 5_000), np.int16), "int16"),
    ],
)
def test_bad_vocals_get_one_clear_error(accompanist: Accompanist, bad: np.ndarray, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        accompanist.accompany(bad, QUICK)


def test_another_codec_is_refused() -> None:
    foreign = replace(tiny_checkpoint(), codec=CodecIdentity(id="stable-audio-open", weights_sha256="f" * 64))
    with pytest.raises(ModelError, match="stable-audio-open"):
        Accompanist(foreign, load_codec("embedded"))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"steps": 0},
        {"steps": 801},
        {"guidance": -1.0},
        {"guidance": float("nan")},
        {"guidance_rescale": 1.5},
        {"candidates": 0},
        {"candidates": 65},
        {"solver": "euler"},
    ],
)
def test_config_names_what_is_out_of_range(change: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=f"{next(iter(change))}={next(iter(change.values()))!r}"):
        GenerationConfig(**change)


def with_styles() -> Checkpoint:
    """A checkpoint that knows all controls, as after training."""
    network = with_controls(NETWORK, styles=("rock", "waltz"))
    torch.manual_seed(0)
    unet = AccompanimentUNet(network)
    torch.nn.init.normal_(unet.output.weight, std=0.05)
    torch.nn.init.normal_(unet.null_vocal_C)
    assert unet.condition_stream is not None
    for parameter in unet.condition_stream.levels.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return replace(tiny_checkpoint(), network=network, state=unet.state_dict())


@pytest.fixture(scope="module")
def told() -> Accompanist:
    """Windows of 32 frames of a checkpoint that knows all controls."""
    return Accompanist(with_styles(), load_codec("embedded"), window_frames=32, overlap_frames=8, slope_frames=4)


ASKED = Controls(style="waltz", chords=read_chords("0 1.5 Am\n1.5 5 C/E"), tempo_bpm=100, first_beat_s=0.2)


def test_controls_give_the_same_bits_alone_in_a_batch_and_streamed(told: Accompanist) -> None:
    sung_CN, config = vocal(220_500), replace(QUICK, controls=ASKED)
    alone_CN = told.accompany(sung_CN, config).audio_CN
    others = [Request(vocal_CN=vocal(100_001), config=QUICK), Request(vocal_CN=sung_CN, config=config)]
    assert np.array_equal(told.accompany_batch(others)[1].audio_CN, alone_CN)
    assert np.array_equal(np.concatenate(list(told.stream(sung_CN, config)), axis=1), alone_CN)
    assert not np.array_equal(told.accompany(sung_CN, QUICK).audio_CN, alone_CN)


def test_a_chord_changes_the_band_from_its_own_window_on(told: Accompanist) -> None:
    """Windows that end before the chord are bit for bit those without it."""
    sung_CN = vocal(220_500)
    plain_CN = told.accompany(sung_CN, QUICK).audio_CN
    late_CN = told.accompany(sung_CN, replace(QUICK, controls=Controls(chords=read_chords("4.5 5 F#")))).audio_CN
    difference_N = np.abs(late_CN - plain_CN).max(axis=0)
    assert not difference_N[: 2 * 44_100].any()
    assert difference_N[round(4.5 * 44_100) :].max() > 1e-4


def test_a_control_that_the_checkpoint_does_not_know_is_refused(told: Accompanist, accompanist: Accompanist) -> None:
    with pytest.raises(ModelError, match="style: this model was not trained with it; it follows the vocal alone"):
        accompanist.accompany(vocal(220_500), replace(QUICK, controls=ASKED))
    with pytest.raises(ModelError, match=r"style: 'polka' is not one of this model's: rock, waltz"):
        told.accompany(vocal(4_410), replace(QUICK, controls=Controls(style="polka")))
    with pytest.raises(ModelError, match=r"chords: line 2: 1.5 to 5 s lies beyond the vocal, which ends at 2.00 s"):
        told.accompany(vocal(88_200), replace(QUICK, controls=ASKED))


def test_a_checkpoint_with_controls_survives_the_disk(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "told", with_styles())
    read = load_checkpoint(tmp_path / "told")
    assert (read.network.controls, read.network.styles) == (("style", "chords", "beats"), ("rock", "waltz"))
    assert read.network == with_styles().network
