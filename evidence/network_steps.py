"""What is done with one network: proof, widths, a family, its files, its derivatives."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from network_rows import Row

CLASSES = 10
RATIOS = (0.5, 0.4)  # of the MACs, that the two peers lose
LEAST = 0.4  # the share of the MACs gone that counts as all the way
AD_BOUND = 1e-4  # of a derivative, against the difference, which ReLU's corners blur


class Wrong(Exception):
    """A result that is not what it must be."""


def go_all_the_way(row: Row, step: Any) -> None:
    import torch

    from wmlc.arch import needs_caller
    from wmlc.compress.learn.family import build_family
    from wmlc.compress.widths.choose import score_channels
    from wmlc.compress.widths.proof import read_channels
    from wmlc.compress.widths.saliency import parameter_saliency
    from wmlc.compress.widths.tree import sharing_tree
    from wmlc.models.factory import load_factory, named_by_caller
    from wmlc.models.stages import split
    from wmlc.models.zoo import build_network

    shape = (3, row.pixels, row.pixels)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(8, *shape, generator=draw)
    with step("build"):
        factory = None
        if needs_caller(row.network):
            named_by_caller(row.network)
            factory = load_factory(row.network)
        network = enliven(build_network(row.network, CLASSES, shape, factory=factory), draw)
    with step("stages"):
        staged = split(network, torch.zeros(1, *shape))
        row.stages, full = staged.ends, staged.network
        row.reason = staged.note or ""
    with step("proof"):
        graph = read_channels(full, shape)
        row.params, row.macs, row.groups = graph.params, graph.macs, len(graph.groups)
        row.left_whole, row.left_why = len(graph.left_whole), reasons(graph.left_whole)
    with step("widths"):
        scores = parameter_saliency(full, images[:4], torch.arange(4), "snip")
        scored = score_channels(graph, scores, "snip", list(row.stages))
        asked, widths = choose(row, scored)
    with step("family"):
        family = build_family(full, graph.groups, widths, sharing_tree(2, scored.stages, asked.share))
        settle(family, images)
    with step("round trip"), tempfile.TemporaryDirectory() as folder:
        for peer in (1, 2):
            round_trip(row, family.peer(peer), full, staged, Path(folder) / str(peer), widths[peer - 1].macs, images)
        row.round_trip = True
        onnx_file, saved = Path(folder) / "peer.onnx", Path(folder) / "1"
        with step("onnx"):
            export(saved, onnx_file, shape, draw)
            row.onnx = True
    with step("forward AD"):
        forward_ad(row, family, images[:2])
    short = row.gone[0] < LEAST
    row.verdict = "reduced" if short else "all the way"
    if short:
        row.reason = f"no more than {row.reach:.0%} of the MACs can go: " + (row.left_why or ["the cap on a layer"])[0]


def reasons(left: Any) -> list[str]:
    """One line for each reason that layers were left whole, the commonest first."""
    by_reason: dict[str, list[str]] = {}
    for each in left:
        by_reason.setdefault(each.why, []).append(each.layers[0])
    lines = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    return [f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}" for why, names in lines][:5]


def choose(row: Row, scored: Any) -> tuple[Any, Any]:
    """Two peers with as long a shared trunk as reaches, stage1 if that does; or as much as can go, said."""
    import numpy as np

    from wmlc.compress.widths.budget import choose_counts
    from wmlc.compress.widths.choose import Asked, OutOfReachError, choose_widths
    from wmlc.compress.widths.tree import share_choices

    graph = scored.graph
    free = np.ones(len(graph.groups), dtype=bool)
    _, least = choose_counts(graph, scored.layer_importance, graph.full, free, 0.0, "macs", 1)
    row.reach = round(1 - float(least) / graph.macs, 3)
    shares = [share for share in ("stage1", "stem", "none") if share in share_choices(scored.stages)]
    lower = (max(row.reach - 0.01, 0.0), max(row.reach - 0.05, 0.0))
    for ratios in (RATIOS, lower):
        for share in shares:
            asked = Asked(ratios, share, "macs")
            try:
                widths = choose_widths(scored, asked, advise=False)
            except OutOfReachError:
                continue
            row.share, row.macs_planned = share, [each.macs for each in widths]
            return asked, widths
    raise Wrong(f"{row.reach:.1%} of the MACs were said to be in reach, and are not")


def enliven(network: Any, draw: Any) -> Any:
    """Draw anew what starts as zeros or ones, or as next to nothing, behind which a mistake could not be seen."""
    import torch

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.numel() > 1 and float(parameter.max() - parameter.min()) > 0:
                continue
            noise, size = torch.rand(parameter.shape, generator=draw), float(parameter.abs().max())
            if parameter.ndim > 1 and parameter[0].numel() > 1:
                parameter.copy_((noise - 0.5) * 3 * parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                parameter.copy_((noise - 0.5) * 0.2)
            else:  # what scales a branch that starts as nothing stays small, or rounding would be amplified
                parameter.copy_(noise + 0.5 if size > 0.5 else 0.1 + 0.2 * noise)
    return network


def settle(family: Any, images: Any) -> None:
    """Batch norm's statistics from the images, so that logits depend on these."""
    import torch
    from torch import nn

    norms = [m for m in family.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        family.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    family.eval()


def round_trip(row: Row, peer: Any, full: Any, staged: Any, folder: Path, planned: int, images: Any) -> None:
    """Save a peer, load it in both ways, and compare logits bit for bit, and its cost with the plan."""
    import torch

    from wmlc.arch import whole_name
    from wmlc.models.checkpoint import load_network, load_stages, save_stages
    from wmlc.models.cost import total_cost
    from wmlc.models.widths import difference
    from wmlc.records import Framing, NetworkSpec

    shape = (3, row.pixels, row.pixels)
    spec = NetworkSpec(
        arch=row.network, class_names=[f"class {k}" for k in range(CLASSES)], input_shape=shape, mean=[0.5] * 3,
        std=[0.25] * 3, widths=difference(full, peer, whole_name), stages=staged.cuts, unused=staged.unused,
        framing=Framing(shorter_side=None, size=shape[1:], interpolation="bilinear"),
    )  # fmt: skip
    folder.mkdir()
    save_stages(peer, spec, folder)
    loaded = load_network(folder)
    with torch.no_grad():
        due, got = peer.eval()(images), loaded(images)
        again = load_stages(folder).eval()(images)
    if not due.isfinite().all():
        raise Wrong("its logits are not finite")
    if not (torch.equal(due, got) and torch.equal(due, again)):
        apart = max(float((due - other).abs().max()) for other in (got, again))
        raise Wrong(f"loaded again, its logits are {apart:.1e} from what they were")
    counted = total_cost(loaded, shape).macs
    row.macs_counted.append(counted)
    row.gone.append(round(1 - counted / row.macs, 4))
    if abs(counted - planned) > 0.01 * row.macs:
        raise Wrong(f"{planned:,} MACs were planned, and {counted:,} are counted")


def export(saved: Path, out: Path, shape: tuple[int, int, int], draw: Any) -> None:
    import torch

    from wmlc.export.to_onnx import export_onnx
    from wmlc.models.checkpoint import load_network, read_spec

    pixels = torch.randint(0, 256, (7, *shape[1:], shape[0]), dtype=torch.uint8, generator=draw)
    export_onnx(load_network(saved), read_spec(saved), out, pixels)


def forward_ad(row: Row, family: Any, images: Any) -> None:
    """The derivative of the losses along a random direction, by one forward pass on dual numbers and by differences."""
    import torch
    from torch.autograd import forward_ad as fw
    from torch.func import functional_call
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from wmlc.compress.learn.losses import cross_entropies
    from wmlc.errors import one_line

    family.double().train().requires_grad_(False)
    at = {name: parameter.detach() for name, parameter in family.named_parameters()}
    draw = torch.Generator().manual_seed(1)
    along = {name: torch.randn(p.shape, generator=draw, dtype=p.dtype) * p.norm() / max(p.numel(), 1) ** 0.5
             for name, p in at.items()}  # fmt: skip
    labels = torch.arange(len(images))

    def losses(point: dict[str, Any]) -> Any:
        buffers = {name: buffer.clone() for name, buffer in family.named_buffers()}
        torch.manual_seed(2)  # of dropout
        return cross_entropies(functional_call(family, (point, buffers), (images.double(),)), labels)

    try:
        with torch.no_grad(), fw.dual_level(), sdpa_kernel(SDPBackend.MATH):  # as in training
            tangent = fw.unpack_dual(losses({n: fw.make_dual(p, along[n]) for n, p in at.items()})).tangent
    except (RuntimeError, NotImplementedError) as error:
        row.forward_ad_why = one_line(error, 120)
        return
    apart = []
    for size in (1e-6, 1e-8, 1e-9, 1e-10):  # a shorter step meets fewer corners of ReLU, and rounds more
        with torch.no_grad():
            ahead, behind = (losses({n: p + s * size * along[n] for n, p in at.items()}) for s in (1, -1))
        by_difference = (ahead - behind) / (2 * size)
        apart.append(float((tangent - by_difference).norm() / by_difference.norm()))
        if apart[-1] < AD_BOUND:
            break
    row.forward_ad = float(f"{min(apart):.1e}")
    if not row.forward_ad < AD_BOUND:
        raise Wrong(f"forward-mode derivatives are {row.forward_ad:.1e} from differences")
