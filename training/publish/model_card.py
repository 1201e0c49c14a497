"""The model card of a checkpoint, Markdown (Mitchell et al. 2019: what it is, its data, its figures, its limits)."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra.dataset.credits import CREDITS, Credit
from infra.dataset.format import MANIFEST, Manifest, code_version
from infra.errors import UserError
from model.checkpoint import Checkpoint
from model.network.unet import AccompanimentUNet, count_parameters
from training.config import TrainConfig, datasets_of, named_dataset, size_name
from training.data.datasets import open_datasets
from training.evaluation.markdown import markdown
from training.evaluation.report import EvaluationReport

SHOWN_CREDITS = 100


@dataclass(frozen=True, kw_only=True)
class About:
    """What no file of a run knows; None is left out of the card."""

    name: str
    precision: str = "float32"
    data: str | None = None
    machine: str | None = None
    licence: str | None = None
    limits: str | None = None


def card(
    about: About,
    checkpoint: Checkpoint,
    state: dict[str, Any],
    report: EvaluationReport | None = None,
    *,
    credits: Sequence[Credit] = (),
) -> str:
    """state: the training's, as in last/training_state.json. credits: whose recordings it learnt from."""
    given, progress = state["config"], state["progress"]
    millions = count_parameters(AccompanimentUNet(checkpoint.network)) / 1e6
    sampling = checkpoint.sampling
    rows = {
        "network": f"preset {size_name(given)}, {millions:.1f} M parameters, averaged weights, stored as {about.precision}",
        "codec": f"{checkpoint.codec.id} ({checkpoint.codec.weights_sha256[:12]})",
        "sampling": f"{sampling.solver}, {sampling.steps} steps, guidance {sampling.guidance:g}",
        "data": about.data,
        "dataset": _datasets(given["data"], checkpoint),
        "training": (
            f"{checkpoint.step:,} steps of {given['batch_size']} × {given['crop_frames']} frames "
            f"({checkpoint.step * given['batch_size']:,} samples), the best of {progress['step']:,} in {progress['minutes']:.0f} minutes"
            + (f" on {about.machine}" if about.machine else "")
        ),
        "validation loss": f"{checkpoint.metrics.get('validation/loss', math.nan):.4f}",
        "code, when released": code_version(),
        "licence": about.licence,
    }
    lines = [f"# {about.name}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value)]
    lines += sources(credits)
    lines += ["", "## How it was made", "", "```sh", command(given), "```"]
    if about.limits:
        lines += ["", "## Limits", "", about.limits]
    if report is not None:
        named = replace(report, dataset=last_parts(report.dataset))
        lines += ["", "## Figures", "", *markdown(named).splitlines()[2:]]
    return "\n".join(lines) + "\n"


def sources(credits: Sequence[Credit]) -> list[str]:
    """The card's sources with their licences, and the credits that these ask for."""
    if not credits:
        return []
    totals: dict[tuple[str, str, str], list[Credit]] = {}
    for credit in credits:
        totals.setdefault((credit.source, credit.license, credit.split), []).append(credit)
    lines = ["", "## Sources and credits", "", "| source | licence | songs | hours | used |", "|---|---|---|---|---|"]
    for (source, licence, split), held in totals.items():
        used = "learnt from" if split == "train" else "held out"
        hours = sum(credit.duration_h for credit in held)
        lines.append(f"| {source or 'unknown'} | {licence or 'unknown'} | {sum(credit.songs for credit in held)} | {hours:.2f} | {used} |")
    named = [credit for credit in credits if credit.credit or credit.titles]
    if named:
        lines += ["", *(f"- {_credit_line(credit)}" for credit in named[:SHOWN_CREDITS])]
    if len(named) > SHOWN_CREDITS:
        lines.append(f"- {len(named) - SHOWN_CREDITS} more in {CREDITS}")
    return lines


def _credit_line(credit: Credit) -> str:
    what = credit.credit or ", ".join(credit.titles) + (f" by {credit.artist}" if credit.artist else "")
    return (
        f"{what} ({credit.license})"
        + (f", {credit.page_url}" if credit.page_url else "")
        + ("" if credit.split == "train" else ", held out")
    )


def _datasets(data: str | Sequence[str], checkpoint: Checkpoint) -> str:
    """Counts, where the datasets are still there and the same; the digest in any case."""
    known = f"digest {checkpoint.dataset.digest[:12]}"
    try:
        found = open_datasets(TrainConfig(data=data if isinstance(data, str) else tuple(data), out=""))
    except UserError:
        found = None
    if found is None or found.identity.digest != checkpoint.dataset.digest:
        return f"{known} ({MANIFEST} no longer at hand)"
    if len(found.members) == 1:
        return f"{known}, {_counts(found.members[0].manifest)}"
    parts = (f"{member.share:.0%} from {last_part(member.place.uri)} ({_counts(member.manifest)})" for member in found.members)
    return f"{known}; {'; '.join(parts)}"


def _counts(manifest: Manifest) -> str:
    counts = manifest.counts
    return f"{counts.train_songs} songs to learn from, {counts.validation_songs} held out, {manifest.duration_h:.1f} h"


def command(given: dict[str, Any]) -> str:
    """The command line of a run: what differs from the preset, places by their last part. A phase of a distillation names its teacher."""
    usual = dict(_flat(json.loads(json.dumps(TrainConfig(data="data", out="", preset=given["preset"]).to_dict()))))
    words = [
        "python -m training train",
        f"--data {_named(given['data'])}",
        f"--out {last_part(given['out'])}",
        f"--preset {given['preset']}",
    ]
    left_out = {"data", "out", "preset", "resume"}
    if lesson := given.get("distillation"):
        words = [
            "python -m training distil",
            f"--teacher {last_part(given['init'])}",
            f"--data {_named(given['data'])}",
            "--out students",
        ]
        words += [f"--first-steps {lesson['steps']}", f"--student-steps {lesson['steps']}", f"--guidance {lesson['guidance']:g}"]
        # What a distillation sets itself, phase by phase.
        left_out |= {"init", "distillation", "loss", "condition_dropout", "samples", "samples_every", "register", "experiment", "workers"}
    for name, value in _flat(given):
        if name.partition(".")[0] in left_out or value == usual.get(name):
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            words.append(f"{flag} {' '.join(str(item) for item in value)}")
        else:
            words.append(f"{flag} {last_part(value) if name == 'init' else value}")
    return " ".join(words)


def _flat(given: dict[str, Any]) -> list[tuple[str, Any]]:
    """Nested settings under dotted names, as the command line has them."""
    rows: list[tuple[str, Any]] = []
    for name, value in given.items():
        rows += [(f"{name}.{inner}", part) for inner, part in value.items()] if isinstance(value, dict) else [(name, value)]
    return rows


def _named(data: str | Sequence[str]) -> str:
    """Datasets as --data takes them, places by their last part."""
    return " ".join(named_dataset(last_part(uri), weight) for uri, weight in datasets_of(data))


def last_parts(uri: str) -> str:
    """Of a dataset's place, or of several, `URI=SHARE` each with a space between, their names alone."""
    named = uri.split(" ")
    several = len(named) > 1 and all("=" in one for one in named)
    return " ".join(map(last_part, named)) if several else last_part(uri)


def last_part(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]
