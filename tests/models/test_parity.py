"""Parity of every model with its published implementation, by the numbers of tests/assets/conformance.

A fixture fills a state dict of the published layout by a rule. It goes through `fer.weights.convert` into our model,
whose outputs are compared: so one test holds the architecture and the importer at once. Worked examples of single
modules are in test_worked_examples.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders.conformance import (
    ASSETS,
    assert_close,
    assert_summary,
    fixture_input,
    load,
    model_input,
    nhwc,
    published_model,
    published_state,
)
from torch import Tensor, nn

from fer.models import FerModel, TrainOutput, create_model
from fer.models.ddamfn import attention_loss
from fer.models.inference import for_inference
from fer.models.layers import routing
from fer.models.layers.attention import CrossAttention, countable
from fer.models.layers.linear import DropPath
from fer.models.lhc_net import LHCNet
from fer.weights.convert import convert, dead_keys, published_options
from fer.weights.layouts import LAYOUTS

Outputs = dict[str, Any]
"""What every module of a model returned, by its name."""


@dataclass(frozen=True)
class Case:
    """A fixture's model and the options that its tensors do not determine.

    outputs: what the fixture calls its logits.
    stages: our intermediate results by the beginning of the fixture's name for them; and the fixture's that have none.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    outputs: Callable[[FerModel, Tensor], Tensor] = lambda model, x: model(x)
    stages: Callable[[FerModel, Outputs], dict[str, Any]] = lambda model, outputs: {}
    without: frozenset[str] = frozenset()
    stage_tolerance: float = 1e-4
    float64: float = 1e-11


# ------------------------------------------------------------------------------------------------ stages


def mfn_stages(model: FerModel, outputs: Outputs) -> dict[str, Tensor]:
    names = [f"features.{name}" for name, _ in model.get_submodule("features").named_children()]
    heads = {f"cat_head{head}": outputs[f"heads.{head}"] for head in range(len(getattr(model, "heads", ())))}
    if heads:
        return {f"features.{n}": outputs[name] for n, name in enumerate(names)} | heads | {"Linear": outputs["pool"]}
    published = ("conv1", "conv2_dw", "conv_23", "conv_3", "conv_34", "conv_4", "conv_45", "conv_5", "conv_6_sep")
    head = {"conv_6_dw": outputs["pool"], "linear": outputs["embed"], "bn": outputs["bn"]}
    return {theirs: outputs[ours] for theirs, ours in zip(published, names, strict=True)} | head


def renamed(**names: str) -> Callable[[FerModel, Outputs], dict[str, Tensor]]:
    """Our modules by the published names."""
    return lambda model, outputs: {theirs: outputs[ours] for theirs, ours in names.items()}


def poster_v1_stages(model: FerModel, outputs: Outputs) -> dict[str, Tensor]:
    stages = {
        "face_landback.conv_features": outputs["landmarks.out"],
        "ir_back.body": outputs["image.stage3"],
        "ir_layer": outputs["image_proj"],
        "pyramid_fuse.downsample_m": outputs["narrow.0"],
        "pyramid_fuse.downsample_s": outputs["narrow.1"],
        "se_block": outputs["gate"],
    }
    for block in range(6):
        for level, tokens in zip("lms", outputs[f"blocks.{block}"], strict=True):
            stages[f"pyramid_fuse.blocks.{block} level {level}"] = tokens
    return stages


def poster_v2_stages(model: FerModel, outputs: Outputs) -> dict[str, Tensor]:
    landmarks = zip(("out3", "out4", "conv_features"), outputs["landmarks"], strict=True)
    stages = {f"face_landback.{name}": stage for name, stage in landmarks}
    stages["last_face_conv"] = outputs["fusions.2.landmark_conv"]
    for number, image in enumerate(outputs["image"], 1):
        fusion = f"fusions.{number - 1}"
        scale = model.get_parameter(f"{fusion}.attention.proj.scale").detach()
        stages[f"ir_back.body{number}"] = image
        stages[f"conv{number}"] = outputs[f"{fusion}.down"]
        stages[f"attn{number}"] = outputs[f"{fusion}.attention"] / scale
        stages[f"ffn{number}"] = outputs[fusion].permute(0, 2, 3, 1)
    stages["window1.shortcut"] = outputs["fusions.0.norm1"]
    stages["embed_q"] = outputs["embeddings.0"].transpose(1, 2)
    stages["embed_k"] = outputs["embeddings.1"].transpose(1, 2)
    stages["embed_v"] = outputs["embeddings.2"]
    stages["VIT.blocks.0"] = outputs["vit.blocks.0"]
    stages["VIT.blocks.1"] = outputs["vit.blocks.1"]
    stages["VIT.se_block"] = outputs["gate"]
    return stages


