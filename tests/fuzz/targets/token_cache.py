"""The files of a prepared corpus are damaged: `prepare` gives the very tokens that were prepared, or refuses in one line."""

import random
import shutil
from pathlib import Path
from typing import Any

from shoestring import data
from shoestring.data import DataConfig, Dataset
from tests.fuzz.explore import Case
from tests.fuzz.mutations import mutate_bytes, mutate_json


def prepare(folder: Path) -> Case:
    corpus, cache = folder / "corpus", folder / "cache"
    corpus.mkdir()
    for number in range(40):
        lines = [f"line {place} of text {number}: {'abc' * (1 + (number + place) % 5)}\n" for place in range(40)]
        (corpus / f"{number:03}.txt").write_text("".join(lines))
    config = DataConfig(corpus=str(corpus), tokenizer="bytes", heldout=0.2)
    whole = _contents(data.prepare(config, cache))
    files = {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    damageable = sorted(path for path, content in files.items() if content and path.suffix in (".json", ".bin"))

    def case(draw: random.Random) -> None:
        name = draw.choice(damageable)
        path, content = cache / name, files[name]
        try:
            if draw.random() < 0.03:
                path.unlink()
            else:
                path.write_bytes(mutate_json(content, draw) if path.suffix == ".json" else mutate_bytes(content, draw))
            found = _contents(data.prepare(config, cache))
            assert found == whole, f"{name} was damaged, and other tokens were accepted"
        finally:
            _restore(cache, files)

    return case


def _contents(dataset: Dataset) -> tuple[Any, ...]:
    stores = (dataset.train, dataset.heldout)
    return (
        *((store.tokens.tolist(), store.document_starts.tolist(), store.text_bytes) for store in stores),
        dataset.tokenizer.fingerprint,
        dataset.fingerprint,
    )


def _restore(cache: Path, files: dict[Path, bytes]) -> None:
    for path in cache.rglob("*"):
        if path.is_file() and path.relative_to(cache) not in files:
            path.unlink()
    for name, content in files.items():
        path = cache / name
        if path.is_dir():
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
