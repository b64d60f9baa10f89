"""`shoestring generate --part`: a prompt with parts side by side, whose order the answer does not depend on."""

import argparse
from collections.abc import Sequence

from shoestring.base.writer import Writer
from shoestring.cli.prompts import Prompt
from shoestring.cli.whole_answers import show_whole
from shoestring.decode import Answer, Request
from shoestring.decode.set_prompt import SetPrompt, answer_set
from shoestring.errors import UsageError

PLACE = "{}"
"""Where the parts stand in a prompt."""

NOT_HERE = ("drafter", "draft", "judge", "mixture", "datastore", "depth", "routers", "adapter", "schema", "regex")


def check_parts(found: argparse.Namespace, texts: Sequence[str], beside: bool) -> None:
    """Raises: UsageError for what does not go with --part. texts: the prompts. beside: whether flags of a cache or a denoiser, or a
    chat, were given."""
    if given := [name for name in NOT_HERE if getattr(found, name) is not None]:
        raise UsageError(f"--part goes with no --{given[0]}: leave one out")
    if beside or found.keep_last:
        raise UsageError("--part goes with a plain prompt: no chat, no --keep-last, no --cache.* and no --denoise.*")
    for text in texts:
        _, sign, after = text.partition(PLACE)
        if not sign or not after or PLACE in after:
            raise UsageError(
                f"--part stands where the prompt has '{PLACE}', once, with some text after it: 'Pick one:{PLACE} Answer:'"
            )


def set_prompt_of(text: str, parts: Sequence[str], writer: Writer) -> SetPrompt:
    """The prompt in tokens, each piece of it by itself."""
    before, _, after = text.partition(PLACE)
    encode = writer.tokenizer.encode
    return SetPrompt(tuple(writer.text_ids(before)), tuple(tuple(encode(part)) for part in parts), tuple(encode(after)))


def answer_parts(
    found: argparse.Namespace,
    writer: Writer,
    texts: Sequence[str],
    requests: Sequence[Request],
    prompts: Sequence[SetPrompt],
) -> int:
    """Answer all prompts, one after the other, and print what was written."""

    def answer(number: int, request: Request, sample: int) -> Answer:
        return answer_set(
            writer.opened.model,
            prompts[number - 1],
            request.sampling,
            max_new_tokens=request.max_new_tokens,
            ends=request.ends,
            number=number,
            sample=sample,
        )

    shown = [
        Prompt(text.replace(PLACE, "".join(found.part)), prompt.tokens)
        for text, prompt in zip(texts, prompts, strict=True)
    ]
    return show_whole(found, writer, shown, requests, answer)
