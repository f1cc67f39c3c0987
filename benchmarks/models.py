"""`fer bench models`: our models beside plain transcriptions of the published code, in one process."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.result import BenchResult, benchmark, options
from benchmarks.timing import Variant, in_turn, ratio
from fer.config import nearest

if TYPE_CHECKING:
    from benchmarks.passes import Setting

_FEWEST_ROUNDS = 3


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", metavar="NAME", help="networks to measure (all that there are)")
    parser.add_argument("--batch", type=int, default=32, help="images in evaluation; half as many in training (32)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help=f"for each row, but at least {_FEWEST_ROUNDS} rounds; 0: one (20)"
    )
    parser.add_argument("--passes", nargs="+", choices=("eval", "train"), default=["eval", "train"], help="(both)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument(
        "--runtimes",
        nargs="+",
        choices=("torch", "onnxruntime", "openvino"),
        default=["torch"],
        help="of our models in evaluation: torch, and what `fer export` writes, without the peak memory (torch)",
    )
    parser.add_argument("--int8", action="store_true", help="with the runtime openvino: its int8 graph too")
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out; it takes longest")


@benchmark("models", help="images/s and memory of our models beside the published code's", arguments=_arguments)
def run(args: argparse.Namespace) -> BenchResult:
    """One row for each network and pass; unknown names or devices are a ValueError."""
    import torch

    from benchmarks.reference import REFERENCES

    known = list(REFERENCES)
    names = args.models or known
    for name in names:
        if name not in REFERENCES:
            raise ValueError(
                f"--models {name}: no published code to compare with{nearest(name, known)}; known: {', '.join(known)}"
            )
    if args.device != "cpu" and not (args.device == "cuda" and torch.cuda.is_available()):
        raise ValueError(f"--device {args.device}: cpu is allowed, and cuda on a machine that has it")
    if args.batch < 4:
        raise ValueError(f"--batch {args.batch}: 4 or more is needed, BatchNorm in training needs two images")
    exported = set(args.runtimes) - {"torch"}
    if exported and args.device != "cpu":
        raise ValueError(f"--device {args.device}: only the runtime torch is measured there; drop --runtimes")
    if args.int8 and "openvino" not in exported:
        raise ValueError("--int8: is of the runtime openvino; add it to --runtimes")
    args.no_memory |= bool(exported)
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        rows = [row for name in names for kind in args.passes for row in _measure(name, kind, args)]
    finally:
        torch.set_num_threads(threads)
    return BenchResult(
        title=f"evaluation at batch {args.batch}, forward and backward at {args.batch // 2}, {_where(args)}",
        rows=rows,
        notes=[
            "published: a plain eager transcription of the published code in float32, channels first, which gives the "
            "published logits (tests/models/test_reference_models.py); what the code computes for nothing is computed",
            "ours: evaluation through fer.models.inference.for_inference; channels last; train: no optimizer step",
            "onnxruntime, openvino: the graph that `fer export --raw` writes, in its runtime; int8: ranges from noise, "
            "which changes no speed",
            "all of a row in turn, round by round; medians, and the median of the rounds' ratios, by the "
            "clock and, for a busy machine, by processor time",
            "GMAC/s: by the published code's arithmetic; % of dense: of the rate of a dense 3x3 convolution (256 "
            "channels, 14x14) with the same dtype and batch in the same rounds; it is of a forward pass, and a step of "
            "training is counted as three",
            "MiB: the most that the pass holds, weights included",
        ],
        settings=options(args, ("batch", "seconds", "passes", "threads", "device", "runtimes", "int8"))
        | {"models": names},
    )


def _where(args: argparse.Namespace) -> str:
    return f"{args.threads} threads" if args.device == "cpu" else str(args.device)


def _measure(name: str, kind: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one network and one pass: float32; in evaluation also other runtimes, int8, and bfloat16.

    The last one where the processor computes in it.
    """
    import torch

    from benchmarks.passes import Setting, build, exported
    from fer.export.formats import computes_bfloat16

    training = kind == "train"
    batch = args.batch // 2 if training else args.batch

    def setting(network: str, *, ours: bool, dtype: torch.dtype = torch.float32) -> Setting:
        return Setting(
            network=network,
            ours=ours,
            training=training,
            batch=batch,
            device=args.device,
            dtype=dtype,
            threads=args.threads,
        )

    published, ours = setting(name, ours=False), dict[str, Setting]()
    if training or "torch" in args.runtimes:
        ours["fp32"] = setting(name, ours=True)
        if not training and (args.device != "cpu" or computes_bfloat16()):
            ours["bf16"] = setting(name, ours=True, dtype=torch.bfloat16)
    with TemporaryDirectory() as folder:
        graphs = {} if training else exported(published, args.runtimes, Path(folder), int8=args.int8)
        steps = {"published": build(published), **{dtype: build(variant) for dtype, variant in ours.items()}, **graphs}
        dense = {step: "bf16" if step.endswith("bf16") else "fp32" for step in (*ours, *graphs)}
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        for one in sorted(set(dense.values())):
            steps[f"dense {one}"] = _dense(setting(name, ours=True, dtype=dtypes[one]))
        rounds = _FEWEST_ROUNDS if args.seconds > 0 else 1
        variants = {step: _counted(run, batch) for step, run in steps.items()}
        found = in_turn(variants, rounds=rounds, seconds=args.seconds)
    rate = {step: samples.rate for step, samples in found.items()}
    gmacs = _gmacs(name) * (3 if training else 1)
    peak = {} if args.no_memory else _peaks(published, ours)
    rows = []
    for step in dense:
        row: dict[str, Any] = {
            "model": name,
            "pass": f"{kind} {step}",
            "published img/s": round(rate["published"], 2),
            "ours img/s": round(rate[step], 2),
            "ratio": round(ratio(found["published"].seconds, found[step].seconds), 2),
            "by CPU time": round(ratio(found["published"].cpu, found[step].cpu), 2),
            "GMAC/s": round(rate[step] * gmacs, 1),
            "% of dense": round(100 * rate[step] * gmacs / (rate[f"dense {dense[step]}"] * _DENSE_GMACS), 1),
        }
        if peak:
            row |= {
                "published MiB": round(peak["published"]),
                "ours MiB": round(peak[step]),
                "memory ratio": round(peak[step] / peak["published"], 2),
            }
        rows.append(row)
    return rows


