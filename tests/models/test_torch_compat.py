"""Canaries of `fer.models.compat`: a version of torch that changes a private part fails here, by name."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fer.models import compat

HINT = f"torch {torch.__version__} changed a private part: mend its function in fer/models/compat.py"


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def test_bf16_is_fast_where_the_system_names_its_instructions() -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if "flags" not in flags:
        pytest.skip("the system names no instructions here")
    assert compat.has_fast_bf16() == any(name in flags for name in ("avx512_bf16", "amx_bf16")), HINT


@pytest.mark.parametrize("gelu", [False, True])
def test_onednn_linear_is_the_public_one(gelu: bool) -> None:
    if not compat.has_onednn():
        pytest.skip("torch has no oneDNN here")
    x, weight, bias = random(4, 6), random(5, 6), random(5)
    expected = F.linear(x, weight, bias)
    with torch.no_grad():
        found = compat.onednn_linear(x, weight, bias, gelu=gelu)
    assert torch.allclose(found, F.gelu(expected) if gelu else expected, atol=1e-5), HINT


@pytest.mark.parametrize("leaky", [None, 0.1])
def test_packed_convolution_is_the_public_one(leaky: float | None) -> None:
    if not compat.has_onednn():
        pytest.skip("torch has no oneDNN here")
    conv, x = nn.Conv2d(3, 8, 3, stride=2, padding=1), random(2, 3, 9, 9)
    with torch.no_grad():
        expected, found = conv(x), compat.onednn_conv(x, compat.onednn_pack(conv, leaky=leaky))
    assert torch.allclose(found, expected if leaky is None else F.leaky_relu(expected, leaky), atol=1e-5), HINT


def test_operations_on_many_tensors_are_those_on_each() -> None:
    ones, others = [random(3), random(2, 2)], [random(3) + 1, random(2, 2) - 1]
    products = compat.multiply_all(ones, others)
    assert all(torch.equal(product, a * b) for product, a, b in zip(products, ones, others, strict=True)), HINT
    for operation, expected in (
        (lambda moved: compat.add_all_(moved, others), [a + b for a, b in zip(ones, others, strict=True)]),
        (lambda moved: compat.scale_all_(moved, torch.tensor(0.3)), [a * torch.tensor(0.3) for a in ones]),
        (
            lambda moved: compat.lerp_all_(moved, others, 0.1),
            [a.lerp(b, 0.1) for a, b in zip(ones, others, strict=True)],
        ),
    ):
        moved = [one.clone() for one in ones]
        operation(moved)
        assert all(torch.equal(a, b) for a, b in zip(moved, expected, strict=True)), HINT


def test_every_batchnorm_has_the_base_class() -> None:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    assert all(issubclass(kind, compat.BatchNorm) for kind in kinds), HINT
    assert not issubclass(nn.LayerNorm, compat.BatchNorm), HINT


def test_operations_pass_the_dispatch_mode() -> None:
    seen: list[str] = []

    class Mode(compat.DispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    assert TorchDispatchMode._should_skip_dynamo(), HINT  # which ours turns off
    with Mode():
        random(2, 2) @ random(2, 2)
    assert any("mm" in name for name in seen), HINT
