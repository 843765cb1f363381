"""Records made by hand, for tests that need a run or a bench but none of the work behind them.

A run has peers of the asked ratios, the last one whole by default; each of its numbers can be given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wmlc import records
from wmlc.records import (
    About,
    Baseline,
    Bench,
    Branch,
    Cost,
    DataRecord,
    DeviceRecord,
    EngineAt,
    Environment,
    Epoch,
    Family,
    Framing,
    Interval,
    Latency,
    LatencyPlan,
    LayerTime,
    NetworkSpec,
    Peer,
    PeerLatency,
    Profile,
    Row,
    RunRecord,
    Speedup,
    TestData,
)
from wmlc.run import Run, append_epoch, peer_name
from wmlc.settings import BenchSettings, TrainConfig

TIME = "2026-01-02T03:04:05+00:00"
FULL = Cost(10_000, 1000)  # the unpruned network's
TEST_IMAGES = 10_000


def made_framing(side: int) -> Framing:
    """Of small images, which are resized to that size and not cut."""
    return Framing(shorter_side=None, size=(side, side), interpolation="bilinear")


def made_settings(top1: Sequence[float] = (85.0, 90.0), **settings: Any) -> TrainConfig:
    """The settings of a run of as many peers as there are `top1`."""
    plain = {"data": "cifar10", "ratios": (*[0.7] * (len(top1) - 1), 0.0), "epochs": 6, "batch_size": 64, "alpha": 0.1}
    plain |= {"weight_lr": 0.1, "reweigh_every": 50, "warmup_epochs": 1.0}
    return TrainConfig(**{**plain, **settings})


def made_family(
    top1: Sequence[float] = (85.0, 90.0), baseline: float | None = 90.0, *, settings: TrainConfig | None = None,
    params: Sequence[int] = (), macs: Sequence[int] = (), stages: dict[str, list[int]] | None = None,
    train: int = 900, test: int = TEST_IMAGES, **changes: Any,
) -> Family:  # fmt: skip
    """What came out of a run whose peers, and whose `baseline`, have this top-1; MACs are 1/10 of the parameters."""
    asked = settings or made_settings(top1)
    macs = macs or (*[400] * (len(top1) - 1), FULL.macs)
    params = params or [10 * count for count in macs]
    peers = [
        Peer(peer=k, ratio=ratio, achieved_ratio=ratio, params=p, macs=m, top1=score,
             stage_channels=stages or {"stem": [16]}, shared_with={"stem": list(range(1, len(top1) + 1))})
        for k, (score, ratio, p, m) in enumerate(zip(top1, asked.ratios, params, macs, strict=True), 1)
    ]  # fmt: skip
    whole = None if baseline is None else Baseline(
        peer=0, ratio=0.0, achieved_ratio=0.0, params=FULL.params, macs=FULL.macs, top1=baseline, data=asked.data,
        method="wml", ratio_of=asked.ratio_of, seed=asked.seed, epochs=asked.epochs, train_images=train,
        test_images=test, commit=None, best_epoch=1, seconds=10.0,
    )  # fmt: skip
    family = Family(
        arch=asked.arch, method=asked.method, share=asked.share or "tree", ratio_of=asked.ratio_of, divisor=8,
        trunk_ratio=0.0, epochs=asked.epochs, full=FULL,
        data=DataRecord(name=asked.data, class_names=["cat", "dog"], input_shape=(3, 32, 32), mean=[0.5] * 3,
                        std=[0.25] * 3, framing=made_framing(32), train=train, held_out=100, small=True),
        tree=[Branch("stem", "stem", tuple(range(1, len(top1) + 1)), None)], peers=peers,
        ensemble_top1=top1[-1] + 1, average_ensemble_top1=top1[-1], peer_weights=[1 / len(top1)] * len(top1),
        best_epoch=1, seconds=600.0, baseline=whole, notes=[],
    )  # fmt: skip
    return replace(family, **changes)


def made_epoch(epoch: int, top1: Sequence[float], **changes: Any) -> Epoch:
    """A line of metrics.jsonl; the ensemble is a point above the best peer, all weights are equal."""
    plain = Epoch(
        epoch=epoch, seconds=1.0, images_per_s=900.0, train_loss=1 / epoch, top1=list(top1),
        ensemble_top1=max(top1) + 1, average_ensemble_top1=max(top1), peer_weights=[1 / len(top1)] * len(top1), lr=0.1,
    )  # fmt: skip
    return replace(plain, **changes)


def made_record(settings: TrainConfig, command: str = "wmlc train") -> RunRecord:
    """What a run was started with."""
    device = DeviceRecord(name="cpu", bf16=False)
    return RunRecord(time=TIME, commit="c0ffee", versions={"python": "3.12"}, command=command, settings=settings,
                     device=device, threads=1)  # fmt: skip


def made_run(
    root: Path, settings: TrainConfig, family: Family | None, *, epochs: Sequence[Epoch] = (),
    baseline_epochs: Sequence[Epoch] = (), bench: Bench | None = None, test: int = TEST_IMAGES,
) -> Run:  # fmt: skip
    """Write a run as `wmlc train` and `wmlc bench` leave it, without weights; without a `family` it is not finished."""
    run = Run(root)
    run.network(1).mkdir(parents=True)
    records.write(run.config, made_record(settings))
    spec = NetworkSpec(arch=settings.arch, class_names=["cat", "dog"], input_shape=(3, 32, 32), mean=[0.5] * 3,
                       std=[0.25] * 3, widths={}, framing=made_framing(32), about=About(test_images=test))  # fmt: skip
    records.write(run.network(1) / "spec.json", spec)
    if family is not None:
        records.write(run.family, family)
    for phase, lines in (("family", epochs), ("baseline", baseline_epochs)):
        for line in lines:
            append_epoch(run, phase, line)
    if bench is not None:
        records.write(run.bench, bench)
    return run


def made_latency(p50: float, **changes: Any) -> Latency:
    """Times of 1000 calls."""
    plain = Latency(mean=p50, min=0.9 * p50, p50=p50, p90=1.2 * p50, p99=1.5 * p50, std=0.1 * p50, n=1000)
    return replace(plain, **changes)


def made_row(peer: int = 0, p50: float | None = 2.0, speedup: tuple[float, float, float] | None = None,
             **changes: Any) -> Row:  # fmt: skip
    """A network in a cell; `speedup` is (low, median, high)."""
    cut = 1 if peer else 0
    plain = Row(
        peer=peer, name=peer_name(peer), ratio=0.7 * cut, achieved_ratio=0.7 * cut, engine="ort", precision="fp32",
        threads=1, batch=1, device="cpu", provider="CPUExecutionProvider", params=FULL.params, macs=FULL.macs,
        flops=2 * FULL.macs, mac_ratio=1.0, file_bytes=40_000, file_sha256="0" * 64,
        latency_ms=None if p50 is None else made_latency(p50),
        p50_interval=None if p50 is None else Interval(low=0.95 * p50, high=1.05 * p50), compute_ms=None,
        throughput_per_s=None if p50 is None else 1000 / p50,
        speedup=None if speedup is None else made_speedup(*speedup), paid_out=None, load_ms=12.0, first_ms=5.0,
        peak_memory_bytes=90_000_000, engine_memory_bytes=None, top1=90.0, top1_drop=0.0, scenarios={}, warm_up=None,
        logits_apart=None, on_front=None, notes=[],
    )  # fmt: skip
    return replace(plain, **changes)


def made_speedup(low: float, median: float, high: float) -> Speedup:
    """Of 16 rounds in 8 launches."""
    return Speedup(low=low, median=median, high=high, n=16, launches=8)


def made_layer(
    layer: str, ms: float, macs: int = 64, channels: tuple[int, int] | None = (8, 8), **changes: Any
) -> LayerTime:
    """A convolution of a profile."""
    return replace(
        LayerTime(layer=layer, op="Conv", ms=ms, channels=channels, macs=macs, bytes=100, intensity=2.0), **changes
    )


def made_profile(peer: int, layers: Sequence[LayerTime], **changes: Any) -> Profile:
    """A network's layers in the cell of `made_row`."""
    plain = Profile(
        engine="ort", threads=1, batch=1, peer=peer, precision="fp32", name=peer_name(peer),
        profiled_ms=sum(layer.ms for layer in layers), p50_ms=None, layers=list(layers),
    )  # fmt: skip
    return replace(plain, **changes)


