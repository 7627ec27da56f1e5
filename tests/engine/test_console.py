"""What a person sees of a training: a first screen, a line of progress, a last screen."""

import argparse
import fcntl
import io
import logging
import os
import pty
import re
import struct
import sys
import termios
import threading
import warnings

import pytest
from detectron2.utils.events import EventStorage

from divdr.engine import console, launch
from divdr.engine.console import ForecastHook, ProgressLine, ScreenHandler, duration, use_screen
from divdr.known_warnings import leave_out_known_warnings

ROOTS = ("detectron2", "fvcore", "divdr")


@pytest.fixture(autouse=True)
def _own_loggers():
    """Each test finds the loggers as a process that has just started does."""
    loggers = [logging.getLogger(name) for name in ROOTS]
    before = [(log.handlers, log.level, log.propagate) for log in loggers]
    for log in loggers:
        log.handlers = []
    yield
    for log, (handlers, level, propagate) in zip(loggers, before, strict=True):
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


def arguments(folder, overrides, **more):
    opts = [*overrides, "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", "42"]
    return argparse.Namespace(
        config_file="configs/demo/divdr.yaml",
        opts=opts,
        **{"eval_only": False, "resume": False, "verbose": False, **more},
    )


@pytest.fixture
def ran(scenes, names_under, overrides, tmp_path, monkeypatch):
    """Trains with a file or a terminal as stdout; what was written there."""

    def run(stream, **more):
        monkeypatch.setattr(sys, "stdout", stream)
        with names_under(scenes):
            launch.main(arguments(tmp_path / "run", overrides, **more))
        stream.flush()

    return run


def test_a_file_gets_screens_lines_of_progress_and_results(ran, tmp_path):
    with (tmp_path / "out").open("w") as out:
        ran(out)
    said = (tmp_path / "out").read_text()
    lines = said.splitlines()
    first = next(i for i, line in enumerate(lines) if "iter: 19 " in line)
    assert first <= 15
    top = "\n".join(lines[:first])
    # 8 scenes in batches of 2: four iterations an epoch.
    assert "cityscapes_fine_sem_seg_train, 8 images of 19 classes" in top
    assert "cityscapes_fine_sem_seg_val, 4 images of 19 classes" in top
    assert "42 iterations of 2 images = 10.5 epochs" in top
    assert "3 layers, 3 scales, 4 channels" in top
    assert "one every 3 iterations" in top
    assert str(tmp_path / "run") in top
    assert re.search(r"^time +about \d+ s left", top, re.MULTILINE)
    assert re.findall(r"iter: (\d+) ", said) == ["19", "39", "41"]
    assert said.count("\r") == 0

    log = (tmp_path / "run" / "log.txt").read_text()
    assert "Environment info" in log
    assert "Running with full config" in log
    assert "Starting training from iteration 0" in log
    for line in lines:  # but for time and kind, which stand before them
        assert line.partition(": ")[2] in log
        assert line in log or line.startswith(("[", "warning: "))

    table = lines[lines.index("Results") :]
    assert any(line.split()[2] == "real_gflops" for line in table[3:])
    assert len(table) < 36
    _last_lines_can_be_typed(table[-3:], tmp_path / "run")


def _last_lines_can_be_typed(lines, folder):
    files, predict, report = lines
    names = files.removeprefix("files").strip().removeprefix(f"{folder}: ").split(", ")
    assert {"model_final.pth", "inference/results.json", "log.txt"} <= set(names)
    assert all((folder / name).is_file() for name in names)
    words = predict.split()
    assert os.path.isfile(words[-1])
    assert words[words.index("--weights") + 1] == str(folder / "model_final.pth")
    assert report.split()[-1] == f"run={folder}"


