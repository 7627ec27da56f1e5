"""The routing space: which cells exist and which edges join them. Plain Python, no torch.

Li et al., "Learning Dynamic Routing for Semantic Segmentation" (CVPR 2020), Figure 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..errors import ConfigError

UP, KEEP, DOWN = 0, 1, 2
TRANSFORMS = ("up", "keep", "down")


@dataclass(frozen=True)
class Node:
    """One cell of the routing space.

    Attributes:
        layer: layer index from 0; -1 for the initial cell.
        scale: s, so that the stride is 4·2^s.
        index: position among the reported cells; -1 for the initial cell.
        transforms: which of ``UP``, ``KEEP`` and ``DOWN`` the cell has, in that order.
        bare: the cell has no operations and no gate; what comes to it passes on along keep.
        constant: its gates are numbers, and look at nothing.
    """

    layer: int
    scale: int
    index: int
    transforms: tuple[int, ...]
    bare: bool = False
    constant: bool = False

    @property
    def gated(self) -> tuple[int, ...]:
        """Transforms that can be open: all of them, and none of a bare cell's."""
        return () if self.bare else self.transforms

    def target_scale(self, transform: int) -> int:
        """Scale of the next layer's cell that a transform leads to."""
        return self.scale + transform - 1


@dataclass(frozen=True)
class RoutingSpace:
    """Cells of every layer and the edges between neighbouring layers.

    A transform exists where the next layer has the cell that it leads to; the last layer only
    keeps. One initial cell at stride 4 precedes layer 0.

    Attributes:
        scales_per_layer: number of cells of each layer; the cell of scale s has stride 4·2^s.
        opened: for the space of one route alone, what the initial cell and then each reported one
            have of their transforms: () of cells that are not there, None of bare ones. None as a
            whole: everything.
        constant: indices of the cells whose gates are numbers; -1 is the initial one.

    Raises:
        ConfigError: no layers, a layer without cells, a cell that no edge can lead to, or one that
            leads nowhere.
    """

    scales_per_layer: tuple[int, ...]
    opened: tuple[tuple[int, ...] | None, ...] | None = None
    constant: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not self.scales_per_layer:
            raise ConfigError("a routing space needs at least one layer")
        previous = 1
        for layer, count in enumerate(self.scales_per_layer):
            if count < 1:
                raise ConfigError(f"layer {layer} has {count} scales; at least 1 is needed")
            if count > previous + 1:
                raise ConfigError(
                    f"layer {layer} has {count} scales but the layer before it {previous}: "
                    "nothing leads to the coarsest; a layer can add one scale at most"
                )
            if count < previous - 1:
                raise ConfigError(
                    f"layer {layer} has {count} scales but the layer before it {previous}: its "
                    "coarsest cell leads nowhere; a layer can leave out one scale at most"
                )
            previous = count

    @classmethod
    def build(cls, layers: int, scales: int, scales_per_layer: Sequence[int] = ()) -> RoutingSpace:
        """``layers`` layers of min(l + 2, ``scales``) cells, or exactly ``scales_per_layer``.

        Raises:
            ConfigError: ``scales_per_layer`` is given and its length is not ``layers``.
        """
        if scales_per_layer:
            if len(scales_per_layer) != layers:
                raise ConfigError(
                    f"scales_per_layer names {len(scales_per_layer)} layers, layers is {layers}"
                )
            return cls(tuple(scales_per_layer))
        return cls(tuple(min(layer + 2, scales) for layer in range(layers)))

    @property
    def num_layers(self) -> int:
        """L, the initial cell's layer not counted."""
        return len(self.scales_per_layer)

    @property
    def num_cells(self) -> int:
        """Reported cells, the initial one not among them."""
        return sum(self.scales_per_layer)

    @property
    def activation_size(self) -> int:
        """D, the length of A(x)."""
        return len(TRANSFORMS) * self.num_cells

    @property
    def max_scales(self) -> int:
        """S, the cells of the widest layer."""
        return max(self.scales_per_layer)

    @property
    def out_scales(self) -> int:
        """Number of output maps, the cells of the last layer."""
        return self.scales_per_layer[-1]

    @property
    def max_stride(self) -> int:
        """Coarsest stride of the space: inputs of this multiple keep every map aligned."""
        return 4 * 2 ** (self.max_scales - 1)

    @cached_property
    def initial(self) -> Node:
        """The node before the first layer, at stride 4."""
        targets = range(self.scales_per_layer[0])
        return self._node(-1, 0, -1, tuple(t for t in (UP, KEEP, DOWN) if t - 1 in targets))

    @cached_property
    def layers(self) -> tuple[tuple[Node, ...], ...]:
        """Cells layer by layer, stride 4 first."""
        result, index = [], 0
        for layer, count in enumerate(self.scales_per_layer):
            nodes = []
            for scale in range(count):
                nodes.append(self._node(layer, scale, index, self._transforms(layer, scale)))
                index += 1
            result.append(tuple(nodes))
        return tuple(result)

    @property
    def cells(self) -> tuple[Node, ...]:
        """All reported cells in the order of A(x)."""
        return tuple(node for layer in self.layers for node in layer)

    def _node(self, layer: int, scale: int, index: int, transforms: tuple[int, ...]) -> Node:
        constant = index in self.constant
        if self.opened is None:
            return Node(layer, scale, index, transforms, constant=constant)
        opened = self.opened[index + 1]
        if opened is not None:
            return Node(layer, scale, index, opened, constant=constant)
        return Node(layer, scale, index, tuple(t for t in transforms if t == KEEP), bare=True)

    def _transforms(self, layer: int, scale: int) -> tuple[int, ...]:
        if layer == self.num_layers - 1:
            return (KEEP,)
        targets = range(self.scales_per_layer[layer + 1])
        return tuple(t for t in (UP, KEEP, DOWN) if scale + t - 1 in targets)

    def map_sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """(height, width) of the maps of each scale for an input of this size in pixels.

        The stem's first convolution has no padding and its second stride rounds up, so 128 rows
        become 63, then 32; each coarser scale halves and rounds up.

        Raises:
            ValueError: the input is smaller than the stem's first 3×3 window.
        """
        if min(height, width) < 3:
            raise ValueError(f"an input of {height}×{width} pixels is too small; at least 3×3")
        rows, columns = _stem_size(height), _stem_size(width)
        sizes = []
        for _ in range(self.max_scales):
            sizes.append((rows, columns))
            rows, columns = _half(rows), _half(columns)
        return tuple(sizes)


def _half(length: int) -> int:
    return (length + 1) // 2


def _stem_size(length: int) -> int:
    return _half((length - 3) // 2 + 1)
