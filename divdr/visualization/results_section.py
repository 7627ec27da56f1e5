"""Accuracy, cost and diversity of every run: the table, curves over training, execution modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from ..engine.execution_modes import ModeFigures
from .curves import (
    DIVERSITY,
    GFLOPS,
    Metrics,
    diversity_figure,
    gflops_figure,
    loss_keys,
    losses_figure,
)
from .parts import (
    MISSING,
    Picture,
    Section,
    Table,
    TableEntry,
    change,
    count,
    figures,
    fixed,
    listing,
    signed,
)
from .run_data import RunData

Reader = Callable[[RunData, str], float | None]


@dataclass(frozen=True)
class Column:
    """A column of the results table.

    Attributes:
        title: heading.
        words: the quantity within a sentence.
        read: finds the number in a run, None if it is not there.
        decimals: how many are printed; costs below 1 get two more.
        spread: finds the standard deviation over images.
    """

    title: str
    words: str
    read: Reader
    decimals: int
    spread: Reader | None = None

    def digits(self, reference: float | None) -> int:
        """Decimals to print where the first run's number is ``reference``."""
        small = self.spread is not None and reference is not None and abs(reference) < 1
        return self.decimals + 2 if small else self.decimals


def _routing(key: str) -> Reader:
    return lambda run, data: run.number(data, "routing", key)


def _mean_iou(run: RunData, data: str) -> float | None:
    value = run.number(data, "sem_seg", "mIoU")
    return run.number(data, "sem_seg", "IoU") if value is None else value


def _open_cells(run: RunData, data: str) -> float | None:
    share = run.number(data, "routing", "open_cells")
    return None if share is None else 100 * share


def _cost(task: str, key: str) -> Reader:
    return lambda run, data: run.number(data, task, key)


_MEAN_IOU = Column("mIoU, %", "mIoU", _mean_iou, 2)
_OTHER_ACCURACY = (
    Column("box AP", "box AP", lambda run, data: run.number(data, "bbox", "AP"), 2),
    Column("mask AP", "mask AP", lambda run, data: run.number(data, "segm", "AP"), 2),
    Column(
        "top-1, %",
        "share of right classes",
        lambda run, data: run.number(data, "classification", "top1"),
        2,
    ),
)
_OTHER_COSTS = tuple(
    Column(title, title, _cost(task, key), decimals)
    for title, task, key, decimals in (
        ("backbone GFLOPs", "cost", "gflops", 2),
        ("MFLOPs", "cost", "mflops", 3),
        ("experts that ran", "cost", "mean_branches", 2),
        ("experts of a layer that ran", "cost", "mean_experts", 2),
        ("ended early, %", "cost", "ended_early", 1),
        ("GFLOPs with neck", "routing", "real_gflops_with_neck", 2),
        ("box head GFLOPs", "box_head", "gflops", 2),
        ("experts of a proposal", "box_head", "mean_experts", 2),
        ("segmentation head GFLOPs", "sem_seg_head", "gflops", 2),
        ("experts of an image", "sem_seg_head", "mean_experts", 2),
    )
)
COLUMNS = (
    Column(
        "expected GFLOPs",
        "expected GFLOPs",
        _routing("expected_gflops"),
        2,
        _routing("expected_gflops_std"),
    ),
    Column("real GFLOPs", "real GFLOPs", _routing("real_gflops"), 2, _routing("real_gflops_std")),
    Column("open cells, %", "share of open cells", _open_cells, 1),
    *(
        Column(name, name, _routing(key), 3)
        for name, key in (
            ("inter (experts)", "inter_experts"),
            ("intra (pairs, experts)", "intra_pairs_experts"),
            ("intra (to centre, experts)", "intra_centre_experts"),
            ("inter (refit)", "inter_refit"),
            ("intra (pairs, refit)", "intra_pairs_refit"),
            ("intra (to centre, refit)", "intra_centre_refit"),
        )
    ),
)


def columns_of(runs: Sequence[RunData], dataset_name: str) -> list[Column]:
    """The table's columns: accuracy and costs that a run has; of routed runs cost and diversity."""

    def known(columns: Sequence[Column]) -> list[Column]:
        return [c for c in columns if any(c.read(r, dataset_name) is not None for r in runs)]

    routed = any(run.result(dataset_name, "routing") for run in runs)
    accuracy = known((_MEAN_IOU, *_OTHER_ACCURACY))
    return [*accuracy, *known(_OTHER_COSTS), *(COLUMNS if routed else ())]


