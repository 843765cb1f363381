"""The methods: what each one's paper sets, and what a training step descends under it (docs/methods.md).

Free of torch until a loss is computed, as the command line needs the facts alone.

Shape legend: P peers, B batch, C classes, S sources that a peer learns from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wmlc.ranks import SOLO, Ranks
from wmlc.settings import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from wmlc.compress.learn.family import PeerFamily


@dataclass(frozen=True)
class Forward:
    """What a training step's forward gave: all that a loss may look at."""

    family: PeerFamily
    logits_PBC: Tensor
    outputs: Mapping[str, Tensor]  # of each branch, by its name; see `PeerFamily.walk`
    labels_B: Tensor
    weight_P: Tensor  # ω
    teaching_SP: Tensor | None = None  # the weight of each source of each peer, where these have weights of their own
    teacher: Taught | None = None
    ranks: Ranks = SOLO  # those whose batches together are the step's


@dataclass(frozen=True)
class Taught:
    """What a frozen teacher makes of a batch."""

    logits_BC: Tensor
    outputs: Mapping[str, Tensor]  # of each stage, by the stage's name; none where only logits were kept


# --- the losses, each summed over the peers: (what the forward gave, α, T) → scalar


def _mutual(forward: Forward, alpha: float, temperature: float) -> Tensor:
    """P · Σ_i ω_i ℓ_i.

    The factor P keeps the minimiser and gives a private stage, at uniform weights, the same gradient as a network
    trained alone: without it more peers would mean smaller steps.
    """
    from wmlc.compress.learn.losses import wml_losses

    losses_P = wml_losses(forward.logits_PBC, forward.labels_B, alpha, temperature)
    return len(forward.weight_P) * (forward.weight_P @ losses_P)


def _from_sources(forward: Forward, temperature: float) -> Tensor:
    """Σ_j Σ_s w_sj ℓ_sj: each peer from each of its sources, by weights that add up to 1."""
    from wmlc.compress.learn.losses import source_losses

    assert forward.teaching_SP is not None
    teacher_BC = None if forward.teacher is None else forward.teacher.logits_BC
    return (forward.teaching_SP * source_losses(forward.logits_PBC, teacher_BC, forward.labels_B, temperature)).sum()


def _deep_mutual(forward: Forward, alpha: float, temperature: float) -> Tensor:
    from wmlc.compress.learn.losses import dml_losses

    return dml_losses(forward.logits_PBC, forward.labels_B, temperature).sum()


def _gated(forward: Forward, alpha: float, temperature: float) -> Tensor:
    from wmlc.compress.learn.extras import gate_weights
    from wmlc.compress.learn.losses import one_losses

    gate_BP = gate_weights(forward.family, forward.outputs)
    return one_losses(forward.logits_PBC, forward.labels_B, gate_BP, temperature).sum()


def _collaborative(forward: Forward, alpha: float, temperature: float) -> Tensor:
    from wmlc.compress.learn.losses import cl_losses

    return cl_losses(forward.logits_PBC, forward.labels_B, alpha, temperature).sum()


def _self_distilled(forward: Forward, alpha: float, temperature: float) -> Tensor:
    from wmlc.compress.learn.losses import self_distillation_losses

    return self_distillation_losses(forward.logits_PBC, forward.labels_B, alpha, temperature).sum()


def _labels_alone(forward: Forward, alpha: float, temperature: float) -> Tensor:
    from wmlc.compress.learn.losses import cross_entropies

    return cross_entropies(forward.logits_PBC, forward.labels_B).sum()


# --- terms on what stages put out, summed over the stages that learn


def _hints(forward: Forward) -> Tensor:
    from wmlc.compress.learn.extras import regressor
    from wmlc.compress.learn.losses import hint_distance

    return _over_pairs(forward, lambda name, its, wide: hint_distance(regressor(forward.family, name)(its), wide))


def _attention(forward: Forward) -> Tensor:
    from wmlc.compress.learn.losses import attention_distance

    return _over_pairs(forward, lambda _, its, wide: attention_distance(its, wide))


def _channels(forward: Forward) -> Tensor:
    """Each stage's channels against the same ones of the frozen teacher's."""
    from wmlc.compress.learn.extras import feature_pairs, kept_channels
    from wmlc.compress.learn.losses import channel_distance

    assert forward.teacher is not None
    pairs = []
    for own, stage in feature_pairs(forward.family, taught=True):
        if kept := kept_channels(forward.family, own.name):
            pairs.append((forward.outputs[own.name].float(), kept(forward.teacher.outputs[stage]).float()))
    sizes = [wanted.square().mean() for _, wanted in pairs]
    forward.ranks.mean_(sizes)
    terms = [channel_distance(*pair, size) for pair, size in zip(pairs, sizes, strict=True)]
    return _total([forward.logits_PBC.new_zeros(()), *terms])


def _over_pairs(forward: Forward, distance: Callable[[str, Tensor, Tensor], Tensor]) -> Tensor:
    """Σ over the stages that learn from the frozen teacher's, or else from the largest peer's own.

    `distance` takes the student's name and both outputs.
    """
    from wmlc.compress.learn.extras import feature_pairs

    outputs, pairs = forward.outputs, feature_pairs(forward.family, taught=forward.teacher is not None)
    teaching = outputs if forward.teacher is None else forward.teacher.outputs
    return _total([distance(own.name, outputs[own.name].float(), teaching[its].float()) for own, its in pairs])


