"""Any network as a sequence of stages: cut where all data flows through one tensor, at about equal MACs.

The network is traced shallowly: every submodule is one step whose own code runs, and only those are opened that hold a
cut. So training and eval mode, dropout and stochastic depth stay the network's own, and its modules keep their names.
"""

from __future__ import annotations

import inspect
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from wmlc.errors import InputError, one_line
from wmlc.models.cost import MacCounter
from wmlc.records import StageCuts

HEAD, FEATURES, CLASSIFIER = "head", "features", "fc"
SHARES = {"stem": 0.05, "stage1": 0.25, "stage2": 0.5, "stage3": 0.75}  # of the MACs, done at the end of each stage
COARSE = 0.1  # of all MACs without a cut: then the modules there are opened
DEEPEST = 8  # modules within modules that are opened
DROPOUTS = {
    functional.dropout: nn.Dropout, functional.dropout2d: nn.Dropout2d, functional.alpha_dropout: nn.AlphaDropout,
    torch.dropout: nn.Dropout,
}  # fmt: skip


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
    not of this network, and where it does not give logits [N, classes].
    """
    training = {name: module.training for name, module in network.named_modules()}
    try:
        return _split(network.eval(), example, cuts)
    finally:
        for name, module in network.named_modules():
            module.training = training[name]


def whole_name(name: str) -> str:
    """A tensor's or module's name in the network itself, by its name in the sequence of stages."""
    stage, _, rest = name.partition(".")
    return rest.partition(".")[2] if stage == HEAD else rest


def _split(network: nn.Module, example: Tensor, cuts: StageCuts | None) -> Staged:
    why = None
    try:
        flow = _Flow.of(network, example, set(cuts.opened) if cuts else {""})
        if cuts is None:
            flow = _fine_enough(network, example, flow)
    except _NotTraceable as error:
        if cuts is not None and cuts.cuts:
            raise InputError(
                f"the network cannot be traced any more ({error}); load it with the code it was made by"
            ) from None
        flow, why = None, f"the network cannot be traced ({error})"
    if flow is None or (cuts is not None and not cuts.cuts):
        return _in_one(network, why or "")
    chosen = flow.named(cuts.cuts) if cuts is not None else flow.chosen()
    if not chosen:
        return _in_one(network, "all data flows through one tensor nowhere in the network")
    if cuts is None:  # what was opened for nothing is closed again
        opened = _needed(flow.opened, flow, chosen.values())
        closed = _Flow.of(network, example, opened)
        names = {stage: flow.names[k] for stage, k in chosen.items()}
        if all(name in closed.cut_names() for name in names.values()):
            flow, chosen = closed, closed.named(names)
    return flow.staged(network, example, chosen)


def _in_one(network: nn.Module, why: str) -> Staged:
    head = nn.Sequential(OrderedDict([(FEATURES, nn.Identity()), (CLASSIFIER, network)]))
    note = f"nothing can be shared: {why}" if why else None
    return Staged(nn.Sequential(OrderedDict([(HEAD, head)])), StageCuts(opened=[], cuts={}), {HEAD: ""}, [], note)


class _NotTraceable(Exception):
    """torch.fx cannot follow the network's code."""


class _Tracer(fx.Tracer):
    def __init__(self, opened: Iterable[str]) -> None:
        super().__init__(param_shapes_constant=True)
        self.opened = set(opened)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name not in self.opened


