"""Classification systems trained in memory: augmentation, figures, tables and their picture."""

import numpy as np
import pytest
import torch
from drawn_classification import write_fashion_mnist
from scipy import stats

from divdr.errors import ConfigError, DataError
from divdr.studies.classifier_systems import (
    SYSTEMS,
    above_singles,
    draw_systems,
    system_figures,
    system_table,
    system_times,
)
from divdr.studies.classifier_tables import draw_curves, pairs_table, table
from divdr.studies.classifiers import Lengths, augmented, read_images, single_gate_figures
from divdr.studies.routing_depth import depth_figures, depth_pairs


def test_augmented_images_are_shifted_by_a_pixel_and_mirrored():
    images = torch.arange(60 * 4 * 5).reshape(60, 1, 4, 5).float() + 1
    found = augmented(images, torch.Generator().manual_seed(0))
    seen = set()
    for image, changed in zip(images[:, 0].numpy(), found[:, 0].numpy(), strict=True):
        padded = np.pad(image, 1)
        for down in range(3):
            for right in range(3):
                part = padded[down : down + 4, right : right + 5]
                for mirrored, candidate in ((False, part), (True, part[:, ::-1])):
                    if np.array_equal(candidate, changed):
                        seen.add((down, right, mirrored))
                        break
                else:
                    continue
                break
            else:
                continue
            break
        else:
            pytest.fail("an image is no shift of its own")
    assert len(seen) == 18


