"""The README's lines for one's own data, run as they stand there."""

import json
import re
import runpy
import shlex

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from divdr import get_divdr_config, verbs
from divdr.data import register_segmentation_folder
from divdr.engine import fit_to_data, load_config
from divdr.errors import ConfigError


@pytest.fixture
def section(repository):
    return (repository / "README.md").read_text().split("## Your own data")[1].split("\n## ")[0]


def test_readme_trains_on_a_folder_and_predicts(
    section, repository, tmp_path, overrides, monkeypatch, draw_halves, capsys
):
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    draw_halves(tmp_path)
    for path in sorted((tmp_path / "images").iterdir()):  # photographs are JPEGs
        Image.open(path).save(path.with_suffix(".JPG"), "JPEG")
        path.unlink()

    def smaller(file, pairs):
        if file.startswith("configs/"):  # the run's own lies in its folder
            return load_config(str(repository / file), [*overrides, *pairs])
        return load_config(file, pairs)

    monkeypatch.setattr("divdr.engine.load_config", smaller)
    found = []

    def shortened(cfg):
        found.append(fit_to_data(cfg))
        short = found[0].clone()
        short.SOLVER.MAX_ITER, short.SOLVER.WARMUP_ITERS = 10, 0
        short.DATALOADER.NUM_WORKERS = 0
        return short

    monkeypatch.setattr("divdr.engine.fit_to_data", shortened)
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(block, "README.md", "exec"), {})
    finally:
        DatasetCatalog.remove("my_train")
        MetadataCatalog.remove("my_train")
    results = json.loads((tmp_path / "output/mine/inference/results.json").read_text())
    assert results["my_train"]["sem_seg"]["mIoU"] > 0
    assert results["my_train"]["routing"]["images"] == 6
    # Six images of 64×96 pixels: 60 passes of batches of 2 are 180 iterations, fewer than 300.
    (cfg,) = found
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE) == (2, 255)
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST) == ((48, 64, 80), 64)
    assert cfg.INPUT.CROP.SIZE == [64, 96]
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS) == (300, 15)

    # Nothing but the checkpoint knows the classes now.
    saved = torch.load(tmp_path / "output/mine/model_final.pth", weights_only=True)
    assert saved["divdr"]["metadata"]["stuff_classes"] == ["road", "rest"]
    command = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1]
    program, *words = shlex.split(command.replace("\\\n", " "))
    places = {"PHOTO.jpg": "images/0.JPG", "FOLDER": "images"}
    words = [places.get(word, word) for word in words]
    if program.endswith("divdr"):
        assert verbs.main(words) == 0
    else:
        monkeypatch.setattr("sys.argv", words)
        monkeypatch.syspath_prepend(str(repository / "tools"))  # as Python does for a script
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(repository / words[0]), run_name="__main__")
        assert ended.value.code == 0
    assert capsys.readouterr().out.strip().endswith("pictures are in output/predictions")
    made = [file.name for file in (tmp_path / "output/predictions").glob("*_prediction.png")]
    assert sorted(made) == [f"{number}_prediction.png" for number in range(6)]


def test_large_images_are_made_smaller(tmp_path, monkeypatch):
    for kind, mode in (("images", "RGB"), ("labels", "L")):
        (tmp_path / kind).mkdir()
        for index, size in enumerate(((2000, 1000), (2000, 1000), (30, 20))):
            Image.new(mode, size).save(tmp_path / kind / f"{index}.png")
    folders = [str(tmp_path / kind) for kind in ("images", "labels")]
    register_segmentation_folder("large", *folders, ["a", "b", "c"], ignore_label=9)
    cfg = get_divdr_config()
    cfg.DATASETS.TRAIN = ("large",)
    cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.ROUTING.CLUSTERING.NUM_EXPERTS = 8, 5
    try:
        fitted = fit_to_data(cfg, epochs=400)
        MetadataCatalog.get("large").stuff_classes.clear()
        with pytest.raises(ConfigError, match="has no classes for semantic segmentation"):
            fit_to_data(cfg)
    finally:
        DatasetCatalog.remove("large")
        MetadataCatalog.remove("large")
    assert fitted.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
    assert fitted.MODEL.SEM_SEG_HEAD.IGNORE_VALUE == 9
    assert fitted.INPUT.MIN_SIZE_TEST == 256  # 1000 rows, where 2000 columns become 512
    assert fitted.INPUT.CROP.SIZE == [256, 512]
    assert fitted.SOLVER.IMS_PER_BATCH == 3
    assert fitted.SOLVER.MAX_ITER == 400  # passes of one batch each
    assert fitted.MODEL.ROUTING.CLUSTERING.NUM_EXPERTS == 3
    assert cfg.SOLVER.IMS_PER_BATCH == 8, "the config itself stays as it is"
