"""Work beside the caller's: in order, one ahead, and its errors come through."""

import threading
from collections.abc import Iterator

import pytest

from segclip.utils.prefetch import prefetched


def test_results_come_in_order_and_one_ahead() -> None:
    taken: list[int] = []
    started = threading.Event()

    def items() -> Iterator[int]:
        for i in range(4):
            taken.append(i)
            yield i

    def work(i: int) -> int:
        started.set()
        return i * i

    results = prefetched(items(), work)
    assert next(results) == 0 and started.is_set()
    assert taken == [0, 1]  # the second is worked on while the caller has the first
    assert list(results) == [1, 4, 9] and taken == [0, 1, 2, 3]


def test_work_goes_on_while_the_caller_has_a_result() -> None:
    second = threading.Event()

    def work(i: int) -> int:
        if i == 1:
            second.set()
        return i

    for result in prefetched(range(2), work):
        assert second.wait(5), result


def test_errors_come_in_their_turn() -> None:
    results = prefetched([1, 0, 2], lambda i: 2 // i)
    assert next(results) == 2
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(prefetched([], str)) == []


def test_several_threads_work_at_once_and_keep_the_order() -> None:
    together = threading.Barrier(3, timeout=5)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(6):
            taken.append(i)
            yield i

    def work(i: int) -> int:
        together.wait()  # passes only where three work at once
        return i

    results = prefetched(items(), work, threads=3, ahead=4)
    assert next(results) == 0 and taken == [0, 1, 2, 3, 4]
    assert list(results) == [1, 2, 3, 4, 5]
