"""Which kernel is used, what is said of it, and what happens without the native library."""

import ctypes
import warnings
from pathlib import Path

import pytest
import torch

from shoestring.errors import ShoestringError, UsageError
from shoestring.kernels import choice, native
from shoestring.lowbit import kernels
from shoestring.lowbit.packing import pack

PRODUCT = (
    torch.ones(1, 20),
    pack(torch.ones(16, 20, dtype=torch.int8), "ternary1.6"),
    torch.ones(16, 1),
    16,
    20,
    "ternary1.6",
)


def test_the_fastest_is_used_unless_another_is_chosen() -> None:
    assert kernels.kernel_in_use() == kernels.available()[-1]
    kernels.choose("torch")
    assert kernels.kernel_in_use() == "torch"
    assert "'torch' was chosen" in kernels.reason() or kernels.available() == ("torch",)
    kernels.choose(None)
    assert kernels.kernel_in_use() == kernels.available()[-1]
    with pytest.raises(UsageError, match="no kernel 'avx1024' runs here"):
        kernels.choose("avx1024")


def test_without_the_library_torch_is_used_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "library", lambda: "the native library was not built")
    monkeypatch.setattr(choice, "_warned", False)
    assert (kernels.available(), kernels.kernel_in_use()) == (("torch",), "torch")
    assert "not built; plain torch" in kernels.reason()
    with pytest.warns(RuntimeWarning, match="plain torch: the native library was not built"):
        first = kernels.matmul(*PRODUCT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = kernels.matmul(*PRODUCT)
    assert first.tolist() == second.tolist() == [[20.0] * 16]


def test_of_a_kernel_that_was_never_timed_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["plain", "avx2", "avx512_vnni", "avx512_vbmi"]
    said = {}
    for count in range(1, 5):
        found = native.Library({name: place for place, name in enumerate(names[:count])}, None)  # type: ignore[arg-type]
        monkeypatch.setattr(choice, "library", lambda found=found: found)
        said[kernels.kernel_in_use()] = kernels.reason()
    assert "plain C++ is slow" in said["plain"]
    for name in ("avx2", "avx512_vnni"):
        assert said[name].startswith(f"'{name}' was never timed beside dense products, as 'avx512_vbmi' was")
    assert said["avx512_vbmi"] == ""


def test_a_library_that_cannot_be_used_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ShoestringError, match="was not built"):
        native.load(tmp_path / "absent.so")
    foreign = tmp_path / "foreign.so"
    foreign.write_bytes(b"not a library")
    with pytest.raises(ShoestringError, match="cannot be loaded"):
        native.load(foreign)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: object())
    with pytest.raises(ShoestringError, match="cannot be loaded"):
        native.load(foreign)


@pytest.mark.skipif(not native.LIBRARY.exists(), reason="the native library was not built")
def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "INTERFACE", native.INTERFACE + 1)
    with pytest.raises(ShoestringError, match="install again"):
        native.load()


@pytest.mark.skipif(not native.LIBRARY.exists(), reason="the native library was not built")
def test_the_kernels_are_those_of_the_processor() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    names = kernels.available()
    assert names[:2] == ("torch", "plain")
    if {"avx2", "fma"} <= flags:
        assert "avx2" in names
    vnni = {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"} <= flags
    assert ("avx512_vnni" in names) == vnni
    assert ("avx512_vbmi" in names) == (vnni and "avx512vbmi" in flags)
