"""The README's lines for one's own data, run as they stand there."""

import json
import re

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from divdr.engine import load_config


@pytest.fixture
def block(repository):
    section = (repository / "README.md").read_text().split("## Your own data")[1]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def test_readme_trains_on_a_folder(block, repository, tmp_path, overrides, monkeypatch):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    generator = np.random.default_rng(0)
    for index in range(6):
        labels = np.zeros((64, 96), np.uint8)
        labels[:, generator.integers(20, 60) :] = 1
        image = labels[..., None] * 120 + generator.integers(0, 60, (64, 96, 3))
        Image.fromarray(labels).save(tmp_path / "labels" / f"{index}.png")
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "images" / f"{index}.png")
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