def biformer_stages(model: FerModel, outputs: Outputs) -> dict[str, Tensor]:
    depths = [len(list(stage.children())) for stage in model.get_submodule("stages").children()]
    stages = {"norm": outputs["norm"]}
    for stage in range(4):
        down = "stem" if stage == 0 else f"halvings.{stage - 1}"
        stages[f"downsample_layers.{stage}"] = outputs[down].permute(0, 3, 1, 2)
        stages[f"stages.{stage}.0 (first block)"] = outputs[f"stages.{stage}.0"].permute(0, 3, 1, 2)
        stages[f"stages.{stage}"] = outputs[f"stages.{stage}"].permute(0, 3, 1, 2)
        if stage < 3:
            stages[f"stages.{stage}.0 router"] = outputs["routes"][sum(depths[:stage])].float()
    return stages


def lhc_stages(model: FerModel, outputs: Outputs) -> dict[str, Tensor]:
    stages = {"bn+relu": outputs["head.bn"].relu(), "fc1": outputs["head.fc1"], "fc2": outputs["head.fc2"]}
    depths = [len(list(stage.children())) for stage in model.get_submodule("stages").children()]
    stages["conv1"] = outputs["lhc.0"]
    for stage, depth in enumerate(depths, 2):
        for unit in range(1, depth + 1):  # a block's output is the published unit's
            last = unit == depth
            stages[f"conv{stage}_{unit}"] = outputs[f"lhc.{stage - 1}" if last else f"stages.{stage - 2}.{unit - 1}"]
    return {name: nhwc(F.relu(x) if name in ("fc1", "fc2") else x) for name, x in stages.items()}


def resnet34v2_stages(model: FerModel, outputs: Outputs) -> dict[str, Tensor]:
    stages = {f"stage{stage}_unit1_relu1": outputs[f"stages.{stage - 1}.0.bn1"].relu() for stage in (2, 3, 4)}
    stages |= {"bn_data": outputs["stem.norm"], "pooling0": outputs["stem"], "relu1": outputs["head.bn"].relu()}
    return {name: nhwc(x) for name, x in stages.items()}


# ------------------------------------------------------------------------------------------------ the table

DDAMFN = Case("ddamfn", stages=mfn_stages)
POSTER_V2 = Case(
    "poster_v2",
    stages=poster_v2_stages,
    without=frozenset({"VIT", "VIT.norm"}),  # the tokens as one tensor, and the LayerNorm of unused tokens
    stage_tolerance=1e-5,
    float64=1e-12,
)
CASES: dict[str, Case] = {
    "ddamfn_7cls": DDAMFN,
    "ddamfn_7cls_h3": DDAMFN,
    "ddamfn_8cls": DDAMFN,
    "mfn": Case("mfn", stages=mfn_stages),
    "ir50": Case(
        "ir50",
        outputs=lambda model, x: model.get_submodule("features")(x)[-1].mean((2, 3))[:, :8],
        stages=renamed(
            input_layer="features.stem", body1="features.stage1", body2="features.stage2", body3="features.stage3"
        ),
    ),
    "mobilefacenet": Case(
        "mobilefacenet_landmarks",
        outputs=lambda model, x: model(x).flatten(1),
        stages=renamed(
            conv1="features.stem", conv_3="features.stage1", conv_4="features.stage2", conv_6_sep="features.out"
        ),
    ),
    "poster_v1_small_7cls": Case(
        "poster_v1_small",
        stages=poster_v1_stages,
        without=frozenset({"pyramid_fuse.norm"}),  # ours normalizes the class token only
    ),
    "poster_v2_7cls": POSTER_V2,
    "poster_v2_8cls": POSTER_V2,
    "biformer_tiny_224_default": Case("dynamic_vit_tiny", {"drop_path_rate": 0.0}, stages=biformer_stages),
    "biformer_small_224_default": Case("dynamic_vit_small", {"drop_path_rate": 0.0}, stages=biformer_stages),
    "biformer_base_224_default": Case("dynamic_vit_base", {"drop_path_rate": 0.0}, stages=biformer_stages),
    "biformer_base_224_topk2": Case("dynamic_vit_base", {"drop_path_rate": 0.0, "topk": 2}, stages=biformer_stages),
    "biformer_base_256_default": Case(
        "dynamic_vit_base", {"drop_path_rate": 0.0, "input_size": 256}, stages=biformer_stages
    ),
    "resnet34v2": Case("resnet34v2", stages=resnet34v2_stages, stage_tolerance=1e-5),
    "lhc_net": Case("lhc_net", stages=lhc_stages, without=frozenset({"global"}), stage_tolerance=1e-5, float64=1e-12),
    "lhc_netc": Case("lhc_netc", stages=lhc_stages, without=frozenset({"global"}), stage_tolerance=1e-5, float64=1e-12),
}

