"""A saved network → a standalone ONNX file that has been read back and compared before it is called done."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from wmlc.data import normalise
from wmlc.errors import InputError, one_line, some_of
from wmlc.export.about import write_about
from wmlc.export.lighter import attention_as_captured, folded, operators_listed_once, operators_read_once, out_of_place
from wmlc.files import new_file
from wmlc.forms import INPUT, OUTPUT
from wmlc.models.cost import total_cost
from wmlc.records import FileAbout, NetworkSpec

OPSET = 20  # the dynamo exporter's own; it rewrites to no older one faithfully
# Between the network in torch and its file in ONNX Runtime, as a part of the largest logit: two right ways to add up
# a deep network's float32 numbers differ by some 1e-5 of it, a wrong file by 1e-1 and more.
MOST_APART = 1e-3
TIE = 1e-5  # of the largest logit: two classes as near as this have no order
CHECKED_BATCHES = (1, 7)


class WithPreprocess(nn.Module):
    """Scaling, normalisation and layout inside the network: uint8 [N, H, W, C] pixels → logits."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean_C11", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels_NHWC: Tensor) -> Tensor:
        # Cast first, as TensorRT transposes no uint8; contiguous, else the head's flatten becomes a dozen nodes.
        images_NCHW = pixels_NHWC.float().permute(0, 3, 1, 2).contiguous() / 255
        return self.network((images_NCHW - self.mean_C11) / self.std_C11)


def export_onnx(
    network: nn.Module, spec: NetworkSpec, out: Path, pixels_NHWC: Tensor, *, with_preprocess: bool = False,
    weights_sha256: str | None = None,
) -> None:  # fmt: skip
    """Write `network`, which `spec` describes, to the ONNX file `out`.

    The file: opset 20, batch dynamic, input `input` (float32 [N, C, H, W], normalised; with `with_preprocess`
    uint8 [N, H, W, C] pixels), output `logits` [N, classes], batch norm folded, and metadata
    that says what it is and, by `weights_sha256`, from which file of weights it came. Before it gets its name, it is
    read back: every weight's shape must match the network's, and on the images `pixels_NHWC` (uint8, at least 7), at
    batch 1 and 7, ONNX Runtime's logits must be torch's but for a thousandth of the largest one, with the same class
    for every image. Raises `InputError`, leaving nothing behind, where they are not, and where weights are no
    finite numbers.
    """
    assert len(pixels_NHWC) >= max(CHECKED_BATCHES)
    _check_finite(out, network)
    with new_file(out) as aside:
        _write(network, spec, aside, with_preprocess, weights_sha256)
        _check_shapes(aside, out, network, spec)
        _check_logits(aside, out, network, spec, pixels_NHWC, with_preprocess)


def write_unchecked(network: nn.Module, spec: NetworkSpec, path: Path) -> None:
    """Write `network` as `export_onnx` does, without reading it back: one of random weights, to be timed."""
    _write(network, spec, path, False, None)


def _write(
    network: nn.Module, spec: NetworkSpec, path: Path, with_preprocess: bool, weights_sha256: str | None
) -> None:
    channels, height, width = spec.input_shape
    module = WithPreprocess(network, spec.mean, spec.std).eval() if with_preprocess else network
    shape = (2, height, width, channels) if with_preprocess else (2, channels, height, width)
    example = torch.zeros(shape, dtype=torch.uint8 if with_preprocess else torch.float32)
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(example.dtype)
    with (
        _quiet(), operators_read_once(), operators_listed_once(), out_of_place(module, images), folded(module, images)
    ):  # fmt: skip

        def exported() -> torch.onnx.ONNXProgram | None:
            return torch.onnx.export(
                module, (example,), dynamo=True, opset_version=OPSET, verbose=False, input_names=[INPUT],
                output_names=[OUTPUT], dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip

        try:
            try:
                program = exported()
            except torch.onnx.OnnxExporterError:
                with attention_as_captured():
                    program = exported()
        except torch.onnx.OnnxExporterError as error:
            raise InputError(
                f"torch {torch.__version__} cannot write {spec.arch} as ONNX ({_cause(error)}); change its code, or "
                "use it by wmlc.load"
            ) from error
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:  # the exporter leaves stack traces, with this machine's paths, on every node
        del node.metadata_props[:]
        node.doc_string = ""
    if with_preprocess:
        for tensor in model.graph.initializer:
            tensor.name = tensor.name.removeprefix("network.")
        for node in model.graph.node:
            node.input[:] = [name.removeprefix("network.") for name in node.input]
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    write_about(model, _about(network, spec, opset, with_preprocess, weights_sha256))
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))


