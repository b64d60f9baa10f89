"""Parquet: one row a document, the text in one column."""

from collections.abc import Iterator
from pathlib import Path

from shoestring.data.reading import TextReading
from shoestring.errors import UsageError, did_you_mean
from shoestring.method import method

ROWS = 256
"""Rows held in memory at a time."""


@method(
    "data",
    kind="format",
    name="parquet",
    claim="a row is a document; only the text column is read",
    cost="256 rows in memory, beside pyarrow's page of the column",
)
def parquet(path: Path, reading: TextReading) -> Iterator[str]:
    """The text column of every row; nulls are passed over.

    Raises: UsageError where the file is not Parquet, or the column is missing, is there twice, or is not text.
    """
    import pyarrow  # here, since it takes a while to import
    import pyarrow.parquet

    name, number = reading.options.text_field, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            columns = schema.names.count(name)
            if not columns:
                raise UsageError(f"{path}: no column '{name}' (data.text_field): {did_you_mean(name, schema.names)}")
            if columns > 1:
                raise UsageError(f"{path}: {columns} columns are named '{name}': rename the others (data.text_field)")
            kind = schema.field(name).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UsageError(f"{path}: column '{name}' is {kind}, not text")
            for batch in file.iter_batches(batch_size=ROWS, columns=[name]):
                # Parquet does not vouch for its text: as bytes, it is decoded here
                for value in batch.column(0).cast(pyarrow.large_binary()).to_pylist():
                    number += 1
                    document = None if value is None else reading.value(value, path, f"row {number:,}")
                    if document is not None:
                        yield document
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"{path} cannot be read as Parquet: {str(error).partition(chr(10))[0]}") from None
