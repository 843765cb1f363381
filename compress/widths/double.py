"""Networks run in float64, whatever tensors their own code makes on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Tensors that code makes without naming a type (`torch.zeros(n)`) are of float64, as the weights around them."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)
