"""A CSV or Parquet file as columns of text."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from infra.errors import UserError
from infra.storage.place import MissingObjectError, Place

_PARQUET = b"PAR1"
_HEAD_BYTES = 2**16
_SEPARATORS = (",", ";", "\t")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """A file in memory, of which only the header was read."""

    place: Place
    data: bytes = field(repr=False)
    header: tuple[str, ...]
    """The columns' names as they are written."""
    separator: str = ","
    unreadable: list[int] = field(default_factory=list)
    """Lines of a CSV whose number of columns is not the header's, as far as `read` has met them; 0 where the number is not known."""

    @property
    def is_parquet(self) -> bool:
        return self.separator == ""

    def column(self, names: Sequence[str]) -> str | None:
        """The first of `names` that the file has, as it is written there; case and blanks do not matter."""
        written = {name.strip().lower(): name for name in reversed(self.header)}
        return next((written[name] for name in names if name in written), None)

    def read(self, columns: Sequence[str]) -> dict[str, pa.ChunkedArray]:
        """These columns as text without surrounding blanks, "" where nothing is written."""
        try:
            table = self._parquet(columns) if self.is_parquet else self._csv(columns)
        except (pa.ArrowException, UnicodeDecodeError, KeyError) as error:
            raise UserError(
                f"{self.place} cannot be read ({str(error).splitlines()[0]}): write it again, as CSV in UTF-8 or as Parquet"
            ) from error
        return {name: pc.utf8_trim_whitespace(pc.fill_null(pc.cast(table[name], pa.large_string()), "")) for name in columns}

    def _parquet(self, columns: Sequence[str]) -> pa.Table:
        return pyarrow.parquet.read_table(pa.BufferReader(self.data), columns=list(columns))

    def _csv(self, columns: Sequence[str]) -> pa.Table:
        def note(row: pyarrow.csv.InvalidRow) -> str:
            self.unreadable.append(row.number or 0)
            return "skip"

        return pyarrow.csv.read_csv(
            pa.BufferReader(self.data),
            # One thread: only then lines are numbered, and reading is the small part.
            read_options=pyarrow.csv.ReadOptions(use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(delimiter=self.separator, newlines_in_values=True, invalid_row_handler=note),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(columns), column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
            ),
        )


def open_sheet(place: Place, expected: str) -> Sheet:
    """The file's header; UserError, which says what is `expected`, when there is no such file, or nothing in it."""
    if not place.is_s3 and place.path.is_dir():
        raise UserError(f"{place} is a folder: give {expected}")
    try:
        data = place.read_bytes()
    except MissingObjectError as error:
        raise UserError(f"{place} does not exist: give {expected}") from error
    if data.startswith(_PARQUET):
        try:
            schema = pyarrow.parquet.read_schema(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{place} is damaged Parquet ({str(error).splitlines()[0]}): give {expected}") from error
        return Sheet(place=place, data=data, header=tuple(schema.names), separator="")
    try:
        start = data[:_HEAD_BYTES].decode("utf-8-sig", "strict" if len(data) <= _HEAD_BYTES else "ignore")
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is neither Parquet nor CSV in UTF-8: give {expected}") from error
    first = next((line for line in start.splitlines() if line.strip()), "")
    if not first or "\0" in first:
        raise UserError(f"{place} {'is neither Parquet nor CSV' if first else 'is empty'}: give {expected}")
    separator = max(_SEPARATORS, key=first.count)
    header = tuple(next(csv.reader([first], delimiter=separator)))
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{place} has the column {twice[0]!r} twice: rename one; expected is {expected}")
    return Sheet(place=place, data=data, header=header, separator=separator)
