"""How a published implementation names and shapes its tensors."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

STATISTICS = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
"""The tensors of a BatchNorm, as a pattern."""


def channels_first(kernel: Tensor) -> Tensor:
    """A kernel of Keras or JAX in the shape of PyTorch: (H,W,in,out) -> (out,in,H,W), (in,out) -> (out,in)."""
    if kernel.ndim not in (2, 4):
        return kernel
    return (kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.t()).contiguous()


def _as_they_are(published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return published


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the published code of one model names and shapes its tensors.

    Attributes:
        rename: (pattern, replacement) pairs, each applied in turn to a published key to give ours (re.sub).
        dead: patterns of the whole keys that the published forward pass never uses.
        derivable: patterns of the whole keys of buffers that our model computes itself; they may be absent.
        options: the arguments of `create_model` that the shapes tell, `num_classes` among them; that is None where the
            file lacks the head, which models have even without classes.
        head: patterns of the whole keys, ours, that such a file lacks.
        adapt: changes the shapes, and joins or splits tensors, before the renaming: Keras' axes, heads in one tensor.
            It is given no dead and no derivable key, and hands on what it does not know.
        variants: other layouts of the same network, each known by its `sign`.
        sign: of a variant, a key that only its files hold.
    """

    rename: tuple[tuple[str, str], ...]
    options: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    dead: tuple[str, ...] = ()
    derivable: tuple[str, ...] = ()
    adapt: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = _as_they_are
    head: tuple[str, ...] = ()
    variants: tuple["Layout", ...] = ()
    sign: str = ""

    def of(self, published: Mapping[str, Tensor]) -> "Layout":
        """The variant that a file is in."""
        return next((variant for variant in self.variants if variant.sign in published), self)

    def is_in_head(self, ours: str) -> bool:
        """A file without the head lacks this tensor of ours."""
        return any(re.fullmatch(pattern, ours) for pattern in self.head)

    def is_dead(self, key: str) -> bool:
        """No output of the published model depends on this tensor."""
        return any(re.fullmatch(pattern, key) for pattern in self.dead)

    def is_derivable(self, key: str) -> bool:
        """Our model computes this buffer itself."""
        return any(re.fullmatch(pattern, key) for pattern in self.derivable)

    def our_key(self, key: str) -> str:
        """The name of the tensor in our state dict."""
        for pattern, replacement in self.rename:
            key = re.sub(pattern, replacement, key)
        return key
