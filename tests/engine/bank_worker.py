"""A process of a run that is interrupted between two clusterings, and of one that is not."""

import os

import torch.distributed as dist
from detectron2.utils import comm
from two_processes import join

from divdr.engine import Trainer, load_config


def train(rank: int, folder: str, config: str, words: list[str]) -> None:
    """Train ten iterations, and again from the checkpoint of the third."""
    join(rank, folder)
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(2)
    for name in ("whole", "resumed"):
        cfg = load_config(config, [*words, "OUTPUT_DIR", os.path.join(folder, name)])
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
        if rank == 0 and name == "whole":
            os.makedirs(os.path.join(folder, "resumed"))
            first = os.path.join(folder, name, "model_0000002.pth")
            os.link(first, os.path.join(folder, "resumed", "model_0000002.pth"))
            with open(os.path.join(folder, "resumed", "last_checkpoint"), "w") as file:
                file.write("model_0000002.pth")
        comm.synchronize()
    dist.destroy_process_group()
