"""`shoestring generate` of a model that sees both ways: its answers are filled in, not written from left to right."""

import argparse
import json
import sys
import time
from collections.abc import Sequence

from shoestring.base.writer import Writer
from shoestring.cli.cache_flags import parted
from shoestring.cli.prompts import Prompt
from shoestring.cli.samples import WORDS, Sample, sum_up
from shoestring.config import as_flag, build, overrides
from shoestring.decode import Request
from shoestring.decode.answer_text import AnswerText
from shoestring.decode.denoise import Denoiser, DenoisingConfig
from shoestring.errors import UsageError

PREFIX = "--denoise."

NOT_HERE = ("drafter", "draft", "judge", "mixture", "datastore", "depth", "routers", "adapter", "schema", "regex")
"""Flags of decoding from left to right."""


def add_denoise_flags(parser: argparse.ArgumentParser) -> None:
    """Tell of them in a command's help. `take_denoise` reads them."""
    parser.add_argument_group(
        "models of masked diffusion, which fill in their answers",
        "--denoise.steps N      passes for an answer; 0: one for each token (default)\n"
        "--denoise.block N      tokens that are filled in before the next are begun; 0: all at once (default)\n"
        "--denoise.order NAME   what is filled in first: 'confidence' (default) or 'random_order'\n"
        "--denoise.cache NAME   keys and values that are kept: 'dkv_decode', or 'dkv_greedy' with random_order",
    )


def take_denoise(words: Sequence[str]) -> tuple[DenoisingConfig | None, list[str]]:
    """(what these flags say, None where there are none; the other words). Raises: UsageError."""
    ours, others = parted(words, PREFIX)
    if not ours:
        return None, others
    tree = overrides(ours).get("denoise", {})
    return build(DenoisingConfig, tree, lambda key: as_flag(f"denoise.{key}")), others


def check_denoise(found: argparse.Namespace, config: DenoisingConfig | None, cached: bool, causal: bool) -> None:
    """Raises: UsageError for flags that are not for this model. cached: whether flags of a cache were given."""
    if causal:
        if config is not None:
            raise UsageError(
                f"{PREFIX}* is for models of masked diffusion, and this one predicts the next token: leave it out"
            )
        return
    given = ["--" + name for name in NOT_HERE if getattr(found, name) is not None] + ["--cache.*"] * cached
    if given:
        raise UsageError(
            f"{given[0]} is for decoding from left to right, and this model fills in its answers: leave it out"
        )


def fill_in(
    found: argparse.Namespace,
    writer: Writer,
    prompts: Sequence[Prompt],
    requests: Sequence[Request],
    config: DenoisingConfig | None,
) -> int:
    """Answer all requests, one after the other, and print what they became."""
    denoiser, samples, began = Denoiser(writer.opened.model, config), list[Sample](), time.perf_counter()
    rows = sum(each.samples for each in requests)
    for number, (prompt, request) in enumerate(zip(prompts, requests, strict=True), start=1):
        for index in range(request.samples):
            answer = denoiser.answer(
                request.prompt,
                request.sampling,
                max_new_tokens=request.max_new_tokens,
                ends=request.ends,
                number=number,
                sample=index,
            )
            text = AnswerText(writer.tokenizer.stream(), found.stop)
            tokens = 0
            for token in answer.tokens:
                text.push(token)
                tokens += 1
                if text.stopped:
                    break
            text.finish()
            stopped = "stop" if text.stopped else WORDS[answer.stop]
            samples.append(
                Sample(
                    prompt.text,
                    prompt.messages,
                    index + 1,
                    text.text,
                    len(prompt.ids),
                    tokens,
                    answer.spent.total,
                    stopped,
                    answer.spent.charge,
                )
            )
            if found.json:
                print(json.dumps(samples[-1].as_dict(), ensure_ascii=False), flush=True)
                continue
            header = f"--- prompt {number} of {len(prompts)}, sample {index + 1} of {request.samples}\n" * (rows > 1)
            sys.stdout.write(header + ("" if prompt.messages else prompt.text) + text.text + "\n")
    sum_up(samples, time.perf_counter() - began)
    return 0
