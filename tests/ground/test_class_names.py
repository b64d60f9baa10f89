"""One name, one thing: no public class name of the package is defined twice."""

import ast
from collections import defaultdict
from pathlib import Path

import shoestring

ROOT = Path(shoestring.__file__).parent


def test_no_public_class_name_is_defined_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert len(places) > 500
    assert not {name: where for name, where in places.items() if len(where) > 1}
