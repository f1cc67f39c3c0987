"""Every model family, under SAM, resumes to the same bits wherever it was killed: between SAM's passes too."""

import random
import signal
from pathlib import Path

import pytest
from builders.runs import (
    assert_same_bits,
    elsewhere,
    final_state,
    kill_at_step,
    kill_between_passes,
    make_job,
    run_child,
)

from fer.training.loop import train

UPDATES = 6
FAMILIES = {
    "ddamfn_nano": {"drop_rate": 0.2},
    "poster_v2_nano": {},
    "btn_nano": {},
    "lhc_net_nano": {},
    "dynamic_vit_nano": {},
}
QUICK = ("ddamfn_nano",)


@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=() if model in QUICK else pytest.mark.slow) for model in FAMILIES]
)
def test_killed_under_sam_every_family_resumes_to_the_same_bits(model: str, tmp_path: Path) -> None:
    job = make_job(
        tmp_path, model=model, options=FAMILIES[model], epochs=2, batch_size=24, sam={"rho": 0.05}, patience=2
    )
    whole, killed, between = (elsewhere(job, tmp_path / name) for name in ("whole", "killed", "between"))
    assert run_child(train, whole) == 0
    assert final_state(whole).global_step == UPDATES
    step = random.Random(model).randrange(1, UPDATES)
    assert run_child(kill_at_step, killed, step) == -signal.SIGKILL
    assert run_child(kill_between_passes, between, step + 1) == -signal.SIGKILL
    for job in (killed, between):
        assert run_child(train, job) == 0
        assert_same_bits(final_state(job), final_state(whole))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", FAMILIES)
def test_killed_under_sam_at_ten_random_moments_every_family_resumes_to_the_same_bits(
    model: str, tmp_path: Path
) -> None:
    job = make_job(tmp_path, model=model, options=FAMILIES[model], epochs=2, batch_size=24, sam={"rho": 0.05})
    whole = elsewhere(job, tmp_path / "whole")
    assert run_child(train, whole) == 0
    for seed in range(10):
        draws = random.Random(f"{model} {seed}")
        how, step = draws.choice([kill_at_step, kill_between_passes]), draws.randint(1, UPDATES)
        killed = elsewhere(job, tmp_path / f"killed-{seed}")
        assert run_child(how, killed, step) == -signal.SIGKILL
        assert run_child(train, killed) == 0
        assert_same_bits(final_state(killed), final_state(whole))
