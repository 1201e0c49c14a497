"""What Ray Train adds to a step: `python infra/benchmarks/data/ray_train.py --data latents --out runs/ray-train`.

The same training, in this process and in one Ray Train worker, in turn; the medians of the mean step times between log lines after
the first twenty steps, from the runs' own metrics. Prints Markdown.
"""

import argparse
import statistics
import sys
from pathlib import Path

FIRST = 20  # steps before caches and allocators are warm
LOG_EVERY = 10  # as by default: a line a step would wake Ray's log monitor, the driver and MLflow's queue at every step


def step_times_s(data: str, out: Path, workers: int, steps: int) -> list[float]:
    from infra.storage.place import Place
    from training.config import TrainConfig
    from training.run.launch import train
    from training.state import read_metrics

    config = TrainConfig(
        data=data, out=str(out), preset="small", workers=workers, steps=steps, log_every=LOG_EVERY, validate_every=steps, samples=0,
    )  # fmt: skip
    train(config)
    rows = [row for row in read_metrics(Place(str(out))) if "train/samples_per_s" in row]
    return [config.batch_size / row["train/samples_per_s"] for row in rows[FIRST // LOG_EVERY :]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a latent dataset")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for the runs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from infra.benchmarks.model.subject import machine

    print(f"{machine('cpu')}; preset small, batch 16, {options.steps} steps a run\n")
    print("| round | in this process | in a Ray Train worker | Ray Train adds |\n|---|---|---|---|", flush=True)
    medians = []
    for number in range(1, options.rounds + 1):
        # Whoever is first meets the machine as it was; so they take turns.
        order = (0, 1) if number % 2 else (1, 0)
        times_s = {workers: step_times_s(options.data, options.out / f"{number}-{workers}", workers, options.steps) for workers in order}
        alone_s, ray_s = statistics.median(times_s[0]), statistics.median(times_s[1])
        medians.append(ray_s / alone_s - 1)
        print(f"| {number} | {1_000 * alone_s:.0f} ms | {1_000 * ray_s:.0f} ms | {100 * medians[-1]:+.1f}% |", flush=True)
    print(f"\nThe median over the rounds: {100 * statistics.median(medians):+.1f}%.")


if __name__ == "__main__":
    main()
