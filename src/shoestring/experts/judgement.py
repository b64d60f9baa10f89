"""What experts come to on held-out text, together and alone, and what it costs to ask them."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import EVALUATION, Ledger, Totals
from shoestring.contract.batch import IGNORED, Batch
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModel, require_causal
from shoestring.data.clusters.clustering import Clustering
from shoestring.data.dataset import Dataset
from shoestring.data.subset import select
from shoestring.data.tokenizer import TextTokenizer
from shoestring.data.windows import Windows
from shoestring.decode.ensemble import Ensemble, likelihood_of_inputs, mixture, token_log_probabilities
from shoestring.decode.expert_weights.base import Weigher, updates
from shoestring.decode.expert_weights.cluster_distance import ClusterDistance
from shoestring.decode.expert_weights.fixed import FixedExpertWeights
from shoestring.decode.expert_weights.running_likelihood import RunningLikelihood
from shoestring.errors import UsageError
from shoestring.experts.config import ExpertsConfig, size_name
from shoestring.experts.folder import JUDGING, Expert, ExpertsFolder
from shoestring.model.transformer import Transformer
from shoestring.sync.merging import merge
from shoestring.train.evaluate import HELDOUT_ORDER, Evaluator, heldout_windows
from shoestring.train.run_folder import RunFolder
from shoestring.train.trained import load_trained

CHOICE = (
    "top-k and all: experts are weighed, every {every} tokens of a window, by the nearness of its tokens up to there to the "
    "clusters' centres; by likelihood: at every token, by how likely each expert held those before. Nothing later is looked "
    "at. A window is read whole by every expert that counts anywhere in it, and FLOPs/tok has all those readings."
)

DIFFICULTY_TOKENS = 16384
"""Training tokens of a cluster, at most, on which its difficulty is measured."""


@dataclass(frozen=True)
class JudgedWindows:
    """Windows to judge on, [N, T] each.

    domains: the cluster of the document each target is in, to report by; nothing else looks at it.
    lengths: bytes of each target, 0 where it does not count.
    """

    batch: Batch
    domains: np.ndarray
    lengths: np.ndarray

    def counted(self) -> np.ndarray:
        """bool [N, T]: the targets that count."""
        return (self.batch.targets != IGNORED).numpy()


def heldout_text(config: ExpertsConfig, dataset: Dataset, clustering: Clustering) -> JudgedWindows:
    """The windows that every run evaluates on, too: the first of one fixed order of the whole held-out text."""
    run, store = config.run, dataset.heldout
    context = run.model.context
    windows, count = heldout_windows(run, dataset)
    assert isinstance(windows, Windows)  # experts have one corpus, in windows of one length
    batch = windows.batch(0, count)
    places = windows.order(0, count)[:, None] * context + 1 + np.arange(context)
    document = np.searchsorted(store.document_starts, places, side="right") - 1
    lengths = dataset.tokenizer.byte_lengths[batch.targets.clamp_min(0)].numpy() * (batch.targets != IGNORED).numpy()
    domains = clustering.nearest(store)[document]
    return JudgedWindows(batch, domains, lengths)


@torch.no_grad()
def of_targets(model: LanguageModel, text: JudgedWindows, rows: int) -> Tensor:
    """float32 [N, T]: log-probabilities of the targets under one model, 0 where they do not count; `rows` windows at a time,
    on the model's device, in float32."""
    require_causal(model, "judging experts")
    found = []
    for start in range(0, text.batch.rows, rows):
        part = text.batch.take(slice(start, start + rows)).to(model.device)
        reading = model.read(part.inputs)
        found.append(token_log_probabilities(reading.head, reading.hidden, part.targets).cpu())
    return torch.cat(found)


