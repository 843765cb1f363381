"""Tiny scored networks and a small run that several tests use; what a fixture needs is imported in it."""

from __future__ import annotations

import fcntl
import functools
import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from wmlc.compress.learn.family import PeerFamily
    from wmlc.compress.widths.choose import PeerWidths, Scored
    from wmlc.run import Run

RATIOS = (0.7, 0.5, 0.3, 0.0)


@dataclass(frozen=True)
class ScoredNetwork:
    """A full network for 10 classes with its saliency, and what it takes to choose widths and cut it."""

    arch: str
    full: nn.Sequential
    input_shape: tuple[int, int, int]
    scored: Scored

    @property
    def stages(self) -> list[str]:
        return self.scored.stages

    def widths(
        self, ratios: tuple[float, ...] = RATIOS, share: str = "tree", of: str = "params", divisor: int = 1,
        trunk_ratio: float = 0.0, advise: bool = True,
    ) -> list[PeerWidths]:  # fmt: skip
        from wmlc.compress.widths.choose import Asked, choose_widths

        return choose_widths(self.scored, Asked(ratios, share, of, divisor, trunk_ratio), advise)

    def family(self, widths: list[PeerWidths], share: str = "tree", mean_joins: bool = False) -> PeerFamily:
        from wmlc.compress.learn.family import build_family
        from wmlc.compress.widths.tree import sharing_tree

        tree = sharing_tree(len(widths), self.stages, share)
        return build_family(self.full, self.scored.graph.groups, widths, tree, mean_joins=mean_joins)

    def images(self, batch: int, dtype: torch.dtype | None = None) -> Tensor:
        import torch

        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, *self.input_shape, generator=generator, dtype=dtype)


def score_network(arch: str, pixels: int = 8, saliency: str = "snip") -> ScoredNetwork:
    """`arch` from seed 0 for `pixels`², scored on four random images."""
    import torch

    from wmlc.compress.widths.choose import score_channels
    from wmlc.compress.widths.proof import read_channels
    from wmlc.compress.widths.saliency import parameter_saliency
    from wmlc.models.zoo import build_network

    torch.manual_seed(0)
    shape = (3, pixels, pixels)
    full = build_network(arch, 10, shape)
    graph = read_channels(full, shape)
    scores = parameter_saliency(full, torch.randn(4, *shape), torch.tensor([3, 1, 4, 1]), saliency)
    return ScoredNetwork(arch, full, shape, score_channels(graph, scores, saliency, list(dict(full.named_children()))))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept on this machine for the next time stays out of the user's cache, and nothing is found there."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared / "cache"))
        patch.setattr(
            "wmlc.bench.engines.machine.LOCK", f"{os.environ.get('PYTEST_XDIST_WORKER', '')}.lock"
        )  # no waiting
        yield


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """An engine opened in this process sets torch's threads; the next test computes with as many as before."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else None
    yield
    if torch and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def scored_network() -> Callable[..., ScoredNetwork]:
    """`score_network`, each network made once for all tests: they must leave it as it is."""
    return functools.cache(score_network)


@pytest.fixture(scope="session")
def fresh_scored_network() -> Callable[..., ScoredNetwork]:
    """`score_network`, uncached, for networks too large to keep."""
    return score_network


def for_all_workers(factory: pytest.TempPathFactory) -> Path:
    """A directory of what is made once."""
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    shared.mkdir(exist_ok=True)
    return shared


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The file or directory that `make` leaves at a path, made once for all workers: they must leave it as it is."""
    shared = for_all_workers(factory)
    whole, part = shared / name, shared / f"part-{name}"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(part, ignore_errors=True)  # of a worker that failed
            make(part)
            part.rename(whole)
    return whole


