"""Weights as safetensors: one file, or shards with an index beside them in the hub's layout (model.safetensors.index.json)."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.errors import ModelError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def save_weights(
    folder: Path, state: Mapping[str, Tensor], *, dtype: torch.dtype | None = None, shard_bytes: int | None = None, file: str = WEIGHTS_FILE
) -> None:
    """Writes `state` into `folder`, as `dtype` where given, in one `file`; with `shard_bytes`, in files of at most that many bytes of
    tensors each."""
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    shards = [weights] if shard_bytes is None else _shards(weights, shard_bytes)
    if len(shards) == 1:
        save_file(shards[0], folder / file)
        return
    files = {f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard for number, shard in enumerate(shards, start=1)}
    for file, shard in files.items():
        save_file(shard, folder / file)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in weights.values())},
        "weight_map": {name: file for file, shard in files.items() for name in shard},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n")


def _shards(weights: dict[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in weights.items():
        if tensor.nbytes > most:
            raise ModelError(f"{name} takes {tensor.nbytes} bytes, more than the {most} of a shard: allow larger shards")
        if size + tensor.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def weight_files(folder: Path, file: str = WEIGHTS_FILE) -> list[Path]:
    """The files that hold the weights, in order: the one `file`, else shards. ModelError: none, or one that is named is missing."""
    if Path(file).name != file:  # a name with a path in it would open a file outside the checkpoint
        raise ModelError(f"{folder} names {file!r} as its weights, which is not in its folder: copy the checkpoint again")
    if (folder / file).is_file():
        return [folder / file]
    try:
        index = json.loads((folder / INDEX_FILE).read_text())
        names = sorted(set(index["weight_map"].values()))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} has neither {file} nor {INDEX_FILE}: copy the whole checkpoint") from error
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder / INDEX_FILE} is not an index of weights ({error}): copy the checkpoint again") from error
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ModelError(f"{folder / INDEX_FILE} names files that are not in its folder: copy the checkpoint again")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} lacks {', '.join(missing)}: copy the whole checkpoint")
    return [folder / name for name in names]


def load_weights(folder: Path, file: str = WEIGHTS_FILE) -> dict[str, Tensor]:
    """All tensors, as float32 whatever they are stored as. ModelError: a file that is missing, damaged, or repeats another's tensor."""
    state: dict[str, Tensor] = {}
    for path in weight_files(folder, file):
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ModelError(f"{path} is not a safetensors file ({error}): copy the checkpoint again") from error
        if repeated := sorted(state.keys() & tensors.keys()):
            raise ModelError(f"{path} repeats {repeated[0]} of another shard: copy the checkpoint again")
        state |= {name: tensor.float() for name, tensor in tensors.items()}
    return state


def weights_sha256(folder: Path, file: str = WEIGHTS_FILE) -> str:
    """SHA-256 of the one file; of several, over their contents in the order of their names."""
    digest = hashlib.sha256()
    for path in weight_files(folder, file):
        with path.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
