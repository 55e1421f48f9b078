"""`segclip web`: the page, the endpoint and the Label Studio backend on one port."""

import io
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import skimage.data
from PIL import Image
from rich.console import Console

from segclip import __version__
from segclip.evaluate.datasets.coco_object import COCO81
from segclip.evaluate.datasets.voc2012 import VOC21
from segclip.utils.optional import require
from segclip.visualize import palette
from segclip.web import label_studio
from segclip.web.api import json_endpoint, photos_endpoint, segment
from segclip.web.middleware import Middleware
from segclip.web.openapi import describe
from segclip.web.service import MAX_BYTES, MAX_LABELS, MAX_LETTERS, PROTOCOLS, Service, open_service

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

STATIC = Path(__file__).with_name("static")
MAX_FIELDS = 256 * 1024  # bytes of a request besides a photo: labels and numbers
MAX_LENGTHS = {
    "/segment": MAX_BYTES * 4 // 3 + MAX_FIELDS,
    "/photos": MAX_BYTES,
    "/predict": MAX_BYTES * 4 // 3 + MAX_FIELDS,
    "/setup": MAX_FIELDS,
    "/train": MAX_FIELDS,
    "/webhook": MAX_BYTES,  # an annotation with all its brush strokes
}
EXAMPLES = {  # of scikit-image's photos, CC0 or in the public domain
    "cat": (skimage.data.chelsea, ["cat", "dog", "car", "boat"]),
    "coffee": (skimage.data.coffee, ["cup", "table", "spoon"]),
    "person": (skimage.data.astronaut, ["person", "flag", "rocket"]),
}
THUMBNAIL = 96  # pixels
PRESETS = {"VOC's 20 things": VOC21[1:], "COCO's 80 things": COCO81[1:]}
TERMINATED = 143  # as the command's exit code
LOCAL = ("127.0.0.1", "::1", "localhost")


def serve(
    port: int,
    host: str,
    models: Sequence[str],
    device: str = "auto",
    allow_hosts: Sequence[str] = (),
    label_studio_url: str = "",
    head: str | None = None,
) -> int:
    """Serve until stopped by Ctrl-C or SIGTERM; see `segclip web --help`.

    Raises:
        ValueError: a port, a host, a model, a device or an address that cannot be used; the extra is not installed.
    """
    require("starlette", extra="web")  # before a model is loaded in vain
    uvicorn = require("uvicorn", extra="web")
    console = Console(stderr=True)
    studio = label_studio.Studio(label_studio_url, os.environ.get("LABEL_STUDIO_API_KEY", ""))
    listener = _listen(host, port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    with listener:
        with console.status("loading and warming up"):
            service = open_service(models, device, head=head)
            service.warm_up()
        address, port = listener.getsockname()[:2]
        console.print(f"http://{f'[{address}]' if ':' in address else address}:{port}", highlight=False)
        if address not in LOCAL:
            console.print("anyone who can reach this address can use it, without a password", style="yellow")
        uvicorn.Server(make_config(make_app(service, (host, *allow_hosts), studio))).run(sockets=[listener])
    return 0


def make_config(app: Any, **options: Any) -> Any:
    """uvicorn's configuration for the application."""
    import uvicorn

    from segclip.web.connections import BoundedProtocol

    defaults = {"log_level": "error", "ws": "none", "timeout_graceful_shutdown": 3, "server_header": False}
    return uvicorn.Config(app, http=BoundedProtocol, **(defaults | options))


def make_app(service: Service, hosts: Sequence[str] = (), studio: label_studio.Studio | None = None) -> Any:
    """The page and the endpoints as an ASGI application.

    Args:
        service: of the models.
        hosts: names by which the server may be asked for; see `Middleware`.
        studio: the Label Studio whose photos may be fetched.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def plain(content: Any) -> Any:
        async def get(request: "Request") -> "Response":
            return JSONResponse(content() if callable(content) else content)

        return get

    backend = label_studio.Backend(service, studio or label_studio.Studio("", ""))
    app = Starlette(
        routes=[
            *(Route(path, _file(name)) for path, name in _static_files().items()),
            Route("/examples/{name}.jpg", _example),
            Route("/config.json", plain(_config(service))),
            Route("/openapi.json", plain(describe(service.models))),
            Route("/health", plain(lambda: health(service))),
            Route("/segment", json_endpoint(partial(segment, service)), methods=["POST"]),
            Route("/photos", photos_endpoint(service), methods=["POST"]),
            Route("/versions", plain(backend.versions)),
            Route("/predict", json_endpoint(backend.predict), methods=["POST"]),
            Route("/setup", json_endpoint(backend.setup), methods=["POST"]),
            Route("/train", json_endpoint(backend.train), methods=["POST"]),
            Route("/webhook", json_endpoint(backend.train), methods=["POST"]),
        ],
        exception_handlers={404: _not_found},
    )
    return Middleware(app, MAX_LENGTHS, hosts)


def health(service: Service) -> dict[str, Any]:
    """That the server works, and how much it has to do."""
    return {
        "status": "UP",  # Label Studio looks for it
        "model_class": "segclip",
        "version": __version__,
        "models": service.models,
        "waiting": service.waiting,
        "photos_kept": len(service.encodings),
    }


def _config(service: Service) -> dict[str, Any]:
    """What the page needs to know."""
    return {
        "models": service.models,
        "protocols": PROTOCOLS,
        "max_bytes": MAX_BYTES,
        "max_labels": MAX_LABELS,
        "max_letters": MAX_LETTERS,
        "colours": palette(1 + MAX_LABELS).tolist(),
        "presets": PRESETS,
        "examples": {name: labels for name, (_, labels) in EXAMPLES.items()},
    }


def _static_files() -> dict[str, str]:
    """The file for each path."""
    return {"/": "index.html"} | {f"/{file.name}": file.name for file in STATIC.iterdir() if file.name != "index.html"}


def _file(name: str) -> Any:
    """A handler for Starlette that gives a file of the page; browsers ask whether it changed."""
    from starlette.responses import FileResponse

    async def get(request: "Request") -> "Response":
        return FileResponse(STATIC / name, headers={"cache-control": "no-cache"})

    return get


async def _example(request: "Request") -> "Response":
    """Gives an example photo, or its thumbnail at NAME.small."""
    from starlette.responses import Response

    name, _, small = request.path_params["name"].partition(".")
    if name not in EXAMPLES or small not in ("", "small"):
        return await _not_found(request, None)
    return Response(_example_file(name, bool(small)), media_type="image/jpeg")


@cache
def _example_file(name: str, small: bool) -> bytes:
    image = Image.fromarray(EXAMPLES[name][0]())
    if small:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80 if small else 92)
    return file.getvalue()


async def _not_found(request: "Request", error: Any) -> "Response":
    from starlette.responses import JSONResponse

    return JSONResponse(
        {"error": "there is nothing at this path; the page is at /, the endpoint at /segment, see /openapi.json"}, 404
    )


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise ValueError(f"port {port}; give one of 0..65535, or 0 for a free one")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ValueError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}); another program may use it: give "
            "another --port"
        ) from error