class Judge:
    """Works out losses from the log-probabilities of the targets under each expert, [N, T, E], which are had once."""

    def __init__(self, text: JudgedWindows, experts: Tensor, pass_flops: Sequence[int], names: Sequence[str]) -> None:
        self.text, self.experts, self.pass_flops, self.names = text, experts, list(pass_flops), list(names)

    def figures(self, log_probabilities: Tensor, flops: int) -> dict[str, Any]:
        """The loss in all and by domain.

        flops: operations for all windows.
        """
        counted, nats = self.text.counted(), -log_probabilities.double().numpy()
        targets = int(counted.sum())
        domains = {}
        for number, name in enumerate(self.names):
            mine = counted & (self.text.domains == number)
            domains[name] = {"loss": float(nats[mine].mean()) if mine.any() else None, "targets": int(mine.sum())}
        loss = float(nats[counted].sum()) / targets
        bits = loss * targets / math.log(2) / max(int(self.text.lengths.sum()), 1)
        return {
            "heldout_loss": loss,
            "bits_per_byte": bits,
            "heldout_targets": targets,
            "inference_flops_per_token": flops / self.text.batch.targets.numel(),
            "domains": domains,
        }

    def ensemble(self, weigher: Weigher, choosing_flops: int = 0) -> dict[str, Any]:
        """The figures of the mixture.

        choosing_flops: operations that the weights take in all windows.
        """
        likelihood = likelihood_of_inputs(self.experts) if weigher.needs_likelihood else None
        weights = weigher(self.text.batch.inputs.values, likelihood)
        asked = (weights > 0).any(dim=1)
        if weigher.needs_likelihood:
            asked = torch.ones_like(asked)
        flops = int((asked.sum(dim=0) * torch.tensor(self.pass_flops)).sum()) + choosing_flops
        found = self.figures(mixture(self.experts, weights), flops)
        return found | {"experts_per_window": float(asked.sum(dim=1).double().mean())}


def _load(path: Path) -> tuple[Transformer, str]:
    trained = load_trained(path)
    device = trained.config.execution.device
    return trained.native.to(device), size_name(trained.config.model)


def _pass_flops(model: LanguageModel, context: int) -> int:
    return model.cost(Shape(1, context)).flops


def judge(
    folder: ExpertsFolder,
    config: ExpertsConfig,
    dataset: Dataset,
    clustering: Clustering,
    members: Sequence[Expert],
    spent: Totals,
) -> dict[str, Any]:
    """Every way to use the experts, on the held-out text of all domains; see `CHOICE` for what they are chosen by.

    spent: what training took.
    """
    with folder.work("evaluate", JUDGING) as ledger:
        text = heldout_text(config, dataset, clustering)
        arms = _arms(folder, config, clustering, members, text, ledger)
    return {
        "stopped": "finished",
        "budget": config.run.budget.write(),
        "spent": config.run.budget.spent(spent).shares,
        "seconds": spent.wall_clock,
        "flops": spent.flops,
        "tokens": spent.tokens,
        "peak_memory": spent.peak_memory,
        "choice": CHOICE.format(every=config.every),
        "experts": [_member(folder, member) for member in members],
        "seeds": {path.name: _facts(path) for path in sorted(folder.seeds.glob("[!.]*")) if path.is_dir()},
        "dense": _facts(folder.dense) if config.dense is not None else None,
        "arms": arms,
    }


