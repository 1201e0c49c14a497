"""The page that `backline demo` ends with: one self-contained HTML file beside its sounds."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from infra.plots import LOWEST_DB, spectrogram


@dataclass(frozen=True, kw_only=True)
class Sound:
    """One player: a name, the file beside the page, and its samples (channels, N) for the pictures."""

    name: str
    file: str
    samples_CN: np.ndarray


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """What one stage of the demo took."""

    name: str
    seconds: float
    note: str


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Everything the page shows."""

    sounds: list[Sound]
    stages: list[StageTime]
    training_loss: list[tuple[int, float]]
    validation_loss: list[tuple[int, float]]
    fit: dict[str, float]
    evaluation_header: list[str]
    evaluation_rows: list[list[str]]
    facts: dict[str, str]
    commands: dict[str, str]


def write_report(path: Path, report: DemoReport, *, sample_rate_hz: int) -> None:
    """Writes the page. Pictures are inside it; sounds are the files named in `report.sounds`, beside it."""
    import matplotlib

    matplotlib.use("Agg")
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("demo_page.html.j2").render(
        report=report,
        pictures={sound.name: picture_of_sound(sound, sample_rate_hz) for sound in report.sounds},
        losses=picture_of_losses(report.training_loss, report.validation_loss),
        total_s=sum(stage.seconds for stage in report.stages),
    )
    path.write_text(page, encoding="utf-8")


def picture_of_sound(sound: Sound, sample_rate_hz: int) -> str:
    """Waveform above spectrogram (50 Hz to 16 kHz, logarithmic), as a data URI."""
    from matplotlib import pyplot

    mono_N = sound.samples_CN.mean(axis=0)
    figure, (wave, spectrum) = pyplot.subplots(2, 1, figsize=(11, 3.4), height_ratios=[1, 2.4], sharex=True, layout="constrained")
    bins = np.array_split(mono_N, min(2_000, max(1, mono_N.size)))
    at_s = np.linspace(0, mono_N.size / sample_rate_hz, len(bins))
    wave.fill_between(at_s, [part.min() for part in bins], [part.max() for part in bins], linewidth=0, color="#2f5d8a")
    wave.set(ylim=(-1, 1), yticks=[])
    power, frequencies_hz, times_s = spectrogram(mono_N, sample_rate_hz)
    spectrum.pcolormesh(times_s, frequencies_hz, power, vmin=LOWEST_DB, vmax=-10, cmap="magma", shading="auto", rasterized=True)
    spectrum.set(yscale="log", ylim=(50, 16_000), xlabel="seconds", ylabel="Hz")
    return as_data_uri(figure)


def picture_of_losses(training: list[tuple[int, float]], validation: list[tuple[int, float]]) -> str:
    """Both loss curves over steps, as a data URI."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 2.8), layout="constrained")
    if training:
        axes.plot(*zip(*training, strict=True), color="#9db8d2", linewidth=1, label="training")
    if validation:
        axes.plot(
            *zip(*validation, strict=True), color="#b3472a", linewidth=2, marker="o", markersize=3, label="held-out songs, averaged weights"
        )
    axes.set(xlabel="step", ylabel="loss (Min-SNR weighted)")
    axes.legend(frameon=False)
    return as_data_uri(figure)


def as_data_uri(figure) -> str:  # type: ignore[no-untyped-def]  # matplotlib is imported only when a report is written
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
