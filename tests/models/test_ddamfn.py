"""What DDAMFN, MFN and the layers they stand on promise beyond parity."""

import pytest
import torch
from torch import Tensor, nn

from fer.models import FerModel, create_model
from fer.models.ddamfn import attention_loss
from fer.models.layers.conv import PReLU


def train_batch(model: FerModel) -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, model.input_size, model.input_size), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("num_heads", range(5))
def test_any_number_of_heads_trains(num_heads: int) -> None:
    model = create_model("ddamfn_nano", num_heads=num_heads)
    x, targets = train_batch(model)
    output = model(x)
    loss = model.loss(output, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in model.parameters())
    if num_heads:
        assert output.aux["attention"].shape[:2] == (4, num_heads)
    else:
        assert output.aux == {}
    if num_heads < 2:
        assert loss.item() == pytest.approx(nn.functional.cross_entropy(output.logits, targets).item())


def test_attention_loss_definition_and_weight_are_options() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 64, 64)
    targets = torch.tensor([0, 1, 2, 3])
    added = {}
    for definition in ("code", "paper"):
        for weight in (0.0, 0.2):
            torch.manual_seed(0)
            model = create_model("ddamfn_nano", attention_loss=definition, attention_loss_weight=weight).double()
            added[definition, weight] = model.loss(model(x.double()), targets).item()
    code = added["code", 0.2] - added["code", 0.0]
    paper = added["paper", 0.2] - added["paper", 0.0]
    assert code > 0
    assert code == pytest.approx(2 * paper)


def test_attention_loss_of_equal_heads_and_its_gradient_are_finite() -> None:
    maps = torch.rand(2, 1, 3, 4, 4).expand(-1, 2, -1, -1, -1).clone().requires_grad_()
    loss = attention_loss(maps)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_prelu_has_the_gradients_of_torchs(memory_format: torch.memory_format, autocast: bool) -> None:
    x = torch.randn(4, 6, 5, 5).to(memory_format=memory_format)
    x = x.bfloat16() if autocast else x
    x[0, 0, 0, 0] = 0.0
    grad = torch.randn_like(x)
    results = []
    for layer in (nn.PReLU(6), PReLU(6)):
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-0.5, 1.5, 6))
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer(inputs)
        y.backward(grad)
        results.append((y, inputs.grad, layer.weight.grad))
    for theirs, ours in zip(*results, strict=True):
        assert theirs.dtype == ours.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-2 if autocast else 1e-6, atol=2e-2 if autocast else 1e-6)
