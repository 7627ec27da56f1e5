import pytest
import torch
from planned import agrees, pictures, routed_network, same_maps

from divdr.inference import InferencePlan
from divdr.routing import cost, ops


class _Echo(torch.nn.Module):
    """Returns its input itself, which a plan must not write to."""

    def forward(self, x):
        return x


def _odd_ones(channels, norm):
    return torch.nn.Sequential(
        torch.nn.BatchNorm2d(channels),  # nothing before it to fold into
        torch.nn.ReLU(inplace=True),
        torch.nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect"),
        norm(channels),
        torch.nn.Sequential(
            torch.nn.Conv2d(channels, 2 * channels, (1, 3), padding=(0, 1)),
            torch.nn.GroupNorm(2, 2 * channels),
        ),
        torch.nn.Conv2d(2 * channels, channels, 1),
    )


@pytest.fixture(autouse=True)
def _own_operations(monkeypatch):
    """Two operations that a user might register, gone after the test."""
    known = cost.count_macs

    def count(op, shape, **options):
        echo = any(isinstance(m, _Echo) for m in op.modules())
        return (1.0, shape) if echo else known(op, shape, **options)

    monkeypatch.setattr(cost, "count_macs", count)
    monkeypatch.setitem(ops._OPS, "odd_ones", _odd_ones)
    monkeypatch.setitem(ops._OPS, "echo", lambda channels, norm: _Echo())


NAMES = [*(n for n in ops.op_names() if n != "skip_connect"), "odd_ones", "echo"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beside", ["skip_connect", None])
def test_every_operation_equals_the_network(name, beside):
    names = [name] if beside is None else [name, beside]
    agrees(routed_network(3, 3, ops=names), pictures(3))


@pytest.mark.parametrize(
    "names",
    [
        ["skip_connect"],
        ["skip_connect", "echo", "max_pool_3x3"],
        ["echo", "sep_conv_3x3", "skip_connect", "conv_3x3"],
    ],
)
def test_sums_of_operations_equal_the_network(names):
    agrees(routed_network(3, 3, ops=names), pictures(3))


def test_a_replaced_stem_runs_as_it_is():
    network = routed_network(2, 2)
    parts = list(network.stem.children())

    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = torch.nn.ModuleList(parts)

        def forward(self, x):
            for part in self.parts:
                x = part(x)
            return x * 0.5

    batch = pictures(2)
    network.stem = Other().eval()
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "_stem_cost", lambda *args: 1.0)
        wanted, _ = network(batch)
        same_maps(InferencePlan(network)(batch)[0], wanted)


def test_layers_that_run_themselves_keep_their_precision():
    network = routed_network(3, 2, norm=lambda c: torch.nn.GroupNorm(2, c)).float()
    seen = []
    norms = [m for m in network.modules() if isinstance(m, torch.nn.GroupNorm)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    InferencePlan(network, dtype=torch.bfloat16)(pictures(2).float())
    assert seen
    assert set(seen) == {torch.float32}


class Held(torch.nn.Module):
    """A stem that hands out memory which it keeps."""

    def __init__(self, maps: torch.Tensor) -> None:
        super().__init__()
        self.free = torch.nn.Identity()  # costs are counted from children
        self.register_buffer("maps", maps.contiguous(memory_format=torch.channels_last))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.maps


def test_memory_that_a_stem_keeps_is_not_written_to():
    network = routed_network(3, 2)
    maps = torch.randn(1, 4, 12, 16).double()
    network.stem = Held(maps).eval()
    agrees(network, pictures(1))
    assert network.stem.maps.equal(maps)
