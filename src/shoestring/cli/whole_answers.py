"""Answers that come whole, one after the other: how `shoestring generate` prints them."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence

from shoestring.base.writer import Writer
from shoestring.cli.prompts import Prompt
from shoestring.cli.samples import WORDS, Sample, sum_up
from shoestring.decode import Answer, Request
from shoestring.decode.answer_text import AnswerText


def show_whole(
    found: argparse.Namespace,
    writer: Writer,
    prompts: Sequence[Prompt],
    requests: Sequence[Request],
    answer: Callable[[int, Request, int], Answer],
) -> int:
    """Print every answer. answer: makes one, of the number of a request, the request, and which of its samples it is."""
    samples, began = list[Sample](), time.perf_counter()
    rows = sum(each.samples for each in requests)
    for number, (prompt, request) in enumerate(zip(prompts, requests, strict=True), start=1):
        for index in range(request.samples):
            made = answer(number, request, index)
            text = AnswerText(writer.tokenizer.stream(), found.stop)
            tokens = 0
            for token in made.tokens:
                text.push(token)
                tokens += 1
                if text.stopped:
                    break
            text.finish()
            sample = Sample(
                prompt.text,
                prompt.messages,
                index + 1,
                text.text,
                len(request.prompt),
                tokens,
                made.spent.total,
                "stop" if text.stopped else WORDS[made.stop],
                made.spent.charge,
            )
            samples.append(sample)
            if found.json:
                print(json.dumps(sample.as_dict(), ensure_ascii=False), flush=True)
                continue
            header = f"--- prompt {number} of {len(prompts)}, sample {index + 1} of {request.samples}\n" * (rows > 1)
            sys.stdout.write(header + ("" if prompt.messages else prompt.text) + text.text + "\n")
    sum_up(samples, time.perf_counter() - began)
    return 0