def made_plan(budgets_ms: Sequence[float] = (0.6,), full_ms: float = 1.0, **at: Any) -> LatencyPlan:
    """Budgets of the first peers, each predicted 2 % and measured 1 % below, in the cell of `made_row`."""
    plain = {"engine": "ort", "version": "1.31.1", "precision": "fp32", "threads": 1, "batch": 1, "device": "cpu"}
    peers = [
        PeerLatency(peer=peer, budget_ms=ms, predicted_ms=0.98 * ms, ms=0.99 * ms, low=0.97 * ms, high=1.01 * ms,
                    macs_cut_ms=1.2 * ms, counts={"stem": 8})
        for peer, ms in enumerate(budgets_ms, 1)
    ]  # fmt: skip
    engine_at = EngineAt(**{**plain, "cpu": "a CPU", "gpu": None, **at})
    return LatencyPlan(at=engine_at, full_ms=full_ms, peers=peers)


def made_bench(rows: Sequence[Row], **changes: Any) -> Bench:
    """A bench of `rows` on a CPU."""
    environment = Environment(
        time=TIME, commit="c0ffee", versions={"python": "3.12"}, cpu="a CPU", gpu=None, devices={"ort": "cpu"},
        plan_machine=None, cores=2, pinning="each engine's process", system="Linux", load_average_before=0.1, threads=[1],
    )  # fmt: skip
    plain = Bench(
        command="wmlc bench", environment=environment, settings=BenchSettings(), notes=[], rows=list(rows), pareto=[],
        data=TestData(name="cifar10", test_images=TEST_IMAGES), profiles=[],
    )  # fmt: skip
    return replace(plain, **changes)


def made_trained(
    root: Path, top1: Sequence[float], baseline: float | None = 80.0, *, images: int = 900, test: int = TEST_IMAGES,
    macs: Sequence[int] = (), seconds: float = 600.0, finished: bool = True, lines: Sequence[Epoch] = (),
    cost: float | None = None, baseline_cost: float | None = None, bench: Bench | None = None, **settings: Any,
) -> Path:  # fmt: skip
    """Write a run of peers with this top-1 and these `settings`; where it lies.

    Args: its `cost` and its baseline's, in epochs of the unpruned network; None: not counted.
    """
    asked = made_settings(top1, **settings)
    family = made_family(top1, baseline, settings=asked, macs=macs, train=images, test=test, seconds=seconds,
                         training_macs=made_cost(cost, images))  # fmt: skip
    if family.baseline:
        whole = replace(family.baseline, training_macs=made_cost(baseline_cost, images))
        family = replace(family, baseline=replace(whole, best_epoch=0, seconds=0.0) if asked.start else whole)
    return made_run(root, asked, family if finished else None, epochs=lines, bench=bench, test=test).root


def made_cost(epochs: float | None, images: int = 900) -> float | None:
    """Training MACs of so many epochs of the unpruned network: a forward, and a backward of twice as many."""
    return None if epochs is None else epochs * 3 * FULL.macs * images
