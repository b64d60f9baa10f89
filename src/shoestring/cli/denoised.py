"""`shoestring generate` of a model that sees both ways: its answers are filled in, not written from left to right."""

import argparse
from collections.abc import Sequence

from shoestring.base.writer import Writer
from shoestring.cli.prompts import Prompt
from shoestring.cli.section_flags import take_section
from shoestring.cli.whole_answers import show_whole
from shoestring.decode import Answer, Request
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
    return take_section("denoise", DenoisingConfig, words)


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
    denoiser = Denoiser(writer.opened.model, config)

    def answer(number: int, request: Request, sample: int) -> Answer:
        return denoiser.answer(
            request.prompt,
            request.sampling,
            max_new_tokens=request.max_new_tokens,
            ends=request.ends,
            number=number,
            sample=sample,
        )

    return show_whole(found, writer, prompts, requests, answer)
