"""What BTN promises: the worked example of its attention, groups on any number of ranks, POSTER V2 in evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from builders.conformance import assert_close, load
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fer.models import FerModel, TrainOutput, create_model
from fer.models.btn import BTN, BatchTransformer, class_batch_attention, sinusoid
from fer.models.inference import for_inference

SCALES = {"none": "paper eq.(4)", "classes": "official README excerpt", "dim": "conventional"}

OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_mla": False},
    {"use_bt": False},
    {"use_mla": False, "use_bt": False},
    {"loss_cba": False},
    {"loss_bt": False},
    {"loss_cba": False, "loss_bt": False},
    {"lambda_": 1.25},
    {"attention_batch": 2},
    {"scale": "none"},
    {"class_prediction": "probabilities"},
    {"positional_encoding": "learned_scalar"},
    {"positional_encoding": "sinusoid"},
    {"positional_encoding": "none"},
    {"mla_attention": "window"},
    {"mla_residual": True},
    {"downsample": "pool"},
    {"embedding_kernel": 3},
]


def batch(model: FerModel, size: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, model.input_size, model.input_size, generator=generator)


def transformer(scale: str = "classes", attention_batch: int | None = None) -> BatchTransformer:
    return BatchTransformer(2, 4, positional_encoding="none", scale=scale, attention_batch=attention_batch)


def worked_example(scale: str) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Class maps, predictions, targets; and what comes of them."""
    document = load("btn_cba")
    given = document["input"]
    expected = next(variant for name, variant in document["variants"].items() if name.startswith(SCALES[scale]))
    maps, predictions = torch.tensor(given["E (B,N,HW)"]), torch.tensor(given["P_VIT (B,N)"])
    return maps.double(), predictions.double(), torch.tensor(given["targets"]), expected


@pytest.mark.parametrize("scale", SCALES)
def test_class_batch_attention_is_the_worked_example(scale: str) -> None:
    maps, predictions, targets, expected = worked_example(scale)
    attended = transformer(scale)(maps, predictions)
    assert_close(attended, expected["P_CBA (B,N)"], 1e-6, "P_CBA")
    for image in range(3):  # the weights of one image are what comes of predictions that are 1 for it and else 0
        one = torch.eye(3)[image, :, None].expand(-1, 2).double()
        weights = torch.tensor(expected["attention_weights (N,B,B)"])[:, :, image].t()
        assert_close(transformer(scale)(maps, one), weights, 1e-6, "attention weights")
    model = create_model("btn_nano", 2)
    output = TrainOutput(predictions, {"cba": attended, "bt": attended + predictions})
    assert_close(output.aux["bt"], expected["P_BT = P_CBA + P_VIT (B,N)"], 1e-6, "P_BT")
    assert_close(model.loss(output, targets), expected["L = 2*L_VIT + L_BT + L_CBA"], 3e-6, "loss")


def test_class_batch_attention_has_the_properties_of_an_average_over_the_batch() -> None:
    torch.manual_seed(0)
    maps, predictions = torch.randn(6, 2, 4), torch.randn(6, 2)
    maps[5] = maps[4]
    attended = transformer()(maps, predictions)
    order = torch.randperm(6)
    torch.testing.assert_close(transformer()(maps[order], predictions[order]), attended[order])
    torch.testing.assert_close(attended[5], attended[4])
    assert (attended >= predictions.min(0).values).all()
    assert (attended <= predictions.max(0).values).all()
    torch.testing.assert_close(transformer()(maps[:1], predictions[:1]), predictions[:1])


