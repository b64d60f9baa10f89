"""Files of a corpus are damaged: their documents are text of a bounded length, or the file is refused in one line."""

import gzip
import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet

from shoestring.data import open_corpus
from shoestring.data.config import TextOptions
from shoestring.data.passages import PASSAGE
from shoestring.log_lines import held_back
from tests.fuzz.explore import Case
from tests.fuzz.mutations import mutate_bytes, mutate_json_lines

ENCODINGS = ("auto", "utf-8", "utf-16", "utf-16-le", "cp1252", "shift_jisx0213", "gb18030", "utf-7", "latin-1")


def prepare(folder: Path) -> Case:
    texts = [f"Document {number} says é and 日本: {'the cat sat; ' * (number % 7)}\n" for number in range(60)]
    texts.append("long " * 40_000)
    plain = "".join(texts[:60]).encode()
    lines = "".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(texts)).encode()
    table = folder / "whole.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "n": range(len(texts))}), table, row_group_size=20)
    files = {
        "a.txt": plain,
        "b.jsonl": lines,
        "c.parquet": table.read_bytes(),
        "d.txt.gz": gzip.compress(plain),
        "e.md": ("\ufeff" + "".join(texts[:9])).encode("utf-16-le"),
    }
    table.unlink()
    place = folder / "corpus"
    place.mkdir()

    def case(draw: random.Random) -> None:
        name = draw.choice(list(files))
        encoding = draw.choice(ENCODINGS) if draw.random() < 0.4 else "auto"
        options = TextOptions("text", encoding, draw.choice(("refuse", "replace", "skip")))
        damaged = mutate_json_lines(files[name], draw) if name == "b.jsonl" else mutate_bytes(files[name], draw)
        path = place / name
        path.write_bytes(damaged)
        (place / "fine.txt").write_text("fine")
        try:
            with held_back("shoestring") as said:
                for where in (path, place):
                    for document in open_corpus(str(where), options).documents():
                        assert 0 < len(document) <= PASSAGE
                        document.encode()
            assert all(line.isprintable() for line in said)
        finally:
            path.unlink()

    return case
