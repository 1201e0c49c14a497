"""What survives a codec, beside the original and a mel baseline: `python infra/benchmarks/model/codec.py --corpus DIR --out FILE`.

Writes a Markdown table of every song and the means, and the time of one segment. Figures: infra/benchmarks/model/codec.md.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))


def main() -> None:
    from training.codec.report import CodecReportConfig, report

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="song folders of `backline corpus`; the lowest seeds are measured")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--codec", action="append", help="one or more, for example embedded, a codec folder, stable-audio-open:FOLDER")
    parser.add_argument("--songs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    report(
        CodecReportConfig(
            corpus=given.corpus, out=given.out, codecs=tuple(given.codec or ["embedded"]), songs=given.songs, threads=given.threads
        )
    )
    print(given.out.read_text())


if __name__ == "__main__":
    main()
