"""How bands sound beside real ones, by measurement: `python infra/benchmarks/data/sound.py REAL... --made FOLDER...`.

Prints per figure the range over the real files and, for each other folder, the median and how many of its files lie in that range. A
folder's files are those whose names begin with `accompaniment`, else all audio in it; of each the middle 30 s count.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
import soundfile as sf

OCTAVES_HZ = (31.25, 62.5, 125, 250, 500, 1000, 2000, 4000, 8000)
KINDS = (".wav", ".flac", ".ogg")
SECONDS = 30.0


def figures(path: Path) -> dict[str, float]:
    """Octave levels in dB beside the whole, level range in dB, side to mid in dB, crest in dB, onsets a second."""
    from model.dimensions import SAMPLE_RATE_HZ
    from model.listen import onsets

    info = sf.info(path)
    start = max(0, int(info.frames / 2 - SECONDS / 2 * info.samplerate))
    audio_CN = sf.read(path, always_2d=True, start=start, frames=int(SECONDS * info.samplerate))[0].T
    if info.samplerate != SAMPLE_RATE_HZ:
        raise SystemExit(f"{path} has a rate of {info.samplerate} Hz: give audio at {SAMPLE_RATE_HZ}")
    mid_N, side_N = audio_CN.mean(axis=0), (audio_CN[0] - audio_CN[-1]) / 2
    power_F = np.sum(np.abs(np.fft.rfft(audio_CN, axis=1)) ** 2, axis=0)
    hz_F = np.fft.rfftfreq(audio_CN.shape[1], 1 / SAMPLE_RATE_HZ)
    found = {}
    for centre_hz in OCTAVES_HZ:
        inside_F = (hz_F >= centre_hz / 2**0.5) & (hz_F < centre_hz * 2**0.5)
        found[f"{centre_hz:g} Hz"] = _db(power_F[inside_F].sum() / power_F[hz_F > 20].sum())
    block = SAMPLE_RATE_HZ // 10
    blocks = audio_CN[:, : audio_CN.shape[1] // block * block].reshape(len(audio_CN), -1, block)
    levels_db = 10 * np.log10(np.mean(blocks**2, axis=(0, 2)) + 1e-9)
    found["level range"] = float(np.quantile(levels_db, 0.95) - np.quantile(levels_db, 0.1))
    found["side to mid"] = _db(np.mean(side_N**2) / np.mean(mid_N**2))
    found["crest"] = _db(np.max(audio_CN**2) / np.mean(audio_CN**2))
    found["onsets a second"] = len(onsets(np.stack([mid_N, mid_N]))) / (audio_CN.shape[1] / SAMPLE_RATE_HZ)
    return found


def _db(ratio: float) -> float:
    return float(10 * np.log10(max(ratio, 1e-9)))


def of_folder(folder: Path) -> list[dict[str, float]]:
    files = sorted(path for path in folder.rglob("*") if path.suffix in KINDS)
    bands = [path for path in files if path.name.startswith("accompaniment")] or files
    if not bands:
        raise SystemExit(f"{folder}: no audio in it")
    return [figures(path) for path in bands]


def main() -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real", type=Path, nargs="+", help="real bands, then --made and the folders to compare")
    parser.add_argument("--made", type=Path, nargs="+", default=[])
    options = parser.parse_args()
    real = [row for folder in options.real for row in of_folder(folder)]
    made = {folder: of_folder(folder) for folder in options.made}
    print("| figure | real, lowest | median | highest |", " | ".join(f"{folder.name}, median, inside" for folder in made), "|")
    print("|" + "---|" * (4 + len(made)))
    for name in real[0]:
        values = [row[name] for row in real]
        low, high = min(values), max(values)
        cells = []
        for rows in made.values():
            mine = [row[name] for row in rows]
            cells.append(f"{statistics.median(mine):.1f}, {sum(low <= value <= high for value in mine)} of {len(mine)}")
        print(f"| {name} | {low:.1f} | {statistics.median(values):.1f} | {high:.1f} |", " | ".join(cells), "|")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
