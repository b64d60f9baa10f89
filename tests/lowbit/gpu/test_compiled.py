"""The Triton kernels compiled for GPUs that are not here: they compile, fit into a GPU, copy in wide words and spill nothing."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.lowbit.gpu.config import TOKEN_BLOCKS, Config, candidates, grouped_by_rule, token_block, untuned

triton = pytest.importorskip("triton", reason="Triton is not installed: its kernels are not compiled")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets in this process", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from shoestring.lowbit.gpu import grouped_kernel, triton_kernels  # noqa: E402

LEAST_SHARED = 101376
"""Bytes of shared memory that a program may have on every GPU since Ampere; 232448 on Hopper."""

COUNTS = ("tokens", "rows", "columns", "groups", "group", "runs", "blocks", "share", "strip_stride")
KINDS = {2: ("*i16", 8, 16), 4: ("*u8", 2, 1), 8: ("*u8", 1, 1)}
"""bits of a weight: type of the words, places, rows of a strip."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(
    capability: int, config: Config, tokens: int, bits: int = 2, dtype: str = "bf16", flush: int = 0, one: bool = False
) -> Any:
    """one: for a matrix of one row and one column, numbers that the compiler is told."""
    kernel = triton_kernels.narrow if config.kernel == "narrow" else triton_kernels.wide
    words, places, strip = KINDS[bits]
    constants: dict[str, object] = {
        "KIND": bits,
        "PLACES": places,
        "RUN": 64 if bits == 8 else 16 if flush == 1 else 32,
        "STRIP": strip,
        "FLUSH": flush,
        "ROWS": config.rows,
        "TOKENS": token_block(tokens),
        "SLICES": config.slices,
        "WHOLE": config.splits == 1,
        "FACTOR": 0.5 if bits == 2 else 1.0,
        "COMPILED": True,
    }
    if not flush:
        constants["groups"] = 1
    if one:
        constants |= {"rows": 1, "columns": 1, "group": 1, "strip_stride": 1}
    out = f"*{dtype}" if config.splits == 1 else "*fp32"
    kinds = {"x": f"*{dtype}", "words": words, "scales": "*fp32", "out": out}
    aligned = [*kinds, *([] if one else ["rows", "columns", "group", "strip_stride"])]
    kinds |= dict.fromkeys(COUNTS, "i32") | dict.fromkeys(constants, "constexpr")
    names = [parameter.name for parameter in kernel.params]
    source = ASTSource(
        kernel,
        {name: kinds[name] for name in names},
        constants,
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def compiled_groups(capability: int, tokens: int, bits: int, dtype: str = "bf16") -> Any:
    """The kernel for groups of 32 columns."""
    kernel, config = grouped_kernel.groups_of_32, grouped_by_rule(4096, 128, tokens, 108)
    constants: dict[str, object] = {"KIND": bits, "ROWS": config.rows, "TOKENS": token_block(tokens)}
    constants |= {"WHOLE": config.splits == 1, "COMPILED": True}
    kinds = {
        "x": f"*{dtype}",
        "packed": "*u8",
        "halves": "*fp16",
        "out": f"*{dtype}" if config.splits == 1 else "*fp32",
    }
    aligned = [*kinds, "rows", "columns"]
    kinds |= dict.fromkeys(("tokens", "rows", "columns", "groups", "share"), "i32")
    kinds |= dict.fromkeys(constants, "constexpr")
    names = [parameter.name for parameter in kernel.params]
    marks = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, {name: kinds[name] for name in names}, constants, marks)
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize(
    ("capability", "bits"),
    [(90, 4), *(pytest.param(one, bits, marks=pytest.mark.slow) for one in (80, 86, 100) for bits in (4, 8))],
)
def test_groups_of_32_compile(capability: int, bits: int, tmp_path: Path) -> None:
    for tokens in (8,) if capability == 90 else TOKEN_BLOCKS:
        made = compiled_groups(capability, tokens, bits)
        assert "mma" in made.asm["ptx"]
        assert made.metadata.shared <= LEAST_SHARED
        assert stack(made, tmp_path) == 0


def stack(made: Any, folder: Path) -> int:
    """Bytes of the stack of a thread: where registers are spilled to."""
    (folder / "kernel.cubin").write_bytes(made.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    command = [tool, "-res-usage", str(folder / "kernel.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return max(int(found) for found in re.findall(r"STACK:(\d+)", done.stdout))


@pytest.mark.parametrize(
    ("capability", "tokens"),
    [
        pytest.param(capability, tokens, marks=() if (capability, tokens) in ((80, 8), (90, 64)) else pytest.mark.slow)
        for capability in (80, 90)
        for tokens in TOKEN_BLOCKS
    ],
)
def test_the_settings_by_rule(capability: int, tokens: int, tmp_path: Path) -> None:
    made = compiled(capability, untuned(4096, 16, tokens, False, 108), tokens)
    assembly = made.asm["ptx"]
    copies = re.findall(r"cp\.async\.\S+ \[[^]]*\], \[[^]]*\], (\w+)", assembly)
    assert copies
    # a run of 32 columns of 16 tokens is 8 bytes for each of 128 threads
    assert set(copies) == ({"0x10", "0x8"} if tokens == 16 else {"0x10"}), "copies are of other sizes"
    assert ".ftz" not in assembly, "scales below the normal numbers would be lost"
    assert "mma" in assembly
    assert made.metadata.shared <= (LEAST_SHARED if capability == 80 else 232448)
    assert stack(made, tmp_path) == 0


def test_two_instructions_are_the_expression() -> None:
    """What the assembly does to two words in a register is what the interpreter does to each."""
    words = torch.randint(-(2**15), 2**15, (1000, 2), dtype=torch.int16)
    register = words.contiguous().view(torch.int32)
    for place, assembly in enumerate(triton_kernels.SHIFT_AND_MASK.value):
        found = re.fullmatch(
            r"\{ \.reg \.b32 s; shl\.b32 s, \$1, (\d+); and\.b32 \$0, s, (0x[0-9A-F]{8}); \}", assembly
        )
        assert found is not None
        mask = int(found[2], 16) - 2**32
        assert torch.equal((register << int(found[1]) & mask).view(torch.int16), (words << (2 * place)) & -16384)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_every_kind_compiles(capability: int) -> None:
    for tokens in TOKEN_BLOCKS:
        for bits, dtype, flush in ((2, "fp16", 0), (2, "bf16", 4), (2, "bf16", 1), (4, "bf16", 0), (8, "fp16", 0)):
            made = compiled(capability, untuned(4096, 16, tokens, flush > 0, 108), tokens, bits, dtype, flush)
            assert made.metadata.shared <= (LEAST_SHARED if capability not in (80, 90, 100) else 166912)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_matrix_of_one_number_compiles(bits: int) -> None:
    for kernel in ("narrow", "wide"):
        for splits in (1, 2):
            compiled(80, Config(kernel, 64, 4, 3, splits), 1, bits, one=True)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", TOKEN_BLOCKS)
def test_what_tuning_tries_does_not_spill(tokens: int, tmp_path: Path) -> None:
    tried = {
        (config.kernel, config.rows, config.warps, config.stages): config
        for config in candidates(4096, 16, tokens, False, 108)
    }
    assert len(tried) >= 3
    for config in tried.values():
        assert stack(compiled(90, config, tokens), tmp_path) == 0
