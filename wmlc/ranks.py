"""The processes that train one run together, as torchrun starts them; alone, there is one.

Everything between them goes through torch.distributed: NCCL between GPUs, gloo between CPUs. All of them make the same
calls in the same order. Free of torch until they do.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wmlc.errors import InputError, Stopped, one_line

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import Store

MEETING = timedelta(minutes=5)  # for all processes to have started
PATIENCE = timedelta(minutes=30)  # for a process that is still at something, as the table of a latency
BACKENDS = "cpu:gloo,cuda:nccl"  # where there is a GPU
BUCKET = 25 * 2**20  # bytes that are reduced at once
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR")  # that torchrun sets

Made = TypeVar("Made")


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are. Rank 0 alone speaks and writes."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def own(self, places: Sequence[Any] | Tensor) -> Any:
        """This process's part of what all go through together, none twice; another's may be longer by one."""
        return places[self.rank :: self.count]

    def own_of_batch(self, places_B: Tensor) -> Tensor:
        """This process's part of a batch [B], as large as the others'; the whole of one that cannot be shared evenly.

        So that the mean over processes of means over their parts is the mean over the batch.
        """
        return self.own(places_B) if len(places_B) % self.count == 0 else places_B

    def check_batch(self, batch_size: int) -> None:
        """Raise `InputError` for a batch of training images that cannot be shared evenly."""
        if batch_size % self.count:
            less = batch_size - batch_size % self.count
            ways = " or ".join(str(own) for own in (less, less + self.count) if own)
            raise InputError(
                f"a batch of {batch_size} does not go into {self.count} processes evenly; pass --batch-size {ways}"
            )

    def of_first(self, make: Callable[[], Made]) -> Made:
        """What rank 0 makes, for all; an `InputError` of its too."""
        if self.count == 1:
            return make()
        import torch.distributed as dist

        said: list[Any] = [None, None]
        if self.first:
            try:
                said = [None, make()]
            except InputError as error:
                said = [str(error), None]
        dist.broadcast_object_list(said, src=0)
        if said[0] is not None:
            raise InputError(said[0])
        return said[1]

    def of_each(self, make: Callable[[], Made]) -> Made:
        """What each process makes for itself; where one cannot, all end with its words."""
        if self.count == 1:
            return make()
        made, own = None, ""
        try:
            made = make()
        except InputError as error:
            own = str(error)
        said = self._gathered(own)
        if failed := {rank: words for rank, words in enumerate(said) if words}:
            rank, words = next(iter(failed.items()))
            everyone = set(said) == {words}
            raise InputError(words if everyone else f"rank {rank}: {words}")
        return made  # type: ignore[return-value]

    def agree(self, own: dict[str, Any], advice: str) -> None:
        """Raise `InputError` that names what differs between processes, followed by what to do."""
        if self.count == 1:
            return
        said = self._gathered(own)
        for rank, theirs in enumerate(said):
            for name in said[0] | theirs:
                here, there = (each.get(name, "not given") for each in (said[0], theirs))
                if here != there:
                    raise InputError(f"{name} is {there} on rank {rank} and {here} on rank 0; {advice}")

    def _gathered(self, own: Any) -> list[Any]:
        import torch.distributed as dist

        said: list[Any] = [None] * self.count
        dist.all_gather_object(said, own)
        return said

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.count > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor's mean over processes, in place: in buckets, all on their way at once."""
        if self.count == 1:
            return
        import torch
        import torch.distributed as dist

        sent = []
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in sent:
            work.wait()
            _fill(bucket, flat / self.count)

    def mean_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Each parameter's gradient becomes its mean over processes; one that only others have is 0 here.

        A network that leaves out blocks at random has other gradients in each process. Which ones is told between
        CPUs, so that no GPU is waited for.
        """
        if self.count == 1:
            return
        import torch

        has = self.sum_(torch.tensor([own.grad is not None for own in parameters], dtype=torch.int32)).tolist()
        taught = [own for own, count in zip(parameters, has, strict=True) if count]
        for own in taught:
            if own.grad is None:
                own.grad = torch.zeros_like(own)
        self.mean_([own.grad for own in taught if own.grad is not None])

    def take_of_first(self, tensors: Sequence[Tensor]) -> None:
        """Rank 0's numbers for all, in place."""
        if self.count == 1:
            return
        import torch
        import torch.distributed as dist

        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.broadcast(flat, src=0)
            _fill(bucket, flat)


