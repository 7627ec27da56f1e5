"""When, by which state of the code, on what machine and for how long a run was trained."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from ..benchmark import describe_machine
from ..checkpoint import write_text_atomically

FILE = "facts.json"
"""In a run's output folder: a list with an entry for each time that its training was started."""


@contextmanager
def noting_facts(folder: str | Path, device: str, *, resumed: bool = False) -> Iterator[None]:
    """While a run is trained, note it in its folder, on the main process.

    The entry is there from the start, so that a run which is killed has one: without "seconds".

    Args:
        folder: the run's output folder; "" notes nothing.
        device: ``MODEL.DEVICE``.
        resumed: keep the entries of the starts before this one.
    """
    if not folder or not comm.is_main_process():
        yield
        return
    path = Path(folder) / FILE
    started = time.monotonic()
    entry: dict[str, Any] = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **_code(),
        "machine": describe_machine(device),
        "processes": comm.get_world_size(),
    }
    entries = [*(read_facts(folder) if resumed else []), entry]
    write_text_atomically(path, json.dumps(entries, indent=2))
    try:
        yield
        entry["finished"] = True
    finally:
        entry["seconds"] = round(time.monotonic() - started, 1)
        write_text_atomically(path, json.dumps(entries, indent=2))


def read_facts(folder: str | Path) -> list[dict[str, Any]]:
    """The entries of a run's folder, oldest first; none where nothing legible is there."""
    try:
        entries = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(entries, list):
        return []
    return [entry for entry in entries if isinstance(entry, dict)]


def _code() -> dict[str, str]:
    """Version of the package and, where it runs from a repository of its own, the commit."""
    from .. import __version__  # which is there once the package is imported

    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        # A repository that somebody else owns is refused, and so is an index that is locked.
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else it is another project's
        commit = git("describe", "--always", "--dirty", "--abbrev=10", "--exclude", "*")
    except (OSError, subprocess.SubprocessError):
        return {"version": __version__}
    return {"version": __version__, "commit": commit}
