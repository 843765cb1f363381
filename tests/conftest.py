"""Tiny scored networks that several tests plan, cut and train with."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck

from wmlc.bench.config import BenchConfig
from wmlc.bench.session import bench_run
from wmlc.compress.config import TrainConfig
from wmlc.compress.learn.family import PeerFamily, build_family
from wmlc.compress.session import start_run
from wmlc.compress.widths.graph import read_channels
from wmlc.compress.widths.plan import PeerPlan, Scored, plan_family, score_channels
from wmlc.compress.widths.saliency import parameter_saliency
from wmlc.compress.widths.tree import sharing_tree
from wmlc.export.extract import bench_forms
from wmlc.export.precision import to_fp16, to_int8
from wmlc.export.to_onnx import export_onnx
from wmlc.models.checkpoint import load_network, read_spec, save_network
from wmlc.models.widths import read_widths
from wmlc.models.zoo import build_network
from wmlc.records import NetworkSpec
from wmlc.run import Run, open_run_data

RATIOS = (0.7, 0.5, 0.3, 0.0)


@dataclass(frozen=True)
class ScoredNetwork:
    """A full network for 10 classes with its saliency, and what it takes to plan and cut it."""

    arch: str
    full: nn.Sequential
    input_shape: tuple[int, int, int]
    scored: Scored

    @property
    def stages(self) -> list[str]:
        return self.scored.stages

    def plans(
        self, ratios: tuple[float, ...] = RATIOS, share: str = "tree", of: str = "params", divisor: int = 1,
        trunk_ratio: float = 0.0,
        advise: bool = True,
    ) -> list[PeerPlan]:  # fmt: skip
        return plan_family(self.scored, list(ratios), share, of, divisor, trunk_ratio, advise)

    def family(self, plans: list[PeerPlan], share: str = "tree", mean_joins: bool = False) -> PeerFamily:
        return build_family(
            self.full, self.input_shape, plans, sharing_tree(len(plans), self.stages, share), mean_joins=mean_joins
        )

    def images(self, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, *self.input_shape, generator=generator, dtype=dtype)


def score_network(arch: str, pixels: int = 8, saliency: str = "snip") -> ScoredNetwork:
    """`arch` from seed 0 for `pixels`², scored on four random images."""
    torch.manual_seed(0)
    shape = (3, pixels, pixels)
    full = build_network(arch, 10, shape)
    graph = read_channels(full, shape)
    scores = parameter_saliency(full, torch.randn(4, *shape), torch.tensor([3, 1, 4, 1]), saliency)
    return ScoredNetwork(arch, full, shape, score_channels(graph, scores, saliency, list(dict(full.named_children()))))


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """An engine opened in this process sets torch's threads; the next test computes with as many as before."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def scored_network() -> Callable[..., ScoredNetwork]:
    """`score_network`, each network made once for all tests: they must leave it as it is."""
    return functools.cache(score_network)


@pytest.fixture(scope="session")
def fresh_scored_network() -> Callable[..., ScoredNetwork]:
    """`score_network`, uncached, for networks too large to keep."""
    return score_network


def settle(network: nn.Module) -> None:
    """Give an untrained `network` batch norms like a trained one's, so that its logits depend on the image.

    No two channels are alike, the statistics are those of what comes in, and a residual block adds little to its
    input, so that what rounding costs in one block isn't amplified by the next ones.
    """
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)
            module.momentum = 1.0  # the statistics of the one batch below
    for module in network.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            getattr(module, "bn3", module.bn2).weight.data.mul_(0.1)
        elif isinstance(module, InvertedResidual) and module.use_res_connect:
            module.conv[-1].weight.data.mul_(0.1)
    with torch.no_grad():
        network.train()(torch.randn(64, 3, 32, 32, generator=generator))
    network.eval()


@pytest.fixture(scope="session")
def pruned_network(
    tmp_path_factory: pytest.TempPathFactory, fresh_scored_network: Callable[..., ScoredNetwork]
) -> Callable[[str], Path]:
    """The directory of an untrained peer of `arch`, cut by 0.5, for 32 x 32 pixels and 10 classes."""

    @functools.cache
    def save(arch: str) -> Path:
        network = fresh_scored_network(arch, 32)
        peer = network.family(network.plans((0.5, 0.0), divisor=8)).peer(1)
        settle(peer)
        spec = NetworkSpec(
            arch=arch, class_names=[f"class {index}" for index in range(10)], input_shape=(3, 32, 32),
            mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26], widths=read_widths(peer), about={"peer": 1, "ratio": 0.5},
        )  # fmt: skip
        directory = tmp_path_factory.mktemp(arch) / "peer"
        directory.mkdir()
        save_network(peer, spec, directory)
        return directory

    return save


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory, pruned_network: Callable[[str], Path]
) -> Callable[[str, str], Path]:
    """The ONNX file of `pruned_network(arch)` in a form: fp32, fp16, int8-cpu or int8-gpu."""

    @functools.cache
    def export(arch: str, form: str) -> Path:
        out = tmp_path_factory.mktemp(arch) / f"{form}.onnx"
        if form == "fp32":
            pixels = torch.randint(
                0, 256, (7, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
            )
            export_onnx(load_network(pruned_network(arch)), read_spec(pruned_network(arch)), out, pixels)
        elif form == "fp16":
            to_fp16(export(arch, "fp32"), out)
        else:
            images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
            to_int8(export(arch, "fp32"), out, images, target=form.removeprefix("int8-"), calibrator="minmax")
        return out

    return export


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two peers and the baseline on a few digits; tests leave it as it is."""
    config = TrainConfig(
        ratios=(0.7, 0.0), train_images=260, epochs=2, batch_size=64, reweigh_every=2, warmup_epochs=0.5, lr=0.05
    )
    return start_run(config, tmp_path_factory.mktemp("runs") / "run", force=False)


@pytest.fixture(scope="session")
def benched_run(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of `run` that was benched in fp32 and int8; tests leave it as it is."""
    data, config = open_run_data(run), BenchConfig(precisions=("fp32", "int8"), seconds=0.02, launches=2)
    bench_forms(
        run, data, config.precisions, None, plans=False, batches=config.batches
    )  # whose files the copy takes over
    copy = Run(tmp_path_factory.mktemp("benched") / "run")
    shutil.copytree(run.root, copy.root)
    files = bench_forms(copy, data, config.precisions, None, plans=False, batches=config.batches)
    bench_run(copy, config, files, data, copy.bench)
    return copy
