"""`fer bench predict`: a photo, warm, through `Model.predict`, and the parts of it that take the time."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.result import BenchResult, benchmark, options
from benchmarks.timing import Variant, in_turn

if TYPE_CHECKING:
    from fer.inference.model import Model


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--photos", type=Path, required=True, metavar="PATH", help="a photo, or a folder of some")
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        default=["ddamfn", "ddamfn_small"],
        help="of random weights (%(default)s)",
    )
    parser.add_argument("--detector", choices=("retinaface", "yunet"), default="yunet", help="(%(default)s)")
    parser.add_argument("--detector-weights", metavar="PATH", help="its file or folder (fetched into the cache)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch and OpenCV (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="over all photos (%(default)s)")


@benchmark("predict", help="one photo, warm: decoding, detection, alignment and model", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """A row for each model and part: ms a photo, by processor and by clock; ValueError where there is no photo."""
    from fer.faces.config import CropConfig
    from fer.inference.model import Model
    from fer.inference.photos import find_photos
    from fer.labels import SPACES
    from fer.models import create_model
    from fer.weights.store import save_model

    photos = list(find_photos([args.photos]))
    if not photos:
        raise ValueError(f"--photos {args.photos}: no photo there")
    labels = SPACES["basic7"].labels
    crop = CropConfig(detector=args.detector).model_dump(exclude={"detector_weights"})
    rows, faces = [], 0
    for name in args.models:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            save_model(create_model(name, len(labels)), path, labels, "basic7", {"crop": crop}, name=name)
            model = Model(path, detector_weights=args.detector_weights, threads=args.threads)
        parts, faces = _parts(model, photos)
        for part in parts.values():
            part(0)  # warm
        measured = in_turn(parts, rounds=args.rounds)
        for part_name, times in measured.items():
            rows.append(
                {
                    "model": name,
                    "px": model.network.input_size,
                    "part": part_name,
                    "cpu ms": round(1000 / times.cpu_rate, 2),
                    "clock ms": round(1000 / times.rate, 2),
                    "% of whole": round(100 * measured["whole"].cpu_rate / times.cpu_rate, 1),
                }
            )
    return BenchResult(
        title=f"a photo, mean of {len(photos)} with {faces} faces, warm, {args.threads} threads",
        rows=rows,
        notes=[
            "medians over the rounds; `cpu ms` is processor time, which a busy machine changes least",
            "what the parts leave of `whole` is alignment and the crop's JPEG",
        ],
        settings=options(args, ("models", "detector", "threads", "rounds")),
    )


def _parts(model: Model, photos: Sequence[Path]) -> tuple[dict[str, Variant], int]:
    """What is measured of all photos, and the number of their faces."""
    from fer.faces.crop import FaceCrop, crop_samples
    from fer.inference.photos import pixels, sample
    from fer.io.images import read_image

    config, finder = model.detection
    assert finder is not None
    detector, images = finder.detector, [read_image(photo) for photo in photos]
    found = list(crop_samples([sample(image, "photo", is_crop=False) for image in images], config, finder))
    crops = [[pixels(one.image) for one in results if isinstance(one, FaceCrop)] for results in found]

    def each(action: Callable[[int], object]) -> Variant:
        return lambda _: float(len([action(index) for index in range(len(photos))]))

    parts = {
        "whole": each(lambda index: model.predict(photos[index])),
        "decode": each(lambda index: read_image(photos[index])),
        "detect": each(lambda index: detector.detect([images[index]])),
        "model": each(lambda index: model.logits(crops[index])),
    }
    return parts, sum(map(len, crops))
