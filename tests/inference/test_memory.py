import pytest
import torch
from planned import pictures, routed_network

from divdr.benchmark import Case, LiveBytes, PublishedRun, measure_memory, peak_bytes
from divdr.errors import DivdrError
from divdr.inference import InferencePlan


def test_tensors_count_while_something_refers_to_them():
    x = torch.ones(1000)
    with LiveBytes() as live:
        a = x + 1
        b = a[10:].mul_(2)  # the same memory
        assert live.now == 4000
        del a
        assert live.now == 4000
        c = b + 1  # 990 numbers
        del b
        assert live.now == 3960
        del c
    assert (live.now, live.peak) == (0, 7960)


def wide_network(layers: int):
    """Its cells need more memory than its stem, and every path is open."""
    return routed_network(layers, 2, gate="none", channels=256).float()


@pytest.mark.parametrize("layers", [3, 6])
def test_the_plan_of_an_image_lives_in_what_a_layer_needs(layers):
    plan = InferencePlan(wide_network(layers))
    (h, w), (h2, w2) = plan.space.map_sizes(50, 70)
    fine, coarse = 256 * h * w * 4, 512 * h2 * w2 * 4
    # The layer's inputs, and what a convolution of the largest cell reads and writes. Maps of
    # cells that have run would come on top, and more so in a deeper network.
    x = pictures(1, 50, 70).float()
    assert fine + coarse + 2 * fine <= peak_bytes(lambda: plan(x)) <= coarse + 3 * fine + 10_000


def test_networks_and_published_runs_keep_no_map_of_past_layers():
    x = pictures(1, 50, 70).float()
    for mode in (lambda network: network, PublishedRun):
        peaks = []
        for layers in (3, 6):
            run = mode(wide_network(layers))
            peaks.append(peak_bytes(lambda run=run: run(x)))
        assert peaks[1] < peaks[0] + 10_000


def test_a_process_of_its_own_measures_a_mode():
    case = Case(1, (64, 96), 0.0, layers=2, scales=2, channels=8)
    (memory,) = measure_memory(case, "cpu", ("plan, bf16",))
    # The stem's depthwise convolution reads and writes 64 × 31 × 47 numbers of two bytes.
    assert 2 * 2 * 64 * 31 * 47 <= memory.tensors <= 3 * 2 * 64 * 31 * 47
    assert memory.resident >= 0


def test_a_failed_process_is_reported_in_one_sentence():
    case = Case(1, (2, 2), 0.0, layers=2, scales=2, channels=8)
    with pytest.raises(DivdrError, match=r"measuring the memory of 'plan' failed: .*2×2"):
        measure_memory(case, "cpu", ("plan",))
