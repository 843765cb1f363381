"""Residual blocks that are left out, against the same network with them muted. Takes 4 s."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnx
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
    whole,
)
from resizables import exported_once
from torch import Tensor, nn

import wmlc
from wmlc.arch import whole_name
from wmlc.bench.latency.files import NetworkFiles, Writers
from wmlc.bench.latency.template import Template
from wmlc.compress.widths.proof import read_channels
from wmlc.errors import InputError
from wmlc.export.to_tensorrt import plan_for
from wmlc.models.checkpoint import save_network
from wmlc.models.residual import LeftOut, left_out, residual_blocks
from wmlc.models.resizable import Resizable
from wmlc.models.stages import split
from wmlc.models.widths import difference
from wmlc.records import NetworkSpec

# Which blocks there are


def test_blocks_are_those_that_give_back_what_they_are_given_once_muted() -> None:
    made = make()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    assert residual_blocks(made, IMAGES) == ["stage1", *BLOCKS], "the first stage is two of them and nothing else"
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


class LookedInto(nn.Module):
    """Its code takes more of its block than what that gives."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Basic()
        self.block.rate = 0.5  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) * self.block.rate


class Named(nn.Module):
    """Has its block under another name too, or only a layer of it."""

    def __init__(self, all_of_it: bool) -> None:
        super().__init__()
        self.block = Basic()
        self.again = nn.Sequential(self.block if all_of_it else self.block.one)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class AddsInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(conv(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x += self.inner(x)
        return x


class WrittenByAnother(nn.Module):
    """The second block writes into what the first made, which without the first is what is added afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Basic(), AddsInPlace()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + x


@pytest.mark.parametrize(
    "middle, blocks",
    [
        (WrittenInto(), []), (Halved(0), []), (Halved(0.1), []), (nn.Sequential(conv(WIDTH, WIDTH), nn.ReLU()), []),
        (LookedInto(), []), (Named(all_of_it=True), ["1"]), (Named(all_of_it=False), ["1"]),
        (WrittenByAnother(), ["1.second"]), (Twice(), ["1"]),
    ],
    ids=["written", "halved", "shifted", "plain", "looked into", "named", "in part", "by another", "twice"],
)  # fmt: skip
def test_what_cannot_be_left_out_is_no_block(middle: nn.Module, blocks: list[str]) -> None:
    """All of the part between may be one, where only that goes."""
    made = nn.Sequential(
        nn.Sequential(conv(3, WIDTH), nn.ReLU()), middle, nn.Sequential(nn.Flatten(), nn.Linear(256, 5))
    )
    assert residual_blocks(made.eval(), IMAGES) == blocks
    assert read_channels(made, SHAPE, with_blocks=True).blocks == ()  # no stage goes as a whole, and no block in part


def test_what_the_whole_network_cannot_do_without_its_stages_keep() -> None:
    """Traced, a block's number stands in the code, so that stages would not miss the block."""
    network = nn.Sequential(nn.Sequential(conv(3, WIDTH), nn.ReLU()), LookedInto(), nn.Flatten(), nn.Linear(256, 5))
    staged = split(network.eval(), IMAGES[:1])
    found = [whole_name(name) for name in residual_blocks(staged.network, IMAGES[:1])]
    assert "1.block" in found and read_channels(staged.network, SHAPE, network, with_blocks=True).blocks == ()


# A network without them


@pytest.mark.parametrize("blocks", EVERY_CHOICE)
def test_a_network_without_blocks_answers_as_with_them_muted(blocks: tuple[str, ...]) -> None:
    made, graph, _ = whole()
    muted = copy.deepcopy(made)
    for block in blocks:
        for own in (*muted.get_submodule(block).parameters(), *muted.get_submodule(block).buffers()):
            own.data.zero_()
    cut = cut_to(made, graph, counts_without(graph, blocks))
    assert torch.equal(cut(IMAGES), muted(IMAGES))
    assert left_out(cut) == list(blocks)
    assert not any(name.startswith(block) for block in blocks for name in cut.state_dict())


# On disk, and in an engine


def spec_of(full: nn.Module, cut: nn.Module) -> NetworkSpec:
    return NetworkSpec(
        arch="hand.py:make", class_names=[f"class {k}" for k in range(CLASSES)], input_shape=SHAPE, mean=[0.5] * 3,
        std=[0.5] * 3, widths=difference(full, cut), left_out=left_out(cut), framing=made_framing(8),
    )  # fmt: skip


def test_a_record_says_what_is_left_out_and_is_read_bit_for_bit(tmp_path: Path) -> None:
    made, graph, _ = whole()
    cut = cut_to(made, graph, drawn(graph, 4))
    assert left_out(cut) == ["stage1.basic", "stage1.squeezed"]
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
        (["stem", "stage1", "stage2", "head"], "the record leaves nothing of the network"),
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


def test_a_file_for_an_engine_is_without_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is exported, as a template has the steps of all blocks."""
    made, graph, sizes = whole()
    exported = []

    def export(network: nn.Module, kind: Resizable, path: Path) -> None:
        exported.append(network)
        onnx.save(onnx.ModelProto(ir_version=9), path)

    monkeypatch.setattr(Template, "of", lambda *_: None)
    files = NetworkFiles(sizes, "file", Writers(export, plan_for), 1, tmp_path)
    counts_G = drawn(graph, 1)
    assert graph.left_out(counts_G) == ["stage1.basic"]
    file = files.write(counts_G, "cut")
    assert file.exists() and left_out(exported[-1]) == ["stage1.basic"]
    exported_once(exported[-1], sizes, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: IMAGES[:1].numpy()})
    with torch.no_grad():
        assert np.allclose(logits, cut_to(made, graph, counts_G)(IMAGES[:1]).numpy(), atol=1e-5)
