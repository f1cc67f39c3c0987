"""Trains models side by side where there is room: `python -m fer.stages.ahead`, a process beside `fer repro`.

DVC runs one stage after another. From the first model on, the next ones are trained here meanwhile, a process each, as
far as `train.run(..., ahead=True)` goes: into `.work/<fingerprint>`. The stage of such a model follows that process and
publishes what it has left. Where one fails, its stage trains again, and tells why.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired

from fer import params as parameters
from fer import processes
from fer.environment import environment
from fer.outputs import BEGUN
from fer.params import Params

_POLL_SECONDS = 1.0
_LAST_SECONDS = 30.0
"""For the last checkpoints, once DVC has ended."""
Item = tuple[str, str]
"""A dataset and a model."""


def start(params: Params) -> None:
    """Starts it beside this process, with which it ends; not where there is one model on one dataset."""
    if len(_order(params)) > 1:
        _open()


def _open(*item: str) -> Popen[bytes]:
    """A process that says nothing, and hears no Ctrl-C: both are for the stages."""
    output = None if environment().debug else DEVNULL
    command = [sys.executable, "-m", "fer.stages.ahead", *item]
    return Popen(command, stdin=DEVNULL, stdout=output, stderr=output, start_new_session=True)


def _order(params: Params) -> list[Item]:
    return list(dict.fromkeys(params.combinations))


def watch(params: Params) -> None:
    """Starts one training after another, as there is room, until all have been or the parent process has ended.

    On a named cluster it waits until those that were started before have their places: what is free until then is not
    free for the next.
    """
    parent, order, last = os.getppid(), _order(params), -1
    locks = {item: processes.stage_lock(f"train@{'-'.join(item)}", params.root) for item in order}
    with _connection(params), _children() as children:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
            stages = {item: pid for item in order if (pid := processes.holder(locks[item]))}
            last = max([last, *map(order.index, stages)])
            if last < 0:  # no model's turn has come: its data may not be there
                continue
            busy = {item: child.pid for item, child in children.items() if child.poll() is None}
            if last == len(order) - 1 and not busy:
                return
            # A stage trains its model itself where that was not begun here, or failed.
            busy |= {item: pid for item, pid in stages.items() if item not in children or children[item].poll()}
            left = [item for item in order[last + 1 :] if item not in children]
            placed = not _address(params) or _have_begun(params.home, busy.values())
            if left and placed and _is_room(params, left[0], list(busy)):
                children[left[0]] = _open(*left[0])


def _address(params: Params) -> str | None:
    """Of a named cluster."""
    return environment().ray_address or params.cluster.address


def _connection(params: Params) -> AbstractContextManager[object]:
    """To the named cluster, where models are trained on it: it is asked what is free."""
    if not (_address(params) and any(params.train_of(model).most_workers for model in params.run_models)):
        return nullcontext()
    from fer.cluster.session import connect

    return connect(params.cluster)


@contextmanager
def _children() -> Iterator[dict[Item, Popen[bytes]]]:
    """Processes that end with the block."""
    children: dict[Item, Popen[bytes]] = {}
    try:
        yield children
    finally:
        for child in children.values():
            child.terminate()
        for child in children.values():
            with suppress(TimeoutExpired):
                child.wait(_LAST_SECONDS)


def _have_begun(home: Path, pids: Collection[int | None]) -> bool:
    """Whether each of these processes has made a first update of the run that it holds."""
    return set(pids) <= {processes.holder(mark.with_name("lock")) for mark in home.glob(f".work/*/{BEGUN}")}


def _is_room(params: Params, item: Item, busy: Sequence[Item]) -> bool:
    """Whether an item can be trained beside those that are being trained now."""
    config, others = params.train_of(item[1]), [params.train_of(model) for _, model in busy]
    address = _address(params)
    if address and config.most_workers:
        from fer.cluster.nodes import free_workers

        return free_workers(cpus=config.threads, gpus=int(config.gpu)) >= config.fewest_workers
    here = [(max(1, one.most_workers), one) for one in others if not (address and one.most_workers)]
    here.append((max(1, config.fewest_workers), config))
    if sum(workers * one.threads for workers, one in here) > (params.cluster.cpus or processes.cpus()):
        return False
    return not config.gpu or sum(workers * one.gpu for workers, one in here) <= _gpus()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _train() -> None:
    from fer.stages import train  # loads torch

    train.run(parameters.load(), *sys.argv[1:], ahead=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        processes.run(_train)
    processes.quiet_libraries()
    watch(parameters.load())
