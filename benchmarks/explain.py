"""`fer bench explain`: are maps right where the answer is known?

Planted evidence: images of noise in which one square of stripes, somewhere, decides the class by its direction, among
squares of other textures that decide nothing. A map is right where its highest pixel lies in that square (pointing
game). A model with random weights must not be right more often than by chance: than the same maps are about the squares
of other images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

CLASSES = 4
SIDE = 64
SQUARE = 20
"""Of the image and of the evidence, in pixels."""


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


def trained(name: str, *, steps: int, seed: int = 0) -> Any:
    """A model of the zoo that was trained on planted evidence, in evaluation mode."""
    import torch

    from fer.models import create_model

    torch.manual_seed(seed)
    model = create_model(name, CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        batch = planted(64, seed=1000 * seed + step + 1)
        optimizer.zero_grad()
        model.loss(model(batch.images), batch.labels).backward()
        optimizer.step()
        schedule.step()
    return model.eval()
