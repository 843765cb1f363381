"""What is said of a shipped model: `manifest.json` for programs, `model_card.md` for people."""

from __future__ import annotations

from pathlib import Path

from wmlc.export.config import ShipConfig
from wmlc.export.layouts import Model
from wmlc.export.naming import data_name
from wmlc.files import sha256
from wmlc.forms import INPUT, OUTPUT
from wmlc.records import (
    Cost,
    Manifest,
    NetworkSpec,
    PlanRecord,
    Preprocess,
    ShippedAccuracy,
    ShippedLatency,
    ShippedNetwork,
    ShippedPlan,
    Tensor,
)
from wmlc.run import BASELINE, Run, provenance

CARD_FILE = "model_card.md"


def make_manifest(
    model: Model, file: Path, spec: NetworkSpec, run: Run, *,
    accuracy: ShippedAccuracy, latency: ShippedLatency | None, cost: Cost, config: ShipConfig, plan: PlanRecord | None,
) -> Manifest:  # fmt: skip
    """Everything that a client, or whoever answers for the deployment, must know of one version of a model.

    Args: the `file` that is copied; the record of the `plan` that it is, if so.
    """
    channels, height, width = spec.input_shape
    precision, _, target = config.form.partition("-")
    about, pixels = spec.about, config.with_preprocess
    return Manifest(
        model=model.name,
        version=model.version,
        file=model.file_name,
        sha256=plan.plan_sha256 if plan else sha256(file),
        file_bytes=file.stat().st_size,
        license=config.license,
        server="triton" if config.to == "kserve" else config.to,
        input=Tensor(
            name=INPUT,
            dtype="uint8" if pixels else "float32",
            shape=[-1, height, width, channels] if pixels else [-1, channels, height, width],
            layout="NHWC" if pixels else "NCHW",
        ),
        output=Tensor(name=OUTPUT, dtype="float32", shape=[-1, len(spec.class_names)], meaning="logits"),
        preprocess=Preprocess(
            inside=pixels,
            formula="(pixels / scale - mean) / std, a channel each",
            scale=255,
            mean=spec.mean,
            std=spec.std,
            size=(height, width),
            channels="RGB" if channels == 3 else "gray",
            framing=spec.framing,
        ),
        labels=spec.class_names,
        max_batch=config.max_batch,
        architecture=spec.arch,
        arch_args=spec.arch_args,
        plan=None
        if plan is None
        else ShippedPlan(**{key: getattr(plan, key) for key in ShippedPlan.__dataclass_fields__}),
        network=ShippedNetwork(
            peer=about.peer,
            ratio=about.ratio,
            achieved_ratio=about.achieved_ratio,
            ratio_of=about.ratio_of,
            method=about.method,
            data=None if about.data is None else data_name(run, spec),
            seed=about.seed,
            params=cost.params,
            macs=cost.macs,
            start=about.start,
            trained=about.start is None or bool(about.training_macs),
        ),
        precision=precision,
        target=target or None,
        accuracy=accuracy,
        latency=latency,
        run=run.root.resolve().name,
        trained_at_commit=about.commit,
        shipped=provenance(),
    )


