"""The package as users and their environments meet it."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

# What works without Detectron2, and what stands on it.
METHOD = {"routing", "experts", "inference", "moe", "checkpoint", "errors", "settings"}
METHOD |= {"translation", "command_line", "known_warnings"}
UPPER_STOREY = {"modeling", "data", "evaluation", "engine", "visualization", "studies"}
UPPER_STOREY |= {"benchmark", "config", "image_files", "image_keys"}
# What is there before either is imported.
AT_ONCE = {"command_line", "errors", "known_warnings", "packaged_configs", "registration", "verbs"}


def run(code: str, repository) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )


# Whatever of Detectron2 and of its needs is imported fails, as where nobody installed it.
WITHOUT_DETECTRON2 = """
import sys
for name in ("detectron2", "fvcore", "iopath", "yacs", "pycocotools", "torchvision", "cv2"):
    sys.modules[name] = None
"""

METHOD_STEP = """
import torch
import divdr

torch.manual_seed(0)
space = divdr.RoutingSpace.build(3, 3)
network = divdr.DynamicRoutingNetwork(space, channels=4)
experts = divdr.LocalExperts(2, space.activation_size)
optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
images = torch.randn(4, 3, 64, 64)
maps, routing = network(images)
experts.bank.update([str(i) for i in range(4)], routing.activations.detach(), step=0)
assert experts.cluster(step=0).sizes
loss = maps[0].square().mean()
loss = loss + divdr.routing.budget_loss(routing, 0.1).mean()
loss = loss + experts.loss(routing.activations).mean()
loss.backward()
before = [parameter.clone() for parameter in network.parameters()]
optimiser.step()
pairs = zip(before, network.parameters(), strict=True)
assert any(not torch.equal(old, new) for old, new in pairs)

found = divdr.kmeans(experts.bank.rows, 2)
pulled = divdr.clustering_loss(routing.activations.detach(), found.centres, sigma2=1.0)
assert pulled.shape == (4,)

network.eval()
with torch.no_grad():
    expected, _ = network(images)
    planned, record = divdr.InferencePlan(network)(images)
torch.testing.assert_close(planned[0], expected[0], atol=1e-4, rtol=1e-3)

moe = divdr.moe
branches = [torch.nn.Conv2d(3, 8, 3, padding=1) for _ in range(2)]
gater = moe.PooledGate(torch.nn.Conv2d(3, 8, 3), 8, 2)
hydra = moe.Hydra(torch.nn.Identity(), branches, gater, 8, 4, moe.HydraSettings(top_k=1))
hydra.set_partition(torch.tensor([0, 0, 1, 1]))
sum(hydra.losses(images, torch.arange(4)).values()).backward()
assert hydra.eval()(images).logits.shape == (4, 4)
print("done")
"""


def test_the_method_works_without_detectron2(repository):
    done = run(WITHOUT_DETECTRON2 + METHOD_STEP, repository)
    assert done.stdout.split() == ["done"], done.stderr


def test_what_needs_detectron2_says_in_one_sentence_how_to_get_it(repository):
    statements = [f"import divdr.{part}" for part in sorted(UPPER_STOREY)]
    statements += ["import divdr.modeling.backbone", "from divdr import modeling"]
    statements += ["from divdr import attach_routing", "divdr.get_divdr_config"]
    statements += ["divdr.with_routing", "from divdr.engine import main"]
    code = f"""
import divdr
for statement in {statements}:
    try:
        exec(statement)
    except ImportError as error:
        print(error)
"""
    done = run(WITHOUT_DETECTRON2 + code, repository)
    said = done.stdout.splitlines()
    assert len(said) == len(statements), done.stderr
    for statement, sentence in zip(statements, said, strict=True):
        assert re.match(r"divdr\.\w+ needs Detectron2, which pip does not", sentence), statement
        assert "make setup" in sentence


def test_without_detectron2_the_command_helps_and_says_what_is_missing(repository):
    code = """
from divdr import verbs
assert verbs.main(["configs", "demo/dr"]) == 0
verbs.main(["train", "--config-file", "demo/dr"])
"""
    done = run(WITHOUT_DETECTRON2 + code, repository)
    assert done.returncode == 2
    assert done.stdout.startswith("demo/dr  DR-A in small")
    assert re.match(r"error: divdr\.engine needs Detectron2, which pip does not", done.stderr)


def test_without_detectron2_names_that_nobody_knows_are_plain_errors(repository):
    code = """
import divdr
from divdr import *
assert not hasattr(divdr, "nobody")
try:
    import divdr.nobody
except ModuleNotFoundError as error:
    print(error.name)
