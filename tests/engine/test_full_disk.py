"""A full disk is reported once."""

import errno
import io
import logging

import pytest

from divdr.engine.launch import quiet_when_full, telling_when_full
from divdr.errors import DivdrError


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "no room")


def run(error):
    with telling_when_full("out"):
        raise error


def test_the_runs_folder_is_named_where_its_files_cannot_be_written():
    with pytest.raises(DivdrError, match=r"run in out cannot write its files \(no room\)"):
        run(OSError(errno.ENOSPC, "no room"))
    with pytest.raises(FileNotFoundError):
        run(FileNotFoundError(errno.ENOENT, "no such file"))


def test_lines_that_the_log_cannot_take_are_left_out(capsys, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", True)
    logger = logging.Logger("full")
    logger.addHandler(logging.StreamHandler(Full()))
    logger.warning("a line")
    assert "Traceback" in capsys.readouterr().err
    with quiet_when_full():
        logger.warning("a line")
    assert capsys.readouterr().err == ""
