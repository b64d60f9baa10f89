"""`shoestring doctor`: what was found on this machine, what is slow and why."""

import shutil
from collections.abc import Sequence
from typing import Any

import torch

from shoestring import __version__, kernels
from shoestring.budget import busy_waiting
from shoestring.budget.machine import Machine, cache_folder, matmul_rate, probe
from shoestring.cli.arguments import Arguments
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.screen import Screen
from shoestring.lowbit import gpu
from shoestring.model.native_pass import FEW


def findings(machine: Machine) -> list[str]:
    """What is slow here and what can be done about it, a line each."""
    found = []
    rates = machine.matmul
    if rates["bfloat16"] < 1.1 * rates["float32"]:
        found.append("bfloat16 is no faster than float32: this processor has no instructions for it, runs use float32")
    if machine.device == "cpu" and shutil.which("g++") is None and shutil.which("clang++") is None:
        found.append("no C++ compiler: blocks are not compiled and training is up to 1.5 times slower; install g++")
    if machine.device == "cpu":
        small = matmul_rate(2048, 256, 256, machine.best_precision)
        share = small / rates[machine.best_precision]
        if share < 0.5:
            found.append(
                f"small matrices (256 wide) reach {share:.0%} of the large ones' rate: narrow models train below peak"
            )
    slow = kernels.reason()
    if slow:
        found.append(f"packed models: {slow}")
    if torch.cuda.is_available():
        used, slow_there = gpu.kernel_in_use()
        unknown = f"'{used}' was never timed beside dense products: whether it is faster is not known"
        found.append(f"packed models on the GPU: {slow_there or unknown}")
    if not torch.cuda.is_available():
        found.append("no GPU that torch can use: everything runs on the processor")
    return found


def native_path() -> str:
    """What is computed by the native library here, and what by torch."""
    used = kernels.kernel_in_use()
    if used == kernels.TORCH:
        return "nothing: attention over a paged cache and all layers of a pass are computed with torch, one by one"
    return (
        f"the kernel '{used}' attends over a paged cache, and takes packed models through all layers in one call "
        f"(models in float32 and bfloat16 too, up to {FEW} tokens a pass)"
    )


def _measured(machine: Machine) -> dict[str, Any]:
    """What `--json` prints; rates are FLOP/s and bytes/s."""
    on_gpu = gpu.kernel_in_use()[0] if torch.cuda.is_available() else None
    return {
        "shoestring": __version__,
        "torch": torch.__version__,
        "machine": machine,
        "packed_kernel": kernels.kernel_in_use(),
        "packed_kernel_gpu": on_gpu,
        "native": native_path(),
        "kept_in": cache_folder(),
        "slow": findings(machine),
    }


def run(words: Sequence[str]) -> int:
    parser = Arguments("doctor", "Measure this machine afresh and say what is slow on it and why.")
    add_json_flag(parser, "what was measured and found")
    found = parser.read(words)
    machine = probe(fresh=True)
    if found.json:
        print_json(_measured(machine))
        return 0
    console = Screen()
    console.print(f"shoestring {__version__}, torch {torch.__version__}")
    console.print(
        f"device      {machine.device}: {machine.name}, {machine.threads} threads, {machine.memory / 2**30:.1f} GiB"
    )
    console.print(f"features    {', '.join(machine.features) or 'none that matter here'}")
    for dtype, rate in machine.matmul.items():
        console.print(f"matmul      {rate / 1e9:,.0f} GFLOP/s in {dtype} (2048 x 2048 x 2048)")
    console.print(f"bandwidth   {machine.bandwidth / 1e9:.1f} GB/s read from memory")
    console.print(f"packed      matrices of few bits are multiplied by the kernel '{kernels.kernel_in_use()}'")
    console.print(f"native      {native_path()}")
    if torch.cuda.is_available():
        console.print(f"            and on the GPU by the kernel '{gpu.kernel_in_use()[0]}'")
    for line in busy_waiting.describe():
        console.print(line)
    console.print(f"kept in     {cache_folder()}")
    lines = findings(machine)
    console.print("slow here:" if lines else "nothing is slow here")
    for line in lines:
        console.print(f"  - {line}")
    return 0
