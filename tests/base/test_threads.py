"""One core for the threads of a pool, and the default for all other threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread

import pytest
import torch

from edm_hloc.base.threads import single_core_pool


def in_a_new_thread() -> int:
    """PyTorch's number of threads in a thread that has not used it before."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_the_number_stays_in_its_thread() -> None:
    """While a pool works and afterwards, threads old and new have the number they had before."""
    workers = 4
    together = Barrier(workers)

    def work(_: int) -> int:
        together.wait(60)  # one call a worker
        torch.ones(100_000).exp()  # a first operation does not bring the default back
        return torch.get_num_threads()

    with (
        ThreadPoolExecutor(1) as started_before,
        single_core_pool(workers, "worker") as pool,
    ):
        assert started_before.submit(torch.get_num_threads).result() == 3
        assert list(pool.map(work, range(workers))) == [1] * workers
        assert started_before.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 3
        assert in_a_new_thread() == 3
        assert list(pool.map(work, range(workers))) == [1] * workers
    assert torch.get_num_threads() == 3
    assert in_a_new_thread() == 3


@pytest.mark.usefixtures("three_threads")
def test_no_pool_when_the_system_has_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    start, names = Thread.start, []

    def few(thread: Thread) -> None:
        if thread.name.startswith("worker") and len(names) == 2:
            raise RuntimeError("can't start new thread")
        names.append(thread.name) if thread.name.startswith("worker") else None
        start(thread)

    monkeypatch.setattr(Thread, "start", few)
    with pytest.raises(RuntimeError, match="start new thread"):
        single_core_pool(3, "worker")
    assert len(names) == 2
    assert in_a_new_thread() == 3


@pytest.mark.usefixtures("three_threads")
def test_the_default_is_not_taken_from_the_caller() -> None:
    """A pool started in a thread with a number of its own restores the default of the process."""

    def nested() -> int:
        with single_core_pool(1, "worker") as pool:
            return pool.submit(torch.get_num_threads).result()

    with single_core_pool(1, "worker") as pool:
        assert pool.submit(nested).result() == 1
    assert in_a_new_thread() == 3
