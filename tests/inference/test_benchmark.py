import sys

import numpy as np
import pytest
import torch
from planned import pictures, routed_network, same_maps, same_record

from divdr.benchmark import (
    Against,
    Case,
    CaseResult,
    Line,
    Measurement,
    Times,
    as_numbers,
    case_table,
    closed_share,
    fixed_route,
    gemm_peak,
    in_turns,
    lines,
    measure,
    target_table,
    targets,
)
from divdr.errors import ConfigError
from divdr.inference import CapturedRoute, InferencePlan
from divdr.inference.route import Route

SMALL = {"layers": 6, "scales": 3, "channels": 4}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("batch", [1, 6])
def test_gates_close_for_the_share_asked_for(batch, share):
    case = Case(batch, (40, 56), share, **SMALL)
    network, x = case.build("cpu")
    with torch.no_grad():
        record = network(x)[1]
    closed = closed_share(network, record)
    assert closed == 0 if share == 0 else abs(closed - share) < 0.17  # some 35 gates
    opened = record.activations.gt(0)
    assert (opened == opened[0]).all() == (batch == 1 or share == 0)
    again, same = case.build("cpu")
    assert same.equal(x)
    assert all(a.equal(b) for a, b in zip(again.parameters(), network.parameters(), strict=True))


def test_closed_share_counts_gates_that_exist_of_cells_that_are_reached():
    network = routed_network(2, 2)
    with torch.no_grad():
        record = network(pictures(1))[1]
    # Layer 0: keep, down; up, keep. Layer 1: keep; keep.
    record.activations[:] = torch.tensor([[0, 0.5, 0, 0, 0, 0, 0, 0.5, 0, 0, 0.5, 0.0]])
    record.reached[:] = torch.tensor([[True, True, True, False]])
    # Of keep, down; up, keep; keep: open are the first and the last.
    assert closed_share(network, record) == pytest.approx(3 / 5)


def test_gate_free_networks_are_cases_too():
    network, x = Case(1, (24, 24), 0.8, gate="none", **SMALL).build("cpu")
    with torch.no_grad():
        assert closed_share(network, network(x)[1]) == 0


@pytest.mark.parametrize("count", [1, 3])
def test_a_fixed_route_repeats_what_the_plan_did(count):
    plan = InferencePlan(routed_network())
    x = pictures(count)
    maps, record = plan(x)
    again, follows = fixed_route(plan, x, record)()
    same_maps(again, maps, 1e-5)  # a Route is float32
    assert follows.activations.allclose(record.activations.float().to(follows.activations))
    assert (follows.real_cost < record.real_cost).all()  # gates do not run


@pytest.mark.cuda
def test_a_captured_route_follows_its_input():
    network = routed_network(5, 4).float().cuda()
    plan = InferencePlan(network)
    batch = pictures(2).float().cuda()
    _, record = plan(batch)
    route = Route.of(network.space, record)
    captured = CapturedRoute(plan, batch[:1], route)
    for image in (batch[:1], batch[1:]):
        maps, follows = captured(image)
        wanted, routing = plan(image, route)
        same_maps(maps, wanted, 1e-5)
        same_record(follows, routing, 1e-5)


def test_functions_take_turns_and_the_first_round_does_not_count():
    calls = []
    times = in_turns({n: lambda n=n: calls.append(n) for n in "ab"}, 2, "cpu")
    assert "".join(calls) == "ababab"
    assert [len(t.seconds) for t in times.values()] == [2, 2]


def test_summary_of_times():
    summary = Times((4.0, 1.0, 2.0, 3.0, 10.0)).summary()
    assert summary == {"median": 3, "quartile_1": 2, "quartile_3": 4, "min": 1, "max": 10}


def result(batch: int, closed: float, gflops: float, **milliseconds: float) -> CaseResult:
    """Rows with the times given per batch; underscores of names become what they stand for."""
    names = {"published_alone": "published, image by image", "fixed": "fixed route"}
    names["half"] = "plan, bf16"
    slow = milliseconds["published"]
    rows = [
        Measurement(
            names.get(n, n), Times((ms / 1e3,)), slow / ms, gflops / 2, gflops, 0.0, n == "half"
        )
        for n, ms in milliseconds.items()
    ]
    return CaseResult(Case(batch, (32, 32), closed), closed, tuple(rows))


RESULTS = [
    result(1, 0.0, 20.0, published=900, plan=300, fixed=250, half=120),
    result(1, 0.8, 5.0, published=400, plan=90, fixed=80, half=60),
    result(8, 0.8, 5.0, published=1600, published_alone=1400, plan=500, fixed=1, half=1),
]


