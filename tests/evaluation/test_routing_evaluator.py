from functools import partial

import numpy as np
import pytest
import torch
from detectron2.modeling import Backbone, SemanticSegmentor
from scipy.spatial.distance import cdist, pdist
from sklearn.cluster import KMeans

from divdr.config import get_divdr_config
from divdr.errors import ConfigError
from divdr.evaluation import (
    BackboneCostEvaluator,
    RoutingEvaluator,
    build_cost_evaluator,
    summary_table,
)
from divdr.evaluation.routing_evaluator import check_sizes
from divdr.experts.routing_warnings import FILE, read_warnings
from divdr.inference import InferencePlan, Route
from divdr.modeling import DynamicRouting, DynamicRoutingDecoder, ProjectionNeck, attach_routing


@pytest.fixture
def model():
    backbone = DynamicRouting(layers=4, scales=3, channels=4)
    for cell in backbone.network.cells():
        torch.nn.init.normal_(cell.gate.predict.weight, 0, 3.0)
    head = DynamicRoutingDecoder(input_shape=backbone.output_shape(), num_classes=3)
    return SemanticSegmentor(
        backbone=backbone, sem_seg_head=head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3
    )


def batch(count=6):
    names = {"height": 32, "width": 48}
    return [
        {"image": torch.randn(3, 32, 48) * (i + 1), "file_name": f"{i}.png", **names}
        for i in range(count)
    ]


def test_a_routed_backbone_without_routing_attached_has_no_cost_to_report(model, caplog):
    cfg = get_divdr_config()
    assert build_cost_evaluator(cfg, "some_set", model) is None
    assert "attach_routing_from_config" in caplog.text
    attach_routing(model)
    assert isinstance(build_cost_evaluator(cfg, "some_set", model), RoutingEvaluator)


def test_figures_are_those_of_the_records(model, tmp_path):
    routing = attach_routing(model, num_experts=2)
    model.train()([{**item, "sem_seg": torch.zeros(32, 48, dtype=torch.long)} for item in batch()])
    routing.experts.cluster(0)
    evaluator = RoutingEvaluator(
        "some_set", model, output_dir=str(tmp_path), sizes=[(64, 96)], num_experts=5
    )
    evaluator.reset()
    inputs = batch()
    records = []
    with torch.no_grad():
        for item in inputs[::-1]:
            outputs = model.eval()([item])
            evaluator.process([item], outputs)
            records.insert(0, outputs[0]["routing"])
    figures = evaluator.evaluate()["routing"]

    expected = np.array([float(r.expected_cost) for r in records]) / 1e9
    real = np.array([float(r.real_cost) for r in records]) / 1e9
    assert figures["images"] == 6
    assert figures["expected_gflops"] == pytest.approx(expected.mean(), rel=1e-6)
    assert figures["expected_gflops_std"] == pytest.approx(expected.std(), rel=1e-4)
    assert figures["real_gflops"] == pytest.approx(real.mean(), rel=1e-6)
    assert figures["stem_gflops"] == pytest.approx(records[0].fixed_cost / 1e9)
    assert figures["all_open_gflops"] == pytest.approx(records[0].full_real_cost / 1e9)
    head = model.sem_seg_head.macs([(8, 12), (4, 6), (2, 3)]) / 1e9
    assert figures["real_gflops_with_head"] == pytest.approx(real.mean() + head, rel=1e-6)
    larger = [model.backbone.network.cost(r, 64, 96) for r in records]
    assert figures["expected_gflops_64x96"] == pytest.approx(
        np.mean([float(e) for e, _ in larger]) / 1e9, rel=1e-6
    )
    assert figures["real_gflops_64x96"] == pytest.approx(
        np.mean([float(r) for _, r in larger]) / 1e9, rel=1e-6
    )

    a = np.concatenate([r.activations.numpy() for r in records])
    gates = a.reshape(6, -1, 3)
    assert figures["open_cells"] == pytest.approx((gates.sum(2) >= 1e-4).mean())
    found = KMeans(2, n_init=20, random_state=0).fit(a)
    assert figures["inter_refit"] == pytest.approx(pdist(found.cluster_centers_).mean(), rel=1e-3)
    to_centre = np.linalg.norm(a - found.cluster_centers_[found.labels_], axis=1)
    assert figures["intra_centre_refit"] == pytest.approx(to_centre.mean(), rel=1e-3)
    pairs = np.concatenate([pdist(a[found.labels_ == k]) for k in range(2)])
    assert figures["intra_pairs_refit"] == pytest.approx(pairs.mean(), rel=1e-3)

    centres = routing.experts.centres.numpy()
    nearest = cdist(a, centres).argmin(axis=1)
    assert figures["inter_experts"] == pytest.approx(pdist(centres).mean(), rel=1e-5)
    own = np.linalg.norm(a - centres[nearest], axis=1)
    assert figures["intra_centre_experts"] == pytest.approx(own.mean(), rel=1e-5)
    counts = np.bincount(nearest, minlength=2)
    assert [figures["images_expert_0"], figures["images_expert_1"]] == counts.tolist()

    kept = np.load(tmp_path / "activations_some_set.npz")
    assert kept["file_names"].tolist() == [f"{i}.png" for i in range(6)]
    assert np.allclose(kept["activations"], a)
    assert kept["expert"].tolist() == nearest.tolist()
    assert kept["scales_per_layer"].tolist() == [2, 3, 3, 3]
    assert np.allclose(kept["real_cost"] / 1e9, real)


