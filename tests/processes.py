"""Two processes that train together, forked from the test's own so that nothing is imported again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

from wmlc import console
from wmlc.errors import InputError

PATIENCE = 60.0  # seconds, after which a test that hangs has failed


def on_two(work: Callable[[int], Any], port: int | None = None) -> list[Any]:
    """What `work(rank)` returns in each of two processes; the words of an `InputError` where it raises one.

    None where the process died. Args: the `port` of a store that is there; without one rank 0 makes it.
    """
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = str(port is not None)  # for the processes, as torchrun says it
    port = port or _free_port()
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    processes = [
        context.Process(target=_run, args=(work, rank, port, pipes[rank][1]), daemon=True) for rank in range(2)
    ]
    found = []
    for process in processes:
        process.start()
    try:
        for _, sender in pipes:
            sender.close()
        for receiver, _ in pipes:
            assert receiver.poll(PATIENCE), "a process hangs"
            try:
                found.append(receiver.recv())
            except EOFError:  # it died
                found.append(None)
        for process in processes:
            process.join(PATIENCE)
            assert process.exitcode is not None, "a process hangs"
    finally:
        for process in processes:
            process.kill()
    if broken := [said for said in found if isinstance(said, tuple)]:
        raise AssertionError(broken[0][0])
    return found


def _run(work: Callable[[int], Any], rank: int, port: int, sender: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)  # a forked process has none of its parent's
    console.out.quiet = console.err.quiet = True
    try:
        sender.send(work(rank))
    except InputError as error:
        sender.send(str(error))
    except BaseException:
        sender.send((traceback.format_exc(),))
    finally:
        sender.close()
        os._exit(0)


def _free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]
