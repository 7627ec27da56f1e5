import json

import pytest

from divdr.engine import load_config
from divdr.studies.statistics import off_target

ROUTING = {"stem_gflops": 2.0, "all_open_gflops": 12.0, "real_gflops": 6.4}


@pytest.fixture
def run(tmp_path):
    def write(*overrides):
        cfg = load_config(overrides=["MODEL.ROUTING.BUDGET.WEIGHT", "0.0", *overrides])
        (tmp_path / "config.yaml").write_text(cfg.dump())
        (tmp_path / "inference").mkdir(exist_ok=True)
        results = {"toy_val": {"routing": ROUTING}}
        (tmp_path / "inference" / "results.json").write_text(json.dumps(results))
        return tmp_path

    return write


def test_share_and_gflops_that_were_asked_for(run):
    # 0.4 of 10 beyond the stem's 2: 6 GFLOPs asked for, 6.4 run; 4 and 4.4 without the stem.
    expected = {"gflops": pytest.approx(100 * 0.4 / 6), "share": pytest.approx(10.0)}
    assert off_target(run("MODEL.ROUTING.BUDGET.TARGET_SHARE", "0.4")) == expected
    assert off_target(run("MODEL.ROUTING.BUDGET.TARGET_GFLOPS", "6.0")) == expected


def test_a_run_without_a_target_has_nothing_to_miss(run):
    assert off_target(run()) == {}
