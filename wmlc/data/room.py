"""Room for a set's small images: in the device's memory while they are a small part of it, else outside of it."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wmlc.console import note
from wmlc.errors import InputError
from wmlc.files import user_cache

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
SHARE = 0.25  # of a device's memory that images may take; the rest is for networks


def home_of(size_bytes: int, device: torch.device) -> torch.device:
    """Where so many bytes of images are kept: on `device`, or in the CPU's memory, from where batches are sent."""
    import torch

    if device.type == "cpu" or size_bytes <= SHARE * _memory_bytes(device):
        return device
    note(
        f"the images take {size_bytes / 1e9:.1f} GB, over {SHARE:.0%} of the memory of {device}; they are kept outside "
        f"of it, and sent batch by batch"
    )
    return torch.device("cpu")


def room(shape: Sequence[int], home: torch.device) -> Tensor:
    """Black images, uint8 of `shape` on `home`; what is too much for the CPU's memory lies in a file without a name."""
    import torch

    size = math.prod(shape)
    if home.type != "cpu" or size <= SHARE * _memory_bytes(home):
        return torch.zeros(*shape, dtype=torch.uint8, device=home)
    user_cache().mkdir(parents=True, exist_ok=True)
    note(f"the images take {size / 1e9:.1f} GB, over {SHARE:.0%} of this machine's memory; they lie in {user_cache()}")
    with tempfile.NamedTemporaryFile(dir=user_cache(), prefix="images-") as file:  # the mapping outlives the name
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is told now, and not by a signal later
        except OSError as error:
            raise InputError(
                f"{user_cache()} has no room for {size / 1e9:.1f} GB of images ({error.strerror}); make room, point "
                f"XDG_CACHE_HOME elsewhere, or train on fewer (--train-images)"
            ) from None
        return torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8).view(*shape)


def _memory_bytes(device: torch.device) -> int:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of a run on this machine, as torchrun says
    return min([here, *_limits_of_container()]) // max(1, beside)


def _limits_of_container() -> Iterator[int]:
    """The bytes that a container may have of the machine's memory, where it has a limit."""
    for file in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not there; "max"
            yield int(file.read_text(encoding="utf-8"))
