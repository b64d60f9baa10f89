"""What this machine can do: matrix-product rate per dtype, memory bandwidth, features; measured once and cached."""

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psutil
import torch

from shoestring import atomic
from shoestring.json_files import parse_json

_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512vbmi",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
)
_VERSION = 2
SURPASSED = 1.2
"""How many times the recorded rate a quick look must show for the record to count as taken on a busy machine."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Machine:
    """matmul: FLOP/s of a 2048-cube matrix product, by dtype. bandwidth: bytes/s read from memory. memory: bytes."""

    device: str
    name: str
    threads: int
    memory: int
    features: tuple[str, ...]
    matmul: dict[str, float]
    bandwidth: float

    @property
    def best_precision(self) -> str:
        """The dtype with the fastest matrix product, float32 unless another is at least a tenth faster."""
        fastest = max(self.matmul, key=lambda dtype: self.matmul[dtype])
        return fastest if self.matmul[fastest] > 1.1 * self.matmul["float32"] else "float32"


def cache_folder() -> Path:
    """Where measurements, tokenizers and tokens are kept: $SHOESTRING_CACHE, else the user's cache folder."""
    chosen = os.environ.get("SHOESTRING_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoestring"


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


Summary = Callable[[list[float]], float]


def timed(
    work: Callable[[], object],
    *,
    device: str = "cpu",
    seconds: float = 0.15,
    least: int = 3,
    of: Summary = median,
    most: float = math.inf,
) -> float:
    """Median seconds of one call of `work`, over as many calls as fit into `seconds` (at least `least`).

    of: what stands for the calls instead of their median. most: seconds from which on no other call is begun, be it fewer
    than `least`; where the first one takes as long, which warms up, it is what is told.
    """

    def once() -> float:
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first, runs = once(), list[float]()
    while first + sum(runs) < most and (len(runs) < least or (sum(runs) < seconds and len(runs) < 200)):
        runs.append(once())
    return of(runs or [first])


def matmul_rate(
    m: int,
    k: int,
    n: int,
    dtype: str = "float32",
    device: str = "cpu",
    seconds: float = 0.15,
    of: Summary = median,
    most: float = math.inf,
) -> float:
    """FLOP/s of [m, k] @ [k, n] with the right matrix stored as a linear layer stores its weight, [n, k]."""
    left = torch.randn(m, k, device=device).to(DTYPES[dtype])
    right = torch.randn(n, k, device=device).to(DTYPES[dtype])
    return 2.0 * m * k * n / timed(lambda: left @ right.t(), device=device, seconds=seconds, of=of, most=most)


def read_bandwidth(device: str = "cpu", size: int = 1 << 28) -> float:
    """Bytes/s at which a buffer of `size` bytes, larger than the caches, is read."""
    buffer = torch.ones(size // 4, device=device)
    return size / timed(lambda: buffer.sum(), device=device, seconds=0.3, of=min, most=3 * 0.3)


def _cpu_name_and_features() -> tuple[str, tuple[str, ...]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return fields.get("model name", platform.machine()), tuple(f for f in _FEATURES if f in flags)


def measure(device: str) -> Machine:
    """Measure now, in about two seconds. What else the machine does only slows a call: the fastest one tells its rate."""
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name, memory = properties.name, properties.total_memory
        features: tuple[str, ...] = (f"sm_{properties.major}{properties.minor}",)
    else:
        name, features = _cpu_name_and_features()
        memory = psutil.virtual_memory().total
    matmul = {dtype: _peak(dtype, device, 0.4) for dtype in DTYPES}
    return Machine(device, name, torch.get_num_threads(), memory, features, matmul, read_bandwidth(device))


def _peak(dtype: str, device: str, seconds: float) -> float:
    cube = 8192 if device == "cuda" else 2048
    # on a busy machine three calls take long: what they tell there is not worth it
    return matmul_rate(cube, cube, cube, dtype, device, seconds, of=min, most=3 * seconds)


def _too_low(machine: Machine) -> bool:
    """Whether a look of a tenth of a second already beats what was measured: the machine was busy then."""
    dtype = machine.best_precision
    return _peak(dtype, machine.device, 0.1) > SURPASSED * machine.matmul[dtype]


def device_name(device: str) -> str:
    """What its maker calls it."""
    return torch.cuda.get_device_name(0) if device == "cuda" else _cpu_name_and_features()[0]


def fingerprint(device: str, threads: int | None = None) -> str:
    """What must be the same for a cached measurement to be worth anything. threads: None: those that torch has now."""
    said = f"{_VERSION} {device} {device_name(device)} {threads or torch.get_num_threads()} {torch.__version__}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def probe(device: str | None = None, *, cache: Path | None = None, fresh: bool = False) -> Machine:
    """The machine, from the cache or measured now (`fresh`: measured in any case).

    A cached measurement is measured again where the machine turns out faster than it says.
    """
    device = device or default_device()
    path = (cache or cache_folder()) / f"machine-{fingerprint(device)}.json"
    if not fresh:
        try:
            known = parse_json(path.read_bytes())
            machine = Machine(**{**known, "features": tuple(known["features"])})
            if not _too_low(machine):
                return machine
        except (OSError, ValueError, TypeError, KeyError):
            pass  # no measurement yet, or not one of this version: measure
    machine = measure(device)
    atomic.write_text(path, json.dumps(asdict(machine), indent=1))
    return machine