@pytest.mark.parametrize("attention_batch", [2, 3, 4, 7, 9])
def test_groups_attend_each_in_itself(attention_batch: int) -> None:
    torch.manual_seed(0)
    maps, predictions = torch.randn(7, 2, 4), torch.randn(7, 2)
    groups = zip(maps.split(attention_batch), predictions.split(attention_batch), strict=True)
    expected = torch.cat([class_batch_attention(m, m, p, scale=2**-0.5) for m, p in groups])
    torch.testing.assert_close(transformer(attention_batch=attention_batch)(maps, predictions), expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains_all_that_it_owns(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = create_model("btn_nano", **options)
    output = model(batch(model))
    assert all(prediction.shape == (5, 7) for prediction in output.aux.values())
    model.loss(output, torch.arange(5)).backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_ablations_have_the_predictions_that_their_losses_need() -> None:
    def aux(**options: Any) -> set[str]:
        model = create_model("btn_nano", **options)
        return set(model(batch(model)).aux)

    assert aux() == {"cba", "bt"}
    assert aux(use_mla=False) == {"cba", "bt"}
    assert aux(use_bt=False) == {"mla"}
    assert aux(loss_cba=False, loss_bt=False) == aux(use_mla=False, use_bt=False) == set()


def test_losses_are_weighed_and_left_out_as_asked() -> None:
    torch.manual_seed(0)
    targets = torch.tensor([0, 1, 6])
    output = TrainOutput(torch.randn(3, 7), {"cba": torch.randn(3, 7), "bt": torch.randn(3, 7)})
    vit, cba, bt = (nn.functional.cross_entropy(x, targets) for x in (output.logits, *output.aux.values()))

    def loss(**options: Any) -> Tensor:
        return create_model("btn_nano", **options).loss(output, targets)

    torch.testing.assert_close(loss(), 2 * vit + bt + cba)
    torch.testing.assert_close(loss(lambda_=1.25), 1.25 * vit + bt + cba)
    torch.testing.assert_close(loss(loss_bt=False), 2 * vit + cba)
    torch.testing.assert_close(loss(loss_cba=False), 2 * vit + bt)
    torch.testing.assert_close(loss(loss_cba=False, loss_bt=False), 2 * vit)


def test_evaluation_is_poster_v2s_bit_for_bit() -> None:
    torch.manual_seed(0)
    poster, model = create_model("poster_v2_nano").eval(), create_model("btn_nano").eval()
    assert isinstance(model, BTN)
    model.poster.load_state_dict(poster.state_dict(), strict=True)
    x = batch(model)
    with torch.inference_mode():
        assert torch.equal(model(x), poster(x))
        assert torch.equal(for_inference(model)(x), for_inference(poster)(x))


def test_the_model_for_inference_owns_nothing_of_the_training() -> None:
    model = create_model("btn_nano")
    poster = create_model("poster_v2_nano")
    sizes = [sum(t.numel() for t in for_inference(m).state_dict().values()) for m in (model, poster)]
    assert sizes[0] == sizes[1]


def test_attention_within_the_batch_keeps_float32_under_autocast() -> None:
    torch.manual_seed(0)
    model = create_model("btn_nano")
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch(model))
    assert {prediction.dtype for prediction in output.aux.values()} == {torch.float32}


def test_sinusoid_is_the_transformers() -> None:
    encoding = sinusoid(7, 49)
    assert encoding.shape == (1, 7, 49)
    torch.testing.assert_close(encoding[0, 3, 4], torch.sin(torch.tensor(3 / 10000 ** (4 / 49))))
    torch.testing.assert_close(encoding[0, 3, 5], torch.cos(torch.tensor(3 / 10000 ** (4 / 49))))
    torch.testing.assert_close(encoding[0, 3, 48], torch.sin(torch.tensor(3 / 10000 ** (48 / 49))))


GLOBAL_BATCH = 8
RANKS = 2


def loss_and_gradients(attention_batch: int | None, rank: int, ranks: int) -> dict[str, Tensor]:
    """Of a rank's slice of the global batch, by DistributedDataParallel where there are several.

    BatchNorm keeps its statistics: taken of a rank's slice alone, they would differ between numbers of ranks.
    """
    torch.manual_seed(0)
    model = create_model("btn_nano", attention_batch=attention_batch).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    share = slice(rank * GLOBAL_BATCH // ranks, (rank + 1) * GLOBAL_BATCH // ranks)
    x, targets = batch(model, GLOBAL_BATCH).double()[share], (torch.arange(GLOBAL_BATCH) % 7)[share]
    parallel = DistributedDataParallel(model) if ranks > 1 else model
    loss = model.loss(parallel(x), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    return {"loss": loss.detach(), **gradients}


def run_rank(rank: int, folder: str) -> None:
    """One process: all cases, into a file of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    results = {group: loss_and_gradients(group, rank, RANKS) for group in (None, 2, 3)}
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_have_the_loss_and_the_gradients_of_one(tmp_path: Path) -> None:
    """Groups: the whole batch; pairs, each within one rank; threes, one of which straddles the ranks."""
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=RANKS)  # type: ignore[no-untyped-call]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(RANKS)]
    for group in (None, 2, 3):
        expected = loss_and_gradients(group, rank=0, ranks=1)
        loss = torch.stack([results[group].pop("loss") for results in ranks]).mean()
        torch.testing.assert_close(loss, expected.pop("loss"), rtol=1e-12, atol=1e-12)
        for results in ranks:
            torch.testing.assert_close(results[group], expected, rtol=1e-10, atol=1e-12)
