"""A predictor as a folder to hand on, and on the Hugging Face Hub.

The folder holds ``config.yaml``, ``model.safetensors``, a model card (``README.md``) and
``config.json``, by which the Hub counts downloads; and the files that the configuration names as
its route and its static experts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from .. import __version__
from ..checkpoint import (
    read_weights,
    weight_file,
    without_training,
    write_checkpoint,
    write_text_atomically,
)
from ..errors import CheckpointError, ConfigError, DivdrError
from ..modeling import DialSetting
from ..packaged_configs import find_file
from .about import KEY, About
from .execution_modes import accuracy_of
from .predictor import Overrides, Predictor, pairs
from .setup import load_config

try:
    from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
except ImportError:
    raise DivdrError(
        "predictors in folders to hand on need the package huggingface_hub: pip install "
        "huggingface_hub safetensors"
    ) from None

_WEIGHTS, _CONFIG, _RECORD = "model.safetensors", "config.yaml", "config.json"
# Settings of MODEL.ROUTING that name files which a model needs, and what these are called here.
_FILES = {"ROUTE": "route.json", "STATIC_EXPERTS": "static_experts.pth"}
# The Hub's words for tasks.
_PIPELINES = {
    "semantic segmentation": "image-segmentation",
    "object detection": "object-detection",
    "image classification": "image-classification",
}
_KINDS = ("stuff_classes", "thing_classes", "classes")
_MANY = 40  # classes that a card lists; of more it tells the number


class HubPredictor(Predictor, ModelHubMixin, library_name="divdr", tags=["divdr", "detectron2"]):
    """A ``Predictor`` with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    ``from_pretrained(name)`` takes such a folder, or a repository of the Hub, and further
    ``overrides``, settings on top of the configuration's, and ``task``, see ``Predictor``. What is
    saved is the checkpoint file that was loaded, without what only training needs, at the
    position of its dial.

    Raises:
        DivdrError: of this module: the package huggingface_hub is missing.
    """

    # Not None: else the mixin would write all arguments down, the whole configuration among them.
    _hub_mixin_config: Any = {}  # noqa: RUF012

    def __init__(self, cfg: CfgNode, task: int | None = None) -> None:
        super().__init__(cfg, task)
        self._task = task

    def turn_dial(self, position: float) -> DialSetting:
        """See ``Predictor``; the position is saved too."""
        setting = super().turn_dial(position)
        self.cfg.defrost()
        self.cfg.MODEL.ROUTING.DIAL = float(position)
        return setting

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> HubPredictor:
        """The predictor of a folder or of a repository of the Hub; see the class and the mixin.

        Raises:
            CheckpointError: there is neither, or it holds no such predictor.
            ConfigError: a setting cannot be.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (HfHubHTTPError, OSError, ValueError) as error:
            if isinstance(error, DivdrError):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{pretrained_model_name_or_path} is no folder here, and it cannot be had from the "
                f"Hub ({reason})"
            ) from None

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        overrides: Overrides = (),
        task: int | None = None,
        **others: Any,
    ) -> HubPredictor:
        if others:
            raise ConfigError(f"from_pretrained knows no {', '.join(sorted(others))}")
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=[_WEIGHTS, _CONFIG, _RECORD, *_FILES.values()],
                )
            )
        for name in (_CONFIG, _WEIGHTS):
            if not (folder / name).is_file():
                raise CheckpointError(f"{model_id} is no predictor of divdr: it holds no {name}")
        own = ["MODEL.WEIGHTS", str(folder / _WEIGHTS)]
        for setting, name in _FILES.items():
            if (folder / name).is_file():
                own += [f"MODEL.ROUTING.{setting}", str(folder / name)]
        return cls(load_config(str(folder / _CONFIG), [*own, *pairs(overrides)]), task)

    def _save_pretrained(self, save_directory: Path) -> None:
        folder, cfg = save_directory, self.cfg.clone()
        cfg.defrost()
        weights = weight_file(cfg.MODEL.WEIGHTS)
        content = read_weights(weights)
        if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
            content = without_training(content)
        else:  # weights of another program
            content = {"model": self.model.state_dict()}
        # Paths of this machine say nothing on others.
        cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = _WEIGHTS, "output"
        for setting, name in _FILES.items():
            file = find_file(cfg.MODEL.ROUTING[setting])
            if file:
                if not (folder / name).exists() or not os.path.samefile(file, folder / name):
                    shutil.copyfile(file, folder / name)
                cfg.MODEL.ROUTING[setting] = name
            else:
                (folder / name).unlink(missing_ok=True)
        write_checkpoint(folder / _WEIGHTS, content)
        write_text_atomically(folder / _CONFIG, cfg.dump())
        record = {"library": "divdr", "version": __version__, "task": self._task}
        write_text_atomically(folder / _RECORD, json.dumps(record, indent=2) + "\n")
        # The mixin leaves a card alone that is there, as people edit them.

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card, ``README.md``: what the model finds, by which classes, and at what cost."""
        content = read_weights(weight_file(self.cfg.MODEL.WEIGHTS))
        found = About.from_dict(content.get(KEY)) if isinstance(content, Mapping) else None
        about = found or About.of(self.cfg)
        data = self._hub_mixin_info.model_card_data
        head = [f"library_name: {data.library_name}"]
        if about.task in _PIPELINES:
            head.append(f"pipeline_tag: {_PIPELINES[about.task]}")
        head += ["tags:", *(f"- {tag}" for tag in data.tags or ())]
        lines = ["---", *head, "---", "", f"# A divdr model for {about.task}", ""]
        routing = self.cfg.MODEL.ROUTING
        if self.routing is not None:
            space = self.routing.backbone.space
            lines.append(
                "A Dynamic Routing backbone, in which every image decides which of "
                f"{space.num_cells} cells run for it: {space.num_layers} layers, "
                f"{routing.CHANNELS} channels at stride 4."
            )
            if self.routing.experts is not None and self.routing.experts.ready:
                count = self.routing.experts.num_experts
                lines[-1] += f" Its routes are clustered into {count} local experts (DivDR)."
            lines.append("")
        if about.dataset:
            lines += [f"Trained on the data set `{about.dataset}`.", ""]
        lines += [*_classes(about), *self._figures()]
        lines += [
            "## Use",
            "",
            "```python",
            "import divdr",
            "",
            'predictor = divdr.HubPredictor.from_pretrained("FOLDER")  # or the repository\'s name',
            'output = predictor("PHOTO.jpg")  # or an array (H, W, 3) of RGB',
            "```",
            "",
        ]
        return ModelCard("\n".join(lines))

    def _figures(self) -> list[str]:
        """A section on accuracy and 10⁹ multiply-adds, as far as the run and its dial tell."""
        lines = []
        file = weight_file(self.cfg.MODEL.WEIGHTS).parent / "inference" / "results.json"
        for dataset, results in _read_results(file).items():
            parts = [f"{value:.2f} % {name}" for name, value in accuracy_of(results).items()]
            gflops = results.get("routing", {}).get("real_gflops")
            if gflops is not None:
                parts.append(f"{gflops:.4g} GFLOPs an image (multiply-adds of the backbone)")
            if parts:
                lines.append(f"On `{dataset}`, in the run's last evaluation: {', '.join(parts)}.")
        dial = None if self.routing is None else self.routing.dial
        if dial is not None:
            cheap, dear = dial.settings[0], dial.settings[-1]
            lines.append(
                f"`predictor.turn_dial(position)` sets the cost, from 0 ({cheap.gflops:.4g} GFLOPs "
                f"in the mean of the images that it was calibrated on) to 1 ({dear.gflops:.4g})."
            )
        return ["## Figures", "", *(text for line in lines for text in (line, ""))] * bool(lines)


def _read_results(file: Path) -> dict[str, dict[str, Any]]:
    """Results of an evaluation by data set; none where the file is another's, or missing."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _classes(about: About) -> list[str]:
    """A section on each task's classes."""
    lines = []
    for metadata in (about.metadata, *about.tasks):
        for kind in _KINDS:
            names = metadata.get(kind)
            if not names or (
                about.kinds and metadata is about.metadata and kind not in about.kinds
            ):
                continue
            words = ", ".join(str(name) for name in names)
            if len(names) > _MANY:
                words = f"{len(names)}, which the checkpoint names"
            lines += ["## Classes", "", words, ""]
    return lines
