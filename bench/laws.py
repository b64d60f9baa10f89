"""How well do laws that are fitted to cheap runs predict dear ones, and do their intervals hold?

Each table of runs is cut at an amount of compute. Laws are fitted to the runs below and predict those above. Printed are, for
each table and cut, the mean error of the loss and the share of runs within the 90 % interval, of each law beside Chinchilla's
law with five free constants. 'chosen' takes, table by table, the law that predicts held-out rungs below the cut best; the
runs above have no part in it.

--overtraining: runs of 'Language models scale reliably with over-training and on downstream tasks' (arXiv:2403.08540): three
corpora, eight held-out sets, 11 M to 1.4 B parameters. Runs whose warm-up is longer than the run are in it: they are not taken out.
--planted N: as many grids of runs of a planted law, and how many of its constants lie within their intervals.
--figures PATH: the same as JSON lines, written after each table. --show PATH ...: fit nothing, print what such files hold.
Without a table, one grid of a planted law stands for it.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from shoestring import atomic
from shoestring.errors import ShoestringError
from shoestring.plan.law import Fitted, Law
from shoestring.plan.laws.chinchilla import Chinchilla
from shoestring.plan.laws.compute_only import ComputeOnly
from shoestring.plan.laws.kaplan import Kaplan
from shoestring.plan.runs_table import RunsTable, read_csv

CORPORA = ("c4_original", "rpj", "rw_original")
LOSSES = {
    "c4": "loss_c4_val",
    "german": "loss_val_tok_mult_de-en_val_de-en_100",
    "openlm": "loss_val_tok_mult_openlm",
    "paloma-c4": "loss_val_tok_mult_paloma_c4_en_00000001",
    "code": "loss_val_tok_mult_paloma_dolma_100_programing_languages_00000001",
    "refinedweb": "loss_val_tok_mult_paloma_falcon-refinedweb_00000001",
    "ptb": "loss_val_tok_mult_paloma_ptb_00000001",
    "redpajama": "loss_val_tok_mult_paloma_redpajama_00000001",
}
COLUMNS = {
    "parameters": "params",
    "body": "params_no_embed",
    "tokens": "tokens",
    "batch": "batch_sequences",
    "warmup": "warmup",
}
CONTEXT = 2048
PLANTED = {"E": 1.7, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
FREE = "free"

LAWS: dict[str, tuple[Law, float]] = {
    FREE: (Chinchilla(), 0.0),
    "tied": (Chinchilla(tied=True), 0.0),
    "priors": (Chinchilla(), 1.0),
    "tied, priors": (Chinchilla(tied=True), 1.0),
    "kaplan": (Kaplan(), 0.0),
    "compute only": (ComputeOnly(), 0.0),
}
"""Each law with the weight of its priors."""


@dataclass(frozen=True)
class Result:
    """error: mean size of predicted less measured, as a share. covered: share of runs within their intervals. width: the median
    half width, as a share. held_out: the law's own estimate of its error, from held-out rungs below the cut."""

    table: str
    cut: float
    law: str
    below: int
    above: int
    error: float
    covered: float
    width: float
    held_out: float


def tables(path: Path, corpora: Sequence[str], losses: Sequence[str]) -> Iterator[tuple[str, RunsTable]]:
    for corpus in corpora:
        for loss in losses:
            columns = {**COLUMNS, "loss": LOSSES[loss]}
            where = {"dataset": corpus}
            yield f"{corpus} {loss}", read_csv(path, columns, where=where, name="name", factors={"batch": CONTEXT})


def planted(seed: int, noise: float, levels: int = 4) -> RunsTable:
    """A grid of runs whose losses lie `noise` about a law."""
    law, drawn = Chinchilla(), np.random.default_rng(seed)
    rows = []
    for size in np.geomspace(1e6, 1e6 * 4 ** (levels - 1), levels):
        for tokens in np.geomspace(1e7, 1e7 * 5 ** (levels - 1), levels):
            loss = law.value(PLANTED, {"parameters": size, "tokens": tokens})
            rows.append({
                "parameters": float(size), "body": float(size), "tokens": float(tokens),
                "loss": loss * math.exp(noise * drawn.standard_normal()),
            })  # fmt: skip
    return RunsTable.of(rows)


def judge(name: str, table: RunsTable, cut: float, law: str, fitted: Fitted) -> Result:
    compute = table.column("compute")
    above = table.select(compute >= cut)
    said, losses = fitted.predict_all(above), above.column("loss")
    value, low, high = (np.array([getattr(one, end) for one in said]) for end in ("value", "low", "high"))
    return Result(
        table=name,
        cut=cut,
        law=law,
        below=int((compute < cut).sum()),
        above=len(above),
        error=float(np.abs(value / losses - 1).mean()),
        covered=float(((low <= losses) & (losses <= high)).mean()),
        width=float(np.median((high - low) / 2 / value)),
        held_out=fitted.band.held_out_error / (1.0 if fitted.law.scale == "log" else float(np.median(losses))),
    )


