#!/usr/bin/env python3
"""Takes other people's networks all the way, with random weights, and says how far each one comes.

    evidence/networks.py                            # all of them, into docs/networks.json; an hour on one thread
    evidence/networks.py timm:dla34 torchvision:…   # only these, the other rows of the file staying as they are
    evidence/networks.py --table docs/networks.md   # the table in the document, from the file
    evidence/networks.py --out docs/hugging_face.json evidence/hugging_face.py    # all factories of a file

For each: which channels hang together and are proven, what share of the MACs can go, the stages; a family of two peers
that lose 50 and 40 % of the MACs, with a shared trunk; both saved and loaded again, bit for bit; their cost counted; a
forward-mode derivative of the family's loss against a difference; and the smaller peer's ONNX file, compared with torch
at batch 1 and 7. Each network has a process of its own, so that one that breaks down is a row too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import resource
import runpy
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from network_rows import Row, write_table
from network_steps import Wrong, go_all_the_way

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "networks.json"
TORCHVISION = """resnet18 resnet50 resnext50_32x4d wide_resnet50_2 regnet_y_400mf regnet_x_400mf mobilenet_v2
    mobilenet_v3_small mobilenet_v3_large efficientnet_b0 efficientnet_v2_s convnext_tiny densenet121 googlenet
    inception_v3 shufflenet_v2_x1_0 squeezenet1_1 mnasnet1_0 vgg11_bn alexnet swin_t vit_b_32 maxvit_t"""
TIMM = """resnet10t resnet26d resnetv2_50 efficientnet_lite0 mobilenetv3_small_100 mobilenetv4_conv_small repvgg_a0
    regnetx_002 lcnet_050 ghostnetv2_100 fastvit_t8 skresnet18 res2net50_26w_4s xcit_nano_12_p16_224 rexnet_100 nfnet_l0
    ecaresnet26t convnextv2_atto hrnet_w18_small levit_128s edgenext_xx_small deit_tiny_patch16_224 vit_tiny_patch16_224
    mobilevit_xxs poolformer_s12 dla34 cspresnet50 mixer_s32_224 resnest14d efficientformer_l1
    swin_tiny_patch4_window7_224 cait_xxs24_224 mobileone_s0 tinynet_e davit_tiny"""
NETWORKS = [*(f"torchvision:{name}" for name in TORCHVISION.split()), *(f"timm:{name}" for name in TIMM.split())]
# Side of the images: as these are made for, 96 where 64 are too few, and 64 for all others, to be quick.
SIDES = {
    224: "swin vit_ deit maxvit levit xcit cait mixer efficientformer mobilevit edgenext poolformer",
    96: "inception_v3 alexnet fastvit hrnet",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", type=Path, help="rewrite the table in this document, and run nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one network")
    asked = parser.parse_args()
    if asked.table:
        write_table(asked.table, json.loads(asked.out.read_text()))
    else:
        run_all([*named(asked.names or NETWORKS)], asked.out, asked.threads, asked.timeout)
    return 0


def named(names: list[str]) -> Iterator[str]:
    """The networks of these names; a file of factories stands for them all."""
    for name in names:
        if name.endswith(".py"):
            yield from (f"{name}:{factory}" for factory in runpy.run_path(name)["FACTORIES"])
        else:
            yield name


def side_of(network: str) -> int:
    name = network.partition(":")[2]
    return next((side for side, begins in SIDES.items() if name.startswith(tuple(begins.split()))), 64)


def run_all(names: list[str], out: Path, threads: int, timeout: float) -> None:
    """A process a network, one after another; `out` is rewritten after each."""
    import_all(threads)
    former = {row["network"]: row for row in json.loads(out.read_text())["rows"]} if out.exists() else {}
    said = about(names, out)
    for name in names:
        began = time.monotonic()
        row = run_one(name, threads, timeout)
        row.date, row.machine = time.strftime("%Y-%m-%d"), machine(threads)
        former[name] = dataclasses.asdict(row)
        order = [known for known in NETWORKS if known in former] + [n for n in former if n not in NETWORKS]
        out.write_text(json.dumps({**said, "rows": [former[n] for n in order]}, indent=1) + "\n")
        took = f"{time.monotonic() - began:.0f} s"
        print(f"{name:44}{row.verdict:13}{took:>6}  {row.stopped_at} {row.reason}"[:200], flush=True)


def run_one(name: str, threads: int, timeout: float) -> Row:
    """The row of one network, from a process of its own that is stopped after `timeout` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        process = multiprocessing.get_context("fork").Process(  # so that all is imported once
            target=take_one, args=(Row(name, side_of(name)), file, threads)
        )
        process.start()
        process.join(timeout)
        why = f"the process ended with {process.exitcode}" if process.exitcode else ""
        if process.is_alive():
            why = f"it took more than {timeout:.0f} s"
            process.kill()
            process.join()
        row = Row(name, side_of(name))
        with suppress(OSError, ValueError):  # killed before it wrote one, or while
            row = Row(**json.loads(file.read_text()))
    if why:
        row.verdict, row.reason = "failed", why
    return row


def import_all(threads: int) -> None:
    """What every network's process needs, so that it comes with the fork."""
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import timm  # noqa: F401
    import torch
    import torch._dynamo
    import torchvision.models  # noqa: F401
    from torch.onnx._internal.exporter import _registration

    import wmlc.compress.prepare
    import wmlc.export.to_onnx  # noqa: F401

    torch.set_num_threads(threads)
    _registration.ONNXRegistry.from_torchlib()


def machine(threads: int) -> str:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    simd = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "neither AVX2 nor AVX-512"
    return f"{os.cpu_count()} cores with {simd}, {threads} thread{'s' * (threads > 1)}"


def about(names: list[str], out: Path) -> dict[str, Any]:
    from importlib.metadata import version

    file = next((name.rpartition(":")[0] for name in names if name.rpartition(":")[0].endswith(".py")), None)
    theirs = ("transformers",) if file else ("torchvision", "timm")

    return {
        "command": " ".join(["evidence/networks.py", *(["--out", str(out), file] if file else [])]),
        "versions": {name: version(name) for name in ("torch", *theirs, "onnx", "onnxruntime-gpu")},
    }


def take_one(row: Row, file: Path, threads: int) -> None:
    """All steps for one network; the row so far is in `file` whenever the process ends."""
    import torch

    from wmlc.errors import InputError, one_line

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")

    @contextmanager
    def step(name: str) -> Iterator[None]:
        row.stopped_at, began = name, time.monotonic()
        file.write_text(json.dumps(dataclasses.asdict(row)))
        yield
        row.seconds[name] = round(time.monotonic() - began, 1)

    try:
        go_all_the_way(row, step)
        row.stopped_at = ""
    except InputError as error:
        row.verdict, row.reason = "wrong" if row.stopped_at in ("onnx", "round trip") else "refused", str(error)
    except Wrong as error:
        row.verdict, row.reason = "wrong", str(error)
    except Exception as error:  # whatever a network's code raises
        row.verdict, row.reason = "failed", f"{type(error).__name__}: {one_line(error, 200)}"
    row.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    file.write_text(json.dumps(dataclasses.asdict(row)))


if __name__ == "__main__":
    sys.exit(main())
