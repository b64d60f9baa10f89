"""Near-duplicates found on a labelled set that is made here: precision, recall, F1, MB/s and memory, beside datasketch alone.

Documents are drawn from Zipf's law over a made vocabulary. Some have copies that were edited in known ways at known rates. A copy
is a near-duplicate where the share of runs of five words that it has in common with an earlier document of its family, worked out
exactly, is at the threshold or above; the edit decides nothing else. Same seed, same set: the found clusters are the same in every
run, and the bench fails where two runs of one side differ. Each side runs in a process of its own, so that its peak of memory is
its own. MB/s is of the whole: reading, hashing, candidates, clusters; --untimed leaves it out, as a busy machine says nothing
of it, and what is found hangs on no clock. Needs `datasketch` (`pip install -e '.[bench]'`).

text-dedup is a third side where --text-dedup names a Python that has it (its requirements are at odds with this project's): its own
command, with as many permutations, the same runs of words and threshold, one process; its start counts, as it is one command.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from three_domains import untimed_environment

from shoestring import atomic
from shoestring.budget.ledger import peak_memory
from shoestring.budget.machine import probe
from shoestring.config import Choice
from shoestring.data.config import TextOptions
from shoestring.data.corpus import open_corpus
from shoestring.data.curation.account import Account
from shoestring.data.curation.curate import curate
from shoestring.data.curation.documents import CorpusSource, open_documents
from shoestring.train.run_folder import environment

NGRAM, PERMUTATIONS, THRESHOLD = 5, 128, 0.8
WORDS = 400
"""Words of a document, on average."""

EDITS: dict[str, Callable[[list[str], float, random.Random], list[str]]] = {}
"""Kinds of edit: what each makes of the words of a document, at a rate."""

RATES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3)
SIDES = ("shoestring", "datasketch")
TEXT_DEDUP = "text-dedup"


def edit(function: Callable[[list[str], float, random.Random], list[str]]) -> Any:
    EDITS[function.__name__] = function
    return function


@edit
def replaced(words: list[str], rate: float, generator: random.Random) -> list[str]:
    """Single words are others."""
    return [f"x{generator.randrange(10**6)}" if generator.random() < rate else word for word in words]


@edit
def dropped(words: list[str], rate: float, generator: random.Random) -> list[str]:
    """Single words are gone."""
    return [word for word in words if generator.random() >= rate] or words


@edit
def framed(words: list[str], rate: float, generator: random.Random) -> list[str]:
    """Another header and footer, as pages of one site have."""
    more = [f"h{generator.randrange(10**6)}" for _ in range(round(rate * len(words)))]
    return [*more[::2], *words, *more[1::2]]


@edit
def shuffled(words: list[str], rate: float, generator: random.Random) -> list[str]:
    """Stretches of words change places."""
    pieces = max(1, round(rate * len(words) / 4))
    cuts = sorted(generator.sample(range(1, len(words)), min(pieces, len(words) - 1)))
    parts = [words[low:high] for low, high in zip([0, *cuts], [*cuts, len(words)], strict=True)]
    generator.shuffle(parts)
    return [word for part in parts for word in part]


def documents(count: int, seed: int) -> Iterator[tuple[str, int, str]]:
    """(text, the number of the document that it is a copy of, or -1, the kind and rate of the edit), `count` of them."""
    generator = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(20_000)]
    weights = np.cumsum(1 / (10 + np.arange(len(vocabulary)))).tolist()
    originals: list[tuple[int, list[str]]] = []
    for number in range(count):
        if originals and generator.random() < 0.4:
            of, words = originals[generator.randrange(len(originals))]
            kind, rate = generator.choice(sorted(EDITS)), generator.choice(RATES)
            yield " ".join(EDITS[kind](words, rate, generator)), of, f"{kind} {rate:g}"
        else:
            size = max(20, round(generator.lognormvariate(np.log(WORDS), 0.6)))
            words = generator.choices(vocabulary, cum_weights=weights, k=size)
            if len(originals) < 1000:
                originals.append((number, words))
            else:
                originals[generator.randrange(1000)] = number, words
            yield " ".join(words), -1, ""


def runs_of(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[place : place + NGRAM]) for place in range(max(len(words) - NGRAM + 1, 1))}


def labelled(count: int, seed: int, path: Path) -> tuple[list[int], list[str], list[float]]:
    """Write the set. Returns (original, edit, greatest exact similarity to an earlier one of its family) of each document."""
    of, edits, similarity = [], [], []
    families: dict[int, list[set[tuple[str, ...]]]] = {}
    with open(path, "w", encoding="utf-8") as file:
        for number, (text, original, kind) in enumerate(documents(count, seed)):
            own = runs_of(text)
            if original < 0:
                families[number] = [own]
                similarity.append(0.0)
            else:
                family = families[original]
                similarity.append(max(len(own & other) / len(own | other) for other in family))
                family.append(own)
            of.append(original)
            edits.append(kind)
            file.write(json.dumps({"text": text}) + "\n")
    return of, edits, similarity


def ours(path: Path, cache: Path) -> list[int]:
    """The first document of each document's cluster, by `minhash`."""
    account = Account()
    found = open_documents(CorpusSource(open_corpus(str(path), TextOptions()), ""), cache, account)
    choice = Choice.of("data", "minhash", kind="curation", threshold=THRESHOLD, permutations=PERMUTATIONS, ngram=NGRAM)
    curated = curate(found, [choice], account)
    copies = curated.values["minhash.of"]
    return np.where(copies >= 0, copies, np.arange(len(copies))).tolist()


