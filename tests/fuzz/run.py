"""Many files that nobody would write, for every reader.

    python tests/fuzz/run.py --examples 2000

Prints, for each kind of file, how many were used, how many were reported, and how long it took; a
file that is neither ends it with the smallest such file.
"""

import argparse
import contextlib
import io
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hypothesis import HealthCheck, given, settings

from fuzz import annotations, checkpoints, configs, labels


def run(module, count: int) -> Counter:
    """How many examples were used (True) and reported (False)."""
    found: Counter = Counter()

    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(example=module.examples())
    def check(example):
        with contextlib.redirect_stdout(io.StringIO()):
            found[module.check_one(example, folder)] += 1

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check()
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=2000, help="of each kind of file")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    for module in (annotations, labels, configs, checkpoints):
        started = time.monotonic()
        found = run(module, args.examples)
        name = module.__name__.rpartition(".")[2]
        seconds = time.monotonic() - started
        print(f"{name}: {found[True]} used, {found[False]} reported, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
