"""Pools whose threads run PyTorch on one core each, and leave its settings alone elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

_changing_the_default = threading.Lock()


def single_core_pool(threads: int, name: str) -> ThreadPoolExecutor:
    """A pool in each of whose threads PyTorch's operations run on one core.

    For work side by side on data of its own. `torch.set_num_threads` sets two numbers: that of the
    calling thread, and the default, which every other thread takes over at its first operation and
    then keeps. As the initializer of a pool it would slow down all threads that are started
    later, even when the pool is gone. Here the default is set back before the pool is handed out,
    by a thread whose own number does not matter.

    Args:
        threads: of the pool; all are started at once.
        name: with which the names of the threads begin.
    """
    started = threading.Barrier(threads + 1)

    def use_one_core() -> None:
        torch.get_num_threads()  # or this thread would take the default over again
        torch.set_num_threads(1)
        started.wait()

    with _changing_the_default, ThreadPoolExecutor(1) as other_thread:
        default = other_thread.submit(torch.get_num_threads).result()
        pool = ThreadPoolExecutor(threads, name, initializer=use_one_core)
        try:
            for _ in range(threads):  # each starts a thread, as those before are not ready yet
                pool.submit(int)
            started.wait()
        except BaseException:  # of the system, which has no more threads
            started.abort()
            raise
        finally:
            other_thread.submit(torch.set_num_threads, default).result()
    return pool


def on_cores(work: Callable[[range], T], shares: Sequence[range]) -> list[T]:
    """Results of `work` for each share that is not empty, each computed in a thread on one core."""
    shares = [share for share in shares if share]
    if len(shares) == 1:
        return [work(shares[0])]
    with single_core_pool(len(shares), "shares") as pool:
        return list(pool.map(torch.no_grad()(work), shares))
