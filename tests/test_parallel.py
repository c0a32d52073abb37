"""Kernels in torch's own threads: all work is done once, problems come back, and Ctrl-C is never lost."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import threading

import pytest

from snnexp import parallel


@pytest.fixture(params=["OpenMP", "own pool"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "own pool":
        monkeypatch.setattr(parallel, "_openmp", lambda: None)
    elif parallel._openmp() is None:
        pytest.skip("torch does not use GNU's OpenMP here")
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("blocks", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_block_once(blocks: int, threads: int) -> None:
    done: list[int] = []
    parallel.run_parallel(lambda start, stop: done.extend(range(start, stop)), blocks, threads)
    assert sorted(done) == list(range(blocks))


@pytest.mark.usefixtures("way")
def test_several_threads_work() -> None:
    names, both = set(), threading.Barrier(2)

    def work(start: int, stop: int) -> None:
        if start < 2:
            both.wait()  # ends only if two threads are in here together
        names.add(threading.get_ident())

    parallel.run_parallel(work, 2, 2)
    assert len(names) == 2


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt])
def test_problems_come_back(problem: type[BaseException]) -> None:
    def work(start: int, stop: int) -> None:
        if start <= 5 < stop:
            raise problem("in block 5")

    with pytest.raises(problem, match="block 5"):
        parallel.run_parallel(work, 8, 2)


def test_ctrl_c_that_openmp_swallows_on_the_way_in_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_openmp", lambda: lambda function, data, threads, flags: None)
    with pytest.raises(KeyboardInterrupt):
        parallel.run_parallel(lambda start, stop: None, 8, 2)


@pytest.mark.usefixtures("way")
def test_several_callers_at_once() -> None:
    def call(_: int) -> int:
        done: list[int] = []
        parallel.run_parallel(lambda start, stop: done.extend(range(start, stop)), 50, 2)
        return len(done)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(call, range(30))) == [50] * 30


def in_a_child(connection: multiprocessing.connection.Connection) -> None:  # type: ignore[name-defined]
    done: list[int] = []
    parallel.run_parallel(lambda start, stop: done.extend(range(start, stop)), 50, 2)
    connection.send(len(done))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork_it_runs_in_one_thread() -> None:
    parallel.run_parallel(lambda start, stop: None, 8, 2)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=in_a_child, args=(there,))
    child.start()
    assert here.poll(30) and here.recv() == 50
    child.join()
