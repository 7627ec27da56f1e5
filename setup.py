"""Packaging of divdr. Detectron2 itself is no declared dependency: README.md says how to get it."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent

EXPORT = ["onnx", "onnxscript", "onnxruntime"]
REPORT = ["matplotlib", "jinja2"]
TIMM = ["timm"]
WANDB = ["wandb"]
TRANSLATION = ["sentencepiece", "sacrebleu"]
HUB = ["safetensors", "huggingface_hub"]
DETECTRON2 = [
    "torchvision",
    "fvcore",
    "iopath",
    "pycocotools",
    "cityscapesscripts",
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


class BuildWithConfigs(build_py):
    """Puts ``configs`` into the package, as ``divdr/configs``; an editable one finds it beside."""

    def _configs(self) -> dict[str, str]:
        """Files of the repository, and where they go."""
        files = sorted(
            path
            for folder in ("configs", "weights")
            for path in (HERE / folder).rglob("*")
            if path.suffix in (".yaml", ".json", ".py", ".pth")
        )
        names = [file.relative_to(HERE).as_posix() for file in files]
        return {name: f"{self.build_lib}/divdr/{name}" for name in names}

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name, target in self._configs().items():
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(HERE / name, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        own = [] if self.editable_mode else list(self._configs().values())
        return [*super().get_outputs(include_bytecode), *own]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *self._configs()]


setup(
    name="divdr",
    version="0.1.0",
    description="Diversified Dynamic Routing for dense prediction, a Detectron2 extension",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["divdr", "divdr.*"]),
    package_data={"divdr": ["py.typed", "visualization/*.j2"]},
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["divdr = divdr.verbs:main"]},
    python_requires=">=3.10,<3.14",
    # The method: rooms routing, experts, inference, moe, checkpoint and translation.
    install_requires=["torch>=2.4,!=2.13.0", "numpy", "scipy>=1.10", "scikit-learn>=1.3"],
    extras_require={
        # What Detectron2, its evaluators and the rooms that stand on it need, but itself.
        "detectron2": DETECTRON2,
        # Pictures and the report.
        "report": REPORT,
        # Static experts as ONNX files (tools/export_experts.py).
        "export": EXPORT,
        # Classifiers of timm by name (docs/guide/classification.md).
        "timm": TIMM,
        # Figures of training at Weights & Biases (docs/guide/train.md).
        "wandb": WANDB,
        # Translation by several decoders (docs/guide/translation.md).
        "translation": TRANSLATION,
        # Weights as safetensors files, from and to the Hugging Face Hub.
        "hub": HUB,
        # Evaluation of COCO by compiled code, where Detectron2 has none (docs/guide/detect.md).
        "fast-eval": ["faster-coco-eval"],
        # Too large for the tests' lock: tests of these skip where they are missing.
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
        ],
        "dev": ["ruff", "mypy"],
    },
)