"""
    done = run(WITHOUT_DETECTRON2 + code, repository)
    assert done.stdout.split() == ["divdr.nobody"], done.stderr


def test_every_part_stands_in_one_storey(repository):
    package = repository / "divdr"
    parts = {path.parent.name for path in package.glob("*/__init__.py")}
    parts |= {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    assert parts - METHOD - AT_ONCE == UPPER_STOREY


def test_what_answers_a_command_line_imports_nothing_large(repository):
    package = repository / "divdr"
    files = [*package.glob("*.py"), *(package / "verbs").glob("*.py")]
    files = [f for f in files if f.parent.name == "verbs" or f.stem in AT_ONCE | {"__main__"}]
    assert len(files) >= 9
    for file in files:
        for node in ast.parse(file.read_text()).body:  # not those within functions
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= sys.stdlib_module_names, file
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] in sys.stdlib_module_names, file
            elif isinstance(node, ast.ImportFrom):
                names = [node.module] if node.module else [alias.name for alias in node.names]
                within = file.parent.name == "verbs" and node.level == 1
                assert within or set(names) <= AT_ONCE, f"{file}: {ast.unparse(node)}"


def test_the_method_imports_nothing_that_needs_detectron2(repository):
    plain = {"torch", "numpy", "scipy", "sklearn", "divdr"} | sys.stdlib_module_names
    # Where a user asks for them by name.
    optional = {"torchvision", "timm", "onnxruntime", "onnxscript", "sentencepiece", "sacrebleu"}
    optional |= {"safetensors"}
    package = repository / "divdr"
    for part in METHOD:
        for file in [*(package / part).rglob("*.py"), *package.glob(f"{part}.py")]:
            tree = ast.parse(file.read_text())
            at_once = {id(node) for node in tree.body}
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module]
                else:
                    continue
                for name in names:
                    words = name.split(".")
                    allowed = plain if id(node) in at_once else plain | optional
                    assert words[0] in allowed, f"{file} imports {name}"
                    assert words[0] != "divdr" or words[1] in METHOD, f"{file} imports {name}"


def test_importing_registers_backbone_and_head(repository):
    code = """
import divdr
from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY
print(BACKBONE_REGISTRY.get("DynamicRouting").__name__)
print(SEM_SEG_HEADS_REGISTRY.get("DynamicRoutingDecoder").__name__)
"""
    done = run(code, repository)
    assert done.stdout.split() == ["DynamicRouting", "DynamicRoutingDecoder"], done.stderr


REGISTERED = """
from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY
names = "DynamicRouting", "build_dynamic_routing_fpn_backbone"
assert all(name in BACKBONE_REGISTRY for name in names)
assert "DynamicRoutingDecoder" in SEM_SEG_HEADS_REGISTRY
"""
NOT_YET = "assert not {'torch', 'detectron2', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
ORDERS = {
    "divdr first, and again": (
        "import importlib, sys, divdr\nfinders = len(sys.meta_path)\nimportlib.reload(divdr)\n"
        f"assert len(sys.meta_path) == finders\n{NOT_YET}import detectron2.engine\n"
    ),
    "detectron2 first, and again": (
        "import importlib, detectron2.modeling, divdr\nimportlib.reload(detectron2.modeling)\n"
        "importlib.reload(divdr)\n"
    ),
    "by pickle": (
        "import pickle\nfound = pickle.loads(b'cdivdr.modeling.backbone\\nDynamicRouting\\n.')\n"
        "assert found.__name__ == 'DynamicRouting'\n"
    ),
}


@pytest.mark.parametrize("order", ORDERS)
def test_backbones_are_registered_in_any_order(repository, order):
    loader = "print(type(sys.modules['detectron2.modeling'].__spec__.loader).__name__)"
    done = run(f"{ORDERS[order]}{REGISTERED}import sys\n{loader}", repository)
    assert done.stdout.split() == ["SourceFileLoader"], done.stderr


def test_a_spawned_process_has_them_too(repository, tmp_path):
    script = tmp_path / "spawned.py"
    script.write_text(
        "import multiprocessing\nimport divdr\n\ndef work():\n"
        + "".join(f"    {line}\n" for line in REGISTERED.strip().splitlines())
        + "    print('there', flush=True)\n\nif __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=work)\n"
        "    process.start()\n    process.join()\n"
    )
    command = [sys.executable, "-W", "ignore", str(script)]
    path = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(command, env=path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["there"], done.stderr


def test_an_import_that_fails_can_be_made_again(repository):
    code = """
import sys
import divdr
sys.modules["fvcore"] = None
try:
    import detectron2.modeling
except ImportError:
    for name in [n for n in sys.modules if n.split(".")[0] in ("fvcore", "detectron2")]:
        del sys.modules[name]
"""
    done = run(f"{code}{REGISTERED}print('there')", repository)
    assert done.stdout.split() == ["there"], done.stderr


def test_names_are_there_when_they_are_asked_for(repository):
    code = """
import sys
import divdr
for name in divdr.__all__:
    assert name in dir(divdr), name
