"""What is stored of a downloaded song beside its file: where it came from, when, by whom, under which licence."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from typing import Literal

from infra.storage.place import MissingObjectError, Place

logger = logging.getLogger(__name__)

RECORDS = "records"


@dataclass(frozen=True, kw_only=True)
class PageMetadata:
    """What yt-dlp read from a web page."""

    extractor: str
    id: str
    url: str
    title: str = ""
    artist: str = ""
    license: str = ""
    upload_date: str = ""
    """YYYYMMDD."""
    duration_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class AcquiredMedia:
    """Where a stored file came from, when, and by whom."""

    url: str
    final_url: str
    """After redirects; of a page, the address of its sound."""
    file: str
    """Name below the store."""
    sha256: str
    bytes: int
    content_type: str
    etag: str
    title: str
    artist: str
    license: str
    fetched_at: str
    """ISO 8601, UTC."""
    operator: str
    how: Literal["http", "yt-dlp"]
    tool: str
    """Name and version of what fetched it."""
    page: PageMetadata | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"


def record_place(store: Place, url: str) -> Place:
    """Where the record of this web address lies."""
    return store / f"{RECORDS}/{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"


def read_record(store: Place, url: str) -> AcquiredMedia | None:
    """The record of this web address, if there is one that this version reads; StorageError when the store fails."""
    place = record_place(store, url)
    try:
        fields = json.loads(place.read_bytes())
        page = fields.pop("page")
        return AcquiredMedia(**fields, page=PageMetadata(**page) if page else None)
    except MissingObjectError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("%s is not a record of this version (%s): the song is acquired again", place, error)
        return None
