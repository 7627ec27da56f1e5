"""One training as a process of its own."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ..checkpoint import write_text_atomically
from .planning import Run, start_from_trunk


class Job:
    """Trains and evaluates a run with ``tools/train_net.py``, from its last checkpoint if any.

    A lock that the process inherits keeps a second one away from the folder, also one of another
    study, for as long as the first lives.

    Args:
        run: what to train; its trunk is finished.
        root: the repository.
        environment: of the process.

    Raises:
        BlockingIOError: another process trains it.
    """

    def __init__(self, run: Run, root: Path, environment: Mapping[str, str]) -> None:
        self.run = run
        self._started = time.time()
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            start_from_trunk(run)
            definition = run.folder / "definition.yaml"
            write_text_atomically(definition, run.cfg.dump())
            command = [sys.executable, "-W", "ignore", "tools/train_net.py", "--resume"]
            with self._console.open("a") as console:
                self.process = subprocess.Popen(
                    [*command, "--config-file", str(definition)],
                    cwd=root,
                    env={**environment, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    pass_fds=[lock.fileno()],
                )

    @property
    def _console(self) -> Path:
        return self.run.folder / "console.txt"

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def close(self) -> bool:
        """Note what the ended run was and took, drop its passing checkpoints; whether it is whole.

        ``run.json`` says, for people, which run of which data lies in the folder, and the seconds.
        """
        folder = self.run.folder
        record = folder / "run.json"
        before = json.loads(record.read_text())["seconds"] if record.is_file() else 0.0
        note = {
            "name": self.run.name,
            "seed": self.run.seed,
            "data": list(self.run.data),
            "trunk": self.run.trunk.key if self.run.trunk else None,
            "seconds": round(before + time.time() - self._started, 1),
        }
        write_text_atomically(record, json.dumps(note, indent=2))
        if self.process.returncode or not self.run.finished():
            return False
        for checkpoint in folder.glob("model_[0-9]*.pth"):
            checkpoint.unlink()
        return True

    def last_words(self) -> str:
        """The end of what it printed."""
        text = self._console.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.strip().splitlines()[-12:])

    def stop(self) -> None:
        """End the process; a later one goes on from its last checkpoint."""
        if not self.ended():
            self.process.terminate()
            self.process.wait()
