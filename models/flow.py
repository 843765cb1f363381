"""A network's forward pass as steps, and where all that is still needed is one tensor."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from wmlc.errors import InputError, one_line
from wmlc.models.cost import MacCounter
from wmlc.models.follow import NotTraceable, check_trains_alike, steps_of

# What the shares of the MACs are that are done at the end of each stage.
SHARES = {"stem": 0.05, "stage1": 0.25, "stage2": 0.5, "stage3": 0.75}
LAST = "stage4"  # ends with the last feature map
COARSE = 0.1  # of all MACs without a cut: then the modules there are opened
DEEPEST = 8  # modules within modules that are opened
HEAD, FEATURES, CLASSIFIER = "head", "features", "fc"  # the last stage, and its two parts


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
class Flow:
    """A traced network: its steps in order, and after which of them one tensor is all that is still needed."""

    opened: set[str]
    graph: fx.GraphModule
    nodes: list[fx.Node]
    done: list[int]  # MACs up to and with each step
    shapes: dict[fx.Node, tuple[int, ...] | None]
    sizes: set[fx.Node]  # steps that give the number of images
    numbers: dict[fx.Node, float | str]  # steps that give a number which does not depend on that
    cuts: dict[int, fx.Node] = field(default_factory=dict)  # step → the tensor that crosses
    closed: dict[str, str] = field(default_factory=dict)  # modules that cannot be traced, and why

    @staticmethod
    def of(network: nn.Module, example: Tensor, opened: set[str]) -> Flow:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = fx.GraphModule(network, steps_of(network, opened, example))
                check_trains_alike(network, graph.graph, opened, example)
                measure, doubled = _Measure(graph), _Measure(graph)
                with torch.no_grad():
                    doubled.run(torch.cat([example, example]))
                    measure.run(example)
                sizes, numbers = _plain_numbers(measure, doubled)
        except Exception as error:  # fx's own, and whatever the network's code makes of a proxy
            raise NotTraceable(one_line(error, 120)) from None
        nodes, done, total = list(graph.graph.nodes), [], 0
        for node in nodes:
            total += measure.macs.get(node, 0)
            done.append(total)
        flow = Flow(opened, graph, nodes, done, measure.shapes, sizes, numbers)
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
            if node not in self.sizes and node not in self.numbers:
                (live if node in from_images else crossing).add(node)
            live = {each for each in live if last_use[each] > k}
            crossing = {each for each in crossing if last_use[each] > k}
            if len(live) == 1 and not crossing and k not in barred and self.done[k]:
                (tensor,) = live
                needs_size = any(place[size] <= k < last_use[size] for size in self.sizes)
                if needs_size and (self.shapes[tensor] or (0,))[0] != 1:
                    continue  # the images are no longer its first dimension
                if self.shapes[tensor] is not None and tensor not in self.cuts.values():
                    self.cuts[k] = tensor

    def _barred(self) -> set[int]:
        """Steps after which no cut may be, as a module that holds tensors or a weight is used before and after it."""
        runs: dict[str | int, list[int]] = {}  # by the name of what runs, and by each weight that it holds
        for k, node in enumerate(self.nodes):
            if node.op in ("call_module", "get_attr"):
                own = attrgetter(str(node.target))(self.graph)
                if isinstance(own, int):
                    continue
                weights = own.parameters() if isinstance(own, nn.Module) else [own]
                if not isinstance(own, nn.Module) or _holds(own):
                    runs.setdefault(str(node.target), []).append(k)
                for weight in weights:
                    if isinstance(weight, nn.Parameter):
                        runs.setdefault(id(weight), []).append(k)
        return {step for steps in runs.values() for step in range(steps[0], steps[-1])}

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
        body, total, chosen = [k for k in before if k < last], self.done[-1], dict[str, int]()
        for stage, share in SHARES.items():
            free = [k for k in body if not chosen or k > max(chosen.values())]
            if free:
                step = min(free, key=lambda k: (abs(self.done[k] / total - share), -k))
                following = [other for other in SHARES.values() if other > share]
                if not following or abs(self.done[step] / total - share) <= abs(self.done[step] / total - following[0]):
                    chosen[stage] = step
        chosen[LAST] = last
        if features > last:
            chosen[FEATURES] = features
        return chosen

    def inside(self, name: str) -> list[int]:
        """The steps of the module of that name, which is opened."""
        stacks = [node.meta.get("nn_module_stack", {}) for node in self.nodes]
        return [k for k, stack in enumerate(stacks) if any(own == name for own, _ in stack.values())]

    def cut_names(self) -> set[str]:
        return {tensor.name for tensor in self.cuts.values()}

    def named(self, cuts: dict[str, str]) -> dict[str, int]:
        """The step of each cut by its name; `InputError` where there is none of that name."""
        steps = {tensor.name: k for k, tensor in self.cuts.items()}
        missing = [name for name in cuts.values() if name not in steps]
        found = {stage: steps[name] for stage, name in cuts.items() if name in steps}
        known = [stage for stage in (*SHARES, LAST, FEATURES) if stage in cuts]
        if missing or list(cuts) != known or list(found.values()) != sorted(set(found.values())):
            raise InputError(
                f"the network has no cuts {', '.join(cuts.values())[:120]}, so it is of other code than the record"
            )
        return found

    def coarse(self) -> list[str]:
        """Modules that could be opened where many MACs lie without a cut."""
        found = []
        for k, node in enumerate(self.nodes):
            if node.op == "call_module" and self._macs(k) > COARSE * self.done[-1]:
                module = self.graph.get_submodule(str(node.target))
                if any(True for _ in module.children()) and not isinstance(module, nn.MultiheadAttention):
                    found.append(str(node.target))
        return found


def _plain_numbers(measure: _Measure, doubled: _Measure) -> tuple[set[fx.Node], dict[fx.Node, float | str]]:
    """The steps that give how many images there are, and those that give a number which does not depend on it."""
    again = doubled.plain
    sizes = {node for node, value in measure.plain.items() if value == 1 and again.get(node) == 2}
    return sizes, {node: value for node, value in measure.plain.items() if again.get(node) == value}


def _holds(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def fine_enough(network: nn.Module, example: Tensor, flow: Flow) -> Flow:
    """The flow with modules opened until cuts lie finely enough, or nothing more can be opened."""
    closed: dict[str, str] = {}  # what cannot be traced, and why
    for _ in range(DEEPEST):
        wanted = [name for name in flow.coarse() if name not in closed]
        if not wanted:
            break
        try:
            flow = Flow.of(network, example, flow.opened | set(wanted))
        except NotTraceable:
            for name in wanted:
                try:
                    flow = Flow.of(network, example, flow.opened | {name})
                except NotTraceable as error:
                    closed[name] = str(error)
    return replace(flow, closed=closed)


def closed_again(
    network: nn.Module, example: Tensor, flow: Flow, chosen: dict[str, int]
) -> tuple[Flow, dict[str, int]]:  # fmt: skip
    """The flow with what was opened for nothing closed, and in it the steps that are `chosen` of this one.

    A module is needed open if a cut lies in it: some of its steps come before the cut, and some after. Where one ends
    with a cut, that is named after the module. As it was, where a cut would be lost.
    """
    inside = {name: flow.inside(name) for name in flow.opened if name}
    needed = {""} | {
        name for name, own in inside.items() if own and any(own[0] <= step < own[-1] for step in chosen.values())
    }
    closed = Flow.of(network, example, needed)
    steps = {str(node.target): node.name for node in closed.nodes if node.op == "call_module"}
    names = {}
    for stage, step in chosen.items():
        made = flow.nodes.index(flow.cuts[step])
        ended = [name for name, own in inside.items() if name not in needed and own and own[-1] == made]
        names[stage] = steps.get(min(ended, key=len, default=""), flow.cuts[step].name)
    if all(name in closed.cut_names() for name in names.values()):
        return closed, closed.named(names)
    return flow, chosen
