"""YAML 1.2 as DVC reads it, with limits that are checked before any value is built; and written for every reader.

DVC parses params.yaml with the same library and settings: `off`, `1:30`, `010` and dates are the same values to both.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
)
from ruamel.yaml.representer import SafeRepresenter

MOST_BYTES = 256 * 1024
"""Of a document, also with its aliases expanded; the shipped params.yaml has 15 KiB."""

_VALUE_BYTES = 24
"""Counted for each value beside its characters: 10,000 values take the parser seconds."""

MOST_DEPTH = 50
"""Of nested mappings and lists: recursion over a document stays far from Python's own limit."""

MOST_DIGITS = 100
"""Of a number as it is written."""

_NUMBER = re.compile(r"[-+.]?[0-9][-+.:_0-9a-fox]*", re.IGNORECASE)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


class YamlError(ValueError):
    """Invalid YAML, or beyond the limits; one line, without the file's name."""


def load(data: bytes) -> Any:
    """The value of a document: mappings with string or integer keys, lists, strings, finite numbers, dates; or None.

    Raises:
        YamlError: anything else.
    """
    if len(data) > MOST_BYTES:
        raise YamlError(f"larger than {MOST_BYTES // 1024} KiB")
    try:
        text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise YamlError(f"not readable as YAML: byte {error.start} is no UTF-8") from None
    try:
        if found := _UNPRINTABLE.search(text):
            raise _refusal(text.count("\n", 0, found.start()), f"control character {found[0]!r}")
        _measure(text)
        value = YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _refusal(mark.line, error.problem or error.context) from None
    except YAMLError as error:
        raise YamlError(f"not readable as YAML: {brief(' '.join(str(error).split()))}") from None
    except YamlError:
        raise
    except ValueError as error:  # of the date 2024-13-01, or the number -_
        raise YamlError(f"not readable as YAML: no date or number: {brief(str(error))}") from None
    _check(value, "")
    return value


def dump(value: Any) -> str:
    """A document that readers of YAML 1.2 and of YAML 1.1 load as `value`."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
    yaml.width = 2**20  # no line is folded
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


def brief(text: str) -> str:
    """A user's text for a one-line error: printable, and shortened where it is long."""
    shown = text if text.isprintable() else repr(text)[1:-1]
    return shown if len(shown) <= 120 else f"{shown[:120]} ..."


@dataclass
class _Collection:
    """An open mapping or list: its anchor, the total before it, and the keys of a mapping so far."""

    anchor: str | None
    before: int
    keys: set[str] | None
    at_key: bool = True


def _measure(text: str) -> None:
    """Checks a document by the parser's events, without keeping them: nothing is built and nothing recurses."""
    documents = total = 0
    sizes: dict[str, int] = {}  # characters of an anchor, with its aliases expanded
    anchors: set[str] = set()
    around: list[_Collection] = []
    for event in YAML(typ="safe").parse(text):
        line = event.start_mark.line
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _refusal(line, "a second document begins")
            if event.version not in (None, (1, 2)):
                raise _refusal(line, "another version than 1.2 is asked for")
        elif isinstance(event, CollectionEndEvent):
            done = around.pop()
            if done.anchor:
                sizes[done.anchor] = total - done.before
        elif isinstance(event, NodeEvent):
            node: Any = event
            inside = around[-1] if around else None
            if inside is not None and inside.keys is not None:
                if inside.at_key:
                    _check_key(node, inside.keys)
                inside.at_key = not inside.at_key
            if isinstance(event, AliasEvent):
                if event.anchor not in sizes:
                    raise _refusal(line, f"*{event.anchor} stands for itself, or for nothing above it")
                total += sizes[event.anchor]
            else:
                if event.anchor in anchors:
                    raise _refusal(line, f"anchor &{event.anchor} is given more than once")
                if event.anchor:
                    anchors.add(event.anchor)
                if node.ctag is not None:
                    raise _refusal(line, f"tag {node.ctag}: tags are not read; for a text, quote it")
                size = _VALUE_BYTES
                if isinstance(node, ScalarEvent):
                    size += len(node.value)
                    _check_scalar(node)
                    if event.anchor:
                        sizes[event.anchor] = size
                else:
                    is_mapping = isinstance(event, MappingStartEvent)
                    around.append(_Collection(event.anchor, total, set() if is_mapping else None))
                    if len(around) > MOST_DEPTH:
                        raise _refusal(line, f"nested deeper than {MOST_DEPTH} levels")
                total += size
            if total > MOST_BYTES:
                raise _refusal(line, f"with its aliases written out, more than {MOST_BYTES // 1024} KiB")


def _check_key(event: Any, keys: set[str]) -> None:
    if not isinstance(event, ScalarEvent):
        raise _refusal(event.start_mark.line, "a key that is no text")
    if event.value in keys:  # of merged keys, the constructor silently takes the last
        raise _refusal(event.start_mark.line, f"key {event.value!r} is given more than once")
    keys.add(event.value)


def _check_scalar(event: Any) -> None:
    if found := _UNPRINTABLE.search(event.value):
        raise _refusal(event.start_mark.line, f"{found[0]!r} in a text: a control character, or half of a character")
    if event.implicit[0] and len(event.value) > MOST_DIGITS and _NUMBER.fullmatch(event.value):
        raise _refusal(event.start_mark.line, f"a number of {len(event.value)} digits")


def _check(value: Any, path: str) -> None:
    """Refuses values without a form in JSON, by which configurations are validated."""
    if isinstance(value, dict):
        if len({str(key) for key in value}) < len(value):
            raise YamlError(f"{path.rstrip('.') or 'a key'}: a number and a text that are one key")
        for key, inner in value.items():
            if isinstance(key, bool) or not isinstance(key, str | int):
                raise YamlError(f"{path}{brief(str(key))!r}: a key that is no text; quote it")
            _check(inner, f"{path}{brief(str(key))}.")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check(inner, f"{path}{index}.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise YamlError(f"{path.rstrip('.')} = {value}: not a finite number")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise YamlError(f"{path.rstrip('.')} = {brief(str(value))}: more than a number of 64 bits holds")


def _refusal(line: int, problem: str) -> YamlError:
    return YamlError(f"not readable as YAML: line {line + 1}: {brief(problem)}")


class _Representer(SafeRepresenter):
    """Quotes every string but plain words, so that no reader takes `off`, `1e3` or `12:30` for anything else."""

    def represent_str(self, data: str) -> Any:
        plain = _PLAIN.fullmatch(data) and data.lower() not in _WORDS
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if plain else '"')

    def represent_float(self, data: float) -> Any:
        text = repr(data)  # 1e-05, which YAML 1.1 takes for a string
        return self.represent_scalar("tag:yaml.org,2002:float", text if "." in text else text.replace("e", ".0e"))


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(float, _Representer.represent_float)
