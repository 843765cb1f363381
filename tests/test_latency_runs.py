"""Runs whose peers are for a latency, by a clock without an engine: settings, records, resuming. Takes 10 s.

Each training is one epoch of 130 digits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from resizables import FakeClock
from training import stopping, train

from wmlc import run as runs
from wmlc.cli import main
from wmlc.compress import session
from wmlc.compress.config import settle
from wmlc.compress.recipes import choose_config
from wmlc.compress.session import resume_run, start_run
from wmlc.errors import InputError, Stopped
from wmlc.models.checkpoint import load_network, read_spec
from wmlc.records import LatencyPlan
from wmlc.run import Run

TINY: dict[str, Any] = {
    "train_images": 130, "epochs": 1, "batch_size": 64, "warmup_epochs": 0.5, "lr": 0.05, "divisor": 4,
    "baseline": False, "share": "none",
}  # fmt: skip


def layer_ms(place: int, into: int, out: int) -> float:
    return 0.005 + 1e-5 * into * out


def slower(counts_G: np.ndarray, ms: float) -> float:
    return 1.1 * ms


def clock() -> FakeClock:
    return FakeClock(layer_ms, slower)


def start(root: Path, **settings: Any) -> Run:
    return start_run(settle({**TINY, **settings}), root, force=False, clocks=lambda config: clock())


def budgets(*shares: float) -> tuple[float, ...]:
    """Shares of what the whole ResNet-20 takes by that clock, milliseconds."""
    return tuple(round(share * FULL_MS, 4) for share in shares)


FULL_MS = 1.1 * (0.05 + sum(0.005 + 1e-5 * into * out for into, out in (
    (1, 16), *[(16, 16)] * 6, (16, 32), *[(32, 32)] * 5, (16, 32), (32, 64), *[(64, 64)] * 5, (32, 64), (64, 10)
)))  # fmt: skip


def plan_of(run: Run) -> LatencyPlan:
    """What the run's config.json says that its peers are for; family.json says the same, if there is one."""
    plan = runs.read_config(run).latency
    assert plan is not None
    return plan


