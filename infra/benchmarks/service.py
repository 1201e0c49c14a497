"""What HTTP costs beside the model, and how a service holds up: `python infra/benchmarks/service.py http://127.0.0.1:8000 --seconds 47.5`.

Prints Markdown rows. A client of the public interface, for any running service; needs the development dependencies (httpx).
"""

import argparse
import io
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import numpy as np
import soundfile

RATE_HZ = 44_100
WORK = ("decode", "encode", "diffuse", "fit", "render")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request as its client saw it."""

    status: int
    wall_s: float
    work_s: float
    queue_s: float


def vocal(seconds: float) -> bytes:
    """A FLAC file of harmonic tones at eighth notes."""
    time_N = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    pitch_N = 220 * 2 ** (np.array([0, 4, 7, 4, 5, 9, 7, 2]) / 12)[(time_N * 4).astype(int) % 8]
    phase_N = 2 * np.pi * np.cumsum(pitch_N) / RATE_HZ
    samples_N = 0.1 * np.clip(8 * (0.25 - time_N % 0.25), 0, 1) * sum(np.sin(k * phase_N) / k for k in range(1, 9))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples_N, RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def ask(client: httpx.Client, url: str, data: bytes, fields: dict[str, str]) -> Asked:
    start_s = time.perf_counter()
    answer = client.post(f"{url}/v1/accompaniments", files={"vocal": ("vocal.flac", data)}, data=fields)
    wall_s = time.perf_counter() - start_s
    if answer.status_code != 200:
        return Asked(status=answer.status_code, wall_s=wall_s, work_s=0.0, queue_s=0.0)
    parts = (part.strip().split(";dur=") for part in answer.headers["server-timing"].split(","))
    stages = {name: float(milliseconds) / 1000 for name, milliseconds in parts}
    return Asked(status=200, wall_s=wall_s, work_s=sum(stages[name] for name in WORK), queue_s=stages["queue"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=47.5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--key")
    given = parser.parse_args()
    data, fields = vocal(given.seconds), {"steps": str(given.steps), "seed": "7"}
    headers = {"Authorization": f"Bearer {given.key}"} if given.key else {}
    print("| clients | answered | others | requests/s | wall median | work median | queue median | HTTP beside both, median (max) |")
    print("|---|---|---|---|---|---|---|---|")
    with httpx.Client(timeout=600, headers=headers) as client:
        ask(client, given.url, data, fields)  # the first request warms caches and threads
        for clients in given.clients:
            start_s = time.perf_counter()
            with ThreadPoolExecutor(clients) as threads:
                asked = list(threads.map(lambda _: ask(client, given.url, data, fields), range(given.requests)))
            took_s = time.perf_counter() - start_s
            done = [one for one in asked if one.status == 200]
            others = sorted({one.status for one in asked} - {200})
            if not done:
                print(f"| {clients} | 0 of {len(asked)} | {others} | | | | | |")
                continue
            beside_ms = [1000 * (one.wall_s - one.work_s - one.queue_s) for one in done]
            wall_s, work_s, queue_s = (statistics.median(getattr(one, name) for one in done) for name in ("wall_s", "work_s", "queue_s"))
            print(
                f"| {clients} | {len(done)} of {len(asked)} | {others or ''} | {len(done) / took_s:.2f} | {wall_s:.3f} s | {work_s:.3f} s "
                f"| {1000 * queue_s:.0f} ms | {statistics.median(beside_ms):.1f} ms ({max(beside_ms):.1f}) |"
            )


if __name__ == "__main__":
    main()