def results_section(runs: Sequence[RunData], dataset_name: str) -> Section:
    """Build the table, a row a run; runs after the first show their difference to it."""
    section = Section("Results")
    with_results = [run for run in runs if run.result(dataset_name) is not None]
    without = [run.name for run in runs if run.result(dataset_name) is None]
    if without:
        section.sentences.append(
            f"There are no evaluation results on {dataset_name} for {listing(without)}."
        )
    if not with_results:
        return section
    first = with_results[0]
    columns = columns_of(with_results, dataset_name)
    rows = [(run.name, _entries(columns, run, first, dataset_name)) for run in with_results]
    caption = (
        "Cost is in GFLOPs (10⁹ multiply-adds; MFLOPs: 10⁶) an image, mean ± standard deviation "
        "over images where known."
    )
    if any(column in COLUMNS for column in columns):
        caption += f" {_DISTANCES}"
    if len(with_results) > 1:
        caption += f" The small numbers are differences to {first.name}."
        section.sentences += [
            _compared(columns, run, first, dataset_name) for run in with_results[1:]
        ]
    if any(entry.text == MISSING for _, entries in rows for entry in entries):
        caption += f" {MISSING} stands for a number that the run's results do not hold."
    header = ["run", *(column.title for column in columns)]
    section.tables.append(Table(caption, header, rows))
    return section


_DISTANCES = (
    "inter is the mean distance between centres, intra the mean distance within a cluster, over "
    "its pairs of images or to its centre. Those marked experts are of the centres that training "
    "found, each image with its nearest, as in the rest of this page; those marked refit are of a "
    "new K-means over the evaluated images, whatever training found. The two need not agree."
)
_LISTED = 100  # classes of a table, at most
_OF_CLASSES = (
    ("sem_seg", "IoU", "IoU, %"),
    ("bbox", "AP", "box AP"),
    ("segm", "AP", "mask AP"),
    ("classification", "top1", "top-1, %"),
)


def classes_section(runs: Sequence[RunData], dataset_name: str) -> Section:
    """Build a table for each measure that is known of single classes, a row a class."""
    section = Section("Classes")
    for task, key, title in _OF_CLASSES:
        start = f"{key}-"
        found = {
            run.name: {n[len(start) :]: n for n in tasks if n.startswith(start)}
            for run in runs
            if isinstance(tasks := run.result(dataset_name, task), dict)
        }
        classes = list(dict.fromkeys(name for own in found.values() for name in own))
        if not classes:
            continue
        rows = [
            (
                name,
                [
                    TableEntry(fixed(run.number(dataset_name, task, own[name]), 1))
                    if name in (own := found.get(run.name, {}))
                    else TableEntry(MISSING)
                    for run in runs
                ],
            )
            for name in classes[:_LISTED]
        ]
        caption = f"{title} of each class; {MISSING}: no image has it."
        if len(classes) > _LISTED:
            caption += f" Of {len(classes)} classes the first {_LISTED} are listed."
        section.tables.append(Table(caption, [title, *(run.name for run in runs)], rows))
    return section


def facts(run: RunData) -> str:
    """When, by what, on what machine and how long a run was trained, in words."""
    iterations, _ = (run.metrics or {}).get("total_loss", ([], None))
    trained = f"{count(int(iterations[-1]) + 1, 'iteration')}; " if len(iterations) else ""
    if not run.facts:
        return f"{run.name}: {trained}its folder does not tell when, by what and where it was made."
    first, latest = run.facts[0], run.facts[-1]
    machine = latest.get("machine") or {}
    where = ", ".join(
        str(part)
        for part in (
            machine.get("cpu"),
            machine.get("device") if machine.get("device") != "cpu" else "",
            f"threads: {machine.get('threads', MISSING)}",
            f"processes: {latest.get('processes', MISSING)}",
            f"torch {machine.get('torch', MISSING)}",
        )
        if part
    )
    code = f"divdr {latest.get('version', MISSING)}"
    if latest.get("commit"):
        code += f", commit {latest['commit']}"
    seconds = [entry.get("seconds") for entry in run.facts]
    known = sum(s for s in seconds if isinstance(s, (int, float)))
    words = f"{run.name}: {trained}started {_moment(first.get('started'))}"
    if len(run.facts) > 1:
        words += f", last resumed {_moment(latest.get('started'))}"
    words += f", {_duration(known)} with evaluation" if known else ""
    if not latest.get("finished"):
        words += ", not finished"
    return f"{words}; {code}; {where}."


def _moment(text: object) -> str:
    """``2026-11-27 14:33 UTC`` of an ISO time."""
    return str(text or MISSING)[:16].replace("T", " ") + " UTC"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _entries(
    columns: Sequence[Column], run: RunData, first: RunData, data: str
) -> list[TableEntry]:
    entries = []
    for column in columns:
        value, reference = column.read(run, data), column.read(first, data)
        digits = column.digits(reference)
        text = fixed(value, digits)
        spread = column.spread(run, data) if column.spread else None
        if value is not None and spread is not None:
            text += f" ± {fixed(spread, digits)}"
        small = ""
        if run is not first and value is not None and reference is not None:
            small = _difference(column, value, reference)
        entries.append(TableEntry(text, small))
    return entries


def _difference(column: Column, value: float, reference: float) -> str:
    """Difference of the printed numbers, so that a reader who subtracts them agrees."""
    digits = column.digits(reference)
    return signed(round(value, digits) - round(reference, digits), digits)


