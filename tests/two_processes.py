"""What a process of a two-process test does first."""

from datetime import timedelta

import torch
import torch.distributed as dist


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
