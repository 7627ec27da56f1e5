"""Image classification through tools/train_net.py's own program, from the configs."""

import numpy as np
import pytest
import torch
from classifier_runs import CONFIGS, learning_rates, options, refused, results, run
from detectron2.data import DatasetCatalog, MetadataCatalog
from drawn_classification import (
    draw_published,
    write_cifar100,
    write_cub200,
    write_food101,
    write_imagenet32,
)

from divdr.config import get_divdr_config
from divdr.data import ClassificationMapper
from divdr.data.classification import register_published
from divdr.engine import (
    build_lr_scheduler,
    build_optimizer,
    classifier_analysis,
    launch,
    load_config,
)
from divdr.engine.classifier_analysis import curve_table, line_table, partition_by_model
from divdr.engine.execution_modes import load_trained
from divdr.errors import ConfigError
from divdr.moe import class_means, cluster_partition


@pytest.fixture(autouse=True)
def _in_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


@pytest.mark.parametrize("system", ["single", "ensemble", "hydra", "dynk"])
def test_each_system_learns_digits_from_its_config(system, tmp_path, few_digits):
    config = f"digits_{system}.yaml"
    # After so few iterations the gater is not sure of much.
    tau = ("MODEL.CLASSIFIER.HYDRA.THRESHOLD", "0.2") if system == "dynk" else ()
    # Branches wait for their classes' share of the few images.
    longer = ("SOLVER.MAX_ITER", "40") if system == "hydra" else ()
    run(config, options(tmp_path, few_digits, *tau, *longer))
    found = results(tmp_path, few_digits[1])
    assert found["classification"]["images"] == 120
    assert found["classification"]["top1"] > 25  # 10 is chance
    branches = found["cost"]["mean_branches"]
    if system == "dynk":
        assert 1 < branches < 2
    else:
        assert branches == {"single": 1, "ensemble": 2, "hydra": 2}[system]
    if system != "dynk":
        return
    weights = str(tmp_path / "model_final.pth")
    alone = options(tmp_path / "alone", few_digits, "MODEL.WEIGHTS", weights, *tau)
    run(config, alone, eval_only=True)
    assert results(tmp_path / "alone", few_digits[1]) == found
    # τ at inference, without training: everything of the top 2, or one branch.
    run(config, [*alone, tau[0], "1.0"], eval_only=True)
    assert results(tmp_path / "alone", few_digits[1])["cost"]["mean_branches"] == 1
    cfg = load_config(CONFIGS + config, [*alone, "MODEL.DEVICE", "cpu"])
    rows = [line.split() for line in curve_table(cfg, [0.0, 0.2]).splitlines()[2:]]
    assert [row[1] for row in rows] == ["2.000", f"{branches:.3f}"]
    assert float(rows[1][2]) == pytest.approx(found["classification"]["top1"], abs=1e-3)
    assert float(rows[1][3]) == pytest.approx(found["cost"]["mflops"], abs=1e-3)
    assert len(line_table(cfg, 0, 1, 3).splitlines()) == 5


def test_a_resumed_run_keeps_its_partition_and_sees_the_same(tmp_path, few_digits):
    keep = ("SOLVER.CHECKPOINT_PERIOD", "3", "MODEL.CLASSIFIER.HYDRA.PARTITION", "random")
    opts = options(tmp_path / "whole", few_digits, *keep, "SOLVER.MAX_ITER", "6")
    run("digits_dynk.yaml", opts)
    whole = torch.load(tmp_path / "whole" / "model_final.pth", weights_only=True)
    half = tmp_path / "half"
    half.mkdir()
    (tmp_path / "whole" / "model_0000002.pth").rename(half / "model_0000002.pth")
    (half / "last_checkpoint").write_text("model_0000002.pth")
    # Another kind of partition changes nothing any more.
    opts = options(half, few_digits, *keep[:2], "SOLVER.MAX_ITER", "6")
    run("digits_dynk.yaml", opts, resume=True)
    again = torch.load(half / "model_final.pth", weights_only=True)
    assert all(v.equal(again["model"][k]) for k, v in whole["model"].items())


