"""Packaging of divdr. Detectron2 is no declared dependency: README.md says how to get it."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="divdr",
    version="0.1.0",
    description="Diversified Dynamic Routing for dense prediction, a Detectron2 extension",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["divdr", "divdr.*"]),
    package_data={"divdr": ["py.typed", "visualization/*.j2"]},
    python_requires=">=3.10,<3.13",
    install_requires=[
        "torch>=2.4,!=2.13.0",
        "torchvision",
        "fvcore",
        "iopath",
        "pycocotools",
        "cityscapesscripts",
        "shapely",  # Detectron2 reads the polygons of Cityscapes instances with it
        "scikit-learn>=1.2",
        "scipy",
        "numpy<2.3",  # cityscapesscripts fails with later ones
        "Pillow",
        "opencv-python-headless",
        "matplotlib",
        "jinja2",
        "tabulate",
        "tensorboard",
        "tqdm",
        # What Detectron2 itself imports, so that it works beside divdr without its own metadata.
        "yacs",
        "omegaconf>=2.1",
        "hydra-core>=1.1",
        "cloudpickle",
        "termcolor",
        "packaging",
        "black",
    ],
    extras_require={
        # Static experts as ONNX files (tools/export_experts.py).
        "export": ["onnx", "onnxscript", "onnxruntime"],
        # Classifiers of timm by name (docs/classification.md).
        "timm": ["timm"],
        "test": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "onnx",
            "onnxscript",
            "onnxruntime",
            "timm",
        ],
        "dev": ["ruff", "mypy"],
    },
)
