"""`fer bench scaling`: what a run moves and costs on 1, 8 and 64 GPUs, by a model that is checked against a run here.

What is read, exchanged and written is counted from the code, and `--check` counts the same in two processes. Speeds and
prices are assumptions, each an option.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.result import BenchResult, benchmark

if TYPE_CHECKING:
    from fer.training.job import TrainJob
    from fer.training.recipe import Recipe

_GPUS_A_NODE = 8
_TOTALS = 4 * 8  # bytes: the loss's sums of a forward pass, which the ranks add up (`fer.training.loop`)
_FLOP_A_MAC = 6  # multiply and add, for the forward pass and twice as much for the backward one
_CHECKED = "ddamfn/nano"
_WARM = 5  # updates before those whose traffic is counted


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a run on `ranks` GPUs moves; nothing of it depends on their speed.

    Attributes:
        updates: of an epoch.
        exchanged: bytes that are all-reduced in an update.
        sent: bytes of that which each rank sends, by the ring that NCCL and gloo use.
        read: encoded bytes of images that all ranks together read in an epoch: each rank takes a part of every batch,
            and so reads every row group.
        checkpoint: bytes of a checkpoint. saves: of them in an epoch.
    """

    updates: int
    exchanged: int
    sent: float
    read: int
    checkpoint: int
    saves: int


