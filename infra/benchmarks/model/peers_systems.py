"""What `peers.py` measures: backline, MusicGen-small and Stable Audio Open, each at its real size, and how each is timed.

Shapes: B batch, C channels, N samples, T latent frames. Weights are random, in the published shapes: speed does not depend on them.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.benchmarks.model.subject import random_accompanist, resident_gb, sung, synchronise

if TYPE_CHECKING:
    import torch

STABLE_AUDIO_STEPS = 100
STABLE_AUDIO_MOST_S = 1024 * 2048 / 44_100
ENCODEC_HZ, ENCODEC_HOP, CODEBOOKS = 50, 640, 4


@dataclass(frozen=True, kw_only=True)
class Part:
    """Work in equal pieces, of which `done` of `whole` were run in `seconds`."""

    what: str
    seconds: float
    done: int = 1
    whole: int = 1

    @property
    def whole_s(self) -> float:
        """Seconds of all pieces, each as long as the mean of those that were run."""
        return self.seconds * self.whole / self.done

    def __str__(self) -> str:
        pieces = "" if self.whole == 1 else f"{self.done:,} of {self.whole:,} " if self.done < self.whole else f"{self.whole:,} "
        return f"{pieces}{self.what} {self.seconds:.2f} s"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a system did. memory_gb: before its model is built, what the process holds with all imports."""

    parameters: int
    parts: tuple[Part, ...]
    imported_gb: float
    note: str = ""


def require(condition: bool, message: str) -> None:
    """Ends the measurement where it would not be what it says."""
    if not condition:
        sys.exit(f"peers: {message}")


def check_size(what: str, found: int, published: float) -> None:
    """A peer must not be measured smaller (or larger) than it is: 3% around its published number of parameters."""
    require(abs(found / published - 1) < 0.03, f"{what} has {found / 1e6:.1f} M parameters, published are {published / 1e6:.1f} M")


def size(*modules: "torch.nn.Module") -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def timed(device: str, work: Callable[[], Any]) -> tuple[float, Any]:
    """(wall seconds, what the work gave)."""
    synchronise(device)
    start_s = time.perf_counter()
    given = work()
    synchronise(device)
    return time.perf_counter() - start_s, given


