"""Collaboration of Experts through tools/train_net.py's own program, from the configs."""

from types import SimpleNamespace

import pytest
import torch
from classifier_runs import CONFIGS, learning_rates, options, refused, results, run
from drawn_classification import draw_published

from divdr.config import get_divdr_config
from divdr.data.classification import register_published
from divdr.engine import launch, load_config
from divdr.engine.classifier_analysis import curve_table
from divdr.engine.stage_hook import StageHook
from divdr.errors import ConfigError
from divdr.moe import PWLU, CondConv2d
from divdr.moe.resnet import DenseLayer

COE = "MODEL.CLASSIFIER.COE."


@pytest.fixture(autouse=True)
def _in_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


def weights(folder, name="model_final.pth"):
    return torch.load(folder / name, weights_only=True)["model"]


def part(state, prefix):
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, repository, few_digits):
    """Folder of a collaboration of four experts."""
    folder = tmp_path_factory.mktemp("coe")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        more = ("SOLVER.MAX_ITER", 45, COE + "DELEGATOR_STAGE", "20.0")
        more += ("SOLVER.BASE_LR", 0.01, COE + "THRESHOLD", 0.3)
        run("digits_coe.yaml", options(folder, few_digits, *more))
    return folder


def test_four_experts_learn_digits(trained, tmp_path, few_digits):
    found = results(trained, few_digits[1])
    assert found["classification"]["top1"] > 40  # 10 is chance
    cost = found["cost"]
    early = cost["ended_early"]
    assert 0 < early < 100
    assert cost["mean_branches"] == pytest.approx(1 - early / 100)
    alone = options(tmp_path, few_digits, "MODEL.WEIGHTS", trained / "model_final.pth")
    seen = {}
    for tau in ("0.3", "0.0", "1.0"):  # τ at inference, without training
        run("digits_coe.yaml", [*alone, COE + "THRESHOLD", tau], eval_only=True)
        seen[tau] = results(tmp_path, few_digits[1])
    assert seen["0.3"] == found
    assert [seen[tau]["cost"]["ended_early"] for tau in ("0.0", "1.0")] == [100, 0]
    first, last = (seen[tau]["cost"]["mflops"] for tau in ("0.0", "1.0"))
    assert cost["mflops"] == pytest.approx(first + (1 - early / 100) * (last - first))
    cfg = load_config(CONFIGS + "digits_coe.yaml", [*alone, "MODEL.DEVICE", "cpu"])
    rows = [line.split() for line in curve_table(cfg, [0.0, 0.3]).splitlines()[2:]]
    assert float(rows[1][2]) == pytest.approx(found["classification"]["top1"], abs=1e-3)
    assert [float(row[3]) for row in rows] == pytest.approx([first, cost["mflops"]], abs=1e-3)


def test_sixteen_experts_start_from_the_delegator_of_four(trained, tmp_path, few_digits):
    source = (COE + "DELEGATOR", trained / "model_final.pth")
    opts = options(tmp_path, few_digits, *source, "SOLVER.MAX_ITER", 2)
    run("digits_coe16.yaml", opts)
    before, after = weights(trained), weights(tmp_path)
    for name in ("extractor.", "task_predictor."):
        old, new = (part(state, "system.delegator." + name) for state in (before, after))
        assert old.keys() == new.keys()
        assert all(v.equal(new[k]) for k, v in old.items())
    old = part(before, "system.delegator.expert_selector.")
    new = part(after, "system.delegator.subtask_selector.")
    assert old["weight"].shape == (4, 24)
    assert all(v.equal(new[k]) for k, v in old.items())
    assert after["system.delegator.expert_selector.weight"].shape == (16, 24)
    assert len({key.split(".")[2] for key in after if key.startswith("system.experts.")}) == 16
    found = results(tmp_path, few_digits[1])["cost"]
    assert found["mean_branches"] <= 1
    # The delegator is in the checkpoint: its old file is not needed any more.
    more = (COE + "DELEGATOR", "gone.pth", "MODEL.WEIGHTS", tmp_path / "model_final.pth")
    run("digits_coe16.yaml", options(tmp_path, few_digits, *more), eval_only=True)
    assert results(tmp_path, few_digits[1])["cost"] == found


