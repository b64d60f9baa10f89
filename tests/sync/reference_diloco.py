"""Streaming DiLoCo (arXiv:2501.18512, Algorithm 2) with error feedback (arXiv:2505.23725), in plain Python floats.

No tensors, no messages, no shared code: every worker's weights are a dict of lists, and every formula is a loop.
"""

from collections.abc import Callable, Mapping, Sequence

Weights = dict[str, list[float]]


def train(
    start: Weights,
    fragments: Sequence[Sequence[str]],
    gradient: Callable[[int, int, str, int], float],
    *,
    workers: int,
    steps: int,
    inner_lr: float,
    every: int,
    lr: float,
    momentum: float,
    overlap: int = 0,
    mixing: float = 0.5,
    quantise: Mapping[str, Callable[[float], float]] | None = None,
    quantise_average: Mapping[str, Callable[[float], float]] | None = None,
    decay: float | None = None,
    scatter: bool = False,
    in_weights: bool = False,
    final: bool = False,
) -> tuple[Weights, list[Weights]]:
    """(global weights, each worker's local weights) after `steps`. gradient(worker, step from 1, name, index).

    quantise: for the parameters it names; quantise_average: for the average of those, None: the same. decay: beta of
    error feedback, None for none. scatter: the average is quantised too, with feedback of its own. in_weights: the local
    weights hold what is fed back, of their own quantisation. final: every fragment is exchanged once more at the end.
    """
    outer = {name: list(values) for name, values in start.items()}
    velocity = {name: [0.0] * len(values) for name, values in start.items()}
    local = [{name: list(values) for name, values in start.items()} for _ in range(workers)]
    own_error = [{name: [0.0] * len(values) for name, values in start.items()} for _ in range(workers)]
    part_error = {name: [0.0] * len(values) for name, values in start.items()}
    waiting: list[tuple[int, int, list[Weights]]] = []
    count = len(fragments)
    lossy = quantise or {}
    lossy_average = lossy if quantise_average is None else quantise_average

    def compress(
        name: str, value: float, error: list[float], index: int, lossy: Mapping[str, Callable[[float], float]] = lossy
    ) -> float:
        if name not in lossy:
            return value
        accumulated = value if decay is None or in_weights else decay * error[index] + value
        sent = lossy[name](accumulated)
        if decay is not None:
            error[index] = accumulated - sent
        return sent

    def pseudo_gradients(fragment: int) -> list[Weights]:
        return [
            {name: [g - w for g, w in zip(outer[name], local[m][name], strict=True)] for name in fragments[fragment]}
            for m in range(workers)
        ]

    def merge(fragment: int, deltas: list[Weights], alpha: float) -> None:
        for name in fragments[fragment]:
            for index in range(len(outer[name])):
                sent = [compress(name, deltas[m][name][index], own_error[m][name], index) for m in range(workers)]
                mean = sum(sent) / workers
                if scatter:
                    mean = compress(name, mean, part_error[name], index, lossy_average)
                velocity[name][index] = momentum * velocity[name][index] + mean
                outer[name][index] -= lr * (mean + momentum * velocity[name][index])
                for m in range(workers):
                    start = outer[name][index]
                    if in_weights and decay is not None:
                        start -= decay * own_error[m][name][index]
                    local[m][name][index] = alpha * local[m][name][index] + (1 - alpha) * start

    merged_at = [0] * count
    for step in range(1, steps + 1):
        for m in range(workers):
            for name, values in local[m].items():
                for index in range(len(values)):
                    values[index] -= inner_lr * gradient(m, step, name, index)
        due = [fragment for fragment in range(count) if (step - (fragment + 1) * every // count) % every == 0]
        waiting += [(step, fragment, pseudo_gradients(fragment)) for fragment in due]
        while waiting and waiting[0][0] + overlap == step:
            began, fragment, deltas = waiting.pop(0)
            merge(fragment, deltas, mixing if overlap else 0.0)
            merged_at[fragment] = began
    if final:
        for began, fragment, deltas in waiting:
            merge(fragment, deltas, mixing if began < steps else 0.0)
            merged_at[fragment] = began
        late = [fragment for fragment in range(count) if merged_at[fragment] != steps]
        for fragment, deltas in [(fragment, pseudo_gradients(fragment)) for fragment in late]:
            merge(fragment, deltas, 0.0)
        if in_weights:
            local = [{name: list(values) for name, values in outer.items()} for _ in range(workers)]
    return outer, local
