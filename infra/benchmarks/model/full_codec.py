"""The autoencoder of Stable Audio Open at full size: speed, bfloat16 against float32, and memory.

`python infra/benchmarks/model/full_codec.py [--device cpu] [--duration 60] [--threads 2] [--folder FOLDER]` prints Markdown.
Without a folder (the hub's model_config.json and model.safetensors) weights are random, which speed and memory do not depend on.
`--duration 600 --rounds 0 --chunks` is the memory of ten minutes alone. Figures and their machine: infra/benchmarks/model/full_codec.md.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from infra.benchmarks.model.subject import Memory

if TYPE_CHECKING:
    from model.codec.load import Codec, Precision

SPEED_FRAMES = 43  # 2 s
PIECE_FRAMES = 256


def best_s(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Least wall and least processor time of some rounds, after one to warm up."""
    work()
    walls, cores = [], []
    for _ in range(rounds):
        wall, core = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cores.append(time.process_time() - core)
    return min(walls), min(cores)


def snr_db(exact: torch.Tensor, other: torch.Tensor) -> float:
    """Level of a signal above the difference between it and another."""
    exact, other = exact.double(), other.double()
    return float(10 * torch.log10(exact.square().mean() / (exact - other).square().mean()))


def speeds(load: Callable[["Precision"], "Codec"], rounds: int) -> Iterator[str]:
    """Rows on both precisions, and on stable-audio-tools' own layers."""
    draws = torch.Generator().manual_seed(0)
    audio_BCN = 0.2 * torch.randn(1, 2, SPEED_FRAMES * 2048, generator=draws)
    seconds = audio_BCN.shape[2] / 44_100
    with mock.patch("model.codec.load.quicken"):
        plain = load("float32")
    latent_BCT, decoded_BCN = plain.encode(audio_BCN), plain.decode(plain.encode(audio_BCN))
    yield "| layers | encode, s per s of audio: wall, processor | decode | SNR encode, dB | SNR decode, dB |\n|---|---|---|---|---|"
    makers: dict[str, Callable[[], Codec]] = {
        "own layers": lambda: plain,
        "float32": lambda: load("float32"),
        "bfloat16": lambda: load("bfloat16"),
    }
    for name, maker in makers.items():
        codec = maker()
        times = [best_s(work, rounds) for work in (lambda c=codec: c.encode(audio_BCN), lambda c=codec: c.decode(latent_BCT))]
        encode, decode = (f"{wall / seconds:.2f}, {core / seconds:.2f}" for wall, core in times)
        ratios = [snr_db(latent_BCT, codec.encode(audio_BCN)), snr_db(decoded_BCN, codec.decode(latent_BCT))]
        yield f"| {name} | {encode} | {decode} | {ratios[0]:.1f} | {ratios[1]:.1f} |"


def chunks(codec: "Codec", sizes: list[int], memory: Memory, loaded_gb: float, rounds: int) -> Iterator[str]:
    """Rows on chunk sizes: what a chunk costs and saves."""
    latent_BCT = torch.randn(1, 64, 2 * max(sizes), generator=torch.Generator().manual_seed(1))
    yield "\n| frames a chunk | decode, s per s of audio: wall, processor | peak above the loaded codec, GB |\n|---|---|---|"
    kept = codec.chunk_frames
    for codec.chunk_frames in sizes:
        memory.forget()
        wall, core = best_s(lambda: codec.decode(latent_BCT), rounds)
        seconds = latent_BCT.shape[2] * 2048 / 44_100
        yield f"| {codec.chunk_frames} | {wall / seconds:.2f}, {core / seconds:.2f} | {memory.peak_gb() - loaded_gb:.2f} |"
    codec.chunk_frames = kept


def long_decode(codec: "Codec", duration_s: float, memory: Memory, imported_gb: float) -> Iterator[str]:
    """Rows on the memory of a long latent: in pieces that are dropped, and whole."""
    frames = round(duration_s * 44_100 / 2048)
    latent_BCT = torch.randn(1, 64, frames, generator=torch.Generator().manual_seed(2))

    def in_pieces() -> int:
        return sum(piece.shape[2] for piece in codec.decode_pieces(latent_BCT.split(PIECE_FRAMES, dim=2)))

    title = f"{duration_s:g} s, {codec.chunk_frames} frames a chunk"
    yield f"\n| {title} | peak, GB | above the imports, GB | wall, s | processor, s |\n|---|---|---|---|---|"
    for name, work in (("decode_pieces, audio dropped", in_pieces), ("decode, audio held", lambda: codec.decode(latent_BCT))):
        memory.forget()
        wall, core = time.perf_counter(), time.process_time()
        work()
        wall, core = time.perf_counter() - wall, time.process_time() - core
        yield f"| {name} | {memory.peak_gb():.2f} | {memory.peak_gb() - imported_gb:.2f} | {wall:.0f} | {core:.0f} |"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of audio to decode for its memory")
    parser.add_argument("--rounds", type=int, default=3, help="of each timing; 0 leaves out the table of speeds")
    parser.add_argument("--chunks", type=int, nargs="*", default=[16, 32, 64, 128], help="sizes to try; none leaves out that table")
    parser.add_argument("--folder", type=Path, help="the hub's files; random weights without")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    from model.codec.load import load_codec
    from tests.codec_parts import small_weights, write_full_size

    memory = Memory(arguments.device)
    small_weights()  # imports stable-audio-tools, which memory is measured above
    imported_gb = memory.peak_gb()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or write_full_size(Path(scratch) / "random")

        def load(precision: "Precision") -> "Codec":
            return load_codec(f"stable-audio-open:{folder}", device=arguments.device, precision=precision)

        print(f"{arguments.device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
        if arguments.rounds:
            for row in speeds(load, arguments.rounds):
                print(row, flush=True)
        gc.collect()
        memory.forget()
        codec = load("auto")
        loading_gb = memory.peak_gb()
        memory.forget()
        loaded_gb = memory.peak_gb()
        if arguments.chunks:
            for row in chunks(codec, sorted(arguments.chunks), memory, loaded_gb, max(1, arguments.rounds)):
                print(row, flush=True)
        for row in long_decode(codec, arguments.duration, memory, imported_gb):
            print(row, flush=True)
        for name, gb in (("while loading", loading_gb), ("loaded", loaded_gb), ("imports", imported_gb)):
            print(f"| {name} | {gb:.2f} | {gb - imported_gb:.2f} | | |")


if __name__ == "__main__":
    main()