def test_fewer_images_than_experts(model):
    attach_routing(model, num_experts=4)
    evaluator = RoutingEvaluator("some_set", model)
    item = batch(1)
    with torch.no_grad():
        evaluator.process(item, model.eval()(item))
    figures = evaluator.evaluate()["routing"]
    assert not any(name.startswith(("inter", "intra", "images_expert")) for name in figures)
    assert figures["images"] == 1


def test_distances_of_the_experts_are_of_their_own_centres(model):
    routing = attach_routing(model, num_experts=3)
    evaluator = RoutingEvaluator("some_set", model)
    inputs = batch()
    with torch.no_grad():
        outputs = model.eval()(inputs)
    evaluator.process(inputs, outputs)
    a = np.concatenate([output["routing"].activations.numpy() for output in outputs])
    # 11 cells, 33 gates: all closed, all open, and far from every image.
    routing.experts.centres = torch.stack([torch.full((33,), float(x)) for x in (0, 1, 11)])
    figures = evaluator.evaluate()["routing"]
    # Pairs of centres are √33 · 1, 10 and 11 apart.
    assert figures["inter_experts"] == pytest.approx(22 / 3 * 33**0.5)
    to_each = np.stack([np.linalg.norm(a, axis=1), np.linalg.norm(1 - a, axis=1)], axis=1)
    own = to_each.argmin(axis=1)
    assert figures["images_expert_2"] == 0
    assert figures["intra_centre_experts"] == pytest.approx(to_each.min(axis=1).mean(), rel=1e-5)
    pairs = np.concatenate([pdist(a[own == k]) for k in range(2)])
    assert figures["intra_pairs_experts"] == pytest.approx(pairs.mean(), rel=1e-5)

    # An image's expert is what the experts say. The last gate is 0 in all images; by it alone they
    # belong to the centre that has 0 there, the farthest one by all gates, by which distances are.
    routing.experts.centres[:, 32] = torch.tensor([1.0, 1.0, 0.0])
    routing.experts.weights = torch.nn.functional.one_hot(torch.tensor(32), 33).float()
    assert np.all(a[:, 32] == 0)
    figures = evaluator.evaluate()["routing"]
    assert figures["images_expert_2"] == 6
    far = np.linalg.norm(a - np.array([11.0] * 32 + [0.0]), axis=1)
    assert figures["intra_centre_experts"] == pytest.approx(far.mean(), rel=1e-5)
    assert figures["intra_pairs_experts"] == pytest.approx(pdist(a).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("gates", {"one_expert", "gates_open", "gates_alike"}),
        ("values on a route", {"one_expert", "gates_alike"}),
        ("executor", set()),
        ("route", set()),
        ("no gates", set()),
    ],
)
def test_gates_are_judged_where_they_look_at_the_image(tmp_path, given, told):
    torch.manual_seed(0)
    gate = "none" if given == "no gates" else "small"
    backbone = DynamicRouting(layers=2, scales=2, channels=4, gate=gate)
    head = DynamicRoutingDecoder(input_shape=backbone.output_shape(), num_classes=3)
    model = SemanticSegmentor(
        backbone=backbone, sem_seg_head=head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3
    ).eval()
    routing = attach_routing(model, num_experts=2)
    space = backbone.space
    routing.experts.centres = torch.arange(2.0)[:, None].expand(2, space.activation_size)
    for cell in (backbone.network.initial, *backbone.network.cells()):
        if cell.gate is not None:
            torch.nn.init.zeros_(cell.gate.predict.weight)  # the same of every image
    everything = Route.open(space)
    if given == "values on a route":
        backbone.network.fix_route(everything.activations.view(-1, 3) > 0, everything.initial > 0)
    elif given == "executor":
        backbone.run_with(partial(InferencePlan(backbone.network), route=everything))
    elif given == "route":
        backbone.follow(everything)
    evaluator = RoutingEvaluator("some_set", model, output_dir=str(tmp_path))
    with torch.no_grad():
        for item in batch(3):
            evaluator.process([item], model([item]))
    evaluator.evaluate()
    assert {warning.kind for warning in read_warnings(tmp_path / f"some_set_{FILE}")} == told