for room in ("settings", "translation", "config", "studies", "verbs"):
    assert room in dir(divdr), room
assert "torch" not in sys.modules
from divdr import *
assert divdr.kmeans.__module__ == "divdr.experts.kmeans"
assert kmeans is divdr.experts.kmeans is divdr.kmeans
assert Predictor is divdr.engine.Predictor
assert divdr.config.get_divdr_config is get_divdr_config
try:
    divdr.nobody
except AttributeError as error:
    print(error)
"""
    done = run(code, repository)
    assert done.stdout == "module 'divdr' has no attribute 'nobody'\n", done.stderr


def test_a_wheel_holds_the_command_and_all_configurations(repository, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(repository / name, source)
    for name in ("divdr", "configs"):
        shutil.copytree(repository / name, source / name)
    code = "from setuptools import build_meta as b; b.build_wheel('..'); b.build_sdist('..')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    packed = set(wheel.namelist())
    files = [
        p for p in (repository / "configs").rglob("*") if p.suffix in (".yaml", ".json", ".py")
    ]
    assert len(files) > 120
    configs = {p.relative_to(repository).as_posix() for p in files}
    assert {f"divdr/{name}" for name in configs} <= packed
    assert {name for name in packed if not name.startswith("divdr")} == set()
    (entry,) = [name for name in packed if name.endswith("entry_points.txt")]
    assert "divdr = divdr.verbs:main" in wheel.read(entry).decode().splitlines()
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert configs <= inside

    # Unpacked elsewhere it finds them, and not those of a repository.
    wheel.extractall(tmp_path / "installed")
    command = [sys.executable, "-W", "ignore", "-m", "divdr", "configs", "demo"]
    path = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [*command, "--copy", "x"], cwd=tmp_path, env=path, capture_output=True, check=False
    )
    assert done.returncode == 2
    done = subprocess.run(
        command, cwd=tmp_path, env=path, capture_output=True, text=True, check=False
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "demo/base",
        "demo/divdr",
        "demo/dr",
        "demo/single_gate",
    ]
    code = "import divdr.packaged_configs as p; print(p.find_config('configs/demo/dr.yaml'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.strip() == str(tmp_path / "installed/divdr/configs/demo/dr.yaml")


def test_dependencies_leave_detectron2_to_the_user(repository, monkeypatch):
    declared = {}
    monkeypatch.setattr("setuptools.setup", declared.update)
    runpy.run_path(str(repository / "setup.py"))

    def named(requirements):
        return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}

    extras = {name: named(needs) for name, needs in declared["extras_require"].items()}
    assert named(declared["install_requires"]) == {"torch", "numpy", "scipy", "scikit-learn"}
    assert {"torchvision", "fvcore", "pycocotools", "yacs", "matplotlib"} <= extras["detectron2"]
    assert extras["detectron2"] < extras["test"]
    assert extras["report"] == {"matplotlib", "jinja2"}
    assert extras["translation"] == {"sentencepiece", "sacrebleu"} < extras["test"]
    everything = named(declared["install_requires"]).union(*extras.values())
    # Stand-ins are tested in their place, or nothing where they are missing.
    everything -= extras["wandb"] | extras["openvino"] | extras["gradio"] | extras["fast-eval"]
    assert not [name for name in everything if "detectron" in name]
    # `make setup` installs the lists of requirements/, and this package without its needs.
    listed = (repository / "requirements" / "base.in").read_text().splitlines()
    in_base = named(line for line in listed if line and not line.startswith("#"))
    assert everything - {"torch"} <= in_base


def test_imports_inside_the_package_are_relative(repository):
    for file in (repository / "divdr").rglob("*.py"):
        for line in file.read_text().splitlines():
            assert not re.match(r" *(from|import) divdr\b", line), f"{file}: {line}"


def test_a_module_name_stands_once(repository):
    files = (repository / "divdr").rglob("*.py")
    names = [file.stem for file in files if file.stem not in ("__init__", "__main__")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_rooms_import_downwards_only(repository):
    rooms = ["routing", "experts", "inference", "moe", "modeling", "data"]
    rooms += ["evaluation", "engine", "visualization", "checkpoint", "benchmark", "translation"]
    may_import = {
        "routing": set(),
        "experts": {"routing"},
        "inference": {"routing", "experts"},
        "moe": {"routing", "experts", "checkpoint"},
        "modeling": {"routing", "experts", "inference", "moe", "checkpoint"},
        "data": set(),
        "evaluation": {"routing", "experts", "moe", "modeling", "checkpoint"},
        "engine": set(rooms) - {"visualization", "translation"},
        "visualization": set(rooms) - {"translation"},
        "studies": set(rooms) - {"translation"},
        "checkpoint": set(),
        "translation": {"moe", "checkpoint"},
        "benchmark": {"routing", "experts", "inference"},
        "verbs": set(rooms) | {"studies"},
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