def backline(options: argparse.Namespace, *, paper: bool) -> Outcome:
    """Encode, diffuse, render and fit, the median of five requests; or the denoising of one with the sampler of the paper."""
    import torch

    from model.accompany import GenerationConfig

    imported_gb = resident_gb()
    accompanist, vocal_CN = random_accompanist(device=options.device), sung(options.duration)
    modules = [part for part in vars(accompanist.codec).values() if isinstance(part, torch.nn.Module)]
    tensors = accompanist.checkpoint.state.values()
    parameters = sum(tensor.numel() for tensor in tensors) + size(*modules)
    first_s, _ = timed(options.device, lambda: accompanist.accompany(vocal_CN, GenerationConfig()))
    if paper:
        steps = 40 if options.quick else 800
        made = accompanist.accompany(vocal_CN, GenerationConfig(solver="ancestral", steps=steps))
        part = Part(what="steps", seconds=made.stage_s["diffuse"], done=steps, whole=800)
        return Outcome(parameters=parameters, parts=(part,), imported_gb=imported_gb)
    runs = []
    for _ in range(1 if options.quick else 5):
        seconds, made = timed(options.device, lambda: accompanist.accompany(vocal_CN, GenerationConfig()))
        runs.append((seconds, made.stage_s))
    runs.sort(key=lambda run: run[0])
    seconds, stage_s = runs[len(runs) // 2]
    stages = ", ".join(f"{stage} {spent_s:.2f}" for stage, spent_s in stage_s.items())
    note = f"{stages}; median of {len(runs)} ({runs[0][0]:.2f} to {runs[-1][0]:.2f} s), the first of the process {first_s:.2f} s"
    return Outcome(parameters=parameters, parts=(Part(what="request", seconds=seconds),), imported_gb=imported_gb, note=note)


def musicgen(options: argparse.Namespace, *, guidance: float) -> Outcome:
    """facebook/musicgen-small (Copet et al. 2023): T5-base, a decoder over 4 delayed codebooks, EnCodec at 32 kHz, as published there."""
    import torch
    from transformers import (  # installed by `make peers` alone
        EncodecConfig,
        EncodecModel,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        T5Config,
        T5EncoderModel,
        logging,
    )

    logging.set_verbosity_error()  # it warns of the published padding token
    imported_gb = resident_gb()
    text = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12)
    audio = EncodecConfig(
        sampling_rate=32_000,
        target_bandwidths=[2.2],
        upsampling_ratios=[8, 5, 4, 4],
        num_filters=64,
        codebook_size=2048,
        use_causal_conv=False,
        use_conv_shortcut=False,
    )
    decoder = MusicgenDecoderConfig(vocab_size=2048, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, ffn_dim=4096)
    model = MusicgenForConditionalGeneration(MusicgenConfig(text_encoder=text, audio_encoder=audio, decoder=decoder)).eval()
    if options.device == "cuda":
        model = model.to("cuda", dtype=torch.float16)
    require(isinstance(model.text_encoder, T5EncoderModel) and isinstance(model.audio_encoder, EncodecModel), "MusicGen has other parts")
    check_size("the decoder of MusicGen-small", size(model.decoder), 420e6)
    check_size("T5-base's encoder", size(model.text_encoder), 109.6e6)
    check_size("MusicGen-small", size(model), 587e6)
    frames = math.ceil(options.duration * ENCODEC_HZ - 1e-6)
    stamps_s: list[float] = []
    calls: set[tuple[int, ...]] = set()

    def stamp(_: object, __: object, given: dict[str, Any]) -> None:
        synchronise(options.device)
        stamps_s.append(time.perf_counter())
        calls.add(tuple(given["input_ids"].shape))

    model.decoder.register_forward_pre_hook(stamp, with_kwargs=True)
    prompt = torch.randint(3, 32_000, (1, 12), device=options.device)

    def generate(count: int) -> tuple[float, "torch.Tensor"]:
        # The codebooks are delayed by one token each (Copet et al. 2023, section 2.2), so the last ends three tokens later.
        tokens, mask = count + CODEBOOKS - 1, torch.ones_like(prompt)
        stamps_s.clear()
        return timed(
            options.device,
            lambda: model.generate(input_ids=prompt, attention_mask=mask, do_sample=True, guidance_scale=guidance, max_new_tokens=tokens),
        )

    generate(8)
    calls.clear()
    made = 24 if options.quick else frames
    start_s = time.perf_counter()
    seconds, audio_BCN = generate(made)
    # A run cut short, another batch size or whole sequences where a cache should be: none may pass for MusicGen.
    require(audio_BCN.shape == (1, 1, made * ENCODEC_HOP), f"MusicGen made {audio_BCN.shape[-1] / ENCODEC_HOP:g} frames instead of {made}")
    require(len(stamps_s) >= made + CODEBOOKS - 1, f"MusicGen evaluated its decoder {len(stamps_s)} times for {made} frames")
    require(calls == {((2 if guidance > 1 else 1) * CODEBOOKS, 1)}, f"MusicGen's decoder was called with {calls}")
    count = min(100, len(stamps_s) // 2)
    first_s, last_s = stamps_s[count] - stamps_s[0], stamps_s[-1] - stamps_s[-1 - count]
    parts = (
        Part(what="text", seconds=stamps_s[0] - start_s),
        Part(what="tokens a codebook", seconds=stamps_s[-1] - stamps_s[0], done=made, whole=frames),
        Part(what="frames of EnCodec", seconds=start_s + seconds - stamps_s[-1], done=made, whole=frames),
    )
    note = f"the first {count} tokens at {1e3 * first_s / count:.0f} ms, the last {count} at {1e3 * last_s / count:.0f} ms"
    return Outcome(parameters=size(model), parts=parts, imported_gb=imported_gb, note=note)


def stable_audio(options: argparse.Namespace) -> Outcome:
    """stabilityai/stable-audio-open-1.0 (Evans et al. 2024) in diffusers' pipeline, as published there.

    Unless --full: two steps after one to warm up and a tenth of the decoding, the rest in proportion. Any duration costs the same: the
    pipeline denoises 1,024 frames and cuts.
    """
    import torch
    from diffusers import AutoencoderOobleck, CosineDPMSolverMultistepScheduler, StableAudioDiTModel, StableAudioPipeline
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    imported_gb = resident_gb()
    pipe: Any = StableAudioPipeline(
        vae=AutoencoderOobleck(),
        text_encoder=T5EncoderModel(T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12)),
        projection_model=StableAudioProjectionModel(text_encoder_dim=768, conditioning_dim=768, min_value=0, max_value=512),
        tokenizer=T5Tokenizer(model_max_length=128),
        transformer=StableAudioDiTModel(
            sample_size=1024,
            in_channels=64,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            num_key_value_attention_heads=12,
            out_channels=64,
            cross_attention_dim=768,
            global_states_input_dim=1536,
        ),
        scheduler=CosineDPMSolverMultistepScheduler(sigma_min=0.3, sigma_max=500),
    )
    if options.device == "cuda":
        pipe = pipe.to("cuda", torch.float16)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
    check_size("the DiT of Stable Audio Open", size(pipe.transformer), 1057e6)
    check_size("the VAE of Stable Audio Open", size(pipe.vae), 156.1e6)
    check_size("T5-base's encoder", size(pipe.text_encoder), 109.6e6)
    parameters = size(pipe.vae, pipe.text_encoder, pipe.projection_model, pipe.transformer)
    stamps_s: list[float] = []

    def stamp(*_: object) -> None:
        synchronise(options.device)
        stamps_s.append(time.perf_counter())

    def run(steps: int, output: str) -> "torch.Tensor":
        made = pipe("a band", audio_end_in_s=options.duration, num_inference_steps=steps, output_type=output, callback=stamp)
        return made.audios

    def encode() -> object:
        return pipe.encode_prompt("a band", torch.device(options.device), True)

    def decode(latent_BCT: "torch.Tensor") -> "torch.Tensor":
        with torch.no_grad():
            return pipe.vae.decode(latent_BCT).sample

    if options.full:
        decode(run(1, "latent")[:, :, :32])
        stamps_s.clear()
        seconds, audio_BCN = timed(options.device, lambda: run(STABLE_AUDIO_STEPS, "pt"))
        require(len(stamps_s) == STABLE_AUDIO_STEPS, f"Stable Audio took {len(stamps_s)} steps")
        require(audio_BCN.shape == (1, 2, int(options.duration * 44_100)), f"Stable Audio made {tuple(audio_BCN.shape)}")
        note = f"of it {STABLE_AUDIO_STEPS - 1} steps {stamps_s[-1] - stamps_s[0]:.0f} s"
        return Outcome(parameters=parameters, parts=(Part(what="request", seconds=seconds),), imported_gb=imported_gb, note=note)
    with torch.no_grad():
        encode()
        text_s, _ = timed(options.device, encode)
    steps, frames = (1, 22) if options.quick else (2, 102)
    latent_BCT = run(1 + steps, "latent")
    decode(latent_BCT[:, :, :8])
    decode_s, _ = timed(options.device, lambda: decode(latent_BCT[:, :, :frames]))
    parts = (
        Part(what="text", seconds=text_s),
        Part(what="steps", seconds=stamps_s[-1] - stamps_s[0], done=steps, whole=STABLE_AUDIO_STEPS),
        Part(what="latent frames decoded", seconds=decode_s, done=frames, whole=latent_BCT.shape[2]),
    )
    return Outcome(parameters=parameters, parts=parts, imported_gb=imported_gb, note="the rest in proportion, `--full` runs it whole")


SYSTEMS: dict[str, Callable[[argparse.Namespace], Outcome]] = {
    "backline": lambda options: backline(options, paper=False),
    "backline-paper": lambda options: backline(options, paper=True),
    "musicgen": lambda options: musicgen(options, guidance=3.0),
    "musicgen-unguided": lambda options: musicgen(options, guidance=1.0),
    "stable-audio": stable_audio,
}
