"""What the codec's two trainings share: where they run, how fast they learn, what they log, and how they save and go on, without pickle."""

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

log = logging.getLogger(__name__)

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def wants_bf16(precision: str, device: torch.device) -> bool:
    """auto = wherever the hardware multiplies bf16: there a step takes a fifth of the time."""
    if precision == "auto":
        return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return precision == "bf16"


def anneal(step: int, progress: float, warmup_steps: int) -> float:
    """Linear warm-up, then a cosine to a hundredth at progress 1."""
    return min(1.0, (step + 1) / max(1, warmup_steps)) * (0.505 + 0.495 * math.cos(math.pi * min(1.0, progress)))


@torch.no_grad()
def average_in(average: Mapping[str, Tensor], network: nn.Module, decay: float) -> None:
    """Moves the averaged weights towards the network's of the same names."""
    values = network.state_dict()
    for name, value in average.items():
        value.lerp_(values[name], 1 - decay)


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under PREFIX.NAME; `under` takes them out again."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def moments(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state of the parameters that learn, by their names."""
    return {
        f"{name}.{key}": optimizer.state[parameter][key]
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
        for key in MOMENTS
    }


def set_moments(network: nn.Module, optimizer: torch.optim.Optimizer, stored: Mapping[str, Tensor]) -> None:
    """Gives Adam what `moments` took."""
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            own = {key: stored[f"{name}.{key}"] for key in MOMENTS}
            optimizer.state[parameter] = {key: value if key == "step" else value.to(parameter.device) for key, value in own.items()}


def save_state(path: Path, step: int, tensors: Mapping[str, Tensor], config: Any) -> None:
    """The tensors and, in the header, the step: one file, replaced at once. The config lies beside it, to read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, temporary, metadata={"step": str(step)})
    temporary.replace(path)
    document = {name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(config).items()}
    path.with_suffix(".json").write_text(json.dumps({"step": step, "config": document}, indent=2) + "\n")


def load_state(path: Path) -> tuple[int, dict[str, Tensor]]:
    """The step at which the run stopped, and its tensors."""
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["step"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict


def write_log(out: Path, **values: float) -> None:
    """A line of OUT/log.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    rounded = {name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()}
    log.info("codec: %s", " ".join(f"{name}={value}" for name, value in rounded.items()))
    with (out / "log.jsonl").open("a") as lines:
        lines.write(json.dumps(rounded) + "\n")
