"""Any network as a sequence of stages: cut where all data flows through one tensor, at about equal MACs.

The network is traced shallowly: every submodule is one step whose own code runs, and only those are opened that hold a
cut. So training and eval mode, dropout and stochastic depth stay the network's own, and its modules keep their names.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from wmlc.arch import whole_name
from wmlc.errors import InputError
from wmlc.models.flow import CLASSIFIER, FEATURES, HEAD, Flow, closed_again, fine_enough
from wmlc.models.follow import DROPOUTS, NotTraceable, dropout_rate
from wmlc.models.head import own_modes
from wmlc.models.layout import pass_on
from wmlc.records import StageCuts

APART = 1e-4  # relative, of logits that are the same but for the order of sums
ACROSS = 0.01  # … and of one image in batches of two sizes, for which a GPU takes other kernels, in TF32


@dataclass(frozen=True)
class Staged:
    """A network as a sequence of stages that hold its own modules, not copies."""

    network: nn.Sequential
    cuts: StageCuts
    ends: dict[str, str]  # of each stage, the last of the network's own modules in it
    unused: list[str]  # tensors of the network that its forward pass in eval mode has no part in
    note: str | None = None  # why there are no stages to share


def split(network: nn.Module, example: Tensor, cuts: StageCuts | None = None) -> Staged:
    """`network` as the stages stem, stage1 … stage4 and head, or as at these `cuts` of an earlier split.

    Args: an example [1, C, H, W] on the network's device. Where there is no cut, the stage before is missing; where the
    network cannot be traced at all it is one stage, `head`, and the note says why. Raises `InputError` where `cuts` are
    not of this network, where it does not give logits [N, classes], and where one image's hang on the others.
    """
    own = set(network.modules())
    with own_modes(network):
        if cuts is None:
            _check_alone(network.eval(), example)
        staged = _split(network.eval(), example, cuts)
    for module in staged.network.modules():
        if module not in own:  # a stage, or dropout that is one's own here
            module.training = network.training
    pass_on(network, next(iter(staged.network.children())))
    return staged


def _check_alone(network: nn.Module, example: Tensor) -> None:
    """Raise `InputError` where `network` in eval mode answers otherwise for an image beside others than for it alone.

    Such a network cannot be served, where images come alone. One that draws anew each time is let be.
    """
    network = copy.deepcopy(network)  # which may count what it has seen
    noise = torch.randn(2, *example.shape[1:], generator=torch.Generator().manual_seed(0)).to(example)
    with torch.no_grad():
        beside, alone = (network(images.clone())[:1] for images in (noise, noise[:1]))
        if beside.is_meta:
            return
        if _are_near(alone, beside, ACROSS) or not torch.equal(beside, network(noise.clone())[:1]):
            return
    raise InputError(
        "the network answers otherwise for an image beside others than for it alone: its code looks across the batch, "
        "as x.mean(0), view(1, …) and a batch norm without running statistics do; let each image's answer be its own"
    )


def _are_near(own: Tensor, other: Tensor, share: float) -> bool:
    """Whether logits are the same but for a share of the largest; where both are no number, they are."""
    return torch.allclose(own, other, share, share * float(own.nan_to_num().abs().max()), equal_nan=True)


def own_names(staged: Staged | StageCuts | None) -> Callable[[str], str]:
    """A function from a name in the sequence of stages to the network's own; the identity for a built-in network."""
    return str if staged is None else whole_name


def _split(network: nn.Module, example: Tensor, cuts: StageCuts | None) -> Staged:
    if cuts is not None and not cuts.cuts:
        return _in_one(network, "")
    try:
        flow = Flow.of(network, example, set(cuts.opened) if cuts else {""})
        if cuts is None:
            flow = fine_enough(network, example, flow)
    except NotTraceable as error:
        if cuts is not None:
            raise InputError(
                f"the network cannot be traced any more ({error}); load it with the code it was made by"
            ) from None
        return _in_one(network, f"the network cannot be traced ({error})")
    chosen = flow.named(cuts.cuts) if cuts is not None else flow.chosen()
    if not chosen:
        why = [f"{name} cannot be traced ({reason})" for name, reason in flow.closed.items()]
        return _in_one(network, (why or ["all data flows through one tensor nowhere in the network"])[0])
    if cuts is None:  # what was opened for nothing is closed again
        flow, chosen = closed_again(network, example, flow, chosen)
    staged = _staged(flow, network, example, chosen)
    if answers_apart(network, staged.network.eval(), example):
        if cuts is not None:
            raise InputError("the network's stages give other answers than the network; it is of other code, or torch")
        return _in_one(network, "its stages would give other answers than the network")
    return staged


