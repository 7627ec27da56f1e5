"""The guide's lines for one's own data, run as they stand there, and what follows from data."""

import json
import re
import runpy
import shlex
import shutil

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from divdr import get_divdr_config, verbs
from divdr.data import register_custom, register_segmentation_folder
from divdr.engine import fit_to_data, load_config
from divdr.errors import ConfigError
from divdr.evaluation import build_task_evaluator


@pytest.fixture(autouse=True)
def _names(tmp_path, names_under):
    with names_under(tmp_path):
        yield


def run(tool, words, repository, monkeypatch):
    """A tool, or a verb, as the command line runs it."""
    if tool in verbs.VERBS:
        assert verbs.main([tool, *words]) == 0
        return
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", [tool, *words])
        patch.syspath_prepend(str(repository / "tools"))  # as Python does for a script
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(repository / tool), run_name="__main__")
        assert not end.value.code


def test_the_guide_trains_evaluates_and_predicts(
    repository, tmp_path, monkeypatch, draw_halves, capsys
):
    """Its data.yaml and its commands, as they stand there."""
    page = (repository / "docs/guide/own_data.md").read_text()
    draw_halves(tmp_path, 10)
    for path in sorted((tmp_path / "images").iterdir()):  # photographs are JPEGs
        Image.open(path).save(path.with_suffix(".JPG"), "JPEG")
        path.unlink()
    (tmp_path / "data.yaml").write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(repository / "configs")
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    train, evaluate, predict = (shlex.split(line)[1:] for line in text.splitlines() if line)
    few = ["SOLVER.MAX_ITER", "4", "TEST.PRECISE_BN.NUM_ITER", "2", "DATALOADER.NUM_WORKERS", "0"]
    small = ["MODEL.ROUTING.LAYERS", "4", "MODEL.ROUTING.CHANNELS", "8"]
    run(train[0], [*train[1:], *few, *small], repository, monkeypatch)
    results = tmp_path / "output/mine/inference/results.json"
    first = json.loads(results.read_text())
    assert [*first] == ["mine_val"]
    # Ten images: each side's number follows from the names.
    sides = [len(DatasetCatalog.get(name)) for name in ("mine_train", "mine_val")]
    assert sum(sides) == 10
    assert first["mine_val"]["routing"]["images"] == sides[1]

    cfg = load_config("output/mine/config.yaml")
    assert (cfg.DATASETS.FIT, cfg.DATASETS.TEST) == (False, ("mine_val",))
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE) == (2, 255)
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST) == ((48, 64, 80), 64)
    assert tuple(cfg.INPUT.CROP.SIZE) == (64, 96)
    # The command line's iterations, and what follows from them.
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.MODEL.ROUTING.LAYERS) == (4, 0, 4)

    results.unlink()
    DatasetCatalog.clear()
    MetadataCatalog.clear()
    run(evaluate[0], evaluate[1:], repository, monkeypatch)
    assert json.loads(results.read_text())["mine_val"]["sem_seg"] == first["mine_val"]["sem_seg"]

    # Nothing but the checkpoint knows the classes now.
    saved = torch.load(tmp_path / "output/mine/model_final.pth", weights_only=True)
    assert saved["divdr"]["metadata"]["stuff_classes"] == ["road", "rest"]
    (tmp_path / "images").rename(tmp_path / "FOLDER")
    shutil.rmtree(tmp_path / "labels")
    words = ["FOLDER/0.JPG" if word == "PHOTO.jpg" else word for word in predict[1:]]
    run(predict[0], words, repository, monkeypatch)
    assert capsys.readouterr().out.strip().endswith("pictures are in output/predictions")
    made = [file.name for file in (tmp_path / "output/predictions").glob("*_prediction.png")]
    assert len(made) == 10


