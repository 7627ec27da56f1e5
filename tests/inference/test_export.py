import onnxruntime
import pytest
import torch
from planned import pictures, routed_network
from test_static_network import some_route

from divdr.errors import DivdrError
from divdr.inference import StaticNetwork
from divdr.inference.static_network import export

GATE_OPERATORS = {"Tanh", "ReduceMean", "GlobalAveragePool", "AveragePool"}


@pytest.fixture(scope="module")
def static():
    network = routed_network(3, 3).float()
    return StaticNetwork(network, some_route(network.space, 3, 0.7))


def test_onnxruntime_computes_the_same_for_any_batch(static, tmp_path):
    batch = pictures(3).float()
    assert export(static, batch[:1], tmp_path / "a.onnx") < 1e-4
    session = onnxruntime.InferenceSession(
        str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"]
    )
    with torch.no_grad():
        wanted = static(batch)
    found = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    largest = max(float(m.abs().max()) for m in wanted)
    for one, other in zip(found, wanted, strict=True):
        assert float((torch.from_numpy(one) - other).abs().max()) <= 1e-4 * largest


def test_no_gate_is_computed_and_each_that_is_open_is_a_number(static, tmp_path):
    onnx = pytest.importorskip("onnx")
    batch = pictures(1).float()
    for kind in ("onnx", "pt2"):
        export(static, batch, tmp_path / f"a.{kind}")
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert {node.op_type for node in graph.node}.isdisjoint(GATE_OPERATORS)
    values = {round(value, 5) for value in static.route.activations.tolist() if value}
    numbers = {
        round(float(array), 5)
        for array in map(onnx.numpy_helper.to_array, graph.initializer)
        if array.size == 1 and array.dtype.kind == "f"
    }
    assert values <= numbers
    program = torch.export.load(tmp_path / "a.pt2")
    called = {
        str(node.target).split(".")[1] for node in program.graph.nodes if node.op == "call_function"
    }
    assert called.isdisjoint({"tanh", "mean", "adaptive_avg_pool2d"})
    assert not any(".gate." in name for name in program.state_dict)


def test_openvino_computes_the_same_for_any_batch(static, tmp_path):
    openvino = pytest.importorskip("openvino")
    batch = pictures(3).float()
    export(static, batch[:1], tmp_path / "a.onnx")
    full = {"INFERENCE_PRECISION_HINT": "f32"}  # some CPUs compute in bfloat16 else
    compiled = openvino.Core().compile_model(tmp_path / "a.onnx", "CPU", full)
    with torch.no_grad():
        wanted = static(batch)
    found = compiled(batch.numpy())
    largest = max(float(m.abs().max()) for m in wanted)
    for number, other in enumerate(wanted):
        assert float((torch.from_numpy(found[number]) - other).abs().max()) <= 1e-4 * largest


def test_torch_export_computes_the_same_for_any_batch(static, tmp_path):
    batch = pictures(3).float()
    assert export(static, batch[:1], tmp_path / "a.pt2") < 1e-5
    program = torch.export.load(tmp_path / "a.pt2").module()
    with torch.no_grad():
        for one, other in zip(program(batch), static(batch), strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_damaged_file_would_show(static, tmp_path, monkeypatch):
    load = torch.export.load

    def other(path):
        program = load(path)
        for value in program.state_dict.values():
            value.mul_(1.5) if value.is_floating_point() else None
        return program

    monkeypatch.setattr(torch.export, "load", other)
    assert export(static, pictures(1).float(), tmp_path / "a.pt2") > 0.01


def test_other_endings_are_refused(static, tmp_path):
    with pytest.raises(DivdrError, match=r"\.pt2 and \.onnx"):
        export(static, pictures(1).float(), tmp_path / "a.tflite")
