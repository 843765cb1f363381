"""The sharing tree, and a family whose one forward is that of all its peers."""

from __future__ import annotations

import collections
import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from wmlc.compress.widths.choose import OutOfReachError
from wmlc.compress.widths.tree import MAX_PEERS, share_choices, sharing_tree
from wmlc.errors import InputError

RATIOS = (0.7, 0.5, 0.3, 0.0)


def stages_of(count: int) -> list[str]:
    return ["stem", *(f"stage{n + 1}" for n in range(count)), "head"]


# The tree


@pytest.mark.parametrize("peers", range(1, MAX_PEERS + 1))
@pytest.mark.parametrize("count", [3, 4, 5])
@pytest.mark.parametrize("share", ["tree", "none", "stem", "stage1", "stage2", "stage3"])
def test_every_stage_is_a_partition_that_refines_the_one_before(peers: int, count: int, share: str) -> None:
    stages = stages_of(count)
    tree = sharing_tree(peers, stages, share)
    assert len(tree) == len(stages)
    for level in tree:
        assert [peer for group in level for peer in group] == list(range(1, peers + 1))
        assert all(level)
    for former, level in itertools.pairwise(tree):
        assert all(any(set(group) <= set(parent) for parent in former) for group in level)
    assert tree[-1] == tuple((peer,) for peer in range(1, peers + 1))


@pytest.mark.parametrize("peers", range(1, MAX_PEERS + 1))
@pytest.mark.parametrize("count", [3, 4, 5])
def test_the_tree_shares_stem_and_first_stage_halves_and_ends_private(peers: int, count: int) -> None:
    tree = sharing_tree(peers, stages_of(count), "tree")
    assert tree[0] == tree[1] == (tuple(range(1, peers + 1)),)
    assert tree[-2] == tree[-1] == tuple((peer,) for peer in range(1, peers + 1))
    for former, level in itertools.pairwise(tree[1:-2]):
        assert max(map(len, level)) == (max(map(len, former)) + 1) // 2


@pytest.mark.parametrize(
    "peers, count, expected",
    [
        (4, 3, ["1234", "1234", "12 34", "1 2 3 4", "1 2 3 4"]),
        (4, 4, ["1234", "1234", "12 34", "1 2 3 4", "1 2 3 4", "1 2 3 4"]),
        (8, 3, ["12345678", "12345678", "1234 5678", "1 2 3 4 5 6 7 8", "1 2 3 4 5 6 7 8"]),
        (
            8, 4,
            ["12345678", "12345678", "1234 5678", "12 34 56 78", "1 2 3 4 5 6 7 8", "1 2 3 4 5 6 7 8"],
        ),
        (3, 4, ["123", "123", "12 3", "1 2 3", "1 2 3", "1 2 3"]),
        (1, 3, ["1"] * 5),
    ],
)  # fmt: skip
def test_the_papers_tree(peers: int, count: int, expected: list[str]) -> None:
    tree = sharing_tree(peers, stages_of(count), "tree")
    assert [" ".join("".join(map(str, group)) for group in level) for level in tree] == expected


def test_none_shares_nothing_and_a_stages_name_shares_up_to_it() -> None:
    everybody, private = ((1, 2, 3),), ((1,), (2,), (3,))
    stages = stages_of(3)
    assert sharing_tree(3, stages, "none") == [private] * 5
    assert sharing_tree(3, stages, "stem") == [everybody] + [private] * 4
    assert sharing_tree(3, stages, "stage2") == [everybody] * 3 + [private] * 2


@pytest.mark.parametrize("share", ["forest", "head", "stage4", ""])
def test_an_unknown_share_is_refused_in_words(share: str) -> None:
    with pytest.raises(InputError) as caught:
        sharing_tree(4, stages_of(3), share)
    assert str(caught.value) == (
        f"unknown --share {share!r} for this network; choose one of tree, none, stem, stage1, stage2, stage3, branches"
    )


# The family


@pytest.fixture(scope="module", params=["resnet20", "mobilenet_v2", "resnet50"])
def net(request: pytest.FixtureRequest, scored_network: Callable[..., Any]) -> Any:
    return scored_network(request.param)


@pytest.fixture(scope="module")
def built(net: Any) -> nn.Module:
    return net.family(net.widths())


@pytest.fixture
def family(built: nn.Module) -> nn.Module:
    """A copy that a test may change."""
    return copy.deepcopy(built)


def test_a_forward_runs_every_stage_once(net: Any, family: Any) -> None:
    calls: collections.Counter[str] = collections.Counter()
    for name, part in family.parts.items():
        hooked = part.fc if name.startswith("head") else part  # a head is walked layer by layer
        hooked.register_forward_hook(lambda *_, name=name: calls.update([name]))
    logits_PBC = family(net.images(2))
    assert logits_PBC.shape == (4, 2, 10)
    assert calls == dict.fromkeys(family.parts, 1)
    assert set(calls) == {branch.name for branch in family.branches}
    assert [branch.peers for branch in family.branches if branch.stage == "stage1"] == [(1, 2, 3, 4)]


