"""Packaging of divdr. Detectron2 itself is no declared dependency: README.md says how to get it."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

EXPORT = ["onnx", "onnxscript", "onnxruntime"]
REPORT = ["matplotlib", "jinja2"]
TIMM = ["timm"]
TRANSLATION = ["sentencepiece", "sacrebleu"]
HUB = ["safetensors", "huggingface_hub"]
COCO = ["faster-coco-eval"]
NOTEBOOK = ["nbclient", "ipykernel"]
DETECTRON2 = [
    "torchvision",
    "fvcore",
    "iopath",
    "pycocotools",
    "cityscapesscripts",
    "numpy<2.3",  # cityscapesscripts fails with later ones
    "shapely",  # Detectron2 reads the polygons of Cityscapes instances with it
    "Pillow",
    "opencv-python-headless",
    "tabulate",
    "tensorboard",
    "tqdm",
    *REPORT,
    # What Detectron2 itself imports, so that it works beside divdr without its own metadata.
    "yacs",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    "cloudpickle",
    "termcolor",
    "packaging",
    "black",
]

setup(
    name="divdr",
    version="0.1.0",
    description="Diversified Dynamic Routing for dense prediction, a Detectron2 extension",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["divdr", "divdr.*"]),
    package_data={"divdr": ["py.typed", "visualization/*.j2"]},
    python_requires=">=3.10,<3.14",
    # The method: rooms routing, experts, inference, moe, checkpoint and translation.
    install_requires=["torch>=2.4,!=2.13.0", "numpy", "scipy>=1.10", "scikit-learn>=1.2"],
    extras_require={
        # What Detectron2, its evaluators and the rooms that stand on it need, but itself.
        "detectron2": DETECTRON2,
        # Pictures and the report.
        "report": REPORT,
        # Static experts as ONNX files (tools/export_experts.py).
        "export": EXPORT,
        # Classifiers of timm by name (docs/guide/classification.md).
        "timm": TIMM,
        # Translation by several decoders (docs/guide/translation.md).
        "translation": TRANSLATION,
        # Weights as safetensors files, from and to the Hugging Face Hub.
        "hub": HUB,
        # The compiled COCO evaluation.
        "coco": COCO,
        # Too large for the tests' lock: tests of these skip where they are missing.
        "wandb": ["wandb"],
        "openvino": ["openvino"],
        "gradio": ["gradio"],
        "test": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            *DETECTRON2,
            *EXPORT,
            *TIMM,
            *TRANSLATION,
            *HUB,
            *COCO,
            *NOTEBOOK,
        ],
        "dev": ["ruff", "mypy"],
    },
)
