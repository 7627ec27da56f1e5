"""Peak memory of one forward, each execution mode in a process of its own.

``python -m divdr.benchmark.memory`` is that process: it reads a ``Case`` as JSON and the
name of a mode, and prints the figures as JSON.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import DivdrError
from ..inference.plan import InferencePlan
from ..routing.network import DynamicRoutingNetwork
from .cases import Case
from .published_run import PublishedRun
from .run_modes import NETWORK, PLAN, PLAN_BF16, PUBLISHED

MODES = (PUBLISHED, NETWORK, PLAN, PLAN_BF16)


@dataclass(frozen=True)
class Memory:
    """Peak memory of a forward beyond what was there before it (weights, the images).

    Attributes:
        mode: its name.
        resident: bytes that the process, or on CUDA the allocator, took at most.
        tensors: bytes of tensors that lived at once at most, counted at the dispatcher.
    """

    mode: str
    resident: int
    tensors: int


def measure_memory(case: Case, device: str, modes: tuple[str, ...] = MODES) -> list[Memory]:
    """Run every mode once in a fresh process.

    Raises:
        DivdrError: a process failed; with its last line.
    """
    found = []
    for mode in modes:
        command = [sys.executable, "-m", __name__, mode, device, json.dumps(asdict(case))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DivdrError(f"measuring the memory of {mode!r} failed: {last}")
        found.append(Memory(**json.loads(done.stdout.splitlines()[-1])))
    return found


def _function(mode: str, network: DynamicRoutingNetwork) -> Callable[[Tensor], object]:
    if mode == PUBLISHED:
        return PublishedRun(network)
    if mode == NETWORK:
        return network
    return InferencePlan(network, dtype=torch.bfloat16 if mode == PLAN_BF16 else None)


@torch.no_grad()
def _measure_here(mode: str, device: str, case: Case) -> Memory:
    network, x = case.build(device)
    function = _function(mode, network)
    function(x[..., :64, :64])  # libraries load and kernels are compiled before
    if x.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(x)
        resident = torch.cuda.max_memory_allocated() - before
    else:
        before = _restart_peak()
        function(x)
        resident = _peak_resident() - before
    return Memory(mode, resident, peak_bytes(lambda: function(x)))


def _restart_peak() -> int:
    """Bytes resident now, where Linux lets a process forget its peak; else the peak so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak_resident()


def _peak_resident() -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024


class LiveBytes(TorchDispatchMode):
    """Counts the memory of tensors that operations return, for as long as anything refers to it.

    Tensors from before are not counted, nor is what an operation takes and gives back inside.

    Attributes:
        now: bytes that live.
        peak: the most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_address(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor, given)
        return result

    def _note(self, tensor: Tensor, given: set[int]) -> None:
        key = _address(tensor)
        if key in self._known or key in given:
            return
        storage = tensor.untyped_storage()
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.now -= count


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes of new tensors that live at once while ``function`` runs."""
    with LiveBytes() as live, torch.no_grad():
        function()
    return live.peak


if __name__ == "__main__":
    chosen, place, text = sys.argv[1:]
    settings = json.loads(text)
    settings["size"] = tuple(settings["size"])
    print(json.dumps(asdict(_measure_here(chosen, place, Case(**settings)))))
