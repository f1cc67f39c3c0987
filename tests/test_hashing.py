"""The hash that seeds order, weights and random draws."""

from fer.hashing import stable_hash


def test_hash_is_fixed_for_ever_and_depends_on_boundaries_and_types() -> None:
    assert stable_hash("a", 1) == stable_hash("a", 1)
    assert stable_hash("order", 0, 0) == 0x9825DDD71185858E
    assert len({stable_hash(*p) for p in [("a", "b"), ("ab",), ("a", 1), ("a", "1"), ("1", "a")]}) == 5