def settle_norms(network: nn.Module) -> None:
    """Give an untrained `network` batch norms like a trained one's, so that its logits depend on the image.

    No two channels are alike, the statistics are those of what comes in, and a residual block adds little to its
    input, so that what rounding costs in one block isn't amplified by the next ones.
    """
    import torch
    from torch import nn
    from torchvision.models.mobilenetv2 import InvertedResidual
    from torchvision.models.resnet import BasicBlock, Bottleneck

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

    from made import made_framing

    from wmlc.models.checkpoint import save_network
    from wmlc.models.widths import difference
    from wmlc.records import About, NetworkSpec

    def save(arch: str, directory: Path) -> None:
        network = fresh_scored_network(arch, 32)
        peer = network.family(network.widths((0.5, 0.0), divisor=8)).peer(1)
        settle_norms(peer)
        spec = NetworkSpec(
            arch=arch, class_names=[f"class {index}" for index in range(10)], input_shape=(3, 32, 32),
            mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26], widths=difference(network.full, peer), framing=made_framing(32),
            about=About(peer=1, ratio=0.5),
        )  # fmt: skip
        directory.mkdir()
        save_network(peer, spec, directory)

    return lambda arch: made_once(tmp_path_factory, f"{arch}-peer", lambda directory: save(arch, directory))


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory, pruned_network: Callable[[str], Path]
) -> Callable[[str, str], Path]:
    """The ONNX file of `pruned_network(arch)` in a form: fp32, fp16, int8-cpu or int8-gpu; made once for all workers."""

    import torch

    from wmlc.export.precision import to_fp16, to_int8
    from wmlc.export.to_onnx import export_onnx
    from wmlc.models.checkpoint import load_network, read_spec

    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()

    def export(arch: str, form: str) -> Path:
        return made_once(tmp_path_factory, f"{arch}-{form}.onnx", lambda out: write(arch, form, out))

    def write(arch: str, form: str, out: Path) -> None:
        if form == "fp32":
            pixels = torch.randint(
                0, 256, (7, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
            )
            export_onnx(load_network(pruned_network(arch)), read_spec(pruned_network(arch)), out, pixels)
        elif form == "fp16":
            to_fp16(export(arch, "fp32"), out, images)
        else:
            to_int8(export(arch, "fp32"), out, images, target=form.removeprefix("int8-"), calibrator="minmax")

    return export


def own_copy(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Run:
    """A copy of a run that is made once for all workers."""
    from wmlc.run import Run

    own = factory.mktemp(name) / "run"
    shutil.copytree(made_once(factory, name, make), own)
    return Run(own)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two peers and the baseline on a few digits; tests leave it as it is.

    In float32, as some CPUs have bf16 and its rounding moves images from one class to another.
    """
    from training import train

    def make(root: Path) -> None:
        train(root, ratios=(0.7, 0.0), precision="fp32")

    own = own_copy(tmp_path_factory, "run", make)
    if (files := for_all_workers(tmp_path_factory) / "benched" / own.onnx.name).exists():  # another worker's exports
        shutil.copytree(files, own.onnx)
    return own


@pytest.fixture(scope="session")
def benched_run(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of `run` that was benched in fp32 and int8, in this process; tests leave it as it is."""
    from measured import engines_in_process

    from wmlc.bench.config import BenchConfig
    from wmlc.bench.session import bench_run
    from wmlc.export.for_bench import bench_forms
    from wmlc.run import Run, open_run_data

    def bench(root: Path) -> None:
        shutil.copytree(run.root, root)
        copy, data = Run(root), open_run_data(run)
        config = BenchConfig(precisions=("fp32", "int8"), seconds=0.01, launches=1)
        files = bench_forms(copy, data, config.precisions, None, plans=False, batches=config.batches)
        with pytest.MonkeyPatch.context() as patch:
            engines_in_process(patch)
            bench_run(copy, config, files, data, copy.bench)

    benched = own_copy(tmp_path_factory, "benched", bench)
    shutil.copytree(benched.onnx, run.onnx, dirs_exist_ok=True)  # so that nobody exports them again
    return benched


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines run in this process."""
    from measured import engines_in_process

    engines_in_process(monkeypatch)


def pytest_configure() -> None:
    """Let Python's garbage collector leave alone what is imported: half a million objects that stay to the end.

    It went through them anew every few tests, a twentieth of the time that all take; a forked process copied them.
    """
    gc.set_threshold(50_000, 20, 50)


def pytest_collection_finish() -> None:
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or triton's bindings report them as leaks


SLOW = Path(__file__).with_name("slow.txt")
WORK = {"run", "benched_run", "exported"}  # fixtures that train, bench and export: slow for whichever test comes first


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-slow", action="store_true", help="add the tests that take over a second to slow.txt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow: a test named in slow.txt, and one whose fixtures do much work."""
    named = set(SLOW.read_text(encoding="utf-8").split())
    for item in items:
        if item.nodeid.split("[")[0] in named or WORK & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """With --record-slow, add what took over a second, its set-up included."""
    if config.getoption("--record-slow"):
        reports = [report for each in terminalreporter.stats.values() for report in each if hasattr(report, "duration")]
        slow = {report.nodeid.split("[")[0] for report in reports if report.duration > 1}
        known = set(SLOW.read_text(encoding="utf-8").split())
        SLOW.write_text("".join(f"{name}\n" for name in sorted(known | slow)), encoding="utf-8")
