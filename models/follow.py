"""A network's code followed step by step, and whether it does in training what it does in eval mode."""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional

DROPOUTS = {
    functional.dropout: nn.Dropout, functional.dropout1d: nn.Dropout1d, functional.dropout2d: nn.Dropout2d,
    functional.dropout3d: nn.Dropout3d, functional.alpha_dropout: nn.AlphaDropout,
    functional.feature_alpha_dropout: nn.FeatureAlphaDropout, torch.dropout: nn.Dropout,
}  # fmt: skip
OF_ELSEWHERE = "_tensor_constant"  # how fx calls tensors that are no attribute of the network, which it makes them
LOOKS = (getattr, operator.getitem, "size", "dim")  # steps that take a number, and change nothing


class NotTraceable(Exception):
    """torch.fx cannot follow the network's code."""


class _Named(int):
    """A whole number that a module holds, with its name there, so that it is known wherever a step takes it."""

    name: str

    def __new__(cls, value: int, name: str = "") -> _Named:
        number = super().__new__(cls, value)
        number.name = name
        return number


class _Tracer(fx.Tracer):
    def __init__(self, opened: Iterable[str], example: Tensor) -> None:
        super().__init__(param_shapes_constant=True)
        self.opened, self.batches = set(opened), (example, torch.cat([example, example]))
        self._runs = False  # steps on numbers, which are then no steps of the trace

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name not in self.opened

    def to_bool(self, obj: fx.Proxy) -> bool:
        """What a condition is, where it hangs on sizes and types alone and not on the number of images."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        graph.output(graph.graph_copy(self.graph, copies) or copies[obj.node])
        self._runs = True
        try:
            with torch.no_grad():
                one, two = (fx.Interpreter(fx.GraphModule(self.root, graph)).run(batch) for batch in self.batches)
        finally:
            self._runs = False
        return one if type(one) is bool and one is two else super().to_bool(obj)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._runs else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._runs else super().call_module(m, forward, args, kwargs)


def steps_of(network: nn.Module, opened: set[str], example: Tensor) -> fx.Graph:
    """The steps of the network's forward pass for images alone, other arguments being as they are by default."""
    _, *others = inspect.signature(network.forward).parameters.values()
    defaults = {each.name: each.default for each in others if each.default is not inspect.Parameter.empty}
    with _named_numbers(network, opened):
        graph = _Tracer(opened, example).trace(network, concrete_args=defaults or None)
    for placeholder in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        _erase(graph, placeholder)  # and the checks of its value
    # a step whose result nothing takes may write into what it is given: y.add_(x), or relu(x, inplace=True)
    graph.eliminate_dead_code(lambda node: node.op != "get_attr" and node.target not in LOOKS)
    for node in list(graph.nodes):
        _look_up_numbers(node)
    return graph


@contextlib.contextmanager
def _named_numbers(network: nn.Module, opened: set[str]) -> Iterator[None]:
    """Within, the whole numbers of the modules that are opened say whose they are."""
    held = [(name, vars(module)) for name, module in network.named_modules() if name in opened]
    numbers = [(name, own, key) for name, own in held for key in own if type(own[key]) is int and key[0] != "_"]
    try:
        for name, own, key in numbers:
            own[key] = _Named(own[key], f"{name}.{key}".lstrip("."))
        yield
    finally:
        for _, own, key in numbers:
            if isinstance(own.get(key), _Named):  # and not what the code has put there since
                own[key] = int(own[key])


def _look_up_numbers(node: fx.Node) -> None:
    """Let a step that takes numbers which modules hold look them up before, so that a cut may lower them."""

    def looked_up(leaf: Any) -> Any:
        if not isinstance(leaf, _Named):
            return leaf
        with node.graph.inserting_before(node):
            number = node.graph.get_attr(leaf.name)
        number.meta = dict(node.meta)
        return number

    node.args, node.kwargs = map_aggregate(node.args, looked_up), map_aggregate(node.kwargs, looked_up)


def dropout_rate(node: fx.Node) -> float:
    """Of a step that is one of `DROPOUTS`."""
    rate = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    return float(rate) if isinstance(rate, int | float) else 0.5


def check_trains_alike(network: nn.Module, graph: fx.Graph, opened: set[str], example: Tensor) -> None:
    """Raise `NotTraceable` where opened modules do other things in training than the `graph` of their eval mode.

    But for dropout, which is as it is there; and they may do more for answers beside the logits (auxiliary heads).
    """
    from_elsewhere = {id(own): own for name, own in vars(network).items() if name.startswith(OF_ELSEWHERE)}
    odd = {name: own for name, own in network.named_modules() if type(own).train is not nn.Module.train}
    if opened & odd.keys():
        ran = copy.deepcopy(network, dict(from_elsewhere)).eval()  # which may have filled what train() empties
        with torch.no_grad():
            ran(example)
        for name in sorted(opened & odd.keys()):
            if not _trains_as_any(ran.get_submodule(name)):
                raise NotTraceable(f"the train() of {type(odd[name]).__name__} does more than set the mode")
    copied = copy.deepcopy(network, from_elsewhere)  # tracing runs what writes into its buffers
    for module in copied.modules():
        module.training = True
    known: dict[object, int] = {}
    (out, dead), (outs, more_dead) = _meaning(graph, known), _meaning(steps_of(copied, opened, example), known)
    if not out <= outs or dead != more_dead:
        raise NotTraceable("its code does other things in training than in eval mode")


def _trains_as_any(module: nn.Module) -> bool:
    """Whether its own train() does what any module's does: set the mode of all that it holds, and nothing else."""
    own, plain = copy.deepcopy(module), copy.deepcopy(module)
    for mode in (True, False):
        own.train(mode)
        nn.Module.train(plain, mode)
        if [*_held(own)] != [*_held(plain)]:
            return False
    return True


def _held(network: nn.Module) -> Iterator[dict[str, Any]]:
    """Of each module what a train() may change: modes, plain values, how much it keeps, and which weights are free."""
    for module in network.modules():
        plain = {key: own for key, own in vars(module).items() if isinstance(own, bool | int | float | str | None)}
        kept = {key: len(own) for key, own in vars(module).items() if isinstance(own, dict | list | set | tuple)}
        yield plain | kept | {"": [own.requires_grad for own in module.parameters(recurse=False)]}


def _meaning(graph: fx.Graph, known: dict[object, int]) -> tuple[set[int], set[int]]:
    """Numbers of what a graph gives, and of the steps whose result nothing takes; the same in all graphs.

    Args: the numbers that are given so far.
    """
    of: dict[fx.Node, int] = {}
    for node in graph.nodes:
        args, kwargs = (repr(fx.map_arg(own, lambda n: f"%{of[n]}")) for own in (node.args, node.kwargs))
        if node.target in DROPOUTS:
            args, kwargs = repr([of[own] for own in node.all_input_nodes]), str(dropout_rate(node))
        of[node] = known.setdefault((node.op, node.target, args, kwargs), len(known))
    *steps, output = graph.nodes
    return {of[own] for own in output.all_input_nodes}, {of[own] for own in steps if not own.users}


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)