def test_a_model_without_routing_is_refused(model):
    with pytest.raises(ConfigError, match="routing attached"):
        RoutingEvaluator("some_set", model)


def test_sizes_are_checked():
    assert check_sizes([[1024, 2048]]) == [(1024, 2048)]
    for wrong in ([5], [1, 1], [10.5, 20]):
        with pytest.raises(ConfigError, match="COST_SIZES"):
            check_sizes([wrong])


def test_table_has_every_figure_but_single_classes():
    figures = {"sem_seg": {"mIoU": 51.25, "IoU-road": 90.0}, "routing": {"x": 1}}
    table = summary_table({"a_set": figures})
    assert "mIoU" in table
    assert "51.2500" in table
    assert "IoU-road" not in table


def test_a_detectors_table_fits_a_screen():
    sizes = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"), 12.345678)
    classes = {f"AP-class {number}": float("nan") for number in range(80)}
    sizes["APs"] = float("nan")
    routing = {f"real_gflops_{size}": 1.5 for size in ("800x800", "100x100")}
    routing |= {f"images_expert_{k}": n for k, n in enumerate((7.0, 0.0, 13.0))}
    tasks = {"bbox": {**sizes, **classes}, "segm": {**sizes, **classes}, "routing": routing}
    lines = summary_table({"a_set": tasks}).splitlines()
    assert len(lines) == 2 + 6 + 6 + 2 + 1
    assert not [line for line in lines if "class" in line]
    assert [line.split() for line in lines if "nan" in line] == [
        ["a_set", kind, "APs", "nan"] for kind in ("bbox", "segm")
    ]
    assert lines[2].split() == ["a_set", "bbox", "AP", "12.3457"]
    assert lines[-1].split(maxsplit=2)[2].split("  ")[0] == "images per expert"
    assert lines[-1].endswith("7, 0, 13")
    assert max(map(len, lines)) < 80


def test_a_detectors_cost_counts_its_neck():
    bottom_up = DynamicRouting(layers=3, scales=3, channels=4)
    backbone = ProjectionNeck(bottom_up, ["res2", "res3", "res4"], 8)
    model = torch.nn.Module()
    model.backbone = backbone
    model.forward = lambda items: [{} for _ in items if backbone(items[0]["image"][None])]
    attach_routing(model)
    evaluator = RoutingEvaluator("some_set", model, sizes=[(64, 96)], num_experts=5)
    evaluator.reset()
    (item, *_) = batch()
    with torch.no_grad():
        evaluator.process([item], model.eval()([item]))
    figures = evaluator.evaluate()["routing"]
    # 32×48 pixels: maps of 8×12×4, 4×6×8 and 2×3×16, each times 8 output channels.
    neck = 8 * (8 * 12 * 4 + 4 * 6 * 8 + 2 * 3 * 16) / 1e9
    assert figures["real_gflops_with_neck"] - figures["real_gflops"] == pytest.approx(neck)
    larger = figures["real_gflops_64x96_with_neck"] - figures["real_gflops_64x96"]
    assert larger == pytest.approx(4 * neck)


class _Plain(Backbone):
    """One convolution; images are padded to multiples of 16."""

    size_divisibility = 16

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        return {"p2": self.conv(x)}


def test_cost_of_a_backbone_without_routing():
    evaluator = BackboneCostEvaluator(_Plain(), sizes=[(10, 20)])
    evaluator.reset()
    images = [{"image": torch.zeros(3, *size)} for size in ((16, 32), (17, 31))]
    evaluator.process(images, [{}, {}])
    figures = evaluator.evaluate()["cost"]
    # 16×32 stays, 17×31 becomes 32×32; a pixel takes 3·8·9 multiply-adds.
    assert figures["gflops"] == pytest.approx((16 * 32 + 32 * 32) / 2 * 216 / 1e9)
    assert figures["gflops_10x20"] == pytest.approx(200 * 216 / 1e9)
