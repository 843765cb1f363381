"""What a family has for teaching alone, and no peer keeps: ONE's gate, the regressors of hints.

Shape legend: P peers, B batch, C classes or channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmlc.compress.learn.family import PeerFamily
from wmlc.compress.learn.losses import gated_ensemble
from wmlc.compress.widths.outputs import OutputChannels
from wmlc.errors import InputError
from wmlc.models.head import own_modes
from wmlc.records import Branch

GATE = "gate"


class Gate(nn.Module):
    """ONE's gate (Lan et al., NeurIPS 2018, section 3.1): shared features → a weight for each branch, each image."""

    def __init__(self, channels: int, peers: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, peers)
        self.bn = nn.BatchNorm1d(peers)

    def forward(self, shared_BCHW: Tensor) -> Tensor:
        """Features [B, C, H, W] → weights on the simplex [B, P]: pooling, linear, batch norm, ReLU, softmax."""
        pooled_BC = F.adaptive_avg_pool2d(shared_BCHW, 1).flatten(1)
        return F.softmax(F.relu(self.bn(self.fc(pooled_BC))).float(), dim=1)


class KeptChannels(nn.Module):
    """What a stage's branch kept of the full network's output: its channels along a dimension."""

    index_K: Tensor

    def __init__(self, dim: int, index_K: Tensor) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index_K", index_K)  # in checkpoints, as another device may rank channels otherwise

    def forward(self, output: Tensor) -> Tensor:
        """The full network's output → those of its channels that the branch has."""
        return output.index_select(self.dim, self.index_K)


def add_kept_channels(
    family: PeerFamily, channels: Mapping[str, OutputChannels], kept: Sequence[Mapping[str, Tensor]],
    input_shape: tuple[int, int, int],
) -> None:  # fmt: skip
    """Give `family` the channels that each branch kept of its stage's output, where they are known.

    Args: each stage's `channels`, and the units that each peer, the smallest first, `kept` of each group; the images'
    shape.
    """
    shapes = _output_shapes(family, input_shape)
    for branch, stage in feature_pairs(family, taught=True):
        if stage in channels:
            own = channels[stage]
            index_K = own.kept(kept[branch.peers[-1] - 1])
            if len(index_K) != shapes[branch.name][own.dim]:  # where the trace lost track of what was cut
                continue
            family.extras[f"kept_{branch.name}"] = KeptChannels(own.dim, index_K)


def kept_channels(family: PeerFamily, student: str) -> nn.Module | None:
    """What brings the full network's output to the channels of the branch `student`, where that is known."""
    name = f"kept_{student}"
    return family.extras[name] if name in family.extras else None  # noqa: SIM401 (a ModuleDict has no get)


def add_extras(
    family: PeerFamily, input_shape: tuple[int, int, int], *, gate: bool, features: bool, regressors: bool,
    teacher: PeerFamily | None = None,
) -> None:  # fmt: skip
    """Give `family` a gate, where there is more than one peer, and a regressor for each stage that gets hints.

    Args: the images' shape; whether stages learn from `features`, by way of `regressors` or as they are; the frozen
    `teacher` whose features they are. Raises `InputError` where what looks at feature maps [B, C, H, W] would be given
    something else, as by a transformer.
    """
    gated = gate and family.peers > 1
    pairs = feature_pairs(family, taught=teacher is not None) if features else []
    if not gated and not pairs:
        return
    shapes = _output_shapes(family, input_shape)
    theirs = shapes if teacher is None else _output_shapes(teacher, input_shape)
    if gated:
        trunk = _trunk(family)
        family.extras[GATE] = Gate(_channels_of_map(shapes[trunk.name], trunk.stage, "the gate of one"), family.peers)
    for student, name in pairs:
        its, wanted = shapes[student.name], theirs[name]
        narrow, wide = (_channels_of_map(shape, student.stage, "feature_loss") for shape in (its, wanted))
        if its[2:] != wanted[2:]:  # such as [N, H, W, C], where channels come last
            raise InputError(
                f"feature_loss compares maps of the same height and width, and {student.stage} puts out "
                f"{_in_words(its)} and {_in_words(wanted)}; leave it out"
            )
        if regressors:
            family.extras[f"hint_{student.name}"] = nn.Conv2d(narrow, wide, kernel_size=1)


def regressor(family: PeerFamily, student: str) -> nn.Module:
    """What brings the output of the branch `student` to its teacher's channels."""
    return family.extras[f"hint_{student}"]


def gate_weights(family: PeerFamily, outputs: Mapping[str, Tensor]) -> Tensor:
    """ONE's weight for each branch and image, from the last stage that all branches share; [B, P]."""
    return family.extras[GATE](outputs[_trunk(family).name].float())


def ensembles(
    family: PeerFamily, logits_PBC: Tensor, outputs: Mapping[str, Tensor], weight_P: Tensor
) -> tuple[Tensor, Tensor]:
    """The method's own ensemble, Σ_i ω_i z_i or ONE's gated mix, and the plain average; each [B, C]."""
    if GATE in family.extras:
        own_BC = gated_ensemble(logits_PBC, gate_weights(family, outputs))
    else:
        own_BC = torch.einsum("p,pbc->bc", weight_P, logits_PBC)
    return own_BC, logits_PBC.mean(0)


def feature_pairs(family: PeerFamily, taught: bool) -> list[tuple[Branch, str]]:
    """Each stage's copies that learn from features, with the name of what they learn from.

    That is the stage of a frozen teacher's, where the family is `taught` by one, or else the copy that the largest peer
    goes through.
    """
    learning = [b for b in family.branches if b.stage != "head" and (taught or family.peers not in b.peers)]
    return [(b, b.stage if taught else family.branch(b.stage, family.peers).name) for b in learning]


def _trunk(family: PeerFamily) -> Branch:
    """The last stage that all peers share."""
    shared = [branch for branch in family.branches if len(branch.peers) == family.peers]
    if not shared:
        raise InputError(
            "the gate of one looks at a stage that all peers share, and nothing is shared; leave out share, "
            "or choose a network that can be split into stages"
        )
    return shared[-1]


def _output_shapes(family: PeerFamily, input_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """The shape of what each branch puts out for one image; the family is run once, in eval mode."""
    example = torch.zeros(1, *input_shape, device=next(family.parameters()).device)
    with own_modes(family), torch.no_grad():
        _, outputs = family.eval().walk(example)
    return {name: tuple(output.shape) for name, output in outputs.items()}


def _channels_of_map(shape: tuple[int, ...], stage: str, who: str) -> int:
    if len(shape) != 4:
        raise InputError(
            f"{who} looks at feature maps [N, C, H, W], and {stage} of this network puts out {_in_words(shape)}; "
            f"leave it out"
        )
    return shape[1]


def _in_words(shape: tuple[int, ...]) -> str:
    return f"[N, {', '.join(map(str, shape[1:]))}]"
