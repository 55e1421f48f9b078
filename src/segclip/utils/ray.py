"""Work over a Ray cluster: the results are those of one machine, in the same order."""

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from segclip.utils.batches import batched
from segclip.utils.optional import require

T = TypeVar("T")
R = TypeVar("R")


def map_over_ray(
    make_work: Callable[[], Callable[[Sequence[T]], Iterable[R]]],
    values: Iterable[T],
    *,
    batch: int,
    ahead: int,
    gpus: bool = False,
) -> Iterator[R]:
    """The results of a work on values, in their order.

    The cluster is the one that RAY_ADDRESS names, or one is started on this machine. Files that values name must be
    there on every node, under the same path.

    Args:
        make_work: makes the work in each worker, once (it may load a model there); goes there as a pickle.
        values: read no further ahead than `ahead`; they, and the results, travel as pickles.
        batch: values that the work gets at once; it gives a result for each.
        ahead: values that the cluster gets at once.
        gpus: a worker per GPU, where the cluster has any; else per core.

    Raises:
        ValueError: Ray is not installed.
    """
    ray, data = require("ray", extra="scale"), require("ray.data", extra="scale")
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    resources = ray.cluster_resources()
    gpu_workers = int(resources.get("GPU", 0)) if gpus else 0
    data.DataContext.get_current().execution_options.preserve_order = True
    for some in batched(values, ahead):
        rows = [{"value": pickle.dumps(value)} for value in some]
        batches = -(-len(rows) // batch)
        done = data.from_items(rows, override_num_blocks=batches).map_batches(
            _Worker,
            fn_constructor_args=(make_work,),
            batch_size=batch,
            concurrency=min(gpu_workers or int(resources["CPU"]), batches),
            num_gpus=1 if gpu_workers else 0,
        )
        for row in done.iter_rows():
            yield pickle.loads(row["result"])


class _Worker:
    def __init__(self, make_work: Callable[[], Callable[[Sequence], Iterable]]) -> None:
        self.work = make_work()

    def __call__(self, rows: dict[str, Sequence[bytes]]) -> dict[str, list[bytes]]:
        return {"result": [pickle.dumps(result) for result in self.work([pickle.loads(v) for v in rows["value"]])]}
