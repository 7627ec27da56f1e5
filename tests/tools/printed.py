"""Commands that the documents print, as a shell makes them of what stands there."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

# Stands in for every program: notes its words, and the folder of data sets, and does nothing.
_STUB = """#!{python} -S
import json, os, sys
note = [os.environ["PRINTED_AT"], os.environ.get("DETECTRON2_DATASETS"), sys.argv]
with open({log!r}, "a") as file:
    file.write(json.dumps(note) + "\\n")
"""
_PROGRAMS = (
    ".venv/bin/python",
    ".venv/bin/divdr",
    "bin/python",
    "bin/pip",
    "bin/make",
    "bin/csCreateTrainIdLabelImgs",
)


@dataclass(frozen=True)
class Command:
    """A command as it would start.

    Attributes:
        place: page and line of its block.
        program: as it is called.
        words: what follows.
        datasets: $DETECTRON2_DATASETS, or None.
    """

    place: str
    program: str
    words: list[str]
    datasets: str | None


def blocks(page: Path) -> list[tuple[int, str]]:
    """(line, text) of each ``sh`` block of a page."""
    found = re.finditer(r"^( *)```sh\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    text = page.read_text()
    return [(text[: m.start()].count("\n") + 1, textwrap.dedent(m[2])) for m in found]


def commands(page: Path, folder: Path) -> list[Command]:
    """All commands of a page, whose blocks one shell runs after each other in ``folder``."""
    log = folder / "log"
    log.touch()
    for name in _PROGRAMS:
        stub = folder / name
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text(_STUB.format(python=sys.executable, log=str(log)))
        stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    script = "".join(f"export PRINTED_AT={line}\n{text}\n" for line, text in blocks(page))
    shell = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder)}
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run(
        [bash, "-eu"],
        input=script,
        env=shell,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}: {done.stderr}"
    notes = [json.loads(line) for line in log.read_text().splitlines()]
    return [
        Command(f"{page.name}:{line}", _relative(argv[0], folder), argv[1:], datasets)
        for line, datasets, argv in notes
    ]


def _relative(program: str, folder: Path) -> str:
    return program.removeprefix(f"{folder}/").removeprefix("bin/")
