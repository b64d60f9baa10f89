"""The tag of a wheel: a platform where it has a library, and never a version of Python. `make dist` builds and tries one."""

import runpy
from pathlib import Path
from typing import Any

import pytest

setuptools = pytest.importorskip("setuptools", minversion="77")
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("built", [True, False])
def test_one_wheel_for_every_python(built: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: asked.update(given))
    runpy.run_path(str(ROOT / "setup.py"))
    distribution = setuptools.Distribution({"name": "shoestring", "version": "0", **asked})
    distribution.get_command_obj("build").build_lib = str(tmp_path)
    library = tmp_path / "shoestring" / "kernels" / "library" / "shoestring_kernels.so"
    if built:
        library.parent.mkdir(parents=True)
        library.touch()
    wheel = distribution.get_command_obj("bdist_wheel")
    wheel.ensure_finalized()
    python, abi, platform = wheel.get_tag()
    assert (python, abi) == ("py3", "none")
    assert (platform == "any") == (not built)
