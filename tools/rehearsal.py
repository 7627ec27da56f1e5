#!/usr/bin/env python
"""Rehearse trainings at the paper's scale: two processes, half precision, a kill, every hook.

    python tools/rehearsal.py
    python tools/rehearsal.py --names cityscapes --precisions bfloat16

Each config trains for minutes on small drawn images; on a machine with two GPUs, there.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import _environment  # noqa: F401

from divdr.command_line import at_least, report_errors
from divdr.errors import DivdrError

REPOSITORY = Path(__file__).resolve().parent.parent
REFERENCE = REPOSITORY / "tests/data/dynamic_routing_l16_c8_small_gate.npz"
# Those of divdr.engine.rehearsal, which --help does not wait for.
NAMES = ("cityscapes", "faster_rcnn", "mask_rcnn")
# The network of the reference file, whose weights have the published code's names.
PUBLISHED = {"MODEL.ROUTING.CHANNELS": 8, "MODEL.ROUTING.REACH": "published"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument(
        "--precisions", nargs="+", choices=["float16", "bfloat16"], default=["float16", "bfloat16"]
    )
    parser.add_argument("--iterations", type=at_least(6), default=30, help="a multiple of 6")
    parser.add_argument("--output", type=Path, default=Path("output/rehearsal"))
    args = parser.parse_args()
    if args.iterations % 6:
        parser.error(f"--iterations must be a multiple of 6, not {args.iterations}")
    return run(args)


@report_errors
def run(args: argparse.Namespace) -> int:
    from divdr.engine.rehearsal import Rehearsal, rehearse

    output = args.output.resolve()
    data = draw(output / "data")
    plans = [(Rehearsal(n, p, args.iterations), "") for n in args.names for p in args.precisions]
    if "cityscapes" in args.names:
        published = Rehearsal("cityscapes", args.precisions[-1], 6, PUBLISHED)
        plans.append((published, convert(output / "converted.pth")))
    worst = 0
    for rehearsal, weights in plans:
        title = f"{rehearsal.name}, {rehearsal.precision}"
        folder = output / f"{rehearsal.name}_{rehearsal.precision}{'_published' * bool(weights)}"
        try:
            outcome = rehearse(rehearsal, REPOSITORY, data, folder, weights=weights)
        except DivdrError as error:
            print(f"{title}: {error}", flush=True)
            worst = 1
            continue
        said = "; ".join(outcome.failures) or "as it should be"
        worst = max(worst, bool(outcome.failures))
        start = ", from converted weights" if weights else ""
        print(
            f"{title}{start}: {said}; {outcome.seconds:.2f} s an iteration, weights after a kill "
            f"{outcome.difference:.1e} apart",
            flush=True,
        )
    return int(worst)


def draw(folder: Path) -> Path:
    """Small data sets in the layouts of Cityscapes and COCO."""
    for script, size in (
        ("make_streetscapes.py", ["--height", "64", "--width", "128"]),
        ("make_shapes_coco.py", ["--size", "96"]),
    ):
        command = [sys.executable, "-W", "ignore", str(REPOSITORY / "datasets" / script)]
        command += ["--output", str(folder), "--train", "16", "--val", "4", *size]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def convert(path: Path) -> str:
    """Converts the reference network's weights as if they were a published checkpoint."""
    import numpy as np
    import torch

    file = np.load(REFERENCE)
    parts = {"backbone/": "backbone.", "head/": "sem_seg_head."}
    model = {
        ours + name.removeprefix(theirs): torch.from_numpy(file[name])
        for theirs, ours in parts.items()
        for name in file.files
        if name.startswith(theirs)
    }
    published = path.with_name("published.pth")
    torch.save({"model": model}, published)
    command = [sys.executable, "-W", "ignore", str(REPOSITORY / "tools/convert_checkpoint.py")]
    command += [str(published), str(path), "--config-file", "configs/dr_a_cityscapes.yaml"]
    command += ["--opts", *(str(part) for pair in PUBLISHED.items() for part in pair)]
    subprocess.run(command, check=True, cwd=REPOSITORY, capture_output=True)
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