def _counted(step: Callable[[], object], batch: int) -> Variant:
    """A pass, run once before it is measured."""
    step()

    def variant(turn: int) -> int:
        step()
        return batch

    return variant


_DENSE_GMACS = 256 * 256 * 9 * 14 * 14 / 1e9


def _dense(setting: "Setting") -> Callable[[], object]:
    """A convolution that keeps the arithmetic units busy: what these cores reach at best."""
    import torch
    import torch.nn.functional as F

    x = torch.randn(setting.batch, 256, 14, 14, device=setting.device, dtype=setting.dtype)
    weight = torch.randn(256, 256, 3, 3, device=setting.device, dtype=setting.dtype)
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))

    def step() -> None:
        with torch.inference_mode():
            F.conv2d(x, weight, padding=1)
        if setting.device != "cpu":
            torch.cuda.synchronize()

    return step


def _gmacs(name: str) -> float:
    """Multiply-accumulates of the published forward pass of one image, in billions."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.reference import REFERENCES, Published

    reference = REFERENCES[name]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        reference.forward(Published(names=reference.names), torch.randn(1, 3, reference.size, reference.size))
    operations: int = counter.get_total_flops()
    return operations / 2e9


def _peaks(published: "Setting", ours: Mapping[str, "Setting"]) -> dict[str, float]:
    from benchmarks.passes import peak_mib

    return {name: peak_mib(setting) for name, setting in {"published": published, **ours}.items()}
