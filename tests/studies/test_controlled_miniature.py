"""The controlled study in miniature: what holds for every seed that was tried."""

import json

import pytest

from divdr.verbs import STUDY

pytestmark = pytest.mark.long


def test_experts_recover_easy_subsets_move_apart_and_tighten(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    arguments = ["controlled_miniature", "--seeds", "0", "--output", str(tmp_path)]
    assert STUDY.main(arguments) == 0
    content = json.loads((tmp_path / "controlled_miniature" / "results.json").read_text())
    runs = {run["variant"]: run["numbers"] for run in content["runs"]}
    dr, divdr = runs["DR"], runs["DivDR"]
    assert divdr["recovery.kmeans"] > 95
    assert divdr["recovery.centres"] > 95
    for of in ("experts", "refit"):
        assert divdr[f"routing.inter_{of}"] > dr[f"routing.inter_{of}"]
        assert divdr[f"routing.intra_pairs_{of}"] < dr[f"routing.intra_pairs_{of}"]
        assert divdr[f"routing.intra_centre_{of}"] < dr[f"routing.intra_centre_{of}"]
