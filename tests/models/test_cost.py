"""The cost table: our counts to the digit, and every printed number explained by a convention."""

import argparse
import json
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from functools import cache
from typing import Any

import pytest
import torch
from builders.conformance import ASSETS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fer.commands import models as command
from fer.models import FerModel, TrainOutput, create_model, list_models
from fer.models.cost import Cost, kept_for_backward, measure
from fer.models.layers.attention import countable
from fer.studies.published_costs import published_costs
from fer.weights.convert import dead_keys

MODELS = list_models()

MEASURED: list[tuple[str, dict[str, Any], int, str]] = [
    ("poster_v2", {}, 43_753_941, "8.592"),
    ("poster_v2", {"num_classes": 8}, 43_754_710, "8.592"),
    ("poster_v1_large", {}, 58_906_255, "7.857"),
    ("poster_v1_small", {}, 49_095_623, "7.324"),
    ("poster_v1_tiny", {}, 39_284_991, "6.791"),
    ("ir50", {"stages": 3, "num_classes": 0}, 17_611_968, "5.468"),
    ("mobilefacenet_landmarks", {"num_classes": 0}, 1_007_248, "0.2210"),
    ("mobilefacenet", {}, 1_204_103, "0.2212"),
    ("mfn", {}, 4_166_063, "0.5392"),
    ("ddamfn", {}, 4_105_999, "0.5396"),
    ("ddamfn", {"num_classes": 8}, 4_106_512, "0.5396"),
    ("ddamfn", {"num_heads": 1}, 4_071_135, "0.5393"),
    ("ddamfn", {"num_heads": 3}, 4_140_863, "0.5399"),
    ("ddamfn", {"num_heads": 4}, 4_175_727, "0.5401"),
    ("resnet34v2", {}, 27_590_858, "3.682"),
    ("lhc_net", {}, 32_396_302, "4.529"),
    ("lhc_netc", {}, 32_396_307, "4.529"),
    ("vit_b16", {"num_classes": 1000}, 86_567_656, "17.564"),
    ("vit_b16", {}, 85_804_039, "17.563"),
    ("vit_b16", {"attention": "dynamic"}, 85_804_039, "16.906"),
    ("dynamic_vit_base", {}, 56_041_351, "9.758"),
    ("dynamic_vit_base", {"topk": 2}, 56_041_351, "9.722"),
    ("dynamic_vit_base", {"input_size": 256}, 56_041_351, "12.759"),
    ("dynamic_vit_small", {}, 25_026_823, "4.463"),
    ("dynamic_vit_tiny", {}, 12_633_351, "2.215"),
    ("poster_v1_large", {"num_classes": 8}, 58_906_255 + 513, ""),
    ("poster_v1_small", {"num_classes": 8}, 49_095_623 + 513, ""),
    ("poster_v1_tiny", {"num_classes": 8}, 39_284_991 + 513, ""),
    ("ir18", {"num_classes": 0}, 17_594_240, ""),
    ("ir50", {"num_classes": 0}, 43_574_976, ""),
    ("ir50", {"stages": 3}, 17_611_968 + 7 * 257, ""),
    ("resnet50", {"num_classes": 1000}, 25_557_032, ""),
    ("resnet50", {}, 23_522_375, ""),
    ("mobilefacenet", {"num_classes": 0}, 1_200_512, ""),
    ("mfn", {"num_classes": 0}, 4_193_448 - 29_184, ""),
    ("btn", {}, 43_753_941 + 700_382, ""),
]
"""Live parameters and GMACs (torch.utils.flop_counter / 2, attention included), as measured on the published code."""

FIXTURES = {
    "ddamfn": "ddamfn_7cls",
    "dynamic_vit_base": "biformer_base_224_default",
    "dynamic_vit_small": "biformer_small_224_default",
    "dynamic_vit_tiny": "biformer_tiny_224_default",
    "lhc_net": "lhc_net",
    "lhc_netc": "lhc_netc",
    "poster_v1_small": "poster_v1_small_7cls",
    "poster_v2": "poster_v2_7cls",
    "resnet34v2": "resnet34v2",
}


