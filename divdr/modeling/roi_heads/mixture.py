"""What every mixture of experts promises as a box head, so that ROI heads know none of them.

Shapes: N proposals of all images of a batch, one after the other; C classes, and background as
class C; E branches or experts; B numbers of box deltas, 4·C or 4 if they are class-agnostic.
"""

from __future__ import annotations

from typing import NamedTuple

from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from ...errors import ConfigError
from ...moe import Cost


class BoxPrediction(NamedTuple):
    """Of all proposals of a batch.

    Attributes:
        scores: (N, C + 1) logits.
        deltas: (N, B) of the boxes.
        ran: (N, E) bool, branches or experts that ran.
    """

    scores: Tensor
    deltas: Tensor
    ran: Tensor


class BoxMixture(nn.Module):
    """A box head that decides for every proposal what runs.

    ``predictor`` is the ROI heads' own box predictor, to which ``output_shape`` goes.

    Attributes:
        in_shape: of the pooled features of a proposal.
        output_shape: of what the predictor takes.
        leaves_parameters_out: branches that no proposal of a batch needs get no gradient, and DDP
            has to look for them.
    """

    in_shape: ShapeSpec
    output_shape: ShapeSpec
    leaves_parameters_out = True

    def predict(self, pooled: Tensor, predictor: FastRCNNOutputLayers) -> BoxPrediction:
        """Predict from pooled features (N, C, H, W); what is not chosen does not run."""
        raise NotImplementedError

    def losses(
        self, pooled: Tensor, predictor: FastRCNNOutputLayers, proposals: list[Instances]
    ) -> tuple[BoxPrediction, dict[str, Tensor]]:
        """Predictions and weighted losses of sampled proposals, with their ``gt_classes``."""
        raise NotImplementedError

    def cost(self, predictor: nn.Module) -> Cost:
        """Multiply-adds for one proposal, from its pooled features on."""
        raise NotImplementedError

    def embed(self, pooled: Tensor) -> Tensor:
        """(N, D) features of proposals, the same function for every one of them."""
        raise NotImplementedError

    def forward(self, pooled: Tensor) -> Tensor:
        """Not what runs a mixture.

        Raises:
            ConfigError: always; it is asked by ROI heads that know no mixtures.
        """
        name = type(self).__name__
        raise ConfigError(
            f"MODEL.ROI_BOX_HEAD.NAME {name} needs MODEL.ROI_HEADS.NAME MixtureROIHeads"
        )