def assert_peers_have_the_widths(run: Run) -> None:
    plan, family = plan_of(run), runs.read_family(run)
    assert family.latency == plan and len(family.peers) == len(plan.peers)
    for own, peer in zip(plan.peers, family.peers, strict=True):
        modules = dict(load_network(run.network(own.peer)).named_modules())
        for name, count in own.counts.items():
            if count:
                assert modules[name].weight.shape[0] == count, (own.peer, name)
            else:  # its block is left out
                assert name not in modules, (own.peer, name)
        assert peer.achieved_ratio == pytest.approx(1 - own.ms / plan.full_ms)
        assert peer.ratio == pytest.approx(1 - own.budget_ms / plan.full_ms, abs=1e-4)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two peers for a latency."""
    return start(tmp_path_factory.mktemp("runs") / "run", max_latency_ms=budgets(0.75, 0.5))


def test_a_run_records_what_its_peers_are_for(planned: Run) -> None:
    plan, settings = plan_of(planned), runs.read_config(planned).settings
    assert plan.full_ms == pytest.approx(FULL_MS)
    assert [own.budget_ms for own in plan.peers] == list(budgets(0.5, 0.75)) == list(settings.max_latency_ms)
    assert all(0.95 * own.budget_ms <= own.ms <= own.budget_ms for own in plan.peers)
    assert settings.ratio_of == "latency" and settings.ratios == pytest.approx((0.5, 0.25), abs=1e-3)
    assert settle(vars(settings)) == settings, "settled settings settle to themselves"


def test_its_peers_have_the_widths_of_the_plan(planned: Run) -> None:
    assert_peers_have_the_widths(planned)


@pytest.mark.parametrize("share", ["none", "stage1"])
def test_a_stopped_run_keeps_its_widths_without_any_clock(share: str, tmp_path: Path) -> None:
    with stopping(session, "train_phase"), pytest.raises(Stopped, match="--resume"):
        start(tmp_path / "run", max_latency_ms=budgets(0.7, 0.8), share=share)
    before = plan_of(Run(tmp_path / "run"))
    run = resume_run(Run(tmp_path / "run"))
    assert plan_of(run) == before
    assert_peers_have_the_widths(run)


def test_prune_finetune_keeps_the_widths_that_were_planned(tmp_path: Path) -> None:
    run = start(
        tmp_path / "run", max_latency_ms=budgets(0.6), method="prune-finetune", baseline=True, finetune_epochs=1
    )
    assert_peers_have_the_widths(run)


def test_from_a_start_an_uncut_peer_stays_and_a_run_goes_on(tmp_path: Path) -> None:
    """Ratios of a latency with 0 among them: the uncut peer is asked for alone, of a run that has no prices any more."""
    first = train(tmp_path / "first", **{**TINY, "ratios": (0.0,), "baseline": True, "share": None})
    own = {**TINY, "start": str(first.root / "baseline"), "ratio_of": "latency", "ratios": (0.4, 0.0)}
    own["baseline"] = True
    with stopping(session, "train_phase"), pytest.raises(Stopped, match="--resume"):
        start(tmp_path / "run", **own)
    assert (tmp_path / "run" / "baseline").is_dir(), "for other runs of a sweep, before the first step"
    run = resume_run(Run(tmp_path / "run"))
    assert_peers_have_the_widths(run)
    cut, uncut = runs.read_family(run).peers
    baseline = runs.read_family(run).baseline
    assert baseline is not None and baseline.top1 == uncut.top1
    assert uncut.achieved_ratio == 0 and cut.left_out == read_spec(run.network(1)).left_out != []
    # the uncut one shares no stage, and those that are cut are planned under the tree that they have without it
    five = {"ratios": (0.3, 0.27, 0.24, 0.08, 0.0), "share": "tree", "budget": "uniform", "epochs": 0}
    assert_peers_have_the_widths(start(tmp_path / "five", **own | five))


def dry_run(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr("wmlc.cli._clock", lambda config, directory, force=False: clock())
    plain = ["--train-images", "130", "--batch-size", "64", "--divisor", "4", "--share", "none", "--dry-run"]
    return CliRunner().invoke(main, ["train", *plain, *words])


def test_a_dry_run_prints_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ",".join(map(str, budgets(0.5, 0.75)))
    result = dry_run(monkeypatch, "--max-latency-ms", asked, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    plan = record["latency"]
    assert plan["full_ms"] == pytest.approx(FULL_MS) and plan["at"]["engine"] == "ort"
    assert [own["budget_ms"] for own in plan["peers"]] == list(budgets(0.5, 0.75))
    assert all(own["ms"] <= own["budget_ms"] and own["macs_cut_ms"] > 0 for own in plan["peers"])
    assert [own["peer"] for own in record["peers"]] == [1, 2]
    shown = " ".join(dry_run(monkeypatch, "--max-latency-ms", asked).output.split())
    assert "milliseconds in ort 1.2, fp32, 1 thread, batch 1: the whole network takes" in shown
    assert "cut by MACs" in shown and "speed-up" in shown


def test_a_dry_run_of_shares_with_an_uncut_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    result = dry_run(monkeypatch, "--ratio-of", "latency", "--ratios", "0.3,0.5,0", "--json")
    assert result.exit_code == 0, result.output
    budgets_ms = [own["budget_ms"] for own in json.loads(result.stdout)["latency"]["peers"]]
    assert budgets_ms == pytest.approx([0.5 * FULL_MS, 0.7 * FULL_MS, FULL_MS])


def test_a_dry_run_of_what_is_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    result = dry_run(monkeypatch, "--max-latency-ms", "0.01")
    assert result.exit_code == 1
    last = result.output.splitlines()[-1]
    assert last.startswith("Error: peer 1 cannot come down to 0.01 ms under --share none: it takes ")
    assert "--divisor 2" in last and "--latency-precision int8" in last


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["--max-latency-ms", "3", "--ratios", "0.5"],
            "--ratios and --max-latency-ms say each how small peers shall be; pass one of them",
        ),
        (
            ["--max-latency-ms", "3", "--ratio-of", "macs"],
            "--max-latency-ms asks for milliseconds, and --ratio-of for others; pass one of them",
        ),
        (["--max-latency-ms", "0"], "max_latency_ms must be 1 to 8 numbers of milliseconds above 0, got [0.0]"),
        (
            ["--max-latency-ms", "3,-1"],
            "max_latency_ms must be 1 to 8 numbers of milliseconds above 0, got [3.0, -1.0]",
        ),
        (["--max-latency-ms", "nan"], "max_latency_ms must be 1 to 8 numbers of milliseconds above 0, got [nan]"),
        (
            ["--max-latency-ms", "3,nan"],
            "max_latency_ms must be 1 to 8 numbers of milliseconds above 0, got [3.0, nan]",
        ),
        (["--max-latency-ms", "inf"], "max_latency_ms must be 1 to 8 numbers of milliseconds above 0, got [inf]"),
        (
            ["--max-latency-ms", "1,2,3,4,5,6,7,8,9"],
            "max_latency_ms must be 1 to 8 numbers of milliseconds above 0, got [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, "
            "8.0, 9.0]",
        ),
        (
            ["--max-latency-ms", "3", "--method", "self-distillation"],
            "self-distillation has an exit at each stage and cuts nothing; leave out latencies",
        ),
        (
            ["--ratio-of", "latency", "--method", "self-distillation"],
            "self-distillation has an exit at each stage and cuts nothing; leave out latencies",
        ),
        (
            ["--max-latency-ms", "3", "--trunk-ratio", "0.5"],
            "trunk_ratio is a share of params or MACs; leave it out where a latency is asked for",
        ),
        (["--max-latency-ms", "3", "--threads", "0"], "threads must be at least 1, got 0"),
        (["--max-latency-ms", "3", "--batch", "0"], "batch must be at least 1, got 0"),
        (
            ["--max-latency-ms", "3", "--latency-precision", "fp8"],
            "latency_precision must be one of fp32, fp16, int8, got 'fp8'",
        ),
        (["--max-latency-ms", "3", "--engine", "tflite"], "--engine must be one of "),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["train", "--dry-run", "--train-images", "130", *words])
    assert result.exit_code == 1, result.output
    assert result.output.startswith(f"Error: {said}") and result.output.count("\n") == 1


@pytest.mark.parametrize(
    "more, said",
    [("ratios: [0.5]", "--ratios and --max-latency-ms say each"), ("ratio_of: macs", "--max-latency-ms asks")],
)
def test_a_recipe_says_once_how_small_peers_shall_be(more: str, said: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"data: digits\nmax_latency_ms: [3, 5]\n{more}\n")
    with pytest.raises(InputError, match=f"^{said}"):
        choose_config(str(recipe), {})
    config = choose_config(str(recipe), {"max_latency_ms": (4.0,)})
    assert config.max_latency_ms == (4.0,) and config.ratio_of == "latency"
    recipe.write_text(CliRunner().invoke(main, ["train", "--max-latency-ms", "4", "--print-config"]).stdout)
    assert choose_config(str(recipe), {}) == choose_config(None, {"max_latency_ms": (4.0,)})


def test_from_python_an_engine_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        train(tmp_path / "run", ratio_of="latency", ratios=(0.5,))
    assert str(refused.value) == "ratios of a latency need an engine to measure it in; train with 'wmlc train'"
    assert not (tmp_path / "run").exists()


def test_budgets_are_sorted_and_stand_for_as_many_peers() -> None:
    config = settle({"max_latency_ms": (8.0, 3.0, 5.0)})
    assert config.max_latency_ms == (3.0, 5.0, 8.0) and config.ratio_of == "latency"
    assert len(config.ratios) == 3 and list(config.ratios) == sorted(config.ratios, reverse=True)
    assert settle(vars(config)) == config


@pytest.mark.parametrize("words, options", [
    (["train", "--help"], ["--max-latency-ms MS,MS,…", "--ratio-of params|macs|latency"]),
    (["train", "--help-all"], ["--engine ort|openvino|torch|trt", "--latency-precision", "--latency-tables DIR"]),
    (["latency", "--help"], ["--arch", "--image-size", "--engine", "--seconds S", "--out DIR", "--json", "--force"]),
])  # fmt: skip
def test_help_names_the_options(words: list[str], options: list[str]) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0
    shown = " ".join(result.output.split())
    assert all(option in shown for option in options), shown