@cache
def cost_of(name: str, **options: Any) -> Cost:
    with torch.device("meta"):
        return measure(create_model(name, **options))


@pytest.fixture(scope="module")
def costs() -> dict[str, Cost]:
    return {name: cost_of(name) for name in MODELS}


@pytest.mark.parametrize(("name", "options", "parameters", "gmacs"), MEASURED)
def test_our_count_is_the_published_codes_live_one(
    name: str, options: dict[str, Any], parameters: int, gmacs: str
) -> None:
    cost = cost_of(name, **options)
    assert cost.parameters == parameters
    if gmacs:
        assert f"{cost.operations.macs / 1e9:.{len(gmacs.split('.')[1])}f}" == gmacs


@pytest.mark.parametrize(
    ("name", "millions"), [("mobilefacenet", "230.336"), ("mfn", "550.741"), ("ddamfn", "551.216")]
)
def test_torchstats_count_comes_out_to_the_digit(costs: dict[str, Cost], name: str, millions: str) -> None:
    assert f"{costs[name].operations.torchstat / 1e6:.3f}" == millions


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("poster_v2", ["43.724 M", "8.482 G"]),
        ("poster_v1_tiny", ["52.229 M", "13.660 G"]),
        ("poster_v1_small", ["62.040 M", "14.725 G"]),
        ("poster_v1_large", ["71.850 M", "15.790 G"]),
    ],
)
def test_thops_count_of_the_published_posters_comes_out_to_the_digit(
    costs: dict[str, Cost], name: str, numbers: list[str]
) -> None:
    paper = published_costs(name, costs[name])
    assert [number.ours for number in paper.numbers] == numbers


@pytest.mark.parametrize("name", MODELS)
def test_every_printed_number_is_ours_under_its_convention(costs: dict[str, Cost], name: str) -> None:
    paper = published_costs(name, costs[name])
    for number in paper.numbers if paper else ():
        printed, unit = number.printed.split()
        ours, our_unit = number.ours.split()
        digits = Decimal(printed)
        shortened = {Decimal(ours).quantize(digits, rounding=mode) for mode in (ROUND_HALF_UP, ROUND_DOWN)}
        assert our_unit == unit
        assert digits in shortened, number


@pytest.mark.parametrize("name", FIXTURES)
def test_published_total_is_that_of_the_published_code(costs: dict[str, Cost], name: str) -> None:
    document = json.loads((ASSETS / f"{FIXTURES[name]}.json").read_text())
    paper = published_costs(name, costs[name])
    weights = sum(torch.Size(shape).numel() for _, shape, *_ in document["keys"])  # Keras counts them all
    assert paper.total == document.get("n_params", weights)


@pytest.mark.parametrize("name", ["ddamfn", "poster_v1_small", "poster_v2"])
def test_dead_parameters_are_those_that_the_importer_drops(costs: dict[str, Cost], name: str) -> None:
    document = json.loads((ASSETS / f"{FIXTURES[name]}.json").read_text())
    sizes = {key: torch.Size(shape).numel() for key, shape, *_ in document["keys"]}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    dropped = sum(sizes[key] for key in dead_keys(name, sizes) if not key.endswith(statistics))
    paper = published_costs(name, costs[name])
    assert sum(paper.dead.values()) == dropped


@pytest.mark.parametrize("name", ["poster_v1_tiny", *(name for name in MODELS if name.endswith("_nano"))])
def test_macs_are_what_torchs_counter_counts(costs: dict[str, Cost], name: str) -> None:
    with torch.device("meta"):
        model = create_model(name).eval()
        image = torch.empty(1, 3, model.input_size, model.input_size)
    with FlopCounterMode(display=False) as counter, countable(), torch.no_grad():
        model(image)
    assert costs[name].operations.macs == counter.get_total_flops() / 2


@pytest.mark.parametrize("name", ["poster_v1_tiny", "poster_v2", "btn", "dynamic_vit_tiny", "lhc_net"])
def test_attention_is_counted(costs: dict[str, Cost], name: str) -> None:
    assert costs[name].operations.matmul > 0