LARGE = [fixture for fixture in CASES if fixture.startswith(("biformer_small", "biformer_base"))]
"""They take seconds a pass: their further passes are slow tests."""


def sized(fixture: str, *others: Any, slow: bool = True) -> Any:
    return pytest.param(fixture, *others, marks=[pytest.mark.slow] if slow and fixture in LARGE else [])


@dataclass
class Published:
    """Our model with a fixture's weights, in evaluation mode, not to be changed; and the fixture."""

    fixture: str
    case: Case
    model: FerModel
    document: dict[str, Any]

    def __post_init__(self) -> None:
        self.x = model_input(self.document)

    def outputs(self, model: FerModel, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.case.outputs(model, x)


def filled(fixture: str, **options: Any) -> tuple[FerModel, dict[str, Any]]:
    case = CASES[fixture]
    return published_model(fixture, case.model, **case.options, **options)


@pytest.fixture(scope="module", params=CASES)
def published(request: pytest.FixtureRequest) -> Published:
    model, document = filled(request.param)
    return Published(request.param, CASES[request.param], model.eval(), document)


def in_float64(model: FerModel) -> FerModel:
    """A copy in float64. The published POSTER V2 computes its attention's scale, head_dim^-0.5, in float32."""
    model = deepcopy(model).double()
    for module in model.modules():
        if isinstance(module, CrossAttention) and model.name == "poster_v2":
            module.scale = torch.tensor(module.scale, dtype=torch.float32).item()
    return model


# ------------------------------------------------------------------------------------------------ evaluation

WAYS = ("as it is", "channels last", "for inference", "reference")

PASSES = [
    sized(fixture, way, slow=way in ("channels last", "reference"))
    for fixture in CASES
    for way in WAYS
    if way != "reference" or fixture.startswith("biformer")
]


@pytest.mark.parametrize(("published", "way"), PASSES, indirect=["published"])
def test_logits_are_the_published_codes(published: Published, way: str) -> None:
    model, x, document = published.model, published.x, published.document
    if way in ("channels last", "for inference"):
        x = x.to(memory_format=torch.channels_last)
    if way == "for inference":
        model = for_inference(model)
    elif way == "channels last":
        model = deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with countable() if way == "reference" else nullcontext():
        outputs = published.outputs(model, x)
    assert_close(outputs, document["eval_logits"], document["suggested_tolerance_abs"], "logits")
    if "eval_probs" in document:
        assert_close(outputs.softmax(1), document["eval_probs"], 1e-5, "probabilities")


IN_FLOAT64 = [sized(f) for f in CASES if f not in ("poster_v2_8cls", "resnet34v2")]


@pytest.mark.parametrize("published", IN_FLOAT64, indirect=True)
def test_logits_in_float64_agree_beyond_float32(published: Published) -> None:
    [expected] = [value for key, value in published.document.items() if key.startswith("eval_logits_float64")]
    model = in_float64(published.model)
    folded = [for_inference(model)] if published.fixture.startswith(("poster_v2", "biformer")) else []
    for candidate in (model, *folded):
        outputs = published.outputs(candidate, published.x.double())
        assert_close(outputs, expected, published.case.float64, "logits")


@contextmanager
def recorded(model: FerModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outputs]:
    """Within it, what every module returns; and under "routes" the regions chosen by routed attention, in order."""
    outputs: Outputs = {"routes": []}
    route = routing.route

    def recorded_route(*arguments: Any) -> Tensor:
        outputs["routes"].append(route(*arguments))
        chosen: Tensor = outputs["routes"][-1]
        return chosen

    monkeypatch.setattr(routing, "route", recorded_route)
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.__setitem__(name, output))
        for name, module in model.named_modules()
    ]
    yield outputs
    for handle in handles:
        handle.remove()


