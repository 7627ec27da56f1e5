"""Single-gated mixture of experts: a base that always runs, one gate, experts trained apart.

"Revisiting single-gated Mixtures of Experts" (Royer et al.), Algorithm 1 and Section 3. Gate
and experts never see each other's gradient, so that no expert can starve, and experts can be
trained one by one, on different machines.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import load_exactly
from ..settings import SingleGateSettings
from .choice import Choice, choose_by, confidence
from .embedding import check_labels, class_means
from .expert_dispatch import Dispatch, Group, restrict, run_groups, scatter_sum
from .expert_files import write_expert
from .multiply_adds import each_macs, part_macs
from .sample_gate import SampleGate, as_first_process, smoothed, some_of, weighted_mean
from .single import Stacking, log_mean_probability
from .single_gate_stages import NO_EXPERT, check_settings, stages_of
from .split import take_common_weights
from .system import Cost, ExitThreshold, Prediction, Stage, loaded_numbers, stage_at

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Makes (images, labels) of every training image once."""


class Comparison(NamedTuple):
    """Of a batch, what a mixture would do by every choice that needs no training.

    Attributes:
        predictions: by name: "base"; each ensembler, without early exit; "oracle", where the true
            class chooses; and "anytime-τ" and "confidence-τ" with the ensembler that is set.
        losses: (N, K) float32 cross-entropy of every expert, without the base.
    """

    predictions: dict[str, Prediction]
    losses: Tensor


