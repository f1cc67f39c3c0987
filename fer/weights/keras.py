"""Keras' weights files (.h5, .hdf5), read without Keras: one array a weight, `conv0/kernel`.

A file of `save_weights` holds a group a layer, and below it the arrays, whose names may repeat the layer's
(`/conv0/conv0/kernel:0`); one of `save` holds the same below `model_weights`, and the network and its optimizer beside.

HDF5 can point out of a file, unpack it without bound, and load filters as plugins. Keras uses none of that, and it is
refused before an array is read: links but those to what the file itself holds, arrays in other files, filters, elements
that are no numbers, and arrays larger than what is stored of them. What parses the file is HDF5's own library, in C:
get such files from their authors alone.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from fer.io.files import FileError
from fer.weights.torchfile import reading

# ResNet34v2 has 150 arrays three groups down; nested models have a few groups more.
_MOST_OBJECTS = 100_000
_MOST_LEVELS = 16

Array = npt.NDArray[Any]


def read_keras(path: Path) -> dict[str, Array]:
    """The weights, by `<layer>/<weight>`, or where two of a layer would have the same name, by their whole path.

    Raises:
        FileError: damaged or cut off, refused (see above), or without the weights of a layer.
    """
    with reading(path), h5py.File(path, "r") as file:
        root = file["model_weights"] if _is_group(file, "model_weights") else file
        if _is_group(root, "layers"):
            raise FileError("written by Keras 3 (.weights.h5), whose arrays have numbers for names; it is not read")
        arrays = _arrays(root)
        largest = path.stat().st_size
        if sum(array.nbytes for array in arrays.values()) > largest:
            raise FileError(f"declares more numbers than its {largest:,} bytes hold")
        short = {name: _short(name) for name in arrays}
        twice = {name for name, count in Counter(short.values()).items() if count > 1}
        return {name if short[name] in twice else short[name]: np.asarray(arrays[name]) for name in arrays}


def _short(name: str) -> str:
    """`conv0/model/conv0/kernel:0` -> `conv0/kernel`; what Keras adds to names that a session had before is dropped."""
    layer, _, rest = name.partition("/")
    weight = re.sub(r":\d+$", "", rest.rpartition("/")[2])
    return f"{layer}/{weight}" if rest else weight


def _is_group(group: Any, name: str) -> bool:
    return isinstance(group.get(name, getlink=True), h5py.HardLink) and group.get(name, getclass=True) is h5py.Group


def _arrays(root: Any) -> dict[str, Any]:
    """The datasets below a group that may be read, by path."""
    found: dict[str, Any] = {}
    waiting, seen = [("", root)], 0
    while waiting:
        prefix, group = waiting.pop()
        if prefix.count("/") > _MOST_LEVELS:
            raise FileError(f"more than {_MOST_LEVELS} groups in each other, or groups that contain themselves")
        for name in group:
            seen += 1
            if seen > _MOST_OBJECTS:
                raise FileError(f"more than {_MOST_OBJECTS:,} groups and arrays")
            inner = f"{prefix}{name}"
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise FileError(f"refused: {inner} is a {type(link).__name__}, which Keras does not write")
            item = group[name]
            if isinstance(item, h5py.Group):
                waiting.append((f"{inner}/", item))
            elif isinstance(item, h5py.Dataset):
                _check(inner, item)
                found[inner] = item
            else:
                raise FileError(f"refused: {inner} is no array")
    return found


def _check(name: str, array: Any) -> None:
    """Refuses what Keras does not write, before it is read."""
    if array.dtype.kind not in "fiu":
        raise FileError(f"refused: {name} has elements of type {array.dtype}, not numbers")
    if array.shape is None:
        raise FileError(f"refused: {name} is empty")
    if array.external or array.is_virtual:
        raise FileError(f"refused: the numbers of {name} lie in another file")
    if array.id.get_create_plist().get_nfilters():
        raise FileError(f"refused: {name} is compressed or filtered, which Keras does not do")
    if array.id.get_storage_size() < array.nbytes:
        raise FileError(f"{name} declares {array.nbytes:,} bytes and stores {array.id.get_storage_size():,}")
