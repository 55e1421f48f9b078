"""The work of `segclip annotate` over a Ray cluster: one model per worker."""

import pickle
from pathlib import Path

import numpy as np

from segclip.annotate.annotator import Annotator, Named, Request, Results
from segclip.annotate.formats import FORMATS
from segclip.annotate.formats.format import Format
from segclip.data.prepare import batched
from segclip.segment.many_photos import BATCH

AHEAD = 2**14  # photos that the cluster gets at once


def map_over_ray(request: Request, named: Named) -> Results:
    """Annotate photos as Ray Data jobs: a worker per GPU of the cluster, or per core where it has none.

    The cluster is the one that RAY_ADDRESS names, or one is started on this machine. Every node must see the photos,
    and a file of weights, under the same path.

    Raises:
        ValueError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError('Ray is not installed; pip install "segclip[scale]"') from error

    ray.init(ignore_reinit_error=True, log_to_driver=False)
    gpus = int(ray.cluster_resources().get("GPU", 0)) if request.device in ("auto", "cuda") else 0
    workers = gpus or int(ray.cluster_resources()["CPU"])
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    for some in batched(named, AHEAD):
        rows = [{"photo": str(path), "stem": stem} for path, stem in some]
        blocks = -(-len(rows) // BATCH)
        done = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            _Worker,  # type: ignore[arg-type]
            fn_constructor_args=(request, dict(FORMATS)),  # the formats that were added too
            batch_size=BATCH,
            concurrency=min(workers, blocks),
            num_gpus=1 if gpus else 0,
        )
        for row in done.iter_rows():
            yield pickle.loads(row["done"])


class _Worker:
    def __init__(self, request: Request, formats: dict[str, Format]) -> None:
        self.annotator = Annotator(request, formats)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        named = [(Path(photo), str(stem)) for photo, stem in zip(batch["photo"], batch["stem"], strict=True)]
        return {"done": [pickle.dumps(one) for one in self.annotator(named)]}