def test_targets_are_worked_out_from_medians():
    found = {line.case: (round(line.measured, 3), line.verdict) for line in targets(RESULTS)}
    assert found == {
        "batch 1, 0% closed": (3.0, "least"),
        "batch 1, 80% closed": (4.444, "aim"),
        "batch 8, routes differ, 80% closed, against its batched mode": (3.2, "missed"),
        "batch 8, routes differ, 80% closed, against its faster mode": (2.8, "least"),
        "fixed route, batch 1, 80% closed": (5.0, "aim"),
        "bf16, batch 1, all open": (7.5, "aim"),
        # 90 / 300 over 5 / 20
        "time(80% closed) / time(0%) over MACs(80%) / MACs(0%), plan, batch 1": (1.2, "least"),
    }
    assert "missed" in target_table(RESULTS)
    assert target_table([]) == ""


def test_lines_and_rates():
    middle = result(1, 0.4, 10.0, published=650, plan=160)
    found = {(line.batch, line.mode): line for line in lines([*RESULTS, middle])}
    plan = found[1, "plan"]
    assert plan.gflops == (5.0, 10.0, 20.0)
    assert plan.milliseconds == pytest.approx((90.0, 160.0, 300.0))
    # (300 - 90) / 15 = 14 ms for 10⁹ multiply-adds, 90 - 5 · 14 = 20 ms beside.
    np.testing.assert_allclose(plan.fit, (14, 20))
    assert plan.rate == pytest.approx(1000 / 14)
    assert found[8, "plan"].fit is None
    assert Line("flat", 1, (1.0, 2.0, 3.0), (5.0, 5.0 - 1e-3, 5.0 - 2e-3)).rate is None
    for two in ((5.0, 20.0), (5.0, 5.0, 20.0)):  # different costs
        assert Line("two", 1, two, (9.0, 9.5, 30.0)[: len(two)]).fit is None


def test_a_peak_counts_multiply_adds(monkeypatch):
    # 16³ multiply-adds in 2 ms at best.
    times = {"mm": Times((0.004, 0.002, 0.003)), "convolution": Times((0.005, 0.003))}
    name = "divdr.benchmark.timing.in_turns"
    monkeypatch.setattr(name, lambda calls, rounds, device: times)
    assert gemm_peak("cpu", torch.float32, size=16) == pytest.approx(2_048_000)


def test_numbers_of_a_row():
    numbers = as_numbers(RESULTS, [], {"float32": 100e9, "bfloat16": 200e9})
    row = next(w for w in numbers["cases"][2]["modes"] if w["mode"] == "plan")
    # 500 ms for 8 images; 5 · 10⁹ in 62.5 ms.
    assert row["ms per image"] == pytest.approx(62.5)
    assert row["images/s"] == pytest.approx(16)
    assert row["times faster"] == pytest.approx(3.2)
    assert row["GFLOPs/s"] == pytest.approx(80)
    assert row["of GEMM peak"] == pytest.approx(0.8)
    half = next(w for w in numbers["cases"][0]["modes"] if w["mode"] == "plan, bf16")
    assert half["of GEMM peak"] == pytest.approx(20 / 0.12 / 200)


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "others_model.py").write_text(
        "seen = []\n"
        "def one(x): seen.append(tuple(x.shape))\n"
        "def two(x, network): seen.append(network.channels)\n"
        "def optional(x, flag=3): seen.append(flag)\n"
        "def broken(x): raise ValueError('no such\\nluck')\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("others_model", None)


def test_another_callable_is_measured_beside(module):
    case = Case(1, (24, 24), 0.0, **SMALL)
    found = measure(case, rounds=1, device="cpu", against=Against("others_model:one"))
    row = found.row("others_model:one")
    assert row.real_gflops is None
    assert sys.modules["others_model"].seen == [(1, 3, 24, 24)] * 2
    assert "others_model:one" in case_table(found, {"float32": 1e9, "bfloat16": 1e9})
    assert all(r.error < 1e-4 for r in found.rows if r.error is not None and not r.half)


def test_a_second_parameter_gets_the_network(module):
    network, x = Case(1, (24, 24), 0.0, **SMALL).build("cpu")
    Against("others_model:two").bind(network, x)()
    Against("others_model:optional").bind(network, x)()
    assert sys.modules["others_model"].seen == [4, 3]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("others_model", "wants MODULE:FUNCTION"),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError"),
        ("others_model:nothing", "cannot be imported: AttributeError"),
        ("others_model:number", "not a function but a int"),
    ],
)
def test_what_cannot_be_called_is_reported(module, name, words):
    with pytest.raises(ConfigError, match=words):
        Against(name)


def test_a_failing_callable_is_reported_in_one_line(module):
    call = Against("others_model:broken").bind(None, torch.zeros(1))
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value) == "others_model:broken failed: ValueError: no such luck"
