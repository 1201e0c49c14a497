"""What the tests of separation share: small demucs networks with random weights, in demucs' own files and in the hub's layout.

Signatures have eight letters, as demucs' own do; the bag is called tiny.
"""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from demucs.api import Separator as DemucsSeparator
from demucs.apply import BagOfModels
from demucs.hdemucs import HDemucs
from demucs.htdemucs import HTDemucs
from demucs.states import get_state, save_with_checksum
from safetensors.torch import save_file

SOURCES = ("drums", "bass", "other", "vocals")
SEGMENT = Fraction(9, 10)  # 39,690 samples: no power of two, as 7.8 s is none
FIRST, SECOND = "a1b2c3d4", "e5f6a7b8"
BAG = "tiny"
# Every source mixes both networks, and no two sources alike.
WEIGHTS = [[1.0, 3.0, 0.5, 0.25], [2.0, 1.0, 1.5, 0.75]]
_HTDEMUCS: dict[str, Any] = {
    "channels": 4, "nfft": 2048, "depth": 4, "rewrite": False, "dconv_mode": 0,
    "t_layers": 1, "t_heads": 2, "t_hidden_scale": 1.0,
}  # fmt: skip


def tiny_network(seed: int, **changes: Any) -> HTDemucs:
    """HTDemucs of 37,000 parameters and chunks of 0.9 s: 15 ms a chunk on one core."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HTDemucs(**{"sources": list(SOURCES), "segment": SEGMENT, **_HTDEMUCS, **changes}).eval()


def tiny_convolutional(seed: int) -> HDemucs:
    """The generation before: its last chunk is shorter than the others, since it pads none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HDemucs(list(SOURCES), channels=4, segment=1.0).eval()


def write_th(folder: Path, signature: str, network: Any) -> Path:
    """demucs' own file: the class and how it was made, with its state, under a name that holds a checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    args, kwargs = network._init_args_kwargs
    content = {"klass": type(network), "args": args, "kwargs": kwargs, "state": get_state(network, None), "training_args": {}}
    save_with_checksum(content, folder / f"{signature}.th")
    return next(folder.glob(f"{signature}-*.th"))


def write_tiny_repository(folder: Path, *, bag: bool = False) -> Path:
    """A demucs repository to pass as the separator's folder: one small network, or a bag `tiny` of two that count differently."""
    write_th(folder, FIRST, tiny_network(1))
    if bag:
        write_th(folder, SECOND, tiny_network(2))
        write_bag(folder)
    return folder


def write_bag(folder: Path, *, signatures: tuple[str, ...] = (FIRST, SECOND), weights: list[list[float]] | None = None) -> None:
    """YAML is a superset of JSON."""
    (folder / f"{BAG}.yaml").write_text(json.dumps({"models": list(signatures), "weights": weights or WEIGHTS}))


def write_hub_layout(folder: Path, name: str = BAG, *, klass: str = "demucs.htdemucs.HTDemucs") -> Path:
    """The same bag as `write_tiny_repository(bag=True)`, as the hub holds it: NAME.yaml and one safetensors file a network."""
    folder.mkdir(parents=True, exist_ok=True)
    for signature, seed in ((FIRST, 1), (SECOND, 2)):
        network = tiny_network(seed)
        kwargs = {"sources": list(SOURCES), "segment": {"_type": "fraction", "numerator": 9, "denominator": 10}, **_HTDEMUCS}
        metadata = {"klass": klass, "args": "[]", "kwargs": json.dumps(kwargs)}
        state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        save_file(state, folder / f"{signature}.safetensors", metadata)
    write_bag(folder)
    (folder / f"{BAG}.yaml").rename(folder / f"{name}.yaml")
    return folder


def demucs_separator(folder: Path, name: str, *, device: str = "cpu") -> DemucsSeparator:
    """demucs' own interface on a local repository, without random shifts."""
    return DemucsSeparator(model=name, repo=folder, device=device, shifts=0)


def write_full_size(folder: Path) -> Path:
    """htdemucs' shape (26.9 M parameters, chunks of 7.8 s) with random weights, as a repository of one network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = HTDemucs(list(SOURCES), depth=4, bottom_channels=512, t_layers=5, t_heads=8, segment=Fraction(39, 5))
    write_th(folder, "f0f0f0f0", network)
    return folder


def bag_of(*networks: Any, weights: list[list[float]] | None = None) -> BagOfModels:
    return BagOfModels(list(networks), weights)
