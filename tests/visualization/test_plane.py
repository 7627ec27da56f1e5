import numpy as np
import pytest

from divdr.visualization import embed, embedding_figure


@pytest.mark.parametrize("method", ["tsne", "pca"])
@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 6, 40])
def test_any_number_of_images(count, method):
    rows = np.random.default_rng(0).random((count, 9))
    points = embed(rows, method)
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()


def test_equal_rows_meet_and_a_single_number_works():
    assert not embed(np.ones((8, 6))).any()
    line = embed(np.arange(8.0)[:, None])
    assert np.ptp(line[:, 0]) == pytest.approx(7)
    assert not line[:, 1].any()


def test_pca_keeps_distances_of_flat_data():
    rows = np.zeros((6, 5))
    rows[:, 1], rows[:, 3] = np.arange(6), [0, 2, 1, 5, 3, 1]
    points = embed(rows, "pca")

    def distances(x):
        return np.linalg.norm(x[:, None] - x[None], axis=2)

    np.testing.assert_allclose(distances(points), distances(rows), atol=1e-9)


def test_tsne_is_repeatable_and_separates_groups():
    random = np.random.default_rng(1)
    group = np.repeat([0, 1], 15)
    rows = random.normal(0, 0.05, (30, 12)) + group[:, None]
    points = embed(rows, seed=3)
    np.testing.assert_array_equal(points, embed(rows, seed=3))
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(axis=1)] == group).all()


def test_unknown_method_and_shape():
    with pytest.raises(ValueError, match="umap"):
        embed(np.ones((3, 3)), "umap")
    with pytest.raises(ValueError, match="activations"):
        embed(np.ones(3))


def test_colours_follow_experts_and_shapes_marks():
    points = np.arange(12.0).reshape(6, 2)
    groups = np.array([0, 0, 1, 1, -1, 1])
    marks = ["day", "night", "day", "day", "night", "night"]
    figure = embedding_figure(points, groups, "A(x)", marks)
    drawn = {c.get_gid(): c for c in figure.axes[0].collections}
    assert set(drawn) == {"0:day", "0:night", "1:day", "1:night", "-1:night"}
    np.testing.assert_array_equal(drawn["1:day"].get_offsets(), points[[2, 3]])
    same = drawn["1:day"].get_facecolor(), drawn["1:night"].get_facecolor()
    np.testing.assert_array_equal(*same)
    assert (drawn["0:day"].get_facecolor() != drawn["1:day"].get_facecolor()).any()
    texts = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    assert texts == ["no expert (1)", "expert 0 (2)", "expert 1 (3)", "day", "night"]


def test_rare_marks_become_other():
    # 12 labels, label i on i + 1 images: the nine most frequent stay, the rest is one group.
    marks = [f"m{i:02d}" for i in range(12) for _ in range(i + 1)]
    figure = embedding_figure(np.zeros((len(marks), 2)), np.zeros(len(marks), dtype=int), "", marks)
    texts = [t.get_text() for t in figure.legends[1].get_texts()]
    assert texts == [f"m{i:02d}" for i in range(3, 12)] + ["other"]


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="do not fit"):
        embedding_figure(np.zeros((3, 2)), np.zeros(2), "")
