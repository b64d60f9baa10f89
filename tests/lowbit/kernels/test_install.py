"""An install where no compiler works: it goes through, without the native library."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SAY = """
import shoestring
from shoestring.lowbit import kernels
print(shoestring.__file__, kernels.available(), kernels.reason(), sep="|")
"""


@pytest.mark.slow
def test_without_a_compiler_the_install_goes_through(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "native", source / "native")
    built = shutil.ignore_patterns("library", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=built)
    words = ["install", "--no-deps", "--no-build-isolation", "--target", str(installed), str(source)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words],
        env=os.environ | {"CC": "false", "CXX": "false"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert not list(installed.rglob("*.so"))
    found = subprocess.run(
        [sys.executable, "-c", SAY],
        env=os.environ | {"PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    where, available, reason = found.stdout.strip().split("|")
    assert Path(where).is_relative_to(installed)
    assert available == "('torch',)"
    assert "was not built" in reason
