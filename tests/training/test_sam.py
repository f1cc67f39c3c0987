"""SAM is the published one to the last digits, also over parts of a batch and over ranks."""

from __future__ import annotations

import json
import signal
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders.runs import assert_same_bits, elsewhere, final_state, kill_between_passes, make_job, run_child, run_ranks

from fer.models import create_model
from fer.training.loop import train
from fer.training.recipe import SamConfig
from fer.training.sam import Sam, frozen_statistics

TOY = json.loads((Path(__file__).parents[1] / "assets" / "conformance" / "sam_toy.json").read_text())
EXACT: dict[str, Any] = {"options": {"norm": False, "drop_rate": 0.0}, "epochs": 2, "sam": {"rho": 0.05}}


def _drawn(letter: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(zlib.crc32(letter.encode()))).standard_normal(shape)


@pytest.mark.parametrize("key", [key for key in TOY if key.startswith("SAM(")])
def test_every_step_is_that_of_the_published_code(key: str) -> None:
    w = torch.nn.Parameter(torch.from_numpy(_drawn("W", (3, 4)) / 2))
    b = torch.nn.Parameter(torch.from_numpy(0.1 * _drawn("b", (3,))))
    x = torch.from_numpy(np.random.Generator(np.random.PCG64(0)).standard_normal((5, 4)))
    y = torch.arange(5) % 3
    base: torch.optim.Optimizer = (
        torch.optim.SGD([w, b], lr=0.1, momentum=0.9)
        if "SGD" in key
        else torch.optim.Adam([w, b], lr=1e-2, weight_decay=1e-4 if "weight_decay" in key else 0.0)
    )
    sam = Sam(SamConfig(rho=0.05, adaptive="adaptive=True" in key), [w, b])
    for expected in TOY[key]:
        loss = F.cross_entropy(x @ w.T + b, y)
        base.zero_grad()
        loss.backward()
        norm = sam.perturb()
        second = F.cross_entropy(x @ w.T + b, y)
        second.backward()
        sam.restore()
        base.step()
        assert loss.item() == pytest.approx(expected["loss"], abs=1e-13)
        assert norm.item() == pytest.approx(expected["grad_norm"], abs=1e-13)
        assert second.item() == pytest.approx(expected["loss_at_w_plus_e"], abs=1e-13)
        np.testing.assert_allclose(w.detach(), expected["W"], rtol=0, atol=1e-13)


def test_restore_gives_the_same_bits_and_keeps_the_second_gradient() -> None:
    torch.manual_seed(0)
    model = create_model("toy")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items() if "running" not in key}
    sam = Sam(SamConfig(rho=1.0), list(model.parameters()))
    x = torch.randn(4, 3, 16, 16)
    model.train()
    model(x).logits.square().mean().backward()
    first = model.fc.weight.grad.clone()
    sam.perturb()
    assert not torch.equal(model.fc.weight, before["fc.weight"])
    model(x).logits.square().mean().backward()
    sam.restore()
    assert torch.equal(model.fc.weight, before["fc.weight"])
    assert not torch.equal(model.fc.weight.grad, first)


def test_nan_in_a_gradient_moves_nothing() -> None:
    w = torch.nn.Parameter(torch.ones(3))
    w.grad = torch.tensor([1.0, float("nan"), 0.0])
    assert not Sam(SamConfig(), [w]).perturb().isfinite()
    assert torch.equal(w, torch.ones(3))


def test_the_second_pass_may_leave_the_statistics_of_batch_norm_alone() -> None:
    model = create_model("toy").train()
    x = torch.randn(8, 3, 16, 16)
    model(x)
    kept = [buffer.clone() for buffer in model.buffers()]
    with frozen_statistics(model):
        model(x + 1)
    assert all(torch.equal(one, other) for one, other in zip(kept, model.buffers(), strict=True))
    model(x + 1)
    assert not torch.equal(kept[0], next(model.buffers()))


@pytest.mark.parametrize("ranks", [1, 2])
def test_parts_and_ranks_perturb_by_the_gradient_of_the_global_batch(ranks: int, tmp_path: Path) -> None:
    whole = elsewhere(make_job(tmp_path, **EXACT), tmp_path / "whole")
    split = elsewhere(make_job(tmp_path, **EXACT, accumulate=3 if ranks == 1 else 1), tmp_path / "split")
    assert run_child(train, whole) == 0
    assert run_ranks(split, ranks, tmp_path / "meeting") == [0] * ranks
    for key, tensor in final_state(whole).model.items():
        torch.testing.assert_close(final_state(split).model[key], tensor, rtol=1e-4, atol=1e-5)


def test_each_rank_may_perturb_by_its_own_gradient(tmp_path: Path) -> None:
    sam = {"rho": 0.5, "gradient": "local"}
    jobs = [make_job(tmp_path, **{**EXACT, "sam": {**sam, "gradient": kind}}) for kind in ("local", "global")]
    local, shared = (elsewhere(job, tmp_path / str(number)) for number, job in enumerate(jobs))
    assert run_ranks(local, 2, tmp_path / "meeting-1") == [0, 0]
    assert run_ranks(shared, 2, tmp_path / "meeting-2") == [0, 0]
    one, other = final_state(local), final_state(shared)
    assert one.global_step == other.global_step
    assert any(not torch.equal(one.model[key], other.model[key]) for key in one.model)


@pytest.mark.parametrize("options", [{}, {"dropout": "same", "batch_norm": "first", "adaptive": True}])
def test_run_killed_between_the_passes_resumes_to_the_same_bits(options: dict[str, Any], tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=2, sam={"rho": 0.1, **options})
    whole, killed = elsewhere(job, tmp_path / "whole"), elsewhere(job, tmp_path / "killed")
    assert run_child(train, whole) == 0
    assert run_child(kill_between_passes, killed, 6) == -signal.SIGKILL
    assert run_child(train, killed) == 0
    assert_same_bits(final_state(killed), final_state(whole))
