"""Settings: what they take, what they refuse, and what is made from them."""

import inspect
import subprocess
import sys

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from divdr import get_divdr_config, moe
from divdr.config import add_settings
from divdr.data import ClassificationMapper
from divdr.engine import check_config
from divdr.errors import ConfigError
from divdr.experts import LocalExperts, kmeans
from divdr.modeling import ClusteringLossSettings, DynamicRouting
from divdr.modeling.backbone import INFERENCE_DTYPES, INFERENCE_KINDS
from divdr.routing import DynamicRoutingNetwork, op_names
from divdr.routing.gate import GATE_KINDS
from divdr.routing.network import REACH_KINDS
from divdr.settings import (
    GROUPS,
    OUTSIDE,
    BudgetSettings,
    ClassificationInputSettings,
    ClassifierSettings,
    ClusteringSettings,
    CollaborationSettings,
    HydraSettings,
    KMeansSettings,
    OptimizerSettings,
    RoutingSettings,
    Settings,
    SolverSettings,
    TranslationExpertSettings,
    entries,
    walk,
)
from divdr.settings.__main__ import page

ALL = [part for group in GROUPS for part in walk(group)]
WITHOUT_KEYS = [part for group in OUTSIDE for part in walk(group)]


def test_keys_names_defaults_and_types_are_those_of_old(repository):
    stored = (repository / "tests/data/config_defaults.yaml").read_text()
    assert get_divdr_config().dump() == stored


def test_page_is_what_the_settings_say(repository):
    assert (repository / "docs/settings.md").read_text() == page(), (
        "run: python -m divdr.settings > docs/settings.md"
    )


