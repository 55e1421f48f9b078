"""The work of `segclip prepare` over a Ray cluster; the results are those of one machine, in the same order."""

import pickle
from collections.abc import Iterable, Iterator

from segclip.data.prepare import Block, Work, batched
from segclip.data.shard_writer import Packed

AHEAD = 1024  # blocks that the cluster gets at once


def map_over_ray(work: Work, blocks: Iterable[Block]) -> Iterator[tuple[Block, list[Packed]]]:
    """Do the work of blocks as Ray Data jobs.

    The cluster is the one that RAY_ADDRESS names, or one is started on this machine. Every node must see the photos
    under the same path.

    Raises:
        ValueError: Ray is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise ValueError('Ray is not installed; pip install "segclip[scale]"') from error

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    for some in batched(blocks, AHEAD):
        rows = [{"block": pickle.dumps(block)} for block in some]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_do, fn_kwargs={"work": work})  # type: ignore[arg-type]
        for row in done.iter_rows():
            yield pickle.loads(row["done"])


def _do(row: dict[str, bytes], work: Work) -> dict[str, bytes]:
    block = pickle.loads(row["block"])
    return {"done": pickle.dumps((block, work(block)))}
