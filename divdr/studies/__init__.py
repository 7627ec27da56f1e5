"""Studies: several trainings over several seeds, compared in tables and pictures."""

from .command import main, write_study
from .definition import Metric, Pictures, Study, Sweep, Variant
from .execution import execute, follow
from .planning import Run, plan
from .reading import find_study, load_study
from .statistics import Difference, Summary, paired_difference, summarise

__all__ = [
    "Difference",
    "Metric",
    "Pictures",
    "Run",
    "Study",
    "Summary",
    "Sweep",
    "Variant",
    "execute",
    "find_study",
    "follow",
    "load_study",
    "main",
    "paired_difference",
    "plan",
    "summarise",
    "write_study",
]
