"""The layers of two profiles side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from wmlc.records import LayerTime, Profile

NO_FASTER = 0.95  # of the baseline's time, that a layer with fewer MACs has to get under
UNBLOCKED = "*"  # beside the channels of a convolution outside of ONNX Runtime's blocked layout
UNBLOCKED_WORDS = "outside of ONNX Runtime's blocked layout, which these channels do not fit"
OTHER = "other: "  # what the name of operators that belong to no layer begins with

Value = TypeVar("Value")


@dataclass(frozen=True)
class LayerPair:
    """One layer in the baseline and in a peer; None where one of them lacks it."""

    base: LayerTime | None
    peer: LayerTime | None

    @property
    def known(self) -> LayerTime:
        """The baseline's, else the peer's."""
        known = self.base or self.peer
        assert known is not None
        return known

    def told(
        self, value: Callable[[LayerTime], Value | None], words: Callable[[Value], str], unknown: str
    ) -> list[str]:
        """A value of the baseline's layer and of the peer's in words, once where both are told alike."""
        found = [value(layer) if layer else None for layer in (self.base, self.peer)]
        texts = [unknown if each is None else words(each) for each in found]
        return texts[:1] if texts[0] == texts[1] else texts

    def channels(self, between: str, unknown: str) -> list[str]:
        """The channels in and out of both, as `told`, with a star where they do not fit ONNX Runtime's layout."""

        def words(layer: LayerTime) -> str:
            return between.join(map(str, layer.channels or ())) + UNBLOCKED * (layer.blocked is False)

        return self.told(lambda layer: layer if layer.channels else None, words, unknown)

    @property
    def times_faster(self) -> float | None:
        """The baseline's milliseconds over the peer's."""
        return self.base.ms / self.peer.ms if self.base and self.peer and self.peer.ms else None

    @property
    def shared(self) -> bool:
        """The peer's layer has as many MACs."""
        return bool(self.base and self.peer) and 0 < self.base.macs == self.peer.macs  # type: ignore[union-attr]

    @property
    def no_faster(self) -> bool:
        """It has fewer MACs and took more than 0.95 of the time."""
        if not self.base or not self.peer:
            return False
        return self.peer.macs < self.base.macs and self.peer.ms > NO_FASTER * self.base.ms


def joined_by(baseline: Profile, peer: Profile) -> Literal["name", "position"] | None:
    """How the layers of two networks find each other; None for two that are not alike.

    By position where they share no name and have the same operators in the same order, as files from elsewhere may.
    """
    ours, theirs = ([layer for layer in profile.layers if layer.macs] for profile in (baseline, peer))
    if {layer.layer for layer in ours} & {layer.layer for layer in theirs}:
        return "name"
    return "position" if [layer.op for layer in ours] == [layer.op for layer in theirs] else None


def compare(baseline: Profile, peer: Profile) -> list[LayerPair]:
    """The layers of two profiles side by side; operators without MACs are joined by name, always."""
    theirs = {layer.layer: layer for layer in peer.layers}
    if joined_by(baseline, peer) == "position":
        places = iter([layer for layer in peer.layers if layer.macs])
        theirs = {layer.layer: next(places) for layer in baseline.layers if layer.macs}
        theirs |= {layer.layer: layer for layer in peer.layers if not layer.macs}
    pairs = [LayerPair(layer, theirs.pop(layer.layer, None)) for layer in baseline.layers]
    return [*pairs, *(LayerPair(None, layer) for layer in theirs.values())]