def test_a_partition_by_a_trained_network(tmp_path, few_digits, capsys, monkeypatch):
    run("digits_single.yaml", options(tmp_path / "base", few_digits, "SOLVER.MAX_ITER", "5"))
    weights = ("MODEL.WEIGHTS", str(tmp_path / "base" / "model_final.pth"))
    cfg = load_config(CONFIGS + "digits_single.yaml", options(tmp_path, few_digits, *weights))
    path = str(tmp_path / "partition.json")
    found = []

    def means_of(*args):
        found.append(class_means(*args))
        return found[0]

    monkeypatch.setattr(classifier_analysis, "class_means", means_of)
    partition = partition_by_model(cfg, 5, path)
    assert partition.bincount().tolist() == [2] * 5
    (means,) = found
    torch.testing.assert_close(means, _mean_embeddings(cfg, few_digits[0]), rtol=1e-4, atol=1e-5)
    assert partition.equal(cluster_partition(means, 5))
    by_file = ("MODEL.CLASSIFIER.HYDRA.PARTITION", "file")
    by_file += ("MODEL.CLASSIFIER.HYDRA.PARTITION_FILE", path, "SOLVER.MAX_ITER", "1")
    run("digits_dynk.yaml", options(tmp_path / "dynk", few_digits, *by_file))
    saved = torch.load(tmp_path / "dynk" / "model_final.pth", weights_only=True)
    assert saved["model"]["system.partition"].equal(partition)
    _of_another_data_set_is_refused(tmp_path, few_digits, by_file, capsys)


@torch.no_grad()
def _mean_embeddings(cfg, name):
    """Image by image, in the order of the data set."""
    model = load_trained(cfg)
    network = model.system.members[0].eval()
    mapper = ClassificationMapper(cfg, is_train=False)
    width = network.classify.in_features
    sums, counts = torch.zeros(10, width, dtype=torch.float64), torch.zeros(10)
    for record in DatasetCatalog.get(name):
        image = model.normalise(mapper(record)["image"][None])
        maps = network.branch(network.stem(image))
        sums[record["label"]] += maps.mean((2, 3))[0].double()
        counts[record["label"]] += 1
    return sums / counts[:, None]


def _of_another_data_set_is_refused(tmp_path, few_digits, by_file, capsys):
    for name in few_digits:
        MetadataCatalog.get(name).classes[9] = "nine"
    try:
        reported = refused(capsys, tmp_path, few_digits, *by_file)
    finally:
        for name in few_digits:
            MetadataCatalog.get(name).classes[9] = "9"
    assert "is of data set 'few_digits_train' with 10 classes, and does not suit" in reported


@pytest.mark.parametrize(
    ("key", "value", "reported"),
    [
        ("HYDRA.BRANCHES", 11, "11 branches cannot share 10 classes"),
        ("HYDRA.THRESHOLD", 1.5, "must be between 0 and 1, not 1.5"),
        ("HYDRA.TOP_K", 6, "TOP_K must be between 1 and the 5 branches, not 6"),
        ("HYDRA.PARTITION", "coarse", "the training set has no super-classes"),
        ("HYDRA.PARTITION", "best", "must be one of cluster, random, coarse, file, not 'best'"),
        ("HYDRA.EMBEDDER", "clip", "EMBEDDER 'clip' is unknown"),
        ("NAME", "build_nothing", "known are build_coe_classifier, build_ensemble_classifier"),
        ("NUM_CLASSES", 9, "NUM_CLASSES is 9, but data set"),
        ("ARCHITECTURE", "vgg", "ARCHITECTURE 'vgg' has no parts"),
    ],
)
def test_settings_that_cannot_be(key, value, reported, capsys, tmp_path, few_digits):
    assert reported in refused(capsys, tmp_path, few_digits, f"MODEL.CLASSIFIER.{key}", value)


