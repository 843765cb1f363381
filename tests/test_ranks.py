"""Training in two processes: tests/two_processes.py in a process of its own, and torchrun itself. Takes 60 s.

It forks, and torch refuses to differentiate in a fork of a process whose autograd has threads, as other tests leave one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml

from wmlc.ranks import BACKENDS, Ranks
from wmlc.run import Run, read_config, read_epochs, read_family

TESTS = Path(__file__).parent
TINY = {
    "train_images": 128,
    "batch_size": 64,
    "ratios": [0.5, 0.0],
    "ratio_of": "macs",
    "device": "cpu",
    "baseline": False,
}


def test_two_processes_train_as_one() -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(TESTS / "two_processes.py")],
        cwd=TESTS.parent, env=inherited | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and " failed" not in done.stdout and " skipped" not in done.stdout


def test_torchrun_starts_a_run_again_that_lost_a_process_and_it_goes_on(tmp_path: Path) -> None:
    """The command of docs/processes.md as it stands there. Takes 20 s, of which three imports of torch are half."""
    recipe, root = tmp_path / "tiny.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(TINY | {"epochs": 6}))
    words = ["--nproc-per-node", "2", "--max-restarts", "1", "--standalone", "-m", "--", "wmlc", "train", str(recipe)]
    torchrun = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *words, "--out", str(root)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    try:
        while torchrun.poll() is None and not (root / "checkpoint" / "state.json").exists():
            time.sleep(0.02)
        (second,) = [
            pid for pid in _children(torchrun.pid) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
        ]
        os.kill(second, signal.SIGKILL)
        said, _ = torchrun.communicate(timeout=120)
    finally:
        torchrun.terminate()  # and it its processes
    assert torchrun.returncode == 0, said[-5000:]
    assert "resuming the family after epoch " in said
    assert [epoch.epoch for epoch in read_epochs(Run(root), "family")] == list(range(1, 7))
    assert read_config(Run(root)).processes == 2 and read_family(Run(root)).epochs == 6


def _children(pid: int) -> list[int]:
    return [int(own) for own in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_nccl_carries_what_processes_tell_each_other(tmp_path: Path) -> None:
    """A group of one, as NCCL wants a GPU for each; called as one of two, so that a mean is half of the sum."""
    one_of_two = Ranks(0, 2)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group(BACKENDS, store=store, rank=0, world_size=1)
    try:
        halves = [torch.full((3,), 8.0, device="cuda"), torch.full((2, 2), 4.0, device="cuda", dtype=torch.float64)]
        one_of_two.mean_(halves)
        assert [own.unique().tolist() for own in halves] == [[4.0], [2.0]]
        counts = torch.arange(3, dtype=torch.float64, device="cuda")
        assert one_of_two.sum_(counts).tolist() == [0.0, 1.0, 2.0]
        one_of_two.take_of_first([counts])
        assert one_of_two.of_first(lambda: {"widths": [8, 16]}) == {"widths": [8, 16]}
    finally:
        dist.destroy_process_group()
