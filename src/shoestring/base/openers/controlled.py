"""A model whose logits a small one shifts: HOST+control:PLACE."""

import dataclasses
import hashlib

import torch

from shoestring.base.opened import Opened
from shoestring.data.token_map import nearest_tokens
from shoestring.decode.controlled import Controlled
from shoestring.errors import UsageError
from shoestring.method import method

MARK = "+control:"


@method(
    "base.openers",
    kind="opener",
    name="controlled",
    paper="Cross-model Control: Improving Multiple Large Language Models in One-time Training, arXiv:2410.17599",
    claim="a control that was trained beside one model shifts the logits of another; tokens of two tokenizers are put together by "
    "PM-MinED",
    cost="a pass of the control beside each of the host; rows are decoded one after the other",
)
class ControlledOpener:
    """HOST+control:PLACE, both as any model is named: smollm2+control:runs/tiny.

    The model at PLACE was trained with `--objective cross_model_control`, beside the host or beside another model. Where the
    tokenizers differ, each token of the host has the nearest of the control, which the control reads and whose logit it takes. The
    paper retokenises what the control reads; here it is read token for token.
    """

    def accepts(self, place: str) -> bool:
        return MARK in place

    def open(self, place: str, dtype: torch.dtype | None) -> Opened:
        from shoestring.base.open_model import open_model

        first, _, second = place.rpartition(MARK)
        if not first or not second:
            raise UsageError(f"{place}: write HOST{MARK}PLACE")
        host, control = open_model(first, dtype), open_model(second, dtype)
        tokens, notes = None, list(host.about.notes)
        if host.tokenizer is None or control.tokenizer is None:
            if host.model.about.vocabulary != control.model.about.vocabulary:
                raise UsageError(f"{place}: their vocabularies differ, and one of them has no tokenizer")
        elif (
            host.tokenizer.fingerprint != control.tokenizer.fingerprint
            or host.model.about.vocabulary != control.model.about.vocabulary
        ):
            tokens = nearest_tokens(host.tokenizer, control.tokenizer, host.model.about.vocabulary)
            notes.append(f"{int((tokens >= 0).sum())} of {len(tokens)} tokens have a token of the control")
        model = Controlled(
            host.model, control.model, tokens=tokens, filler=0 if control.tokenizer is None else control.tokenizer.end
        )
        digest = hashlib.sha256(f"{host.about.digest} {control.about.digest}".encode()).hexdigest()
        values = {**host.about.values, "base": first, "control": second}
        about = dataclasses.replace(
            host.about, place=place, kind="controlled", digest=digest, notes=tuple(notes), values=values
        )
        return Opened(model, host.tokenizer, about)