def cut_at(name: str, table: RunsTable, cut: float, resamples: int, rungs: int) -> list[Result]:
    """All laws on the runs below the cut; those that need more runs are left out."""
    below = table.select(table.column("compute") < cut)
    if not 0 < len(below) < len(table):
        return []
    results = []
    for law, (formula, weight) in LAWS.items():
        try:
            fitted = formula.fit(below, regularise=weight, resamples=resamples, rungs=rungs)
        except ShoestringError as error:
            print(f"  {law}: {error}")
        else:
            results.append(judge(name, table, cut, law, fitted))
    known = [result for result in results if math.isfinite(result.held_out)]
    if known:
        chosen = min(known, key=lambda result: result.held_out)
        results.append(Result(**{**asdict(chosen), "law": "chosen"}))
    return results


def show(results: Sequence[Result]) -> None:
    """A line for each cut and law: error beside the free law's, and coverage, over all tables."""
    laws = list(dict.fromkeys(result.law for result in results))
    print(
        f"\n{'cut':>7} {'law':14} {'tables':>6} {'error':>7} {'median':>7} {'of free':>8} {'covered':>8} {'width':>7}"
    )
    for cut in [*dict.fromkeys(result.cut for result in results), None]:
        here = [result for result in results if cut is None or result.cut == cut]
        free = {(result.table, result.cut): result.error for result in here if result.law == FREE}
        for law in laws:
            own = [result for result in here if result.law == law and (result.table, result.cut) in free]
            if not own:
                continue
            error = np.mean([result.error for result in own])
            beside = np.mean([free[result.table, result.cut] for result in own])
            covered = np.average([result.covered for result in own], weights=[result.above for result in own])
            print(
                f"{'all' if cut is None else f'{cut:.0e}':>7} {law:14} {len(own):6} {error:7.2%} "
                f"{np.median([result.error for result in own]):7.2%} {error / beside:8.2f} {covered:8.1%} "
                f"{np.median([result.width for result in own]):7.1%}",
                flush=True,
            )


def recover(count: int, noise: float) -> None:
    """How many constants of planted laws lie within their 90 % intervals."""
    held, whole = dict.fromkeys(PLANTED, 0), 0
    for seed in range(count):
        found = Chinchilla().fit(planted(seed, noise), resamples=2, rungs=0).intervals
        within = {name: low <= PLANTED[name] <= high for name, (low, high) in found.items()}
        whole += all(within.values())
        for name, inside in within.items():
            held[name] += inside
    said = ", ".join(f"{name} {number}" for name, number in held.items())
    print(f"\nof {count} planted laws, noise {noise:.1%}, within the 90 % interval: {said}; all five at once: {whole}")


def read(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overtraining", type=Path, help="a CSV file of runs")
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), help="default: all held-out sets")
    parser.add_argument("--cuts", type=float, nargs="+", default=[1e18, 3e18, 1e19, 3e19], help="FLOPs")
    parser.add_argument("--resamples", type=int, default=60, help="default %(default)s")
    parser.add_argument("--rungs", type=int, default=5, help="default %(default)s")
    parser.add_argument("--planted", type=int, default=0, help="grids of a planted law, default none")
    parser.add_argument("--noise", type=float, default=0.003, help="of planted runs, default %(default)s")
    parser.add_argument("--figures", type=Path, help="where to write the results as JSON lines")
    parser.add_argument("--show", type=Path, nargs="+", help="files that --figures wrote")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    options, began = read(words), time.monotonic()
    if options.show:
        lines = [line for path in options.show for line in path.read_text().splitlines()]
        show([Result(**json.loads(line)) for line in lines])
        return
    source: Iterator[tuple[str, RunsTable]]
    if options.overtraining:
        source = tables(options.overtraining, options.corpora, options.losses)
    else:
        source = iter([("planted", planted(0, options.noise))])
    results: list[Result] = []
    for name, table in source:
        cuts = options.cuts if options.overtraining else [float(np.quantile(table.column("compute"), 0.7))]
        for cut in cuts:
            results += cut_at(name, table, cut, options.resamples, options.rungs)
        print(f"{name}: {len(table)} runs, {time.monotonic() - began:.0f} s", flush=True)
        if options.figures:
            atomic.write_text(options.figures, "".join(json.dumps(asdict(result)) + "\n" for result in results))
    show(results)
    if options.planted:
        recover(options.planted, options.noise)


if __name__ == "__main__":
    main(sys.argv[1:])