def _compared(columns: Sequence[Column], run: RunData, first: RunData, data: str) -> str:
    higher: list[str] = []
    lower: list[str] = []
    same: list[str] = []
    for column in columns:
        value, reference = column.read(run, data), column.read(first, data)
        if value is None or reference is None:
            continue
        difference = _difference(column, value, reference)
        if difference.startswith("±"):
            same.append(column.words)
        else:
            (higher if difference.startswith("+") else lower).append(column.words)
    if not (higher or lower or same):
        return f"{run.name} and {first.name} have no number in common."
    parts = [
        f"{words} {listing(names)}"
        for words, names in (("higher", higher), ("lower", lower), ("the same", same))
        if names
    ]
    return f"Compared with {first.name}, {run.name} has {'; '.join(parts)}."


_CAPTION = (
    "The same weights run in several modes. Dynamic: every image decides its own route. Static "
    "experts: the gates of the first layers pick one of a few fixed routes. Milliseconds are the "
    "median of the whole model for one image, the modes taking turns; GFLOPs are real ones of the "
    "backbone. The small numbers are differences to dynamic."
)


def modes_section(runs: Sequence[RunData]) -> Section:
    """Build the tables; runs without static experts have none."""
    section = Section("Dynamic, static, all open")
    for run in runs:
        if run.modes:
            section.tables.append(_table(run.name, run.modes))
            section.sentences.append(_sentence(run.name, run.modes))
    return section


def _table(name: str, modes: Sequence[ModeFigures]) -> Table:
    measures = list(modes[0].accuracy)
    header = [name, *(f"{m}, %" for m in measures), "real GFLOPs", "ms an image"]
    rows = []
    for mode in modes:
        entries = []
        for measure in measures:
            value, first = mode.accuracy[measure], modes[0].accuracy[measure]
            difference = "" if mode is modes[0] else signed(round(value, 2) - round(first, 2), 2)
            entries.append(TableEntry(fixed(value, 2), difference))
        ratio = mode.milliseconds / modes[0].milliseconds
        entries.append(TableEntry(figures(mode.gflops, 4)))
        entries.append(
            TableEntry(
                fixed(mode.milliseconds, 1), "" if mode is modes[0] else f"× {fixed(ratio, 2)}"
            )
        )
        rows.append((mode.name, entries))
    return Table(_CAPTION, header, rows)


def _sentence(name: str, modes: Sequence[ModeFigures]) -> str:
    fastest = min(modes, key=lambda mode: mode.milliseconds)
    return f"Of the execution modes of {name}, the fastest is: {fastest.name}."


def curves_section(runs: Sequence[RunData]) -> Section:
    """Build up to three pictures: losses, GFLOPs, diversity."""
    section = Section("Training")
    metrics = {run.name: run.metrics or {} for run in runs}
    without = [name for name, series in metrics.items() if not series]
    if without:
        section.sentences.append(f"There are no training curves for {listing(without)}.")
    if len(without) == len(runs):
        return section
    routed = any(run.routed for run in runs)
    losses = {key: key for key in loss_keys(metrics)}
    words = "The losses that training minimises."
    _add(section, losses_figure, metrics, losses, words, "losses", "wide")
    _add(
        section,
        gflops_figure,
        metrics,
        {f"{name} cost": key for name, key in GFLOPS.items()},
        "Expected cost (solid: gates × multiply-adds) and real cost (dashed: what would run) of "
        "the training images.",
        "costs" if routed else "",
    )
    _add(
        section,
        diversity_figure,
        metrics,
        DIVERSITY,
        "Diversity of the routes: inter is the mean distance between centres, intra the mean "
        "distance within a cluster, over its pairs of images or to its centre. Lines are of the "
        "experts over the training images, at each clustering; marks are of a new K-means over "
        "the evaluated images (refit), at each evaluation.",
        "clustering measures" if routed else "",
    )
    return section


def _add(
    section: Section,
    build: Callable[[Mapping[str, Metrics]], Figure],
    metrics: dict[str, Metrics],
    keys: Mapping[str, str],
    words: str,
    what: str,
    shape: str = "",
) -> None:
    if not any(key in series for series in metrics.values() for key in keys.values()):
        if what:
            section.sentences.append(f"The training curves hold no {what}.")
        return
    section.pictures.append(Picture(build(metrics), f"{words} {_changes(metrics, keys)}", shape))


def _changes(metrics: Mapping[str, Metrics], keys: Mapping[str, str]) -> str:
    sentences = []
    for run, series in metrics.items():
        parts = []
        for name, key in keys.items():
            if key in series:
                iterations, values = series[key]
                if len(iterations) > 1:
                    parts.append(change(name, float(values[0]), float(values[-1])))
        if parts:
            sentences.append(f"{run}: from the first to the last entry, {listing(parts)}.")
    return " ".join(sentences)
