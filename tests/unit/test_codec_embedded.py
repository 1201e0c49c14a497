"""The embedded codec: its contract, its transforms, and chunks that equal the whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model import listen
from model.codec.base import Halo, spans, tensors_sha256
from model.codec.embedded import EMBEDDED_FOLDER, PhaseConfig, latent_sha256, load_embedded, save_embedded
from model.codec.load import load_codec
from model.codec.magnitude_vae import features_of, magnitudes_of
from model.codec.phase import decorrelate, find_phase, impose, spectrum, waveform
from model.dimensions import HOP_SAMPLES, SAMPLE_RATE_HZ
from model.errors import CodecUnavailable, ModelError
from tests.codec_parts import tiny_embedded


def noise(samples: int, *, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(batch, 2, samples, generator=torch.Generator().manual_seed(seed))


def tone(hz: float, seconds: float, *, left: float = 0.4, right: float = 0.4) -> torch.Tensor:
    """A harmonic tone, (1, 2, N)."""
    time_s = torch.arange(int(seconds * SAMPLE_RATE_HZ), dtype=torch.float64) / SAMPLE_RATE_HZ
    mono = sum(torch.sin(2 * torch.pi * hz * harmonic * time_s) / harmonic for harmonic in range(1, 9)).float() / 2
    return torch.stack([left * mono, right * mono]).unsqueeze(0)


@pytest.mark.parametrize("samples", [1, HOP_SAMPLES, HOP_SAMPLES + 1, 5 * HOP_SAMPLES - 7])
def test_lengths_follow_the_contract(samples: int) -> None:
    codec = tiny_embedded()
    latent_BCT = codec.encode(noise(samples, batch=2))
    frames = -(-samples // HOP_SAMPLES)
    assert latent_BCT.shape == (2, 64, frames)
    audio_BCN = codec.decode(latent_BCT)
    assert audio_BCN.shape == (2, 2, frames * HOP_SAMPLES)
    assert audio_BCN.dtype == torch.float32
    assert bool(torch.isfinite(audio_BCN).all())


@pytest.mark.parametrize("chunk_frames", [24, 33, 64])
def test_chunks_equal_the_whole(chunk_frames: int) -> None:
    codec = tiny_embedded()
    audio_BCN = noise(150 * HOP_SAMPLES - 100)
    codec.chunk_frames = 1_000
    latent_BCT = codec.encode(audio_BCN)
    whole_BCN = codec.decode(latent_BCT)
    codec.chunk_frames = chunk_frames
    assert (codec.encode(audio_BCN) - latent_BCT).abs().max() < 1e-5
    assert (codec.decode(latent_BCT) - whole_BCN).abs().max() < 1e-5


def test_what_lies_beyond_the_halo_is_not_read() -> None:
    codec = tiny_embedded()
    audio_BCN = noise(120 * HOP_SAMPLES)
    latent_BCT = codec.encode(audio_BCN)
    changed = audio_BCN.clone()
    frame = 60
    changed[..., (frame + codec.encode_halo.right + 1) * HOP_SAMPLES :] = 0
    changed[..., : (frame - codec.encode_halo.left) * HOP_SAMPLES] = 0
    assert torch.equal(codec.encode(changed)[..., frame], latent_BCT[..., frame])
    reach = codec.encode_halo.right
    changed = audio_BCN.clone()
    changed[..., (frame + reach) * HOP_SAMPLES :] = 0
    assert not torch.equal(codec.encode(changed)[..., frame], latent_BCT[..., frame])


def test_a_chunk_is_never_longer_than_its_frames_and_halo() -> None:
    halo = Halo(left=9, right=5)
    seen = list(spans(1_000_000, 512, halo, grid=32))
    assert max(span.read_stop - span.read_start for span in seen) <= 512 + 9 + 5 + 31
    assert [span.start for span in seen] == list(range(0, 1_000_000, 512))
    assert all(span.read_start % 32 == 0 and span.read_start <= max(0, span.start - 9) for span in seen)


def test_a_batch_equals_its_members() -> None:
    codec = tiny_embedded()
    audio_BCN = noise(20 * HOP_SAMPLES, batch=2)
    together = codec.decode(codec.encode(audio_BCN))
    apart = torch.cat([codec.decode(codec.encode(audio_BCN[index : index + 1])) for index in range(2)])
    assert (together - apart).abs().max() < 1e-5
    assert torch.equal(together, codec.decode(codec.encode(audio_BCN)))


@pytest.mark.parametrize(
    "audio_BCN", [torch.zeros(1, 1, 100), torch.zeros(1, 2, 0), torch.zeros(2, 100), torch.full((1, 2, 100), float("nan"))]
)
def test_wrong_audio_is_refused(audio_BCN: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="encode"):
        tiny_embedded().encode(audio_BCN)


@pytest.mark.parametrize("latent_BCT", [torch.zeros(1, 63, 5), torch.zeros(1, 64, 0), torch.full((1, 64, 2), float("inf"))])
def test_wrong_latents_are_refused(latent_BCT: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="decode"):
        tiny_embedded().decode(latent_BCT)


def test_spectra_invert_exactly_and_have_the_stated_scale() -> None:
    audio_BN = noise(40 * 1024)[:, 0]
    assert (waveform(spectrum(audio_BN)) - audio_BN).abs().max() < 1e-5
    sine = 0.5 * torch.sin(2 * torch.pi * 100 / 4096 * torch.arange(40 * 1024)).unsqueeze(0)
    assert spectrum(sine)[0, 20, 100].abs() == pytest.approx(0.5, abs=1e-3)


def test_the_phase_search_finds_a_consistent_tone() -> None:
    audio_BN = tone(220.0, 3.0)[:, 0, : 64 * 2048]
    magnitude = spectrum(audio_BN).abs()

    def misfit(rounds: int) -> float:
        found = waveform(find_phase(magnitude, rounds=rounds, momentum=0.99, grid_frames=64))
        return float((spectrum(found).abs() - magnitude).norm() / magnitude.norm())

    assert misfit(8) < misfit(0) * 0.7
    assert misfit(8) < 0.15
    found = waveform(find_phase(magnitude, rounds=8, momentum=0.99, grid_frames=64))
    _, hz, voiced = listen.f0(found[0].numpy())
    assert voiced.mean() > 0.9
    assert float(np.median(np.abs(1200 * np.log2(hz[voiced] / 220.0)))) < 5


def test_stereo_features_place_a_panned_tone_and_width_is_kept() -> None:
    audio_BCN = tone(330.0, 2.0, left=0.6, right=0.2)[..., : 40 * 2048]
    mid, side = spectrum((audio_BCN[:, 0] + audio_BCN[:, 1]) / 2), spectrum((audio_BCN[:, 0] - audio_BCN[:, 1]) / 2)
    magnitude, pan, width = magnitudes_of(features_of(mid, side))
    assert pan[0, 10, 31] == pytest.approx(0.5, abs=0.02)  # (0.6 − 0.2) / (0.6 + 0.2)
    assert width[0, 10, 31] < 0.05
    assert magnitude[0, 10, :464] == pytest.approx(mid[0, 10, :464].abs().numpy(), abs=1e-4)
    independent = noise(40 * 2048)
    mid, side = spectrum(independent.sum(1) / 2), spectrum((independent[:, 0] - independent[:, 1]) / 2)
    _, pan, width = magnitudes_of(features_of(mid, side))
    assert width.mean() == pytest.approx(1.0, abs=0.2)
    turned = decorrelate(mid)
    assert turned.abs() == pytest.approx(mid.abs().numpy(), rel=1e-4, abs=1e-7)
    coherence = (turned * mid.conj()).real.sum() / mid.abs().square().sum()
    assert abs(float(coherence)) < 0.2


def test_imposed_magnitudes_hold_even_where_the_guess_is_zero() -> None:
    imposed = impose(torch.ones(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.complex64))
    assert bool(torch.isfinite(torch.view_as_real(imposed)).all())


def test_the_shipped_codec_fits_the_repository_and_names_itself() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED_FOLDER.iterdir()) <= 12_000_000
    codec = load_codec("embedded")
    assert codec.identity.id == "embedded"
    assert codec.identity == load_codec("embedded").identity


def test_a_better_decoder_reads_the_same_latents_and_another_encoder_does_not() -> None:
    tensors = load_file(EMBEDDED_FOLDER / "model.safetensors")
    known = load_codec("embedded").identity.weights_sha256
    assert latent_sha256(tensors) == known
    decoder = {name: tensor + 1 if name.startswith("decoder") else tensor for name, tensor in tensors.items()}
    assert latent_sha256(decoder) == known
    for name in ("encoder_out.weight", "latent_mean", "feature_std"):
        assert latent_sha256({**tensors, name: tensors[name] + 1}) != known, name


def test_the_shipped_codec_keeps_silence_silent() -> None:
    codec = load_codec("embedded")
    silence = torch.zeros(1, 2, 64 * HOP_SAMPLES)
    decoded = codec.decode(codec.encode(silence))
    assert 20 * torch.log10(decoded.square().mean().sqrt() + 1e-12) < -60


def test_the_shipped_codec_keeps_pitch_level_and_pan() -> None:
    codec = load_codec("embedded")
    audio_BCN = tone(220.0, 4.0, left=0.5, right=0.3)
    decoded = codec.decode(codec.encode(audio_BCN))[..., : audio_BCN.shape[-1]]
    _, hz, voiced = listen.f0(decoded[0].numpy())
    assert voiced.mean() > 0.8
    assert float(np.median(np.abs(1200 * np.log2(hz[voiced] / 220.0)))) < 25
    level_db = 20 * torch.log10(decoded.square().mean(-1).sqrt() / audio_BCN.square().mean(-1).sqrt())[0]
    assert level_db.abs().max() < 6
    assert decoded[0, 0].square().mean() > decoded[0, 1].square().mean()


def test_the_hash_is_of_the_tensors_and_not_of_the_file() -> None:
    tensors = load_file(EMBEDDED_FOLDER / "model.safetensors")
    assert tensors_sha256(tensors) == tensors_sha256(dict(reversed(tensors.items())))
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    other = {**tensors, name: tensors[name].clone()}
    other[name][0, 0] += 1
    assert tensors_sha256(other) != tensors_sha256(tensors)


def test_a_trained_folder_loads_by_path_and_a_broken_one_says_why(tmp_path: Path) -> None:
    codec = tiny_embedded()
    save_embedded(tmp_path / "mine", codec.network, codec.phase)
    again = load_codec(str(tmp_path / "mine"))
    assert again.identity.id == "mine"
    audio_BCN = noise(10 * HOP_SAMPLES)
    assert (again.encode(audio_BCN) - codec.encode(audio_BCN)).abs().max() < 0.05  # float16 weights
    save_file({"x": torch.zeros(1)}, tmp_path / "mine" / "model.safetensors")
    with pytest.raises(CodecUnavailable, match="mine"):
        load_embedded(tmp_path / "mine", codec_id="mine")


@pytest.mark.parametrize(("field", "value"), [("rounds", -1), ("momentum", 2.0), ("grid_frames", 3)])
def test_a_wrong_phase_search_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        PhaseConfig(**{field: value})
