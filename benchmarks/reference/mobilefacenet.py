"""MobileFaceNet with its landmark head as published: github.com/Talented-Q/POSTER_V2, `models/mobilefacenet.py`."""

from torch import Tensor

from benchmarks.reference.published import Published


def mobilefacenet(p: Published, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B,3,112,112) -> (B,64,28,28), (B,128,14,14), (B,512,7,7), and the landmarks (B,136)."""
    x = p.within("conv1.").conv_bn(x, 64, 3, stride=2, padding=1, prelu=True)
    x = p.within("conv2_dw.").conv_bn(x, 64, 3, padding=1, groups=64, prelu=True)
    x = _bottleneck(p.within("conv_23."), x, 64, 128, stride=2)
    third = _residuals(p.within("conv_3."), x, 4, 128)
    x = _bottleneck(p.within("conv_34."), third, 128, 256, stride=2)
    fourth = _residuals(p.within("conv_4."), x, 6, 256)
    x = _bottleneck(p.within("conv_45."), fourth, 128, 512, stride=2)
    x = _residuals(p.within("conv_5."), x, 2, 256)
    last = p.within("conv_6_sep.").conv_bn(x, 512, 1, prelu=True)
    head = p.within("output_layer.")
    y = head.within("conv_6_dw.").conv_bn(last, 512, 7, groups=512)
    y = head.bn(head.linear(y.view(y.size(0), -1), "linear", 136, bias=False), "bn")
    return third, fourth, last, y


def _residuals(p: Published, x: Tensor, depth: int, expanded: int) -> Tensor:
    for block in range(depth):
        x = x + _bottleneck(p.within(f"model.{block}."), x, x.shape[1], expanded, stride=1)
    return x


def _bottleneck(p: Published, x: Tensor, width: int, expanded: int, *, stride: int) -> Tensor:
    x = p.within("conv.").conv_bn(x, expanded, 1, prelu=True)
    x = p.within("conv_dw.").conv_bn(x, expanded, 3, stride=stride, padding=1, groups=expanded, prelu=True)
    return p.within("project.").conv_bn(x, width, 1)
