"""Four workers on slow links: how many bytes travel, and how long it takes, beside data parallelism and beside a model.

The workers are processes in network namespaces of this machine, each with a link of its own into a switch (links.py); they
share its cores. The model they train has fragments of one size (3 layers, and an embedding as large as each), so that
streaming can spread its bytes evenly. It takes root, or a machine where users may make namespaces; without, this says so.

**bytes** (about 3 minutes): bytes that a worker sends for a token of all workers' batch, on unshaped links: 2-bit MuLoCo with
H = 30 and 100 and its streaming kind, against torch's DistributedDataParallel (gloo, float32), the same model and batch.
Three counts: the kernel's, of the link's interface, from the moment all are ready to the last exchange's end; the program's
own, which has its frames but neither what gloo adds to each message (here some 150 bytes) nor packet headers; and the
formula's. Then `shoestring train` by itself, the count of its summary.json beside the kernel's. Unshaped links take packets of up
to 64 KiB as the kernel hands them over, as network cards do, so headers hardly show, save where messages are small, as those of
fragments of so small a model; on shaped ones (part 2) packets are cut to 1514 bytes, which adds up to 7 % to any way alike.
The peak is the highest rate over a window that holds a whole exchange and is shorter than the time between two fragments'.

**seconds** (about 15 minutes): the time to train on --tokens over links of --rates, each way, for DDP, DiLoCo with float32,
MuLoCo with 2 bits and Streaming MuLoCo with 2 bits, from the moment all are ready to the end of the last exchange. The model
of it is link_model.py's: the compute, and the transfer that is exposed. The compute is the processor time that the arm's own
workers took, coding and all, over the cores they share: a machine's speed drifts more from one arm to the next than what is
to be judged. An arm that would
take longer than --most-seconds takes as many steps as fit (DDP on slow links) and the rest is worked out in proportion: such
times are marked with '~' here, hollow in the figure, and as 'extrapolated' in the JSON file.

Links have no delay unless --delay asks for one: then a switch in user space holds every frame back (100 Mbit/s at most), on
the same cores; the model then counts trips, but not what TCP loses by them on connections that are busy, as DDP's are.
Every arm is written to --json as it ends; those that are there are not measured again.
"""

import argparse
import doctest
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import link_model
from link_arms import WAYS, WORKERS, Shape
from link_bytes import measure_bytes
from link_figure import draw
from link_record import Plan, Record
from link_seconds import measure_seconds
from links import in_own_namespace, links

from shoestring.errors import ShoestringError, UsageError


def check_model() -> None:
    """The examples in link_model.py. Raises: ShoestringError where one does not hold."""
    failed, tried = doctest.testmod(link_model)
    if failed or not tried:
        raise ShoestringError(f"{failed} of {tried} examples of the model do not hold")


def read(words: Sequence[str]) -> tuple[argparse.Namespace, Plan]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("bytes", "seconds", "both"), default="both")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of part 2, default 1,000,000")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[10, 100, 1000], metavar="MBIT", help="default 10 100 1000"
    )
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS), help="of part 2; default all")
    parser.add_argument(
        "--delay", type=float, default=0.0, metavar="MS", help="from one worker to another, default none"
    )
    parser.add_argument(
        "--most-seconds", type=float, default=90.0, help="of an arm of DDP, before the rest is worked out; default 90"
    )
    parser.add_argument(
        "--json", type=Path, default=Path("runs/slow-link.json"), help="every figure; default runs/slow-link.json"
    )
    parser.add_argument("--figure", type=Path, help="an SVG; default beside the JSON file")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a minute or two: 30 steps of small batches, one rate; too short to judge the model by",
    )
    options = parser.parse_args(words)
    if options.tokens < 1 or options.delay < 0 or options.most_seconds <= 0 or min(options.rates) <= 0:
        raise UsageError("tokens, rates and most-seconds are above 0, a delay not below")
    if options.delay and max(options.rates) > 100:
        raise UsageError("--delay goes with --rates of at most 100: a switch in user space passes no more")
    plan = Plan(
        Shape(), options.tokens, tuple(1e6 * rate for rate in options.rates), options.delay / 1000, options.most_seconds
    )
    plan = replace(plan, ways=tuple(options.ways))
    if options.quick:
        shape, every = Shape(context=32, batch=8), plan.every
        plan = replace(
            plan, shape=shape, tokens=every * shape.step_tokens, rates=(100e6,), byte_steps=every, command=False
        )
        plan = replace(plan, rounds=tuple((way, every, 1) for way, own, _ in plan.rounds if own == every))
    return options, plan


def main(words: Sequence[str]) -> int:
    try:
        options, plan = read(words)
        check_model()
        in_own_namespace([sys.executable, *sys.argv])
        record = Record(options.json, {"workers": WORKERS, "shape": asdict(plan.shape), "quick": options.quick})
        record.content["plan"] = asdict(plan)
        if options.part != "seconds":
            with links(WORKERS) as net:
                measure_bytes(net, plan, record)
        if options.part != "bytes":
            with links(WORKERS, plan.delay) as net:
                curves = measure_seconds(net, plan, record)
            figure = options.figure or options.json.with_suffix(".svg")
            draw(curves, plan.tokens, figure)
            print(f"figure: {figure}")
    except ShoestringError as error:
        print(f"slow_link: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("slow_link: stopped; the arms that ended are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
