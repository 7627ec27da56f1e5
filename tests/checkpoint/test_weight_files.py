"""How weight files can be unreadable or unwritable, and the sentence for each."""

import errno
import os
import pickle
import zipfile

import forked
import numpy as np
import pytest
import torch
from PIL import Image

from divdr.checkpoint import read_weights, weight_file, write_atomically, write_text_atomically
from divdr.errors import CheckpointError

STATE = {"model": {"weight": torch.arange(5000.0)}}


def refused(path):
    with pytest.raises(CheckpointError) as reported:
        read_weights(path)
    sentence = str(reported.value)
    assert sentence.startswith(f"checkpoint {path} ")
    assert "\n" not in sentence
    return sentence.removeprefix(f"checkpoint {path} ")


def test_a_changed_bit_in_the_numbers_is_noticed(tmp_path):
    path = tmp_path / "flipped.pth"
    torch.save(STATE, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    read = torch.load(path, weights_only=True)["model"]["weight"]
    assert not read.equal(STATE["model"]["weight"])  # PyTorch itself does not see it
    assert "Bad CRC-32" in refused(path)


@pytest.mark.skipif(
    not hasattr(torch.serialization, "set_crc32_options"), reason="this torch always writes them"
)
def test_files_written_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "plain.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "plain.pth") as archive:
        assert {part.CRC for part in archive.infolist()} == {0}
    assert read_weights(tmp_path / "plain.pth")["model"]["weight"].equal(STATE["model"]["weight"])


def test_pytorchs_older_format_is_read(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    assert read_weights(path)["model"]["weight"].equal(STATE["model"]["weight"])
    path.write_bytes(path.read_bytes()[:-100])
    assert refused(path).startswith("is damaged or holds more than weights (")


def test_what_is_no_weight_file_is_called_by_its_name(tmp_path):
    for name, content, words in (
        ("empty.pth", b"", "is empty"),
        ("empty.pkl", b"", "is empty"),
        ("notes.pth", b"these are\nmy notes", "is a text, no weight file"),
        ("page.pkl", b"<!DOCTYPE html><html>", "is a text, no weight file"),
        (
            "pointer.pth",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "is a Git LFS pointer in place of the file itself, no weight file",
        ),
    ):
        (tmp_path / name).write_bytes(content)
        assert refused(tmp_path / name) == words
    for ending in ("PNG", "JPEG", "GIF", "BMP"):
        path = tmp_path / f"{ending}.pth"
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path, ending)
        assert refused(path) == f"is a {ending} picture, no weight file"
    assert refused(tmp_path / "none.pth") == "does not exist"
    assert refused(tmp_path) == "is a folder, and must be a file"


class Runs:
    def __reduce__(self):
        return os.system, ("true",)


def test_pickles_that_run_something_are_refused_without_pytorchs_advice(tmp_path):
    torch.save({"model": Runs()}, tmp_path / "runs.pth")
    (tmp_path / "runs.pkl").write_bytes(pickle.dumps({"model": Runs()}))
    for name in ("runs.pth", "runs.pkl"):
        assert "posix.system" in refused(tmp_path / name)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "script.pth")
    assert "a TorchScript program" in refused(tmp_path / "script.pth")


def test_a_pickle_that_would_take_all_memory_is_refused(tmp_path):
    # Protocol 2, an empty list, remembered as number 2^31 - 1: Python makes room for as many.
    (tmp_path / "large.pkl").write_bytes(b"\x80\x02]r\xff\xff\xff\x7f.")
    assert "not numbered in turn" in refused(tmp_path / "large.pkl")


def test_a_runs_folder_stands_for_its_last_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither model_final\.pth nor one"):
        weight_file(tmp_path)
    (tmp_path / "model_0000004.pth").write_bytes(b"")
    (tmp_path / "last_checkpoint").write_text("model_0000004.pth\n")
    assert weight_file(tmp_path) == tmp_path / "model_0000004.pth"
    (tmp_path / "model_final.pth").write_bytes(b"")
    assert weight_file(str(tmp_path)) == tmp_path / "model_final.pth"
    assert weight_file(tmp_path / "model_0000004.pth") == tmp_path / "model_0000004.pth"
    with pytest.raises(CheckpointError, match=r"gone\.pth does not exist"):
        weight_file(tmp_path / "gone.pth")


def test_a_full_disk_leaves_the_file_before_and_one_sentence(tmp_path):
    path = tmp_path / "model_final.pth"
    write_atomically(path, {"model": {"weight": torch.zeros(2)}})
    before = path.read_bytes()
    code = f"""
import resource, torch
from divdr.checkpoint import write_atomically
from divdr.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))
try:
    write_atomically({str(path)!r}, {{"model": {{"weight": torch.zeros(100000)}}}})
except CheckpointError as error:
    print(error)
"""
    done = forked.run(["-c", code], tmp_path)
    assert done.stdout == f"file {path} cannot be written ({os.strerror(errno.EFBIG)})\n"
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model_final.pth"]


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    path = tmp_path / "gone" / "last_checkpoint"
    with pytest.raises(CheckpointError, match=r"gone/last_checkpoint cannot be written \(No such"):
        write_text_atomically(path, "model_final.pth")