def datasketch_alone(path: Path, cache: Path) -> list[int]:
    """The same, by datasketch's MinHash and index, which looks up each document and then adds it."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    first: list[int] = []
    for number, text in enumerate(open_corpus(str(path), TextOptions()).documents()):
        words = text.lower().split()
        made = MinHash(num_perm=PERMUTATIONS, seed=1)
        shingles = {" ".join(words[place : place + NGRAM]) for place in range(max(len(words) - NGRAM + 1, 1))}
        made.update_batch([shingle.encode() for shingle in shingles])
        near = [first[other] for other in index.query(made)]
        index.insert(number, made)
        first.append(min([number, *near]))
    return first


def text_dedup(path: Path, cache: Path, python: str) -> list[int]:
    """The same, by text-dedup's own command, in a process of its own (curation_text_dedup.py)."""
    count = sum(1 for _ in open_corpus(str(path), TextOptions()).documents())
    program = Path(__file__).with_name("curation_text_dedup.py")
    command = [python, program, path, cache, NGRAM, PERMUTATIONS, THRESHOLD, count]
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=bare, check=False)
    if done.returncode:
        raise SystemExit(f"text-dedup: exit status {done.returncode}\n{done.stderr[-2000:]}")
    stands = json.loads(done.stdout.splitlines()[-1])
    first: dict[int, int] = {}
    for number, root in enumerate(stands):
        first.setdefault(root, number)
    return [first[root] for root in stands]


