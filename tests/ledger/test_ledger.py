"""The ledger: every printed number has a line, and what can be checked without data is checked."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from fer import params, published
from fer.commands.ledger import main
from fer.io.files import FileError
from fer.labels import DATASET_LABELS
from fer.ledger import VERDICTS, Book, Line, audit, build
from fer.ledger.checks import apply
from fer.ledger.page import COLUMNS, is_ledger, to_csv, to_html
from fer.ledger.printed import close
from fer.ledger.results import Run, measured
from fer.ledger.rules import Rule, load_map, rule_of
from fer.published import Number

ROOT = Path(__file__).resolve().parents[2]

SETTINGS = {
    "learning_rate", "batch_size", "weight_decay", "epochs", "patience", "gamma", "erasing_p", "erasing_scale_min",
    "erasing_scale_max", "rotation_deg", "shift", "zoom", "lambda_a", "top_k", "heads", "dim", "pool", "scale",
    "kernel", "drop_path_start", "drop_path_end", "drop_path_steps", "vit_depth", "image_size",
    "residual_weight_init_before_tanh", "feature_map", "feature_map_channels", "feature_dim",
    "n_classes", "train_size", "val_size", "test_size",
    "class_count", "total_size", "lhc_modules", "loss_margin", "shift_px", "rotation_rad", "weight", "positions",
}  # fmt: skip
OTHERS = {"annotators", "accuracy_margin", "probability", "head_correlation"}
"""Metrics that no recipe, model, registry or table of ours has."""


@cache
def book() -> Book:
    return build(params.load(ROOT / "params.yaml"))


def lines(**names: str) -> list[Line]:
    return [line for line in book().lines if all(getattr(line.number, key) == text for key, text in names.items())]


def one(**names: str) -> Line:
    found = lines(**names)
    assert len(found) == 1
    return found[0]


def test_every_printed_number_has_one_line_with_a_verdict() -> None:
    numbers = [number for number in published.numbers() if number.work in published.PAPERS]
    assert [line.number for line in book().lines] == numbers
    assert len(numbers) == 956
    assert {line.outcome.verdict for line in book().lines} <= set(VERDICTS)
    assert sum(book().counts().values()) == 956


def test_what_is_not_run_or_not_ours_says_why() -> None:
    for line in book().lines:
        if line.outcome.verdict in ("not run", "cited", "not reproducible"):
            assert line.outcome.differs, line
        if line.outcome.verdict == "not run":
            assert line.number.metric in ("accuracy", "class_accuracy", "mean_accuracy", "head_correlation"), line
            assert line.command.startswith("fer "), line


def test_every_setting_and_cost_of_ours_is_compared() -> None:
    computed = ("equal", "differs")
    for line in book().lines:
        number, outcome = line.number, line.outcome
        if outcome.verdict not in computed:
            assert number.metric not in SETTINGS - {"heads", "image_size", "total_size", "n_classes"}, line
        else:
            assert outcome.ours, line
            assert outcome.how or outcome.verdict == "measured", line
    assert {one.metric for one in published.numbers() if one.work in published.PAPERS} - SETTINGS - OTHERS == {
        "accuracy", "class_accuracy", "mean_accuracy", "accuracy_gain", "accuracy_loss", "params", "flops",
        "params_saved", "flops_saved", "attention_share", "heads_share", "local_wins_above_A_over_B",
    }  # fmt: skip
    cited = Counter(
        (line.number.work, line.number.metric)
        for line in book().lines
        if line.outcome.verdict == "cited" and line.number.metric in SETTINGS
    )
    # The other network's heads; photographs before the crop; the compound set; sizes of what has no basic label.
    assert cited == {
        ("lhc_net", "heads"): 3,
        ("dynamic_attention", "image_size"): 2,
        ("ddamfn", "n_classes"): 1,
        ("ddamfn", "total_size"): 1,
        ("btn", "total_size"): 1,
        ("poster_v2", "total_size"): 1,
    }


@pytest.mark.parametrize(
    ("work", "metric"),
    [
        ("poster_v2", "params"),
        ("poster_v2", "flops"),
        ("ddamfn", "params"),
        ("ddamfn", "flops"),
        ("dynamic_attention", "flops"),
    ],
)
def test_every_cost_is_reproduced_under_the_convention_of_its_paper(work: str, metric: str) -> None:
    found = lines(work=work, metric=metric)
    assert found
    assert {line.outcome.verdict for line in found} == {"equal"}


@pytest.mark.parametrize(
    ("names", "ours", "verdict"),
    [
        ({"work": "btn", "table": "text 4.2", "dataset": "AffectNet-7", "metric": "learning_rate"}, "8e-07", "equal"),
        ({"work": "btn", "table": "text 4.1", "row": "AffectNet(7cls)"}, "287,401", "equal"),
        ({"work": "poster_v2", "table": "text 4.1", "metric": "learning_rate"}, "3.5e-05", "differs"),
        ({"work": "lhc_net", "table": "Setup LHC blocks", "row": "LHC5", "metric": "dim"}, "25", "equal"),
        ({"work": "lhc_net", "metric": "local_wins_above_A_over_B"}, "0.259259", "equal"),
        ({"work": "lhc_net", "metric": "positions", "setting": "shift first"}, "25", "equal"),
        ({"work": "lhc_net", "metric": "heads_share"}, "51.6129", "equal"),
        ({"work": "ddamfn", "metric": "accuracy_gain", "dataset": "AffectNet-7"}, "0.84", "differs"),
        ({"work": "ddamfn", "metric": "lambda_a"}, "0.1", "equal"),
        ({"work": "lhc_net", "metric": "rotation_rad", "setting": "second batch: rotation, +-"}, "0.4", "equal"),
        ({"work": "lhc_net", "table": "Stage1", "metric": "rotation_deg"}, "30", "equal"),
        ({"work": "dynamic_attention", "setting": "cropped image"}, "256", "equal"),
        ({"work": "dynamic_attention", "row": "Hurt", "setting": "Train"}, "9000", "equal"),
        ({"work": "dynamic_attention", "metric": "flops_saved"}, "72.0798", "equal"),
        ({"work": "lhc_net", "table": "text Introduction", "metric": "total_size"}, "35887", "differs"),
    ],
)
def test_a_number_is_compared_with_ours(names: dict[str, str], ours: str, verdict: str) -> None:
    outcome = one(**names).outcome
    assert (outcome.ours, outcome.verdict) == (ours, verdict)


def test_a_rate_of_another_optimizer_differs() -> None:
    line = one(work="ddamfn", table="text 3.3", metric="learning_rate")
    assert "ddamfn/published_code_rafdb: sgd" in line.outcome.differs


def test_accuracies_are_counted_and_means_computed_without_a_run() -> None:
    assert one(work="btn", table="Table 6", row="lambda=2.0").outcome.how == "2,839 of 3,068 images"
    assert one(work="ddamfn", table="Table 9", setting="mean of 10 folds").outcome.how.endswith("90.635, equal")
    assert "no count of 7,000" in one(work="dynamic_attention", row="ViT-16-224", metric="mean_accuracy").outcome.how
    rival = one(work="btn", table="Table 4", row="VTFF", metric="mean_accuracy")
    assert (rival.outcome.verdict, rival.outcome.how) == ("cited", "mean of the row's 7: 81.860, not equal")


def test_findings_are_computed() -> None:
    found = {finding.name: finding for finding in book().findings}
    assert len(found) == len(book().findings), "two findings of one name"
    for name, part in {
        "off-grid ddamfn 3068": "91.35: 2,802/3,068 = 91.3299 < 2,803/3,068 = 91.3625",
        "sum btn": "283,901 + 3,750 = 287,651, not 287,568",
        "sum lhc_net": "= 35,887, printed 35,587",
        "combinations lhc_net": "of all 44 with A + B <= 8, 12: ",
        "mean dynamic_attention ViT-16-224 AI-Hub": "= 75.500, printed 75.425",
        "overall btn BTN AffectNet-8": "2,573/4,000 = 64.325 or 2,572/3,999 = 64.316, printed 64.29",
        "units poster_v2 flops": "alike: 7.857 and 8.592 GMACs, a saving of -9.4 %, printed 46.5 %",
        "difference ddamfn 1.06": "91.35 - 90.32 = 1.03",
    }.items():
        assert part in found[name].arithmetic
    marked = one(work="ddamfn", table="Table 5", row="attention loss")
    assert marked.findings == ("off-grid ddamfn 3068",)


def test_numbers_noted_as_off_the_grid_are_those_that_no_count_gives() -> None:
    noted = [number for number in published.numbers() if "off-grid" in number.note]
    found = [
        number for finding in audit.findings() if finding.name.startswith("off-grid") for number in finding.numbers
    ]
    assert sorted(map(str, found)) == sorted(map(str, noted))


def test_a_number_that_no_rule_fits_is_an_error() -> None:
    number = Number(
        work="btn", table="Table 99", row="nobody", dataset="RAF-DB", setting="", metric="speed", printed="1", unit="1",
        note="", listed=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="Table 99"):
        rule_of(number, load_map())


@pytest.mark.parametrize(
    ("printed", "ours", "same"),
    [("43.7", 43.724, True), ("8.4", 8.482, True), ("8.4", 8.34, False), ("1.54", 1.535, True), ("0.26", 0.2593, True)],
)
def test_a_number_is_equal_where_ours_rounds_or_truncates_to_it(printed: str, ours: float, same: bool) -> None:
    number = next(published.numbers(work="lhc_net", metric="params"))
    assert close(Number(**{**vars(number), "printed": printed}), ours) is same


def test_runs_fill_the_line_that_they_are_nearest_to() -> None:
    number = one(work="lhc_net", table="Results 2", row="LHC-Net", metric="accuracy", setting="TTA no").number
    rule = Rule(check="result", model="lhc_net")
    small = Run(
        dataset="FER2013", metric="accuracy", setting="", value=57.7, ends=(56.0, 59.4), where="", model="lhc_net_small"
    )
    full = Run(
        dataset="FER2013", metric="accuracy", setting="", value=73.0, ends=(71.5, 74.5), where="", model="lhc_net"
    )
    other = Run(dataset="RAF-DB", metric="accuracy", setting="", value=90.0, where="", model="lhc_net")
    outcome = apply(number, rule, [small, other])
    assert (outcome.verdict, outcome.scale, outcome.ours, outcome.differs) == (
        "measured",
        "small",
        "57.70",
        "model lhc_net_small",
    )
    outcome = apply(number, rule, [small, full])
    assert (outcome.verdict, outcome.scale, outcome.low, outcome.high) == ("equal", "full", 71.5, 74.5)
    assert apply(number, rule, [other]).verdict == "not run"


def project(tmp_path: Path) -> params.Params:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return params.load(tmp_path / "params.yaml")


def test_results_of_studies_are_found_by_work_table_and_row(tmp_path: Path) -> None:
    spread = {"count": 3, "mean": 0.91, "std": 0.002, "low": 0.905, "high": 0.915}
    study = {
        "work": "btn",
        "table": "Table 7",
        "rows": [{"row": "16 images", "cite": {"row": "BTN", "setting": "batch size 16"}}],
    }
    line = {"row": "16 images", "dataset": "rafdb", "known_as": "RAF-DB", "test": spread, "parameters": 58_000_000}
    place = tmp_path / "reports" / "studies" / "mine"
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps({"study": study, "options": {"smoke": False}, "rows": [line]}))
    sets = [{"row": "LHC-Net", "runs": 4, "Best": 0.73, "Top 25%": None, "views": {"TTA yes": 0.74}}]
    place = tmp_path / "reports" / "studies" / "sets"
    place.mkdir()
    own = {"smoke": False, "recipe": "lhc_net/fer2013"}
    (place / "results.json").write_text(
        json.dumps({"study": {"kind": "lhc_sets", "rows": []}, "options": own, "sets": sets})
    )
    broken = tmp_path / "reports" / "studies" / "broken" / "results.json"
    broken.parent.mkdir()
    broken.write_text("{")
    run, best, views = measured(project(tmp_path))
    number = one(work="btn", table="Table 7", dataset="RAF-DB", setting="batch size 16").number
    outcome = apply(number, Rule(check="result", model="btn", ablation=True), [run])
    assert (outcome.verdict, outcome.ours, outcome.seeds, outcome.scale) == ("equal", "91.00", 3, "full")
    other = one(work="btn", table="Table 7", dataset="RAF-DB", setting="batch size 32").number
    assert apply(other, Rule(check="result", model="btn", ablation=True), [run]).verdict == "not run"
    number = one(work="lhc_net", table="Results 1", row="LHC-Net", setting="Best").number
    outcome = apply(number, Rule(check="result", model="lhc_net", ablation=True), [run, best, views])
    assert (outcome.ours, outcome.seeds, outcome.scale) == ("73.00", 4, "small")
    assert outcome.differs == "recipe lhc_net/fer2013; ranked on test, as printed"
    number = one(work="lhc_net", table="Results 2", row="LHC-Net", setting="TTA yes", metric="accuracy").number
    assert apply(number, Rule(check="result", model="lhc_net"), [run, best, views]).ours == "74.00"


def test_the_correlation_of_heads_fills_its_line(tmp_path: Path) -> None:
    spread = {"count": 2, "mean": 0.7, "std": None, "low": None, "high": None}
    line = {"row": "LHC-Net", "dataset": "fer2013", "known_as": "FER2013", "test": spread, "parameters": 32_000_000}
    study = {"kind": "lhc_blocks", "rows": [{"row": "LHC-Net"}]}
    content = {"study": study, "options": {"smoke": False}, "rows": [line], "head_correlation": {"LHC-Net": 0.41}}
    place = tmp_path / "reports" / "studies" / "blocks"
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps(content))
    number = one(work="lhc_net", table="text 2.2", row="LHC-Net", metric="head_correlation").number
    outcome = apply(number, Rule(check="result", model="lhc_net", ablation=True), measured(project(tmp_path)))
    assert (number.value, outcome.ours, outcome.seeds) == (63, "41.00", 2)


def test_evaluated_models_are_found_by_dataset_and_model(tmp_path: Path) -> None:
    test = {
        "about": [],
        "rows": 2981,
        "accuracy": 0.577,
        "balanced_accuracy": 0.53,
        "intervals": [{"metric": "accuracy", "low": 0.56, "high": 0.594}],
        "per_class": [{"class": name, "recall": 0.5} for name in DATASET_LABELS["fer2013"]],
        "without_duplicates": {"rows": 2765, "accuracy": 0.56},
    }
    for folder, name, content in (
        ("evaluated", "test.json", test),
        ("trained", "train.json", {"model": "lhc_net_small", "recipe": {}}),
    ):
        place = tmp_path / folder / "fer2013" / "mine"
        place.mkdir(parents=True)
        (place / name).write_text(json.dumps(content))
    number = one(work="lhc_net", table="Results 2", row="LHC-Net", metric="accuracy", setting="TTA no").number
    outcome = apply(number, Rule(check="result", model="lhc_net"), measured(project(tmp_path)))
    assert (outcome.verdict, outcome.ours, outcome.scale) == ("measured", "57.70", "small")
    assert (outcome.low, outcome.high) == (pytest.approx(56.0), pytest.approx(59.4))
    assert outcome.differs == "model lhc_net_small; 2,981 of 3,589 test rows"
    assert "56.00 % on the 2,765 rows" in outcome.how


def test_another_file_is_not_written_over(tmp_path: Path) -> None:
    mine, ledger = tmp_path / "mine.csv", tmp_path / "ledger.csv"
    mine.write_text("a,b\n1,2\n")
    ledger.write_text(",".join(COLUMNS) + "\n")
    assert not is_ledger(mine)
    assert is_ledger(ledger)
    with pytest.raises(FileError, match=r"mine\.csv"):
        main(argparse.Namespace(csv=mine, findings=False))
    assert mine.read_text() == "a,b\n1,2\n"


def test_the_csv_and_the_page_have_every_line() -> None:
    read = list(csv.DictReader(io.StringIO(to_csv(book()))))
    assert len(read) == 956
    assert tuple(read[0]) == COLUMNS
    page = to_html(book())
    assert page.count("<details>") == len({(line.number.work, line.number.table) for line in book().lines})
    assert "&lt;" in page, "arithmetic is escaped"
