"""More than one process: `torchrun` starts them, each walks its share of the calibration samples.

Sums travel to the rank that decomposes the layer, layers take turns over the ranks, and rank 0 writes (but for layers
that are streamed to disk: their own rank does). Without torchrun all of this does nothing.
"""

import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modegpt.errors import ModegptError

T = TypeVar("T")
WAIT = timedelta(minutes=30)  # for the slowest rank's largest decomposition; a rank that dies is noticed at once


def rank() -> int:
    """Of this process, 0 if it is the only one."""
    return dist.get_rank() if _several() else 0


def size() -> int:
    """Number of processes that work together."""
    return dist.get_world_size() if _several() else 1


def owner(layer: int) -> int:
    """The rank that decomposes a layer."""
    return layer % size()


def mine(layer: int) -> bool:
    """Whether this rank is the one that decomposes a layer."""
    return owner(layer) == rank()


@contextmanager
def ranks(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes that torchrun started; yields the device of this one.

    Args:
        device: "cuda" becomes the GPU of the process's local rank; a CPU stays (gloo then carries the sums).

    Raises:
        ModegptError: more processes on this host than GPUs; an environment that torchrun did not make.
    """
    if _number("WORLD_SIZE", 1) == 1:
        yield device
        return
    _number("RANK"), _number("MASTER_PORT")
    if device.type == "cuda":
        local = _number("LOCAL_RANK")
        if local >= torch.cuda.device_count():
            raise ModegptError(f"rank {local} has no GPU: this host has {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend, chosen = ("nccl", {"device_id": device}) if device.type == "cuda" else ("gloo", {})
    dist.init_process_group(backend, timeout=WAIT, **chosen)
    try:
        yield device
        dist.barrier()  # nobody leaves while another still waits for a sum
    except BaseException as error:
        # Leaving in good order is a collective with NCCL, and the others are in another one. torchrun ends them.
        reason = f"modegpt: {error}" if isinstance(error, ModegptError) else traceback.format_exc()
        print(reason, file=sys.stderr, flush=True)
        os._exit(2)
    dist.destroy_process_group()


def _number(name: str, default: int | None = None) -> int:
    """A variable that torchrun sets."""
    try:
        return int(os.environ[name] if default is None else os.environ.get(name, default))
    except (KeyError, ValueError) as error:
        found = os.environ.get(name, "not set")
        raise ModegptError(f"{name} is {found}: start several processes with torchrun, or unset WORLD_SIZE") from error


def own_share(samples: Tensor) -> Tensor:
    """This rank's samples, of (samples, ...): every `size()`-th, so that the shares differ by one sample at most.

    Raises:
        ModegptError: fewer samples than ranks.
    """
    if 0 < len(samples) < size():
        raise ModegptError(f"{len(samples)} calibration samples cannot be shared by {size()} ranks")
    return samples[rank() :: size()]


def add_up(tensor: Tensor, to: int | None = None) -> Tensor:
    """The sum over all ranks, in place: on every rank, or on rank `to` only (the others' tensor is then undefined).

    Of any shape, which must be the same on all ranks.
    """
    if _several():
        dist.all_reduce(tensor) if to is None else dist.reduce(tensor, to)
    return tensor


def in_turns(layers: Iterable[tuple[int, T]]) -> Iterator[tuple[int, T]]:
    """Of all (layer, item) only this rank's, each held back until every rank has one.

    So all ranks decompose at the same time, instead of waiting at the next sum for the one that does.
    """
    held = None
    for layer, item in layers:
        if mine(layer):
            held = layer, item
        del item
        if held and owner(layer) == size() - 1:
            yield held
            held = None
    if held:
        yield held


def share(module: nn.Module, source: int, device: torch.device) -> None:
    """Give every rank the weights that rank `source` has for this module; elsewhere it may still be empty."""
    if not _several():
        return
    if rank() != source:
        module.to_empty(device=device)
    for tensor in module.state_dict().values():
        dist.broadcast(tensor, source)


def gather(value: object) -> list:
    """What every rank has, in order of rank."""
    found: list = [value] * size()
    if _several():
        dist.all_gather_object(found, value)
    return found


def check_same(settings: Mapping[str, object]) -> None:
    """Raise ModegptError unless all ranks were started with the same settings: their sums would be of two kinds."""
    everyones = gather({name: str(value) for name, value in settings.items()})
    for number, others in enumerate(everyones):
        for name, value in everyones[0].items():
            if others.get(name) != value:
                other = f"{others.get(name)} on rank {number}"
                raise ModegptError(f"the ranks were not started alike: {name} is {value} on rank 0, {other}")


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