def train_from(tmp_path, repository, monkeypatch, config, entry, *pairs):
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(entry))
    words = ["--config-file", str(repository / f"configs/{config}.yaml"), "DATASETS.CUSTOM"]
    words += [str(tmp_path / "data.yaml"), "OUTPUT_DIR", str(tmp_path / "run")]
    words += ["SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0", *pairs]
    run("tools/train_net.py", words, repository, monkeypatch)
    cfg = load_config(str(tmp_path / "run/config.yaml"))
    return cfg, json.loads((tmp_path / "run/inference/results.json").read_text())


def test_boxes_of_ones_own(tmp_path, repository, monkeypatch):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for number in range(6):
        Image.new("RGB", (96, 64), (number * 20, 90, 90)).save(tmp_path / f"images/{number}.jpg")
        line = f"{number % 2} 0.5 0.5 0.4 0.5\n"
        (tmp_path / f"labels/{number}.txt").write_text(line)
    entry = {"name": "my", "kind": "yolo", "images": "images", "classes": ["a", "b"], "split": 0.5}
    small = ["MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"]
    small += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"]
    cfg, found = train_from(tmp_path, repository, monkeypatch, "own_detection", entry, *small)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.MODEL.ROUTING.COST_SIZES) == (64, [[64, 96]])
    assert set(found["my_val"]) == {"bbox", "routing", "box_head"}
    assert found["my_val"]["routing"]["images"] == len(DatasetCatalog.get("my_val"))


def test_classes_of_ones_own(tmp_path, repository, monkeypatch):
    for number in range(12):
        folder = tmp_path / "pets" / ("cat", "dog", "owl")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (number * 20, 90, 90)).save(folder / f"{number}.png")
    entry = {"name": "pets", "kind": "class_folders", "path": "pets", "split": 0.75}
    cfg, found = train_from(tmp_path, repository, monkeypatch, "own_classification", entry)
    classifier = cfg.MODEL.CLASSIFIER
    assert (classifier.NUM_CLASSES, classifier.HYDRA.BRANCHES, classifier.HYDRA.TOP_K) == (3, 3, 2)
    assert cfg.INPUT.CLASSIFICATION.SIZE == 20
    assert cfg.SOLVER.IMS_PER_BATCH == 9
    # A quarter of each class's four.
    assert found["pets_val"]["classification"]["images"] == 3


def test_part_of_a_coco_file_is_evaluated_by_its_own_boxes(tmp_path):
    images, annotations = [], []
    for number in range(1, 9):
        images.append({"id": number, "file_name": f"{number}.png", "height": 50, "width": 50})
        Image.new("RGB", (50, 50)).save(tmp_path / f"{number}.png")
        box = {"bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0, "category_id": 1}
        annotations.append({"id": number, "image_id": number, **box})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "cat"}]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    entry = {"name": "my", "kind": "coco", "images": str(tmp_path), "split": 0.5}
    register_custom([{**entry, "json": str(tmp_path / "boxes.json")}])
    records = DatasetCatalog.get("my_val")
    assert 0 < len(records) < 8
    evaluator = build_task_evaluator("my_val", str(tmp_path / "out"))
    evaluator.reset()
    found = Instances((50, 50))
    found.pred_boxes = Boxes(torch.tensor([[5.0, 5.0, 25.0, 25.0]]))
    found.scores, found.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.long)
    for record in records:
        evaluator.process([record], [{"instances": found}])
    # All boxes of the part are found; those of the other part are no misses.
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_large_images_are_made_smaller(tmp_path, monkeypatch):
    for kind, mode in (("images", "RGB"), ("labels", "L")):
        (tmp_path / kind).mkdir()
        for index, size in enumerate(((2000, 1000), (2000, 1000), (30, 20))):
            Image.new(mode, size).save(tmp_path / kind / f"{index}.png")
    folders = [str(tmp_path / kind) for kind in ("images", "labels")]
    register_segmentation_folder("large", *folders, ["a", "b", "c"], ignore_label=9)
    cfg = get_divdr_config()
    cfg.DATASETS.TRAIN, cfg.MODEL.META_ARCHITECTURE = ("large",), "SemanticSegmentor"
    cfg.INPUT.CROP.ENABLED = True
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
