"""Which requests are taken in: those within the limits, whose budgets can be kept by measured rates."""

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from shoestring.budget.units import parse_amount, show
from shoestring.contract.adapter import NamedAdapters
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModel
from shoestring.decode import Request
from shoestring.errors import UsageError
from shoestring.serve.errors import ApiError
from shoestring.serve.fields import BudgetFields
from shoestring.serve.forecast import ForecastRow, forecast
from shoestring.serve.rates import Rates


@dataclass(frozen=True)
class RequestBudget:
    """What a request may spend.

    seconds: from its arrival on. tokens: read and written. flops: operations. All answers together; infinite: no limit.
    least: tokens of each answer that must be possible.
    """

    seconds: float = math.inf
    tokens: float = math.inf
    flops: float = math.inf
    least: int = 1


def read_budget(fields: BudgetFields | None, header: str | None, limit: int | None) -> RequestBudget:
    """The budget of a request: that of its body, each amount lowered by that of the header `Shoestring-Budget`.

    header: amounts with units, as '2s, 300tok, 1e12flops'. limit: tokens of an answer, where the request says.
    Raises: ApiError where the header is wrong.
    """
    fields = fields or BudgetFields()
    found = {"seconds": fields.seconds, "tokens": fields.tokens, "flops": fields.flops}
    amounts = {name: math.inf if value is None else float(value) for name, value in found.items()}
    for text in (header or "").split(","):
        if not text.strip():
            continue
        try:
            resource, amount = parse_amount(text.strip())
        except UsageError as error:
            raise ApiError(400, f"header Shoestring-Budget: {error}", param="budget", code="wrong_value") from None
        if resource not in amounts or amount <= 0:
            raise ApiError(
                400, "header Shoestring-Budget takes amounts above 0 of seconds, tokens and FLOPs: 2s, 300tok, 1e12flops",
                param="budget", code="wrong_value",
            )  # fmt: skip
        amounts[resource] = min(amounts[resource], amount)
    return RequestBudget(**amounts, least=fields.least_tokens or limit or 1)


def within(
    budget: RequestBudget, requests: Sequence[Request], model: LanguageModel, adapters: NamedAdapters | None = None
) -> list[Request]:
    """The requests, none of whose answers is longer than the budget lets it be.

    Raises: ApiError where that is less than `budget.least` tokens of each: another time will not help.
    """
    samples = sum(request.samples for request in requests)
    prompts = sum(len(request.prompt) for request in requests)
    most = max(request.max_new_tokens for request in requests)
    if budget.tokens < math.inf:
        left = int(budget.tokens - prompts) // samples
        if left < budget.least:
            raise _too_small(f"{budget.tokens:.0f} tokens", f"{prompts + samples * budget.least} tokens", prompts)
        most = min(most, left)
    if budget.flops < math.inf:
        needed = operations(requests, min(budget.least, most), model, adapters)
        if needed > budget.flops:
            raise _too_small(show("flops", budget.flops), show("flops", needed), prompts)
        low, high = 1, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if operations(requests, middle, model, adapters) <= budget.flops else (low, middle - 1)
            )
        most = low
    alone = samples == 1
    return [
        replace(
            request,
            max_new_tokens=min(request.max_new_tokens, most),
            seconds=min(request.seconds, budget.seconds),
            flops=budget.flops if alone else request.flops,
        )
        for request in requests
    ]


def _too_small(given: str, needed: str, prompts: int) -> ApiError:
    return ApiError(
        400, f"the budget of {given} is too small for a prompt of {prompts} tokens and the tokens asked for: "
        f"{needed} would do", param="budget", code="budget_too_small",
    )  # fmt: skip


def operations(
    requests: Sequence[Request], tokens: int, model: LanguageModel, adapters: NamedAdapters | None = None
) -> int:
    """FLOPs of reading these prompts once each, and of writing so many tokens of each of their answers."""
    total = 0
    for request in requests:
        size = len(request.prompt)
        total += model.cost(Shape(1, size, outputs=1)).flops
        first, last = (model.cost(Shape(1, 1, past)).flops for past in (size, size + max(tokens - 2, 0)))
        total += request.samples * (tokens - 1) * (first + last) // 2  # nobody reads the last
        if adapters is not None and request.adapter is not None:
            total += adapters.flops(request.adapter, size + request.samples * (tokens - 1))
    return total