SOLO = Ranks()


def launched() -> Ranks:
    """This process among those that torchrun started; alone without it."""
    if not _is_launched():
        return SOLO
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def launch() -> str | None:
    """What all processes have in common that one torchrun starts, also when it starts them again; None without it."""
    if not _is_launched():
        return None
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', '')}:{os.getppid()}:{_started(os.getppid())}"


def _started(process: int) -> str:
    """When a process was started, on which machine: in containers processes have the same numbers again and again."""
    try:
        ticks = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except (OSError, IndexError):
        return ""
    return f"{boot}:{ticks}"


def _is_launched() -> bool:
    return all(os.environ.get(name) for name in LAUNCHED)


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """This process among all, which can talk to each other meanwhile.

    Raises `InputError` where they do not meet, and `Stopped` where another one has ended.
    """
    ranks = launched()
    if ranks.count == 1:
        yield SOLO
        return
    import torch
    import torch.distributed as dist

    lost = (
        f"rank {ranks.rank}: another process of this run has ended, so this one has too; what was done up to the last "
        "checkpoint is kept, and --resume goes on"
    )
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(_local_rank() % gpus)  # until a run says where it trains: `take_gpu`
    try:
        dist.init_process_group(
            BACKENDS if gpus else "gloo", store=_own_store(ranks), rank=ranks.rank, world_size=ranks.count,
            timeout=MEETING,
        )  # fmt: skip
        dist.all_reduce(torch.zeros(1))  # connects them, where that has not been done yet
    except RuntimeError as error:
        raise InputError(
            f"rank {ranks.rank}: the {ranks.count} processes did not meet ({one_line(error, None)}); see that all were "
            "started and reach each other, where there are several networks by GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME"
        ) from error
    getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)(PATIENCE)
    try:
        yield ranks
    except RuntimeError as error:
        if isinstance(error, dist.DistBackendError) or "gloo" in str(error).lower():
            raise Stopped(lost) from None
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _own_store(ranks: Ranks) -> Store:
    """What the processes leave word for each other in, under a name that they alone have.

    torchrun's store outlives them when it starts them again, and whoever read there where a dead one was would wait for
    it (pytorch #135712). So rank 0 makes a name, and the others ask it whether the one they read is still it.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    own, until = uuid.uuid4().hex, time.monotonic() + MEETING.total_seconds()
    store, _, _ = next(rendezvous("env://", ranks.rank, ranks.count, timeout=MEETING))
    if ranks.first:
        store.set("name", own)
        for rank in range(1, ranks.count):
            store.set(f"{own}, told rank {rank}", store.get(f"{own}, asked by rank {rank}"))
        return PrefixStore(own, store)
    while time.monotonic() < until:
        name = store.get("name").decode()
        store.set(f"{name}, asked by rank {ranks.rank}", own)
        answer = f"{name}, told rank {ranks.rank}"
        if store.check([answer]) and store.get(answer).decode() == own:
            return PrefixStore(name, store)
        time.sleep(0.05)
    raise RuntimeError("rank 0 does not answer")


def take_gpu() -> None:
    """Make this process's GPU the one that "cuda" means; `InputError` where the machine has fewer than processes."""
    import torch

    local = _local_rank() if launched().count > 1 else 0
    if local >= torch.cuda.device_count():
        raise InputError(
            f"process {local + 1} of this machine has no GPU, as it sees {torch.cuda.device_count()}; start as many "
            "(--nproc-per-node), let each see all of them (CUDA_VISIBLE_DEVICES), or pass --device cpu"
        )
    torch.cuda.set_device(local)


def _fill(bucket: Sequence[Tensor], flat: Tensor) -> None:
    """Put the numbers of `flat`, which were joined of these tensors, back into them."""
    for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, as many of one type as go into a bucket."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or size >= BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket
