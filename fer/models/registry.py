"""Models by name: `create_model("ddamfn", num_classes=7, num_heads=3)`.

A model file registers its class under one or more names. The keyword-only parameters of the class are the options that
users may set; those fixed in `register` define the name, and are not options.

    @register("ddamfn_small", config=SMALL)
    @register("ddamfn", config=PUBLISHED)
    class DDAMFN(FerModel):
        def __init__(self, num_classes: int = 7, *, config: MFNConfig, num_heads: int = 2) -> None: ...
"""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from fer.models.base import FerModel

_Builder = TypeVar("_Builder", bound=Callable[..., FerModel])


class _Entry(NamedTuple):
    builder: Callable[..., FerModel]
    fixed: dict[str, Any]


_REGISTRY: dict[str, _Entry] = {}


def register(name: str, **fixed: Any) -> Callable[[_Builder], _Builder]:
    """Class (or function) decorator: `create_model(name)` calls it with the arguments `fixed`."""

    def decorate(builder: _Builder) -> _Builder:
        if name in _REGISTRY:
            raise ValueError(f"model {name!r} is registered already, by {_REGISTRY[name].builder.__qualname__}")
        _REGISTRY[name] = _Entry(builder, fixed)
        return builder

    return decorate


def list_models() -> list[str]:
    """Every registered name, sorted."""
    return sorted(_REGISTRY)


def model_options(name: str) -> dict[str, Any]:
    """The options that `create_model(name)` takes besides `num_classes`, with their defaults."""
    builder, fixed = _entry(name)
    parameters = inspect.signature(builder).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in fixed}


def model_loss(name: str) -> str:
    """Description of the loss that the model minimizes in training: `FerModel.loss_is`."""
    return str(getattr(_entry(name).builder, "loss_is", "the model's own loss"))


def create_model(name: str, num_classes: int = 7, **options: Any) -> FerModel:
    """A freshly initialized model, in training mode; the weights are a function of torch's global seed.

    Raises ValueError for an unknown name or option, listing the valid ones, and for values that the model rejects.
    """
    builder, fixed = _entry(name)
    valid = model_options(name)
    for option in options:
        if option not in valid:
            raise ValueError(_unknown(f"option of model {name!r}", option, valid))
    try:
        model = builder(num_classes, **fixed, **options)
    except (TypeError, RuntimeError, ArithmeticError, LookupError, AssertionError) as error:
        if not options:
            raise
        given = ", ".join(f"{option} = {value!r}" for option, value in options.items())
        raise ValueError(
            f"model {name!r} cannot be created with {given}: {str(error).partition(chr(10))[0]}"
        ) from error
    model.name, model.options = name, options
    return model


def _entry(name: str) -> _Entry:
    if name not in _REGISTRY:
        raise ValueError(_unknown("model", name, list_models()))
    return _REGISTRY[name]


def _unknown(what: str, given: str, valid: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(given, valid, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {what}: {given!r}{hint} Valid: {', '.join(valid) or 'none'}"
