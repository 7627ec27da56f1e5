"""Single-gated mixtures through tools/train_net.py, in one run and expert by expert."""

import json

import numpy as np
import pytest
import torch
from classifier_runs import CONFIGS, options, refused, results, run
from drawn_classification import draw_published, write_tiny_imagenet

from divdr.data.classification import register_published
from divdr.engine import load_config
from divdr.engine.classifier_analysis import curve_table
from divdr.engine.make_mixture import assemble_experts
from divdr.errors import CheckpointError
from divdr.modeling.classifiers import build_classifier, single_gate_classifier

KEY = "MODEL.CLASSIFIER.SINGLE_GATE."
CONFIG = "digits_single_gate.yaml"
# 20 iterations of the base, 4 of the gate, 12 of the experts and 4 of the stackers.
SHORT = ("SOLVER.MAX_ITER", 40, "SOLVER.BASE_LR", 0.01, "SOLVER.CHECKPOINT_PERIOD", 30)
SHORT += (KEY + "EXPERTS", 3, KEY + "BASE_STAGE", 20, KEY + "GATE_STAGE", 4)
SHORT += (KEY + "ENSEMBLER", "stacking", KEY + "STACKING_STAGE", 4)


@pytest.fixture(autouse=True)
def _in_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


def weights(folder, name="model_final.pth"):
    return torch.load(folder / name, weights_only=True)["model"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, repository, few_digits):
    """Folder of a mixture that trained in one run."""
    folder = tmp_path_factory.mktemp("single_gate")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        run(CONFIG, options(folder, few_digits, *SHORT, KEY + "COMPARE", True))
    return folder


def test_a_mixture_learns_and_reports_what_its_alternatives_would_reach(
    trained, few_digits, tmp_path
):
    found = results(trained, few_digits[1])
    mixture, top1 = found["mixture"], found["classification"]["top1"]
    assert mixture["top1 base"] > 30  # 10 is chance
    assert mixture["top1 anytime-0.1"] == pytest.approx(top1)
    assert mixture["mflops anytime-0.1"] == pytest.approx(found["cost"]["mflops"])
    assert mixture["experts base"] == 0
    assert mixture["experts none"] == mixture["experts stacking"] == 1
    assert mixture["experts top2"] == 2
    costs = [v for k, v in mixture.items() if k.startswith("mflops anytime-")]
    assert costs == sorted(costs, reverse=True)
    shares = torch.tensor(json.loads((trained / "inference/least_loss.json").read_text()))
    assert shares.shape == (10, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(10))
    # τ = 1 runs no expert: what remains is the base, and the tool's curve says the same.
    alone = options(tmp_path, few_digits, *SHORT, "MODEL.WEIGHTS", trained / "model_final.pth")
    run(CONFIG, [*alone, KEY + "THRESHOLD", "1.0"], eval_only=True)
    seen = results(tmp_path, few_digits[1])
    assert seen["classification"]["top1"] == pytest.approx(mixture["top1 base"])
    assert seen["cost"]["ended_early"] == 100
    cfg = load_config(CONFIGS + CONFIG, alone)
    rows = [line.split() for line in curve_table(cfg, [0.1, 1.0]).splitlines()[2:]]
    assert [float(row[2]) for row in rows] == pytest.approx([top1, mixture["top1 base"]], abs=1e-3)


def test_experts_that_train_alone_make_the_mixture_of_one_run(trained, few_digits, tmp_path):
    gate = tmp_path / "gate"
    run(CONFIG, options(gate, few_digits, *SHORT, KEY + "EXPERT", -2))
    half, whole = weights(gate), weights(trained)
    for name, value in half.items():
        if name.startswith(("system.shared", "system.base", "system.gate")):
            assert value.equal(whole[name]), name
    files = []
    for number in (2, 0, 1):
        folder = tmp_path / str(number)
        one = ("MODEL.WEIGHTS", gate / "model_final.pth", KEY + "EXPERT", number)
        run(CONFIG, options(folder, few_digits, *SHORT, *one))
        files.append(str(folder / f"expert_{number}.pth"))
    output = ("MODEL.WEIGHTS", gate / "model_final.pth")
    cfg = load_config(CONFIGS + CONFIG, options(tmp_path / "all", few_digits, *SHORT, *output))
    assembled = weights(tmp_path / "all", assemble_experts(cfg, files).rpartition("/")[2])
    assert assembled.keys() == whole.keys()
    for name, value in assembled.items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0, msg=name)
    with pytest.raises(CheckpointError, match="expert 0 of 3 is missing"):
        assemble_experts(cfg, [files[0], files[2]])
    with pytest.raises(CheckpointError, match="expert 2 of 3 is there twice"):
        assemble_experts(cfg, [*files, files[0]])
    # Behind a base that went another way it is worth nothing.
    other = tmp_path / "other.pth"
    half["system.base.classify.bias"] += 1
    torch.save({"model": half}, other)
    cfg = load_config(CONFIGS + CONFIG, [*options(tmp_path / "x", few_digits, *SHORT),
                                        "MODEL.WEIGHTS", str(other)])  # fmt: skip
    with pytest.raises(CheckpointError, match=r"expert 2 of .* was trained behind another base"):
        assemble_experts(cfg, files)
    with pytest.raises(CheckpointError, match="holds no single expert"):
        assemble_experts(cfg, [str(gate / "model_final.pth")])


