"""Residual blocks that are left out, against the same network with them muted. Takes 8 s."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hand_networks import conv
from made import made_framing
from residual_networks import (
    BLOCKS,
    CLASSES,
    EVERY_CHOICE,
    IMAGES,
    SHAPE,
    WIDTH,
    Basic,
    Squeezed,
    counts_without,
    cut_to,
    drawn,
    make,
    read,
)
from resizables import exported_once
from torch import Tensor, nn

import wmlc
from wmlc.bench.latency.files import NetworkFiles, Writers
from wmlc.errors import InputError
from wmlc.models.checkpoint import save_network
from wmlc.models.residual import LeftOut, left_out, residual_blocks
from wmlc.models.widths import difference
from wmlc.records import NetworkSpec

# Which blocks there are


def test_blocks_are_those_that_give_back_what_they_are_given_once_muted() -> None:
    made = make()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    assert residual_blocks(made, IMAGES) == BLOCKS
    graph, _ = read(made)
    own = {block.name: [graph.groups[g].root for g in block.groups] for block in graph.blocks}
    assert own == {
        "stage1.basic": ["stage1.basic.one"], "stage1.squeezed": ["stage1.squeezed.up", "stage1.squeezed.fewer"],
        "stage2.1": ["stage2.1.one"],
    }  # fmt: skip
    assert all(torch.equal(before[name], now) for name, now in made.state_dict().items())


class Twice(nn.Module):
    """Its block runs twice, and so goes with all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Basic()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


class WrittenInto(nn.Module):
    """Writes into what its block made, which without the block is what it adds afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.act = Squeezed(), nn.Hardtanh(0, 0.1, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.block(x, 0.5)) + x


class Halved(nn.Module):
    """Adds half of what it is given, or something beside it."""

    def __init__(self, beside: float) -> None:
        super().__init__()
        self.one, self.beside = conv(WIDTH, WIDTH), beside

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.beside else 0.5 * x) + self.one(x) + self.beside


@pytest.mark.parametrize(
    "middle", [WrittenInto(), Halved(0), Halved(0.1), nn.Sequential(conv(WIDTH, WIDTH), nn.ReLU())],
    ids=["written into", "halved", "shifted", "plain"],
)  # fmt: skip
def test_what_cannot_be_left_out_is_no_block(middle: nn.Module) -> None:
    made = nn.Sequential(
        nn.Sequential(conv(3, WIDTH), nn.ReLU()), middle, nn.Sequential(nn.Flatten(), nn.Linear(256, 5))
    )
    assert residual_blocks(made.eval(), IMAGES) == []


def test_a_block_that_runs_twice_goes_with_what_runs_it() -> None:
    made = nn.Sequential(nn.Sequential(conv(3, WIDTH), nn.ReLU()), nn.Sequential(Twice()), nn.Flatten())
    assert residual_blocks(made.eval(), IMAGES) == ["1.0"]


# A network without them


@pytest.mark.parametrize("blocks", EVERY_CHOICE)
def test_a_network_without_blocks_answers_as_with_them_muted(blocks: tuple[str, ...]) -> None:
    made = make()
    graph, _ = read(made)
    muted = copy.deepcopy(made)
    for block in blocks:
        for own in (*muted.get_submodule(block).parameters(), *muted.get_submodule(block).buffers()):
            own.data.zero_()
    cut = cut_to(made, graph, counts_without(graph, blocks))
    assert torch.equal(cut(IMAGES), muted(IMAGES))
    assert left_out(made, cut) == list(blocks)
    assert not any(name.startswith(block) for block in blocks for name in cut.state_dict())


# On disk, and in an engine


def spec_of(full: nn.Module, cut: nn.Module) -> NetworkSpec:
    return NetworkSpec(
        arch="hand.py:make", class_names=[f"class {k}" for k in range(CLASSES)], input_shape=SHAPE, mean=[0.5] * 3,
        std=[0.5] * 3, widths=difference(full, cut), left_out=left_out(full, cut), framing=made_framing(8),
    )  # fmt: skip


def test_a_record_says_what_is_left_out_and_is_read_bit_for_bit(tmp_path: Path) -> None:
    made = make()
    graph, _ = read(made)
    cut = cut_to(made, graph, drawn(graph, 4))
    assert left_out(made, cut) == ["stage1.basic", "stage1.squeezed"]
    save_network(cut, spec_of(made, cut), tmp_path)
    read_back = wmlc.load(tmp_path, make)
    assert torch.equal(read_back(IMAGES), cut(IMAGES)) and isinstance(read_back.get_submodule("stage1.basic"), LeftOut)
    assert "left_out" in json.loads((tmp_path / "spec.json").read_text())


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["stage1.gone"], "it has no module stage1.gone to leave out"),
        ([""], "it has no module  to leave out"),
        (["forward"], "it has no module forward to leave out"),
        (["stage1.basic.one.weight"], "it has no module stage1.basic.one.weight to leave out"),
        (["x\n" * 900], "it has no module x\\nx\\n"),
        (["head"], "the network gives [1, 4, 8, 8] for an image, but the record names 5 classes"),
        (["stage1", "stage1.basic"], "it has no module stage1.basic to leave out"),
    ],
)
def test_a_record_that_leaves_out_what_cannot_be_is_refused(names: list[str], words: str, tmp_path: Path) -> None:
    made = make()
    save_network(made, spec_of(made, made), tmp_path)
    record = json.loads((tmp_path / "spec.json").read_text())
    (tmp_path / "spec.json").write_text(json.dumps({**record, "left_out": names}))
    with pytest.raises(InputError) as caught:
        wmlc.load(tmp_path, make)
    said = str(caught.value)
    assert words in said and "spec.json is damaged" in said and "\n" not in said and len(said) < 500


def test_a_file_for_an_engine_is_without_them_too(tmp_path: Path) -> None:
    made = make()
    graph, sizes = read(made)
    files = NetworkFiles(sizes, "file", Writers(exported_once), 1, tmp_path)
    counts_G = drawn(graph, 1)
    assert graph.left_out(counts_G) == ["stage1.basic"]
    session = onnxruntime.InferenceSession(str(files.write(counts_G, "cut")), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: IMAGES[:1].numpy()})
    with torch.no_grad():
        assert np.allclose(logits, cut_to(made, graph, counts_G)(IMAGES[:1]).numpy(), atol=1e-5)
