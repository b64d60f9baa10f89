"""How fast prepared tokens are checked when they are opened: GB/s, beside SHA-256 of the same file and merely reading it.

Tokens at random are written as `prepare` writes them, to a temporary folder. The file is in the page cache: from a disk that is
slower than the check, the disk's own speed is what there is. The medians of the repeats are printed. Seconds.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from shoestring import atomic
from shoestring.budget.machine import probe
from shoestring.data.store import StoreWriter, TokenStore
from shoestring.train.run_folder import environment

VOCABULARY, DOCUMENT = 4096, 1000
U16 = np.dtype(np.uint16)


def measure(megabytes: int, repeats: int) -> dict[str, float]:
    """GB/s by what is done with the file."""
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, megabytes * 500_000, dtype=np.uint16)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        writer = StoreWriter(folder, "train", U16, end=0)
        for place in range(0, len(tokens), DOCUMENT):
            writer.add(tokens[place : place + DOCUMENT].tolist(), DOCUMENT)
        part = writer.close()
        path = folder / part.shards[0].file
        ways: dict[str, Callable[[], object]] = {
            "opened and checked": lambda: TokenStore.open(folder, part, U16, VOCABULARY),
            "SHA-256": lambda: hashlib.sha256(np.memmap(path, mode="r").data).digest(),
            "read": path.read_bytes,
        }
        size = path.stat().st_size / 1e9
        return {name: size / median(_seconds(way) for _ in range(repeats)) for name, way in ways.items()}


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="of tokens (default 200; at most one shard, 268)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    found = parser.parse_args(words)
    rates = measure(found.megabytes, found.repeats)
    for name, rate in rates.items():
        print(f"{name:20} {rate:6.2f} GB/s")
    if found.out:
        content = {"environment": environment(probe()), "megabytes": found.megabytes, "gigabytes_per_second": rates}
        atomic.write_text(found.out, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
