from PIL import Image

from divdr.benchmark import Line
from divdr.visualization.tradeoff import draw_benchmark


def test_points_lines_and_their_numbers_are_in_the_picture(tmp_path):
    lines = [
        Line("published", 1, (5.0, 10.0, 20.0), (400.0, 600.0, 1000.0)),  # 40 ms for 10⁹
        Line("plan", 1, (5.0, 10.0, 20.0), (90.0, 160.0, 300.0)),  # 14 ms
        Line("plan", 8, (5.0, 20.0), (80.0, 230.0)),  # two points: no line
    ]
    path = tmp_path / "times.svg"
    draw_benchmark(path, lines, "a machine")
    draw_benchmark(tmp_path / "times.png", lines, "a machine")
    text = path.read_text()
    for words in (
        *("published: 25 GFLOPs/s, +200 ms", "plan: 71 GFLOPs/s, +20 ms"),
        *("batch 8", "plan"),
    ):
        assert f"<!-- {words} -->" in text
    with Image.open(tmp_path / "times.png") as picture:
        assert picture.width > 1.8 * picture.height  # two panels