class _Measure(fx.Interpreter):
    """Runs a traced network, and notes what each step gives and how many MACs it takes."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.macs: dict[fx.Node, int] = {}
        self.shapes: dict[fx.Node, tuple[int, ...] | None] = {}  # of the tensor that a step gives; None: no tensor
        self.plain: dict[fx.Node, int | float | str] = {}  # what a step gives that is no tensor

    def fetch_args_kwargs_from_env(self, node: fx.Node) -> Any:
        args, kwargs = super().fetch_args_kwargs_from_env(node)
        return tuple(list(each) if isinstance(each, list) else each for each in args), kwargs  # some write into theirs

    def run_node(self, node: fx.Node) -> Any:
        with MacCounter() as counter:
            result = super().run_node(node)
        self.macs[node] = counter.macs
        if isinstance(result, int | float | str):
            self.plain[node] = result
        self.shapes[node] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result


@dataclass
class _Flow:
    """A traced network: its steps in order, and after which of them one tensor is all that is still needed."""

    opened: set[str]
    graph: fx.GraphModule
    nodes: list[fx.Node]
    done: list[int]  # MACs up to and with each step
    shapes: dict[fx.Node, tuple[int, ...] | None]
    sizes: set[fx.Node]  # steps that give the number of images
    cuts: dict[int, fx.Node] = field(default_factory=dict)  # step → the tensor that crosses
    names: dict[int, str] = field(default_factory=dict)  # … and its name

    @staticmethod
    def of(network: nn.Module, example: Tensor, opened: set[str]) -> _Flow:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = fx.GraphModule(network, _traced(network, opened))
                measure, doubled = _Measure(graph), _Measure(graph)
                with torch.no_grad():
                    doubled.run(torch.cat([example, example]))
                    measure.run(example)
                sizes = _settle_numbers(measure, doubled)
        except Exception as error:  # fx's own, and whatever the network's code makes of a proxy
            raise _NotTraceable(one_line(error, 120)) from None
        nodes, done, total = list(graph.graph.nodes), [], 0
        for node in nodes:
            total += measure.macs.get(node, 0)
            done.append(total)
        flow = _Flow(opened, graph, nodes, done, measure.shapes, sizes)
        flow._find_cuts()
        return flow

    def _find_cuts(self) -> None:
        place = {node: k for k, node in enumerate(self.nodes)}
        last_use = {node: max((place[user] for user in node.users), default=-1) for node in self.nodes}
        from_images: set[fx.Node] = set()
        for node in self.nodes:
            if node.op == "placeholder" or any(source in from_images for source in node.all_input_nodes):
                from_images.add(node)
        barred = self._barred()
        live: set[fx.Node] = set()
        crossing: set[fx.Node] = set()
        for k, node in enumerate(self.nodes[:-1]):
            if node not in self.sizes:
                (live if node in from_images else crossing).add(node)
            live = {each for each in live if last_use[each] > k}
            crossing = {each for each in crossing if last_use[each] > k}
            if len(live) == 1 and not crossing and k not in barred and node.op != "placeholder":
                (tensor,) = live
                needs_size = any(place[size] <= k < last_use[size] for size in self.sizes)
                if needs_size and (self.shapes[tensor] or (0,))[0] != 1:
                    continue  # the images are no longer its first dimension
                if self.shapes[tensor] is not None and tensor not in self.cuts.values():
                    self.cuts[k], self.names[k] = tensor, tensor.name

    def _barred(self) -> set[int]:
        """Steps after which no cut may be, as a module that holds tensors runs before and after it."""
        runs: dict[str, list[int]] = {}
        for k, node in enumerate(self.nodes):
            if node.op in ("call_module", "get_attr"):
                runs.setdefault(str(node.target), []).append(k)
        barred: set[int] = set()
        for target, steps in runs.items():
            if len(steps) > 1 and (self.nodes[steps[0]].op == "get_attr" or _holds(self.graph.get_submodule(target))):
                barred |= set(range(steps[0], steps[-1]))
        return barred

    @property
    def classifier(self) -> int:
        """The step that makes the logits: the last with MACs."""
        return max((k for k in range(len(self.nodes)) if self._macs(k)), default=len(self.nodes) - 1)

    def _macs(self, k: int) -> int:
        return self.done[k] - (self.done[k - 1] if k else 0)

    def _shape(self, k: int) -> tuple[int, ...]:
        """Of the tensor that crosses the cut after step k."""
        return self.shapes[self.cuts[k]] or ()

    def chosen(self) -> dict[str, int]:
        """The step that each stage ends with, and `features`, the part of the head before the classifier."""
        before = [k for k in self.cuts if k < self.classifier]
        if not before:
            return {}
        features, maps = before[-1], [k for k in before if len(self._shape(k)) > 2]
        last = features
        if maps:  # the last feature map, before it is pooled
            alike = [k for k in maps if self.done[k] == self.done[maps[-1]]]
            last = [k for k in alike if self._shape(k) == self._shape(alike[0])][-1]
        body, total, chosen = [k for k in before if k < last], self.done[-1], {}
        for stage, share in SHARES.items():
            free = [k for k in body if not chosen or k > max(chosen.values())]
            if free:
                step = min(free, key=lambda k: (abs(self.done[k] / total - share), -k))
                following = [other for other in SHARES.values() if other > share]
                if not following or abs(self.done[step] / total - share) <= abs(self.done[step] / total - following[0]):
                    chosen[stage] = step
        chosen["stage4"] = last
        if features > last:
            chosen[FEATURES] = features
        return chosen

    def cut_names(self) -> set[str]:
        return set(self.names.values())

    def named(self, cuts: dict[str, str]) -> dict[str, int]:
        """The step of each cut by its name; `InputError` where there is none of that name."""
        steps = {name: k for k, name in self.names.items()}
        missing = [name for name in cuts.values() if name not in steps]
        found = {stage: steps[name] for stage, name in cuts.items() if name in steps}
        if missing or list(found.values()) != sorted(set(found.values())):
            raise InputError(
                f"the network has no cuts {', '.join(cuts.values())[:120]}, so it is of other code than the record"
            )
        return found

    def coarse(self) -> list[str]:
        """Modules that could be opened where many MACs lie without a cut."""
        ends = [0, *(self.done[k] for k in self.cuts), self.done[-1]]
        found = []
        for k, node in enumerate(self.nodes):
            if node.op == "call_module" and self._macs(k) > COARSE * self.done[-1]:
                module = self.graph.get_submodule(str(node.target))
                if any(True for _ in module.children()) and not isinstance(module, nn.MultiheadAttention):
                    found.append(str(node.target))
        return found if len(ends) > 1 else []

    def staged(self, network: nn.Module, example: Tensor, chosen: dict[str, int]) -> Staged:
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        ends, begin, entering = {}, 0, None
        for stage, step in [*chosen.items(), (CLASSIFIER, len(self.nodes) - 1)]:
            part = self._part(begin, step, entering, stage)
            begin, entering = step + 1, self.cuts.get(step)
            if stage in (FEATURES, CLASSIFIER):
                head = stages.setdefault(HEAD, nn.Sequential(OrderedDict([(FEATURES, nn.Identity())])))
                setattr(head, stage, part)
                stage = HEAD
            else:
                stages[stage] = part
            ends[stage] = self._last_module(step)
        staged = nn.Sequential(stages)
        _copy_where_written(staged, example)
        held = {whole_name(name) for name in staged.state_dict()}
        unused = [name for name in network.state_dict() if name not in held]
        cuts = {stage: self.names[step] for stage, step in chosen.items()}
        return Staged(staged, StageCuts(opened=sorted(self.opened), cuts=cuts), ends, unused)

    def _last_module(self, step: int) -> str:
        for node in reversed(self.nodes[: step + 1]):
            if node.op == "call_module":
                return str(node.target)
        return ""

    def _part(self, begin: int, end: int, entering: fx.Node | None, name: str) -> nn.Module:
        """The steps from `begin` to `end` as a module that takes the tensor `entering` and gives the next one."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        if entering is not None:
            copies[entering] = graph.placeholder("x")
        added: dict[str, nn.Module] = {}
        for k in range(begin, end + 1):
            node = self.nodes[k]
            if node.op == "output":
                graph.output(fx.map_arg(node.args[0], lambda n: copies[n]))
                break
            for size in node.all_input_nodes:
                if size in self.sizes and size not in copies:  # of an earlier stage
                    assert entering is not None
                    copies[size] = graph.call_method("size", (copies[entering], 0))
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            if node.op == "call_function" and node.target in DROPOUTS:  # traced in eval mode, it would never drop
                drop = DROPOUTS[node.target](_rate(node))
                added[f"dropout_{k}"] = drop
                copies[node].op, copies[node].target = "call_module", f"dropout_{k}"
                copies[node].args, copies[node].kwargs = (
                    (copies[node].args[0] if copies[node].args else copies[node].kwargs["input"],),
                    {},
                )
        else:
            graph.output(copies[self.cuts[end]])
        root = nn.Module()
        targets = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
        for target in dict.fromkeys(targets):
            _place(root, target, added.get(target) if target in added else _attribute(self.graph, target))
        return fx.GraphModule(root, graph, class_name=name.capitalize())