class SingleGate(ExitThreshold, nn.Module):
    """The base looks at every image; the experts that the gate chooses look at some again.

    Args:
        shared: images (N, ...) to maps, the base's first layers, which the experts share.
        base: maps to (embeddings (N, D), logits (N, C)), the rest of the base.
        experts: K modules, maps to logits (N, C). As their training starts they take the base's
            weights wherever names and shapes agree.
        width: D.
        num_classes: C.
        settings: what stands there about the number of experts and where they begin is decided by
            the arguments here.
        in_channels: of the images, for the cost.
        stages: of training, see :func:`stages_of`, which makes them of the settings if None.
        seed: of K-means.
        base_weights: reads a trained base's weights, by the names that they have in it, when
            training begins; None: the base is trained here.

    Attributes:
        threshold: τ of the early exit; it can be changed at any time, without training.
        progress: how far training is, 0 to 1; whoever trains sets it.

    Raises:
        ConfigError: settings contradict each other.
    """

    def __init__(
        self,
        shared: nn.Module,
        base: nn.Module,
        experts: Sequence[nn.Module],
        width: int,
        num_classes: int,
        settings: SingleGateSettings,
        in_channels: int = 3,
        stages: Sequence[Stage] | None = None,
        seed: int = 0,
        base_weights: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        check_settings(settings, len(experts))
        self.check_threshold(settings.threshold)
        self.shared = shared
        self.base = base
        self.experts = nn.ModuleList(experts)
        self.gate = SampleGate(width, len(experts), num_classes, settings.similarity)
        stacked = len(experts) if settings.ensembler == "stacking" else 0
        self.stackers = nn.ModuleList(Stacking(num_classes) for _ in range(stacked))
        # Gate and experts of the round before, by which the EM variant says whose a sample is.
        earlier = [self.gate.linear, self.experts] if settings.em_rounds else []
        self.earlier = nn.ModuleList(copy.deepcopy(m).requires_grad_(False) for m in earlier)
        self.num_classes = num_classes
        self.settings = settings
        self.threshold = settings.threshold
        self.seed = seed
        self.base_weights = base_weights
        self.in_channels = in_channels
        self.stages = stages_of(settings) if stages is None else tuple(stages)
        self.progress = 0.0
        #: How experts run in evaluation.
        self.dispatch: Dispatch = run_groups
        #: Whether the true class chooses the expert, in evaluation too (the paper's oracle).
        self.needs_labels = settings.oracle

    @property
    def ends_early(self) -> bool:
        """Whether the base's answer can be final."""
        return self.settings.exit != "none"

    @property
    def first_progress(self) -> float:
        """Where training begins: at the experts' stage if it is that of one expert alone."""
        return self._first("experts").start if self.settings.expert >= 0 else 0.0

    @property
    def last_progress(self) -> float:
        """Where it ends: before that stage if experts are to be trained elsewhere."""
        return self._first("experts").start if self.settings.expert == NO_EXPERT else 1.0

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Prediction:
        """(N, ...) to logits and the experts that ran (Section 3.3).

        Args:
            images: the batch.
            labels: (N,) int64, looked at by the oracle alone.
        """
        return self.at_thresholds(images, [self.threshold], labels)[0]

    def at_thresholds(
        self, images: Tensor, thresholds: Sequence[float], labels: Tensor | None = None
    ) -> list[Prediction]:
        """The prediction at each τ; base and gate run once for all of them."""
        maps = self.shared(images)
        z, logits = self.base(maps)
        if not len(self.experts) or not self.gate.is_fitted:
            ran = torch.zeros((len(images), len(self.experts)), dtype=torch.bool, device=z.device)
            return [Prediction(logits.float(), ran) for _ in thresholds]
        gate = self.gate(z).float().softmax(1)
        if self.settings.oracle:
            gate = self.gate.initial(z, labels)
        sure = confidence(logits)
        choices = [choose_by(self.settings, gate, sure, threshold) for threshold in thresholds]
        wanted = torch.stack([choice.chosen for choice in choices]).any(0)
        groups = [
            group._replace(output=self._ensembled(group, logits, self.settings).softmax(1))
            for group in self.dispatch(self.experts, maps, wanted)
        ]
        return [self._answer(groups, logits, choice) for choice in choices]

    @staticmethod
    def _answer(groups: Sequence[Group], logits: Tensor, choice: Choice) -> Prediction:
        """Σ g(k|x) e′_k(y|x) over the chosen experts, and φ's answer where there is none."""
        probabilities = logits.float().softmax(1)
        own = restrict(groups, choice.chosen)
        if own:
            found = scatter_sum(own, len(logits), choice.weights)
            probabilities = found.where(choice.chosen.any(1)[:, None], probabilities)
        # The smallest that float32 holds in full: of 0 the logarithm is not finite.
        return Prediction(probabilities.clamp_min(1e-37).log(), choice.chosen)

    def _ensembled(self, group: Group, base: Tensor, settings: SingleGateSettings) -> Tensor:
        """Logits (R, C) of e′_k from the expert's and the base's (N, C)."""
        if settings.ensembler == "bagging":
            return log_mean_probability([group.output, base[group.rows]])
        if settings.ensembler == "stacking":
            return self.stackers[group.expert](base[group.rows], group.output)
        return group.output.float()

    @torch.no_grad()
    def compared(self, images: Tensor, labels: Tensor, thresholds: Sequence[float]) -> Comparison:
        """What every choice that needs no training would predict; base and all experts run, once.

        Args:
            images: (N, ...).
            labels: (N,) int64, for the losses, and the oracle of experts that are for classes.
            thresholds: values of τ.
        """
        maps = self.shared(images)
        z, logits = self.base(maps)
        chosen = torch.zeros((len(images), len(self.experts)), dtype=torch.bool, device=z.device)
        found = {"base": Prediction(logits.float(), chosen)}
        if not len(self.experts):
            return Comparison(found, logits.new_zeros((len(images), 0)))
        every = list(self.dispatch(self.experts, maps, torch.ones_like(chosen)))
        gate, sure = self.gate(z).float().softmax(1), confidence(logits)

        joined: dict[str, list[Group]] = {}  # by ensembler, which most alternatives share

        def predict(gate: Tensor, threshold: float = 0.0, **changes: Any) -> Prediction:
            settings = replace(self.settings, oracle=False, **changes)
            if settings.ensembler not in joined:
                joined[settings.ensembler] = [
                    group._replace(output=self._ensembled(group, logits, settings).softmax(1))
                    for group in every
                ]
            choice = choose_by(settings, gate, sure, threshold)
            return self._answer(joined[settings.ensembler], logits, choice)

        for name in ("none", "top2", "bagging", "stacking"):
            if (name == "stacking" and not len(self.stackers)) or (
                name == "top2" and len(self.experts) < 2
            ):
                continue
            found[name] = predict(gate, ensembler=name, exit="none")
        if self.settings.partition == "class":
            found["oracle"] = predict(self.gate.initial(z, labels), exit="none")
        for leave in ("anytime", "confidence"):
            for threshold in thresholds:
                found[f"{leave}-{threshold:g}"] = predict(gate, threshold, exit=leave)
        losses = logits.new_zeros(chosen.shape, dtype=torch.float32)
        for group in every:
            own = F.cross_entropy(group.output.float(), labels[group.rows], reduction="none")
            losses[group.rows, group.expert] = own
        return Comparison(found, losses)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Those of the present stage (Algorithm 1).

        ``loss_base`` reaches the base, ``loss_gate`` the gate's linear layer, ``loss_experts`` each
        expert and ``loss_stacking`` each stacker alone; all else is fixed, BatchNorm included. Sums
        over experts, each a weighted mean over the samples of all processes.

        Args:
            images: (N, ...).
            labels: (N,) int64.

        Raises:
            DataError: a label is no class.
            ConfigError: no clusters were made, see :meth:`begin`.
        """
        check_labels(labels, self.num_classes)
        stage = stage_at(self.stages, self.progress).name
        if stage == "base" or not len(self.experts):
            logits = self.base(self.shared(images))[1]
            return {"loss_base": F.cross_entropy(logits.float(), labels)}
        with torch.no_grad():
            maps = self.shared.eval()(images)
            z, base = self.base.eval()(maps)
        targets = self.targets(maps, z, labels)
        if stage == "gate":
            return {"loss_gate": self.gate.loss(z, targets)}
        # Each expert draws its own random numbers, so that it learns the same alone.
        seed = int(torch.randint(2**62, ()))
        terms = []
        for number in self._trained:
            with torch.random.fork_rng(_devices(images)):
                torch.manual_seed(seed + number)
                weights = smoothed(targets[:, number], self.settings.floor)
                if stage == "stacking":
                    terms.append(self._stacking_loss(number, maps, base, labels, weights))
                else:
                    terms.append(self._expert_loss(number, maps, labels, weights))
        return {f"loss_{stage}": torch.stack(terms).sum()}

    def _expert_loss(self, number: int, maps: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        if self.settings.weighting == "sampling":
            drawn = (torch.rand_like(weights) < weights).nonzero()[:, 0]
            if not len(drawn):
                drawn = weights.argmax()[None]
            maps, labels, weights = maps[drawn], labels[drawn], torch.ones_like(weights[drawn])
        logits = self.experts[number](maps).float()
        each = F.cross_entropy(logits, labels, reduction="none")
        if self.settings.objective == "likelihood":
            each = -(-each).exp()
        return weighted_mean(each, weights)

    def _stacking_loss(
        self, number: int, maps: Tensor, base: Tensor, labels: Tensor, weights: Tensor
    ) -> Tensor:
        with torch.no_grad():
            expert = self.experts[number].eval()(maps)
        logits = self.stackers[number](base, expert)
        return weighted_mean(F.cross_entropy(logits, labels, reduction="none"), weights)

    @torch.no_grad()
    def targets(self, maps: Tensor, z: Tensor, labels: Tensor) -> Tensor:
        """(N, K) whose the samples are: g₀, and in later rounds of EM the posterior.

        The posterior is q(k|x, y) ∝ g(k|x) · e_k(y|x), by gate and experts of the round before.
        """
        if not self.earlier or self._round == 0:
            return self.gate.initial(z, labels)
        linear, experts = self.earlier
        assert isinstance(experts, nn.ModuleList)
        gate = linear(z).float().log_softmax(1)
        own = [F.log_softmax(e.eval()(maps).float(), 1) for e in experts]
        likelihood = torch.stack([log.gather(1, labels[:, None])[:, 0] for log in own], dim=1)
        return (gate + likelihood).softmax(1)

    @torch.no_grad()
    def begin(self, stage: Stage, batches: Batches) -> None:
        """Prepare a stage as it begins: before the first gate, cluster and copy the base.

        Args:
            stage: one of ``stages``.
            batches: makes (images, labels) of every training image once, on every process.

        Raises:
            DivdrError: the clusters cannot be made.
        """
        if not len(self.experts):
            return
        first = stage.name == "gate" and stage == self._first("gate")
        if first and not self.gate.is_fitted:
            if self.base_weights is not None:
                what = "the base's checkpoint is of another architecture"
                load_exactly((self.shared, self.base), self.base_weights(), what)
            self.cluster(batches)
            for expert in self.experts:
                take_common_weights(expert, self.base)
        elif stage.name == "gate" and not first:
            linear, experts = self.earlier
            linear.load_state_dict(self.gate.linear.state_dict())
            experts.load_state_dict(self.experts.state_dict())

    @torch.no_grad()
    def cluster(self, batches: Batches) -> None:
        """Make the initial gate from the base's embeddings of the training images (step 2).

        Raises:
            DivdrError: there are fewer samples or classes than experts, or a class has no image.
        """
        training = self.training
        self.eval()
        try:
            if self.settings.partition == "class":
                means = class_means(self._embed, batches(), self.num_classes)
                self.gate.fit_classes(means, seed=self.seed)
                return
            parts = [self._embed(images).cpu() for images, _ in batches()]
            z = torch.cat(parts) if parts else torch.zeros(0, self.gate.centres.shape[1])
            self.gate.fit_samples(
                some_of(z, self.settings.cluster_images, self.seed).to(self.gate.centres.device),
                seed=self.seed,
            )
        finally:
            self.train(training)
            as_first_process(self.gate)

    def _embed(self, images: Tensor) -> Tensor:
        return self.base(self.shared(images))[0].float()

    @property
    def _trained(self) -> Sequence[int]:
        """Numbers of the experts that this run trains."""
        own = self.settings.expert
        return [own] if own >= 0 else range(len(self.experts))

    def _first(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def _round(self) -> int:
        """Rounds of EM that are over: gates begun after the first."""
        begun = [s for s in self.stages if s.name == "gate" and s.start <= self.progress]
        return len(begun) - 1

    def finished(self, folder: str) -> None:
        """Write the expert that this run trained alone to a file, if it did.

        Args:
            folder: an existing one, which gets ``expert_K.pth``.

        Raises:
            CheckpointError: the file cannot be written.
        """
        if self.settings.expert >= 0:
            write_expert(self, self.settings.expert, folder)

    def loads(self) -> Cost:
        """Numbers that are loaded for an image: base and gate, and each expert with its stacker."""
        stackers = list(self.stackers) or [nn.Identity() for _ in self.experts]
        each = [nn.ModuleList(pair) for pair in zip(self.experts, stackers, strict=True)]
        return loaded_numbers(self, each, self.earlier)

    def cost(self, height: int, width: int) -> Cost:
        """Multiply-adds of base and gate, which always run, and of each expert with its stacker."""
        shared, shape = part_macs(self.shared, (self.in_channels, height, width))
        base, _ = part_macs(self.base, shape)
        gate = self.gate.linear.weight.numel() if len(self.experts) else 0
        stacker = 2.0 * self.num_classes**2 if len(self.stackers) else 0.0
        each = tuple(macs + stacker for macs in each_macs(self.experts, shape))
        return Cost(shared + base + gate, each)


def _devices(images: Tensor) -> list[int]:
    """Devices whose random numbers an expert may draw."""
    return [images.device.index or 0] if images.device.type == "cuda" else []
