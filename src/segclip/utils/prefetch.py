"""Work done in other threads while the caller goes on: reading the next photos, writing the last ones."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetched(
    items: Iterable[T], work: Callable[[T], R], *, threads: int = 1, ahead: int | None = None
) -> Iterator[R]:
    """`map(work, items)`, the work on the next items in other threads while the caller has the result before them.

    The items are taken in the caller's thread, `ahead` of the result that is given, by default as many as there are
    threads: memory stays flat. What `work` raises is raised here, in its turn.
    """
    ahead = threads if ahead is None else ahead
    with ThreadPoolExecutor(threads) as pool:
        pending = deque()
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