def _traced(network: nn.Module, opened: set[str]) -> fx.Graph:
    """The steps of the network's forward pass for images alone, other arguments being as they are by default."""
    _, *others = inspect.signature(network.forward).parameters.values()
    defaults = {each.name: each.default for each in others if each.default is not inspect.Parameter.empty}
    graph = _Tracer(opened).trace(network, concrete_args=defaults or None)
    for placeholder in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        _erase(graph, placeholder)  # and the checks of its value
    graph.eliminate_dead_code(lambda node: node.op in ("output", "placeholder", "call_module"))
    return graph


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def _settle_numbers(measure: _Measure, doubled: _Measure) -> set[fx.Node]:
    """Write numbers that do not depend on how many images there are into the steps; the steps that give how many."""
    sizes = set()
    for node, value in measure.plain.items():
        if doubled.plain.get(node) == value:
            for user in list(node.users):
                user.args = fx.map_arg(user.args, lambda n, node=node, value=value: value if n is node else n)
                user.kwargs = fx.map_arg(user.kwargs, lambda n, node=node, value=value: value if n is node else n)
        elif value == 1 and doubled.plain.get(node) == 2:
            sizes.add(node)
    return sizes


def _rate(node: fx.Node) -> float:
    rate = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    return float(rate) if isinstance(rate, int | float) else 0.5


