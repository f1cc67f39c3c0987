"""Label orders are written down once and mapped by name."""

from __future__ import annotations

import pytest

from fer import labels


def test_fer2013_numbers_map_by_name() -> None:
    canonical = labels.to_canonical(labels.DATASET_LABELS["fer2013"], labels.space("basic7"))
    names = [labels.space("basic7").labels[index] for index in canonical]
    assert names == ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]


def test_basic8_extends_basic7_without_renumbering() -> None:
    assert labels.space("basic8").labels[:7] == labels.space("basic7").labels


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match="basic7, basic8"):
        labels.space("basic9")
    with pytest.raises(ValueError, match="contempt"):
        labels.to_canonical(("contempt",), labels.space("basic7"))
