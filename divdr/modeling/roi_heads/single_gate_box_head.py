"""A single-gated mixture as a box head, made from the box head of a finished detector.

"Revisiting single-gated Mixtures of Experts" (Royer et al.): the base looks at every proposal, and
the expert that the gate names at those of which the base is not sure.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_BOX_HEAD_REGISTRY,
    FastRCNNOutputLayers,
    build_box_head,
)
from detectron2.structures import Instances
from torch import Tensor, nn

from ...errors import ConfigError
from ...moe import (
    Cost,
    Group,
    choose_by,
    log_mean_probability,
    run_groups,
    scatter_sum,
    smoothed,
    weighted_mean,
)
from ...settings import BoxSingleGateSettings
from ..neck_cost import module_macs
from ..single_gate_head import SingleGateHead
from .box_losses import BoxTargets, box_losses
from .expert import BoxExpert
from .mixture_roi_heads import BoxMixture, BoxPrediction


@ROI_BOX_HEAD_REGISTRY.register()
class SingleGateBoxHead(SingleGateHead, BoxMixture):
    """The finished box head, then for proposals that it doubts copies of its last layers.

    Scores are the logarithm of the mean probability of base and expert, boxes the mean of their
    deltas. Where no expert runs, both are exactly the base's.

    Args:
        base: the finished head, layers one after the other: pooled features to a vector.
        predictors: K, of the experts.
        settings: see there; how many experts there are, ``predictors`` says.
        in_shape: of the pooled features.
        max_iter: iterations of the whole training.
        seed: of K-means.

    Raises:
        ConfigError: the base has no layers to share, or no others.
    """

    @configurable
    def __init__(
        self,
        *,
        base: nn.Module,
        predictors: list[FastRCNNOutputLayers],
        settings: BoxSingleGateSettings,
        in_shape: ShapeSpec,
        max_iter: int = 1,
        seed: int = 0,
    ) -> None:
        first, rest = _halves(base, settings.shared_layers)
        output: ShapeSpec = base.output_shape
        super().__init__(output.channels or 0, len(predictors), settings, max_iter, seed)
        self.in_shape = in_shape
        self.output_shape = output
        self.base = base
        # Names of the layers alone: they are the base's.
        self._first, self._rest = first, rest
        self.experts = nn.ModuleList(
            BoxExpert(nn.Sequential(*(copy.deepcopy(layer) for layer in rest)), predictor)
            for predictor in predictors
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments from ``cfg.MODEL.ROI_BOX_HEAD``, whose other keys describe the base.

        Raises:
            ConfigError: scores are not a softmax, or the base is a mixture.
        """
        settings = BoxSingleGateSettings.of(cfg.MODEL.ROI_BOX_HEAD.SINGLE_GATE)
        if cfg.MODEL.ROI_BOX_HEAD.get("USE_SIGMOID_CE"):  # Detectron2 0.6 has no such key
            raise ConfigError(
                "SingleGateBoxHead compares class probabilities, which USE_SIGMOID_CE does not give"
            )
        plain = cfg.clone()
        plain.defrost()
        plain.MODEL.ROI_BOX_HEAD.NAME = settings.base_head
        base = build_box_head(plain, input_shape)
        shape = base.output_shape
        return {
            "base": base,
            "predictors": [FastRCNNOutputLayers(cfg, shape) for _ in range(settings.experts)],
            "settings": settings,
            "in_shape": input_shape,
            "max_iter": cfg.SOLVER.MAX_ITER,
            "seed": max(0, cfg.SEED),
        }

    def own_parts(self) -> Iterator[nn.Module]:
        """Gate and experts."""
        yield self.gate
        yield self.experts

    def copy_base(self, predictor: FastRCNNOutputLayers) -> None:
        """Start every expert from the base's layers and from its predictor."""
        for expert in self.experts:
            assert isinstance(expert, BoxExpert)
            expert.layers.load_state_dict(nn.Sequential(*self._rest).state_dict())
            expert.predictor.load_state_dict(predictor.state_dict())

    def predict(self, pooled: Tensor, predictor: FastRCNNOutputLayers) -> BoxPrediction:
        """Base for all proposals, experts for those that it doubts (Section 3.3)."""
        shared, features = self._base(pooled)
        scores, deltas = predictor(features)
        ran = torch.zeros((len(pooled), len(self.experts)), dtype=torch.bool, device=pooled.device)
        if not self.gate.is_fitted:
            return BoxPrediction(scores, deltas, ran)
        probabilities = scores.float().softmax(1)
        gate = self.gate(features).float().softmax(1)
        choice = choose_by(self.settings, gate, probabilities.amax(1), self.threshold)
        groups = [
            group._replace(output=self._joined(group, scores, deltas))
            for group in run_groups(self.experts, shared, choice.chosen)
        ]
        if groups:
            found = scatter_sum(groups, len(pooled), choice.weights)
            own = choice.chosen.any(1)[:, None]
            classes = scores.shape[1]
            # The logarithm of 0 is not finite.
            logs = found[:, :classes].clamp_min(1e-37).log().to(scores.dtype)
            scores = logs.where(own, scores)
            deltas = found[:, classes:].to(deltas.dtype).where(own, deltas)
        return BoxPrediction(scores, deltas, choice.chosen)

    def _joined(self, group: Group, scores: Tensor, deltas: Tensor) -> Tensor:
        """(R, C + 1 + B) probabilities and deltas of an expert's proposals, with the base's."""
        expert = self.experts[group.expert]
        assert isinstance(expert, BoxExpert)
        own, moved = expert.split(group.output)
        if self.settings.ensembler == "bagging":
            own = log_mean_probability([own, scores[group.rows]])
            moved = (moved + deltas[group.rows].float()) / 2
        return torch.cat([own.softmax(1), moved], dim=1)

    def losses(
        self, pooled: Tensor, predictor: FastRCNNOutputLayers, proposals: list[Instances]
    ) -> tuple[BoxPrediction, dict[str, Tensor]]:
        """``loss_gate``, then ``loss_expert_cls`` and ``loss_expert_box_reg``.

        Each expert's are means over the proposals of all processes, weighted by clip(g₀, γ, 1), and
        are summed over the experts. No gradient reaches base, predictor or what lies below.

        Raises:
            ConfigError: no clusters were made, see ``begin``.
        """
        with torch.no_grad():
            shared, features = self._base(pooled)
            scores, deltas = predictor(features)
        ran = torch.zeros((len(pooled), len(self.experts)), dtype=torch.bool, device=pooled.device)
        prediction = BoxPrediction(scores, deltas, ran)
        if self.collects(features):
            return prediction, {}
        targets = self.gate.initial(features)
        if self.stage == "gate":
            return prediction, {"loss_gate": self.gate_loss(features, targets)}
        true = BoxTargets.of(proposals)
        classes, boxes = [], []
        for number, expert in enumerate(self.experts):
            assert isinstance(expert, BoxExpert)
            weights = smoothed(targets[:, number], self.settings.floor)
            own, moved = expert.split(expert(shared))
            each = F.cross_entropy(own, true.labels, reduction="none")
            classes.append(weighted_mean(each, weights))
            boxes.append(weighted_mean(box_losses(expert.predictor, moved, true), weights))
        return prediction, {
            "loss_expert_cls": torch.stack(classes).sum(),
            "loss_expert_box_reg": torch.stack(boxes).sum(),
        }

    def embed(self, pooled: Tensor) -> Tensor:
        """(N, D) the base's features."""
        return self._base(pooled)[1]

    def cost(self, predictor: nn.Module) -> Cost:
        """Base, its predictor and the gate always, each expert if it runs."""
        shape = (self.in_shape.channels or 0, self.in_shape.height or 0, self.in_shape.width or 0)
        width = (self.output_shape.channels or 0,)
        shared = module_macs(self.base, shape) + module_macs(predictor, width)
        shared += module_macs(self.gate, width)
        with torch.no_grad():
            maps = self._run(self._first, torch.zeros((1, *shape), device=self._device))
        each = tuple(module_macs(expert, maps.shape[1:]) for expert in self.experts)
        return Cost(shared, each)

    @property
    def _device(self) -> torch.device:
        return self.gate.centres.device

    def _base(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """What experts start from, and the base's features (N, D)."""
        shared = self._run(self._first, pooled)
        return shared, self._run(self._rest, shared)

    @staticmethod
    def _run(layers: list[nn.Module], x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x


def _halves(base: nn.Module, shared: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """The layers of a head up to so many with weights, what follows each included, and the rest."""
    if not isinstance(base, nn.Sequential):
        raise ConfigError(
            f"the box head {type(base).__name__} is no nn.Sequential: its layers cannot be shared"
        )
    layers = list(base)
    weighty = [place for place, layer in enumerate(layers) if list(layer.parameters())]
    if not 0 < shared < len(weighty):
        raise ConfigError(
            f"MODEL.ROI_BOX_HEAD.SINGLE_GATE.SHARED_LAYERS must be between 1 and "
            f"{len(weighty) - 1}, one less than the head's layers, not {shared}"
        )
    end = weighty[shared]
    # A flattening belongs to the layer that needs it.
    if isinstance(layers[end - 1], nn.Flatten):
        end -= 1
    return layers[:end], layers[end:]