def model_card(manifest: Manifest) -> str:
    """The manifest as a page of Markdown."""
    network, accuracy = manifest.network, manifest.accuracy
    given, output, preprocess = manifest.input, manifest.output, manifest.preprocess
    lines = [
        f"# {manifest.model}, version {manifest.version}",
        "",
        f"{manifest.architecture}{f' ({manifest.arch_args})' if manifest.arch_args else ''}, {_which(network)}, "
        f"{_origin(network)}; {manifest.precision}"
        + (f" for the {manifest.target}" if manifest.target else "")
        + f"; license: {manifest.license or 'not stated'}.",
        "",
        "| | |",
        "| --- | --- |",
        f"| parameters | {network.params:,} |",
        f"| MACs | {network.macs:,} |",
        f"| file | {manifest.file_bytes:,} bytes, sha256 {manifest.sha256[:16]}… |",
        f"| top-1 | {accuracy.top1:.2f} % of {accuracy.test_images:,} test images, through {accuracy.engine} |"
        if accuracy.top1 is not None
        else "| top-1 | not measured |",
        f"| drop against {_baseline(manifest)} | {accuracy.top1_drop:.2f} points |"
        if accuracy.top1_drop is not None
        else "| drop against the baseline | not measured |",
        *_latency_lines(manifest),
        *_plan_lines(manifest.plan),
        "",
        "## How to call it",
        "",
        f"Input `{given.name}`: {given.dtype} {given.shape}, {given.layout}"
        + (f", at most {manifest.max_batch} images a request. " if manifest.server == "triton" else ". ")
        + (
            f"A picture as {preprocess.channels} pixels of 0 to 255, {preprocess.framing.words}; scaling and "
            "normalisation are inside."
            if preprocess.inside
            else f"A picture as {preprocess.channels} pixels, {preprocess.framing.words}, then "
            f"{preprocess.formula}, with scale {preprocess.scale}, mean {_numbers(preprocess.mean)}, "
            f"std {_numbers(preprocess.std)}."
        ),
        f"Output `{output.name}`: {output.dtype} {output.shape}, {output.meaning}.",
        "",
        "## What it does not say",
        "",
        "Accuracy is of this data set's test images, and latency of the machine named above; another machine, another "
        "number. `manifest.json` has all of this for programs.",
        "",
    ]
    return "\n".join(lines)


def _which(network: ShippedNetwork) -> str:
    if network.peer is None:
        return "the weighted ensemble of a family"
    if network.peer == BASELINE:
        return "the unpruned baseline"
    got = "" if network.achieved_ratio is None else f", {network.achieved_ratio:.1%} reached"
    return f"peer {network.peer} of a family, pruned by {network.ratio:.0%} of its {network.ratio_of}{got}"


def _origin(network: ShippedNetwork) -> str:
    """How it came about; the baseline of a run from a start is that start as it stands, if it was not trained on."""
    start = f" from `{network.start}`" if network.start else ""
    if network.peer == BASELINE and not network.trained:
        return f"`{network.start}` as it stands, measured on {network.data}"
    if network.peer == BASELINE:
        return f"trained alone on {network.data}{start}"
    return f"trained on {network.data} by the method `{network.method}`{start}"


def _plan_lines(plan: ShippedPlan | None) -> list[str]:
    """Where a plan can be loaded."""
    if plan is None:
        return []
    later = " and later" if plan.version_compatible else ""
    others = " and other GPUs from Ampere on" if plan.hardware_compatible else " alone"
    return [
        f"| plan | of TensorRT {plan.tensorrt}{later}, for {plan.gpu} (compute capability "
        f"{plan.compute_capability}){others} |"
    ]


def _baseline(manifest: Manifest) -> str:
    """What it is compared with; without a precision that of all of them, fp32."""
    precision = manifest.accuracy.baseline_precision
    return "the baseline" if precision == "fp32" else f"the baseline in {precision}"


def _latency_lines(manifest: Manifest) -> list[str]:
    latency = manifest.latency
    if latency is None:
        return ["| latency | not measured |"]
    times, speedup = latency.ms, latency.speedup
    other = "" if latency.of_sha256 == manifest.sha256 else ", of the same network without preprocessing inside"
    where = f"{latency.provider} on {latency.machine}, {latency.threads} thread(s)"
    within = "" if (own := latency.p50_interval) is None else f" [{own.low:.3f}, {own.high:.3f}]"
    lines = [
        f"| latency, batch {latency.batch} | p50 {times.p50:.3f} ms{within}, p99 {times.p99:.3f} ms, "
        f"n = {times.n:,}; {where}{other} |"
    ]
    if latency.latency_budget_ms is not None:
        kept = "met" if latency.budget_met else "**missed**"
        lines.append(f"| latency budget | {latency.latency_budget_ms:.3f} ms, {kept} by p50 |")
    if speedup is None:
        return [*lines, "| speed-up over the baseline | not measured |"]
    shown = f"{speedup.median:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"
    itself = manifest.network.peer == BASELINE and manifest.precision == manifest.accuracy.baseline_precision
    doubt = ", slower" if speedup.high < 1 else ", not shown to be faster" if speedup.low <= 1 and not itself else ""
    return [*lines, f"| speed-up over {_baseline(manifest)} | {shown}{doubt} |"]


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