def test_a_forward_is_that_of_every_peer(net: Any, family: Any) -> None:
    family.train()(net.images(4))  # statistics of its own
    with torch.no_grad():
        logits_PBC = family.eval()(net.images(3))
        assert family.peers == len(logits_PBC) == 4
        for peer, logits_BC in enumerate(logits_PBC, start=1):
            assert torch.equal(family.peer(peer)(net.images(3)), logits_BC)


def test_an_unpruned_peer_starts_as_the_full_network(net: Any, family: Any) -> None:
    with torch.no_grad():
        expected = copy.deepcopy(net.full).eval()(net.images(3))
        torch.testing.assert_close(family.eval()(net.images(3))[-1], expected, rtol=0, atol=0)


def test_peers_have_the_widths_that_were_chosen(net: Any, family: Any) -> None:
    sizes = [sum(p.numel() for p in family.peer(peer).parameters()) for peer in (1, 2, 3, 4)]
    assert sizes == [own.params for own in net.widths()]
    assert sizes == sorted(set(sizes)), "the smallest first, and no two alike"
    assert sum(p.numel() for p in family.parameters()) < sum(sizes)


def test_peers_are_dense_plain_modules(net: Any, family: Any) -> None:
    for peer in (1, 2, 3, 4):
        network = family.peer(peer)
        assert [name for name, _ in network.named_children()] == net.stages
        for module in network.modules():
            assert type(module).__module__.split(".")[0] in {"torch", "torchvision"}
            assert not parametrize.is_parametrized(module)
            for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
                assert not getattr(module, hooks)
        assert {name.split(".")[-1] for name, _ in network.named_buffers()} == {
            "running_mean", "running_var", "num_batches_tracked",
        }  # fmt: skip
        assert {name.split(".")[-1] for name, _ in network.named_parameters()} == {"weight", "bias"}
        assert all(p.is_leaf and p.requires_grad and p.is_contiguous() for p in network.parameters())


def test_peers_share_the_modules_of_the_tree_and_no_others(net: Any, family: Any) -> None:
    for stage, level in zip(net.stages, sharing_tree(4, net.stages, "tree"), strict=True):
        parts = {peer: family.peer(peer).get_submodule(stage) for peer in (1, 2, 3, 4)}
        for group in level:
            assert len({id(parts[peer]) for peer in group}) == 1
        assert len({id(part) for part in parts.values()}) == len(level)
    pointers = [p.data_ptr() for p in (*family.parameters(), *net.full.parameters())]
    assert len(set(pointers)) == len(pointers)


def test_every_stage_learns_from_the_peers_it_serves(net: Any, family: Any) -> None:
    family.train()(net.images(4))[0].square().sum().backward()
    for branch in family.branches:
        gradients = [p.grad for p in family.parts[branch.name].parameters() if p.grad is not None]
        assert any(gradient.any() for gradient in gradients) == (1 in branch.peers), branch.name


@pytest.mark.parametrize("arch", ["resnet20", "mobilenet_v2"])
def test_interfaces_fit_under_every_share(scored_network: Callable[..., Any], arch: str) -> None:
    net, ratios = scored_network(arch), {"resnet20": (0.6, 0.4, 0.2, 0.0), "mobilenet_v2": (0.6, 0.3)}[arch]
    built = []
    for share in share_choices(net.stages):
        for trunk_ratio in (0.0, 0.3) if arch == "resnet20" else (0.0,):
            try:
                widths = net.widths(ratios, share, trunk_ratio=trunk_ratio, advise=False)
            except OutOfReachError:  # too little is left to cut behind so long a trunk
                continue
            built.append(share)
            assert net.family(widths, share).eval()(net.images(2)).shape == (len(ratios), 2, 10)
    assert {"tree", "none", "stem", "stage1"} <= set(built)


def test_interfaces_fit_where_only_the_head_is_private(scored_network: Callable[..., Any]) -> None:
    net = scored_network("resnet20")
    widths = net.widths((0.3, 0.2, 0.1, 0.0), "stage3", trunk_ratio=0.5)
    assert net.family(widths, "stage3").eval()(net.images(2)).shape == (4, 2, 10)


@pytest.mark.parametrize("peers", [1, 2, 3, MAX_PEERS])
@pytest.mark.parametrize("share", ["tree", "none"])
def test_any_number_of_peers_up_to_eight(scored_network: Callable[..., Any], peers: int, share: str) -> None:
    net = scored_network("resnet20")
    ratios = tuple(0.1 * n for n in reversed(range(peers)))
    family = net.family(net.widths(ratios, share), share).eval()
    with torch.no_grad():
        logits_PBC = family(net.images(2))
        assert logits_PBC.shape == (peers, 2, 10) and family.peers == peers
        for peer in range(1, peers + 1):
            assert torch.equal(family.peer(peer)(net.images(2)), logits_PBC[peer - 1])
