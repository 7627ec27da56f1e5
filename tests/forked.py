"""Python programs in processes of their own that have this one's imports, which take seconds.

What is tested is the program; that it starts in a bare interpreter, ``test_package`` and
``test_environment`` see.
"""

import contextlib
import logging
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_cityscapes, register_all_coco

_BY_ROOT = ("coco_", "keypoints_coco_", "cityscapes_")


class Program:
    """``python ARGV``, started.

    Args:
        argv: a script and its arguments, or "-c", code and arguments.
        cwd: folder that it runs in.
        log: file for what it prints.
        env: variables beside this process's; ``DETECTRON2_DATASETS`` moves Detectron2's data sets.
        errors: file for what it says on stderr; None: ``log``.
    """

    def __init__(
        self,
        argv: list[Any],
        cwd: Path,
        log: Path,
        env: dict[str, str] | None = None,
        errors: Path | None = None,
    ) -> None:
        words = [str(word) for word in argv]
        place = (words, str(cwd), dict(env or {}), str(log), str(errors or log))
        if torch.cuda.is_available():  # whose threads no fork takes along
            self._started: Any = get_context("spawn").Process(target=_bare, args=place)
        else:
            self._started = get_context("fork").Process(target=_run, args=place)
        self._started.start()

    def poll(self) -> int | None:
        """Exit code; None while it runs."""
        return self._started.exitcode

    def wait(self) -> int:
        """Exit code, at the end."""
        self._started.join()
        return self._started.exitcode

    def kill(self) -> None:
        """As a failing machine would."""
        self._started.kill()


def run(
    argv: list[Any], cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """What ``subprocess.run([sys.executable, *argv], capture_output=True, text=True)`` says."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "out"), Path(folder, "err")
        code = Program(argv, cwd, files[0], env, files[1]).wait()
        out, err = (file.read_text(errors="replace") for file in files)
    return subprocess.CompletedProcess(argv, code, out, err)


def _bare(words: list[str], cwd: str, env: dict[str, str], log: str, errors: str) -> None:
    with open(log, "w") as out, open(errors, "a") as err:
        command = [sys.executable, "-W", "ignore", *words]
        os.execvpe(command[0], command, _placed(cwd, env, out, err))


def _placed(cwd: str, env: dict[str, str], out: Any, err: Any) -> dict[str, str]:
    os.chdir(cwd)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    return {**os.environ, **env}


def _run(words: list[str], cwd: str, env: dict[str, str], log: str, errors: str) -> None:
    code: Any = 1
    with open(log, "w") as out, open(errors, "a") as err:
        os.environ.update(_placed(cwd, env, out, err))
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
    _forget_logs()
    if "DETECTRON2_DATASETS" in env:
        _move_data(env["DETECTRON2_DATASETS"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if words[0] == "-c":
                sys.argv = ["-c", *words[2:]]
                exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
            else:
                sys.argv = words
                sys.path.insert(0, str(Path(words[0]).resolve().parent))
                runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code or 0)


def _forget_logs() -> None:
    """No handler of pytest's, nor of a training of a test before."""
    from detectron2.utils.logger import setup_logger

    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    setup_logger.cache_clear()


def _move_data(root: str) -> None:
    for name in [name for name in DatasetCatalog.list() if name.startswith(_BY_ROOT)]:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)
    register_all_coco(root)
    register_all_cityscapes(root)
