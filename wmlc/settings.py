"""What a run and a bench are asked for: their settings, each with its default, its role and its option's help.

Records hold them, `options.py` makes the command line of them, `compress/config.py` and `bench/config.py` check what a
caller gives. Free of torch, so that `--help` is quick.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

# What a setting is part of. Runs that agree in the first four have the same baseline.
Role = Literal[
    "data",  # which images
    "network",
    "training",  # of any network
    "seed",
    "family",  # what is cut and shared, and how the peers teach each other
    "method",  # a constant of one method's loss, which another method has of its own
    "place",  # where it was computed: nothing that a result should depend on
    "incidental",  # how it was fetched or begun: the very same run
]
OF_A_BASELINE: tuple[Role, ...] = ("data", "network", "training", "seed")
AUTO = "auto"  # a learning rate that a run finds itself
LR_OF_A_START = 0.01  # the default there, as a rate too high undoes what was trained
BUDGET = "budget"  # of a peer: the milliseconds that it was cut for
LATENCY = "latency"  # that a ratio is of: milliseconds, measured on this machine
SENSITIVITY = "sensitivity"  # a budget: by what a trained network's answers lose, measured
ENGINE_SETTINGS = ("engine", "latency_precision", "latency_device", "threads", "batch", "latency_tables")
TRAINED_ON = "trained"  # a baseline: the start, trained on for as long as the family
CALLERS_ARCH = "WMLC_ARCH"  # in the environment: code of the caller's own, which they have named (--arch)
STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}  # how pydantic reads settings and records


def setting(
    default: Any, text: str, *, role: Role | None = None, group: str = "", common: bool = False,
    flag: str | None = None, metavar: str | None = None, shown: str | None = None,
) -> Any:  # fmt: skip
    """A field of a configuration that is an option of a command.

    Args: its help `text`; the heading that it stands under; whether the short help shows it; its option where that is
    not called as the field; what the help calls its value; and its default in words where it has no value.
    """
    option = {"help": text, "group": group, "common": common, "flag": flag, "metavar": metavar, "shown": shown}
    return dataclasses.field(default=default, metadata={"role": role, **option})


def option_of(config: Any, name: str) -> str:
    """The option that sets a field of a configuration, as it is typed: --max-latency-ms."""
    return config.__dataclass_fields__[name].metadata["flag"] or f"--{name.replace('_', '-')}"


DATA, FAMILY, LATENCY_HEADING, TEACHING, TRAINING = "Data", "Family", "Latency", "Teaching", "Training"
OF_WIDTHS = (FAMILY, LATENCY_HEADING)  # the headings of what decides them, images apart


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one run, as `config.json` records them; a recipe names any of them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    data: str = setting(
        "digits",
        "Data set: digits, cifar10, cifar100, imagefolder, imagenet, hf:DIR (parquet) or wds:DIR (tar shards, or a "
        "pattern of them).",
        role="data",
        group=DATA,
        common=True,
    )
    data_root: str | None = setting(
        None, "Where the data set lies; an imagefolder has train/ and val/ or test/ below it.",
        role="place", group=DATA, common=True, metavar="DIR",
    )  # fmt: skip
    skip_broken: bool = setting(
        False, "Leave out pictures that cannot be read, which are counted; otherwise the first one ends the run.",
        role="data", group=DATA,
    )  # fmt: skip
    download: bool = setting(False, "Fetch CIFAR if it is missing.", role="incidental", group=DATA)
    image_size: int | None = setting(
        None, "Image side in pixels.", role="data", group=DATA, shown="the files' own if small, else 224"
    )
    interpolation: str | None = setting(
        None, "How pictures are resized.", role="data", group=DATA, shown="the start's own, else bilinear"
    )
    crop: float | None = setting(
        None, "Share of the shorter side of a picture that is cut out of its middle to be tested on.",
        role="data", group=DATA, shown="the start's own, else 0.875 of large pictures; small ones are not cut",
    )  # fmt: skip
    normalise: str | None = setting(
        None, "What is done to pixels scaled to 0 … 1: imagenet's or the images' own mean and deviation, half (to -1 "
        "… 1), or MEAN/STD, a number or one a channel.",
        role="data", group=DATA, common=True, metavar="MEAN/STD|imagenet|half|data",
        shown="the start's own, else data",
    )  # fmt: skip
    train_images: int | None = setting(
        None, "Use a fixed random subset of so many training images.", role="data", group=DATA
    )
    held_out: float = setting(
        0.1, "Share of train held out for choosing checkpoints and for the peer weights.", role="data", group=DATA
    )
    workers: int = setting(2, "Processes that decode large images.", role="incidental", group=DATA)

    arch: str = setting(
        "resnet20", "resnet20|32|56 (16 filters), resnet18|34|50|101, mobilenet_v2, torchvision:NAME, timm:NAME "
        "('wmlc list --networks TEXT' finds them), FILE.py:FACTORY or PACKAGE.MODULE:FACTORY.",
        role="network", group=FAMILY, common=True,
    )  # fmt: skip
    arch_args: str = setting(
        "", "Arguments for the constructor of a network that is not built in.",
        role="network", group=FAMILY, metavar="KEY=V,KEY=V",
    )  # fmt: skip
    start: str | None = setting(
        None, "Trained weights to begin from: .safetensors, .pth, a run's or a peer's directory, or pretrained, what "
        "torchvision and timm offer or your own factory makes.",
        role="network", group=FAMILY, common=True, metavar="FILE|DIR|pretrained", shown="random weights",
    )  # fmt: skip
    start_classes: str | None = setting(
        None, "What the outputs of the start are, a class a line in their order; imagenet: its 1,000 WordNet ids.",
        role="network", group=FAMILY, metavar="FILE|imagenet", shown="as the start itself says",
    )  # fmt: skip
    ratios: tuple[float, ...] = setting(  # empty, or None below: the method's own
        (), "Pruning ratio of each peer, up to 8.", role="family", group=FAMILY, common=True, metavar="R,R,…",
        shown="0.7,0.5,0.3,0; 0,0,0,0 for one and cl",
    )  # fmt: skip
    ratio_of: str = setting("params", "What a ratio is a share of.", role="family", group=FAMILY, common=True)
    max_latency_ms: tuple[float, ...] = setting(
        (), "Instead of ratios: the milliseconds that each peer may take, as measured on this machine.",
        role="family", group=LATENCY_HEADING, common=True, metavar="MS,MS,…",
    )  # fmt: skip
    paid_out: float | None = setting(
        None, "Each peer's speed-up is this many times its saving of MACs, at the least; 1: in full.",
        role="family", group=LATENCY_HEADING, shown="what loses least",
    )  # fmt: skip
    engine: str = setting(
        "ort", "What shall run the peers, where a latency or a share of one is asked for.", role="family",
        group=LATENCY_HEADING, metavar="ort|openvino|torch|trt|…",
    )  # fmt: skip
    latency_precision: str = setting(
        "fp32", "Arithmetic in the files that are timed, and are to be served.", role="family", group=LATENCY_HEADING
    )
    latency_device: str = setting("auto", "Where the engine runs.", role="family", group=LATENCY_HEADING)
    threads: int = setting(1, "CPU threads of the engine.", role="family", group=LATENCY_HEADING)
    batch: int = setting(1, "Images a call to the engine.", role="family", group=LATENCY_HEADING)
    latency_tables: str | None = setting(
        None, "Where 'wmlc latency' has put its tables.", role="place", group=LATENCY_HEADING, metavar="DIR",
        shown="the user's cache",
    )  # fmt: skip
    saliency: str = setting("snip", "Score that decides what is cut of random weights.", role="family", group=FAMILY)
    rank: str | None = setting(
        None, "Which channels of a layer go first: those of least group magnitude, of least first-order Taylor, or "
        "random ones, as a control.",
        role="family", group=FAMILY, shown="magnitude of trained weights, the saliency of random ones",
    )  # fmt: skip
    budget: str | None = setting(
        None, "How much each layer loses: the more, the less its snip, synflow, grasp or taylor scores add up to; "
        "uniform, every layer the same share; sensitivity, the more, the less a start's answers are measured to lose.",
        role="family", group=FAMILY,
        shown="sensitivity of a start, uniform of what prune-finetune trains, the saliency's of random weights",
    )  # fmt: skip
    blocks: str | None = setting(
        None, "By sensitivity, keep every residual block, or drop whole ones where answers lose less by that.",
        role="family", group=FAMILY, shown="drop where milliseconds are asked for, else keep",
    )  # fmt: skip
    share: str | None = setting(
        None, "tree, none, branches (all but the last stage), or the last stage that all peers share: stem, stage1, ….",
        role="family", group=FAMILY, shown="tree; branches for one; none for dml, kd, independent, and from a start",
    )  # fmt: skip
    join: str | None = setting(
        None, "What a shared stage gets of its peers' gradients: with the mean its steps are as large as those of a "
        "network trained alone, with the sum as many times as large as peers share it.",
        role="method", group=TEACHING, shown="mean; sum for one",
    )  # fmt: skip
    trunk_ratio: float = setting(
        0.0, "Cut the shared stages too, by this share, for every peer.", role="family", group=FAMILY
    )
    divisor: int = setting(
        8, "Keep channels at multiples of this: 8; 16 for AVX-512 CPUs; 32 for int8.", role="family", group=FAMILY
    )

    method: str = setting(
        "wml", "How the peers learn: wml, weighted mutual learning; wml-p, the same with equal weights; dml, one, cl "
        "and self-distillation, the methods that the paper compares with; independent, nobody teaches; kd, the trained "
        "start teaches; prune-finetune, the unpruned network trained, cut by magnitude and fine-tuned.",
        role="family", group=FAMILY, common=True,
    )  # fmt: skip
    teacher: str | None = setting(
        None, "What a trained start does besides being cut: it teaches as it stands, or as a peer that is trained on.",
        role="family", group=TEACHING, shown="frozen with a start for kd, wml and wml-p, else none",
    )  # fmt: skip
    reuse_teacher: int = setting(
        0, "Repeat the images of the first N epochs, as they were augmented, and what a frozen teacher made of them.",
        role="family", group=TEACHING, metavar="N",
    )  # fmt: skip
    alpha: float | None = setting(
        None, "Weight of the teaching against the labels.", role="method", group=TEACHING,
        shown="0.1; 0.5 for cl, kd, and by --weigh sources",
    )  # fmt: skip
    temperature: float | None = setting(
        None, "Softens what is taught.", role="method", group=TEACHING,
        shown="1; 2 for cl, kd, and by --weigh sources; 3 for one and self-distillation",
    )  # fmt: skip
    feature_loss: str | None = setting(
        None, "Let the stages of the frozen start, or else of the largest peer, teach too: by FitNets' hints, by "
        "attention transfer, or by the channels that a peer was cut from.",
        role="method", group=TEACHING,
        shown="channels for wml and wml-p from a frozen start, none with --reuse-teacher; else none",
    )  # fmt: skip
    feature_weight: float | None = setting(
        None,
        "Weight of that term.",
        role="method",
        group=TEACHING,
        shown="100 for hints, 1000 for attention, 10 for channels",
    )
    weight_lr: float | None = setting(  # η
        None, "Step of the mirror descent on the weights; for sources, scaled to the gradient's size.",
        role="family", group=TEACHING, shown="0.1; 0.4 for sources",
    )  # fmt: skip
    weigh: str | None = setting(
        None, "What is weighed: peers, as in the paper, each one's loss and teaching by one weight; or sources, of "
        "what each peer learns from: the labels, the start, every other peer.",
        role="family", group=TEACHING, shown="sources with a start, else peers",
    )  # fmt: skip
    reweigh_every: int | None = setting(
        None, "Training steps between two updates of the peer weights.", role="family", group=TEACHING,
        shown="50; 20 for sources",
    )  # fmt: skip

    finetune_epochs: int | None = setting(
        None, "Of prune-finetune, after the cut.", role="method", group=TRAINING, shown="what --as-long-as comes to"
    )
    finetune_lr: float | None = setting(
        None, "Peak learning rate of fine-tuning.", role="method", group=TRAINING, shown="lr / 10; lr from a start"
    )

    epochs: int = setting(200, "Passes over the training images.", role="training", group=TRAINING, common=True)
    steps: int | None = setting(
        None, "Training steps in all, of which the last epoch may be a part.",
        role="training", group=TRAINING, shown="whole epochs",
    )  # fmt: skip
    as_long_as: str | None = setting(
        None, "Take as many steps as cost the MACs that this method would take for so many epochs.",
        role="method", group=TRAINING, metavar="METHOD", shown="wml for prune-finetune",
    )  # fmt: skip
    batch_size: int = setting(128, "Images a step.", role="training", group=TRAINING, common=True)
    lr: float = setting(  # or auto, see below
        0.1, "Peak learning rate; auto, from a start: the best of three short trials on held-out images, which the "
        "run's steps pay for.",
        role="training", group=TRAINING, common=True, metavar="FLOAT|auto", shown="0.1; 0.01 from a start",
    )  # fmt: skip
    lr_auto: bool = setting(
        False, "Same as --lr auto; lr is then what was found.", role="training", group=TRAINING
    )  # fmt: skip
    momentum: float = setting(0.9, "SGD momentum.", role="training", group=TRAINING)
    nesterov: bool = setting(False, "Nesterov momentum.", role="training", group=TRAINING)
    weight_decay: float = setting(5e-4, "L2 penalty.", role="training", group=TRAINING)
    schedule: str = setting("cosine", "Learning-rate schedule.", role="training", group=TRAINING)
    warmup_epochs: float | None = setting(
        None, "Epochs of linear warm-up.", role="training", group=TRAINING, shown="1; 0 from a start"
    )
    clip: float | None = setting(None, "Clip the gradient's norm to this.", role="training", group=TRAINING)

    baseline: bool = setting(True, "Do without the unpruned baseline.", role="place", flag="--no-baseline")
    baseline_from: str | None = setting(
        None, "Take the baseline from another run instead of training it; trained: from a start, which is the baseline "
        "as it stands, train it on for as long, as a control.",
        role="incidental", flag="--baseline", metavar="RUN|trained",
    )  # fmt: skip
    seed: int = setting(0, "Seed of initialisation, split, order and augmentation.", role="seed", group=TRAINING)
    device: str = setting("auto", "Where to train.", role="place", group=TRAINING, common=True)
    precision: str = setting("auto", "auto: bf16 where the hardware has it.", role="family", group=TRAINING)
    sync_bn: bool = setting(
        False, "Take batch norm's statistics over the images of all processes, for few images on each.",
        role="training", group=TRAINING,
    )  # fmt: skip
    compile: bool = setting(
        False, "Compile the training step (forward, loss, backward) with torch.compile.", role="place", group=TRAINING
    )


def names_of(*roles: Role) -> tuple[str, ...]:
    """The settings of `TrainConfig` that have one of these roles."""
    return tuple(field.name for field in dataclasses.fields(TrainConfig) if field.metadata["role"] in roles)


def names_under(*groups: str) -> tuple[str, ...]:
    """The settings of `TrainConfig` that stand under one of these headings."""
    return tuple(field.name for field in dataclasses.fields(TrainConfig) if field.metadata["group"] in groups)


CELLS, TIMES, GATES = "What is timed", "How", "Gates"


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """The settings of one bench, as `bench.json` records them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    engines: tuple[str, ...] = setting(
        ("ort",), "What runs the networks: torch, torch-compile, ort, ort-trt, openvino, trt.",
        group=CELLS, flag="--engine", metavar="E,E,…",
    )  # fmt: skip
    precisions: tuple[str, ...] = setting(
        ("fp32",), "fp32, fp16, int8; all are compared with the baseline in the first.",
        group=CELLS, flag="--precision", metavar="P,P,…",
    )  # fmt: skip
    target: str | None = setting(
        None, "What an int8 file shall run on.", group=CELLS, metavar="cpu|gpu", shown="gpu where an engine runs on one"
    )
    batches: tuple[int, ...] = setting((1,), "Images a call.", group=CELLS, flag="--batch", metavar="B,B,…")
    threads: tuple[int, ...] = setting((1,), "CPU threads of each engine, pinned.", group=CELLS, metavar="T,T,…")
    device: str = setting("auto", "Where the engine runs.", group=CELLS, metavar="auto|cpu|cuda")
    seconds: float = setting(  # and longer where that gives fewer than 100 calls
        3.0, "Time to spend on each network and cell.", group=TIMES
    )
    launches: int = setting(
        8, "Processes that a network is timed in, one after another; intervals are drawn from them.", group=TIMES
    )
    seed: int = setting(0, "Seed of the interleaving, of the bootstrap and of LoadGen.", group=TIMES)
    scenarios: tuple[str, ...] = setting(
        (), "MLPerf's, by LoadGen: single-stream, multi-stream, offline, server.",
        group=TIMES, flag="--scenario", metavar="S,S,…",
    )  # fmt: skip
    latency_bound_ms: float | None = setting(
        None, "With --scenario server: the highest rate whose p99 stays under it.",
        group=TIMES, flag="--latency-bound", metavar="MS",
    )  # fmt: skip
    profile: bool = setting(  # otherwise only of those whose saving isn't paid out
        False, "Time a layer, baseline and peer side by side.", group=TIMES
    )
    max_drop: float | None = setting(
        None, "Exit with 3 if a peer loses more than X top-1 points.", group=GATES, metavar="X"
    )
    min_speedup: float | None = setting(
        None, "Exit with 3 if a pruned peer is less than X times as fast.", group=GATES, metavar="X"
    )
    max_latency_ms: float | Literal["budget"] | None = setting(
        None, "Exit with 3 if a pruned peer takes more than X ms (p50); budget: more than it was cut for.",
        group=GATES, metavar="X|budget",
    )  # fmt: skip
    accuracy: bool = setting(True, "Time only; leave top-1 unmeasured.", group=TIMES, flag="--no-accuracy")
    cuda_graph: bool = setting(
        True, "With --engine trt, launch every kernel anew, to compare.", group=TIMES, flag="--no-cuda-graph"
    )
