#!/usr/bin/env python
"""The demo: draw street scenes, train DR and DivDR on them, evaluate, and write a report.

The point of it stands on one sheet, ``demo.jpg`` beside the report.

Finished parts are skipped when it is run again; an interrupted training goes on.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import _environment  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
RUNS = {"DR": "dr", "DivDR": "divdr"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="output/demo", help="folder of runs and report")
    parser.add_argument("--data", default="datasets/streetscapes", help="folder of the scenes")
    parser.add_argument("--train", type=int, default=320, help="training scenes")
    parser.add_argument("--val", type=int, default=80, help="scenes to evaluate on")
    parser.add_argument(
        "--iterations", type=int, help="of each training; as configured if left out"
    )
    args = parser.parse_args()
    os.chdir(ROOT)
    # Detectron2 finds its registered Cityscapes data sets below this folder, as it is imported.
    os.environ["DETECTRON2_DATASETS"] = str(Path(args.data).resolve())
    from divdr.engine import report_errors

    return report_errors(run)(args)


def run(args: argparse.Namespace) -> int:
    """All parts of the demo; the exit code."""
    started = time.time()
    draw = ["datasets/make_streetscapes.py", "--output", args.data]
    draw += [
        "--train",
        str(args.train),
        "--val",
        str(args.val),
        "--height",
        "128",
        "--width",
        "256",
    ]
    if subprocess.run([sys.executable, *draw], check=False).returncode:
        return fail("drawing the street scenes failed")
    if not train(Path(args.output), args.iterations):
        return 1

    if not compare_modes(Path(args.output) / RUNS["DivDR"]):
        return 1
    print("Writing the report ...", flush=True)
    from divdr.visualization.report import report_from_runs

    report = report_from_runs(
        Path(args.output) / "report.html",
        {name: Path(args.output) / folder for name, folder in RUNS.items()},
        title="Diversified Dynamic Routing on drawn street scenes",
        data_root=args.data,
        notes=[
            "The scenes are drawn and the networks small; the numbers show that everything works "
            "together, not what the method reaches on Cityscapes."
        ],
        sheet=Path(args.output) / "demo.jpg",
    )
    print(f"Done in {(time.time() - started) / 60:.1f} minutes. The report: {report.resolve()}")
    return 0


def train(output: Path, iterations: int | None) -> bool:
    """Train the runs that are not finished, side by side; False if one fails."""
    threads = max(1, (os.cpu_count() or 1) // len(RUNS))
    running = {}
    for name, folder in RUNS.items():
        run = output / folder
        if (run / "model_final.pth").is_file() and (run / "inference" / "results.json").is_file():
            print(f"{name} is trained and evaluated already ({run})")
            continue
        run.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-W", "ignore", "tools/train_net.py", "--resume"]
        command += ["--config-file", f"configs/demo/{folder}.yaml", "OUTPUT_DIR", str(run)]
        if iterations:
            command += ["SOLVER.MAX_ITER", str(iterations)]
        log = (run / "console.txt").open("w")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        running[name] = (run, process)
    if running:
        from divdr.studies import follow

        print(f"Training {' and '.join(running)}; the logs are {output}/*/console.txt", flush=True)
        follow(running)
    failed = [(n, run) for n, (run, process) in running.items() if process.wait()]
    for name, run in failed:
        tail = (run / "console.txt").read_text().strip().splitlines()[-15:]
        fail(f"training {name} failed; the end of {run}/console.txt:\n" + "\n".join(tail))
    return not failed


def compare_modes(run: Path) -> bool:
    """Make static experts of a run and compare its execution modes, unless that is done."""
    table = run / "experts" / "experts.json"
    if table.is_file() and table.stat().st_mtime > (run / "model_final.pth").stat().st_mtime:
        return True
    print("Making static experts of DivDR and comparing execution modes ...", flush=True)
    command = [sys.executable, "-W", "ignore", "tools/export_experts.py", "--format"]
    command += ["--config-file", str(run / "config.yaml"), "--output", str(table.parent)]
    command += ["--weights", str(run / "model_final.pth")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        fail("static experts failed:\n" + "\n".join(done.stderr.strip().splitlines()[-15:]))
    return not done.returncode


def fail(message: str) -> int:
    """Tell what went wrong; the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
