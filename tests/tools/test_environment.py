"""Scripts before their own code runs."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [p for folder in ("tools", "datasets") for p in (ROOT / folder).glob("[a-z]*.py")]
SCRIPTS = sorted(str(p.relative_to(ROOT)) for p in FILES)


@pytest.mark.parametrize("script", SCRIPTS)
def test_one_sentence_says_which_python_to_use(repository, script):
    # Without site packages and without PYTHONPATH.
    command = [sys.executable, "-S", "-E", "-s", script, "--help"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    missing = ["torch", "detectron2", "divdr"]
    if script in ("tools/train_translation.py", "datasets/prepare_debian_en_de.py"):
        missing.remove("detectron2")  # they need the method alone
    assert done.stderr == (
        f"error: {sys.executable} has no {' and no '.join(missing)}; run scripts by "
        ".venv/bin/python, which `make setup` makes\n"
    )


@pytest.mark.parametrize("folder", ["tools", "datasets"])
def test_ctrl_c_while_everything_is_imported(repository, folder):
    code = (
        f"import sys; sys.path.insert(0, {folder!r}); import _environment; raise KeyboardInterrupt"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.stderr == "stopped\n"
    assert done.returncode == -signal.SIGINT  # which a shell calls 130
