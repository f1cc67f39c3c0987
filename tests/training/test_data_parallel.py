"""Every model trains on several ranks, without a search for unused parameters: what a GPU does, and Gloo shows too."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from builders.projects import MODELS
from builders.runs import child, join_all, make_job, run_ranks

from fer.models import create_model
from fer.training.learner import Learner, data_parallel
from fer.training.recipe import Recipe

NANO = [name for name in MODELS if name.endswith("_nano")]
UPDATES = 2  # DDP tells of an unused parameter at the second


def update_together(
    names: list[str], report: str, rank: int, world_size: int, meeting: str, device: str, backend: str, idle: bool
) -> None:
    """Updates of each model by one of several ranks; rank 0 writes what failed, by name.

    idle: gives the models a parameter that takes part in nothing.
    """
    torch.set_num_threads(1)
    if device != "cpu":
        device = f"cuda:{rank % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    failed = {}
    for name in names:
        try:
            failed[name] = None if _same_on_all_ranks(name, rank, world_size, device, idle) else "ranks differ"
        except (RuntimeError, ValueError) as error:
            failed[name] = str(error)
    if rank == 0:
        Path(report).write_text(json.dumps({name: why for name, why in failed.items() if why}))
    dist.destroy_process_group()


def _same_on_all_ranks(name: str, rank: int, world_size: int, device: str, idle: bool) -> bool:
    recipe = Recipe(model=name, epochs=1, batch_size=4 * world_size, learning_rate=0.001, accumulate=2)
    torch.manual_seed(0)
    model = create_model(name)
    model.load_state_dict(model.state_dict())  # a frozen landmark network refuses to train before its weights come
    if idle:
        model.idle = torch.nn.Parameter(torch.zeros(1))
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    alone = Learner.create(recipe, model, device=device, world_size=1)
    learner = Learner(recipe, model, data_parallel(model, find_unused=False), alone.optimizer, None, None, device)
    learner.train()
    torch.manual_seed(rank + 1)
    side = model.input_size
    images = torch.randn(4, 3, side, side, device=device)
    labels = torch.arange(4, device=device)
    for step in range(UPDATES):
        learner.backward(images, labels, (rank, step))
        learner.update()
    after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).cpu()
    hashes = [""] * world_size
    dist.all_gather_object(hashes, hashlib.sha256(after.numpy().tobytes()).hexdigest())
    return len(set(hashes)) == 1 and not torch.equal(before, after)


def failures(
    names: list[str], folder: Path, *, device: str = "cpu", backend: str = "gloo", ranks: int = 2, idle: bool = False
) -> dict[str, object]:
    """What failed, by the name of the model; under "" the exit codes, where a rank did not end well."""
    report, common = folder / "report.json", (ranks, str(folder / "meeting"), device, backend, idle)
    codes = join_all([child(update_together, names, str(report), rank, *common) for rank in range(ranks)], 250)
    return json.loads(report.read_text()) if codes == [0] * ranks else {"": codes}


def test_every_small_model_trains_on_two_ranks(tmp_path: Path) -> None:
    assert failures(NANO, tmp_path) == {}


def test_a_parameter_that_takes_part_in_nothing_is_reported(tmp_path: Path) -> None:
    found = failures(["mobilefacenet_nano"], tmp_path, idle=True)
    assert "find_unused_parameters" in str(found["mobilefacenet_nano"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name not in NANO])
def test_every_model_trains_on_two_ranks(name: str, tmp_path: Path) -> None:
    assert failures([name], tmp_path) == {}


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "ranks"), [("gloo", 2), ("nccl", 2), ("nccl", 1)])
def test_every_model_trains_on_ranks_of_the_gpu(backend: str, ranks: int, device: str, tmp_path: Path) -> None:
    if device == "cpu" and backend == "nccl":
        pytest.skip("NCCL needs a GPU")
    if backend == "nccl" and ranks > torch.cuda.device_count():
        pytest.skip(f"NCCL takes one rank a GPU, and there are {torch.cuda.device_count()}: Gloo runs two on one")
    names = NANO if device == "cpu" else MODELS
    assert failures(names, tmp_path, device=device, backend=backend, ranks=ranks) == {}


@pytest.mark.gpu
def test_a_run_of_two_ranks_ends_on_the_gpu(device: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, epochs=2, sam={"rho": 0.05})
    assert run_ranks(job, 2, tmp_path / "meeting", device=device) == [0, 0]
