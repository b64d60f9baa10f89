"""The small models that benches use, trained once and kept in the cache folder.

`make models` trains them. '10m' and '1.5m' read 4 million tokens of Python's own standard library, and have one tokenizer; on one
core they took 45 and 8 minutes. 'tasks-0.9m' and 'tasks-0.2m' read 2 million tokens of answers to the problems of
recipes/models/tasks.toml (bench/task_models.py), byte by byte, in 9 and 5 minutes. A model is kept under the digest of its recipe
(recipes/models/) and of the corpus, so a changed recipe is a new model. A training that was stopped goes on where it was. --quick
trains on a few thousand tokens, for smoke tests: the shapes are right, the text is not.

In a bench:

    from reference_models import reference_model
    opened = open_model(str(reference_model("10m")))
"""

import argparse
import hashlib
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from task_models import corpus as write_tasks
from task_models import mixture, text_digest

from shoestring.budget.machine import cache_folder
from shoestring.data.corpus import open_corpus
from shoestring.data.survey import digest
from shoestring.errors import ShoestringError, did_you_mean
from shoestring.locks import hold

log = logging.getLogger(__name__)

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "models"
TASK_NAMES = ("tasks-0.9m", "tasks-0.2m")
NAMES = ("10m", "1.5m", *TASK_NAMES)

QUICK = (
    "--budget=4ktok",
    "--train.batch=2",
    "--train.heldout_tokens=1024",
    "--train.sample_tokens=0",
    "--execution.compile=none",
    "--execution.attention=flash",
    "--execution.loss=plain",
    "--execution.precision=float32",
)
"""What makes a model of the same shape at once."""

QUICK_DOCUMENTS = 400
"""Of each task, for a model that is hardly trained."""

CORPUS = "python-stdlib"


def reference_model(name: str, *, quick: bool = False) -> Path:
    """The folder of the run of a reference model, which is trained first where it is not there yet.

    name: one of `NAMES`.
    quick: a model of the same shape, hardly trained.
    Raises: ShoestringError where the name is not known, or training fails.
    """
    if name not in NAMES:
        raise ShoestringError(f"no reference model '{name}': {did_you_mean(name, NAMES)}")
    folder = place(name, quick=quick)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold(folder.parent / f".{folder.name}.lock", wait=f"waiting for who trains {folder.name}"):
        if not (folder / "summary.json").exists():
            _train(name, folder, quick)
    return folder


def place(name: str, *, quick: bool = False) -> Path:
    """Where a reference model is kept."""
    whole = hashlib.sha256((RECIPES / f"{name}.toml").read_bytes())
    if name in TASK_NAMES:
        whole.update(text_digest(mixture()))
    else:
        for document in open_corpus(CORPUS).documents():
            whole.update(digest(document))
    whole.update(" ".join(QUICK if quick else []).encode())
    return cache_folder() / "models" / f"{name}{'-quick' if quick else ''}-{whole.hexdigest()[:16]}"


def _train(name: str, folder: Path, quick: bool) -> None:
    begun = (folder / "config.toml").exists()
    words = ["--resume", str(folder)] if begun else [str(RECIPES / f"{name}.toml"), "--out", str(folder)]
    if name in TASK_NAMES and not begun:
        text = folder.parent / f"answers-{'quick-' if quick else ''}{text_digest(mixture()).hex()[:16]}.jsonl"
        if not text.exists():
            log.warning(f"writing what {name} learns from to {text}")
            write_tasks(mixture(), text, QUICK_DOCUMENTS if quick else None)
        words.append(f"--data.corpus={text}")
    if quick and not begun:
        words += QUICK
    log.warning(f"{'going on with' if begun else 'training'} the reference model {name} in {folder}")
    done = subprocess.run([sys.executable, "-m", "shoestring", "train", *words], check=False)
    if done.returncode:
        raise ShoestringError(f"training the reference model {name} failed: shoestring train {' '.join(words)}")


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="some of them, default all")
    parser.add_argument("--quick", action="store_true", help="hardly trained, for smoke tests")
    options = parser.parse_args(words)
    for name in options.names or NAMES:
        print(f"{name}: {reference_model(name, quick=options.quick)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
