"""A network in PyTorch, eager or compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from wmlc.bench.engines import CALLS_BEFORE, NETWORK, Nodes
from wmlc.bench.engines.machine import choose_torch_device
from wmlc.compiler import require_compiler
from wmlc.errors import InputError

BETWEEN = "between modules"  # additions, reshapes and the hooks that take the times


class TorchEngine:
    """The network in a directory, in eager PyTorch.

    Contiguous NCHW, the memory format that torch gives a loaded network; in full fp32 on a GPU too
    (no TF32). `infer` returns after the copy to host memory, which waits for the GPU.
    """

    takes: ClassVar[str] = NETWORK
    libraries: ClassVar[tuple[str, ...]] = ("torch", "wmlc.models.checkpoint")
    any_batch: ClassVar[bool] = True
    layers_on: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    precision = "fp32"
    time_compute = None

    @staticmethod
    def choose_device(device: str) -> str:
        return choose_torch_device(device)

    def __init__(self, directory: Path, threads: int, device: str) -> None:
        import torch

        from wmlc.models.checkpoint import load_network

        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._torch = torch
        self._network = load_network(directory).eval().to(device)
        self._device = device
        self._forward = self._network.__call__
        self.provider = f"torch {device}"

    def infer(self, images_NCHW: np.ndarray) -> np.ndarray:
        with self._torch.inference_mode():
            images = self._torch.from_numpy(images_NCHW).to(self._device)
            return self._forward(images).cpu().numpy()

    @property
    def time_call(self) -> Callable[[np.ndarray], float] | None:
        """On a GPU only: the CPU has no clock of its own."""
        return self._time_by_events if self._device == "cuda" else None

    def _time_by_events(self, images_NCHW: np.ndarray) -> float:
        """The milliseconds of one `infer` by the GPU's own clock, both copies included."""
        start, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.infer(images_NCHW)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def profile(self, images_NCHW: np.ndarray, calls: int) -> Nodes:
        """The median milliseconds over `calls` calls of each module without parts, in order: [(module, class, ms)].

        A module that runs twice in a call has the sum. What passes between the modules (additions, reshapes, and what
        taking the times costs) stands last, so that the sum is that of the whole network, without transfers.
        """
        spans: list[tuple[str, Any, Any]] = []
        open_since: dict[str, Any] = {}
        leaves = {name: module for name, module in self._network.named_modules() if not any(module.children())}
        hooks = []
        for name, module in leaves.items():
            before = lambda *_, name=name: open_since.update({name: self._mark()})  # noqa: E731
            after = lambda *_, name=name: spans.append((name, open_since[name], self._mark()))  # noqa: E731
            hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        took_ms: dict[str, list[float]] = {}
        try:
            for call in range(CALLS_BEFORE + calls):
                whole = self._whole(images_NCHW)
                if call >= CALLS_BEFORE:
                    self._add_up([*spans, (BETWEEN, *whole)], took_ms)
                spans.clear()
        finally:
            for hook in hooks:
                hook.remove()
        kinds = {name: type(module).__name__ for name, module in leaves.items()}
        return [(name, kinds.get(name, BETWEEN), float(np.median(times))) for name, times in took_ms.items()]

    def _whole(self, images_NCHW: np.ndarray) -> tuple[Any, Any]:
        """Run the network, images and logits on its device: the marks before and after."""
        with self._torch.inference_mode():
            images = self._torch.from_numpy(images_NCHW).to(self._device)
            start = self._mark()
            self._network(images)
            return start, self._mark()

    def _mark(self) -> Any:
        """A moment: seconds, or an event on the GPU, whose work goes on behind the program."""
        if self._device != "cuda":
            return time.perf_counter()
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _add_up(self, spans: list[tuple[str, Any, Any]], took_ms: dict[str, list[float]]) -> None:
        """One call's milliseconds, appended to each name's list; the last span is the whole, and keeps what is left."""
        on_gpu = self._device == "cuda"
        if on_gpu:
            self._torch.cuda.synchronize()
        call_ms: dict[str, float] = {}
        for name, start, end in spans:
            call_ms[name] = call_ms.get(name, 0.0) + (start.elapsed_time(end) if on_gpu else 1e3 * (end - start))
        call_ms[BETWEEN] -= sum(ms for name, ms in call_ms.items() if name != BETWEEN)
        for name, ms in call_ms.items():
            took_ms.setdefault(name, []).append(ms)

    def close(self) -> None:
        del self._network, self._forward


class CompiledEngine(TorchEngine):
    """The same through `torch.compile`, which compiles anew for each batch size: its first inference takes long."""

    any_batch: ClassVar[bool] = False
    layers_on: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def choose_device(device: str) -> str:
        chosen = choose_torch_device(device)
        require_compiler("--engine torch-compile", chosen, "use torch")
        return chosen

    def __init__(self, directory: Path, threads: int, device: str) -> None:
        super().__init__(directory, threads, device)
        self._forward = self._torch.compile(self._network, dynamic=False)
        self.provider = f"torch.compile {device}"

    def close(self) -> None:
        """Forget what was compiled, too: of one process torch compiles eight networks, and runs the others as eager."""
        super().close()
        self._torch._dynamo.reset()

    def profile(self, images_NCHW: np.ndarray, calls: int) -> Nodes:
        raise InputError(
            "--engine torch-compile fuses modules and has no times of its layers; use --engine torch or ort"
        )
