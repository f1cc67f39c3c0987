"""Small images as files of any kind; the messages and the memory of decoding them."""

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 40, 56


def encoded(image: Image.Image | Pixels, kind: str, **options: object) -> bytes:
    """The image as a file's bytes."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def scene() -> Pixels:
    """Smooth, so that lossy formats keep it, and different under every rotation and exchange of channels."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([rows * 6, columns * 4, 200 - rows * 2 - columns], axis=2).astype(np.uint8)


def difference(one: Pixels, other: Pixels) -> float:
    """Mean absolute difference of their samples; images of different sizes do not compare."""
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other).mean())


@contextmanager
def silence() -> Iterator[None]:
    """Fails where anything is written to standard error, by whatever library."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        assert file.read() == b""


def memory_to_read(path: Path) -> tuple[str, int]:
    """In a process of its own: the size or the reason of the refusal, and the peak memory beyond imports in MiB."""
    script = (
        "import re, sys; from pathlib import Path; import cv2, numpy, PIL.Image; PIL.Image.init()\n"
        "from fer.io.images import ImageError, read_image\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1]) // 1024\n"
        "before = peak()\n"
        "try: outcome = '{1} x {0}'.format(*read_image(Path(sys.argv[1])).shape)\n"
        "except ImageError as error: outcome = error.reason\n"
        "print(peak() - before, outcome)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    peak, outcome = done.stdout.strip().split(" ", 1)
    return outcome, int(peak)
