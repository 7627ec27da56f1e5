import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divdr.errors import ConfigError
from divdr.inference import vote
from divdr.routing import RoutingSpace

# Layers of 2, 3 and 3 cells: indices 0 and 1; 2 to 4; 5 to 7.
SPACE = RoutingSpace.build(3, 3)


def ballots(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every gate at 0.5 for every image."""
    gates = torch.zeros(count, SPACE.num_cells, 3)
    for node in SPACE.cells:
        gates[:, node.index, list(node.transforms)] = 0.5
    initial = torch.tensor([[0.0, 0.5, 0.5]]).repeat(count, 1)
    return gates, initial


def test_the_majority_opens_and_its_mean_is_the_value():
    gates, initial = ballots(4)
    # Cell 0 (layer 0, stride 4), down: three of four images open it, at 0.2, 0.4 and 0.9.
    gates[:, 0, 2] = torch.tensor([0.2, 0.0, 0.4, 0.9])
    # Its keep: two of four, which is no majority.
    gates[:, 0, 1] = torch.tensor([0.2, 0.0, 0.4, 0.0])
    route = vote(SPACE, gates.flatten(1), initial, 0.5)
    assert route[0, 4, "down"] == pytest.approx(0.5)
    assert route[0, 4, "keep"] == 0.0
    assert route[0, 8, "up"] == 0.5
    lower = vote(SPACE, gates.flatten(1), initial, 0.49)
    assert lower[0, 4, "keep"] == pytest.approx(0.3)
    assert vote(SPACE, gates.flatten(1), initial, 0.75)[0, 4, "down"] == 0.0


def test_what_no_path_leads_to_is_closed():
    gates, initial = ballots(3)
    gates[:, 1, 2] = 0.0  # the only way to stride 16 of layer 1, which is cell 4
    route = vote(SPACE, gates.flatten(1), initial, 0.5)
    assert route.gates[4].tolist() == [0.0, 0.0, 0.0]
    assert not route.reached[4]
    assert route.reached[7], "stride 8 of layer 1 leads down to it"


def test_settings_that_make_no_sense():
    gates, initial = ballots(1)
    for threshold in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="share in"):
            vote(SPACE, gates.flatten(1), initial, threshold)
    with pytest.raises(ConfigError, match="without images"):
        vote(SPACE, gates[:0].flatten(1), initial[:0], 0.5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(1, 6), threshold=st.floats(0, 0.99))
def test_every_gate_is_counted(seed, count, threshold):
    gates, initial = ballots(count)
    generator = torch.Generator().manual_seed(seed)
    gates *= torch.rand(gates.shape, generator=generator).clamp(min=0.2)
    gates *= torch.rand(gates.shape, generator=generator) > 0.4
    route = vote(SPACE, gates.flatten(1), initial, threshold)
    for node in SPACE.cells:
        for transform in node.transforms:
            values = [float(v) for v in gates[:, node.index, transform] if v > 0]
            opened = len(values) / count > threshold and bool(route.reached[node.index])
            wanted = sum(values) / len(values) if opened else 0.0
            assert float(route.gates[node.index, transform]) == pytest.approx(wanted)
