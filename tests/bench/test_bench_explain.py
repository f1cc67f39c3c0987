"""`fer bench explain` runs, and its last line is of random weights alone."""

from benchmarks.__main__ import parse
from benchmarks.result import REGISTRY


def test_its_lines_go_from_the_trained_model_to_random_weights() -> None:
    words = ["explain", "--model", "mobilefacenet_nano", "--images", "11", "--steps", "4"]
    args = parse(words)
    result = REGISTRY["explain"].run(args)
    assert [row["random_layers_percent"] for row in result.rows] == [0, 25, 50, 75, 100]
    assert result.rows[0]["rank_correlation"] == 1.0
    assert all(0 <= row[name] <= 100 for row in result.rows for name in ("pointing_percent", "chance_percent"))
    assert result.settings["images"] == 11
