"""From settings to a family before its first step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from wmlc.arch import is_foreign, needs_caller
from wmlc.compress.config import sharing, trained_ratios, trains_uncut, without_channels, without_teacher
from wmlc.compress.counted import counted
from wmlc.compress.latency import Clock, as_planned, plan_for_latency, priced, ratios_of
from wmlc.compress.learn.extras import add_extras, add_kept_channels, feature_pairs
from wmlc.compress.learn.family import PeerFamily, build_exits, build_family, family_of_one, twins
from wmlc.compress.learn.methods import FEATURE_TERMS, METHODS
from wmlc.compress.learn.place import Device, draws_kept, seed_all
from wmlc.compress.widths.choose import Asked, PeerWidths, Scored, choose_widths
from wmlc.compress.widths.graph import ChannelGraph
from wmlc.compress.widths.outputs import output_channels
from wmlc.compress.widths.resizable import resizable
from wmlc.compress.widths.tree import Partition, sharing_tree
from wmlc.compress.worth import Images, budget_of, measure_sensitivity, rank, score
from wmlc.errors import InputError, one_line
from wmlc.models.cost import total_cost
from wmlc.models.foreign import raised
from wmlc.models.head import own_modes
from wmlc.models.layout import hold_plain
from wmlc.models.residual import leave_out, left_out
from wmlc.models.resizable import Resizable
from wmlc.models.stages import Staged, answers_apart, own_names, split
from wmlc.models.start import Fitted, fit_start, read_start
from wmlc.models.widths import cut_to, difference
from wmlc.models.zoo import build_network
from wmlc.records import DataRecord, LatencyPlan, Sensitivity
from wmlc.settings import LATENCY, TrainConfig


@dataclass(frozen=True)
class Prepared:
    """A family before its first step."""

    full: nn.Sequential
    scored: Scored
    widths: list[PeerWidths]
    family: PeerFamily
    made: Made  # how the full network came about
    plan: LatencyPlan | None = None  # what its widths were chosen for, if for a latency

    @property
    def trained(self) -> bool:
        """Whether the full network is a trained one as it stands, and so the baseline."""
        return self.made.trained


@dataclass(frozen=True)
class Made:
    """The full network as a sequence of stages, and what is known of how it became that."""

    network: nn.Sequential
    staged: Staged | None = None  # of a network that is not built of stages
    whole: nn.Module | None = None  # … and that network
    fitted: Fitted | None = None  # what became of the start's weights

    @property
    def trained(self) -> bool:
        """Whether it is a trained one as it stands."""
        return self.fitted is not None and self.fitted.head != "new"

    @property
    def in_one_stage(self) -> bool:
        """Whether it could not be taken apart."""
        return self.staged is not None and not self.staged.cuts.cuts


def prepare(
    config: TrainConfig, data: Images, device: Device, latency: Clock | LatencyPlan | None = None,
    sensitivities: Sequence[Sensitivity] = (), tell: Callable[[Made], None] | None = None,
) -> Prepared:  # fmt: skip
    """Make the full network, from the seed or from a start, score it on a training batch and cut the peers.

    A method that cuts the trained network gets the widths that it will have, as the budgets are those of the weights
    that it starts with; which channels stay is chosen after training (`cut_anew`). Args: where a latency is asked for,
    what measures it, or what was planned before; the `sensitivities` of groups, if they were measured before; what
    shall `tell` of the full network before minutes are spent on it.
    """
    record, method = data.record, METHODS[config.method]
    made = make_full(config, record, device)
    if tell is not None:
        tell(made)
    trains = made.staged is not None and bool(config.epochs or config.finetune_epochs)
    if trains:
        _check_step(made.network, config.arch, record.input_shape, device)
    config = settle_teacher(config, made)
    scored = device.ranks.of_first(lambda: score(made.network, config, data, made.whole))
    if method.exits:
        family = build_exits(made.network, record.input_shape).to(device.name)
        widths = [_widths_of_exit(family.peer(k + 1), scored, config, record) for k in range(family.peers)]
        return Prepared(made.network, scored, widths, family, made)
    plan = None
    if config.ratio_of == LATENCY:
        scored = rank(scored, made.network, config, data, made.fitted is not None, device)
        scored, plan = _planned(made, scored, config, data, latency, device)
        config = replace(config, ratios=ratios_of(plan))
    else:
        scored = ranked_and_measured(made, scored, config, data, device, sensitivities)
    if method.cuts_trained:
        prepared = replace(_cut_apart(made, scored, config), plan=plan)
    else:
        prepared = replace(cut_before_training(made, scored, config, record, device), plan=plan)
    if made.staged is not None:
        widths = counted(prepared.widths, prepared.family, scored.graph, config.ratio_of, record.input_shape)
        prepared = replace(prepared, widths=widths)
    if trains:
        _check_step(_narrowest(prepared), f"once cut, {config.arch}", record.input_shape, device)
    _check_as_saved(prepared, record.input_shape)
    return prepared


def _narrowest(prepared: Prepared) -> nn.Module:
    """The peer of the fewest MACs."""
    least = min(range(len(prepared.widths)), key=lambda place: prepared.widths[place].macs)
    return prepared.family.peer(1 + least)


def ranked_and_measured(
    made: Made, scored: Scored, config: TrainConfig, data: Images, device: Device,
    sensitivities: Sequence[Sensitivity] = (),
) -> Scored:  # fmt: skip
    """`scored` with what a run's settings rank channels by, and with what answers lose by them where that is asked.

    Args: these `sensitivities`, if they were measured before.
    """
    ranked = rank(scored, made.network, config, data, made.fitted is not None, device)
    return device.ranks.of_first(lambda: measure_sensitivity(ranked, made.network, config, data, sensitivities))


def _check_step(network: nn.Module, who: str, input_shape: tuple[int, int, int], device: Device) -> None:
    """Raise `InputError` where the code of somebody's network, `who`, fails in a training step, or in bf16."""
    images = torch.zeros(2, *input_shape, device=device.name)
    for bf16 in sorted({False, device.bf16}):
        try:
            with replace(device, bf16=bf16).autocast(), draws_kept(device.name):
                logits = copy.deepcopy(network).train()(images)
            logits.float().sum().backward()
        except Exception as error:  # whatever its code raises
            how, remedy = (" in bf16", "; pass --precision fp32") if bf16 else ("", "")
            raise InputError(f"{who} cannot be trained{how}: {raised(error)}{remedy}") from error


