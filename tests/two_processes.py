"""Two processes on this machine that train together."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def join(rank: int, folder: str) -> None:
    """Make this process one of two that meet over a file in ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )


def in_two_processes(find: Callable[[int], Any], folder: Path) -> list[Any]:
    """What a function of a module finds in each of two processes; it gets the rank.

    This process is the first of them: starting another takes seconds.
    """
    other = mp.get_context("spawn").Process(target=_keep, args=(find, 1, str(folder)))
    other.start()
    try:
        _keep(find, 0, str(folder))
    finally:
        other.join(60)
        other.kill()
    assert other.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _keep(find: Callable[[int], Any], rank: int, folder: str) -> None:
    join(rank, folder)
    try:
        torch.save(find(rank), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
