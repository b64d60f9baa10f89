"""Builds the native kernels where there is a C++ compiler; everything else is in pyproject.toml.

The library is plain C behind ctypes: no Python and no torch headers, one file for every Python, and so one wheel for
every Python of a platform. Without a compiler the install goes through, and packed matrices are computed with torch,
slowly, which is said; a wheel that is built so is one for every platform.
"""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-pthread"]
# gcc takes its own AVX-512 headers for uninitialised; contraction is off because all kernels must round alike
FLAGS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
NAME = "shoestring.kernels.library.shoestring_kernels"


class Library(build_ext):
    """An extension that is no module: its name has no tag of a Python version."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def run(self) -> None:
        if self.inplace or self.editable_mode:
            (Path(__file__).parent / "src" / Path(*NAME.split("."))).parent.mkdir(exist_ok=True)
        super().run()


class Wheel(bdist_wheel):
    """A wheel whose tag says what its library needs: a platform, and no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        *_, platform = super().get_tag()
        library = Path(self.get_finalized_command("build").build_lib, *NAME.split(".")).with_suffix(".so")
        return "py3", "none", platform if library.is_file() else "any"


setup(
    ext_modules=[
        Extension(
            NAME,
            sources=sorted(
                str(path.relative_to(Path(__file__).parent))
                for path in (Path(__file__).parent / "native").glob("*.cpp")
            ),
            depends=sorted(
                str(path.relative_to(Path(__file__).parent)) for path in (Path(__file__).parent / "native").glob("*.h")
            ),
            language="c++",
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            optional=True,
        )
    ],
    cmdclass={"build_ext": Library, "bdist_wheel": Wheel},
)
