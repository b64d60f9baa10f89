"""How many bytes each part of a packed model takes, counted in its file."""

import math
from dataclasses import dataclass
from pathlib import Path

from shoestring.lowbit import container


@dataclass(frozen=True)
class FilePart:
    """weights: numbers of the model that it holds. bytes: it takes, scales included. scales: of these, what scales take."""

    name: str
    weights: int
    bytes: int
    scales: int = 0

    @property
    def each(self) -> float:
        """Bytes per weight; 0 where there are none."""
        return self.bytes / self.weights if self.weights else 0.0


def parts(path: Path) -> list[FilePart]:
    """What the file of a packed model consists of; the bytes add up to its size on disk. Parts it has not are left out."""
    modules, tensors = container.outline(path)
    found: dict[str, FilePart] = {}

    def add(name: str, weights: int, size: int, scales: int = 0) -> None:
        old = found.get(name, FilePart(name, 0, 0))
        found[name] = FilePart(name, old.weights + weights, old.bytes + size, old.scales + scales)

    for name, module in modules.items():
        scales = tensors.pop(f"{name}.scales", ([], 0))[1]
        codes = tensors.pop(f"{name}.{'weight' if module.bits else 'packed'}")[1]
        kind = f"embedding and head, {module.bits} bits" if module.bits else "ternary matrices"
        add(kind, module.rows * module.columns, codes + scales, scales)
    for shape, size in tensors.values():
        add("matrices kept in float32" if len(shape) > 1 else "norms, float32", math.prod(shape), size)
    add("header", 0, path.stat().st_size - sum(part.bytes for part in found.values()))
    return [part for part in found.values() if part.bytes]
