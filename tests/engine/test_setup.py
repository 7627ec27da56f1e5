import logging

import pytest

from divdr.engine import load_config, report_errors
from divdr.errors import ConfigError, DataError

CONFIGS = [
    ("divdr_cityscapes", "small", 0.8, 0.1, 0.1, 16),
    ("divdr_raw_cityscapes", "full", 0.0, 0.1, 0.1, 16),
    ("dr_a_cityscapes", "small", 0.8, 0.1, 0.0, 16),
    ("dr_b_cityscapes", "small", 0.5, 0.1, 0.0, 16),
    ("dr_c_cityscapes", "small", 0.5, 0.2, 0.0, 16),
    ("dr_raw_cityscapes", "full", 0.0, 0.1, 0.0, 16),
    ("dr_raw_layer33_cityscapes", "full", 0.0, 0.1, 0.0, 33),
]


@pytest.mark.parametrize(("name", "gate", "weight", "target", "clustering", "layers"), CONFIGS)
def test_full_scale_configs_say_what_the_papers_say(
    repository, name, gate, weight, target, clustering, layers
):
    cfg = load_config(str(repository / "configs" / f"{name}.yaml"))
    routing = cfg.MODEL.ROUTING
    assert (gate, layers, 64) == (routing.GATE, routing.LAYERS, routing.CHANNELS)
    assert (weight, target) == (routing.BUDGET.WEIGHT, routing.BUDGET.TARGET)
    assert (routing.BUDGET.START, routing.BUDGET.RAMP) == (0.4, 0.02)
    assert clustering == routing.CLUSTERING.WEIGHT
    assert (routing.CLUSTERING.NUM_EXPERTS, routing.CLUSTERING.PERIOD) == (3, 50)
    assert (routing.CLUSTERING.MARGIN, routing.CLUSTERING.SQUARED) == (1.0, False)
    solver = cfg.SOLVER
    assert (solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY) == (0.05, 0.9, 1e-4)
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.POLY_LR_POWER) == (8, 180000, 0.9)
    assert solver.CLIP_GRADIENTS.CLIP_VALUE == 5.0
    assert solver.WEIGHT_DECAY_NORM == 0.0
    assert cfg.INPUT.CROP_PADDING == "black"
    assert routing.BUDGET.PER == "image"
    assert tuple(cfg.INPUT.MIN_SIZE_TRAIN) == (512, 768, 1024, 1280, 1536, 2048)
    assert tuple(cfg.INPUT.CROP.SIZE) == (768, 768)
    assert cfg.TEST.PRECISE_BN.ENABLED
    assert routing.COST_SIZES == [[1024, 2048]]


@pytest.mark.parametrize("name", ["demo/divdr", "studies/controlled/divdr"])
def test_studies_keep_the_settings_that_their_numbers_were_measured_with(repository, name):
    cfg = load_config(str(repository / "configs" / f"{name}.yaml"))
    assert (cfg.INPUT.CROP_PADDING, cfg.SOLVER.WEIGHT_DECAY_NORM) == ("mean", 1e-4)
    assert cfg.MODEL.ROUTING.BUDGET.PER == "image"


def test_unknown_key_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"key MODEL\.ROUTING\.LAYRES; did you mean .*\.LAYERS\?"):
        load_config("", ["MODEL.ROUTING.LAYRES", "3"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.ROUTING.CLUSTERING.NUM_EXPERTS", "0"], "at least 1"),
        (["MODEL.ROUTING.BUDGET.WEIGHT", "-1.0"], "cannot be negative"),
        (["MODEL.ROUTING.LAYERS", "many"], "configuration: .*many"),
        (["MODEL.ROUTING.LAYERS"], "configuration: "),
    ],
)
def test_wrong_values_are_told(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config("", overrides)


def test_missing_config_file():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load_config("nowhere.yaml")


def test_clustering_loss_that_is_always_zero_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        load_config(
            "",
            ["MODEL.ROUTING.CLUSTERING.MARGIN", "0.0", "MODEL.ROUTING.CLUSTERING.NUM_EXPERTS", "2"],
        )
    assert "identically zero" in caplog.text


def test_tools_tell_one_sentence_and_exit_with_2(capsys):
    @report_errors
    def tool():
        raise DataError("file x.png is not there")

    with pytest.raises(SystemExit) as exit_info:
        tool()
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "error: file x.png is not there\n"
