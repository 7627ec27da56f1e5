"""Ctrl-C during a training: one line, and exit code 130."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from detectron2.engine import HookBase

from divdr.engine import Trainer, load_config

pytestmark = pytest.mark.long


class _Interrupt(HookBase):
    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("iteration", "rest"), [(1, "no checkpoint is written yet"), (5, "--resume goes on from 3")]
)
def test_a_trainer_says_where_it_stopped(
    repository, scenes, names_under, overrides, tmp_path, iteration, rest
):
    with names_under(scenes):
        config = str(repository / "configs/demo/divdr.yaml")
        trainer = Trainer(load_config(config, [*overrides, "OUTPUT_DIR", str(tmp_path)]))
        trainer.register_hooks([_Interrupt(iteration)])
        with pytest.raises(KeyboardInterrupt, match=f"^stopped at iteration {iteration}; {rest}$"):
            trainer.train()


def test_processes_that_are_interrupted_say_one_line(repository, environment, overrides, tmp_path):
    command = [sys.executable, "-W", "ignore", "tools/train_net.py", "--num-gpus", "2"]
    command += ["--config-file", "configs/demo/divdr.yaml", "--dist-url", "auto", *overrides]
    command += ["SOLVER.MAX_ITER", "100000", "OUTPUT_DIR", str(tmp_path)]
    command += ["DATALOADER.NUM_WORKERS", "1"]
    with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:
        training = subprocess.Popen(
            command,
            cwd=repository,
            env=environment,
            stdout=out,
            stderr=err,
            start_new_session=True,
            # What a shell starts behind "&" ignores Ctrl-C, and so would these tests' children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            deadline = time.monotonic() + 90
            while not (tmp_path / "last_checkpoint").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            os.killpg(training.pid, signal.SIGINT)  # as a terminal does
            code = training.wait(60)
        finally:
            if training.poll() is None:
                os.killpg(training.pid, signal.SIGKILL)
        err.seek(0)
        reported = [line for line in err.read().splitlines() if "No CUDA runtime" not in line]
    assert code == 130, reported
    [line] = [line for line in reported if not line.startswith("[W")]  # of PyTorch's own threads
    found = re.fullmatch(r"stopped at iteration (\d+); --resume goes on from (\d+)", line)
    assert found, line
    iteration, start = map(int, found.groups())
    assert 3 <= start <= iteration < start + 4
    assert start % 3 == 0  # CHECKPOINT_PERIOD
    assert (tmp_path / f"model_{start - 1:07d}.pth").is_file()
