#!/usr/bin/env python
"""Train and evaluate a model from a config file, with Detectron2's command line.

    python tools/train_net.py --config-file configs/divdr_cityscapes.yaml --num-gpus 8
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth

Under ``torchrun`` each process is one of the run's; ``--num-gpus`` is then left out.
"""

import _environment  # noqa: F401
from detectron2.engine import default_argument_parser

from divdr.engine.launch import run

if __name__ == "__main__":
    run(default_argument_parser().parse_args())
