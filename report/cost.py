"""What training took, in a unit that no machine's load changes: epochs of the unpruned network."""

from __future__ import annotations

from wmlc.records import Family

TRAINED = 3  # times the MACs of a forward: that, and a backward of twice as many
ALIKE = 1.05  # times as much, up to which costs count as equal


def in_epochs(macs: float | None, family: Family) -> float | None:
    """Training MACs in epochs of the unpruned network over the training images; None where they were not counted."""
    epoch = TRAINED * family.full.macs * family.data.train
    return None if macs is None or not epoch else macs / epoch


def cost_words(family: Family) -> str:
    """12.7 epochs of the unpruned network, 21 min."""
    minutes = f"{minutes_text(family.seconds)} min"
    cost = in_epochs(family.training_macs, family)
    if cost is None:
        return f"{minutes}, MACs not counted by the wmlc that trained it"
    return f"{epochs_text(cost)} epochs of the unpruned network, {minutes}"


def epochs_text(cost: float) -> str:
    """0.85, 12.7, 240."""
    return f"{cost:.2f}" if cost < 10 else f"{cost:.1f}" if cost < 100 else f"{cost:.0f}"


def minutes_text(seconds: float) -> str:
    """0.52, 21.3, 300."""
    return epochs_text(seconds / 60)
