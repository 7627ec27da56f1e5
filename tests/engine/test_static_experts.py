"""From a trained model to static experts, their files, and its execution modes compared."""

import copy
import json

import onnxruntime
import pytest
import torch

from divdr.data import build_test_loader
from divdr.engine.execution_modes import load_trained, read_modes
from divdr.engine.export_experts import export_experts
from divdr.engine.static_experts import (
    ExpertSettings,
    build_static_experts,
    gather,
    load_static_experts,
    use_static_experts,
)
from divdr.errors import CheckpointError, ConfigError, DataError
from divdr.inference import Route
from divdr.modeling import attached_routing

SHARED = 1


@pytest.fixture(scope="module")
def exported(halves_run, tmp_path_factory):
    """Folder of the exported experts and what was said about them."""
    folder = tmp_path_factory.mktemp("experts")
    settings = ExpertSettings(dispatch_layers=SHARED, bn_batches=2, fine_tune=2)
    return folder, export_experts(
        halves_run, load_trained(halves_run), settings, folder, formats=["onnx"]
    )


def layer_of(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("layers.") else -1


def test_routes_on_the_training_set_are_those_of_evaluation(halves_run):
    model = load_trained(halves_run)
    found = gather(model, build_test_loader(halves_run, "halves"))
    routing = attached_routing(model)
    for index, inputs in enumerate(build_test_loader(halves_run, "halves")):
        with torch.no_grad():
            record = model(inputs)[0]["routing"]
        assert found.keys[index] == inputs[0]["image_key"] == f"halves/{index}.png"
        assert found.activations[index].equal(record.activations[0])
        distances = (routing.experts.centres - record.activations).norm(dim=1)
        assert int(found.expert[index]) == int(distances.argmin())


@pytest.mark.parametrize("adapted", ["statistics", "weights", "nothing"])
def test_only_what_lies_behind_the_shared_layers_changes(halves_run, adapted):
    model = load_trained(halves_run)
    before = copy.deepcopy(model.state_dict())
    train = gather(model, build_test_loader(halves_run, "halves"))
    settings = ExpertSettings(
        dispatch_layers=SHARED,
        bn_batches=2 * (adapted == "statistics"),
        fine_tune=2 * (adapted == "weights"),
        lr_factor=10.0,
    )
    experts = build_static_experts(halves_run, model, train, settings)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert sum(experts.images) == 8
    whole = attached_routing(model).backbone.network.state_dict()
    changed = set()
    for static in experts.networks:
        assert not static.training
        for name, value in static.state_dict().items():
            if not value.equal(whole[name]):
                changed.add(name)
    assert all(layer_of(name) >= SHARED for name in changed)
    kinds = {name.rpartition(".")[2] for name in changed}
    if adapted == "nothing":
        assert not changed
    elif adapted == "statistics":
        assert {"running_mean", "running_var"} <= kinds
        assert "weight" not in kinds
    else:
        assert "weight" in kinds


def test_statistics_come_from_the_experts_own_images(halves_run, monkeypatch):
    from divdr.engine import static_experts

    model = load_trained(halves_run)
    train = gather(model, build_test_loader(halves_run, "halves"))
    seen = []
    estimate = static_experts.update_precise_bn

    def watch(copy, batches, count):
        taken = [next(iter(batches)) for _ in range(1)]
        seen.append({item["image_key"] for batch in taken for item in batch})
        estimate(copy, batches, count)

    monkeypatch.setattr(static_experts, "update_precise_bn", watch)
    settings = ExpertSettings(dispatch_layers=SHARED, bn_batches=1)
    experts = build_static_experts(halves_run, model, train, settings)
    for number, names in enumerate(seen):
        members = {k for k, e in zip(train.keys, train.expert.tolist(), strict=True) if e == number}
        assert names <= (members or set(train.keys))
    assert len(seen) == len(experts.networks) == 2


def test_the_table_has_every_mode(halves_run, exported):
    folder, said = exported
    rows = read_modes(folder / "experts.json")
    assert [row.name for row in rows][:2] == ["dynamic", "static experts, by dispatcher"]
    results = json.loads((folder / "ways" / "way_0" / "inference" / "results.json").read_text())
    figures = results["halves"]
    assert rows[0].accuracy == {"mIoU": figures["sem_seg"]["mIoU"]}
    assert rows[0].gflops == figures["routing"]["real_gflops"]
    assert all(row.milliseconds > 0 for row in rows)
    network = attached_routing(load_trained(halves_run)).backbone.network
    everything = Route.open(network.space).real_cost(network, 64, 96) / 1e9
    assert rows[-1].name == "all open, at 1"
    assert rows[-1].gflops == pytest.approx(everything, rel=1e-6)
    for row in rows:
        assert row.name in said
        assert row.gflops <= everything * 1.2


def test_files_do_what_the_experts_do(halves_run, exported):
    folder, said = exported
    model = load_trained(halves_run)
    network = attached_routing(model).backbone.network
    experts = load_static_experts(folder / "static_experts.pth", network)
    summary = json.loads((folder / "experts.json").read_text())
    inputs = next(iter(build_test_loader(halves_run, "halves")))
    pixels = inputs[0]["image"][None].float()
    for number, static in enumerate(experts.networks):
        state = torch.load(folder / f"expert_{number}.pth", weights_only=True)
        assert state.keys() == static.state_dict().keys()
        assert all(value.equal(static.state_dict()[name]) for name, value in state.items())
        row = summary["experts"][number]
        cost = static.route.real_cost(network, *summary["size"]) / 1e9
        assert row["gflops"] == pytest.approx(cost)
        assert row["relative_error"]["onnx"] < 1e-4
        assert f"{cost:.4g} GFLOPs" in said
        with torch.no_grad():
            maps = static((pixels - model.pixel_mean) / model.pixel_std)
            names = model.backbone.output_shape()
            logits = model.sem_seg_head(dict(zip(names, maps, strict=True)))[0]
        session = onnxruntime.InferenceSession(
            str(folder / f"expert_{number}.onnx"), providers=["CPUExecutionProvider"]
        )
        (found,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
        assert torch.allclose(torch.from_numpy(found), logits, rtol=1e-3, atol=1e-4)


def test_a_config_names_the_file_and_evaluation_follows(halves_run, exported):
    folder, _ = exported
    cfg = halves_run.clone()
    cfg.MODEL.ROUTING.STATIC_EXPERTS = str(folder / "static_experts.pth")
    model = load_trained(cfg)
    inputs = next(iter(build_test_loader(cfg, "halves")))
    with torch.no_grad():
        record = model(inputs)[0]["routing"]
    space = attached_routing(model).backbone.space
    behind = 3 * sum(space.scales_per_layer[:SHARED])
    experts = load_static_experts(
        cfg.MODEL.ROUTING.STATIC_EXPERTS, attached_routing(model).backbone.network
    )
    picked = int(experts.dispatcher.pick(record.activations)[0])
    route = experts.networks[picked].route.activations
    taken = record.activations[0, behind:]
    assert taken[record.reached[0, space.scales_per_layer[0] :].repeat_interleave(3)].equal(
        route[behind:][record.reached[0, space.scales_per_layer[0] :].repeat_interleave(3)]
    )
    # Training again ends it: evaluation is then of the weights that training left.
    model.train()
    model.eval()
    with torch.no_grad():
        wanted = load_trained(halves_run)(inputs)[0]["routing"].activations
        assert model(inputs)[0]["routing"].activations.equal(wanted)


def test_what_does_not_fit_is_refused_in_a_sentence(halves_run, exported, tmp_path):
    model = load_trained(halves_run)
    for weights in ("", str(tmp_path / "none.pth")):
        cfg = halves_run.clone()
        cfg.MODEL.WEIGHTS = weights
        with pytest.raises(CheckpointError, match=r"set MODEL\.WEIGHTS|none\.pth does not exist"):
            load_trained(cfg)
    with pytest.raises(CheckpointError, match="does not exist"):
        use_static_experts(model, tmp_path / "missing.pth")
    torch.save({"scales_per_layer": [2, 2]}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="another routing space"):
        use_static_experts(model, tmp_path / "other.pth")
    space = attached_routing(model).backbone.space
    torch.save({"scales_per_layer": list(space.scales_per_layer)}, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match="no static experts"):
        use_static_experts(model, tmp_path / "half.pth")
    (tmp_path / "experts.json").write_text("{}")
    with pytest.raises(DataError, match="no comparison"):
        read_modes(tmp_path / "experts.json")
    attached_routing(model).experts.centres = None
    with pytest.raises(ConfigError, match="local experts"):
        gather(model, build_test_loader(halves_run, "halves"))


def test_an_early_look_has_no_first_gates_to_be_dispatched_by(halves_run):
    model = load_trained(halves_run)
    attached_routing(model).backbone.network.early = torch.nn.Identity()
    with pytest.raises(ConfigError, match="first layers"):
        gather(model, build_test_loader(halves_run, "halves"))
