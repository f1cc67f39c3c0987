"""The passes that `fer bench models` times: evaluation or a training step, of a reference or of our model."""

from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference import REFERENCES, Published, Reference
from fer.export.formats import FORMATS, computes_bfloat16
from fer.export.graph import Graph, trace
from fer.export.quantize import quantize
from fer.models import TrainOutput, create_model
from fer.models.inference import for_inference

Pass = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured.

    Attributes:
        network: a key of `REFERENCES`.
        ours: our model, and not the reference.
        training: forward and backward, and not evaluation.
        dtype: of weights and input in evaluation.
    """

    network: str
    ours: bool
    training: bool
    batch: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    threads: int = 2


def build(setting: Setting) -> Pass:
    """The pass over one random batch, ready to be called; it returns when it is done."""
    reference = REFERENCES[setting.network]
    torch.manual_seed(0)
    x = torch.randn(setting.batch, 3, reference.size, reference.size, device=setting.device, dtype=setting.dtype)
    step = (_ours if setting.ours else _published)(setting, reference, x)
    if setting.device == "cpu":
        return step

    def done() -> None:
        step()
        torch.cuda.synchronize()

    return done


def _published(setting: Setting, reference: Reference, x: Tensor) -> Pass:
    published = Published(names=reference.names, training=setting.training)
    with torch.device(setting.device), torch.no_grad():
        reference.forward(published, x[:2])  # makes the weights

    def evaluate() -> None:
        with torch.inference_mode():
            reference.forward(published, x)

    def train() -> None:
        for parameter in published.parameters():
            parameter.grad = None
        _loss(reference.forward(published, x), reference).backward()  # type: ignore[no-untyped-call]

    return train if setting.training else evaluate


def _ours(setting: Setting, reference: Reference, x: Tensor) -> Pass:
    model = create_model(reference.model, **reference.options).to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = x.to(memory_format=torch.channels_last)
    if not setting.training:
        model = for_inference(model).to(setting.dtype)

        def evaluate() -> None:
            with torch.inference_mode():
                model(x)

        return evaluate
    model.load_state_dict(model.state_dict())  # a frozen landmark network refuses to train before its weights come
    model.train()

    def train() -> None:
        model.zero_grad()
        output = model(x)
        assert isinstance(output, TrainOutput)
        _loss(output.logits, reference).backward()  # type: ignore[no-untyped-call]

    return train


def exported(setting: Setting, runtimes: Collection[str], folder: Path, *, int8: bool) -> dict[str, Pass]:
    """The passes over the same batch by what `fer export --raw` writes of our model, by runtime and precision."""
    found: dict[str, Pass] = {}
    chosen = {format.runtime: format for format in FORMATS.values() if format.runtime in runtimes}
    if not chosen:
        return found
    reference = REFERENCES[setting.network]
    torch.manual_seed(0)
    x = torch.randn(setting.batch, 3, reference.size, reference.size).numpy()
    program = trace(Graph(for_inference(create_model(reference.model, **reference.options)), raw=True))
    for runtime, format in chosen.items():
        path = folder / format.files[0]
        format.write(program, path)
        found[f"{runtime} fp32"] = partial(format.load(path, setting.threads, False), x)
        if runtime == "openvino" and computes_bfloat16():
            found["openvino bf16"] = partial(format.load(path, setting.threads, True), x)
    if int8:
        quantize(program, np.split(x, len(x)), folder / "int8.xml")
        found["openvino int8"] = partial(chosen["openvino"].load(folder / "int8.xml", setting.threads, False), x)
    return found


def _loss(output: Tensor, reference: Reference) -> Tensor:
    """Of both alike: cross-entropy alone, or the mean square of an output that is no logits."""
    if not reference.classifies:
        return output.square().mean()
    return F.cross_entropy(output, torch.arange(len(output), device=output.device) % output.shape[1])


def peak_mib(setting: Setting) -> float:
    """The most memory that two passes hold, weights included, in MiB.

    On CPU of a process of its own, above what it held when all was imported; on an accelerator what torch allocated.
    """
    if setting.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _twice(setting)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_own_peak_mib, setting).result()


def _own_peak_mib(setting: Setting) -> float:
    torch.set_num_threads(setting.threads)
    F.conv2d(torch.zeros(2, 8, 8, 8), torch.zeros(8, 8, 3, 3))  # what the kernels' library keeps for itself
    before = _resident_peak()
    _twice(setting)
    return (_resident_peak() - before) / 2**20


def _twice(setting: Setting) -> None:
    step = build(setting)
    step()
    step()


def _resident_peak() -> float:
    """The most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure starts at that of the parent process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