def _check_as_saved(prepared: Prepared, input_shape: tuple[int, int, int]) -> None:
    """Raise `InputError` where the narrowest peer would be another network once it is saved and loaded again.

    Peers are trained as stages and saved as the network itself, which may take a number in one stage and use it in
    another: a number of channels that only one of the two has cut.
    """
    made = prepared.made
    if made.staged is None or made.whole is None or made.in_one_stage:
        return
    full, arch = prepared.full, type(made.whole).__name__
    peer, named = _narrowest(prepared), own_names(made.staged)
    device = next(full.parameters()).device
    try:
        whole = cut_to(leave_out(copy.deepcopy(made.whole), left_out(peer, named)), difference(full, peer, named)).to(
            device
        )
        whole.load_state_dict({named(name): own for name, own in peer.state_dict().items()}, strict=False, assign=True)
        with own_modes(peer):
            apart = answers_apart(whole.eval(), peer.to(device).eval(), torch.zeros(2, *input_shape, device=device))
        how = f"gives answers that are {apart:.1%} apart from" if apart else ""
    except Exception as error:  # whatever its code raises
        how = f"does not run ({one_line(error, 120)}), unlike"
    if how:
        raise InputError(
            f"once cut, {arch} {how} the stages that it is trained as; its code may use a number of channels, such as "
            "x.shape[1], where others have been cut: take such numbers where they are used"
        )