def test_settings_need_neither_torch_nor_detectron2(repository):
    program = (
        "import sys, types\n"
        "package = types.ModuleType('divdr')\n"
        f"package.__path__ = [{str(repository / 'divdr')!r}]\n"
        "sys.modules['divdr'] = package\n"
        "from divdr.settings import RoutingSettings\n"
        "assert RoutingSettings().budget.target == 0.1\n"
        "assert not {'torch', 'detectron2', 'yacs'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("group", ALL + WITHOUT_KEYS, ids=lambda group: group.__name__)
def test_every_setting_says_what_it_means(group):
    assert group.__doc__
    for entry in entries(group):
        if issubclass(entry.kind, Settings):
            assert entry.key == entry.kind.KEY  # where the group says it stands
        else:
            assert entry.meaning.strip()


@pytest.mark.parametrize("group", ALL, ids=lambda group: group.__name__)
def test_a_configuration_gives_the_settings_back(group):
    node = get_divdr_config()
    for name in group.KEY.split("."):
        node = node[name]
    assert group.of(node) == group()


def test_whole_numbers_stand_for_numbers_and_lists_for_lists():
    node = {"DROP_PATH": 0, "OPS": ["skip_connect"], "BUDGET": {"WEIGHT": 1}, "THEIRS": "own"}
    routing = RoutingSettings.of(node)
    assert (routing.drop_path, routing.budget.weight) == (0.0, 1.0)
    assert type(routing.drop_path) is type(routing.budget.weight) is float
    assert routing.ops == ("skip_connect",)
    assert routing.clustering == ClusteringSettings()  # keys that are not there: the defaults
    assert SolverSettings(restarts=[100, 0.5]).restarts == (100.0, 0.5)


def test_settings_can_be_compared_and_kept_in_sets():
    assert len({RoutingSettings(), RoutingSettings(ops=["sep_conv_3x3", "skip_connect"])}) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BudgetSettings(weight=-1), r"BUDGET\.WEIGHT must be at least 0, not -1\.0"),
        (lambda: BudgetSettings(target_share=1.0), "SHARE must be at least 0 and below 1, not 1.0"),
        (lambda: BudgetSettings(weight=float("nan")), "WEIGHT must be at least 0, not nan"),
        (lambda: BudgetSettings(start=10**400), "START is too large for a number"),
        (lambda: SolverSettings(restarts=[10**400]), "SOLVER.RESTARTS is too large for a number"),
        (lambda: BudgetSettings(per="pixel"), "PER must be one of image, batch, not 'pixel'"),
        (lambda: KMeansSettings(restarts=0), r"^MODEL.ROUTING.CLUSTERING.KMEANS.RESTARTS must be"),
        (lambda: KMeansSettings(restarts=2.0), "RESTARTS must be a whole number, as 10, not 2.0"),
        (lambda: KMeansSettings(warm_start=1), "WARM_START must be True or False, as False, not 1"),
        (lambda: ClusteringSettings(num_experts=0), "NUM_EXPERTS must be at least 1, not 0"),
        (lambda: ClassificationInputSettings(size=20000), "SIZE must be between 0 and 16384, not"),
        (lambda: ClassificationInputSettings(pad_crop=10**19), "PAD_CROP must be between 0 and 1"),
        (lambda: ClusteringSettings(stability=1.5), "STABILITY must be between 0 and 1, not 1.5"),
        (lambda: ClusteringSettings(kmeans=3), "KMEANS is a group of keys, not 3"),
        (lambda: RoutingSettings(layers=True), "LAYERS must be a whole number, as 16, not True"),
        (lambda: RoutingSettings(channels=1), "CHANNELS must be at least 2, not 1"),
        (lambda: RoutingSettings(gate_bias=float("inf")), "GATE_BIAS must be finite, not inf"),
        (lambda: RoutingSettings(ops=()), "OPS must hold at least one value"),
        (lambda: RoutingSettings(ops=(3,)), "OPS must hold texts, not 3"),
        (lambda: RoutingSettings(ops="skip_connect"), "OPS must be a list, as .* not 'skip"),
        (lambda: RoutingSettings(norm=None), r'NORM must be a text, as \'\', not None \(""'),
        (
            lambda: RoutingSettings(scales_per_layer=(2, 2.5)),
            "SCALES_PER_LAYER must hold whole numbers, at least 1, not 2.5",
        ),
        (lambda: TranslationExpertSettings(alpha=(0.1, 1.1)), "COE.ALPHA must hold numbers, betw"),
        (lambda: CollaborationSettings(alpha=("a",)), "ALPHA must hold numbers, finite, not 'a'"),
        (
            lambda: ClassifierSettings.of({"HYDRA": {"TOP_K": 0}}),
            r"MODEL\.CLASSIFIER\.HYDRA\.TOP_K must be at least 1, not 0",
        ),
    ],
)
def test_what_is_out_of_range_is_reported(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_no_experts_are_needed_where_nothing_is_clustered():
    assert ClusteringSettings(enabled=False, num_experts=0).num_experts == 0


def test_a_configuration_of_some_groups_is_checked():
    cfg = get_divdr_config()
    check_config(cfg)
    cfg.MODEL.ROI_BOX_HEAD.COE.START = 1  # as programs set it
    check_config(cfg)
    cfg.INPUT.CLASSIFICATION.SIZE = -1
    with pytest.raises(ConfigError, match=r"^INPUT\.CLASSIFICATION\.SIZE must be between 0 and"):
        check_config(cfg)
    cfg.INPUT.CLASSIFICATION = CfgNode()
    del cfg.MODEL["CLASSIFIER"]
    check_config(cfg)


def test_choices_are_those_that_the_parts_know():
    known = {
        (RoutingSettings, "gate"): GATE_KINDS,
        (RoutingSettings, "reach"): REACH_KINDS,
        (RoutingSettings, "inference"): INFERENCE_KINDS,
        (RoutingSettings, "inference_dtype"): tuple(INFERENCE_DTYPES),
    }
    for (group, name), wanted in known.items():
        (entry,) = (entry for entry in entries(group) if entry.attribute == name)
        assert entry.choices == tuple(wanted)
    assert set(RoutingSettings.ops) <= set(op_names())


def test_every_key_of_a_group_is_declared_once():
    every = [entry for part in ALL + WITHOUT_KEYS for entry in entries(part)]
    keys = [entry.key for entry in every if not issubclass(entry.kind, Settings)]
    assert len(keys) == len(set(keys))
    assert OptimizerSettings.KEY + ".OPTIMIZER" in keys
    assert {e.key for e in entries(HydraSettings)} <= set(keys)


def test_the_backbone_takes_its_settings_whole():
    settings = RoutingSettings(layers=3, scales=2, channels=4, gate="full", drop_path=0.1)
    backbone = DynamicRouting.of(settings, in_channels=1)
    assert (len(backbone.space.layers), backbone.output_shape()["res2"].channels) == (3, 4)
    cfg = get_divdr_config()
    cfg.MODEL.ROUTING.LAYERS, cfg.MODEL.ROUTING.CHANNELS, cfg.MODEL.ROUTING.GATE_BIAS = 3, 4, 1
    arguments = DynamicRouting.from_config(cfg, ShapeSpec(channels=3))
    assert arguments["gate_bias"] == 1.0
    assert set(arguments) == set(inspect.signature(DynamicRouting.__init__).parameters) - {"self"}


@pytest.mark.parametrize(
    ("part", "group", "own"),
    [
        (DynamicRouting, RoutingSettings, ()),
        (DynamicRoutingNetwork, RoutingSettings, ("norm", "op_gate")),  # makers, not names
        # 0 keeps every row, and labels are read already.
        (LocalExperts, ClusteringSettings, ("labels", "bank_iterations")),
        (LocalExperts, KMeansSettings, ()),
        (ClusteringLossSettings, ClusteringSettings, ()),
        (kmeans, KMeansSettings, ()),
        (moe.Distillation, CollaborationSettings, ()),
        (moe.ResNetParts, ClassifierSettings, ()),
        (moe.DenseNetParts, ClassifierSettings, ()),
        (ClassificationMapper, ClassificationInputSettings, ()),
    ],
)
def test_arguments_default_to_what_the_settings_say(part, group, own):
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(part).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    shared = [e for e in entries(group) if e.attribute in defaults and e.attribute not in own]
    assert shared
    for entry in shared:
        assert defaults[entry.attribute] == entry.default, entry.key


def test_settings_are_written_into_a_configuration():
    cfg = get_divdr_config()
    add_settings(cfg, BudgetSettings(weight=1, target_share=0.5))
    assert BudgetSettings.of(cfg.MODEL.ROUTING.BUDGET) == BudgetSettings(1.0, target_share=0.5)
    assert RoutingSettings.layers == cfg.MODEL.ROUTING.LAYERS  # other groups stay
    assert yaml.safe_load(cfg.dump())["MODEL"]["ROUTING"]["BUDGET"]["WEIGHT"] == 1.0
