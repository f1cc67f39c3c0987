"""Promises of `fer bench scaling`."""

import pytest
from builders.limits import patience

from benchmarks.__main__ import parse
from benchmarks.result import REGISTRY, BenchResult
from benchmarks.scaling import Traffic, traffic
from fer.training.recipe import Recipe, SamConfig

PLAIN = Recipe(model="ddamfn_nano", epochs=1, batch_size=64, learning_rate=0.001)


def run(*words: str) -> BenchResult:
    return REGISTRY["scaling"].run(parse(["scaling", *words]))


def moved(ranks: int, recipe: Recipe = PLAIN) -> Traffic:
    return traffic(recipe, ranks=ranks, batch=64, images=650, image_bytes=1000, every=4)


def test_each_rank_reads_everything_and_sends_twice_what_the_others_hold() -> None:
    assert [moved(ranks).read for ranks in (1, 2, 8)] == [650_000, 1_300_000, 5_200_000]
    assert moved(1).sent == 0
    assert moved(2).sent == moved(2).exchanged
    assert moved(8).sent == pytest.approx(2 * 7 / 8 * moved(8).exchanged)


def test_checkpoints_come_every_so_many_updates_and_at_the_end_of_an_epoch() -> None:
    assert moved(2).updates == 10
    assert moved(2).saves == 3  # after updates 4 and 8, and at the end
    assert traffic(PLAIN, ranks=2, batch=64, images=512, image_bytes=1, every=4).saves == 2  # the second is the end


def test_sam_exchanges_twice_unless_each_rank_perturbs_by_its_own_gradient() -> None:
    once = moved(2).exchanged
    assert moved(2, PLAIN.model_copy(update={"sam": SamConfig(rho=0.05, gradient="global")})).exchanged == 2 * once
    local = moved(2, PLAIN.model_copy(update={"sam": SamConfig(rho=0.05, gradient="local")})).exchanged
    assert once <= local < 1.01 * once


def test_more_gpus_cost_no_less_and_a_faster_network_is_never_slower() -> None:
    rows = run("--recipe", "ddamfn/nano", "--images", "100000").rows
    assert [row["GPUs"] for row in rows] == [1, 8, 64, 64, 64]
    assert rows[2]["images/s"] <= rows[3]["images/s"] <= rows[4]["images/s"]
    assert all(row["of ideal, %"] <= 100 for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(patience(120))
def test_a_run_of_two_workers_moves_what_the_model_says() -> None:
    found = {row["what"]: row["counted / model"] for row in run("--check").rows}
    assert 1 < found.pop("checkpoint, bytes") < 1.25  # some 290 bytes a tensor for its name and header come on top
    assert found.pop("sent by both in an update, bytes") >= 0.99  # and what else uses the loopback interface
    assert set(found.values()) == {1.0}
