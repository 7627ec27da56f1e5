"""The README's lines for one's own data, run as they stand there."""

import json
import re

import pytest
from detectron2.data import DatasetCatalog

from divdr.engine import load_config


@pytest.fixture
def block(repository):
    section = (repository / "README.md").read_text().split("## Your own data")[1]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def test_readme_trains_on_a_folder(
    block, repository, tmp_path, overrides, monkeypatch, draw_halves
):
    draw_halves(tmp_path)
    # Only the length of the training and the size of the network are made smaller.
    monkeypatch.setattr(
        "divdr.engine.load_config",
        lambda file, pairs: load_config(str(repository / file), [*overrides, *pairs]),
    )
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(block, "README.md", "exec"), {})
    finally:
        DatasetCatalog.remove("my_train")
    results = json.loads((tmp_path / "output/mine/inference/results.json").read_text())
    assert results["my_train"]["sem_seg"]["mIoU"] > 0
    assert results["my_train"]["routing"]["images"] == 6