def test_figures_of_every_system_from_the_published_files(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    generator = np.random.default_rng(0)
    write_fashion_mnist(tmp_path / "fashion_mnist", generator, count=20)
    folder = tmp_path / "fashion_mnist"
    pixels, labels = read_images(folder, "train", 14)
    assert pixels.shape == (20, 1, 14, 14)
    assert labels.tolist() == [i % 10 for i in range(20)]
    found = single_gate_figures(folder, 0, Lengths(2, 1, 2, 1), counts=(1, 2))
    assert list(found) == ["base", "one expert", "K = 2", "K = 5, per class", "base, as long",
                           "wider", "larger"]  # fmt: skip
    accuracy = found["base"]["base top-1"]
    for name in ("one expert", "K = 2", "K = 5, per class"):
        own = found[name]
        assert own["base top-1"] == own["anytime-1 top-1"] == accuracy  # one base for all
        assert own["bagging MFLOPs"] > own["base MFLOPs"] == own["anytime-1 MFLOPs"]
    assert found["wider"]["system MFLOPs"] == pytest.approx(
        found["K = 2"]["bagging MFLOPs"], rel=0.01
    )
    draw_curves([found], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_depths_of_routing_and_networks_of_equal_cost(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    write_fashion_mnist(tmp_path / "fashion_mnist", np.random.default_rng(0), count=16)
    found = depth_figures(tmp_path / "fashion_mnist", 0, 1, cells=(1, 2))
    kinds = ("routing", "searched path", "one path")
    assert list(found) == [f"{kind}, {cells} cells" for cells in (1, 2) for kind in kinds]
    for cells in (1, 2):
        own = {kind: found[f"{kind}, {cells} cells"] for kind in kinds}
        cost = own["routing"]["system MFLOPs"]
        assert own["one path"]["system MFLOPs"] == pytest.approx(cost, rel=0.2)
        assert own["searched path"]["parameters"] < own["routing"]["parameters"]  # smaller gates
    assert found["routing, 2 cells"]["parameters"] > found["routing, 1 cells"]["parameters"]
    text = table([found, found], depth_pairs((1, 2)))
    assert "routing, 2 cells (system) − routing, 1 cells (system)" in text
    assert f"{found['routing, 2 cells']['parameters']:,}" in text


def test_tables_by_scipy():
    def seed(value):
        base = {"base top-1": 80.0 + value, "base MFLOPs": 0.2}
        one = {"bagging top-1": 81.0 + 2 * value, "bagging MFLOPs": 0.3, "anytime-0 top-1": 1.0}
        more = {"bagging top-1": 82.5 + value, "bagging MFLOPs": 0.3}
        return {"base": base, "one expert": one, "K = 5": more}

    values = [0.0, 1.0, 5.0]
    text = table([seed(value) for value in values])
    assert f"82.00 ± {np.std(values, ddof=1):.2f}" in text
    assert "anytime" not in text
    interval = stats.ttest_rel([81 + 2 * v for v in values], [80 + v for v in values])
    low, high = interval.confidence_interval()
    assert f"{low:+.2f} to {high:+.2f}" in text
    alone = table([seed(0.0)])
    assert "nan" not in alone
    assert "80.00" in alone
    assert "–" in alone
    with pytest.raises(DataError, match="no seed was measured"):
        table([])


def test_all_systems_beside_single_networks(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    write_fashion_mnist(tmp_path / "fashion_mnist", np.random.default_rng(0), count=40)
    data, output = tmp_path / "fashion_mnist", tmp_path
    names = ["single, 0.16", "single, 0.35", "ensemble of 2", "DynK-Hydra", "CoE, 4 experts"]
    given = []
    found = system_figures(data, 0, 3, output, names=names, done=lambda f: given.append(len(f)))
    assert given == [1, 2, 3, 4, 5]
    # What a name promises, and two networks of the cheapest.
    for name in names[:2]:
        assert found[name]["system MFLOPs"] == pytest.approx(float(name.split()[1]), abs=0.005)
    one = found["single, 0.16"]["system MFLOPs"]
    assert found["ensemble of 2"]["system MFLOPs"] == pytest.approx(2 * one, rel=0.01)
    # At τ = 1 every image has its expert, at 0 none has.
    collaboration = found["CoE, 4 experts"]
    saved = collaboration["threshold-1 MFLOPs"] - collaboration["threshold-0 MFLOPs"]
    assert saved == pytest.approx(one, rel=0.01)

    # Another collaboration stands on the first one's delegator, which is not trained anew.
    more = [*names, "CoE, 16 experts"]
    again = system_figures(data, 0, 3, output, names=more, finished=found)
    assert {name: again[name] for name in names} == found
    delegators = [torch.load(output / f"CoE_{count}_experts_0.pth")["model"] for count in (4, 16)]
    part = "system.delegator.task_predictor.weight"
    assert torch.equal(delegators[0][part], delegators[1][part])

    times = system_times(data, output, seed=0)
    assert list(times) == more
    assert all(set(row) == {"ms at 1", "ms at 64"} and row["ms at 1"] > 0 for row in times.values())
    text = system_table([again, again], {})
    assert f"{again['DynK-Hydra']['parameters']:,}" in text
    # In the order of SYSTEMS, whichever was trained first.
    assert system_table([dict(reversed(again.items()))], {}) == system_table([again], {})
    rows = text.splitlines()[2:]
    assert [row.split(" |")[0].strip("| ") for row in rows] == [s for s in SYSTEMS if s in again]
    draw_systems([again], {}, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_photographs_as_they_are_and_systems_that_there_are(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    write_fashion_mnist(tmp_path / "fashion_mnist", np.random.default_rng(0), count=40)
    data = tmp_path / "fashion_mnist"
    found = system_figures(data, 0, 1, tmp_path, size=28, names=["single, 0.16"])
    # 3×3 convolutions over maps of 28, 14 and 7 pixels, 4, 8 and 16 channels, and the classifier.
    macs = 28 * 28 * 9 * (4 + 2 * 16) + 14 * 14 * 9 * (32 + 64) + 7 * 7 * 9 * (128 + 256) + 160
    assert found["single, 0.16"]["system MFLOPs"] == pytest.approx(macs / 1e6)
    with pytest.raises(ConfigError, match=r"'single' here.*HydraRes"):
        system_figures(data, 0, 1, tmp_path, names=["single"])


def test_points_above_one_network_of_equal_cost():
    cheap, dear = list(SYSTEMS)[:2]
    figures = {
        cheap: {"system top-1": 80.0, "system MFLOPs": 0.1},
        dear: {"system top-1": 84.0, "system MFLOPs": 0.4},
        "between": {"system top-1": 83.0, "system MFLOPs": 0.2},
        "cheaper": {"bagging top-1": 83.0, "bagging MFLOPs": 0.05},
    }
    # 0.2 lies half way from 0.1 to 0.4 in logarithms.
    assert above_singles(figures, "between") == pytest.approx(83.0 - 82.0)
    assert above_singles(figures, "cheaper", "bagging") == pytest.approx(3.0)
    text = pairs_table([figures, figures], [((cheap, "system"), ("between", "system"))])
    assert "between (system) − single" in text
    assert "+3.00" in text
