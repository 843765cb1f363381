"""What training took, in a unit that no machine's load changes: epochs of the unpruned network."""

from __future__ import annotations

from wmlc.effort import epochs_of_unpruned
from wmlc.records import Family

ALIKE = 1.05  # times as much, up to which costs count as equal


def in_epochs(macs: float | None, family: Family) -> float | None:
    """Training MACs in epochs of the unpruned network over the training images; None where they were not counted."""
    full, images = family.full.macs, family.data.train
    return None if macs is None or not full * images else epochs_of_unpruned(macs, full, images)


def cost_words(family: Family) -> str:
    """12.7 epochs of the unpruned network, 21.3 min."""
    minutes = f"{amount_text(family.seconds / 60)} min"
    cost = in_epochs(family.training_macs, family)
    if cost is None:
        return f"{minutes}; its MACs were not counted"
    return f"{amount_text(cost)} epoch{'s' * (cost != 1)} of the unpruned network, {minutes}"


def amount_text(value: float) -> str:
    """0.85, 12.7, 240."""
    return f"{value:.{places_of(value)}f}"


def places_of(value: float) -> int:
    """Decimal places of a number of epochs or minutes."""
    return 2 if value < 10 else 1 if value < 100 else 0