def test_classes_that_choose_experts_are_shared_out_as_these_begin(tmp_path, few_digits):
    keys = ("SOLVER.MAX_ITER", 6, COE + "DELEGATOR_STAGE", "2.0", COE + "SELECTION", "category")
    keys += ("SOLVER.CHECKPOINT_PERIOD", 2)
    run("digits_coe.yaml", options(tmp_path, few_digits, *keys))
    before = weights(tmp_path, "model_0000001.pth")["system.partition"]
    assert before.tolist() == [-1] * 10
    whole = weights(tmp_path)
    assert sorted(whole["system.partition"].bincount().tolist()) == [2, 2, 3, 3]
    # A run that goes on inside the stage keeps them.
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    run("digits_coe.yaml", options(tmp_path, few_digits, *keys), resume=True)
    assert all(v.equal(whole[k]) for k, v in weights(tmp_path).items())


def test_a_resumed_run_goes_on_in_its_stage(tmp_path, few_digits):
    # The first stage ends at 2 and PWLUs are placed at 4; the run is cut off at 3.
    keys = ("SOLVER.MAX_ITER", 6, COE + "DELEGATOR_STAGE", "2.0")
    keys += (COE + "CONDCONV", 2, COE + "PWLU", 4, COE + "PWLU_STATISTICS", "2.0")
    keys += (COE + "EXPERTS", 2, "MODEL.CLASSIFIER.DEPTH", 1, "SOLVER.IMS_PER_BATCH", 8)
    keys += ("SOLVER.CHECKPOINT_PERIOD", 3)
    run("digits_coe.yaml", options(tmp_path / "whole", few_digits, *keys))
    whole = weights(tmp_path / "whole")
    early = weights(tmp_path / "whole", "model_0000002.pth")
    placed = [name for name in whole if name.endswith(".aligned")]
    assert len(placed) == 2 * 7
    assert all(whole[name] and not early[name] for name in placed)
    half = tmp_path / "half"
    half.mkdir()
    (tmp_path / "whole" / "model_0000002.pth").rename(half / "model_0000002.pth")
    (half / "last_checkpoint").write_text("model_0000002.pth")
    run("digits_coe.yaml", options(half, few_digits, *keys), resume=True)
    assert all(v.equal(whole[k]) for k, v in weights(half).items())


def test_a_teacher_with_weights_of_a_single_network(tmp_path, few_digits, capsys):
    name = "torchvision:mobilenet_v3_small"
    keys = ("SOLVER.MAX_ITER", 1, "MODEL.CLASSIFIER.ARCHITECTURE", name)
    run("digits_single.yaml", options(tmp_path / "teacher", few_digits, *keys))
    file = tmp_path / "teacher" / "model_final.pth"
    teacher = (COE + "TEACHER", name, COE + "TEACHER_WEIGHTS", file, "SOLVER.MAX_ITER", 2)
    run("digits_coe.yaml", options(tmp_path / "taught", few_digits, *teacher))
    run("digits_coe.yaml", options(tmp_path / "alone", few_digits, "SOLVER.MAX_ITER", 2))
    taught, alone = weights(tmp_path / "taught"), weights(tmp_path / "alone")
    assert taught.keys() == alone.keys()
    assert not taught["system.delegator.task_predictor.weight"].equal(
        alone["system.delegator.task_predictor.weight"]
    )
    teacher = (COE + "TEACHER", "torchvision:resnet18", *teacher[2:])
    told = refused(capsys, tmp_path, few_digits, *teacher, config="digits_coe.yaml")
    assert "model_final.pth does not hold the teacher's weights" in told


def test_experts_of_different_architectures():
    names = "['resnet','densenet','torchvision:mobilenet_v3_small']"
    keys = [COE + "EXPERTS", "3", COE + "ARCHITECTURES", names]
    keys += [COE + "DEPTHS", "[2,1,1]", COE + "CHANNELS", "[6,3,1]"]
    keys += [COE + "DELEGATOR_ARCHITECTURE", "torchvision:mobilenet_v3_small"]
    cfg = load_config(CONFIGS + "fashion_mnist_coe.yaml", [*keys, "MODEL.DEVICE", "cpu"])
    model = launch.Trainer.build_model(cfg).eval()
    kinds = [type(expert).__name__ for expert in model.system.experts]
    assert kinds == ["StageClassifier", "StageClassifier", "MobileNetV3"]
    model.system.threshold = 1.0
    with torch.no_grad():
        outputs = model([{"image": torch.rand(1, 28, 28) * 255} for _ in range(4)])
    costs = model.system.cost(28, 28)
    assert len(set(costs.experts)) == 3
    for output in outputs:
        expected = costs.shared + costs.experts[int(output["ran"].long().argmax())]
        assert output["macs"] == expected


