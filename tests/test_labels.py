"""Label orders are defined once and mapped by name."""

import pytest

from fer import labels
from fer.weights.registry import register


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


@pytest.mark.parametrize(
    ("spelling", "label"),
    [
        ("Angry", "anger"),
        ("0_anger", "anger"),
        ("6 - Surprised", "surprise"),
        (" HAPPINESS ", "happiness"),
        ("contempt", "contempt"),
        ("sleepy", None),
        ("3", None),
        ("", None),
    ],
)
def test_usual_spellings_are_recognized_and_numbers_never_guessed(spelling: str, label: str | None) -> None:
    assert labels.named(spelling) == label


def test_every_label_has_spellings_and_none_stands_for_two() -> None:
    assert set(labels.SPELLINGS) == {label for space in labels.SPACES.values() for label in space.labels}
    every = [name for label, others in labels.SPELLINGS.items() for name in (label, *others)]
    assert len(every) == len(set(every))


@pytest.mark.parametrize("name", ["poster_v2_affectnet7", "poster_v2_affectnet8", "poster_v2_caers"])
def test_published_order_that_nobody_states_is_unknown_and_never_guessed(name: str) -> None:
    assert register()[name].labels == "unknown"


def test_order_of_every_dataset_names_each_class_of_its_space_once() -> None:
    of = {"affectnet8": "basic8", "ferplus": "basic8", "aihub82": "aihub7"}
    for dataset, order in labels.DATASET_LABELS.items():
        assert sorted(order) == sorted(labels.space(of.get(dataset, "basic7")).labels), dataset


def test_people_are_numbers_in_a_space_whose_name_is_a_digest_of_their_names() -> None:
    space = labels.identities(["anna", "bert", "carl"])
    assert space.labels == ("0", "1", "2")
    assert labels.space(space.name) == space == labels.identities(["anna", "bert", "carl"])
    assert labels.identities(["bert", "anna", "carl"]).name != space.name
    assert labels.is_identities(space.name)
    assert not labels.is_identities("basic7")
    assert space.name not in list(labels.SPACES)


@pytest.mark.parametrize("name", ["identities-0-" + "0" * 16, "identities-99999999-" + "0" * 16, "identities-3-0", "x"])
def test_name_that_no_dataset_gives_is_not_a_space_and_takes_no_memory(name: str) -> None:
    assert labels.SPACES.get(name) is None
    with pytest.raises(ValueError, match="unknown label space"):
        labels.space(name)