def _attribute(root: nn.Module, target: str) -> Any:
    for part in target.split("."):
        root = getattr(root, part)
    return root


def _place(root: nn.Module, target: str, value: Any) -> None:
    *path, last = target.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        root.register_buffer(last, value)
    else:
        setattr(root, last, value)


def _holds(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _fine_enough(network: nn.Module, example: Tensor, flow: _Flow) -> _Flow:
    """The flow with modules opened until cuts lie finely enough, or nothing more can be opened."""
    closed: set[str] = set()
    for _ in range(DEEPEST):
        wanted = [name for name in flow.coarse() if name not in closed]
        if not wanted:
            break
        try:
            flow = _Flow.of(network, example, flow.opened | set(wanted))
        except _NotTraceable:
            for name in wanted:
                try:
                    flow = _Flow.of(network, example, flow.opened | {name})
                except _NotTraceable:
                    closed.add(name)
    return flow


def _needed(opened: Iterable[str], flow: _Flow, steps: Iterable[int]) -> set[str]:
    """The opened modules that a cut lies in: some of their steps come before it, and some after."""
    needed = {""}
    for name in opened:
        inside = [
            k for k, node in enumerate(flow.nodes)
            if node.op in ("call_module", "get_attr") and str(node.target).startswith(f"{name}.")
        ]  # fmt: skip
        if inside and any(inside[0] <= step < inside[-1] for step in steps):
            needed.add(name)
    return needed


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


def stage_names(staged: Sequence[str]) -> list[str]:
    """Names of stages that can be shared."""
    return [name for name in staged if name != HEAD]