def _cause(error: BaseException) -> str:
    """What the exporter ran into, below the steps it was at; they are pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error, 200)


def _about(
    network: nn.Module, spec: NetworkSpec, opset: int, with_preprocess: bool, weights_sha256: str | None
) -> FileAbout:
    cost, known = total_cost(network, spec.input_shape), spec.about
    return FileAbout(
        architecture=spec.arch,
        data=known.data,
        method=known.method,
        peer=known.peer,
        ratio=known.ratio,
        achieved_ratio=known.achieved_ratio,
        ratio_of=known.ratio_of,
        top1=known.top1,
        commit=known.commit,
        class_names=spec.class_names,
        input_shape=spec.input_shape,
        mean=spec.mean,
        std=spec.std,
        with_preprocess=with_preprocess,
        precision="fp32",
        params=cost.params,
        macs=cost.macs,
        opset=opset,
        framing=spec.framing,
        weights_sha256=weights_sha256,
        start=known.start,
    )


def _check_finite(out: Path, network: nn.Module) -> None:
    """A network that diverged in training is said to have, by the names of its weights."""
    state = network.state_dict()
    wrong = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wrong:
        raise InputError(
            f"{out} was not written: {len(wrong)} of the network's {len(state)} tensors hold NaN or infinity "
            f"({some_of(wrong, 3)}); train it again, with a lower --lr if the loss diverged"
        )


def _check_shapes(path: Path, out: Path, network: nn.Module, spec: NetworkSpec) -> None:
    """Every convolution and linear layer that logits depend on is in the file, as dense and narrow as in the network.

    A weight that the exporter computed anew, as the transpose that a product of matrices takes or as a standardised
    one, has lost its name and is known by its shape.
    """
    tensors = onnx.load(str(path)).graph.initializer
    shapes = {tensor.name: list(tensor.dims) for tensor in tensors}
    own = network.state_dict().keys()
    nameless = {tuple(dims) for name, dims in shapes.items() if name not in own}
    layers = {name: each for name, each in network.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}
    idle = set[str]()
    if any(f"{name}.weight" not in shapes for name in layers):
        idle = _without_part(network, spec) | _computed_once(network, spec, layers)
    for name, module in layers.items():  # of tensors that hold the same, as two layers may share theirs, one is left
        due = list(module.weight.shape)
        alike = (each for each in tensors if list(each.dims) == due and f"{name}.weight" not in shapes)
        if any(np.array_equal(onnx.numpy_helper.to_array(each), module.weight.detach().numpy()) for each in alike):
            shapes[f"{name}.weight"] = due
    wrong = []
    for name, module in layers.items():
        if f"{name}.weight" in idle:
            continue
        # a batch norm that was folded leaves `bias`, as a layer's own is called, or of the exporter's `weight_bias`
        expected = {f"{name}.weight": list(module.weight.shape)}
        expected |= {key: [len(module.weight)] for key in (f"{name}.weight_bias", f"{name}.bias") if key in shapes}
        computed = f"{name}.weight" not in shapes and not nameless.isdisjoint(
            {tuple(module.weight.shape), tuple(reversed(module.weight.shape))}
        )
        wrong += [
            f"{key} is {shapes.get(key)} instead of {due}"
            for key, due in expected.items()
            if shapes.get(key) != due and not (computed and key == f"{name}.weight")
        ]
    if wrong:
        raise InputError(
            f"{out} was not written: the exporter changed {'; '.join(wrong[:5])}; try another torch version"
        )


def _without_part(network: nn.Module, spec: NetworkSpec) -> set[str]:
    """The weights that the logits do not depend on, as those of a head that is there for training; unknown, none."""
    names, weights = zip(*network.named_parameters(), strict=True)
    with contextlib.suppress(RuntimeError), torch.enable_grad():  # of steps that no gradient goes through
        logits = network(torch.zeros(1, *spec.input_shape))
        gradients = torch.autograd.grad(logits.sum(), weights, allow_unused=True)
        return {name for name, gradient in zip(names, gradients, strict=True) if gradient is None}
    return set()


def _computed_once(network: nn.Module, spec: NetworkSpec, layers: Mapping[str, nn.Module]) -> set[str]:
    """The weights of layers that get the same whatever the image is: the exporter keeps what they make of it."""
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, given, named, name=name: inputs[name].append([*given, *named.values()][0]), with_kwargs=True
        )
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            for images in (torch.zeros(1, *spec.input_shape), torch.ones(1, *spec.input_shape)):
                network(images)
    finally:
        for hook in hooks:
            hook.remove()
    halves = {name: (given[: len(given) // 2], given[len(given) // 2 :]) for name, given in inputs.items() if given}
    return {f"{name}.weight" for name, (one, other) in halves.items() if all(map(torch.equal, one, other))}


def _check_logits(
    path: Path, out: Path, network: nn.Module, spec: NetworkSpec, pixels_NHWC: Tensor, with_preprocess: bool
) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = normalise(pixels_NHWC, spec.mean, spec.std).contiguous()
    for batch in CHECKED_BATCHES:
        fed = pixels_NHWC[:batch].numpy() if with_preprocess else images[:batch].numpy()
        try:
            (got,) = session.run([OUTPUT], {INPUT: fed})
        except Exception as error:  # ONNX Runtime has no class of its own for them
            raise InputError(
                f"{out} was not written: it does not run at batch {batch} ({one_line(str(error), 200)}); code that "
                "goes through the images one by one (range(len(x))) makes a file of one batch size"
            ) from None
        with torch.inference_mode():
            expected = network(images[:batch]).numpy()
        if wrong := wrong_logits(np.asarray(got), expected):
            raise InputError(f"{out} was not written: at batch {batch} {wrong}; report this with the run's spec.json")


def wrong_logits(got_NC: np.ndarray, expected_NC: np.ndarray) -> str | None:
    """Why ONNX Runtime's logits are not torch's `expected_NC`, in words; None where they are.

    Judged by the size of the logits, which training may make as large as it likes, and by the class of every image.
    """
    size = float(np.abs(expected_NC).max())
    apart = float(np.abs(got_NC - expected_NC).max())
    if not apart <= MOST_APART * size:
        found = f"ONNX Runtime's logits are {apart:.2g} from torch's, whose largest is {size:.3g}"
        return f"{found}; allowed is {MOST_APART:g} of that"
    best_two_N2 = np.sort(expected_NC, axis=1)[:, -2:]
    clear_N = np.ptp(best_two_N2, axis=1) > TIE * size
    if changed := int(((got_NC.argmax(1) != expected_NC.argmax(1)) & clear_N).sum()):
        return f"ONNX Runtime gives another class than torch for {changed} of {len(got_NC)} images"
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's commentary, which is about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