def test_densenets_have_the_growth_of_their_own_keys():
    keys = [COE + "EXPERTS", "3", "MODEL.CLASSIFIER.ARCHITECTURE", "densenet"]
    keys += [COE + "DELEGATOR_ARCHITECTURE", "densenet", COE + "DELEGATOR_CHANNELS", "2"]
    keys += ["MODEL.CLASSIFIER.GROWTH", "7", "MODEL.DEVICE", "cpu"]

    def growths(*more):
        cfg = load_config(CONFIGS + "fashion_mnist_coe.yaml", [*keys, *more])
        system = launch.Trainer.build_model(cfg).system
        # A layer adds as many channels as its last convolution has.
        return [
            next(m for m in network.modules() if isinstance(m, DenseLayer)).body[-1].out_channels
            for network in (system.delegator.extractor, *system.experts)
        ]

    assert growths(COE + "CHANNELS", "[3, 4, 5]") == [2, 3, 4, 5]
    assert growths() == [2, 7, 7, 7]


def test_residual_networks_have_the_channels_of_their_own_keys():
    keys = [COE + "EXPERTS", "3", COE + "DELEGATOR_CHANNELS", "2", "MODEL.DEVICE", "cpu"]
    keys += ["MODEL.CLASSIFIER.CHANNELS", "7", "MODEL.CLASSIFIER.GROWTH", "9"]

    def channels(*more):
        cfg = load_config(CONFIGS + "fashion_mnist_coe.yaml", [*keys, *more])
        system = launch.Trainer.build_model(cfg).system
        return [
            network.stem[0].out_channels
            for network in (system.delegator.extractor, *system.experts)
        ]

    assert channels(COE + "CHANNELS", "[3, 4, 5]") == [2, 3, 4, 5]
    assert channels() == [2, 7, 7, 7]


def test_one_step_on_cifar_100(tmp_path, names_under):
    draw_published(tmp_path / "data")
    keys = ("SOLVER.MAX_ITER", "2", COE + "DELEGATOR_STAGE", "1.0")
    keys += ("SOLVER.IMS_PER_BATCH", "8", "DATALOADER.NUM_WORKERS", "0")
    keys += (COE + "CONDCONV", "4", "OUTPUT_DIR", str(tmp_path / "out"))
    with names_under(tmp_path / "data"):
        register_published(tmp_path / "data")
        run("cifar100_coe.yaml", list(keys))
        found = results(tmp_path / "out", "cifar100_test")
    assert found["classification"]["images"] == 200
    assert found["cost"]["ended_early"] == 0  # sure of nothing yet


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (COE + "THRESHOLD", 1.5, "COE.THRESHOLD must be between 0 and 1, not 1.5"),
        (COE + "EXPERTS", 0, "EXPERTS must be at least 1, not 0"),
        (COE + "EXPERTS", 33, "33 experts cannot share fewer images than they are"),
        (COE + "DEPTHS", "[1, 2]", "DEPTHS has 2 values for 4 experts"),
        (COE + "SUBTASKS", 2, "name its checkpoint by COE.DELEGATOR"),
        (COE + "DELEGATOR", "no.pth", "checkpoint no.pth does not exist"),
        (COE + "DELEGATOR_STAGE", "25.0", "not after a share of 1.0"),
        (COE + "WGM", "best", "WGM must be one of delegator, labels, free, none, not 'best'"),
        (COE + "ALPHA", "[0.2, 1.8]", "α must be two numbers between 0 and 1"),
        (COE + "TEACHER", "mentor", "TEACHER 'mentor' is unknown; write torchvision:NAME"),
        (COE + "TEACHER", "torchvision:mentor", "'torchvision:mentor' cannot be made"),
        (COE + "TEACHER", "torchvision:squeezenet1_0", "does not end in a linear layer"),
        (COE + "TEACHER", "torchvision:resnet18", "knows 1000 classes and the model 10"),
        ("SOLVER.RESTARTS", "[20, 10]", "must grow, between 0 and the end of training at 25"),
    ],
)
def test_settings_that_cannot_be(key, value, told, capsys, tmp_path, few_digits):
    assert told in refused(capsys, tmp_path, few_digits, key, value, config="digits_coe.yaml")


