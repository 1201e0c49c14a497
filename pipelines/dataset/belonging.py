"""Which stored rows belong to a source, and which of its rejects nothing in it answers to any more."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from infra.dataset.parquet import READERS
from infra.storage.place import Place
from pipelines.dataset import write as dataset
from pipelines.dataset.contents import Stored
from pipelines.sources import Source
from pipelines.stages.decode import TAKEDOWN

LISTS = ("urls", "catalogue")  # their songs' addresses lie anywhere


def elsewhere(source: Source) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a row of songs/ belongs to another source than this one."""

    def is_elsewhere(row: Mapping[str, Any]) -> bool:
        inside = source.kind in LISTS or _is_inside(source.place, row["url"])
        return row["source"] != source.kind or not inside

    return is_elsewhere


def without_left(out: Place, stored: Stored, source: Source, present: Set[str]) -> Stored:
    """`stored` without the rejects of addresses that `source` had once and has no more, whose rows are removed; `present` are those it has.

    What was taken down stays known, and so do the rejected segments of a song that is stored.
    """
    by_url: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in stored.rejects:
        by_url[str(row["url"])].append(row)
    kept = {url: [row for row in rows if url in present or not _left(row, stored, source)] for url, rows in by_url.items()}
    changed = [url for url, rows in kept.items() if len(rows) < len(by_url[url])]
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(lambda url: dataset.write_reject_rows(out, url, kept[url]), changed))
    return replace(stored, rejects=[row for rows in kept.values() for row in rows]) if changed else stored


def _left(row: Mapping[str, Any], stored: Stored, source: Source) -> bool:
    """Of a row whose address is not in the source: whether it was."""
    if row["stage"] == TAKEDOWN or (row["segment"] is not None and row["song_id"] in stored.songs):
        return False
    listed_by = row["listed_by"] or ""
    if source.kind in LISTS:
        return bool(listed_by == str(source))
    return _is_inside(source.place, row["url"]) and listed_by.partition(":")[0] in ("", source.kind)


def _is_inside(place: Place, url: Any) -> bool:
    return str(url) == str(place) or str(url).startswith(f"{place}/")