def test_a_terminal_gets_one_line_of_progress(ran, tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # rows, columns
    seen = []

    def read():
        with open(ours, "rb", buffering=0) as terminal:
            try:
                while part := terminal.read(4096):
                    seen.append(part)
            except OSError:  # the other end is closed
                pass

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal:
        ran(terminal)
    reader.join()
    said = b"".join(seen).decode().replace("\r\n", "\n")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "iter: " not in said
    assert log.count("iter: ") == 3
    assert "Total inference time" not in said
    assert "Total inference time" in log
    progress = [part for part in said.split("\r") if part.startswith("training ")]
    assert "100% |" in progress[-1]
    assert re.search(r"42/42, 0 s left, loss \d+\.\d+, GFLOPs \d\.\d+, inter", progress[-1])
    assert "\n" not in "".join(progress[:-1])
    before = said[: said.index("training   0%")]
    assert before.count("\n") <= 15
    assert "evaluating cityscapes_fine_sem_seg_val" in said
    assert said.index("42/42") < said.index("evaluating") < said.index("Results\n")


def test_verbose_shows_all_that_detectron2_does(tmp_path, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    use_screen(str(tmp_path / "quiet"))
    logging.getLogger("detectron2.data.common").info("serialised")
    logging.getLogger("divdr.engine.checkpointer").info("saving")
    logging.getLogger("detectron2.solver").warning("steps")
    console.show("a screen")
    assert out.getvalue() == "warning: steps\na screen\n"
    use_screen(str(tmp_path / "all"), verbose=True)
    logging.getLogger("detectron2.data.common").info("serialised again")
    assert out.getvalue().count("serialised") == 1
    assert console.screen() is None
    kept = (tmp_path / "quiet" / "log.txt").read_text()
    assert [kept.count(word) for word in ("serialised", "saving", "steps", "screen")] == [
        2,
        1,
        1,
        1,
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_of_progress_begins_where_the_run_goes_on():
    terminal = Terminal()
    line = ProgressLine(10, terminal)
    with EventStorage(6) as storage:
        for _ in range(4):
            storage.put_scalars(total_loss=2.0, loss_cls=1.5, time=4.0)
            line.write()
            storage.step()
        line.write()  # Detectron2 does so after the training
        line.close()
    parts = [part for part in terminal.getvalue().split("\r") if part.strip()]
    assert parts[0].split("|")[2].split()[0] == "6/10"
    # Three more iterations of 4 s.
    assert "7/10, 12 s left, loss 2.000, cls 1.5" in parts[1]
    assert "10/10, 0 s left" in parts[-1]


def test_warnings_stand_above_the_line(monkeypatch):
    terminal = Terminal()
    handler = ScreenHandler(terminal, None)
    line = ProgressLine(2, terminal)
    with EventStorage() as storage:
        storage.put_scalars(total_loss=1.0)
        line.write()
        record = logging.LogRecord("x", logging.WARNING, __file__, 1, "look %d", (1,), None)
        handler.handle(record)
        line.close()
    assert "\rwarning: look 1\n" in terminal.getvalue()


def test_how_long_it_takes_is_said_once(caplog):
    hook = ForecastHook(20)
    hook.trainer = argparse.Namespace(start_iter=5, max_iter=145)
    caplog.set_level(logging.INFO, "divdr")
    with EventStorage(5) as storage:
        hook.trainer.storage = storage
        for hook.trainer.iter in range(5, 60):
            storage.put_scalar("time", 6.0)
            hook.after_step()
            storage.step()
    # Of 140 iterations 120 are left, of 6 s each.
    assert [record.getMessage() for record in caplog.records] == [
        "time      about 12 min left, evaluations not counted"
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (89, "89 s"),
        (91, "2 min"),
        (720, "12 min"),
        (5400, "1 h 30 min"),
        (3 * 3600, "3 h"),
        (47 * 3600 + 59.9 * 60, "2 days"),
        (98 * 3600, "4 days 2 h"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_known_warnings_are_left_out_and_others_are_not(caplog):
    log = logging.getLogger("torch.utils.cpp_extension")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        leave_out_known_warnings()
        leave_out_known_warnings()
        warnings.warn("torch.meshgrid: in an upcoming release, it will be", stacklevel=1)
        warnings.warn("torch.meshgrid: something new", stacklevel=1)
    assert [str(w.message) for w in caught] == ["torch.meshgrid: something new"]
    assert len(log.filters) == len(set(log.filters))
    log.propagate = True
    log.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local")
    log.warning("the compiler is missing")
    assert "the compiler is missing" in caplog.text
    assert "No CUDA runtime" not in caplog.text
