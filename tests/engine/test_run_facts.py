"""What a run's folder tells of when, by what and where it was trained."""

import subprocess

import pytest

import divdr
from divdr.engine.run_facts import noting_facts, read_facts


def test_each_start_has_an_entry_from_its_beginning(tmp_path, repository):
    with noting_facts(tmp_path, "cpu"):
        (begun,) = read_facts(tmp_path)
        assert "seconds" not in begun
        assert "finished" not in begun
    (entry,) = read_facts(tmp_path)
    assert entry["finished"] is True
    assert entry["seconds"] >= 0
    assert entry["started"] == begun["started"]
    assert entry["version"] == divdr.__version__
    assert {"cpu", "threads", "torch"} <= set(entry["machine"])
    assert str(repository) not in (tmp_path / "facts.json").read_text()
    with pytest.raises(KeyboardInterrupt), noting_facts(tmp_path, "cpu", resumed=True):
        raise KeyboardInterrupt
    first, second = read_facts(tmp_path)
    assert first == entry
    assert "finished" not in second
    assert second["seconds"] >= 0
    with noting_facts(tmp_path, "cpu"):  # anew
        assert len(read_facts(tmp_path)) == 1


def test_the_commit_is_that_of_the_code(tmp_path, repository):
    command = ["git", "-C", str(repository), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    with noting_facts(tmp_path, "cpu"):
        pass
    (entry,) = read_facts(tmp_path)
    if done.returncode:  # no repository: unpacked from an archive
        assert "commit" not in entry
    else:
        assert done.stdout.startswith(entry["commit"].removesuffix("-dirty"))


@pytest.mark.parametrize("text", ["", "{", "{}", '["a"]'])
def test_what_is_not_legible_tells_nothing(tmp_path, text):
    (tmp_path / "facts.json").write_text(text)
    assert read_facts(tmp_path) == []
    assert read_facts(tmp_path / "nowhere") == []
