"""How networks are called: by wmlc's own names, torchvision's and timm's, or by code that only its caller may name."""

from __future__ import annotations

TORCHVISION, TIMM = "torchvision:", "timm:"


def is_foreign(arch: str) -> bool:
    """Whether `arch` is a network of others: torchvision:NAME, timm:NAME, FILE.py:FACTORY or MODULE:FACTORY."""
    return ":" in arch


def needs_caller(arch: str) -> bool:
    """Whether `arch` names code that only its caller may name, as it is run; a file that says so isn't asked."""
    return is_foreign(arch) and not arch.startswith((TORCHVISION, TIMM))


def whole_name(name: str) -> str:
    """A tensor's or module's name in a network of others, by its name in the sequence of stages.

    The last one, the head, has two parts, of one more name.
    """
    stage, _, rest = name.partition(".")
    return rest.partition(".")[2] if stage == "head" else rest
