"""Which expert an image belongs to, told from the gates of the first layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ..errors import ConfigError
from ..routing.space import TRANSFORMS, RoutingSpace


@dataclass(frozen=True, eq=False)
class Dispatcher:
    """A linear classifier of the first layers' gates.

    The nearest centre, seen in these gates alone, is right less often: experts may differ most in
    gates that come later.

    Attributes:
        layers: how many layers it looks at.
        weight: (K, P), float64 on the host; P is 3 × the cells of these layers.
        bias: (K,), likewise; -inf for an expert without images.
    """

    layers: int
    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(
        cls, space: RoutingSpace, values: Tensor, expert: Tensor, num_experts: int, layers: int
    ) -> Dispatcher:
        """Learn from images whose experts are known (logistic regression).

        Args:
            space: the routing space.
            values: (M, D) what was clustered of M images: gates, or their logits.
            expert: (M,) ids of their experts.
            num_experts: K.
            layers: how many layers to look at.

        Raises:
            ConfigError: ``layers`` is below 1, or leaves the experts no layer.
        """
        if not 1 <= layers < space.num_layers:
            raise ConfigError(
                f"a dispatcher looks at 1 to {space.num_layers - 1} of the {space.num_layers} "
                f"layers, not {layers}"
            )
        seen = len(TRANSFORMS) * sum(space.scales_per_layer[:layers])
        weight = np.zeros((num_experts, seen))
        bias = np.full(num_experts, -np.inf)
        x, labels = values[:, :seen].double().cpu().numpy(), expert.cpu().numpy()
        present = np.unique(labels)
        bias[present] = 0.0
        if len(present) > 1:
            fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000))
            fitted.fit(x, labels)
            scaler, model = (step for _, step in fitted.steps)
            slope, shift = model.coef_ / scaler.scale_, model.intercept_
            shift = shift - slope @ scaler.mean_
            if len(present) == 2:  # one row tells the second from the first
                slope, shift = np.vstack([-slope, slope]) / 2, np.hstack([-shift, shift]) / 2
            weight[present], bias[present] = slope, shift
        return cls(layers, torch.from_numpy(weight), torch.from_numpy(bias))

    @property
    def num_experts(self) -> int:
        """K."""
        return len(self.bias)

    def pick(self, values: Tensor) -> Tensor:
        """Ids (N,) of experts by values (N, P) or (N, D) of the images, on the host."""
        seen = values[:, : self.weight.shape[1]].detach().double().cpu()
        return (seen @ self.weight.T + self.bias).argmax(dim=1)

    def check(self, space: RoutingSpace, num_experts: int) -> None:
        """See whether it was made for a routing space and a number of experts.

        Raises:
            ConfigError: it was not.
        """
        seen = len(TRANSFORMS) * sum(space.scales_per_layer[: self.layers])
        if tuple(self.weight.shape) != (num_experts, seen):
            raise ConfigError(
                f"the dispatcher tells {self.weight.shape[0]} experts from {self.weight.shape[1]} "
                f"gates, here are {num_experts} and {seen}"
            )
