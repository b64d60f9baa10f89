"""Times on a GPU: CUDA graphs, so that launching does not count, over more memory than the cache holds."""

from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

Call = Callable[[], object]


class Captured:
    """Calls recorded once as a CUDA graph, to be run again in one piece. They are run before that, and so compiled."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.count = len(calls)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for call in calls:
                call()

    def seconds(self) -> float:
        """Of one call, the mean over those recorded, in one run of all."""
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        self.graph.replay()
        ended.record()
        ended.synchronize()
        return began.elapsed_time(ended) / 1e3 / self.count


def rotated(bytes_each: int, cache: int, most: int) -> int:
    """How many copies of a matrix are more than three times the cache, but no more than `most` bytes; at least one."""
    return max(1, min(-(-3 * cache // max(bytes_each, 1)), most // max(bytes_each, 1)))


def cache_bytes(device: torch.device) -> int:
    """Of the GPU's L2 cache."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def copy_bandwidth(device: torch.device, rounds: int = 9) -> float:
    """Bytes a second, read and written, of copying 1 GiB (or an eighth of the free memory, where that is less)."""
    size = min(1 << 30, torch.cuda.mem_get_info(device)[0] // 8)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> Tensor:
        return target.copy_(source)

    captured = Captured([copy] * 4)
    return 2 * size / median(captured.seconds() for _ in range(rounds))
