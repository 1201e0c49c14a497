"""Small Parquet files at a place: one atomic write each, many read at once."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import UserError
from infra.storage.place import Place

READERS = 16


def read_table(files: Sequence[Place], schema: pa.Schema) -> pa.Table:
    """The columns of `schema` from many small Parquet files, in the files' order; an empty table when there are none."""
    return pa.concat_tables([schema.empty_table(), *read_tables(files, schema)])


def read_tables(files: Sequence[Place], schema: pa.Schema) -> list[pa.Table]:
    """The columns of `schema` of each file, many read at once.

    A column that an older file lacks is null there. Raises UserError for a file that is damaged or of another schema, and what the storage
    raises for one that is not there.
    """

    def read(file: Place) -> pa.Table:
        data = file.read_bytes()
        try:
            parquet = pq.ParquetFile(io.BytesIO(data))
            held = set(parquet.schema_arrow.names)
            table = parquet.read(columns=[name for name in schema.names if name in held])
            for name in schema.names:
                if name not in held and schema.field(name).nullable:
                    table = table.append_column(schema.field(name), pa.nulls(len(table), schema.field(name).type))
            return table.select(schema.names).cast(schema)
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise UserError(f"{file} is damaged or of another schema ({error}): delete it and run prepare again") from error

    with ThreadPoolExecutor(max_workers=READERS) as pool:
        return list(pool.map(read, files))


class TableCache:
    """The Parquet files of one folder, of which only those that are new or changed are read again."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._held: dict[str, tuple[str, pa.Table]] = {}

    def read(self, folder: Place) -> dict[str, pa.Table]:
        """Name → table of every file below `folder` as it is now, in the names' order; raises what `read_tables` raises."""
        versions = {name: version for name, version in folder.entries() if name.endswith(".parquet")}
        stale = sorted(name for name, version in versions.items() if self._held.get(name, ("",))[0] != version)
        tables = dict(zip(stale, read_tables([folder / name for name in stale], self.schema), strict=True))
        self._held = {
            name: (version, tables[name] if name in tables else self._held[name][1]) for name, version in sorted(versions.items())
        }
        return {name: table for name, (_, table) in self._held.items()}


def write_table(place: Place, table: pa.Table) -> None:
    """One Parquet file, atomically: the same table gives the same bytes."""
    place.write_bytes(table_bytes(table))


def table_bytes(table: pa.Table) -> bytes:
    """The Parquet file of a table."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False)
    return buffer.getvalue()
