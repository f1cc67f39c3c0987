"""MobileFaceNet with its landmark head as published: github.com/Talented-Q/POSTER_V2, `models/mobilefacenet.py`."""

from torch import Tensor

from fer.bench.yardsticks.published import Published


def mobilefacenet(p: Published, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B,3,112,112) -> (B,64,28,28), (B,128,14,14), (B,512,7,7), and the landmarks (B,136)."""
    x = _block(p.within("conv1."), x, 64, 3, stride=2, padding=1)
    x = _block(p.within("conv2_dw."), x, 64, 3, padding=1, groups=64)
    x = _bottleneck(p.within("conv_23."), x, 64, 128, stride=2)
    third = _residuals(p.within("conv_3."), x, 4, 128)
    x = _bottleneck(p.within("conv_34."), third, 128, 256, stride=2)
    fourth = _residuals(p.within("conv_4."), x, 6, 256)
    x = _bottleneck(p.within("conv_45."), fourth, 128, 512, stride=2)
    x = _residuals(p.within("conv_5."), x, 2, 256)
    last = _block(p.within("conv_6_sep."), x, 512, 1)
    head = p.within("output_layer.")
    y = _block(head.within("conv_6_dw."), last, 512, 7, groups=512, act=False)
    y = head.bn(head.linear(y.view(y.size(0), -1), "linear", 136, bias=False), "bn")
    return third, fourth, last, y


def _residuals(p: Published, x: Tensor, depth: int, expanded: int) -> Tensor:
    for block in range(depth):
        x = x + _bottleneck(p.within(f"model.{block}."), x, x.shape[1], expanded, stride=1)
    return x


def _bottleneck(p: Published, x: Tensor, width: int, expanded: int, *, stride: int) -> Tensor:
    x = _block(p.within("conv."), x, expanded, 1)
    x = _block(p.within("conv_dw."), x, expanded, 3, stride=stride, padding=1, groups=expanded)
    return _block(p.within("project."), x, width, 1, act=False)


def _block(
    p: Published,
    x: Tensor,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    act: bool = True,
) -> Tensor:
    x = p.bn(p.conv(x, "conv", out_channels, kernel, stride=stride, padding=padding, groups=groups), "bn")
    return p.prelu(x, "prelu") if act else x
