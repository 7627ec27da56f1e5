"""Studies: several trainings over several seeds, compared in tables and pictures."""

from .command import list_all, run_study, write_study
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
    "list_all",
    "load_study",
    "paired_difference",
    "plan",
    "run_study",
    "summarise",
    "write_study",
]
