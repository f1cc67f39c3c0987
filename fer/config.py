"""The base of every configuration type, and the errors for invalid configuration.

A configuration is a frozen, keyword-only type beside the code it configures. `parse` is the only way from YAML to such
a type: a wrong key, type or value becomes a `ConfigError` that names the file, the key, the value, what is allowed and
the nearest valid key.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import pydantic

from fer.io import yaml12
from fer.io.yaml12 import brief

MOST_LINES = 20
"""Mistakes reported for one file."""
_TAG = "source"
"""The key whose value says which type of a union is meant."""


class ConfigError(ValueError):
    """A mistake in a configuration file; the message names file, key, value and what is allowed."""


class Config(pydantic.BaseModel):
    """Frozen and strict: no unknown keys, no silent conversion (a quoted "3" is not a number)."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


C = TypeVar("C", bound=Config)


def parse(kind: type[C], data: Mapping[str, Any], where: str, prefix: str = "") -> C:
    """`data` as a `kind`.

    Args:
        kind: the configuration type.
        data: a mapping as YAML gives it.
        where: the file it came from, for the error.
        prefix: dotted path of `data` inside the file, for the error.

    Raises:
        ConfigError: one line for each mistake.
    """
    try:
        # JSON mode is strict about numbers and strings, yet accepts a list for a tuple and 1 for 1.0.
        return kind.model_validate_json(json.dumps(data, default=_no_json_form))
    except pydantic.ValidationError as error:
        lines = [_explain(kind, data, detail, where, prefix) for detail in error.errors()[:MOST_LINES]]
        if error.error_count() > MOST_LINES:
            lines.append(f"{where}: {error.error_count() - MOST_LINES} more mistakes")
        raise ConfigError("\n".join(lines)) from None


def read_yaml(path: Any) -> dict[str, Any]:
    """The mapping in a YAML file; anything else in it is a `ConfigError`."""
    try:
        with open(path, "rb") as handle:
            data = yaml12.load(handle.read(yaml12.MOST_BYTES + 1))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except yaml12.YamlError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {found}")
    return data


def keys_of(section: str, value: Any, where: str, place: str) -> dict[str, Any]:
    """`value`, found at `place` of a file, where some keys of a section belong; ConfigError where it is no mapping."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {brief(place)} = {brief(repr(value))}: expected keys of the section {section!r}")
    return value


def nearest(word: str, words: Sequence[str]) -> str:
    """A hint ` - did you mean 'x'?`, or nothing where no word is similar."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f" - did you mean {close[0]!r}?" if close else ""


def _no_json_form(value: object) -> object:
    # YAML dates and sets have no JSON form; as strings they reach the validator, which names the key.
    return str(value)


def _explain(kind: type[Config], data: Mapping[str, Any], detail: Any, where: str, prefix: str) -> str:
    keys = _keys_to(data, detail["loc"])
    path = brief(".".join([*([prefix] if prefix else []), *keys]))
    value = detail.get("input")
    if detail["type"] == "extra_forbidden":
        allowed = _keys_at(kind, detail["loc"][:-1])
        hint = nearest(str(detail["loc"][-1]), allowed)
        listing = f"; allowed here: {', '.join(allowed)}" if allowed else ""
        return f"{where}: unknown key '{path}'{hint}{listing}"
    if detail["type"] == "missing":
        return f"{where}: key '{path}' is missing"
    if detail["type"] == "union_tag_not_found":
        return f"{where}: key '{path}.{_TAG}' is missing"
    if detail["type"] == "union_tag_invalid":
        tags = detail["ctx"]["expected_tags"].replace("'", "")
        given = brief(repr(detail["ctx"]["tag"]))
        hint = nearest(str(detail["ctx"]["tag"]), tags.split(", "))
        return f"{where}: {path}.{_TAG} = {given}: unknown{hint}; allowed: {tags}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if isinstance(value, dict) and detail["type"] == "value_error":  # the message names the keys that conflict
        return f"{where}: {path}: {message}" if path else f"{where}: {message}"
    hint = ""
    if detail["type"] == "literal_error" and isinstance(value, str):
        hint = nearest(value, detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", "))
    return f"{where}: {path} = {brief(repr(value))}: {message}{hint}"


def _keys_to(data: Any, location: Sequence[Any]) -> list[str]:
    """The keys of a place in the user's data, of the parts by which pydantic names it.

    No keys are the tags of unions, and, in angle brackets, the form of a value that may have several.
    """
    keys, found = [], data
    for part in location:
        is_tag = isinstance(found, Mapping) and part not in found and part == found.get(_TAG)
        if is_tag or str(part).startswith("<"):
            continue
        keys.append(str(part))
        found = found.get(part) if isinstance(found, Mapping) else None
    return keys


def _keys_at(kind: Any, location: Sequence[Any]) -> list[str]:
    """The valid keys at a place inside a configuration type."""
    kinds = list(_allowed(kind))
    for part in location:
        deeper: list[Any] = []
        for one in kinds:
            if not _is_config(one):
                deeper += [leaf for argument in get_args(one) for leaf in _allowed(argument)]
            elif field := one.model_fields.get(str(part)):
                deeper += _allowed(field.annotation)
            elif (tag := one.model_fields.get(_TAG)) is None or part in get_args(tag.annotation):
                deeper.append(one)
        kinds = deeper
    return sorted({name for one in kinds if _is_config(one) for name in one.model_fields})


def _allowed(kind: Any) -> Iterator[Any]:
    """The types of an annotation: the members of a union, without their metadata."""
    if get_origin(kind) is Annotated:
        yield from _allowed(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for argument in get_args(kind):
            yield from _allowed(argument)
    else:
        yield kind


def _is_config(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Config)
