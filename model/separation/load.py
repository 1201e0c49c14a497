"""Separators by name: demucs' pretrained networks, and local ones. The only import of demucs, when one is loaded."""

import logging
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model.codec.base import tensors_sha256
from model.separation.apply import (
    SeparatedStems,
    Separator,
    SeparatorConfig,
    SeparatorIdentity,
    SeparatorUnavailable,
    bag_weights,
    check_contract,
)

__all__ = ["SeparatedStems", "Separator", "SeparatorConfig", "SeparatorIdentity", "SeparatorUnavailable", "load_separator"]

log = logging.getLogger(__name__)

HUB_PREFIX = "hf://"
NETWORK_TIMEOUT_S = 5.0


def load_separator(spec: str, *, device: str = "cpu", half: bool = False, config: SeparatorConfig | None = None) -> Separator:
    """A separator by name: demucs' own (htdemucs, htdemucs_ft, mdx_extra, …), hf://NAMESPACE/NAME, or a local FOLDER or FOLDER#NAME.

    A folder is a demucs repository (NAME.yaml bags, SIGNATURE.th networks) or in the hub's layout (NAME.yaml, SIGNATURE.safetensors); it
    needs no network, nor do weights in the hub's cache. A .th file is a pickle, which can run code: load only what you trust.
    Raises SeparatorUnavailable, whose message says what was tried and what to do.
    """
    folder, _, name = spec.rpartition("#") if "#" in spec and not Path(spec).is_dir() else (spec, "", "")
    if Path(folder).is_dir():
        bag, found = _from_folder(Path(folder), name, spec)
    elif "#" in spec or (("/" in spec or "\\" in spec) and not spec.startswith(HUB_PREFIX)):
        raise SeparatorUnavailable(
            f"separator {spec!r}: no folder {folder}; give a demucs repository's folder, {HUB_PREFIX}NAMESPACE/NAME, or a model's name"
        )
    else:
        bag, found = _from_name(spec), spec.removeprefix(HUB_PREFIX)
    if not hasattr(bag, "models"):
        from demucs.apply import BagOfModels

        bag = BagOfModels([bag])
    check_contract(bag, found)
    tensors = {**bag.models.state_dict(), "bag.weights": bag_weights(bag, found)}
    identity = SeparatorIdentity(id=found, weights_sha256=tensors_sha256(tensors))
    return Separator(bag, identity, device=device, half=half, config=config)


def _from_folder(folder: Path, name: str, spec: str) -> tuple[Any, str]:
    """(model or bag, its name) from a folder; `name` "" takes the only bag, or the only network where there is no bag."""
    bags = {path.stem for path in folder.glob("*.yaml")}
    weights = {path.stem if path.suffix == ".safetensors" else path.stem.rsplit("-", 1)[0]: path for path in sorted(folder.iterdir())
               if path.suffix in (".th", ".safetensors")}  # fmt: skip
    if not name:
        only = bags or set(weights)
        if len(only) != 1:
            listed = ", ".join(sorted(only)[:8]) or "none"
            raise SeparatorUnavailable(
                f"separator {spec!r}: {len(only)} {'bags' if bags else 'networks'} in the folder ({listed}); name one as FOLDER#NAME, "
                "or give a folder with NAME.yaml and its networks, or with one .th file"
            )
        name = next(iter(only))
    if name not in bags | set(weights):
        raise SeparatorUnavailable(
            f"separator {spec!r}: no {name} in {folder}; it holds {', '.join(sorted(bags | set(weights))) or 'none'}"
        )
    try:
        from demucs.repo import AnyModelRepo, BagOnlyRepo

        files: Any = _LocalNetworks(folder, weights)
        return AnyModelRepo(files, BagOnlyRepo(folder, files)).get_model(name).eval(), name
    # A foreign pickle, YAML or constructor raises anything, and demucs ends the process where diffq is missing.
    except (Exception, SystemExit) as error:
        raise SeparatorUnavailable(f"separator {spec!r}: {name} cannot be loaded from {folder} ({_reason(error)})") from error


