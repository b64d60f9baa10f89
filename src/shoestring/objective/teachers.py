"""Teachers of an objective: models that are asked what comes next, online or through what they said before."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.budget.ledger import account
from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModel, Reading
from shoestring.errors import UsageError
from shoestring.objective.teacher_cache import Known, TeacherCache, fingerprint, likeliest, row_keys

TEACHER = account("teacher", "another model that the model learns from")

LOGITS = 1 << 24
"""Numbers of logits that are in memory at once, of each of the models."""


class TeacherAnswer:
    """What teachers say of the places of a batch, in blocks.

    readings: of the teachers, all places of the batch; empty where it is known already. known: what is.
    temperature: of the distributions. spent: what asking took, once every block was asked for `times` times.
    """

    def __init__(
        self, readings: Sequence[Reading], known: Known | None, temperature: float, spent: Charge, times: int = 2
    ) -> None:
        self._known, self._temperature = known, temperature
        self._parts = [(reading.head, reading.hidden.flatten(0, -2)) for reading in readings]
        self.spent = spent
        for head, hidden in self._parts:
            self.spent += Charge(flops=times * head.flops(len(hidden)))

    @torch.no_grad()
    def block(self, part: slice) -> tuple[Tensor | None, Tensor]:
        """(tokens [n, k], float32 [n, k + 1]: their log-probabilities, and that of all others) of some places; (None, [n, V])
        where all are known."""
        if self._known is not None:
            tokens, logs = self._known.tokens[part], self._known.logs[part]
            if self._known.rest is not None:
                logs = torch.cat([logs, self._known.rest[part, None]], dim=-1)
            return tokens, logs
        return None, mean_logs([(head.logits(hidden[part])) for head, hidden in self._parts], self._temperature)


class Teachers:
    """Models whose mean distribution is learnt from.

    models: at least one, all of one vocabulary.
    temperature: tau, by which their logits are divided.
    cache: a folder for what they say; '': none, they are asked each time. top: k, the likeliest tokens that it keeps of a place.
    Raises: UsageError where they have different vocabularies, and as `TeacherCache`.
    """

    def __init__(
        self, models: Sequence[LanguageModel], *, temperature: float = 1.0, cache: str = "", top: int = 64
    ) -> None:
        sizes = {model.about.vocabulary for model in models}
        if len(sizes) != 1:
            raise UsageError(f"teachers have one tokenizer, and these have {sorted(sizes)} tokens")
        self.models, self.temperature, self.vocabulary = tuple(models), temperature, sizes.pop()
        self.cache: TeacherCache | None = None
        if cache:
            names = "+".join(fingerprint(model) for model in models)
            place = Path(cache).expanduser()
            self.cache = TeacherCache(
                place, teacher=names, vocabulary=self.vocabulary, top=top, temperature=temperature
            )

    @torch.no_grad()
    def ask(self, batch: Batch) -> TeacherAnswer:
        """What they say of a batch that lies on their device."""
        if self.cache is None:
            readings = [model.read(batch.inputs) for model in self.models]
            spent = sum((Charge(flops=r.cost.flops, read=batch.targets.numel(), calls=1) for r in readings), NOTHING)
            return TeacherAnswer(readings, None, self.temperature, spent)
        keys = row_keys(batch.inputs)
        rows = {place: found for place, key in enumerate(keys) if (found := self.cache.get(key)) is not None}
        moved = sum(len(found.tokens) for found in rows.values()) * self.cache.bytes_per_token
        spent = Charge(moved=moved)
        missing = [place for place in range(len(keys)) if place not in rows]
        if missing:
            made, took = self._asked(batch.take(torch.tensor(missing, device=batch.targets.device)))
            rows |= dict(zip(missing, made, strict=True))
            spent += took
            self.cache.put([(keys[place], rows[place]) for place in missing])
        known = Known.joined([rows[place] for place in range(len(keys))]).to(batch.targets.device)
        return TeacherAnswer([], known, self.temperature, spent)

    def _asked(self, batch: Batch) -> tuple[list[Known], Charge]:
        """(the likeliest tokens at the places of each row, what asking took)."""
        assert self.cache is not None
        readings = [model.read(batch.inputs) for model in self.models]
        whole = TeacherAnswer(readings, None, self.temperature, NOTHING, times=1)
        places, rows = batch.targets.numel(), max(1, LOGITS // self.vocabulary)
        found = Known.joined(
            [
                likeliest(whole.block(slice(start, start + rows))[1], self.cache.top).to("cpu")
                for start in range(0, places, rows)
            ]
        )
        spent = sum((Charge(flops=r.cost.flops, read=places, calls=1) for r in readings), whole.spent)
        length = batch.inputs.length
        apart = [slice(start, start + length) for start in range(0, places, length)]
        rests = [None if found.rest is None else found.rest[part] for part in apart]
        return [Known(found.tokens[p], found.logs[p], rest) for p, rest in zip(apart, rests, strict=True)], spent


def mean_logs(logits: Sequence[Tensor], temperature: float) -> Tensor:
    """float32 [N, V]: the logarithm of the mean of the softmaxes of logits / temperature, [N, V] each."""
    logs = [(each.float() / temperature).log_softmax(-1) for each in logits]
    if len(logs) == 1:
        return logs[0]
    return torch.stack(logs).logsumexp(0) - torch.tensor(float(len(logs))).log()


def as_known(logs: Tensor, tokens: Tensor | None) -> Tensor:
    """Log-probabilities [N, V] as a teacher's are known: [N, k + 1], those of `tokens` [N, k] and that of all others together."""
    if tokens is None:
        return logs
    chosen = logs.gather(-1, tokens)
    if tokens.shape[-1] == logs.shape[-1]:
        return chosen
    rest = logs.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([chosen, rest], dim=-1)
