"""Parquet: one row a document, the text in one column."""

from collections.abc import Iterator
from pathlib import Path

from shoestring.data.control_codes import controlled
from shoestring.data.reading import TextReading
from shoestring.errors import UsageError, did_you_mean
from shoestring.method import method

ROWS = 256
"""Rows held in memory at a time."""


@method(
    "data",
    kind="format",
    name="parquet",
    claim="a row is a document; the text column alone is read, and that of control codes",
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
            control = reading.options.control_field
            if control and schema.names.count(control) != 1:
                raise UsageError(
                    f"{path}: no one column '{control}' (data.control_field): {did_you_mean(control, schema.names)}"
                )
            for batch in file.iter_batches(batch_size=ROWS, columns=[name, *([control] if control else [])]):
                # Parquet does not vouch for its text: as bytes, it is decoded here
                values = batch.column(name).cast(pyarrow.large_binary()).to_pylist()
                codes = batch.column(control).to_pylist() if control else [None] * len(values)
                for value, code in zip(values, codes, strict=True):
                    number += 1
                    document = None if value is None else reading.value(value, path, f"row {number:,}")
                    if document is not None:
                        yield controlled(document, control, code, f"{path}, row {number:,}")
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"{path} cannot be read as Parquet: {str(error).partition(chr(10))[0]}") from None
