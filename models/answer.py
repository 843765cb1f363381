"""What a network answers to one image: saved beside its weights, it tells when the code of others has changed since."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from wmlc.arch import needs_caller

LOGITS = 8  # of them, the first, are kept
# Of the largest logit. Machines that round otherwise, and TF32, stay below 0.002; GELU for ReLU moves them by a half,
# LeakyReLU for ReLU by 0.006 to 0.05.
APART = 0.02
LEAST = 1e-3  # logits that are less apart are the same, however small they are


def answer_of(network: nn.Module, input_shape: tuple[int, int, int]) -> list[float] | None:
    """The first logits of `network` in eval mode, where its weights are, for one image of waves.

    None where they are no numbers, where it draws anew each time, and where it does not run by itself.
    """
    first, again = (_logits(network, input_shape) for _ in range(2))
    return first if first and again and _are_alike(first, again) else None


def answers_as(recorded: list[float], network: nn.Module, input_shape: tuple[int, int, int]) -> bool:
    """Whether `network` still answers as was recorded of it (`answer_of`)."""
    return _are_alike(recorded, _logits(network, input_shape) or [])


def code_to_bring_back(arch: str) -> str:
    """What is wrong with a network of others that answers otherwise than it did, and what to bring back."""
    own = "code" if needs_caller(arch) else f"version of {arch.partition(':')[0]}"
    return f"the code of {arch} does something else than when it was trained; bring back the {own} of that time"


def _logits(network: nn.Module, input_shape: tuple[int, int, int]) -> list[float] | None:
    waves = torch.arange(math.prod(input_shape), dtype=torch.float64).sin().float().view(1, *input_shape)
    try:
        own = copy.deepcopy(network).eval()  # which may count what it has seen
        with torch.no_grad():
            logits = own(waves.to(next(own.parameters()).device))[0, :LOGITS].float().cpu()
    except Exception:  # whatever its code raises
        return None
    return logits.tolist() if logits.isfinite().all() else None


def _are_alike(recorded: list[float], answer: list[float]) -> bool:
    most = max(APART * max(map(abs, recorded)), LEAST)
    return len(recorded) == len(answer) and all(
        abs(one - other) <= most for one, other in zip(recorded, answer, strict=True)
    )
