"""`make soak`: many short runs, each killed at random moments, each compared to the bit with an undisturbed one.

    python tests/faults/soak.py --runs 200 --seed 0 --json soak.json

The JSON holds the commit, the seeds, where each run was killed, and how it ended. The exit code is 1 where one ended
with other bits, did not end, or left something behind.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
from builders.projects import REPOSITORY
from builders.runs import (
    assert_same_bits,
    child,
    elsewhere,
    final_state,
    kill_at_step,
    kill_between_passes,
    make_job,
    no_leftovers,
    run_child,
    run_ranks,
)

from fer.io.files import write_json
from fer.training.job import TrainJob
from fer.training.loop import train

SAM = {"rho": 0.05}
STAGES = [{"epochs": 2}, {"optimizer": "sgd", "learning_rate": 0.01, "trainable": ["fc.*"], "epochs": 1}]
RECIPES: dict[str, dict[str, Any]] = {
    "toy": {},
    "toy, SAM": {"sam": SAM},
    "toy, adaptive SAM in parts": {"sam": {**SAM, "adaptive": True, "batch_norm": "first"}, "accumulate": 2},
    "toy, balanced, mixup": {"sampler": "balanced", "mix": {"kind": "mixup"}, "class_weights": "effective"},
    "toy, stages": {"stages": STAGES},
    "toy, two ranks, SAM": {"sam": SAM},
    "ddamfn_nano, SAM": {"model": "ddamfn_nano", "options": {"drop_rate": 0.2}, "sam": SAM, "epochs": 1},
    "poster_v2_nano, SAM": {"model": "poster_v2_nano", "sam": SAM, "epochs": 1},
    "btn_nano, SAM": {"model": "btn_nano", "sam": SAM, "epochs": 1},
    "lhc_net_nano, SAM": {"model": "lhc_net_nano", "sam": SAM, "epochs": 1},
    "dynamic_vit_nano, SAM": {"model": "dynamic_vit_nano", "sam": SAM, "epochs": 1},
}


def main() -> int:
    """Runs the soak; 0 where every run ended as it should."""
    parser = argparse.ArgumentParser(description="many short runs under random SIGKILL")
    parser.add_argument("--runs", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("soak.json"), metavar="PATH")
    args = parser.parse_args()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    log = args.json.with_suffix(".log")  # the survivors of a killed rank end with a traceback each
    with log.open("w") as handle:
        os.dup2(handle.fileno(), sys.stderr.fileno())
    outcomes: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fer-soak-") as folder:
        root = Path(folder)
        jobs = {name: make_job(root, **recipe) for name, recipe in RECIPES.items()}
        whole: dict[str, TrainJob] = {}
        for number in range(args.runs):
            name = list(RECIPES)[number % len(RECIPES)]
            if name not in whole:
                whole[name] = elsewhere(jobs[name], root / f"whole-{name}")
                _undisturbed(whole[name], name, root)
            outcome = _killed(jobs[name], whole[name], name, number, args.seed, root)
            outcomes.append(outcome)
            if outcome["outcome"] != "equal":
                print(f"run {number} ({name}): {outcome['outcome']}", flush=True)
            if len(outcomes) % 20 == 0:
                print(f"{len(outcomes)} of {args.runs} runs", flush=True)
    equal = sum(outcome["outcome"] == "equal" for outcome in outcomes)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    summary = {"commit": commit.stdout.strip(), "seed": args.seed, "runs": len(outcomes), "equal": equal}
    kills = sum(len(outcome["kills"]) for outcome in outcomes)
    write_json(args.json, {**summary, "kills": kills, "outcomes": outcomes})
    print(f"{equal} of {len(outcomes)} runs ended with the undisturbed bits after {kills} kills -> {args.json}")
    return int(equal != len(outcomes))


def _undisturbed(job: TrainJob, name: str, root: Path) -> None:
    if "two ranks" in name:
        assert run_ranks(job, 2, root / "meeting-whole") == [0, 0]
    else:
        assert run_child(train, job) == 0


def _killed(job: TrainJob, whole: TrainJob, name: str, number: int, seed: int, root: Path) -> dict[str, Any]:
    """One run, killed one to three times, and how it ended."""
    draws = random.Random(f"{seed} {number}")
    job = elsewhere(job, root / f"killed-{number}")
    updates = final_state(whole).global_step
    kills: list[dict[str, Any]] = []
    for attempt in range(draws.randint(1, 3)):
        if "two ranks" in name:
            rank, step = draws.randrange(2), draws.randint(1, 3)
            codes = run_ranks(job, 2, root / f"meeting-{number}-{attempt}", kill=(rank, step))
            kills.append({"how": "rank", "rank": rank, "step_of_attempt": step, "codes": codes})
            continue
        how = draws.choice(["step", "moment", *(["between passes"] if "SAM" in name else [])])
        if how == "step":
            step = draws.randint(1, updates)
            code = run_child(kill_at_step, job, step)
            kills.append({"how": how, "step": step, "code": code})
        elif how == "between passes":
            step = draws.randint(1, max(1, updates // 2))
            code = run_child(kill_between_passes, job, step)
            kills.append({"how": how, "step_of_attempt": step, "code": code})
        else:
            seconds = round(draws.uniform(0.02, 1.0), 3)
            process = child(train, job)
            process.join(seconds)
            process.kill()
            process.join()
            kills.append({"how": how, "seconds": seconds, "code": process.exitcode})
    outcome = {"number": number, "recipe": name, "kills": kills}
    started = time.monotonic()
    try:
        if "two ranks" in name:
            codes = run_ranks(job, 2, root / f"meeting-{number}-last")
            assert codes == [0, 0], f"exit codes {codes}"
        else:
            code = run_child(train, job)
            assert code == 0, f"exit code {code}"
        assert_same_bits(final_state(job), final_state(whole))
        assert no_leftovers(Path(job.work_dir)), "leftovers"
        busy = [process.pid for process in psutil.Process().children(recursive=True) if _holds(process, job.work_dir)]
        assert not busy, f"processes {busy} still use the work folder"
        result = "equal"
    except AssertionError as error:
        result = f"failed: {str(error).splitlines()[0] if str(error) else 'other bits'}"
    return {**outcome, "outcome": result, "seconds": round(time.monotonic() - started, 2)}


def _holds(process: psutil.Process, folder: str) -> bool:
    try:
        return any(file.path.startswith(folder) for file in process.open_files())
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.exit(main())
