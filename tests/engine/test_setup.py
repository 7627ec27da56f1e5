import ctypes
import logging
import os
import subprocess
import sys

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser

from divdr.command_line import UNREAD
from divdr.engine import Trainer, check_config, launch, load_config, report_errors
from divdr.engine.setup import keep_freed_memory, make_output_folder, on_available_device
from divdr.errors import ConfigError, DataError

CONFIGS = [
    ("divdr_cityscapes", "small", 0.8, 0.1, 0.1, 16),
    ("divdr_raw_cityscapes", "full", 0.0, 0.1, 0.1, 16),
    ("dr_a_cityscapes", "small", 0.8, 0.1, 0.0, 16),
    ("dr_b_cityscapes", "small", 0.5, 0.1, 0.0, 16),
    ("dr_c_cityscapes", "small", 0.5, 0.2, 0.0, 16),
    ("dr_raw_cityscapes", "full", 0.0, 0.1, 0.0, 16),
    ("dr_raw_layer33_cityscapes", "full", 0.0, 0.1, 0.0, 33),
]


@pytest.mark.parametrize(("name", "gate", "weight", "target", "clustering", "layers"), CONFIGS)
def test_full_scale_configs_say_what_the_papers_say(
    repository, name, gate, weight, target, clustering, layers
):
    cfg = load_config(str(repository / "configs" / f"{name}.yaml"))
    routing = cfg.MODEL.ROUTING
    assert (gate, layers, 64) == (routing.GATE, routing.LAYERS, routing.CHANNELS)
    assert routing.STEM_CHANNELS == 64
    assert (weight, target) == (routing.BUDGET.WEIGHT, routing.BUDGET.TARGET)
    assert (routing.BUDGET.START, routing.BUDGET.RAMP) == (0.4, 0.02)
    assert clustering == routing.CLUSTERING.WEIGHT
    assert (routing.CLUSTERING.NUM_EXPERTS, routing.CLUSTERING.PERIOD) == (3, 50)
    assert (routing.CLUSTERING.MARGIN, routing.CLUSTERING.SQUARED) == (1.0, False)
    solver = cfg.SOLVER
    assert (solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY) == (0.05, 0.9, 1e-4)
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.POLY_LR_POWER) == (8, 180000, 0.9)
    assert solver.CLIP_GRADIENTS.CLIP_VALUE == 5.0
    assert solver.WEIGHT_DECAY_NORM == 0.0
    assert cfg.INPUT.CROP_PADDING == "black"
    assert routing.BUDGET.PER == "image"
    assert tuple(cfg.INPUT.MIN_SIZE_TRAIN) == (512, 768, 1024, 1280, 1536, 2048)
    assert tuple(cfg.INPUT.CROP.SIZE) == (768, 768)
    assert cfg.TEST.PRECISE_BN.ENABLED
    assert routing.COST_SIZES == [[1024, 2048]]


@pytest.mark.parametrize("name", ["demo/divdr", "studies/controlled/divdr"])
def test_studies_keep_the_settings_that_their_numbers_were_measured_with(repository, name):
    cfg = load_config(str(repository / "configs" / f"{name}.yaml"))
    assert (cfg.INPUT.CROP_PADDING, cfg.SOLVER.WEIGHT_DECAY_NORM) == ("mean", 1e-4)
    assert cfg.MODEL.ROUTING.BUDGET.PER == "image"


