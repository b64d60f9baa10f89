"""Parquet: one row a document, the text in one column."""

from collections.abc import Iterator
from pathlib import Path

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
def parquet(path: Path, text_field: str) -> Iterator[str]:
    """The text column of every row; nulls are passed over.

    Raises: UsageError where the file is not Parquet, or the column is missing or is not text.
    """
    import pyarrow  # here, since it takes a while to import
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if text_field not in schema.names:
                raise UsageError(
                    f"{path}: no column '{text_field}' (data.text_field): {did_you_mean(text_field, schema.names)}"
                )
            kind = schema.field(text_field).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UsageError(f"{path}: column '{text_field}' is {kind}, not text")
            for batch in file.iter_batches(batch_size=ROWS, columns=[text_field]):
                yield from (value for value in batch.column(0).to_pylist() if value is not None)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UsageError(f"{path} cannot be read as Parquet: {str(error).partition(chr(10))[0]}") from None
