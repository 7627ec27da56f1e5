#!/usr/bin/env python
"""Looks at a trained classifier, without training anew.

    python tools/analyse_classifier.py --config-file ... --thresholds 0,0.02,0.08 MODEL.WEIGHTS ...
    python tools/analyse_classifier.py --config-file ... --line 0,3 MODEL.WEIGHTS ...
    python tools/analyse_classifier.py --config-file ... --latency 1,64 MODEL.WEIGHTS ...
    python tools/analyse_classifier.py --config-file ... --selection MODEL.WEIGHTS ...
    python tools/analyse_classifier.py --config-file ... --choices FILE.png MODEL.WEIGHTS ...
    python tools/analyse_classifier.py --config-file ... --delegator FILE.png MODEL.WEIGHTS ...

The first prints accuracy, mean branches and FLOPs on the test set at every τ (the gater's, or that
of early termination), the second the loss along the line between two branches' weights of a Hydra,
the third milliseconds per image for batches of those sizes, with the chosen branches or experts by
groups and with all of them, the fourth per cent of each class's images for which each expert ran.
The fifth prints, and draws into a file, which experts the images of each class get, in a routing
layer or of any other system; the sixth, which expert a Collaboration of Experts selects by the
delegator's probability of the true class, and by its prediction (Figures 7 and 8).
"""

import argparse

import _environment  # noqa: F401

from divdr.engine import load_config, report_errors
from divdr.engine.classifier_analysis import (
    curve_table,
    latency_table,
    line_table,
    selection_table,
)
from divdr.engine.setup import at_least, listed
from divdr.visualization import expert_choices, expert_choices_figure, expert_selection


@report_errors
def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--thresholds", type=listed(at_least(0, float)), default=[], metavar="TAU,TAU,..."
    )
    parser.add_argument("--line", type=listed(at_least(0), 2), metavar="BRANCH,BRANCH")
    parser.add_argument("--steps", type=at_least(2), default=11, help="places on the line")
    parser.add_argument("--latency", type=listed(at_least(1)), default=[], metavar="SIZE,SIZE,...")
    parser.add_argument(
        "--batches", type=at_least(1), default=40, help="batches a size, if there are"
    )
    parser.add_argument(
        "--rounds", type=at_least(1), default=10, help="how often each batch is timed"
    )
    parser.add_argument(
        "--selection", action="store_true", help="which expert runs for which class"
    )
    parser.add_argument("--choices", default="", metavar="FILE", help="picture of experts' classes")
    parser.add_argument(
        "--delegator", default="", metavar="FILE", help="picture of what a delegator selects"
    )
    parser.add_argument(
        "--decision", type=int, default=-1, help="which, from 0; the last if not given"
    )
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    options = parser.parse_args()
    cfg = load_config(options.config_file, options.overrides)
    if options.thresholds:
        print(curve_table(cfg, options.thresholds))
    if options.line:
        print(line_table(cfg, *options.line, options.steps))
    if options.selection:
        print(selection_table(cfg))
    if options.latency:
        print(latency_table(cfg, options.latency, options.batches, options.rounds))
    if options.choices:
        choices = expert_choices(cfg, options.decision)
        expert_choices_figure(choices).savefig(options.choices, dpi=100)
        print(choices.table())
    if options.delegator:
        selection = expert_selection(cfg)
        selection.figure().savefig(options.delegator, dpi=100)
        print(selection.table())


if __name__ == "__main__":
    main()
