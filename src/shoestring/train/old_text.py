"""Text of the kind that a base could do before: judged beside the new text, so that gain and forgetting are seen together."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from shoestring.budget.machine import cache_folder
from shoestring.contract.objective import HeldoutJudge
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.data.windows import Windows
from shoestring.errors import UsageError
from shoestring.train.config import RunConfig
from shoestring.train.evaluate import HELDOUT_ORDER, Evaluator, Heldout


def old_evaluator(config: RunConfig, dataset: Dataset, judge: HeldoutJudge | None = None) -> Evaluator | None:
    """What judges the old text of a run; None where it names none. judge: as `Evaluator` has it.

    Raises: UsageError where the text is too small.
    """
    old = config.old
    if not old.corpus:
        return None
    data = DataConfig(
        corpus=old.corpus, text_field=old.text_field, tokenizer=config.data.tokenizer, heldout=config.data.heldout
    )
    store, context = prepare(data, cache_folder()).heldout, config.model.context
    if len(store) < context + 1:
        raise UsageError(
            f"old.corpus = {old.corpus} has {len(store)} tokens held out, and a window takes {context + 1}"
        )
    windows = Windows(store, context, HELDOUT_ORDER)
    found = Evaluator(
        windows,
        dataset.tokenizer.byte_lengths,
        sequences=min(len(windows), max(1, old.tokens // context)),
        rows=config.train.micro_batch or config.train.batch // config.parts,
        device=config.execution.device,
        precision=config.execution.precision,
        judge=judge,
    )
    if config.parallel.processes == 1:
        return found
    from shoestring.train.joint_evaluation import JointEvaluator

    return JointEvaluator(found, config.parallel)


def gain_and_forgetting(
    rows: Sequence[Mapping[str, Any]], new: Heldout, old: Heldout, replayed: Collection[str] = ()
) -> dict[str, Any]:
    """What summary.json says of both texts: losses before and after, in nats a token, and their differences.

    rows: the lines of the run's metrics. replayed: domains that are read again, and are no new text.
    """
    first = next((row for row in rows if row["kind"] == "heldout" and row["step"] == 0), None)
    after = _of_new(new.loss, new.domains, replayed)
    found: dict[str, Any] = {"new": {"after": after}, "old": {"after": old.loss}}
    if first is not None and "old_loss" in first:
        before = _of_new(first["loss"], first.get("domains", {}), replayed)
        found["new"] |= {"before": before, "gain": before - after}
        found["old"] |= {"before": first["old_loss"], "forgotten": old.loss - first["old_loss"]}
    return found


def replayed_domains(data: DataConfig) -> tuple[str, ...]:
    """The domains of a run that are read again so that they are not forgotten, as its mixture says."""
    given: Any = {} if data.mixture is None else data.mixture.options
    return tuple(given.get("old", ()))


def _of_new(loss: float, domains: Mapping[str, float], replayed: Collection[str]) -> float:
    """The mean loss of the domains that are new; of all text where there are no domains."""
    own = [each for name, each in domains.items() if name not in replayed]
    return sum(own) / len(own) if own else loss