def test_a_run_that_stopped_among_the_experts_goes_on_as_if_it_had_not(
    trained, few_digits, tmp_path
):
    opts = options(tmp_path, few_digits, *SHORT)
    run(CONFIG, [*opts, "SOLVER.STOP_ITER", "30"])
    run(CONFIG, opts, resume=True)
    after, whole = weights(tmp_path), weights(trained)
    assert all(value.equal(whole[name]) for name, value in after.items())


def test_a_trained_network_as_base(few_digits, tmp_path):
    single = options(tmp_path / "single", few_digits, "SOLVER.MAX_ITER", 5)
    narrow = ("MODEL.CLASSIFIER.CHANNELS", "5", "MODEL.CLASSIFIER.DEPTH", "1")
    run("digits_single.yaml", [*single, *narrow])
    base = tmp_path / "single" / "model_final.pth"
    few = ("SOLVER.MAX_ITER", 6, KEY + "BASE", base, KEY + "GATE_STAGE", 2)
    run(CONFIG, options(tmp_path / "mixture", few_digits, *few))
    before, after = weights(tmp_path / "single"), weights(tmp_path / "mixture")
    for name, value in before.items():
        own = name.removeprefix("system.members.0.")
        found = after.get("system.shared." + own, after.get("system.base." + own))
        assert value.equal(found), name


def write_base(path, opts, module=None):
    """An untrained network's checkpoint, with a module beside its own."""
    cfg = load_config(CONFIGS + CONFIG, opts)
    cfg.MODEL.CLASSIFIER.NAME = "build_single_classifier"
    system = build_classifier(cfg)
    system.members[0].auxiliary = module
    state = {f"system.{name}": value for name, value in system.state_dict().items()}
    torch.save({"model": state}, path)
    return state


def test_a_base_of_more_layers_is_refused(few_digits, tmp_path, capsys):
    few = ("SOLVER.MAX_ITER", 4, KEY + "BASE", tmp_path / "base.pth", KEY + "GATE_STAGE", 2)
    write_base(tmp_path / "base.pth", ["MODEL.CLASSIFIER.DEPTH", "2"])
    told = refused(capsys, tmp_path, few_digits, *few, config=CONFIG)
    assert "the base's checkpoint is of another architecture" in told
    assert told.endswith("there and missing here")


def test_a_base_may_hold_a_part_that_never_runs(few_digits, tmp_path, monkeypatch):
    def with_unused(cfg, make=single_gate_classifier.network):
        made = make(cfg)
        made.auxiliary = torch.nn.Linear(3, 3)
        return made

    monkeypatch.setattr(single_gate_classifier, "network", with_unused)
    base = write_base(tmp_path / "base.pth", [], torch.nn.Linear(3, 3))
    few = ("SOLVER.MAX_ITER", 4, KEY + "BASE", tmp_path / "base.pth", KEY + "GATE_STAGE", 2)
    run(CONFIG, options(tmp_path / "mixture", few_digits, *few))
    after = weights(tmp_path / "mixture")
    found = {n.split(".", 2)[2]: v for n, v in after.items() if ".shared." in n or ".base." in n}
    expected = {n.split(".", 3)[3]: v for n, v in base.items() if "auxiliary" not in n}
    assert found.keys() == expected.keys()
    assert all(value.equal(expected[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ((KEY + "SPLIT_AT", "stme"), "no module 'stme' to split at; near are stem"),
        ((KEY + "PARTITION", "class", KEY + "EXPERTS", 11), "11 branches cannot share 10 classes"),
        ((KEY + "EXPERT", 7), "EXPERT 7: there are 5 experts"),
        ((KEY + "BASE", "nowhere.pth"), "nowhere.pth"),
        (("MODEL.CLASSIFIER.ARCHITECTURE", "torchvision:alexnet"), "SPLIT_AT must name the module"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(opts, message, capsys, tmp_path, few_digits):
    few = ("SOLVER.MAX_ITER", 4, KEY + "BASE_STAGE", 1, KEY + "GATE_STAGE", 1)
    assert message in refused(capsys, tmp_path, few_digits, *few, *opts, config=CONFIG)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar100", "tiny_imagenet"])
def test_other_configs_train_a_step_of_every_stage(name, tmp_path, names_under):
    draw_published(tmp_path)
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200", np.random.default_rng(0))
    few = ("SOLVER.MAX_ITER", 4, "SOLVER.IMS_PER_BATCH", 4, "MODEL.DEVICE", "cpu")
    few += (KEY + "BASE_STAGE", 1, KEY + "GATE_STAGE", 1, KEY + "STACKING_STAGE", 1)
    few += (KEY + "EXPERTS", 2, "DATALOADER.NUM_WORKERS", 0, "SOLVER.STEPS", "()")
    few += ("SOLVER.STEP_FACTORS", "[]", "DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path / "out")
    if name != "fashion_mnist":  # a network that a CPU trains in no time
        few += ("MODEL.CLASSIFIER.ARCHITECTURE", "resnet", "MODEL.CLASSIFIER.CHANNELS", 4)
    with names_under(tmp_path):
        register_published(tmp_path)
        run(f"{name}_single_gate.yaml", [str(value) for value in few])
    assert (tmp_path / "out" / "model_final.pth").is_file()
