"""The package as users and their environments meet it."""

import re
import subprocess
import sys


def run(code: str, repository) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_detectron2_one_sentence_says_how_to_get_it(repository):
    done = run("import sys; sys.modules['detectron2'] = None; import divdr", repository)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: divdr needs Detectron2")
    assert "make setup" in last


def test_importing_registers_backbone_and_head(repository):
    code = """
import divdr
from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY
print(BACKBONE_REGISTRY.get("DynamicRouting").__name__)
print(SEM_SEG_HEADS_REGISTRY.get("DynamicRoutingDecoder").__name__)
"""
    done = run(code, repository)
    assert done.stdout.split() == ["DynamicRouting", "DynamicRoutingDecoder"], done.stderr


def test_dependencies_leave_detectron2_to_the_user(repository):
    text = (repository / "setup.py").read_text()
    named = re.findall(r'^ +"([\w-]+)', text.split("install_requires=[")[1], re.MULTILINE)
    assert {"torch", "torchvision", "fvcore", "pycocotools", "scikit-learn"} <= set(named)
    assert not [name for name in named if "detectron" in name]


def test_imports_inside_the_package_are_relative(repository):
    for file in (repository / "divdr").rglob("*.py"):
        for line in file.read_text().splitlines():
            assert not re.match(r" *(from|import) divdr\b", line), f"{file}: {line}"


def test_a_module_name_stands_once(repository):
    names = [f.stem for f in (repository / "divdr").rglob("*.py") if f.name != "__init__.py"]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_rooms_import_downwards_only(repository):
    rooms = ["routing", "experts", "inference", "moe", "modeling", "data"]
    rooms += ["evaluation", "engine", "visualization", "checkpoint", "benchmark"]
    may_import = {
        "routing": set(),
        "experts": {"routing"},
        "inference": {"routing", "experts"},
        "moe": {"routing", "experts"},
        "modeling": {"routing", "experts", "inference", "moe", "checkpoint"},
        "data": set(),
        "evaluation": {"routing", "experts", "moe", "modeling"},
        "engine": set(rooms) - {"visualization"},
        "visualization": set(rooms),
        "studies": set(rooms),
        "checkpoint": set(),
        "benchmark": {"routing", "experts", "inference"},
    }
    for room, allowed in may_import.items():
        for file in (repository / "divdr" / room).rglob("*.py"):
            depth = len(file.relative_to(repository / "divdr").parts)
            for line in file.read_text().splitlines():
                found = re.match(r" *from (?:divdr\.|(\.+))(\w+)", line)
                if found and (found[1] is None or len(found[1]) == depth):
                    target = found[2]
                    if target in may_import and target != room:
                        assert target in allowed, f"{file} imports {target}"
