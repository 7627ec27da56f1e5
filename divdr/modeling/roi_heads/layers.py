"""What stems, branches, delegators and experts of box heads are made of."""

from __future__ import annotations

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import StandardROIHeads
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers
from torch import Tensor, nn

from ...errors import ConfigError
from ...moe import Cost
from ..attach import unwrap
from ..backbone import norm_factory
from ..neck_cost import module_macs
from .mixture_roi_heads import BoxMixture


class BoxLayers(nn.Module):
    """Convolutions that keep the size, then linear layers, each followed by ReLU.

    Args:
        shape: of the pooled features of a proposal, (C, H, W).
        conv_dims: channels of each convolution.
        fc_dims: numbers that each linear layer returns.
        kernel: of the convolutions, odd.
        norm: of the convolutions, by Detectron2's names; "" is none. "BN" also trains where a
            branch or expert gets one proposal alone, whose map is one pixel.

    Raises:
        ConfigError: no such normalisation, or one that waits for other processes, in which a
            branch or expert may have no proposal and not run.

    Attributes:
        output_shape: (D,) after a linear layer, else (C', H, W).
    """

    def __init__(
        self,
        shape: ShapeSpec,
        conv_dims: Sequence[int] = (),
        fc_dims: Sequence[int] = (),
        *,
        kernel: int = 3,
        norm: str = "",
    ) -> None:
        super().__init__()
        if "SyncBN" in norm:
            raise ConfigError(
                f"MODEL.ROI_BOX_HEAD.NORM {norm!r} waits for processes whose proposals do not run "
                'this branch or expert; use "BN" or "GN"'
            )
        channels = shape.channels
        self.convs = nn.Sequential()
        for width in conv_dims:
            convolution = Conv2d(
                channels,
                width,
                kernel,
                padding=kernel // 2,
                bias=not norm,
                norm=norm_factory(norm)(width) if norm else None,
            )
            weight_init.c2_msra_fill(convolution)
            self.convs.extend([convolution, nn.ReLU(inplace=True)])
            channels = width
        self.fcs = nn.Sequential()
        self.output_shape = ShapeSpec(channels=channels, height=shape.height, width=shape.width)
        if fc_dims:
            self.fcs.append(nn.Flatten())
            channels *= shape.height * shape.width
        for width in fc_dims:
            linear = nn.Linear(channels, width)
            weight_init.c2_xavier_fill(linear)
            self.fcs.extend([linear, nn.ReLU(inplace=True)])
            channels = width
            self.output_shape = ShapeSpec(channels=width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, D), or to (N, C', H, W) without linear layers."""
        return self.fcs(self.convs(x))


def box_head_of(model: nn.Module) -> StandardROIHeads | None:
    """A model's ROI heads, if they have one box head whose cost can be counted; else None."""
    heads = getattr(unwrap(model), "roi_heads", None)
    countable = (
        isinstance(heads, StandardROIHeads)
        and not isinstance(heads, CascadeROIHeads)
        and isinstance(heads.box_predictor, FastRCNNOutputLayers)
    )
    return heads if countable else None


def box_cost(heads: StandardROIHeads, shape: Sequence[int]) -> Cost:
    """Multiply-adds for one proposal: what always runs, and each branch or expert.

    Args:
        heads: see :func:`box_head_of`; a plain head has no experts.
        shape: (C, H, W) of a proposal's pooled features.
    """
    head, predictor = heads.box_head, heads.box_predictor
    if isinstance(head, BoxMixture):
        return head.cost(predictor)
    return Cost(module_macs(nn.Sequential(head, predictor), shape), ())
