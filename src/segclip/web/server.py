"""`segclip web`: the page and the endpoint on one port."""

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from segclip.utils.optional import require
from segclip.web.api import make_endpoint
from segclip.web.middleware import SEGMENT, Middleware
from segclip.web.page import HEAD, build_page
from segclip.web.service import MAX_BYTES, Service, open_service

CONNECTIONS = 200  # at once; more are refused
TERMINATED = 143  # as the command's exit code
LOCAL = ("127.0.0.1", "::1", "localhost")

log = logging.getLogger(__name__)


def serve(port: int, host: str, models: Sequence[str], device: str = "auto") -> int:
    """Serve until stopped by Ctrl-C or SIGTERM; see `segclip web --help`.

    Raises:
        ValueError: a port, a host, a model or a device that cannot be used; the extra is not installed.
    """
    require("gradio", extra="web")  # before a model is loaded in vain
    uvicorn = require("uvicorn", extra="web")
    console = Console(stderr=True)
    listener = _listen(host, port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # as an exception, so that uploads are removed
    with listener, tempfile.TemporaryDirectory(prefix="segclip-web-") as folder:
        with console.status("loading and warming up"):
            service = open_service(models, device)
            service.warm_up()
            app = make_app(service, Path(folder).resolve())
        address, port = listener.getsockname()[:2]
        console.print(f"http://{f'[{address}]' if ':' in address else address}:{port}", highlight=False)
        if address not in LOCAL:
            console.print("anyone who can reach this address can use it, without a password", style="yellow")
        config = uvicorn.Config(
            app, log_level="warning", limit_concurrency=CONNECTIONS, ws="none", timeout_graceful_shutdown=3
        )
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def make_app(service: Service, uploads: Path) -> Any:
    """The page and the endpoint as an ASGI application; `uploads` is an empty folder for uploaded photos."""
    # Before gradio is imported, because it reads them then. Analytics would report to its makers.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(uploads))
    import gradio as gr
    from fastapi import FastAPI
    from gradio.themes import Base

    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Ubuntu", "sans-serif"]
    theme = Base(primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=fonts)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_route(SEGMENT, make_endpoint(service), methods=["POST"])
    gr.mount_gradio_app(
        app,
        build_page(service, uploads),
        "/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=theme,
        css_paths=Path(__file__).with_name("style.css"),
        head=HEAD,
    )
    return Middleware(app, uploads)


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