def traffic(recipe: Recipe, *, ranks: int, batch: int, images: int, image_bytes: float, every: int) -> Traffic:
    """The counts for a recipe whose global batch is `batch`, with a checkpoint every so many updates and each epoch."""
    import torch

    from fer.models import create_model
    from fer.training.learner import freeze_all_but

    with torch.device("meta"):
        model = create_model(recipe.model, **recipe.options)
    freeze_all_but(model, recipe.trainable)
    gradient = sum(one.numel() for one in model.parameters() if one.requires_grad) * 4
    weights = sum(one.numel() * one.element_size() for one in model.state_dict().values())
    passes = 2 if recipe.sam else 1
    exchanges = 1 if recipe.sam and recipe.sam.gradient == "local" else passes
    exchanged = exchanges * gradient + passes * _TOTALS
    updates = images // batch
    moments = 1 if recipe.optimizer == "sgd" else 2
    return Traffic(
        updates=updates,
        exchanged=exchanged,
        sent=2 * (ranks - 1) / ranks * exchanged,
        read=round(ranks * images * image_bytes),
        checkpoint=weights * (3 if recipe.ema_decay else 2) + moments * gradient,  # the best weights are kept beside
        saves=1 + (updates - 1) // every,
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    def number(name: str, default: float, what: str) -> None:
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{what} ({default:,})")

    parser.add_argument(
        "--recipe", default="poster_v2/published_code_affectnet8", help="(poster_v2/published_code_affectnet8)"
    )
    number("images", 287_651, "of the training split; AffectNet-8's")
    number("batch", 144, "images of a GPU in an update: the global batch grows with the GPUs")
    number("epochs", 20, "of the run")
    number("tflops", 30.0, "that a GPU sustains, of any precision")
    number("link", 200.0, "GB/s between the GPUs of a node")
    number("store", 0.2, "GB/s of one stream to the object store, for checkpoints")
    number("every", 200, "updates between two checkpoints: train.checkpoint_every_steps")
    number("price", 3.0, "dollars for a GPU and hour, with its share of the node")
    parser.add_argument("--check", action="store_true", help="count the same in two processes here, instead")


@benchmark("scaling", help="bytes, hours and dollars of a run on 1, 8 and 64 GPUs, modeled", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """One row for each number of GPUs and network between nodes; with `--check` one for each count."""
    settings = {key: value for key, value in vars(args).items() if key not in ("benchmark", "json", "list")}
    if args.check:
        return BenchResult(
            title=f"{_CHECKED}, two workers by gloo on this machine, one epoch",
            rows=_checked(),
            notes=[
                "sent: by the counter of the loopback interface, headers included; run it where nothing else uses it"
            ],
            settings=settings,
        )
    import torch

    from benchmarks.data import images
    from fer.models import create_model
    from fer.models.cost import measure

    recipe = _recipe(args.recipe)
    with torch.device("meta"):
        model = create_model(recipe.model, **recipe.options)
    encoded = sum(map(len, islice(images(model.input_size, gray=False), 100))) / 100
    operations = _FLOP_A_MAC * measure(model).operations.macs * (2 if recipe.sam else 1)
    compute = args.batch * operations / (args.tflops * 1e12)
    rows = []
    for gpus, network in ((1, None), (8, None), (64, 10), (64, 100), (64, 400)):
        moved = traffic(
            recipe, ranks=gpus, batch=args.batch * gpus, images=args.images, image_bytes=encoded, every=args.every
        )
        reduce = moved.sent / (args.link * 1e9 if network is None else network / 8 * 1e9)
        saving = moved.saves * moved.checkpoint / (args.store * 1e9)
        epoch = moved.updates * (compute + reduce) + saving
        hours = args.epochs * epoch / 3600
        nodes = -(-gpus // _GPUS_A_NODE)
        rows.append(
            {
                "GPUs": gpus,
                "network": "in the node" if network is None else f"{network} Gbit/s",
                "updates an epoch": moved.updates,
                "compute, ms": round(compute * 1e3),
                "all-reduce, ms": round(reduce * 1e3, 1),
                "images/s": round(args.images / epoch),
                "of ideal, %": round(100 * moved.updates * compute / epoch),
                "read an epoch, GB": round(moved.read / 1e9, 1),
                "fetched once, GB": round(nodes * args.images * encoded / 1e9, 1),
                "checkpoints, GB/h": round(moved.saves * moved.checkpoint / 1e9 / (epoch / 3600), 1),
                "saving, %": round(100 * saving / epoch, 1),
                "hours": round(hours, 2),
                "$": round(hours * gpus * args.price),
            }
        )
    return BenchResult(
        title=f"{args.recipe}, {args.epochs} epochs of {args.images:,} images, {args.batch} of a GPU in an update",
        rows=rows,
        notes=[
            f"{operations / 1e9:.0f} GFLOP an image: {_FLOP_A_MAC} a MAC, twice under SAM; at {args.tflops:g} TFLOP/s",
            f"all-reduce: {moved.exchanged / 1e6:.0f} MB an update, by a ring, not overlapped with the backward pass",
            f"an image has {encoded / 1e3:.1f} KB; a node fetches the shards once, each GPU reads them in every epoch",
            f"a checkpoint has {moved.checkpoint / 1e6:.0f} MB; all wait while rank 0 writes at {args.store:g} GB/s",
            "validation, start-up, lost nodes and the head's price are not counted",
        ],
        settings=settings,
    )


def _recipe(name: str) -> Recipe:
    from fer.training.recipe import load_recipe

    return load_recipe({"recipe": name}, Path.cwd(), "--recipe").last


# ------------------------------------------------------------------------------------------------ check


def _checked() -> list[dict[str, Any]]:
    """The model's counts beside those of a run, each with their ratio."""
    from benchmarks.data import LABELS, write_shards
    from benchmarks.train_workers import in_two_processes
    from fer.shards.read import ShardSet
    from fer.training.job import TrainJob

    recipe = _recipe(_CHECKED).model_copy(update={"epochs": 1})
    with tempfile.TemporaryDirectory(prefix="fer-bench-") as folder:
        root = Path(folder)
        (root / "work").mkdir()
        split = ShardSet.open(write_shards(root / "shards", rows=30 * recipe.batch_size, size=40)).split("train")
        encoded = sum(split.images(group).data.nbytes for group in range(len(split.row_group_sizes)))
        job = TrainJob(
            shards=str(root / "shards"), work_dir=str(root / "work"), recipe=recipe, labels=LABELS, seed=0, threads=1,
            checkpoint_every_steps=8, fingerprint="f" * 64,
        )  # fmt: skip
        one, other = in_two_processes(_worker, job, split.rows)
        found = {key: one[key] + other[key] for key in one}
        checkpoint = max(path.stat().st_size for path in (root / "work").glob("state-*.pt"))
    model = traffic(
        recipe, ranks=2, batch=recipe.batch_size, images=split.rows, image_bytes=encoded / split.rows,
        every=job.checkpoint_every_steps,
    )  # fmt: skip
    pairs = {
        "updates an epoch": (model.updates, found["updates"] / 2),
        "sent by both in an update, bytes": (2 * model.sent, found["sent"]),
        "read by both in an epoch, bytes": (model.read, found["read"]),
        "checkpoint, bytes": (model.checkpoint, checkpoint),
        "checkpoints an epoch": (model.saves, found["saves"]),
    }
    return [
        {
            "what": what,
            "model": round(modeled),
            "counted": round(counted),
            "counted / model": round(counted / modeled, 4),
        }
        for what, (modeled, counted) in pairs.items()
    ]


def _worker(job: TrainJob, rank: int, rows: int, results: Any) -> None:
    """One of two ranks, which counts what it reads, saves and sends."""
    import os

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch.distributed as dist

    from fer import processes
    from fer.shards.dataset import EncodedGroup, ShardSplit
    from fer.training.loop import train
    from fer.training.state import TrainState

    processes.quiet_libraries()
    found = {"updates": 0, "sent": 0.0, "read": 0, "saves": 0}
    updates, counter = rows // job.recipe.batch_size, list[int]()
    images, save = ShardSplit.images, TrainState.save

    def counted_images(split: ShardSplit, group: int) -> EncodedGroup:
        encoded = images(split, group)
        found["read"] += encoded.data.nbytes if split.rows == rows else 0  # not those of validation
        return encoded

    def counted_save(state: TrainState, location: str | os.PathLike[str]) -> str:
        found["saves"] += 1
        return save(state, location)

    def on_step(_: object) -> None:
        found["updates"] += 1
        if found["updates"] in (_WARM, updates):
            dist.barrier()  # all that belongs to the updates so far has been sent
            if rank == 0:
                counter.append(_sent_on_loopback())
            dist.barrier()

    ShardSplit.images, TrainState.save = counted_images, counted_save  # type: ignore[method-assign, assignment]
    meeting = Path(job.work_dir).with_name("meeting")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    train(job, rank=rank, world_size=2, on_step=on_step)
    if rank == 0:
        found["sent"] = (counter[1] - counter[0]) / (updates - _WARM)
    results.put(found)
    dist.barrier()
    dist.destroy_process_group()


def _sent_on_loopback() -> int:
    """Bytes that the loopback interface has sent since it is up."""
    (line,) = [line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")]
    return int(line.split()[9])