def test_a_class_without_images(capsys, tmp_path, few_digits):
    records = [r for r in DatasetCatalog.get(few_digits[0]) if r["label"] != 4]
    name = "digits_without_four"
    DatasetCatalog.register(name, lambda: records)
    classes = MetadataCatalog.get(few_digits[0]).classes
    MetadataCatalog.get(name).set(classes=classes, evaluator_type="classification")
    try:
        reported = refused(capsys, tmp_path, [name, few_digits[1]])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert "class 4 has no training image" in reported


def test_one_step_on_cifar_100_at_the_paper_s_scale(tmp_path, names_under):
    draw_published(tmp_path / "data")
    keys = ("SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "8", "DATALOADER.NUM_WORKERS", "0")
    keys += ("MODEL.CLASSIFIER.HYDRA.PARTITION", "coarse", "OUTPUT_DIR", str(tmp_path / "out"))
    with names_under(tmp_path / "data"):
        register_published(tmp_path / "data")
        run("cifar100_dynk.yaml", list(keys))
        found = results(tmp_path / "out", "cifar100_test")
        coarse = MetadataCatalog.get("cifar100_train").coarse
    assert found["classification"]["images"] == 200
    assert 1 <= found["cost"]["mean_branches"] <= 4
    saved = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    assert saved["system.partition"].tolist() == coarse
    assert len({key.split(".")[2] for key in saved if key.startswith("system.branches.")}) == 20


@pytest.mark.parametrize(
    ("name", "folder", "write", "data", "images"),
    [
        ("cifar100_densenet_dynk", "cifar-100-python", write_cifar100, "cifar100", 200),
        ("food101_dynk", "food-101", write_food101, "food101", 101),
        ("cub200_dynk", "CUB_200_2011", write_cub200, "cub200", 200),
        ("imagenet32_dynk", "imagenet32", write_imagenet32, "imagenet32", 1000),
    ],
)
def test_one_step_of_the_paper_s_other_recipes(
    name, folder, write, data, images, tmp_path, names_under
):
    more = {
        "cifar100": {"coarse_of": np.arange(100) % 20, "binary": False},
        "imagenet32": {"packed": True},
    }
    write(tmp_path / folder, generator=np.random.default_rng(0), **more.get(data, {}))
    keys = ("SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0")
    keys += ("MODEL.CLASSIFIER.HYDRA.PARTITION", "random", "MODEL.CLASSIFIER.DEPTH", "1")
    keys += ("OUTPUT_DIR", str(tmp_path / "out"))
    with names_under(tmp_path):
        register_published(tmp_path)
        run(f"{name}.yaml", list(keys))
        found = results(tmp_path / "out", f"{data}_test")
    assert found["classification"]["images"] == images
    assert 1 <= found["cost"]["mean_branches"] <= (5 if data == "imagenet32" else 4)


@pytest.mark.parametrize("name", ["single", "ensemble", "hydra", "dynk", "coe"])
def test_fashion_mnist_configs_build(name):
    cfg = load_config(f"{CONFIGS}fashion_mnist_{name}.yaml", ["MODEL.DEVICE", "cpu"])
    model = launch.Trainer.build_model(cfg).eval()
    output = model([{"image": torch.zeros(1, 28, 28)}])[0]
    assert output["scores"].sum().item() == pytest.approx(1)


def test_adamw_and_steps_with_factors():
    cfg = get_divdr_config()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = "ADAMW", 0.5, 0.25
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupStepFactorsLR"
    cfg.SOLVER.STEPS, cfg.SOLVER.STEP_FACTORS = (4, 6, 8), [0.1, 0.01, 0.005]
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 10, 0
    optimizer = build_optimizer(cfg, torch.nn.Linear(1, 1))
    assert isinstance(optimizer, torch.optim.AdamW)
    rates = [rate / 0.5 for rate in learning_rates(cfg)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.005, 0.005])
    cfg.SOLVER.STEP_FACTORS = [0.1]
    with pytest.raises(ConfigError, match="one number for each of the 3 STEPS, not 1"):
        build_lr_scheduler(cfg, optimizer)