class _LocalNetworks:
    """The networks of a folder by signature, in either file format: what demucs.repo's bags ask for theirs."""

    def __init__(self, folder: Path, weights: dict[str, Path]) -> None:
        self.folder, self.weights = folder, weights

    def has_model(self, signature: str) -> bool:
        return signature in self.weights

    def get_model(self, signature: str) -> Any:
        from demucs.hf import load_safetensors_model
        from demucs.repo import LocalRepo
        from safetensors import safe_open

        if signature not in self.weights:
            raise FileNotFoundError(f"no {signature}.th or {signature}.safetensors there")
        path = self.weights[signature]
        if path.suffix == ".th":
            return LocalRepo(self.folder).get_model(signature)
        with safe_open(path, framework="pt") as file:
            klass = (file.metadata() or {}).get("klass", "")
        if not klass.startswith("demucs."):  # demucs would import and call whatever stands there
            raise ValueError(f"{path.name} names {klass!r} as its network; want a class of demucs")
        return load_safetensors_model(path)


def _from_name(spec: str) -> Any:
    """demucs' model or bag: from the hub's cache, else the hub, else demucs' first host. Each is asked once, for 5 s, before a download.

    demucs alone would wait 23 s for a hub that is not there, and for ever for a host that does not answer.
    """
    tried = []
    sources: list[tuple[str, Callable[[str], Any]]] = [("hub", _from_hub)]
    if not spec.startswith(HUB_PREFIX):
        sources.append(("legacy host", _from_legacy_host))
    for title, fetch in sources:
        try:
            return fetch(spec).eval()
        except (
            Exception,
            SystemExit,
        ) as error:  # the hub's, the HTTP client's and the system's kinds; demucs ends the process without diffq
            tried.append(f"{title}: {_reason(error)}")
    raise SeparatorUnavailable(
        f"separator {spec!r} cannot be had ({'; '.join(tried)}); its first use needs the network or a filled hub cache (HF_HOME), or name "
        "a local demucs repository: --separator FOLDER; models are htdemucs, htdemucs_ft, hdemucs_mmi, mdx, mdx_extra, hf://NAMESPACE/NAME"
    )


def _from_hub(spec: str) -> Any:
    from demucs.hf import DEFAULT_NAMESPACE, hf_repo_name
    from demucs.pretrained import get_model
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    namespace, _, name = spec.removeprefix(HUB_PREFIX).rpartition("/")
    repository = f"{namespace or DEFAULT_NAMESPACE}/{hf_repo_name(name)}"
    cached = try_to_load_from_cache(repository, f"{name}.yaml")
    if isinstance(cached, str):
        try:
            return _from_folder(Path(cached).parent, name, spec)[0]
        except SeparatorUnavailable as error:
            log.info("separator %s: its copy in the hub's cache is not whole (%s); asking the hub", spec, error)
    get_hf_file_metadata(hf_hub_url(repository, f"{name}.yaml"), timeout=NETWORK_TIMEOUT_S)
    return get_model(f"{HUB_PREFIX}{spec.removeprefix(HUB_PREFIX)}")


def _from_legacy_host(name: str) -> Any:
    from demucs.pretrained import REMOTE_ROOT, _parse_remote_files
    from demucs.repo import AnyModelRepo, BagOnlyRepo, RemoteRepo

    class Host(RemoteRepo):
        """Asks for a file with a time limit before torch downloads it without one; what torch's cache holds needs no asking."""

        def get_model(self, sig: str) -> Any:
            url = str(self.list_model().get(sig, ""))
            if url and not (Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]).is_file():
                with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=NETWORK_TIMEOUT_S):
                    pass
            return super().get_model(sig)

    host = Host(_parse_remote_files(REMOTE_ROOT / "files.txt"))
    return AnyModelRepo(host, BagOnlyRepo(REMOTE_ROOT, host)).get_model(name)


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "demucs gave up, its reason stands above; a quantised model (…_q) needs the package diffq"
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}" if str(error).strip() else type(error).__name__
