"""One process or several: what the first does for all when torchrun started them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from ..spectrum import NotConverged

T = TypeVar("T")


@contextmanager
def process_group() -> Iterator[bool]:
    """Join torchrun's processes, if it started this one; yields whether this is the first."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield True
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    # The first process may read and tag text for a long time while the others wait.
    dist.init_process_group(timeout=timedelta(hours=12))
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def several() -> bool:
    """Whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def on_first(work: Callable[[], T]) -> T:
    """Do work in the first process; all get its result, or a ValueError with its message."""
    if not several():
        return work()
    result, message, cause = None, None, None
    if dist.get_rank() == 0:
        try:
            result = work()
        except Exception as error:
            # An error need not survive being sent, its message does.
            known, cause = isinstance(error, ValueError | NotConverged), error
            message = str(error) if known else repr(error)
    box = [result, message]
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise ValueError(box[1]) from cause
    return box[0]