def _planned(
    made: Made, scored: Scored, config: TrainConfig, data: Images, latency: Clock | LatencyPlan | None, device: Device
) -> tuple[Scored, LatencyPlan]:  # fmt: skip
    """`scored` with the widths that `config` asks latencies of: as planned before, or chosen and measured now.

    Rank 0 measures.
    """
    asked, unpriced, record = asked_of(config), scored, data.record

    def planned() -> tuple[Scored, LatencyPlan]:
        if isinstance(latency, LatencyPlan):
            return unpriced, latency
        if latency is None:
            raise InputError("ratios of a latency need an engine to measure it in; train with 'wmlc train'")
        network = resizable_of(made, unpriced.graph, config, record.input_shape, len(record.class_names))
        with_prices = priced(unpriced, network, latency.table(network))
        with_prices = measure_sensitivity(with_prices, made.network, config, data)
        cut = config.ratios if config.max_latency_ms else trained_ratios(config)  # as the family's tree has them
        return with_prices, plan_for_latency(
            with_prices, replace(asked, ratios=cut), network, latency, config.max_latency_ms, config.paid_out or 0.0,
            whole=len(config.ratios) - len(cut),
        )  # fmt: skip

    scored, plan = device.ranks.of_first(planned)
    return as_planned(scored, asked, plan), plan


def resizable_of(
    made: Made, graph: ChannelGraph, config: TrainConfig, input_shape: tuple[int, int, int], classes: int
) -> Resizable:
    """The full network of a run as what its latency is measured of."""
    return resizable(
        made.network, graph, input_shape, classes, config.divisor, config.arch, config.arch_args, made.staged
    )


def settle_teacher(config: TrainConfig, made: Made) -> TrainConfig:
    """`config` with what its start can do: a network whose head is new cannot teach, and is trained itself.

    One that is a single stage has no stages' channels to hold peers against.

    Raises `InputError` for a method that is nothing without its teacher, and where nothing is left to train.
    """
    if config.start is None:
        return config
    if not made.trained and config.teacher != "trained":
        if METHODS[config.method].teacher_alone:
            raise InputError(
                f"{config.method} learns from the start, and its head for these classes is new; train that first "
                "(wmlc train with --ratios 0), and start from its run"
            )
        config = without_teacher(config)
    if made.in_one_stage:
        config = without_channels(config)
    if config.epochs and not trains_uncut(config) and not any(config.ratios):
        raise InputError(
            "a peer of ratio 0 is the start itself, and there is no other to train; pass a ratio above 0, or --epochs 0"
        )
    return config


def cut_before_training(
    made: Made, scored: Scored, config: TrainConfig, record: DataRecord, device: Device
) -> Prepared:
    """Peers cut from the full network before their first step, joined along the sharing tree."""
    full, method = made.network, METHODS[config.method]
    widths, tree = _chosen(scored, config)
    if made.fitted is not None and config.epochs and (alike := twins(widths)):
        raise InputError(
            f"peers {alike[0]} and {alike[1]} would be the same network and begin with the same weights, the start's, "
            f"so they would stay alike; give them other ratios{', pass a smaller --divisor' * (config.divisor > 1)}, "
            "or leave --start out"
        )
    family = build_family(
        full, scored.graph.groups, widths, tree,
        mean_joins=config.join == "mean",
        fresh=None if made.fitted else lambda: make_full(config, record, device, made.staged, seeded=False).network,
    )  # fmt: skip
    term, taught = FEATURE_TERMS.get(config.feature_loss or "none"), config.teacher == "frozen"
    if term and family.peers > 1 and not feature_pairs(family, taught):
        raise InputError(
            "feature_loss teaches stages that a peer has for itself, and all are shared; leave it out, or share less"
        )
    if term and term.of_start:
        channels = output_channels(full, record.input_shape, scored.graph.groups)
        add_kept_channels(family, channels, [own.kept for own in widths], record.input_shape)
    add_extras(
        trained_peers(family, config), record.input_shape, gate=method.gated,
        features=term is not None and not term.of_start,
        regressors=bool(term and term.regressors), teacher=family_of_one(full) if taught else None,
    )  # fmt: skip
    return Prepared(full, scored, widths, family.to(device.name), made)


