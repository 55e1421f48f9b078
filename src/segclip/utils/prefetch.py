"""Work done in another thread while the caller goes on: reading the next photos, writing the last ones."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetched(items: Iterable[T], work: Callable[[T], R]) -> Iterator[R]:
    """`map(work, items)`, the work on one item in another thread while the caller has the result before it.

    The items are taken in the caller's thread, one ahead of the result that is given: memory stays flat. What `work`
    raises is raised here, in its turn.
    """
    with ThreadPoolExecutor(1) as pool:
        pending = deque()
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
