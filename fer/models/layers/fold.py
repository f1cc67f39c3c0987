"""BatchNorm in evaluation mode is one multiplication and one addition a channel: fold it into what comes before it."""

import torch
from torch import nn


def fold_conv_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """`bn(conv(x))` in evaluation mode as one convolution with a bias.

    Computed in float64 and rounded once, to the dtype of `conv`. The result is new and shares no tensor with the two.
    """
    assert bn.running_mean is not None, "a BatchNorm without running statistics cannot be folded"
    assert bn.running_var is not None
    scale = (bn.running_var.double() + bn.eps).rsqrt()  # bn(y) = scale * y + shift
    if bn.weight is not None:
        scale = scale * bn.weight.double()
    shift = -bn.running_mean.double() * scale
    if bn.bias is not None:
        shift = shift + bn.bias.double()
    folded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        padding_mode=conv.padding_mode,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    ).train(conv.training)
    assert folded.bias is not None
    with torch.no_grad():
        folded.weight.copy_(conv.weight.double() * scale.view(-1, 1, 1, 1))
        folded.bias.copy_(shift if conv.bias is None else conv.bias.double() * scale + shift)
    return folded
