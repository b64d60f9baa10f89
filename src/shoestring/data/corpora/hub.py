"""Corpora from the Hugging Face hub, or any folder its `datasets` package can read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoestring.data.config import TextOptions
from shoestring.data.control_codes import controlled
from shoestring.data.corpus import stamp_files
from shoestring.data.reading import TextReading
from shoestring.errors import UsageError, did_you_mean
from shoestring.method import method

ROWS = 256
"""Rows held in memory at a time."""


@method(
    "data",
    kind="corpus",
    name="hf",
    claim="any public dataset of text by its name; its 'train' split is read",
    cost="a download the first time, a second or two to find it again; rows are read from a memory map",
)
class Hub:
    """The train split of `hf:NAME` or `hf:NAME:config`, where NAME is a dataset of the hub or a local folder.

    Needs the `datasets` package (`pip install 'shoestring[hub]'`). Trusted for its stamp: the Arrow files which
    `datasets` keeps in its own cache, under names that hold the dataset's version.
    Raises: UsageError where the package is missing, or the dataset, its train split or its text column is.
    """

    def __init__(self, where: str, text: TextOptions) -> None:
        name, _, configuration = where.partition(":")
        if not name:
            raise UsageError("'hf' needs a name: hf:NAME or hf:NAME:config")
        self.text, self.where, text_field = text, f"hf:{where}", text.text_field
        self.rows = _load(name, configuration or None)
        if text_field not in self.rows.column_names:
            near = did_you_mean(text_field, self.rows.column_names)
            raise UsageError(f"hf:{where} has no column '{text_field}' (data.text_field): {near}")
        if self.rows.features[text_field].dtype not in ("string", "large_string"):
            raise UsageError(f"hf:{where}: column '{text_field}' is not text")

        control = text.control_field
        if control and control not in self.rows.column_names:
            near = did_you_mean(control, self.rows.column_names)
            raise UsageError(f"hf:{where} has no column '{control}' (data.control_field): {near}")

    def stamp(self) -> str:
        return stamp_files(Path(file["filename"]) for file in self.rows.cache_files)

    def documents(self) -> Iterator[str]:
        reading = TextReading(self.text)
        yield from reading.documents(self._values(reading))
        reading.report()

    def _values(self, reading: TextReading) -> Iterator[str | None]:
        import pyarrow

        number, field, control = 0, self.text.text_field, self.text.control_field
        columns = [field, *([control] if control else [])]
        for table in self.rows.select_columns(columns).with_format("arrow").iter(batch_size=ROWS):
            values = table.column(field).cast(pyarrow.large_binary()).to_pylist()
            codes = table.column(control).to_pylist() if control else [None] * len(values)
            for value, code in zip(values, codes, strict=True):
                number += 1
                document = None if value is None else reading.value(value, self.where, f"row {number:,}")
                yield document and controlled(document, control, code, f"{self.where}, row {number:,}")


def _load(name: str, configuration: str | None) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise UsageError(f"'hf:{name}' needs the 'datasets' package: pip install 'shoestring[hub]'") from None
    try:
        # kept on disk whatever the user's settings, since the stamp is that of the files
        return datasets.load_dataset(name, configuration, split="train", keep_in_memory=False)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"'hf:{name}' cannot be loaded: {reason}") from None
