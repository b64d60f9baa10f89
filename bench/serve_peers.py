"""What stands beside our server: llama.cpp's own `llama-server` (or that of its Python package), and transformers' continuous
batching."""

import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2 as httpx
from serve_clients import Asked, prompt

from shoestring.base import open_model
from shoestring.base.openers.smollm2 import file_of_package
from shoestring.base.writer import Writer

PAGE = 64
"""Tokens of a page of transformers' cache."""


@contextmanager
def ours(place: str, dtype: str) -> Iterator[str]:
    """The address of `shoestring serve`, which runs for the time of the block."""
    words = [sys.executable, "-m", "shoestring", "serve", f"model={place}", "--port", "0", "--dtype", dtype]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("http"):
            process.terminate()
            raise SystemExit("the server did not start: run `shoestring serve` by hand")
        try:
            yield line.split()[0]
        finally:
            process.terminate()


def ends_of(place: str) -> frozenset[int]:
    """The tokens that end a model's texts: servers that know no `ignore_eos` are told never to choose them."""
    return Writer.of(open_model(place)).ends


def llama_server() -> str | None:
    """llama.cpp's own server, where it is on the PATH; it works on many requests at a time."""
    return shutil.which("llama-server")


def _answers(address: str) -> bool:
    """Whether a server is ready: it says 503 while it reads its model."""
    try:
        return httpx.get(address, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def llama_cpp(place: str, context: int, rows: int, threads: int, limit: float) -> Iterator[str]:
    """The address of llama.cpp's server for the same GGUF file: of `llama-server`, else of the Python package, which answers one
    request at a time. context: tokens of a request. rows: requests at a time."""
    path = str(file_of_package()) if place == "smollm2" else place
    if not path.endswith(".gguf"):
        raise SystemExit(f"llama.cpp reads GGUF files, and {place} is none")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = llama_server()
    if own is not None:
        words = [own, "-m", path, "--port", str(port), "-c", str(rows * context), "-np", str(rows), "-b", "512"]
        words += ["-t", str(threads), "-tb", str(threads), "--no-webui"]
    else:
        words = [sys.executable, "-m", "llama_cpp.server", "--model", path, "--port", str(port)]
        words += ["--n_ctx", str(context), "--n_threads", str(threads), "--n_threads_batch", str(threads)]
        # else a request that comes ends the one that is being answered
        words += ["--n_batch", "512", "--verbose", "False", "--interrupt_requests", "False"]
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(words, stdout=said, stderr=said) as process,
    ):
        try:
            address, until = f"http://127.0.0.1:{port}", time.monotonic() + limit
            while not _answers(f"{address}/{'health' if own else 'v1/models'}"):
                if process.poll() is not None or time.monotonic() > until:
                    said.seek(0)
                    tail = said.read().strip().splitlines()[-1:] or ["it said nothing"]
                    raise SystemExit(f"llama.cpp's server did not start: {tail[0][:200]}")
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()


def transformers_rates(place: str, dtype: str, counts: list[int], asked: Asked, seconds: float) -> dict[int, Any]:
    """Tokens a second of transformers' continuous batching, by the number of prompts at a time; in seconds at most, after which the
    rest is None. It reads prompts and writes answers, and has no clients."""
    import torch
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    from shoestring.model.hf import to_transformers
    from shoestring.model.transformer import Transformer

    opened = open_model(place, getattr(torch, dtype))
    assert isinstance(opened.model, Transformer)
    assert opened.tokenizer is not None
    stock: Any = to_transformers(opened.model)
    found, chance, began = dict[int, Any](), random.Random(0), time.perf_counter()
    settings = GenerationConfig(max_new_tokens=asked.tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    for count in counts:
        if time.perf_counter() - began > seconds:
            found[count] = None
            continue
        ids = [opened.tokenizer.encode(prompt(chance, asked.prompt)) for _ in range(count)]
        # by itself it takes most of the memory for its cache, and reads all of that
        pages = count * -(-(max(map(len, ids)) + asked.tokens) // PAGE) + 4
        batching = ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=pages, max_batch_tokens=512, use_cuda_graph=False
        )
        start = time.perf_counter()
        stock.generate_batch(inputs=ids, generation_config=settings, continuous_batching_config=batching, warmup=False)
        found[count] = count * asked.tokens / (time.perf_counter() - start)
    return found
