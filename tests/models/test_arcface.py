"""ArcFace: the margin of the paper's equation 3 to the last digit, finite gradients, transferable features."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fer.labels import identities
from fer.models import TrainOutput, create_model
from fer.models.arcface import ArcFace, with_margin
from fer.weights.parts import load_part, locate
from fer.weights.store import load_model, read_info, save_model

NAMES = ["mfn_arcface", "ir50_arcface", "mobilefacenet_arcface", "mfn_arcface_nano"]
PEOPLE = 12


def build(name: str = "mfn_arcface_nano", people: int = PEOPLE, seed: int = 0, **options: float) -> ArcFace:
    torch.manual_seed(seed)
    model = create_model(name, people, **options)
    assert isinstance(model, ArcFace)
    return model


def equation_3(cosines: Tensor, targets: Tensor, scale: float, margin: float) -> float:
    """The paper's equation 3, sample by sample, through the angle itself."""
    total = 0.0
    for row, target in zip(cosines.double().tolist(), targets.tolist(), strict=True):
        own = math.exp(scale * (math.cos(math.acos(row[target]) + margin) - 1))
        others = sum(math.exp(scale * (value - 1)) for place, value in enumerate(row) if place != target)
        total -= math.log(own / (own + others))
    return total / len(targets)


@pytest.mark.parametrize(("scale", "margin"), [(64.0, 0.5), (24.0, 0.3), (8.0, 0.0)])
def test_the_loss_is_equation_3(scale: float, margin: float) -> None:
    model = build(scale=scale, margin=margin)
    generator = torch.Generator().manual_seed(3)
    cosines = torch.rand(20, PEOPLE, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    targets = torch.randint(PEOPLE, (20,), generator=generator)
    loss = model.loss(TrainOutput(scale * cosines, {}), targets)
    assert loss.item() == pytest.approx(equation_3(cosines, targets, scale, margin), rel=1e-12)


def test_the_margin_falls_with_the_cosine_all_the_way_and_never_helps() -> None:
    cosines = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    moved = with_margin(cosines, 0.5)
    assert (moved.diff() > 0).all()
    assert (moved <= cosines + 1e-3).all()  # the root is kept from 0: an ulp of the angle next to 1
    past = cosines < math.cos(math.pi - 0.5)
    assert torch.equal(moved[past], cosines[past] - 0.5 * math.sin(0.5))


def test_gradients_are_the_numerical_ones_and_finite_at_both_ends() -> None:
    inner = torch.tensor([-0.95, -0.6, 0.0, 0.4, 0.99], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: with_margin(x, 0.5), inner)
    ends = torch.tensor([-1.0, 1.0], requires_grad=True)
    with_margin(ends, 0.5).sum().backward()  # type: ignore[no-untyped-call]
    assert ends.grad.isfinite().all()


def test_the_loss_has_the_numerical_gradient_in_embeddings_and_people() -> None:
    model = build(people=5)
    generator = torch.Generator().manual_seed(0)
    embeddings, people = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (3, 5))
    targets = torch.tensor([0, 4, 2])

    def loss(embeddings: Tensor, people: Tensor) -> Tensor:
        logits = model.scale * F.linear(F.normalize(embeddings), F.normalize(people))
        return model.loss(TrainOutput(logits, {}), targets)

    assert torch.autograd.gradcheck(loss, (embeddings.requires_grad_(), people.requires_grad_()))


def test_soft_targets_give_the_margin_to_the_largest_share() -> None:
    model = build(people=4)
    logits = model.scale * torch.tensor([[0.5, 0.1, -0.2, 0.3], [0.0, 0.4, 0.2, 0.1]])
    hard = torch.tensor([0, 1])
    smooth = F.one_hot(hard, 4).float() * 0.9 + 0.025
    moved = logits.clone()
    for row, target in enumerate(hard.tolist()):
        moved[row, target] = model.scale * math.cos(math.acos(logits[row, target].item() / model.scale) + model.margin)
    torch.testing.assert_close(model.loss(TrainOutput(logits, {}), smooth), F.cross_entropy(moved, smooth))


def test_embeddings_have_length_one_and_logits_are_scaled_cosines() -> None:
    model = build().eval()
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        embeddings, logits = model.embed(x), model(x)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(logits, 64 * embeddings @ F.normalize(model.people).T)


def test_cosines_are_float32_under_bfloat16() -> None:
    model = build().train()
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
        loss = model.loss(output, torch.tensor([0, 1, 2, 3]))
    assert output.logits.dtype == loss.dtype == torch.float32
    assert len(output.logits.unique()) == output.logits.numel()  # bfloat16 would make some of them equal
    loss.backward()
    assert model.people.grad.isfinite().all()


@pytest.mark.parametrize(
    ("donor", "taker", "part"),
    [
        ("mfn_arcface_nano", "ddamfn_nano", "features"),
        ("mfn_arcface", "ddamfn", "features"),
        ("ir50_arcface", "ir50", "features"),
        ("ir50_arcface", "poster_v2", "image"),  # three stages of the four
        ("mobilefacenet_arcface", "mobilefacenet", "features"),
        ("mobilefacenet_arcface", "poster_v2", "landmarks"),
    ],
)
def test_features_move_into_the_model_that_starts_from_them(donor: str, taker: str, part: str) -> None:
    from fer.weights.parts import branch_state, list_parts

    with torch.device("meta"):
        given, model = create_model(donor, PEOPLE), create_model(taker)
    assert part in list_parts(model)
    module = model.get_submodule(part)
    state = branch_state(module, given.state_dict())
    assert {key: t.shape for key, t in state.items()} == {key: t.shape for key, t in module.state_dict().items()}


def test_a_weights_file_of_people_initializes_a_model_and_holds_no_names(tmp_path: Path) -> None:
    people = identities([f"person {number}" for number in range(3000)])
    donor = build(people=3000, seed=1)
    path = tmp_path / "donor.safetensors"
    save_model(donor, path, people.labels, people.name, name="mfn_arcface_nano")
    assert len(path.read_bytes().partition(b"features.")[0]) < 2000
    assert b"person" not in path.read_bytes()
    assert read_info(path).labels == people.labels
    again, _ = load_model(path, labels=people.labels)
    assert torch.equal(again.state_dict()["people"], donor.people)
    model = create_model("ddamfn_nano")
    [source] = locate({"features": str(path)}, tmp_path)
    load_part(model, source)
    for key, tensor in model.get_submodule("features").state_dict().items():
        assert torch.equal(tensor, donor.features.state_dict()[key]), key