def test_a_delegator_that_is_trained_leaves_nothing_to_start_anew(tmp_path, few_digits, capsys):
    keys = (COE + "DELEGATOR", "no.pth", "SOLVER.RESTARTS", "[0.4]")
    told = refused(capsys, tmp_path, few_digits, *keys, config="digits_coe.yaml")
    assert "leaves the first stage out" in told
    assert told.endswith("leave RESTARTS empty")


def test_delegators_that_do_not_fit(trained, tmp_path, few_digits, capsys):
    source = (COE + "DELEGATOR", trained / "model_final.pth")

    def told(*keys):
        return refused(
            capsys, tmp_path, few_digits, *source, *keys, config="digits_coe16.yaml"
        ).partition("does not fit this model: ")[2]

    found = told(COE + "SUBTASKS", 2)
    assert found == "expert_selector.bias is (4,) there and (2,) here"
    assert "there and" in told(COE + "DELEGATOR_CHANNELS", 5)
    other = torch.load(trained / "model_final.pth", weights_only=True)
    # Of a data set of 7 classes.
    for name in ("weight", "bias"):
        key = f"system.delegator.task_predictor.{name}"
        other["model"][key] = other["model"][key][:7]
    torch.save(other, tmp_path / "seven.pth")
    source = (COE + "DELEGATOR", tmp_path / "seven.pth")
    assert told() == "task_predictor.bias is (7,) there and (10,) here"
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "none.pth")
    more = (COE + "DELEGATOR", tmp_path / "none.pth")
    said = refused(capsys, tmp_path, few_digits, *more, config="digits_coe16.yaml")
    assert "none.pth holds no delegator" in said


def test_experts_can_mix_kernels():
    cfg = load_config(CONFIGS + "digits_coe.yaml", [COE + "CONDCONV", "4"])
    model = launch.Trainer.build_model(cfg)
    assert any(isinstance(m, CondConv2d) for m in model.system.experts[3].modules())
    assert not any(isinstance(m, CondConv2d) for m in model.system.delegator.modules())


def test_pwlus_are_placed_after_a_share_of_the_second_stage():
    keys = [COE + "PWLU", "4", COE + "PWLU_STATISTICS", "0.5", COE + "DELEGATOR_STAGE", "0.25"]
    keys += ["SOLVER.MAX_ITER", "40", "MODEL.DEVICE", "cpu"]
    cfg = load_config(CONFIGS + "digits_coe.yaml", keys)
    model = launch.Trainer.build_model(cfg)
    hook = StageHook(cfg, model)
    placed, stages = [], []
    for step in range(40):
        hook.trainer = SimpleNamespace(iter=step, start_iter=0)
        hook.before_step()
        stages.append(model.system.trains_delegator)
        functions = [m for m in model.modules() if isinstance(m, PWLU)]
        placed.append(all(bool(f.aligned) for f in functions))
    assert stages == [True] * 10 + [False] * 30
    assert placed == [False] * 25 + [True] * 15  # 10 and half of 30


def test_a_cosine_that_starts_anew():
    cfg = get_divdr_config()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 0.5, 10, 0
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.RESTARTS = "WarmupCosineRestartsLR", [0.4]
    rates = learning_rates(cfg)
    first, second = torch.arange(4) / 4, torch.arange(6) / 6
    expected = 0.5 * (1 + torch.cos(torch.pi * torch.cat([first, second]))) / 2
    assert rates == pytest.approx(expected.tolist(), abs=1e-6)
    cfg.SOLVER.RESTARTS = [12]
    with pytest.raises(ConfigError, match="between 0 and the end of training at 10"):
        learning_rates(cfg)
