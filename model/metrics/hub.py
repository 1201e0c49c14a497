"""Weights from the hub, for what is optional: the cache first, then the network, asked once and not for long."""

from collections.abc import Sequence
from pathlib import Path

TIMEOUT_S = 5.0


class HubUnavailable(OSError):
    """A repository's files are neither in the cache nor to be had from the hub."""


def hub_folder(repository: str, needed: Sequence[str], weights: Sequence[str]) -> Path:
    """The local folder that holds the needed files and the first of the weights' names that the repository has.

    The libraries' own loaders try for half a minute where there is no network, with every file. Raises HubUnavailable.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    for name in weights:
        cached = [try_to_load_from_cache(repository, wanted) for wanted in (*needed, name)]
        if all(isinstance(path, str) for path in cached):
            return Path(str(cached[0])).parent
    try:
        for name in weights:
            try:
                get_hf_file_metadata(hf_hub_url(repository, name), timeout=TIMEOUT_S)
            except EntryNotFoundError:
                continue
            return Path(snapshot_download(repository, allow_patterns=[*needed, name]))
    except Exception as error:  # the hub raises its own, the HTTP client's and the system's kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise HubUnavailable(f"{repository} cannot be fetched ({reason})") from error
    raise HubUnavailable(f"{repository} holds none of {', '.join(weights)}")
