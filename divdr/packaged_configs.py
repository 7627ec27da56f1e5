"""The configurations that divdr brings along: found by name, listed, copied with what they need.

They lie in ``configs`` of the repository, and in ``divdr/configs`` of an installed package. A name
is a path below that folder without its ending: "divdr_cityscapes", "demo/divdr". Beside them, in
``weights``, lie some trained models, each a folder of its name. Nothing here imports torch or
Detectron2.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

from .errors import ConfigError, DataError

_HERE = Path(__file__).resolve().parent
_STUDIES = re.compile(r"studies/(base/)?[^/]+")


def configs_folder() -> Path:
    """The folder of all configurations.

    Raises:
        ConfigError: this installation has none.
    """
    for place in (_HERE / "configs", _HERE.parent / "configs"):
        if (place / "base_cityscapes.yaml").is_file():
            return place
    raise ConfigError(f"{_HERE} was installed without its configurations")


DEFAULT_WEIGHTS = "demo_divdr"
"""Name of the trained model that predicts where none is named."""


def packaged_weights() -> dict[str, Path]:
    """Folders of the trained models that divdr brings along, by name."""
    folder = configs_folder().with_name("weights")
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/model_final.pth"))}


def find_weights(name: str | Path) -> Path | str:
    """The checkpoint, or folder of one, that a user means by a path or a packaged model's name."""
    if Path(name).exists():
        return name if isinstance(name, Path) else str(name)
    return packaged_weights().get(os.fspath(name), os.fspath(name))


def find_file(name: str) -> str:
    """The file that a setting means, "~" and "$" filled in.

    Where there is none of that path, it is one that divdr brings along below ``configs`` or
    ``weights``, such as "configs/studies/controls/searched_0.5.json".
    """
    text = os.path.expandvars(os.path.expanduser(name))
    if text.startswith(("configs/", "weights/")) and not os.path.exists(text):
        own = configs_folder().parent / text
        return str(own) if own.is_file() else text
    return text


def packaged_configs(pattern: str = "*") -> dict[str, Path]:
    """Files of all packaged configurations by name, those of models, studies and LazyConfigs.

    Args:
        pattern: that names must match, as in a shell; "*" matches "/" too.
    """
    folder = configs_folder()
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".yaml", ".py"))
    named = {p.relative_to(folder).with_suffix("").as_posix(): p for p in files}
    return {
        name: path
        for name, path in sorted(named.items(), key=lambda entry: (entry[0].count("/"), entry[0]))
        if fnmatch(name, pattern)
    }


def list_models(pattern: str = "*") -> list[str]:
    """Names of the packaged configurations that make a model, for ``create_model``.

    Files that others complete ("base…"), studies and LazyConfigs are none of them.

    Args:
        pattern: that names must match, as in a shell: ``"divdr_*"``, ``"classification/*"``.
    """
    return [
        name
        for name, path in packaged_configs(pattern).items()
        if path.suffix == ".yaml"
        and not path.stem.startswith("base")
        and not _STUDIES.fullmatch(name)
    ]


def find_config(name: str | Path) -> Path | str:
    """The file that a user means by a path or by the name of a packaged configuration.

    A file of that path comes first. "divdr_cityscapes", "divdr_cityscapes.yaml" and
    "configs/divdr_cityscapes.yaml" then all name the packaged file; its folder may be left out
    where no other is called the same.

    Raises:
        ConfigError: there is neither, or several packaged ones could be meant.
    """
    text = os.fspath(name)
    path = Path(text).expanduser()
    if "://" in text or path.is_file():
        return text
    wanted = Path(text).as_posix().removeprefix("./").removeprefix("configs/")
    wanted = re.sub(r"\.(yaml|py)$", "", wanted)
    known = packaged_configs()
    if wanted in known:
        return known[wanted]
    if path.exists():  # a folder
        return text
    same = [other for other in known if other.endswith(f"/{wanted}")]
    if len(same) == 1:
        return known[same[0]]
    if same:
        raise ConfigError(
            f"configuration file {text} does not exist, and divdr has several of that name: "
            + ", ".join(same)
        )
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}? `divdr configs` lists all" if close else ""
    raise ConfigError(f"configuration file {text} does not exist{hint}")


def config_beside(weights: str | Path) -> Path:
    """The ``config.yaml`` that training wrote into the folder of its checkpoints.

    Args:
        weights: a checkpoint, or the folder of a run.

    Raises:
        ConfigError: there is none.
    """
    place = Path(weights)
    folder = place if place.is_dir() else place.parent
    path = folder / "config.yaml"
    if path.is_file():
        return path
    if not place.exists():
        raise ConfigError(f"weights {weights} do not exist")
    raise ConfigError(
        f"{folder} holds no config.yaml beside the weights: name the model's configuration by "
        "--config-file"
    )


def description(path: Path) -> str:
    """What a configuration is: the first sentence of its first comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".py":
        text = lines[0].strip('"') if lines else ""
    else:
        block: list[str] = []
        for line in lines:
            if not line.startswith("#"):
                break
            block.append(line.lstrip("# ").rstrip())
        text = " ".join(block)
    return re.split(r"(?<=[.;?]) (?=[A-ZÀ-Ý])", text, maxsplit=1)[0].rstrip(".")


def needed_files(path: Path) -> list[Path]:
    """A configuration and the files that it needs: its ``_BASE_``, theirs, and so on.

    A LazyConfig comes with the others of its folder, from which it imports.
    """
    import yaml

    if path.suffix == ".py":
        return [path, *(p for p in sorted(path.parent.glob("*.py")) if p != path)]
    found = [path]
    bases = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        for file in needed_files(Path(os.path.normpath(path.parent / base))):
            if file not in found:
                found.append(file)
    return found


def copy_config(name: str, folder: str | Path) -> list[Path]:
    """Copy a packaged configuration, with the files that it needs, to change it.

    Files keep their places to each other, so that ``_BASE_`` finds them.

    Args:
        name: see :func:`find_config`.
        folder: takes them; it is made.

    Returns:
        The copies, that of the configuration first.

    Raises:
        ConfigError: there is no such packaged configuration.
        DataError: another file of the same name lies in the folder; nothing is copied then.
    """
    path = Path(find_config(name)).resolve()
    root = configs_folder().resolve()
    if not path.is_relative_to(root):
        path = root / f"{name}.yaml"  # a file of the current folder stands before it
        if not path.is_file():
            raise ConfigError(
                f"{name} is none of divdr's configurations; `divdr configs` lists all"
            )
    needed = needed_files(path)
    common = Path(os.path.commonpath([file.parent for file in needed]))
    copies = {file: Path(folder) / file.relative_to(common) for file in needed}
    for file, copy in copies.items():
        if copy.exists() and copy.read_bytes() != file.read_bytes():
            raise DataError(f"{copy} exists already, and is another file; nothing was copied")
    for file, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return list(copies.values())
