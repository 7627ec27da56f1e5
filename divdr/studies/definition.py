"""What a study is: variants of a training, seeds, comparisons and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError


@dataclass(frozen=True)
class Metric:
    """One number of a finished run.

    Attributes:
        key: dotted path in the results of the first test data set ("sem_seg.mIoU"), or
            "SCORE.NUMBER" of a score.
        name: heading in tables.
        unit: behind the name; "" for none.
        digits: after the point.
    """

    key: str
    name: str
    unit: str = ""
    digits: int = 2

    @property
    def label(self) -> str:
        """Name and unit."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: row of the tables.
        config: config file, relative to the repository.
        overrides: values of config keys on top of it.
        data: command that makes the data set, its ``--output`` left out; () takes
            $DETECTRON2_DATASETS as it is.
        route_of: an earlier variant; the network is the route that most images take in that
            variant's run of the same seed (``divdr.engine.static_controls``). "" for none.
        teacher: an earlier variant, whose trained network of the same seed teaches this one
            (``MODEL.ROUTING.DISTILLATION``). "" for none.
    """

    name: str
    config: str
    overrides: Mapping[str, Any]
    data: tuple[str, ...] = ()
    route_of: str = ""
    teacher: str = ""

    @property
    def file_name(self) -> str:
        """The name with nothing but letters, digits, points and ``_``: "DR, K = 2" → "dr_k_2"."""
        words = "".join(c if c.isalnum() or c == "." else " " for c in self.name.lower()).split()
        return "_".join(words)


@dataclass(frozen=True)
class Sweep:
    """Metrics against a setting (DivDR, Figures 6 and 7).

    Attributes:
        setting: config key whose value is the horizontal axis.
        name: of that axis.
        metrics: keys, a panel each.
        variants: names of those on the line.
        reference: variant drawn as a level of its own; "" for none.
        log: whether the axis is logarithmic.
    """

    setting: str
    name: str
    metrics: tuple[str, ...]
    variants: tuple[str, ...]
    reference: str = ""
    log: bool = False


@dataclass(frozen=True)
class Pictures:
    """Which pictures a study draws.

    Attributes:
        embedding: variants whose gate activations share a t-SNE (Figure 4).
        montage: variants whose images nearest to each centre are shown (Figure 5).
        sweep: see ``Sweep``.
        tradeoff: keys of cost and accuracy, all runs as points (Figure 8); () for none.
        progress: key of a metric that is drawn over training, for runs that are evaluated more than
            once (``TEST.EVAL_PERIOD``); "" for none.
        need: pairs (a, b) of variants of segmentation on drawn scenes: the cost of each image in b
            against its objects, and what b gains on a where there are few, some and many.
    """

    embedding: tuple[str, ...] = ()
    montage: tuple[str, ...] = ()
    sweep: Sweep | None = None
    tradeoff: tuple[str, ...] = ()
    progress: str = ""
    need: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Study:
    """A study as its file defines it; docs/guide/define_study.md explains every entry.

    Attributes:
        name: file name without ending.
        title: heading of its tables.
        minutes: what it needs on two cores.
        variants: in the order of the tables.
        seeds: a run each and variant.
        metrics: columns of the tables.
        pairs: (a, b): b is compared with a, seed by seed.
        fork: iteration, or share of training if below 1, up to which paired runs are one; 0: none.
        trunk: values of config keys before the fork.
        oracle: variants of segmentation on drawn scenes, among which an oracle chooses by image
            (``divdr.studies.oracle``); () for none.
        scores: "package.module:function" by name; the function takes a run's folder and gives
            numbers by name.
        pictures: see ``Pictures``.
    """

    name: str
    title: str
    minutes: float
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    oracle: tuple[str, ...] = ()
    fork: float = 0.0
    trunk: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, str] = field(default_factory=dict)
    pictures: Pictures = field(default_factory=Pictures)

    def variant(self, name: str) -> Variant:
        """The variant of a name.

        Raises:
            ConfigError: there is none.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        known = ", ".join(v.name for v in self.variants)
        raise ConfigError(f"study {self.name} has no variant {name!r}; it has {known}")

    def metric(self, key: str) -> Metric:
        """The metric of a key.

        Raises:
            ConfigError: there is none.
        """
        for metric in self.metrics:
            if metric.key == key:
                return metric
        raise ConfigError(f"study {self.name} draws {key!r}, which is not among its metrics")
