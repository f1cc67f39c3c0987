"""What each stage executes is what its plan depends on; the profiler is the oracle, not the imports."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import invalidation
from fer.stages.closure import left_out


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_an_edit_to_any_file_that_a_stage_executes_makes_it_run_again() -> None:
    result = invalidation.run(argparse.Namespace(weights=None))  # raises where one is missing
    assert all(row["executed"] > 10 and row["missing"] == 0 for row in result.rows)


def test_profile_counts_functions_beneath_the_stage_and_not_beneath_what_is_left_out() -> None:
    def frame(*paths: str) -> object:
        above = None
        for path in paths:
            code = argparse.Namespace(co_filename=f"{invalidation.ROOT}/{path}", co_name="f")
            above = argparse.Namespace(f_code=code, f_back=above)
        return above

    profile = invalidation._Profile("train")
    assert left_out("fer/shards/verify.py", "train")
    for paths, counts in {
        ("pipelines/train.py", "fer/stages/train.py", "fer/hashing.py"): True,
        ("pipelines/train.py", "fer/cluster/fit.py", "fer/hashing.py"): True,
        ("pipelines/train.py", "fer/shards/verify.py"): True,
        ("pipelines/train.py", "fer/shards/verify.py", "fer/hashing.py"): False,
        ("fer/cli.py", "fer/hashing.py"): False,
    }.items():
        assert profile._counts(frame(*paths)) == counts, paths  # type: ignore[arg-type]
