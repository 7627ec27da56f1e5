"""Image classification through tools/train_net.py's own program, small."""

import argparse
import json

import pytest
import torch

from divdr.engine import build_lr_scheduler, build_optimizer, launch

CONFIGS = "configs/classification/"


def options(output, names, *more):
    few = ("SOLVER.MAX_ITER", "25", "SOLVER.IMS_PER_BATCH", "32")
    data = ("DATASETS.TRAIN", f"('{names[0]}',)", "DATASETS.TEST", f"('{names[1]}',)")
    return [*few, *data, "OUTPUT_DIR", str(output), *map(str, more)]


def run(config, opts, *, eval_only=False, resume=False):
    arguments = argparse.Namespace(
        config_file=CONFIGS + config, eval_only=eval_only, resume=resume, opts=opts
    )
    return launch.main(arguments)


def results(output, name):
    return json.loads((output / "inference" / "results.json").read_text())[name]


def refused(capsys, tmp_path, names, *more, config="digits_dynk.yaml"):
    with pytest.raises(SystemExit) as exit_info:
        run(config, options(tmp_path / "out", names, *more))
    assert exit_info.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


def learning_rates(cfg):
    """Of every iteration of a training."""
    optimizer = build_optimizer(cfg, torch.nn.Linear(1, 1))
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates
