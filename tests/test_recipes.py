"""Every recipe that comes with wmlc: what it says, that it is installed, and that its family can be had."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from test_house import HOUSE, packaging

from wmlc.cli import main
from wmlc.compress.config import settle, sharing
from wmlc.compress.prepare import asked_of
from wmlc.compress.recipes import choose_config, list_recipes, override, own_recipes, read_recipe
from wmlc.compress.widths.choose import Scored, choose_widths, score_channels
from wmlc.compress.widths.grouping import graph_of, groups_of, out_of_groups
from wmlc.compress.widths.saliency import parameter_saliency
from wmlc.compress.widths.trace import trace_channels
from wmlc.data import DataConfig
from wmlc.data.noise import NoiseData, stand_in
from wmlc.errors import InputError
from wmlc.models.zoo import build_network
from wmlc.run import data_config
from wmlc.settings import TrainConfig

RECIPES = {name: settle(read_recipe(name), name) for name in own_recipes()}
TABLE7_DROPS = (0.40, 0.46)  # of FLOPs, as PAPER.md's table has them


def of(start: str) -> dict[str, TrainConfig]:
    return {name: config for name, config in RECIPES.items() if name.startswith(start)}


def images(config: TrainConfig) -> str:
    """The images that a family is prepared from; CIFAR's two sets differ in the last layer's classes only."""
    return "cifar10" if config.data.startswith("cifar") else config.data


def shape(config: TrainConfig) -> tuple[Any, ...]:
    """All that the widths hang on."""
    return (
        images(config), config.arch, config.ratios, config.ratio_of, config.saliency, sharing(config),
        config.trunk_ratio, config.divisor,
    )  # fmt: skip


# One name for each distinct family, without the sets whose classes only a folder tells, and digits, which is there.
DISTINCT = {shape(config): name for name, config in RECIPES.items() if config.data not in ("imagefolder", "digits")}


@functools.cache
def scored(data: str, arch: str, saliency: str) -> Scored:
    """A network scored on noise, as a dry run without the data scores it."""
    noise = stand_in(data_config(settle({"data": data, "data_root": "none"})), "cpu")
    assert noise is not None
    torch.manual_seed(0)
    full = build_network(arch, len(noise.record.class_names), noise.record.input_shape)
    batch, labels = next(noise.train_batches(4, epoch=0))
    scores = parameter_saliency(full, batch, labels, saliency)
    traced = trace_channels(full, torch.zeros(1, *noise.record.input_shape))
    groups = groups_of(traced, full)  # which test_prune.py has proven of these networks
    graph = graph_of(full, traced, groups, out_of_groups(traced, full, groups), blocks=[])
    return score_channels(graph, scores, saliency, list(dict(full.named_children())))


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def dry_run(*arguments: object) -> list[dict[str, Any]]:
    """The peers that `wmlc train … --dry-run` prints."""
    result = train(*arguments, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    peers: list[dict[str, Any]] = json.loads(result.stdout)["peers"]
    return peers


@pytest.mark.parametrize("name", sorted(DISTINCT.values(), key=lambda name: shape(RECIPES[name])))
def test_every_family_has_widths(name: str) -> None:
    config = RECIPES[name]
    full = scored(images(config), config.arch, config.saliency)
    peers = choose_widths(full, asked_of(config))
    for peer, ratio in zip(peers, config.ratios, strict=True):
        assert peer.ratio == ratio and peer.achieved_ratio == pytest.approx(ratio, abs=0.01)
    if name.startswith("table7"):
        assert TABLE7_DROPS[0] <= peers[0].achieved_ratio <= TABLE7_DROPS[1]


def test_a_dry_run_needs_no_data_and_writes_nothing(tmp_path: Path) -> None:
    peers = dry_run("table7-resnet32-snip", "--data-root", tmp_path)
    assert [peer["ratio"] for peer in peers] == list(RECIPES["table7-resnet32-snip"].ratios)
    assert TABLE7_DROPS[0] <= peers[0]["achieved_ratio"] <= TABLE7_DROPS[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", of("study"))
def test_a_studys_family_can_be_prepared_on_a_folder_of_images(name: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for folder in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(20):
            pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    peers = dry_run(name, "--data-root", tmp_path, "--train-images", 40, "--batch-size", 8)
    assert [peer["ratio"] for peer in peers] == list(RECIPES[name].ratios)


def test_noise_is_said_where_the_data_are_missing(tmp_path: Path) -> None:
    result = train("table7-resnet32-snip", "--data-root", tmp_path, "--dry-run")
    folder = tmp_path / "cifar-10-batches-py"
    assert result.exit_code == 0 and f"cifar10 is not in {tmp_path} (there is no {folder})" in result.stderr
    assert "noise" in result.stderr


def test_where_only_the_folder_tells_the_classes_a_missing_one_is_an_error(tmp_path: Path) -> None:
    result = train("study", "--data-root", tmp_path / "none", "--dry-run")
    assert result.exit_code == 1 and f"Error: {tmp_path / 'none'} is not a folder; " in result.stderr


def test_every_experiment_of_the_paper_has_its_recipe() -> None:
    nets, methods = ("resnet18", "resnet50", "resnet101"), ("one", "cl", "wml-p", "wml")
    assert set(of("table6")) == {f"table6-{net}-{method}" for net in nets for method in methods}
    mains = {f"main-{data}-{net}" for data in ("cifar10", "cifar100", "imagenet") for net in nets}
    assert set(of("main")) == mains | {"main-cifar10-resnet32", "main-cifar10-resnet56"}
    scores = ("snip", "synflow", "grasp")
    assert set(of("table7")) == {f"table7-{net}-{score}" for net in ("resnet32", "resnet56") for score in scores}
    assert set(of("table8")) == {"table8-resnet18", "table8-resnet34"}
    assert {"figure6-resnet18", "figure7-resnet101", "imagenet-mobilenet_v2", "study", "study-table7"} <= set(RECIPES)


def test_a_recipe_is_what_its_name_says() -> None:
    for name, config in RECIPES.items():
        kind, *rest = name.split("-", 2)
        if kind == "table6":
            assert [config.data, config.arch, config.method] == ["cifar100", *rest]
            assert config.ratios == ((0.3, 0.2, 0.1, 0.0) if config.method.startswith("wml") else (0.0,) * 4)
        elif kind == "main":
            assert [config.data, config.arch] == rest and config.ratios == (0.7, 0.5, 0.3, 0.0)
        elif kind == "table7":
            assert [config.data, config.arch, config.saliency] == ["cifar10", *rest] and config.ratio_of == "macs"
        elif kind in ("table8", "figure6", "figure7"):
            assert [config.data, config.arch] == ["cifar100", *rest]


@pytest.mark.parametrize("name", [name for name, config in RECIPES.items() if config.data in ("cifar10", "cifar100")])
def test_optimiser_and_distillation_are_the_papers(name: str) -> None:
    config = RECIPES[name]
    assert (config.momentum, config.weight_decay, config.batch_size, config.epochs) == (0.9, 5e-4, 128, 200)
    if config.method.startswith("wml"):
        assert config.alpha == config.weight_lr == 0.1


@pytest.mark.parametrize("arch", ["resnet18", "resnet101"])
def test_the_ablation_on_the_ratio_is_the_main_setting_with_other_ratios(arch: str) -> None:
    figure = {"resnet18": "figure6-resnet18", "resnet101": "figure7-resnet101"}[arch]
    for other in (f"main-cifar100-{arch}", f"table6-{arch}-wml"):
        assert {**read_recipe(other), "ratios": None} == {**read_recipe(figure), "ratios": None}


def test_all_recipes_are_in_the_package_data() -> None:
    patterns = packaging()["package-data"]["wmlc.recipes"]  # type: ignore[index]
    installed = {path.name for pattern in patterns for path in (HOUSE / "recipes").glob(pattern)}
    assert installed == {path.name for path in (HOUSE / "recipes").iterdir() if path.suffix in (".yaml", ".yml")}
    assert {f"{name}.yaml" for name in RECIPES} == installed


def test_the_list_shows_every_recipe_in_one_line_uncut() -> None:
    result = train("--list")
    assert result.exit_code == 0 and "…" not in result.output
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == sorted(RECIPES)
    row = next(line for line in lines if line.startswith("table7-resnet56-grasp"))
    said = "Table 7: ResNet-56 less 42 % of its MACs by GraSP resnet56 cifar10 wml 0.42,0 200"
    assert " ".join(row.split()) == f"table7-resnet56-grasp {said}"


def test_the_list_as_json() -> None:
    records = {record["recipe"]: record for record in json.loads(train("--list", "--json").stdout)}
    assert records.keys() == RECIPES.keys() and all(record["what"] for record in records.values())
    assert records["table6-resnet18-one"] == {
        "recipe": "table6-resnet18-one", "what": "Table 6, ResNet-18, ONE: four equal branches", "arch": "resnet18",
        "data": "cifar100", "method": "one", "ratios": [0.0] * 4, "epochs": 200,
    }  # fmt: skip


def test_a_file_of_the_same_name_does_not_change_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").write_text("epochs: 3\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert read_recipe("digits") == {"epochs": 3}
    assert next(recipe for recipe in list_recipes() if recipe.recipe == "digits").epochs == 20


def test_a_flag_overrides_the_recipe(tmp_path: Path) -> None:
    peers = dry_run("main-cifar10-resnet32", "--arch", "resnet20", "--ratios", "0.5,0", "--data-root", tmp_path)
    assert [peer["ratio"] for peer in peers] == [0.5, 0.0]
    assert set(peers[1]["stage_channels"]["stage1"]) == {16} and len(peers[1]["stage_channels"]["stage1"]) == 6


@pytest.mark.parametrize(
    ("method", "alpha", "ratios", "left"),
    [
        ("dml", None, (0.7, 0.5, 0.3, 0.0), {"alpha", "join"}),
        ("cl", 0.5, (0.7, 0.5, 0.3, 0.0), {"alpha", "join"}),
        ("self-distillation", 0.1, (), {"alpha", "join", "ratios"}),
        ("wml", 0.1, (0.7, 0.5, 0.3, 0.0), set()),
    ],
)
def test_another_method_brings_the_constants_of_its_own_loss(
    method: str, alpha: float | None, ratios: tuple[float, ...], left: set[str]
) -> None:
    settings, names = override(read_recipe("main-cifar10-resnet32"), {"method": method, "lr": 0.2})
    config = settle(settings, "test")
    assert (config.alpha, config.ratios, config.lr, set(names)) == (alpha, ratios, 0.2, left)


def test_a_method_that_is_none_is_left_to_the_check() -> None:
    assert override({"alpha": 0.2}, {"method": ["cl"]}) == ({"alpha": 0.2, "method": ["cl"]}, [])


def test_what_is_given_stays_whatever_the_method() -> None:
    assert override({"alpha": 0.2}, {"method": "cl", "alpha": 0.3}) == ({"method": "cl", "alpha": 0.3}, [])


@pytest.mark.parametrize(
    ("recipe", "given", "held"),
    [
        ({"lr_auto": True, "lr": 0.1}, {"lr": 0.05}, {"lr": 0.05, "lr_auto": False}),
        ({"lr_auto": True}, {"lr": "auto"}, {"lr_auto": True, "lr": "auto"}),
        (
            {"max_latency_ms": [2], "threads": 2, "ratio_of": "latency"},
            {"ratios": (0.5,)},
            {"threads": 2, "ratio_of": "latency", "ratios": (0.5,)},
        ),
        ({"max_latency_ms": [2], "engine": "ort"}, {"ratio_of": "macs"}, {"ratio_of": "macs"}),
        ({"max_latency_ms": [2]}, {"max_latency_ms": (3.0,)}, {"max_latency_ms": (3.0,)}),
        ({"ratios": [0.5], "ratio_of": "macs"}, {"max_latency_ms": (3.0,)}, {"max_latency_ms": (3.0,)}),
        ({"max_latency_ms": [2], "engine": "ort", "paid_out": 1.0}, {"ratios": (0.5,)}, {"ratios": (0.5,)}),
        ({"steps": 100}, {"as_long_as": "wml"}, {"as_long_as": "wml"}),
        ({"finetune_lr": 0.01}, {"lr": "auto"}, {"lr": "auto"}),
        ({"as_long_as": "wml", "method": "dml"}, {"method": "kd"}, {"as_long_as": "wml", "method": "kd"}),
        ({"as_long_as": "kd", "method": "dml"}, {"method": "kd"}, {"method": "kd"}),
    ],
)
def test_what_is_given_is_not_beaten_by_what_a_recipe_says_of_the_same(
    recipe: dict[str, Any], given: dict[str, Any], held: dict[str, Any]
) -> None:
    assert override(recipe, given)[0] == held


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 0.1\nbatch-size: 4\nbatch_size: 8", "{path}, line 3: batch_size stands in line 2 too; leave out one"),
        ("epoch: 3", "{path}: unknown setting 'epoch'; did you mean epochs?"),
        ("weight-decai: 3", "{path}: unknown setting 'weight_decai'; did you mean weight_decay?"),
        ("epochs: many", "{path}: epochs must be a whole number, got 'many'"),
        ("lr: 1e-1", "{path}: lr must be a number, got '1e-1' (YAML reads that as a text; write it with a point, as 1.0e-3)"),
        ("ratios: 0.5", "{path}: ratios must be a list of numbers, got 0.5"),
        ("nesterov: 1", "{path}: nesterov must be true or false, got 1"),
        ("[1, 2]", "{path} must hold settings as 'name: value', got list"),
        ("method: wmlp", "method must be one of wml, wml-p, dml, one, cl, self-distillation, independent, kd, prune-finetune, got 'wmlp'"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_in_words(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    result = train(path, "--dry-run")
    assert result.exit_code == 1 and result.output == f"Error: {message.format(path=path)}\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("table7-resnet32-synflo", "no recipe 'table7-resnet32-synflo'; did you mean table7-resnet32-synflow? "
         "('wmlc train --list' shows them all)"),
        ("no-such-recipe", "no recipe 'no-such-recipe'; give a YAML file or a recipe's name ('wmlc train --list' shows them all)"),
    ],
)  # fmt: skip
def test_an_unknown_recipe_gets_the_nearest_name(name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe(name)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("config", "shape", "classes"),
    [
        (DataConfig(name="cifar10"), (3, 32, 32), 10),
        (DataConfig(name="cifar100"), (3, 32, 32), 100),
        (DataConfig(name="imagenet", root=Path("none")), (3, 224, 224), 1000),
        (DataConfig(name="imagenet", root=Path("none"), image_size=96), (3, 96, 96), 1000),
    ],
)
def test_noise_has_the_sets_shape_and_comes_again_from_its_seed(
    config: DataConfig, shape: tuple[int, int, int], classes: int
) -> None:
    noise = stand_in(config, "cpu")
    assert isinstance(noise, NoiseData)
    assert noise.record.input_shape == shape and len(noise.record.class_names) == classes
    assert noise.record.small == config.name.startswith("cifar")
    images_BCHW, labels_B = next(noise.train_batches(128, epoch=0))
    assert images_BCHW.shape == (4, *shape) and images_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert images_BCHW.dtype == torch.float32 and labels_B.dtype == torch.int64
    assert labels_B.min() >= 0 and labels_B.max() < classes
    assert torch.equal(next(noise.train_batches(128, epoch=0))[0], images_BCHW)
    assert not torch.equal(next(noise.train_batches(128, epoch=1))[0], images_BCHW)
    assert len(next(noise.train_batches(2, epoch=0))[0]) == 2


def test_no_noise_for_a_set_whose_shape_is_not_known() -> None:
    assert stand_in(DataConfig(name="imagefolder", root=Path("none")), "cpu") is None
    assert stand_in(DataConfig(name="digits"), "cpu") is None
    assert stand_in(DataConfig(name="cifar10", image_size=64), "cpu") is None


def printed(*words: str) -> str:
    result = CliRunner().invoke(main, ["train", *words, "--print-config"])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("name", own_recipes())
def test_printed_settings_are_a_recipe_of_the_same_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(printed(name, "--data-root", "2020-01-01", "--lr", "1e-05", "--seed", "3"))
    config = choose_config(str(tmp_path / "mine.yaml"), {})
    assert config == choose_config(name, {"data_root": "2020-01-01", "lr": 1e-05, "seed": 3})


def test_a_bare_train_is_the_demo() -> None:
    assert printed() == printed("digits") and printed("--seed", "1", "--device", "cpu") == printed(
        "digits", "--seed", "1", "--device", "cpu"
    )
    assert "epochs: 200" in printed("--arch", "resnet32"), "who says what to train gets what the help says"
    result = CliRunner().invoke(main, ["train", "--print-config", "--dry-run"])
    assert result.exit_code == 1
    assert result.output == "Error: --print-config prints the settings as YAML and stops; leave out --dry-run\n"
