"""`fer bench explain`: are maps right where the answer is known?

Planted evidence: images of noise in which one square of stripes, somewhere, decides the class by its direction. A map
is right where its highest pixel lies in that square (pointing game). A model with random weights must not be right more
often than by chance: than the same maps are about the squares of other images.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import numpy as np

from benchmarks.result import BenchResult, benchmark, options

CLASSES = 4
SIDE = 64
SQUARE = 20
"""Of the image and of the evidence, in pixels."""
INITIALIZATIONS = 8
"""Networks of random weights: a single one prefers some places, and hits more or less often than by chance."""


class Planted(NamedTuple):
    """images: float32 (B,3,64,64), 0 on average. labels: int64 (B,). boxes: int64 (B,4), where the evidence is."""

    images: Any
    labels: Any
    boxes: Any


def planted(count: int, seed: int) -> Planted:
    """Images of blocky noise with a square of stripes: horizontal, vertical, or along one of the diagonals.

    All is black and white in equal parts, in runs of 2 px, so that no patch stands out by its contrast.
    """
    import torch

    random = torch.Generator().manual_seed(seed)
    coarse = torch.randint(2, (count, 1, SIDE // 2, SIDE // 2), generator=random).float()
    images = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    labels = torch.randint(CLASSES, (count,), generator=random)
    corners = torch.randint(SIDE - SQUARE + 1, (count, 2), generator=random)
    phases = torch.randint(4, (count,), generator=random)
    y, x = torch.meshgrid(torch.arange(SQUARE), torch.arange(SQUARE), indexing="ij")
    runs = torch.stack([y, x, x + y, x - y])
    for image, label, (left, top), phase in zip(images, labels, corners, phases, strict=True):
        image[0, top : top + SQUARE, left : left + SQUARE] = (runs[label] + phase) // 2 % 2
    boxes = torch.cat([corners, corners + SQUARE], dim=1)
    return Planted((2 * images - 1).expand(-1, 3, -1, -1).contiguous(), labels, boxes)


def train(model: Any, *, steps: int, seed: int = 0) -> Any:
    """The model, trained on so many batches of 64 new images, in evaluation mode."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        batch = planted(64, seed=1000 * seed + step + 1)
        optimizer.zero_grad()
        torch.autograd.backward(model.loss(model(batch.images), batch.labels))
        optimizer.step()
        schedule.step()
    return model.eval()


def point(maps: Any, test: Planted) -> tuple[float, float]:
    """The pointing game, with each image's own square and with those of ten others, in per cent."""
    import torch

    from fer.explain.faithfulness import pointing_game

    others = [pointing_game(maps, test.boxes.roll(shift, 0)) for shift in range(1, 11)]
    return (
        100 * pointing_game(maps, test.boxes).float().mean().item(),
        100 * torch.stack(others).float().mean().item(),
    )


def measure(model: Any, method: Any, layer: str, test: Planted) -> tuple[dict[str, float], Any]:
    """In per cent, how often the model and its maps are right, and those about another image; areas; the raw maps."""
    import torch

    from fer.explain.cam import attribute
    from fer.explain.faithfulness import area, deletion_and_insertion

    found = attribute(model, test.images, method, target=test.labels, layer=layer)
    with torch.no_grad():
        right = model(test.images).argmax(1) == test.labels
    pointing, chance = point(found.maps, test)
    deletion, insertion = deletion_and_insertion(model, test.images, found.maps, test.labels)
    return {
        "accuracy_percent": 100 * right.float().mean().item(),
        "pointing_percent": pointing,
        "chance_percent": chance,
        "deletion": area(deletion).mean().item(),
        "insertion": area(insertion).mean().item(),
    }, found.raw


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mobilefacenet_nano", metavar="NAME", help="of 64 px; default: %(default)s")
    parser.add_argument("--layer", default="features.stage2", metavar="NAME", help="explained; default: %(default)s")
    parser.add_argument("--method", default="grad_cam", choices=("grad_cam", "score_cam"), help="default: %(default)s")
    parser.add_argument("--images", type=int, default=300, metavar="N", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=150, metavar="N", help="of training; default: %(default)s")


@benchmark("explain", help="maps against planted evidence, while the weights become random", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """One line for each share of the layers that is random, from the logits down."""
    import torch

    from fer.explain.cam import attribute
    from fer.explain.faithfulness import cascade, randomized, rank_correlation
    from fer.models import create_model

    torch.manual_seed(0)
    started = time.process_time()
    model = train(create_model(args.model, CLASSES), steps=args.steps)
    seconds = time.process_time() - started
    if model.input_size != SIDE:
        raise ValueError(f"--model {args.model}: takes {model.input_size} px; one of {SIDE} px is needed")
    test = planted(args.images, seed=10**6)
    numbers, raw = measure(model, args.method, args.layer, test)
    rows = [{"random_layers_percent": 0, **numbers, "rank_correlation": 1.0}]
    for step, (_, changed) in enumerate(cascade(model, seed=1, steps=4), 1):
        numbers, other = measure(changed, args.method, args.layer, test)
        correlation = float(rank_correlation(raw, other).mean())
        rows.append({"random_layers_percent": 25 * step, **numbers, "rank_correlation": correlation})
    fresh = []
    for seed in range(1, INITIALIZATIONS + 1):
        network = randomized(model, seed)
        maps = attribute(network, test.images, args.method, target=test.labels, layer=args.layer).maps
        fresh.append(point(maps, test))
    hits, chances = zip(*fresh, strict=True)
    return BenchResult(
        f"{args.method} of {args.layer} of {args.model}, {args.images} images with planted evidence",
        rows,
        [
            "pointing: the highest pixel lies in the square that decides the class; chance: in another image's square",
            f"the square covers {100 * SQUARE**2 / SIDE**2:.1f} % of the image",
            "rank correlation: of each map with that of the trained model (Spearman)",
            f"{INITIALIZATIONS} networks of random weights: pointing {min(hits):.1f} to {max(hits):.1f} %, on average "
            f"{np.mean(hits):.1f} %; chance {np.mean(chances):.1f} %",
            f"trained in {seconds:.0f} s of processor time",
        ],
        options(args, ("model", "layer", "method", "images", "steps")),
    )