def test_every_stage_is_the_published_codes(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    case, expected = published.case, published.document["intermediate_eval"]
    reference = case.model == "poster_v2"  # the reference path has every token of the last block
    with recorded(published.model, monkeypatch) as outputs, countable() if reference else nullcontext():
        published.outputs(published.model, published.x)
    stages = case.stages(published.model, outputs)
    names = [name for name in expected if not name.startswith("LHC in")]  # test_worked_examples
    for name in names:
        beginnings = [ours for ours in stages if name == ours or name.startswith((f"{ours} (", f"{ours}+", f"{ours} "))]
        if not beginnings:
            assert name.split(" ")[0] in case.without, name
            continue
        stage = stages[max(beginnings, key=len)]
        if stage.numel() == np.prod(expected[name]["shape"]):  # of some, axes of size 1 or of the map are written apart
            stage = stage.reshape(expected[name]["shape"])
        assert_summary(stage, expected[name], name, relative=1e-9 if "router" in name else case.stage_tolerance)


# ------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Training:
    """One pass in training mode. Tolerances in float64: of values, absolute; of gradients' norms, relative.

    float32: the published code's own deviation times 20, but at least these relative ones, of values, of the gradients'
        total norm and of single norms.
    """

    fixture: str
    section: str = "train_mode"
    options: dict[str, Any] = field(default_factory=dict)
    values: float = 1e-9
    gradients: float = 1e-8
    float32: tuple[float, float, float] = (2e-6, 2e-6, 2e-3)


FROZEN, DRIFT = ("train_mode with face_landback.eval()", "frozen"), ("train_mode official", "drift")


def poster_training(fixture: str, section: str, landmark_bn: str) -> Training:
    tolerances = (1e-10, 1e-8) if "v1" in fixture else (1e-9, 1e-9)
    return Training(fixture, section, {"landmark_bn": landmark_bn}, *tolerances, float32=(2e-6, 2e-3, 2e-3))


def biformer_training(fixture: str) -> Training:
    return Training(fixture, values=1e-10, gradients=1e-10, float32=(0.0, 1e-5, 1e-5))


TINY = "biformer_tiny_224_default"
QUICK = [
    *((Training("ddamfn_7cls"), dtype) for dtype in ("64", "32")),
    (poster_training("poster_v2_7cls", *FROZEN), "32"),
    (biformer_training(TINY), "64"),
]
SLOW = [
    *((Training(fixture), dtype) for fixture in ("ddamfn_7cls_h3", "ddamfn_8cls") for dtype in ("64", "32")),
    *((poster_training("poster_v1_small_7cls", *section), "64") for section in (FROZEN, DRIFT)),
    (poster_training("poster_v2_7cls", *DRIFT), "32"),
    *((poster_training(f"poster_v2_{n}cls", *section), "64") for n in (7, 8) for section in (FROZEN, DRIFT)),
    *((biformer_training(fixture), "64") for fixture in LARGE),
    *((biformer_training(fixture), "32") for fixture in (TINY, *LARGE)),
]
TRAININGS = [
    pytest.param(
        training,
        getattr(torch, f"float{bits}"),
        id="-".join((training.fixture, *training.options.values(), f"float{bits}")),
        marks=[pytest.mark.slow] if (training, bits) in SLOW else [],
    )
    for training, bits in (*QUICK, *SLOW)
]


def training_model(training: Training, dtype: torch.dtype) -> tuple[FerModel, dict[str, Any]]:
    """In training mode, without stochastic depth, as the fixtures were made."""
    model, document = filled(training.fixture, **training.options)
    model = (in_float64(model) if dtype == torch.float64 else model).train()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.eval()
    return model, document


@pytest.mark.parametrize(("training", "dtype"), TRAININGS)
def test_training_pass_is_the_published_codes(training: Training, dtype: torch.dtype) -> None:
    """Logits, losses, gradients and BatchNorm statistics."""
    model, document = training_model(training, dtype)
    train = document["train"]
    [expected] = [numbers for section, numbers in train.items() if section.startswith(training.section)]
    targets = torch.tensor(train["targets"])
    output = model(fixture_input(train["input"]).to(dtype))
    assert isinstance(output, TrainOutput)
    loss = model.loss(output, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    layout = LAYOUTS[CASES[training.fixture].model]
    gradients = {name: p.grad.double().norm().item() for name, p in model.named_parameters() if p.grad is not None}

    def check(actual: Any, published: Any, deviation: Any, kind: int, what: str) -> None:
        size = float(np.abs(published).max())
        if dtype == torch.float32:
            tolerance = max(20 * deviation, training.float32[kind] * size)
        else:
            tolerance = (training.values, training.gradients * size, training.gradients * size)[kind]
        assert_close(actual, published, tolerance, what)

    deviations = expected.get("float32_deviation", {})
    for what, published in expected.items():
        statistics = re.match(r"(.*\.running_(?:mean|var)) after", what)
        if what in ("float32_deviation", "n_params_without_grad"):
            continue
        if what == "grad_l2":
            for key, norm in published.items():
                check(gradients[layout.our_key(key)], norm, deviations.get(what, {}).get(key), 2, f"gradient of {key}")
            continue
        if statistics:
            actual: Any = model.get_buffer(layout.our_key(statistics[1]))[:4]
        elif what == "attention_loss_official":
            actual = attention_loss(output.aux["attention"]).detach()
        elif what == "grad_l2_total":
            actual = np.linalg.norm(list(gradients.values()))
        elif what == "logits":
            actual = output.logits.detach()
        elif what in ("ce", "lsce"):
            smoothing = 0.2 if what == "lsce" else 0.0
            actual = F.cross_entropy(output.logits, targets, label_smoothing=smoothing).detach()
        else:
            assert what.startswith("loss"), what
            actual = loss.detach()
        check(actual, published, deviations.get(what), int(what == "grad_l2_total"), what)


@pytest.mark.slow
def test_one_step_of_sam_is_the_published_codes() -> None:
    """Its two passes both update the BatchNorm statistics, the landmark network's included."""
    model, document = training_model(poster_training("poster_v2_7cls", *DRIFT), torch.float64)
    train = document["train"]
    [expected] = [numbers for name, numbers in train.items() if name.startswith("one official SAM(Adam lr=3.5e-5, rho")]
    x, targets = fixture_input(train["input"]).double(), torch.tensor(train["targets"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=3.5e-5)

    loss = model.loss(model(x), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert_close(loss.detach(), expected["loss first pass"], 1e-9, "first loss")
    weights = [p.detach().clone() for p in parameters]
    norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
    with torch.no_grad():
        for p in parameters:
            assert p.grad is not None
            p.add_(p.grad * 0.05 / (norm + 1e-12))
    optimizer.zero_grad()
    loss = model.loss(model(x), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert_close(loss.detach(), expected["loss second pass (at w + e)"], 1e-8, "second loss")
    with torch.no_grad():
        for p, weight in zip(parameters, weights, strict=True):
            p.copy_(weight)
    optimizer.step()
    with torch.inference_mode():
        logits = model.eval()(x)
    assert_close(logits, expected["eval_logits after the step"], 1e-7, "logits after the step")


@pytest.mark.parametrize("fixture", ["ddamfn_7cls", "ddamfn_7cls_h3", "ddamfn_8cls", "poster_v2_7cls"])
def test_evaluation_on_the_training_input_is_the_published_codes(fixture: str) -> None:
    model, document = filled(fixture)
    expected, x = document["train"]["eval_mode_on_train_input"], fixture_input(document["train"]["input"])
    with torch.inference_mode():
        if fixture == "poster_v2_7cls":
            logits = model.eval()(x)
            assert_close(logits, expected["logits"], 20 * expected["float32_deviation"]["logits"], "logits")
            return
        model.double().train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eval()
        output = model(x.double())
    assert_close(output.logits, expected["logits"], 1e-10, "logits")
    maps = output.aux["attention"]
    assert_close(attention_loss(maps, "code"), expected["attention_loss_official"], 1e-10, "code")
    assert_close(attention_loss(maps, "paper"), expected["attention_loss_paper_equation"], 1e-10, "paper")


# ------------------------------------------------------------------------------------------------ parameters


def is_parameter(key: str) -> bool:
    return key.split(".")[-1] in ("weight", "bias", "cls_token")


def test_published_parameters_are_ours_and_the_dead(published: Published) -> None:
    model, document, name = published.model, published.document, published.case.model
    if "n_weights_total" in document:  # Keras counts the statistics too
        state = model.state_dict()
        assert sum(t.numel() for k, t in state.items() if not k.endswith("tracked")) == document["n_weights_total"]
        return
    sizes = {key: int(np.prod(shape)) for key, shape, *_ in document["keys"]}
    dead = {key: sizes[key] for key in dead_keys(name, sizes) if is_parameter(key)}
    if name == "ir50":  # the head of four stages, which three hold and never call
        dead |= {key: size for key, size in sizes.items() if key.startswith("output_layer.") and is_parameter(key)}
    assert sum(p.numel() for p in model.parameters()) + sum(dead.values()) == document["n_params"]
    for key, without_gradient in document.get("train", {}).items():
        if key.startswith("params_without_grad"):
            assert {key for key in dead if not key.startswith("face_landback")} == set(without_gradient)
    assert bool(dead) == (published.fixture.startswith(("ddamfn", "mfn", "ir50", "poster")))


def test_poster_v1_without_token_mixing_is_the_published_model_for_affectnet() -> None:
    name, document = "poster_v1_small", load("poster_v1_small_7cls")
    mixing = re.compile(r"pyramid_fuse\.blocks\.\d+\.block_[lms]\.conv\.(weight|bias)")
    without = {key: tensor for key, tensor in published_state(document).items() if not mixing.fullmatch(key)}
    model = create_model(name, **published_options(name, without)).eval()
    model.load_state_dict(convert(name, without), strict=True)
    expected = document["affectnet"]
    with torch.inference_mode():
        logits = model(fixture_input(document["input"]))
    assert_close(logits, expected["eval_logits"], expected["suggested_tolerance_abs"], "logits")
    [dead] = [keys for key, keys in expected.items() if key.startswith("params_without_grad")]
    landmark_head = [key for key in dead_keys(name, without) if key.startswith("face_landback")]
    unused = sum(without[key].size for key in [*dead, *landmark_head] if is_parameter(key))
    assert sum(p.numel() for p in model.parameters()) + unused == expected["n_params"]


@pytest.mark.parametrize("published", ["resnet34v2", "lhc_net", "lhc_netc"], indirect=True)
def test_tensorflow_names_make_no_difference(published: Published) -> None:
    state = published_state(published.document)
    named = {f"{key}/.ATTRIBUTES/VARIABLE_VALUE": value for key, value in state.items()}
    converted = convert(published.case.model, named)
    ours = published.model.state_dict()
    assert set(converted) == set(ours)
    assert all(torch.equal(converted[key], ours[key]) for key in ours)


def test_without_values_lhc_net_is_its_host() -> None:
    """The published proof of the weights' import: blocks whose value convolution is zero add nothing."""
    host, document = filled("resnet34v2")
    model = create_model("lhc_net")
    assert isinstance(model, LHCNet)
    model.load_host(host.state_dict())
    x = model_input(document)
    with torch.inference_mode():
        for block in model.lhc:
            block.value.weight.zero_()  # type: ignore[operator,union-attr]
        logits, expected = model.eval()(x), host.eval()(x)
    assert torch.equal(logits, expected)


def test_every_fixture_is_run(repo_root: Path) -> None:
    """The names of the fixtures are quoted in the tests."""
    stored = {path.stem for path in ASSETS.glob("*.json")}
    sources = [path.read_text() for path in (repo_root / "tests").rglob("*.py")]
    quoted = {name for source in sources for name in re.findall(r'"(\w+)(?:\.json)?"', source)}
    assert stored - quoted == set()
    assert len(stored) == 25
