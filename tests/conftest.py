"""Tiny scored networks that several tests plan, cut and train with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from wmlc.compress.channels import read_channels
from wmlc.compress.config import TrainConfig
from wmlc.compress.family import PeerFamily, build_family
from wmlc.compress.prune import PeerPlan, Scored, plan_family, score_channels
from wmlc.compress.saliency import parameter_saliency
from wmlc.compress.session import start_run
from wmlc.compress.tree import sharing_tree
from wmlc.models.zoo import build_network
from wmlc.run import Run

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

    def family(self, plans: list[PeerPlan], share: str = "tree") -> PeerFamily:
        return build_family(self.full, self.input_shape, plans, sharing_tree(len(plans), self.stages, share))

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


@pytest.fixture(scope="session")
def scored_network() -> Callable[..., ScoredNetwork]:
    """`score_network`, each network made once for all tests: they must leave it as it is."""
    return functools.cache(score_network)


@pytest.fixture(scope="session")
def fresh_scored_network() -> Callable[..., ScoredNetwork]:
    """`score_network`, uncached, for networks too large to keep."""
    return score_network


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two peers and the baseline on a few digits; tests leave it as it is."""
    config = TrainConfig(
        ratios=(0.7, 0.0), train_images=260, epochs=2, batch_size=64, reweigh_every=2, warmup_epochs=0.5, lr=0.05
    )
    return start_run(config, tmp_path_factory.mktemp("runs") / "run", force=False)
