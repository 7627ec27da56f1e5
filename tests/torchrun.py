"""tools/train_net.py under torchrun, as on a machine with two devices."""

import os
import subprocess
import sys


def train_in_two_processes(repository, config, opts, **environment):
    """Run to the end; a failure shows what the processes said."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "tools/train_net.py", "--config-file", config]
    done = subprocess.run(
        [*command, *map(str, opts)],
        cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
