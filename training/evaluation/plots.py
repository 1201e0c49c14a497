"""Pictures for MLflow and reports, as PNG bytes; without pyplot, so that threads and servers need no display."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import scipy

from model.dimensions import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW = 2_048


def _figure(width_in: float, height_in: float) -> "Figure":
    from matplotlib.figure import Figure  # half a second: only when a picture is drawn

    return Figure(figsize=(width_in, height_in), layout="constrained")


def loss_curve(training: list[tuple[int, float]], validation: list[tuple[int, float]]) -> bytes:
    """Training and validation loss over steps."""
    figure = _figure(8, 4)
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    for rows, label, style in ((training, "training", "-"), (validation, "validation", "o-")):
        if rows:
            axes.plot(*zip(*rows, strict=True), style, label=label, linewidth=1, markersize=3)
    if training or validation:
        axes.legend()
    axes.grid(alpha=0.3)
    return png(figure)


def error_by_timestep(curves: Mapping[int, list[tuple[int, float]]]) -> bytes:
    """curves: step → (timestep, error) of that step's validation; the last one stands out, the earlier ones pale with age."""
    from matplotlib import colormaps

    figure = _figure(8, 4)
    axes = figure.add_subplot(xlabel="timestep (0: nearly the music, last: nearly noise)", ylabel="validation error")
    steps = sorted(curves)
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        named = last or index in (0, len(steps) // 2)
        axes.plot(
            *zip(*sorted(curves[step]), strict=True), "o-", label=f"step {step:,}" if named else None, markersize=3,
            color="C3" if last else colormaps["Blues"](0.25 + 0.6 * (index + 1) / len(steps)), linewidth=2 if last else 1,
        )  # fmt: skip
    if steps:
        axes.legend()
    axes.grid(alpha=0.3)
    return png(figure)


def loss_against_fit(
    panels: Mapping[str, list[tuple[str, int, float, tuple[float, float, float]]]], loss_name: str, notes: Mapping[str, str]
) -> bytes:
    """A panel a scale of guidance, whose trials are (label, depth, loss, (fit, low, high)); colours are depths. notes: below a title."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    figure = _figure(5.2 * max(1, len(panels)), 4.6)
    depths = sorted({depth for points in panels.values() for _, depth, _, _ in points})
    for index, (title, points) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1, xlabel=loss_name, ylabel="fit to the vocal (bars: 90% over songs)")
        axes.set_title(f"{title}\n{notes.get(title, '')}", fontsize=10)
        for label, depth, loss, (fit, low, high) in points:
            colour = colormaps["viridis"](0.9 * depths.index(depth) / max(1, len(depths) - 1))
            axes.errorbar(loss, fit, yerr=[[max(0.0, fit - low)], [max(0.0, high - fit)]], fmt="o", color=colour, capsize=3)
            axes.annotate(label, (loss, fit), xytext=(5, 5), textcoords="offset points", fontsize=8)
        axes.margins(x=0.2)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(alpha=0.3)
    return png(figure)


def spectrograms(sounds_CN: Mapping[str, np.ndarray]) -> bytes:
    """One spectrogram a sound, on a common scale of 80 dB, up to 11 kHz."""
    figure = _figure(10, 2.2 * len(sounds_CN))
    for index, (name, audio_CN) in enumerate(sounds_CN.items()):
        axes = figure.add_subplot(len(sounds_CN), 1, index + 1, title=name, ylabel="kHz")
        hz_F, s_T, power_FT = scipy.signal.spectrogram(
            audio_CN.mean(axis=0), SAMPLE_RATE_HZ, nperseg=WINDOW, noverlap=WINDOW // 2, mode="magnitude"
        )
        kept = hz_F <= 11_000
        level_FT = 20 * np.log10(power_FT[kept] + 1e-7)
        axes.imshow(
            level_FT, origin="lower", aspect="auto", extent=(0, float(s_T[-1]), 0, 11), vmin=-110, vmax=-30, cmap="magma", rasterized=True
        )
    figure.supxlabel("seconds")
    return png(figure)


def png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()
