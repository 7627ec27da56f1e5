#!/usr/bin/env python
"""Divides classes among branches by a trained single network or detector (DynK-Hydra, Algorithm 2).

    python tools/partition_classes.py --config-file configs/classification/digits_single.yaml \
        --branches 5 --output partition.json MODEL.WEIGHTS output/digits/single/model_final.pth

A Hydra takes the file by MODEL.CLASSIFIER.HYDRA.PARTITION file and PARTITION_FILE, a box head by
MODEL.ROI_BOX_HEAD.HYDRA.PARTITION file and PARTITION_FILE.
"""

import argparse

import _environment  # noqa: F401

from divdr.engine import load_config, report_errors
from divdr.engine.classifier_analysis import partition_by_model
from divdr.engine.setup import at_least


@report_errors
def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--branches", type=at_least(1), required=True, metavar="NB")
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    options = parser.parse_args()
    cfg = load_config(options.config_file, options.overrides)
    partition = partition_by_model(cfg, options.branches, options.output)
    print(f"{options.output}: branches of the classes {partition.tolist()}")


if __name__ == "__main__":
    main()
