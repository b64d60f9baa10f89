"""The native library built with AddressSanitizer and UndefinedBehaviorSanitizer, under the tests of the kernels."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shoestring.lowbit import kernels
from tests.examples import FEWER

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "native"
FLAGS = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-pthread", "-shared", "-fPIC"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
TESTS = [
    *(
        "test_ternary_product.py",
        "test_integer_product.py",
        "test_grouped_product.py",
        "test_threads.py",
        "test_decoder.py",
    ),
    *("../../kernels/test_attention.py", "../../model/test_native_pass.py", "../../model/test_native_recurrence.py"),
]

RUN = """
import sys
from pathlib import Path
import pytest
from shoestring.kernels import native
native.LIBRARY = Path(sys.argv[1])
assert len(native.library().kernels) > 0
sys.exit(pytest.main(["-p", "no:cacheprovider", "-p", "no:xdist", "-x", *sys.argv[2:]]))
"""

BEYOND = """
import sys
from pathlib import Path
import torch
from shoestring.kernels import native
found = native.load(Path(sys.argv[1]))
x, packed, scales = torch.ones(int(sys.argv[3]), 4096), torch.zeros(64, dtype=torch.uint8), torch.ones(16, 1)
found.ternary(found.kernels[sys.argv[2]], 0, x, packed, scales, 16)
"""

LIMIT = 1200.0
"""Seconds that each step may take; the whole takes a few minutes on two free cores."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2 * LIMIT),
    pytest.mark.skipif(not shutil.which("g++"), reason="no g++"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")

    def compiled(source: Path) -> str:
        made = folder / f"{source.stem}.o"
        subprocess.run(["g++", *FLAGS, *SANITIZE, "-c", str(source), "-o", str(made)], check=True, timeout=LIMIT)
        return str(made)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
        objects = list(workers.map(compiled, sorted(SOURCES.glob("*.cpp"))))
    path = folder / "shoestring_kernels.so"
    subprocess.run(["g++", *FLAGS, *SANITIZE, *objects, "-o", str(path)], check=True, timeout=LIMIT)
    return path


def under_sanitizers(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    preload = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    settings = {
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",  # Python itself leaves memory behind at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        FEWER: "6",
        "OMP_NUM_THREADS": "1",  # threads that spin take the time of those that are watched
    }
    return subprocess.run(
        [sys.executable, "-c", script, *words], env=os.environ | settings, capture_output=True, text=True, timeout=LIMIT
    )


def test_nothing_is_found(library: Path) -> None:
    done = under_sanitizers(RUN, str(library), *(str(HERE / name) for name in TESTS))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "Sanitizer" not in done.stdout + done.stderr


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("kernel", kernels.available()[1:])
def test_they_would_find_a_read_beyond_the_end(library: Path, kernel: str, tokens: int) -> None:
    done = under_sanitizers(BEYOND, str(library), kernel, str(tokens))
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