def _arms(
    folder: ExpertsFolder,
    config: ExpertsConfig,
    clustering: Clustering,
    members: Sequence[Expert],
    text: JudgedWindows,
    ledger: Ledger,
) -> dict[str, Any]:
    def read(model: LanguageModel) -> Tensor:
        """The log-probabilities of the targets; what reading them took is on the ledger."""
        spent = Charge(flops=text.batch.rows * _pass_flops(model, context), read=text.batch.targets.numel())
        ledger.charge(spent, EVALUATION)
        return of_targets(model, text, rows)

    rows, context = config.run.train.micro_batch or config.run.train.batch, config.run.model.context
    loaded = [_load(folder.experts / member.name) for member in members]
    models, sizes = [model for model, _ in loaded], [size for _, size in loaded]
    told = torch.stack([read(model) for model in models], dim=-1)
    judging = Judge(text, told, [_pass_flops(model, context) for model in models], [m.name for m in members])

    looks = len(updates(context, config.every)) * 3 * clustering.centres.size
    choosing = text.batch.rows * (context * clustering.embedding.flops_per_token() + looks)
    arms: dict[str, Any] = {}
    for k in dict.fromkeys((1, config.top_k, 0)):
        near = ClusterDistance(
            clustering.distances, temperature=config.temperature, top_k=k % len(members), every=config.every
        )
        arms[f"top-{k}" if k % len(members) else "all"] = judging.ensemble(near, choosing)
    arms["all, by likelihood"] = judging.ensemble(RunningLikelihood())
    arms["plain mean"] = judging.ensemble(FixedExpertWeights([1.0] * len(members)))
    if len(set(sizes)) == 1:
        merged = merge(models)
        arms["merged weights"] = judging.figures(read(merged), text.batch.rows * judging.pass_flops[0])
    alone = [(member.name, folder.experts / member.name) for member in members]
    alone += [(f"seed {path.name}", path) for path in sorted(folder.seeds.glob("[!.]*")) if path.is_dir()]
    if config.dense is not None:
        alone.append(("dense", folder.dense))
    for name, path in alone:
        number = next((n for n, member in enumerate(members) if member.name == name), None)
        model = models[number] if number is not None else _load(path)[0]
        log_probabilities = told[..., number] if number is not None else read(model)
        arms[name] = judging.figures(log_probabilities, text.batch.rows * _pass_flops(model, context))
    return arms


def _facts(path: Path) -> dict[str, Any]:
    summary = RunFolder(path).read_summary()
    kept = ("budget", "steps", "tokens", "flops", "seconds", "parameters", "heldout_loss")
    return {key: summary.get(key) for key in kept}


def _member(folder: ExpertsFolder, member: Expert) -> dict[str, Any]:
    return asdict(member) | {"run": _facts(folder.experts / member.name)}


def losses_by_cluster(
    run: Path, config: ExpertsConfig, dataset: Dataset, clustering: Clustering, ledger: Ledger
) -> list[float]:
    """The mean loss of a trained run on training text of each cluster, in nats a token, the operations charged."""
    model, _ = _load(run)
    own = config.run
    context, rows = own.model.context, own.train.micro_batch or own.train.batch
    found = []
    for number in range(len(clustering)):
        text = select(dataset.train, clustering.members(number))
        windows = Windows(text, context, HELDOUT_ORDER, own.data.packing)
        evaluate = Evaluator(
            windows,
            dataset.tokenizer.byte_lengths,
            sequences=min(len(windows), max(1, DIFFICULTY_TOKENS // context)),
            rows=rows,
            device=str(model.device),
            precision="float32",
        )
        heldout = evaluate(model)
        ledger.charge(heldout.spent, EVALUATION)
        found.append(heldout.loss)
    return found


def load_experts(
    path: Path, *, top_k: int | None = None, dtype: torch.dtype | None = None
) -> tuple[Ensemble, TextTokenizer, list[str]]:
    """(ensemble, tokenizer, the digest of each expert) of a finished set of experts, weighed by cluster distance.

    top_k: how many experts are consulted at a time; None: as configured.
    dtype: of the experts' weights; None: as they are stored.
    Raises: UsageError, ShoestringError.
    """
    folder = ExpertsFolder.open(path)
    config, clustering, members = folder.read_config(), Clustering.read(folder.clusters), folder.members()
    if not members:
        raise UsageError(f"{path} has no experts yet: go on with it by --resume")
    trained = [load_trained(folder.experts / member.name) for member in members]
    k = config.top_k if top_k is None else top_k
    weigher = ClusterDistance(clustering.distances, temperature=config.temperature, top_k=k, every=config.every)
    models = [one.model if dtype is None else one.model.to(dtype) for one in trained]
    return Ensemble(models, weigher), trained[0].tokenizer, [one.digest for one in trained]
