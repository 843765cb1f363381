"""Who shares what: a tree over stages, written as one partition of the peers per stage."""

from __future__ import annotations

from wmlc.errors import InputError

Partition = tuple[tuple[int, ...], ...]  # peers, counted from 1, that share one copy of a stage
MAX_PEERS = 8


def share_choices(stages: list[str]) -> list[str]:
    """The values of `--share` for a network with these stages, stem first and head last."""
    return ["tree", "none", *stages[:-1]]


def sharing_tree(peers: int, stages: list[str], share: str) -> list[Partition]:
    """For each stage (stem … head), the groups of peers that share one copy of it.

    `tree` is the paper's: stem and first stage are everybody's, each stage after it is shared by half as
    many peers, the last stage and the head are private. `none` shares nothing; a stage's name shares
    everything up to that stage among all peers, and `branches` everything but the last stage and the head.
    Raises `InputError` for any other name.
    """
    everybody: Partition = (tuple(range(1, peers + 1)),)
    private: Partition = tuple((peer,) for peer in everybody[0])
    if len(stages) == 1 and share in ("tree", "none", "branches"):  # a network without a cut
        return [private]
    if share == "branches":
        share = stages[-3] if len(stages) > 2 else "none"
    if share not in share_choices(stages):
        raise InputError(
            f"unknown --share {share!r} for this network; choose one of {', '.join(share_choices(stages))}, branches"
        )
    if share == "none":
        return [private] * len(stages)
    if share in stages:
        last_shared = stages.index(share)
        return [everybody if index <= last_shared else private for index in range(len(stages))]
    tree: list[Partition] = [everybody, everybody]
    while len(tree) < len(stages) - 2:
        tree.append(tuple(half for group in tree[-1] for half in _halves(group)))
    return [*tree[: len(stages) - 2], private, private]


def _halves(group: tuple[int, ...]) -> Partition:
    middle = (len(group) + 1) // 2
    return tuple(half for half in (group[:middle], group[middle:]) if half)