def test_unknown_key_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"key MODEL\.ROUTING\.LAYRES; did you mean .*\.LAYERS\?"):
        load_config("", ["MODEL.ROUTING.LAYRES", "3"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.ROUTING.CLUSTERING.NUM_EXPERTS", "0"], "NUM_EXPERTS must be at least 1, not 0"),
        (["MODEL.ROUTING.BUDGET.WEIGHT", "-1.0"], "WEIGHT must be at least 0, not -1.0"),
        (["SOLVER.IMS_PER_BATCH", "0"], "IMS_PER_BATCH must be at least 1, not 0"),
        (["SOLVER.MAX_ITER", "-3"], "MAX_ITER must be at least 1, not -3"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "CHECKPOINT_PERIOD must be at least 1"),
        (["SOLVER.MOMENTUM", "1"], "MOMENTUM must be at least 0 and below 1, not 1.0"),
        (["SOLVER.BASE_LR", "1e999"], "BASE_LR must be at least 0, not inf"),
        (["DATALOADER.NUM_WORKERS", "-1"], "NUM_WORKERS must be at least 0"),
        (["DATALOADER.RANDOM_SUBSET_RATIO", "0.0"], "RATIO must be above 0 and at most 1, not 0.0"),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "0"], "NUM_CLASSES must be at least 1"),
        (["INPUT.MIN_SIZE_TRAIN", "(64, -5)"], "MIN_SIZE_TRAIN must hold whole numbers, at least"),
        (["INPUT.MIN_SIZE_TRAIN", "()"], "MIN_SIZE_TRAIN must hold at least one value"),
        (["INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "(0.5, 2)"], "shares of the image"),
        (["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "disc"], "'disc' is not one of abs"),
        (["DATASETS.TEST", "(3,)"], "DATASETS.TEST must hold texts, not 3"),
        (["DATASETS.TEST", "mine"], r"DATASETS.TEST must be a list, as \(\), not 'mine'"),
        (["MODEL.PIXEL_STD", "[1.0]"], "PIXEL_MEAN has 3 channels and MODEL.PIXEL_STD 1"),
        (["MODEL.PIXEL_STD", "[1.0, 0, 1.0]"], "PIXEL_STD must hold numbers, above 0, not 0"),
        (["MODEL.DEVICE", "banana"], "DEVICE 'banana' is unknown"),
        (["SEED", "4000000000"], "SEED must be at most 2147483647"),
        (["MODEL.ROUTING.LAYERS", "many"], "LAYERS must be a whole number, as 16, not 'many'"),
        (["MODEL.ROUTING.LAYERS", "2.0"], "LAYERS must be a whole number, as 16, not 2.0"),
        (["MODEL.ROUTING.LAYERS", "True"], "LAYERS must be a whole number, as 16, not True"),
        (["SOLVER.BASE_LR", "None"], "BASE_LR must be a number, as 0.001, not None"),
        (["SOLVER.BASE_LR", "9" * 400], "BASE_LR is too large for a number"),
        (["MODEL.ROUTING", "3"], "MODEL.ROUTING is a group of keys, not 3"),
        (["MODEL.DEVICE.NAME", "cpu"], "unknown configuration key MODEL.DEVICE.NAME"),
        (["MODEL.ROUTING.LAYERS"], "the key MODEL.ROUTING.LAYERS has no value"),
        (["SEED", "1", "--resume"], "the key --resume has no value; .* after all options"),
    ],
)
def test_wrong_values_are_reported(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config("", overrides)


def test_values_that_the_default_does_not_forbid_are_taken(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("SOLVER: {BASE_LR: 1, STEPS: [3, 5]}\nMODEL: {ROUTING: {GATE_BIAS: '2'}}\n")
    pairs = ["SOLVER.MOMENTUM", "0", "OUTPUT_DIR", "2024", "MODEL.ROUTING", "{'LAYERS': 3}"]
    cfg = load_config(str(path), [*pairs, "DATASETS.TEST", "['a']"])
    solver, routing = cfg.SOLVER, cfg.MODEL.ROUTING
    for value, wanted in ((solver.BASE_LR, 1.0), (solver.MOMENTUM, 0.0), (routing.GATE_BIAS, 2.0)):
        assert value == wanted
        assert type(value) is float
    assert (solver.STEPS, cfg.DATASETS.TEST, cfg.OUTPUT_DIR) == ((3, 5), ("a",), "2024")
    assert (routing.LAYERS, routing.SCALES) == (3, 4)  # the group's other keys stay


def test_missing_config_file():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load_config("nowhere.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"SOLVER:\n\tMAX_ITER: 3\n", r"own\.yaml, line 2 .*spaces, not by tabs"),
        (b"SOLVER: [1\nSEED: 2\n", r"own\.yaml, line \d cannot be read as yaml"),
        (b"\x80\x02\xff", r"own\.yaml is not text"),
        (b"\0", r"own\.yaml cannot be read as yaml: .*#x0000"),
        (b"# nothing\n", r"own\.yaml is empty"),
        (b"just words", r"own\.yaml holds no keys with values but str 'just words'"),
        (b"SEED: 2001-99-99", r"own\.yaml cannot be read as yaml: month must be in"),
        (b"_BASE_: nowhere.yaml", r"own\.yaml: its _BASE_ \S*/nowhere\.yaml does not exist"),
        (b"_BASE_: 7", r"own\.yaml: _BASE_ names files, not 7"),
        (b"_BASE_: own.yaml", r"own\.yaml is based on itself"),
        (b"VERSION: 1", r"own\.yaml is of VERSION 1"),
        (b"SOLVER:\n", r"own\.yaml: SOLVER is a group of keys, not None"),
        (
            b"SOLVER: {MAX_ITERS: 2}",
            r"own\.yaml: unknown .* SOLVER.MAX_ITERS; did you mean SOLVER.M",
        ),
        (b"3: 4", r"own\.yaml: unknown configuration key 3"),
        (b"SEED: [1]", r"own\.yaml: SEED must be a whole number, as -1, not \[1\]"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(str(path))
    assert "\n" not in str(error.value)


def test_folders_and_lazy_configs_are_reported(tmp_path, repository):
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(str(tmp_path))
    lazy = str(repository / "configs/lazy/divdr_coco_mask_rcnn.py")
    with pytest.raises(ConfigError, match=r"mask_rcnn\.py is a LazyConfig, .*lazyconfig_train_net"):
        load_config(lazy)


def test_bases_are_set_first_and_errors_name_theirs(tmp_path):
    (tmp_path / "low.yaml").write_text("SEED: 3\nSOLVER: {MAX_ITER: 5, BASE_LR: 2}\n")
    (tmp_path / "high.yaml").write_text("_BASE_: [low.yaml]\nSOLVER: {MAX_ITER: 7}\n")
    cfg = load_config(str(tmp_path / "high.yaml"))
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (3, 7, 2.0)
    (tmp_path / "low.yaml").write_text("SEED: none\n")
    with pytest.raises(ConfigError, match=r"low\.yaml: SEED must be"):
        load_config(str(tmp_path / "high.yaml"))


def test_configs_of_detectron2_alone_are_checked():
    cfg = get_cfg()
    check_config(cfg)
    cfg.SOLVER.IMS_PER_BATCH = 0
    with pytest.raises(ConfigError, match="IMS_PER_BATCH"):
        check_config(cfg)


def test_cuda_without_a_gpu_is_the_cpu(caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cuda:1"
    cfg.freeze()
    found = on_available_device(cfg)
    assert (found.MODEL.DEVICE, cfg.MODEL.DEVICE) == ("cpu", "cuda:1")
    assert found.is_frozen()
    assert "MODEL.DEVICE is cuda:1, but there is no GPU here" in caplog.text
    assert on_available_device(found) is found


def test_all_tools_build_such_a_model_on_the_cpu(repository, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    small = ["MODEL.ROUTING.LAYERS", "3", "MODEL.ROUTING.CHANNELS", "4", "MODEL.DEVICE", "cuda"]
    cfg = load_config(str(repository / "configs/demo/divdr.yaml"), small)
    assert next(Trainer.build_model(cfg).parameters()).device.type == "cpu"


def test_output_folders_that_cannot_be(tmp_path):
    make_output_folder(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"OUTPUT_DIR \S*/file is a file, not a folder"):
        make_output_folder(str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"file/below cannot be written: Not a directory"):
        make_output_folder(str(tmp_path / "file" / "below"))
    with pytest.raises(ConfigError, match=r"--output /proc/divdr cannot be written"):
        make_output_folder("/proc/divdr", "--output")


def test_clustering_loss_that_is_always_zero_is_reported(caplog):
    with caplog.at_level(logging.WARNING):
        load_config(
            "",
            ["MODEL.ROUTING.CLUSTERING.MARGIN", "0.0", "MODEL.ROUTING.CLUSTERING.NUM_EXPERTS", "2"],
        )
    assert "identically zero" in caplog.text


def test_one_expert_with_the_clustering_loss_is_reported(caplog):
    one = ["MODEL.ROUTING.CLUSTERING.NUM_EXPERTS", "1"]
    with caplog.at_level(logging.WARNING):
        load_config("", [*one, "MODEL.ROUTING.CLUSTERING.WEIGHT", "0"])
        assert not caplog.text
        load_config("", one)
    assert "with NUM_EXPERTS 1 the clustering loss keeps nothing apart" in caplog.text


def test_tools_tell_one_sentence_and_exit_with_2(capsys):
    @report_errors
    def tool():
        raise DataError("file x.png is not there")

    with pytest.raises(SystemExit) as exit_info:
        tool()
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "error: file x.png is not there\n"


def test_errors_of_the_file_system_name_the_file(capsys, tmp_path):
    @report_errors
    def tool():
        (tmp_path / "nowhere" / "x.txt").write_text("")

    with pytest.raises(SystemExit) as exit_info:
        tool()
    assert exit_info.value.code == 2
    reported = capsys.readouterr().err
    assert reported == f"error: {tmp_path}/nowhere/x.txt: No such file or directory\n"


def test_interrupted_tools_say_one_line_and_exit_with_130(capsys):
    @report_errors
    def tool():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_info:
        tool()
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("start", [launch.run, launch.main])
def test_a_run_reads_its_config_once(monkeypatch, tmp_path, start):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # which a run on the CPU sets
    read, ran = [], []
    monkeypatch.setattr(launch, "load_config", lambda *a: read.append(a) or load_config(*a))
    monkeypatch.setattr(launch, "_evaluate", ran.append)
    words = ["--eval-only", "--config-file", "configs/demo/divdr.yaml"]
    start(default_argument_parser().parse_args([*words, "OUTPUT_DIR", str(tmp_path), "SEED", "7"]))
    assert len(read) == len(ran) == 1
    assert (str(tmp_path), 7, 6) == (ran[0].OUTPUT_DIR, ran[0].SEED, ran[0].MODEL.ROUTING.LAYERS)
    assert ran[0].is_frozen()


def resident_mib() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_stays_with_the_process(monkeypatch):
    for name in [n for n in os.environ if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    try:
        assert keep_freed_memory()
        blocks = [bytearray(8 * 2**20) for _ in range(20)]
        held = resident_mib()
        blocks.clear()
        assert held - resident_mib() < 40  # of 160
    finally:  # glibc's own values
        ctypes.CDLL(None).mallopt(-1, 2**17)
        ctypes.CDLL(None).mallopt(-3, 2**17)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_freed_memory()


@pytest.mark.parametrize("lines", [1, 20_000])  # written at the end, and before
def test_a_reader_that_goes_away_ends_a_tool_without_a_traceback(lines):
    code = (
        "import sys; from divdr.command_line import report_errors; sys.stdin.readline(); "
        f"report_errors(lambda: print('a line\\n' * {lines}))()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    _, errors = process.communicate("go\n")
    assert (process.returncode, errors) == (UNREAD, "")


def test_a_pipe_between_processes_that_breaks_is_an_error_of_its_own():
    @report_errors
    def main():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        main()
