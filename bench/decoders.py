"""A verdict on each way to decode: `shoestring compare` of recipes/decoders, on prompts by the hundred, in bounded time.

    python bench/decoders.py --on smollm2                     # every way that needs no second model
    python bench/decoders.py ngram fast_mtp --on smollm2 --kinds copies
    python bench/decoders.py --on pair --seconds 240          # the reference models of `make models`: 1.5m drafts for 10m
    python bench/decoders.py --on tasks --kinds questions     # tasks-0.2m drafts for tasks-0.9m
    python bench/decoders.py sequence_scheduling e_batch --rows 8
    python bench/decoders.py exspec --beside draft_model --on pair --rows 8        # EXSPEC against EQSPEC
    python bench/decoders.py multi_token --place runs/mtp     # a run with `--edits multi_token_heads --objective multi_token`

Texts are of Python's own library, or 'questions' of the tasks that the task models learned. 'copies': a piece of code and its first
half again, which the model goes on copying; 'plain': a piece of code.
Files that a way needs are made first (`shoestring prepare`), of other documents, and kept under --files. How many
items fit into --seconds is found by timing the base on a few; each comparison is a folder under --out. Ways that change the text
are held to its loss within --margin.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from reference_models import reference_model
from task_models import mixture

from shoestring.base import open_model
from shoestring.compare.decoders import DecodeConfig, Decoders
from shoestring.config import build, read_toml
from shoestring.data.config import DataConfig
from shoestring.data.corpus import open_corpus
from shoestring.errors import UsageError

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "decoders"
DRAFTED = ("draft_model", "exspec", "staged", "longspec", "bild", "autojudge")
"""Ways that need a smaller model."""
SCHEDULED = ("sequence_scheduling", "adaptive_chunks", "equal_lengths", "batch_advisor", "e_batch", "exspec")
"""Ways that differ where several prompts are answered together."""
TRAINED = ("multi_token", "layer_skip")
"""Ways that need a model which was trained for them: --place."""
MADE = {
    "fast_mtp": "fast_mtp",
    "m2r2": "m2r2",
    "nest": "datastore",
    "dr_llm": "dr_llm",
    "knn_lm": "datastore",
    "retomaton": "datastore",
    "autojudge": "autojudge",
}
"""Ways that need a file, and what makes it."""
FLAGS = {"dr_llm": "routers", "autojudge": "judge", "knn_lm": "datastore", "retomaton": "datastore"}
LOSSY = ("bild", "autojudge", "skip_decode", "ffn_skipllm", "dr_llm", "knn_lm", "retomaton")
WAYS = tuple(dict.fromkeys(("ngram", *DRAFTED, *TRAINED, "fast_mtp", "m2r2", "nest", *LOSSY[2:], *SCHEDULED)))
KINDS = ("copies", "plain", "questions")
TRIED = 4
"""Items by which the base is timed."""


def read(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", help=f"of {', '.join(WAYS)}; default all that can be")
    parser.add_argument("--on", choices=("smollm2", "pair", "tasks"), default="smollm2", help="the model")
    parser.add_argument("--place", help="another model, in place of --on; --draft: its draft model")
    parser.add_argument("--draft", help="the place of a smaller model of the same tokens")
    parser.add_argument("--beside", default="plain", help="the way that each is compared with, default plain")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS[:2], help="of text, default copies plain")
    parser.add_argument("--rows", type=int, default=1, help="prompts at a time, default 1")
    parser.add_argument("--seconds", type=float, default=240.0, help="of a comparison, default 240")
    parser.add_argument("--items", type=int, default=400, help="at most, default 400")
    parser.add_argument("--prompt-tokens", type=int, default=96, help="of a piece of code, default 96")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer, default 48")
    parser.add_argument("--made-tokens", type=int, default=20_000, help="of text that files are made of, default 20000")
    parser.add_argument("--prepare", default="", help="more words for `shoestring prepare`, as one string")
    parser.add_argument("--margin", type=float, default=0.1, help="of the loss where the text changes, nats a token")
    parser.add_argument("--files", type=Path, default=Path("runs/decoders/files"), help="where made files are kept")
    parser.add_argument("--out", type=Path, default=Path("runs/decoders"), help="where comparisons go")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all verdicts there")
    parser.add_argument("--smallest", action="store_true", help="see that it works, no more")
    return parser.parse_args(words)


def texts(place: str, kind: str, count: int, size: int) -> tuple[list[str], list[str]]:
    """(prompts, documents that no prompt is of). size: tokens of a piece of code."""
    if kind == "questions":
        tasks = [part.task.build() for part in mixture().portions]
        each = [task.problems("test", 0, -(-count // len(tasks))) for task in tasks]
        return [problem.prompt for problems in zip(*each, strict=True) for problem in problems][:count], []
    tokenizer = open_model(place).tokenizer
    assert tokenizer is not None
    found, rest = list[str](), list[str]()
    for document in open_corpus(DataConfig().corpus).documents():
        if len(found) == count:
            rest.append(document)
            if len(rest) == 60:
                break
            continue
        for start in range(200, min(len(document), 4000), 16 * size):
            ids = tokenizer.encode(document[start : start + 16 * size])[:size]
            if len(ids) == size and len(found) < count:
                found.append(tokenizer.decode(ids + ids[: size // 2] if kind == "copies" else ids))
    return found, rest


def shoestring(*words: object) -> str:
    """Run the command; what it printed. Raises: UsageError with what it said where it failed."""
    done = subprocess.run([sys.executable, "-m", "shoestring", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"shoestring {words[0]} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def made(
    way: str, place: str, draft: str | None, documents: Sequence[str], options: argparse.Namespace, name: str
) -> Path:
    """The file that a way needs, made once. A judge learns of sums that the models learned to do."""
    path: Path = options.files / f"{name}-{MADE[way]}-{options.made_tokens}"
    if not path.exists():
        options.files.mkdir(parents=True, exist_ok=True)
        if way == "autojudge":
            about = ["--task", "arithmetic", "--task.digits=2", "--problems", 4 if options.smallest else 200]
            print(shoestring("prepare", way, place, "--draft", draft, *about, "--out", path), end="", flush=True)
            return path
        corpus = options.files / f"{name}-text.jsonl"
        corpus.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
        more = ["--prepare.rollouts=2", "--prepare.most_texts=2"] if options.smallest and way == "dr_llm" else []
        more += options.prepare.split()
        words = ["prepare", MADE[way], place, "--text", corpus, "--tokens", options.made_tokens, "--out", path, *more]
        print(shoestring(*words), end="", flush=True)
    return path


def items_within(place: str, prompts: Sequence[str], options: argparse.Namespace) -> int:
    """How many items two arms can do in the time, were both as fast as the base."""
    table = {**read_toml(RECIPES / "plain.toml")["decode"], "place": place, "rows": options.rows}
    config = build(DecodeConfig, {**table, "max_new_tokens": options.tokens})
    bench = Decoders({"plain": config}, prompts[: TRIED * options.rows])
    bench(("plain",), 0)  # the first is slower
    began = time.perf_counter()
    bench(("plain",), 0)
    each = (time.perf_counter() - began) / bench.items
    # a candidate may be slower, and the model has to be opened
    return max(2, min(options.items, len(prompts) // options.rows, int(options.seconds / (3 * each))))


def main(words: Sequence[str] | None = None) -> int:
    options = read(words)
    if options.smallest:
        options.seconds, options.items, options.tokens, options.prompt_tokens, options.made_tokens = 5.0, 2, 6, 24, 400
    place, draft, name = options.place or "smollm2", options.draft, "smollm2"
    if options.on == "pair" and not options.place:
        place, draft, name = str(reference_model("10m")), str(reference_model("1.5m")), "pair"
    elif options.on == "tasks" and not options.place:
        place, draft, name = str(reference_model("tasks-0.9m")), str(reference_model("tasks-0.2m")), "tasks"
    elif options.place:
        name = Path(options.place).name
    can = [way for way in WAYS if (draft or way not in DRAFTED) and way not in TRAINED]
    ways = options.ways or [way for way in can if options.rows > 1 or way not in SCHEDULED]
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        raise UsageError(f"no way to decode is called '{unknown[0]}': {', '.join(WAYS)}")
    verdicts = []
    for kind in options.kinds:
        prompts, documents = texts(place, kind, options.items * options.rows, options.prompt_tokens)
        options.out.mkdir(parents=True, exist_ok=True)
        asked = options.out / f"{name}-{kind}-prompts.jsonl"
        asked.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        items = items_within(place, prompts, options)
        for way in ways:
            if way in DRAFTED and not draft:
                raise UsageError(f"{way} needs a smaller model: --on pair, or --draft PLACE")
            flags = [
                f"--decode.place={place}",
                f"--decode.rows={options.rows}",
                f"--decode.max_new_tokens={options.tokens}",
            ]
            if way in DRAFTED:
                flags.append(f"--decode.draft={draft}")
            if way in MADE:
                flags.append(f"--decode.{FLAGS.get(way, 'draft')}={made(way, place, draft, documents, options, name)}")
            keep = ["--keep=loss", f"--margin={options.margin}"] if way in LOSSY else []
            beside = "" if options.beside == "plain" else f"-beside-{options.beside}"
            out = options.out / f"{name}-{kind}-{way}-{options.rows}{beside}"
            began = time.perf_counter()
            arms = [
                RECIPES / f"{options.beside}.toml",
                RECIPES / f"{way}.toml",
                "--prompts",
                asked,
                "--items",
                items,
                "--seeds",
                1,
            ]
            words = ["--resume", out] if out.exists() else [*arms, "--out", out, *keep, *flags]
            told = shoestring("compare", *words, "--json")
            (row,) = json.loads(told)["comparisons"]
            seconds = time.perf_counter() - began
            verdicts.append({"kind": kind, "way": way, "rows": options.rows, "seconds": seconds, **row})
            print(f"{kind}, {items} items in {seconds:.0f} s: {row['sentence']}", flush=True)
            if options.json:
                options.json.write_text(json.dumps({"on": name, "verdicts": verdicts}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
