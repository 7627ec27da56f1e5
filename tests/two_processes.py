"""Two processes on this machine that train together."""

import gc
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from divdr.engine import launch

# A fork has this process's imports, which take seconds. Where there is a GPU, autograd has threads
# of its own, which no fork takes along.
_START = "spawn" if torch.cuda.is_available() else "fork"


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


def start_two(run: Callable[..., None], *args: Any) -> None:
    """Call a function of a module in two new processes, with the rank and then ``args``.

    Raises:
        ProcessRaisedException: one failed; it shows the other's traceback.
    """
    mp.start_processes(run, args=args, nprocs=2, start_method=_START)


def in_two_processes(find: Callable[[int], Any], folder: Path) -> list[Any]:
    """What a function of a module finds in each of two processes; it gets the rank.

    This process is the first of them.
    """
    other = mp.get_context(_START).Process(target=_keep, args=(find, 1, str(folder)))
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
        # Threads end with the last reference to their group, of which Detectron2 keeps one and a
        # model in a circle another. A fork would wait for them.
        if hasattr(comm, "_get_global_gloo_group"):
            comm._get_global_gloo_group.cache_clear()
        gc.collect()
        dist.destroy_process_group()


def train_in_two_processes(config: str, opts: list[Any]) -> None:
    """What tools/train_net.py does in the two processes that torchrun starts."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    start_two(_train, port, config, [str(opt) for opt in opts])


def torchrun_environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun tells a process of two on one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }


def _train(rank: int, port: int, config: str, opts: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ.update(torchrun_environment(rank, port))
    launch.run(default_argument_parser().parse_args(["--config-file", config, *opts]))
