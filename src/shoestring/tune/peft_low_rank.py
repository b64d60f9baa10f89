"""Low-rank adapters in the file format of peft, exactly: a fused matrix's as one a part, and back."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoestring.errors import UsageError
from shoestring.tune.peft_adapter import MatrixPart, PeftAdapter, common, parts_of

DOWN, UP = "lora_A.weight", "lora_B.weight"
MAGNITUDE = "lora_magnitude_vector"

PLAIN: dict[str, Any] = {
    "bias": "none",
    "modules_to_save": None,
    "layer_replication": None,
    "lora_bias": False,
    "use_qalora": False,
    "use_bdlora": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
    "velora_config": None,
}
"""Settings that change what an adapter computes, as they must be."""


class Factors(NamedTuple):
    """What is added to a matrix: scale up down, with down [rank, in] and up [out, rank]."""

    down: Tensor
    up: Tensor
    scale: float


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """The scale of an adapter of peft."""
    alpha = settings.get("lora_alpha", 8)
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise UsageError("adapter_config.json: alpha_pattern is no object")
    for pattern, value in patterns.items():
        if not re.fullmatch(r"[\w.]{1,200}", pattern):
            raise UsageError(
                f"adapter_config.json: alpha_pattern '{pattern[:60]}' is a regular expression, which is not read here"
            )
        if re.fullmatch(rf"(.*\.)?{pattern}", module):  # as peft matches it: a dot is any letter
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 1e6:
        raise UsageError(f"adapter_config.json: lora_alpha of '{module}' is no number above 0")
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def factors_of(adapter: PeftAdapter, module: str) -> Factors:
    """Of a module of transformers. Raises: UsageError where tensors are missing, unknown, or of other shapes."""
    own = adapter.tensors[module]
    for name in own:
        if name not in (DOWN, UP, MAGNITUDE):
            raise UsageError(f"'{module}' has '{name}', which no adapter of this kind has")
    if DOWN not in own or UP not in own:
        raise UsageError(f"'{module}' lacks {DOWN if DOWN not in own else UP}")
    down, up = own[DOWN], own[UP]
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or not down.numel():
        raise UsageError(f"'{module}' has {list(down.shape)} and {list(up.shape)}, which are no two factors")
    return Factors(down, up, _scale(adapter.settings, module, down.shape[0]))


def joined(found: Mapping[MatrixPart, Factors], sizes: tuple[int, int], scale: float) -> tuple[Tensor, Tensor]:
    """(A, B) of a matrix that holds several of theirs: their A below one another, B of blocks, so that each adds to its own rows.

    found: by part. sizes: (in, out) of the matrix. scale: what multiplies them, whatever theirs was.
    Raises: UsageError where a part does not fit.
    """
    inputs, outputs = sizes
    ranks = [one.down.shape[0] for one in found.values()]
    down, up, first = torch.cat([one.down for one in found.values()]), torch.zeros(outputs, sum(ranks)), 0
    if down.shape[1] != inputs:
        raise UsageError(f"'{next(iter(found)).theirs}' has {down.shape[1]} columns where the model has {inputs}")
    for (part, one), rank in zip(found.items(), ranks, strict=True):
        part.put(up[:, first : first + rank], one.up * (one.scale / scale))
        first += rank
    return down, up


def exported(
    factors: Mapping[str, Factors],
    parts: Sequence[MatrixPart],
    *,
    stabilised: bool,
    transposed: bool,
    magnitudes: Mapping[str, Tensor] | None = None,
) -> PeftAdapter:
    """The adapter of peft.

    factors: of each matrix here, by name. stabilised: whether peft divides by the square root of the rank.
    transposed: whether the matrices are [in, out] there. magnitudes: of the rows of each matrix, of DoRA.
    """
    tensors: dict[str, dict[str, Tensor]] = {}
    ranks, alphas = dict[str, int](), dict[str, float]()
    for name, one in factors.items():
        for part in parts_of(name, parts):
            up, down = part.take(one.up), one.down
            used = up.abs().amax(0) > 0
            if part.rows is not None and used.any():  # what other parts alone use is not this one's
                up, down = up[:, used], down[used]
            tensors[part.theirs] = {DOWN: down, UP: up}
            if magnitudes is not None:
                tensors[part.theirs][MAGNITUDE] = part.take(magnitudes[name])
            rank = ranks[part.theirs] = down.shape[0]
            alphas[part.theirs] = one.scale * (math.sqrt(rank) if stabilised else rank)
    most = max(set(ranks.values()), key=list(ranks.values()).count)
    usual = next(alphas[name] for name, rank in ranks.items() if rank == most)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": most,
        "lora_alpha": _short(usual),
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != most},
        "alpha_pattern": {name: _short(alpha) for name, alpha in alphas.items() if not math.isclose(alpha, usual)},
        "target_modules": common(list(tensors), parts),
        "use_rslora": stabilised,
        "use_dora": magnitudes is not None,
        "fan_in_fan_out": transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    return PeftAdapter(settings, tensors)


def _short(alpha: float) -> int | float:
    """A whole number where it is one."""
    return round(alpha) if math.isclose(alpha, round(alpha)) else alpha
