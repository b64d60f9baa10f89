"""Typed configuration: nested frozen dataclasses, TOML in, TOML out, any key overridden, one clear line when it is wrong.

pydantic checks the values, tomllib and tomli_w read and write the files. From plain values (`plain`) a configuration is built
(`building`); a section that chooses a method is a `Choice`.
"""

from shoestring.config.building import Flag, as_flag, build, to_toml, tree
from shoestring.config.choice import Choice, OptionError, Pick, PickList
from shoestring.config.plain import DEEPEST, Tree, listed, merge, overrides, read_toml, require_plain, tables

__all__ = [
    "DEEPEST",
    "Choice",
    "Flag",
    "OptionError",
    "Pick",
    "PickList",
    "Tree",
    "as_flag",
    "build",
    "listed",
    "merge",
    "overrides",
    "read_toml",
    "require_plain",
    "tables",
    "to_toml",
    "tree",
]