def test_measuring_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = create_model("ddamfn_nano").train()
    model.features.eval()  # type: ignore[union-attr]
    before = {name: (module, module.training) for name, module in model.named_modules()}
    cost = measure(model)
    assert cost == cost_of("ddamfn_nano")
    assert {name: (module, module.training) for name, module in model.named_modules()} == before


def test_btn_evaluates_at_the_cost_of_poster_v2(costs: dict[str, Cost]) -> None:
    assert costs["btn"].operations == costs["poster_v2"].operations
    assert costs["btn"].parameters > costs["poster_v2"].parameters


def test_the_blocks_of_lhc_net_have_the_published_parameters() -> None:
    with torch.device("meta"):
        for name in ("lhc_net", "lhc_netc"):
            blocks = create_model(name).get_submodule("lhc")
            assert sum(p.numel() for key, p in blocks.named_parameters() if not key.endswith(".w")) == 4_805_444


def test_poster_v2_takes_more_arithmetic_than_poster_v1_and_the_slides_saving_is_44_percent(
    costs: dict[str, Cost],
) -> None:
    assert costs["poster_v2"].operations.macs > costs["poster_v1_large"].operations.macs
    saving = 1 - costs["dynamic_vit_base"].operations.macs / costs["vit_b16"].operations.macs
    assert round(100 * saving) == 44
    routed = cost_of("vit_b16", attention="dynamic")
    assert round(100 * (1 - routed.operations.macs / costs["vit_b16"].operations.macs)) == 4
    assert costs["ddamfn"].parameters < costs["mfn"].parameters


def test_the_command_prints_every_model_and_the_published_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer.models.list_models", lambda: ["ddamfn_nano", "poster_v2"])
    command.main(argparse.Namespace(num_classes=7, cost=True, json=False))
    lines = capsys.readouterr().out.splitlines()
    first = {line.split()[0]: line for line in lines if line.strip()}
    assert first["ddamfn_nano"].split() == ["ddamfn_nano", "64px", "89,919", "-", "0.004"]
    assert "43,753,941  58,316,594   8.592" in first["poster_v2"]
    assert "8.4 G    8.482 G" in lines[lines.index(first["poster_v2"]) + 1]


def test_without_the_option_the_command_prints_a_line_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(argparse.Namespace(num_classes=8, cost=False, json=False))
    lines = capsys.readouterr().out.splitlines()
    assert set(MODELS) <= {line.split()[0] for line in lines[1:]}  # other tests register toys beside them
    assert any(line.startswith("poster_v2 ") and "43,754,710" in line and "cross-attention" in line for line in lines)


def test_what_is_kept_for_the_backward_pass_is_counted_once_and_without_parameters() -> None:
    class Two(FerModel):
        def __init__(self) -> None:
            super().__init__(7, input_size=4)
            self.fc = nn.Linear(48, 7)

        def forward(self, x: Tensor) -> TrainOutput:
            x = x.flatten(1).exp()  # kept twice, by exp and by the layer, in one storage
            return TrainOutput(self.fc(x), {})

    model = Two()
    assert kept_for_backward(model, torch.zeros(2, 3, 4, 4).requires_grad_()) == 2 * 48 * 4
    assert kept_for_backward(model, torch.zeros(6, 3, 4, 4).requires_grad_()) == 6 * 48 * 4


def test_dynamic_attention_keeps_more_for_training_than_a_plain_vision_transformer() -> None:
    """The slides say less memory and print no number; docs/models.md has these, in MB an image."""
    found = {}
    with torch.device("meta"), countable():
        for name, options in (
            ("vit_b16", {}),
            ("vit_b16", {"attention": "dynamic"}),
            ("dynamic_vit_base", {"topk": 2}),
        ):
            kept = kept_for_backward(create_model(name, 7, **options), torch.empty(2, 3, 224, 224))
            found[name, *options] = round(kept / 2e6, 1)
    assert found == {("vit_b16",): 139.8, ("vit_b16", "attention"): 151.1, ("dynamic_vit_base", "topk"): 297.9}