def _chosen(scored: Scored, config: TrainConfig) -> tuple[list[PeerWidths], list[Partition]]:
    """The widths of all peers, and who shares what: an uncut peer that is not trained shares nothing."""
    asked, stages = asked_of(config), scored.stages
    cut = trained_ratios(config)
    whole = len(asked.ratios) - len(cut)
    widths = choose_widths(scored, replace(asked, ratios=cut)) if cut else []
    tree = sharing_tree(len(cut), stages, asked.share) if cut else [()] * len(stages)
    alone = tuple((peer,) for peer in range(len(cut) + 1, len(asked.ratios) + 1))
    uncut = choose_widths(scored, replace(asked, ratios=(0.0,) * whole, share="none", trunk_ratio=0.0)) if whole else []
    return widths + uncut, [level + alone for level in tree]


def trained_peers(family: PeerFamily, config: TrainConfig) -> PeerFamily:
    """Of a family the peers that are trained: all, or those that lost anything, where an uncut one is done already."""
    count = len(trained_ratios(config))
    if trains_uncut(config) or not count:  # none, where there are no epochs
        return family
    branches = [branch for branch in family.branches if branch.peers[0] <= count]
    return PeerFamily(
        branches, {branch.name: family.parts[branch.name] for branch in branches}, config.join == "mean", family.extras
    )


def make_full(
    config: TrainConfig, record: DataRecord, device: Device, like: Staged | None = None, seeded: bool = True
) -> Made:
    """The full network of a run as stages, with its start's weights if it has one.

    Args: an earlier split, for the same stages; whether the seed sets the weights, or they are drawn anew.
    """
    if seeded:
        seed_all(config.seed)
    shape, classes, fitted = record.input_shape, record.class_names, None
    network = build_network(config.arch, len(classes), shape, config.arch_args)
    if config.start is not None:
        start = read_start(config.start, config.arch, shape, config.arch_args, config.start_classes, len(classes))
        fitted = fit_start(network, start, classes, shape)
    network.to(device.name)
    if not is_foreign(config.arch):
        assert isinstance(network, nn.Sequential)
        return Made(network, fitted=fitted)
    if needs_caller(config.arch):
        hold_plain(network, shape)
    example = torch.zeros(1, *shape, device=device.name)
    staged = split(network, example, None if like is None else like.cuts)
    return Made(staged.network, staged, network, fitted)


def cut_anew(prepared: Prepared, trained: nn.Sequential, config: TrainConfig, data: Images, device: Device) -> Prepared:
    """`prepared` with the peers cut from its full network as it is once `trained`: of the same widths."""
    made = replace(prepared.made, network=trained)
    return _cut_apart(made, rank(prepared.scored, trained, config, data, True, device), config)


def _cut_apart(made: Made, scored: Scored, config: TrainConfig) -> Prepared:
    """Peers cut from the full network, trained or not, that share nothing and are to be trained one by one."""
    widths = choose_widths(scored, asked_of(config))
    tree = sharing_tree(len(widths), scored.stages, sharing(config))
    return Prepared(made.network, scored, widths, build_family(made.network, scored.graph.groups, widths, tree), made)


def asked_of(config: TrainConfig) -> Asked:
    """What a run's settings say of its peers."""
    return Asked(
        config.ratios, sharing(config), config.ratio_of, config.divisor, config.trunk_ratio,
        uniform=budget_of(config) == "uniform",
        near=config.start is not None,  # else widths are rounded as those of published runs were
    )  # fmt: skip


def _widths_of_exit(network: nn.Module, scored: Scored, config: TrainConfig, record: DataRecord) -> PeerWidths:
    """What an exit costs, in the words of a cut: the share of the full network that it does without."""
    cost = total_cost(network, record.input_shape)
    ratio = 1 - getattr(cost, config.ratio_of) / getattr(scored.graph, config.ratio_of)
    return PeerWidths({}, cost.params, cost.macs, round(ratio, 3), ratio)