def peak() -> int:
    """Bytes of this program at most. `getrusage` counts the program before `exec` too, which here is the one that made the set."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return peak_memory()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def side(name: str, path: Path, python: str | None) -> dict[str, Any]:
    """One side in this process: what it found, what it took. python: that has text-dedup."""
    sides: dict[str, Callable[[Path, Path], list[int]]] = {"shoestring": ours, "datasketch": datasketch_alone}
    if python is not None:
        sides[TEXT_DEDUP] = partial(text_dedup, python=python)
    with tempfile.TemporaryDirectory() as cache:
        before, began = peak(), time.perf_counter()
        found = sides[name](path, Path(cache))
        seconds = time.perf_counter() - began
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    child = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if name == TEXT_DEDUP else 0
    return {"first": found, "digest": digest, "seconds": seconds, "peak": max(peak(), child), "before": before}


def judged(first: Sequence[int], of: Sequence[int], similarity: Sequence[float]) -> dict[str, float]:
    """Precision, recall and F1 of dropping what is a near-duplicate of an earlier document."""
    truth = np.array([original >= 0 and alike >= THRESHOLD for original, alike in zip(of, similarity, strict=True)])
    said = np.array(first) != np.arange(len(first))
    hit = int((truth & said).sum())
    precision, recall = hit / max(int(said.sum()), 1), hit / max(int(truth.sum()), 1)
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / max(precision + recall, 1e-12)}


def by_edit(first: Sequence[int], edits: Sequence[str], similarity: Sequence[float]) -> dict[str, dict[str, float]]:
    """Of each kind and rate of edit: how many, their mean similarity, the share that was dropped."""
    found = {}
    for kind in sorted(set(edits) - {""}):
        own = [place for place, each in enumerate(edits) if each == kind]
        alike, gone = [similarity[place] for place in own], [first[place] != place for place in own]
        found[kind] = {"copies": len(own), "similarity": float(np.mean(alike)), "dropped": float(np.mean(gone))}
    return found


def measure(count: int, seed: int, repeats: int, *, timed: bool, python: str | None) -> dict[str, Any]:
    """All sides on one set, each in processes of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "set.jsonl"
        of, edits, similarity = labelled(count, seed, path)
        size = path.stat().st_size
        found: dict[str, Any] = {
            "documents": count,
            "megabytes": size / 1e6,
            "near-duplicates": sum(alike >= THRESHOLD for alike in similarity),
            "sides": {},
        }
        for name in SIDES if python is None else (*SIDES, TEXT_DEDUP):
            turns = [_apart(name, path, python) for _ in range(repeats)]
            if len({turn["digest"] for turn in turns}) > 1:
                raise SystemExit(f"{name} found other clusters in another run of the same set")
            seconds = sorted(turn["seconds"] for turn in turns)[repeats // 2] if timed else None
            found["sides"][name] = {
                **judged(turns[0]["first"], of, similarity),
                "megabytes_per_second": None if seconds is None else size / 1e6 / seconds,
                "memory": max(turn["peak"] for turn in turns),
                "memory_at_start": min(turn["before"] for turn in turns),
                "digest": turns[0]["digest"],
                "edits": by_edit(turns[0]["first"], edits, similarity),
            }
    return found


def _apart(name: str, path: Path, python: str | None) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", name, "--set", str(path)]
    command += [] if python is None else ["--text-dedup", python]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000, help="in the set (default 20,000: 50 MB)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--untimed", action="store_true", help="what is found and the memory alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--smallest", action="store_true", help="200 documents, once")
    parser.add_argument("--text-dedup", metavar="PYTHON", help="of an environment with the package text-dedup")
    parser.add_argument("--side", choices=(*SIDES, TEXT_DEDUP), help=argparse.SUPPRESS)
    parser.add_argument("--set", type=Path, help=argparse.SUPPRESS)
    found = parser.parse_args(words)
    if found.side:
        print(json.dumps(side(found.side, found.set, found.text_dedup)))
        return 0
    if found.smallest:
        found.documents, found.repeats = 200, 1
    figures = measure(found.documents, found.seed, found.repeats, timed=not found.untimed, python=found.text_dedup)
    print(
        f"{figures['documents']:,} documents, {figures['megabytes']:.0f} MB, {figures['near-duplicates']:,} near-duplicates"
    )
    for name, each in figures["sides"].items():
        speed = each["megabytes_per_second"]
        print(
            f"{name:11} precision {each['precision']:.4f}  recall {each['recall']:.4f}  F1 {each['f1']:.4f}  "
            f"{'not timed' if speed is None else f'{speed:6.1f} MB/s'}  {each['memory'] / 1e6:,.0f} MB at most, "
            f"{each['memory_at_start'] / 1e6:,.0f} at the start"
        )
    if found.json:
        where = untimed_environment() if found.untimed else environment(probe())
        content = {**figures, "seed": found.seed, "environment": where}
        atomic.write_text(found.json, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