def _exit_features(forward: Forward) -> Tensor:
    """Each exit's pooled features against the deepest exit's."""
    from wmlc.compress.learn.losses import pooled_distance

    family = forward.family
    heads = [family.branch("head", peer).name for peer in range(1, family.peers + 1)]
    *exits, deepest_BC = [forward.outputs[name].float() for name in heads]
    return _total([pooled_distance(exit_BC, deepest_BC) for exit_BC in exits])


def _total(terms: list[Tensor]) -> Tensor:
    import torch

    return torch.stack(terms).sum()


# --- the facts


@dataclass(frozen=True)
class FeatureTerm:
    """A term on what stages put out, which is added to a method's loss."""

    weight: float  # by default, of a mean of squares
    loss: Callable[[Forward], Tensor]
    regressors: bool = False  # 1 × 1 convolutions bring a student's channels to its teacher's
    of_start: bool = False  # a frozen start's stages teach, and no peer's can


@dataclass(frozen=True)
class Method:
    """What a method's own paper sets: its loss, the constants of that, and the default shape of its family."""

    loss: Callable[[Forward, float, float], Tensor]
    ratios: tuple[float, ...] = (0.7, 0.5, 0.3, 0.0)
    share: str = "tree"
    alpha: float | None = None  # weight of the teaching against the labels; None: the loss has none
    temperature: float | None = None  # None: nothing is softened, as nobody teaches
    features: FeatureTerm | None = None  # that belongs to the method
    start_alpha: float | None = None  # and from a trained start, where that differs
    start_temperature: float | None = None
    start_share: str | None = None
    start_features: str = "none"  # that a frozen start's stages teach by
    join: str = "mean"  # of its peers' gradients, what a shared stage gets
    reweighs: bool = False  # ω is learned
    teacher: str = "none"  # what a trained start does besides being cut, unless that is asked for
    sources: bool = False  # each source of a peer may have a weight of its own
    teacher_alone: bool = False  # peers do not teach
    gated: bool = False  # a gate mixes the peers, image by image
    exits: bool = False  # the peers are exits of one network, and nothing is cut
    cuts_trained: bool = False  # the unpruned network is trained first; the peers are cut from it and fine-tuned

    @property
    def fixed_shape(self) -> bool:
        """The method itself says what is shared."""
        return self.exits or self.cuts_trained


EQUAL = (0.0,) * 4  # peers as large as the full network

METHODS = {
    "wml": Method(  # weighted mutual learning
        _mutual, alpha=0.1, temperature=1.0, reweighs=True, teacher="frozen", sources=True,
        start_alpha=0.5, start_temperature=2.0, start_share="none",
        start_features="channels",
    ),
    "wml-p": Method(  # the same with fixed, equal weights
        _mutual, alpha=0.1, temperature=1.0, teacher="frozen", sources=True,
        start_alpha=0.5, start_temperature=2.0, start_share="none",
        start_features="channels",
    ),
    "dml": Method(_deep_mutual, share="none", temperature=1.0),  # deep mutual learning
    "one": Method(  # on-the-fly native ensemble
        _gated, ratios=EQUAL, share="branches", temperature=3.0, join="sum", gated=True
    ),
    "cl": Method(  # collaborative learning
        _collaborative, ratios=EQUAL, alpha=0.5, temperature=2.0, start_share="none"
    ),
    "self-distillation": Method(  # the exits of one network
        _self_distilled, ratios=(), share="exits", alpha=0.1, temperature=3.0,
        features=FeatureTerm(1e-4, _exit_features), join="sum", exits=True,
    ),
    "independent": Method(_labels_alone, share="none"),
    "kd": Method(  # knowledge distillation from the trained start
        _labels_alone, share="none", alpha=0.5, temperature=2.0, teacher="frozen", sources=True,
        teacher_alone=True,
    ),
    "prune-finetune": Method(_labels_alone, share="none", cuts_trained=True),  # train, cut by magnitude, fine-tune
}  # fmt: skip

FEATURE_TERMS = {  # of --feature-loss
    "hints": FeatureTerm(100.0, _hints, regressors=True),
    "attention": FeatureTerm(1000.0, _attention),
    "channels": FeatureTerm(10.0, _channels, of_start=True),
}


def feature_term(method: Method, feature_loss: str | None) -> FeatureTerm | None:
    """The method's own term, or the one that was chosen; None for `feature_loss` none."""
    return method.features or FEATURE_TERMS.get(feature_loss or "none")


def train_loss(forward: Forward, config: TrainConfig) -> Tensor:
    """The scalar that a step descends: the method's losses, and a feature term if there is one.

    One peer alone learns from the labels, whatever the method, unless a frozen teacher is there.
    """
    method, alpha, temperature = METHODS[config.method], config.alpha or 0.0, config.temperature or 1.0
    if len(forward.weight_P) == 1 and forward.teacher is None:
        return _labels_alone(forward, alpha, temperature)
    if forward.teaching_SP is not None:
        loss = _from_sources(forward, temperature)
    else:
        loss = method.loss(forward, alpha, temperature)
    term = feature_term(method, config.feature_loss)
    return loss if term is None else loss + (config.feature_weight or 0.0) * term.loss(forward)
