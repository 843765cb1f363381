"""What a network does, as one text: so that a network of the same name that does something else is told apart."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wmlc.models.cost import run_within


def operations_digest(network: nn.Module, input_shape: tuple[int, int, int]) -> str:
    """A hash of all operations on one image [C, H, W], of their shapes and arguments, and of whose output each takes.

    No weight's value is in it.
    """
    told = run_within(_Told, network, input_shape)
    return hashlib.sha256("\n".join(told.lines).encode()).hexdigest()


class _Told(TorchDispatchMode):
    """Writes down each operation; tensors go by numbers, in the order in which they are met."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._met: dict[int, tuple[int, Tensor]] = {}  # with the tensors, so that no id is given away

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [self._word(leaf) for leaf in tree_leaves((args, kwargs or {}))]
        made = [self._word(leaf) for leaf in tree_leaves(out)]
        self.lines.append(f"{func}({', '.join(given)}) {', '.join(made)}")
        return out

    def _word(self, leaf: Any) -> str:
        if not isinstance(leaf, Tensor):
            return repr(leaf)
        number, _ = self._met.setdefault(id(leaf), (len(self._met), leaf))
        return f"%{number} {list(leaf.shape)}"