def answers_apart(network: nn.Module, other: nn.Module, example: Tensor) -> float:
    """How far the logits of two networks in eval mode are apart for noise, over the largest; 0 where they are the same.

    Args: images like those of noise. 0 too where nothing is computed (on the meta device), and where the network
    draws anew each time.
    """
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    with torch.no_grad():
        own, others = network(noise.clone()), other(noise.clone())
        if own.is_meta or _are_near(own, others, APART):
            return 0.0
        if not torch.equal(own, network(noise.clone())):
            return 0.0
    return float((own - others).abs().max() / own.abs().max())


def _in_one(network: nn.Module, why: str) -> Staged:
    head = nn.Sequential(OrderedDict([(FEATURES, nn.Identity()), (CLASSIFIER, network)]))
    note = f"nothing can be shared: {why}" if why else None
    return Staged(nn.Sequential(OrderedDict([(HEAD, head)])), StageCuts(opened=[], cuts={}), {HEAD: ""}, [], note)


def _staged(flow: Flow, network: nn.Module, example: Tensor, chosen: dict[str, int]) -> Staged:
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    ends, begin, entering, saved = {}, 0, None, network.state_dict().keys()
    for stage, step in [*chosen.items(), (CLASSIFIER, len(flow.nodes) - 1)]:
        part = _part(flow, begin, step, entering, stage, saved)
        begin, entering = step + 1, flow.cuts.get(step)
        if stage in (FEATURES, CLASSIFIER):
            head = stages.setdefault(HEAD, nn.Sequential(OrderedDict([(FEATURES, nn.Identity())])))
            setattr(head, stage, part)
            stage = HEAD
        else:
            stages[stage] = part
        ends[stage] = _last_module(flow, step)
    staged = nn.Sequential(stages)
    _copy_where_written(staged, example)
    held = {id(tensor) for tensor in staged.state_dict(keep_vars=True).values()}
    unused = [name for name, tensor in network.state_dict(keep_vars=True).items() if id(tensor) not in held]
    cuts = {stage: flow.cuts[step].name for stage, step in chosen.items()}
    return Staged(staged, StageCuts(opened=sorted(flow.opened), cuts=cuts), ends, unused)


def _last_module(flow: Flow, step: int) -> str:
    for node in reversed(flow.nodes[: step + 1]):
        if node.op == "call_module":
            return str(node.target)
    return ""


def _part(
    flow: Flow, begin: int, end: int, entering: fx.Node | None, name: str, saved: Collection[str]
) -> nn.Module:  # fmt: skip
    """The steps from `begin` to `end` as a module that takes the tensor `entering` and gives the next one.

    Args: the names of the network's tensors that are in its state dict, and only those in the module's.
    """
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    if entering is not None:
        copies[entering] = graph.placeholder("x")
    added: dict[str, nn.Module] = {}
    for k in range(begin, end + 1):
        node = flow.nodes[k]
        if node.op == "output":
            graph.output(fx.map_arg(node.args[0], lambda n: copies[n]))
            break
        for size in node.all_input_nodes:
            if size in flow.sizes and size not in copies:  # of an earlier stage
                assert entering is not None
                copies[size] = graph.call_method("size", (copies[entering], 0))
        missing = [source for source in node.all_input_nodes if source not in copies]
        if node in flow.numbers and missing:  # of an earlier stage: it stands in what takes it
            continue
        copies[node] = graph.node_copy(node, lambda n: copies.get(n, flow.numbers.get(n)))
        if node.op == "call_function" and node.target in DROPOUTS:  # traced in eval mode, it would never drop
            drop = DROPOUTS[node.target](dropout_rate(node))
            added[f"dropout_{k}"] = drop
            copies[node].op, copies[node].target = "call_module", f"dropout_{k}"
            copies[node].args, copies[node].kwargs = (
                (copies[node].args[0] if copies[node].args else copies[node].kwargs["input"],),
                {},
            )
    else:
        graph.output(copies[flow.cuts[end]])
    root = nn.Module()
    targets = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
    for target in dict.fromkeys(targets):
        value = added[target] if target in added else attrgetter(target)(flow.graph)
        _place(root, target, value, persistent=target in saved)
    return fx.GraphModule(root, graph, class_name=name.capitalize())


def _place(root: nn.Module, target: str, value: Any, persistent: bool) -> None:
    *path, last = target.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        root.register_buffer(last, value, persistent)
    else:
        setattr(root, last, value)


def _copy_where_written(staged: nn.Sequential, example: Tensor) -> None:
    """Let a stage that writes into what it is given, which other stages may be given too, work on a copy."""
    now = example
    parts: list[nn.Module] = []
    for name, stage in staged.named_children():
        parts += list(stage.children()) if name == HEAD else [stage]
    with torch.no_grad():
        for part in parts:
            given = now.clone()
            before = given._version
            now = part(given)
            if given._version != before and isinstance(part, fx.GraphModule):
                start = next(node for node in part.graph.nodes if node.op == "placeholder")
                with part.graph.inserting_after(start):
                    copied = part.graph.call_method("clone", (start,))
                start.replace_all_uses_with(copied, delete_user_cb=lambda user, copied=copied: user is not copied)
                part.recompile()
            now = now.clone()