@dataclass(frozen=True)
class Promise:
    """What was promised to a request that is being answered.

    rows: what is still to be done for it. deadline: on the monotonic clock; infinite: none.
    least: tokens of each answer that were to be possible. written: how many the shortest has.
    """

    rows: Sequence[ForecastRow]
    deadline: float = math.inf
    least: int = 1
    written: int = 0


class Admission:
    """Says no to what cannot be done.

    rates: measured. places: rows that are worked on at a time. tokens: of a pass.
    queue: answers that may wait.
    """

    def __init__(self, rates: Rates, places: int, tokens: int, queue: int) -> None:
        self.rates, self._places, self._tokens, self._queue = rates, places, tokens, queue

    def check(self, budget: RequestBudget, requests: Sequence[Request], going: Collection[Promise]) -> None:
        """Raises: ApiError 429 where the queue is full, the deadline cannot be met, or a promise made before would be broken."""
        own = [row for request in requests for row in rows_of(request, [0] * request.samples, 1.0)]
        ahead = [row for promise in going for row in promise.rows]
        if len(own) > self._places + self._queue:
            raise ApiError(
                400, f"{len(own)} answers at once are more than this server takes: {self._places + self._queue}", param="n",
                code="too_many_answers",
            )  # fmt: skip
        if len(ahead) + len(own) > self._places + self._queue:
            ends = sorted(forecast(ahead, self.rates, self._places, self._tokens))
            raise ApiError(
                429, f"the queue is full: {len(ahead)} answers are asked for already", code="queue_full",
                retry=ends[min(len(own), len(ends)) - 1],
            )  # fmt: skip
        if not self.rates.known:
            return
        wanted = [ForecastRow(row.unread, min(row.left, budget.least)) for row in own]
        if budget.seconds < math.inf:
            alone = max(self._ends(wanted))
            if alone > budget.seconds:
                raise ApiError(
                    429, f"{budget.seconds:.3g} s are too few for {_words(requests, budget.least)}: at the rates measured here "
                    f"it takes {alone:.3g} s, with nobody else waiting", param="budget", code="budget_unreachable", retry=60,
                )  # fmt: skip
            now = max(self._ends([*ahead, *wanted])[len(ahead) :])
            if now > budget.seconds:
                raise ApiError(
                    429, f"{budget.seconds:.3g} s are too few for {_words(requests, budget.least)} now: with {len(ahead)} answers "
                    f"before it, it takes {now:.3g} s", param="budget", code="deadline", retry=now - budget.seconds,
                )  # fmt: skip
        self._keep_promises(own, going)

    def _keep_promises(self, own: Sequence[ForecastRow], going: Collection[Promise]) -> None:
        """Raises: ApiError where a promise that would be kept now is broken by these rows."""
        if all(promise.deadline == math.inf for promise in going):
            return
        now, rows, owners = time.monotonic(), list[ForecastRow](), list[Promise]()
        for promise in going:
            for row in promise.rows:
                owed = max(1, promise.least - promise.written)
                rows.append(ForecastRow(row.unread, owed) if promise.deadline < math.inf else row)
                owners.append(promise)
        before, after = self._ends(rows), self._ends([*rows, *own])
        for owner, early, late in zip(owners, before, after, strict=False):
            if owner.written < owner.least and now + early <= owner.deadline < now + late:
                raise ApiError(
                    429, "another request was promised an answer by a time that this one would make it miss",
                    code="deadline_of_another", retry=early,
                )  # fmt: skip

    def _ends(self, rows: Sequence[ForecastRow]) -> list[float]:
        return forecast(rows, self.rates, self._places, self._tokens)


def rows_of(request: Request, written: Sequence[int], share: float, ended: Collection[int] = ()) -> list[ForecastRow]:
    """What is to be done for the answers to a prompt.

    written: tokens of each. share: of the tokens that an answer may have, how many are expected. ended: which are at their end.
    """
    rows = list[ForecastRow]()
    for sample, count in enumerate(written):
        if sample in ended:
            continue
        unread = len(request.prompt) if not any(written) and sample == 0 else 1
        rows.append(ForecastRow(unread, max(1, int(request.max_new_tokens * share) - count)))
    return rows


def _words(requests: Sequence[Request], least: int) -> str:
    prompts, answers = sum(len(request.prompt) for request in requests), sum(request.samples for request in requests)
    each = f" each of {answers} times" if answers > 1 else ""
    return f"a prompt of {prompts} tokens and {least} written{each}"
