"""The page: a photo, labels and a button, with the result beside them, which render.py draws."""

import hashlib
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import skimage.data
from PIL import Image

from segclip.utils.files import atomic
from segclip.web.render import error_html, message_html, photo_html, result_html, thumbnails_html
from segclip.web.service import MAX_BYTES, PROTOCOLS, QUEUE_SIZE, BusyError, Service, read_photo

if TYPE_CHECKING:
    import gradio

EXAMPLES = {  # of scikit-image's photos, CC0 or in the public domain
    "cat": (skimage.data.chelsea, "cat, dog, car, boat"),
    "coffee": (skimage.data.coffee, "cup, table"),
    "person": (skimage.data.astronaut, "person, flag, wall"),
}
HEAD = '<meta name="robots" content="noindex">'
TITLE = """<h1>SegCLIP</h1>
<p>Drop a photo, name what is in it, and see where it is. The photo stays on the computer that runs this page.</p>"""
BACKGROUNDS = {"automatic": "auto", "threshold": None, "none": "none"}
SHOW_STAGE = """() => { if (innerWidth < 640) document.querySelector("#stage").scrollIntoView({behavior: "smooth"}) }"""
EMPTY = "The photo will appear here."

log = logging.getLogger(__name__)


def build_page(service: Service, uploads: Path) -> "gradio.Blocks":
    """The page, ready to mount; `uploads` is gradio's folder of uploads, which also gets the examples."""
    import gradio as gr

    def preview(file: Any) -> str:
        return _with_errors(
            lambda: photo_html(read_photo(read_upload(file, uploads)[1])) if file else message_html(EMPTY)
        )

    def segment(
        file: Any,
        labels: Any,
        how: Any,
        threshold: Any,
        protocol: Any,
        model: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # gradio requires this
    ) -> str:
        def work() -> str:
            name, data = read_upload(file, uploads)
            query = service.query(
                labels, model, protocol, threshold if how == "threshold" else BACKGROUNDS.get(how, how)
            )
            with service.slot():
                progress(0.0, "Waiting for others")
                with service.lock:
                    start = time.perf_counter()
                    progress(0.1, "Reading the photo")
                    result = service.segment(read_photo(data, name), query, progress)
                    progress(0.9, "Drawing")
                    seconds = time.perf_counter() - start
                    return result_html(result, seconds, PurePath(name).stem, {"model": query.model})

        return _with_errors(work)

    with gr.Blocks(title="SegCLIP", analytics_enabled=False, delete_cache=(300, 3600)) as page:
        gr.HTML(TITLE, elem_id="title")
        with gr.Row(elem_id="board"):
            with gr.Column(scale=4, min_width=300, elem_id="ask"):
                photo = gr.File(label="Photo", file_types=["image"], height=140, elem_id="photo")
                with gr.Row(elem_id="examples"):
                    gr.HTML(thumbnails_html("or try", {f"try-{n}": photo() for n, (photo, _) in EXAMPLES.items()}))
                    tries = [gr.Button(name, size="sm", min_width=60, elem_id=f"try-{name}") for name in EXAMPLES]
                labels = gr.Textbox(
                    label="Labels", info="separated by commas or new lines", placeholder="cat, dog, potted plant",
                    lines=2, max_lines=6, max_length=10_000, elem_id="labels",
                )  # fmt: skip
                with gr.Group(elem_id="options"):
                    how = gr.Radio(
                        list(BACKGROUNDS), value="automatic", label="Background",
                        info="what matches none of the labels; with none, every pixel gets a label", elem_id="how",
                    )  # fmt: skip
                    threshold = gr.Slider(
                        0, 1, 0.5, step=0.01, label="Threshold", elem_id="threshold",
                        info="background is where the best label scores less",
                    )  # fmt: skip
                    protocol = gr.Radio(
                        list(PROTOCOLS), value=PROTOCOLS[0], label="Protocol", elem_id="protocol",
                        info="open: for people; paper: the evaluation of arXiv 2211.14813",
                    )  # fmt: skip
                    model = gr.Dropdown(
                        service.models,
                        value=service.models[0],
                        label="Model",
                        visible=len(service.models) > 1,
                        elem_id="model",
                    )
                go = gr.Button("Segment", variant="primary", size="lg", elem_id="go")
            with gr.Column(scale=7, min_width=300, elem_id="see"):
                stage = gr.HTML(message_html(EMPTY), elem_id="stage", js_on_load=None)
        # Values arrive as the browser sends them: the service checks them, with messages for people, not gradio.
        raw = {"preprocess": False, "concurrency_limit": 1, "api_visibility": "private"}
        photo.change(preview, photo, stage, show_progress="minimal", **raw)
        inputs = [photo, labels, how, threshold, protocol, model]
        gr.on([go.click, labels.submit], segment, inputs, stage, **raw)
        go.click(None, js=SHOW_STAGE)
        for button, name in zip(tries, EXAMPLES, strict=True):
            button.click(_example(name, uploads), None, [photo, labels], show_progress="hidden", **raw)
    return page.queue(max_size=QUEUE_SIZE)


def read_upload(file: Any, uploads: Path) -> tuple[str, bytes]:
    """Name and bytes of an uploaded photo.

    Only the last two parts of the client's path are used, the upload's id and its file name, so that no other file can
    be read.

    Raises:
        ValueError: nothing was uploaded, or it is gone.
    """
    if not file:
        raise ValueError("no photo yet; drop one, or try an example")
    path = file.get("path") if isinstance(file, dict) else None
    parts = PurePath(path).parts[-2:] if isinstance(path, str) and "\0" not in path else ()
    if len(parts) != 2 or not re.fullmatch("[0-9a-f]{64}", parts[0]):
        raise ValueError("the photo was not uploaded here; upload it")
    found = uploads.joinpath(*parts)
    if not found.is_file() or found.is_symlink():
        raise ValueError("the photo is gone; upload it again")
    with found.open("rb") as opened:
        return parts[1], opened.read(MAX_BYTES + 1)


def _example(name: str, uploads: Path) -> Callable[[], tuple[str, str]]:
    """Fills in an example as if it had been uploaded; like uploads, its file is removed after a while."""
    photo, labels = EXAMPLES[name]
    file = uploads / hashlib.sha256(name.encode()).hexdigest() / f"{name}.jpg"

    def put() -> tuple[str, str]:
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            with atomic(file) as temporary:
                Image.fromarray(photo()).save(temporary, "JPEG", quality=95)
        return str(file), labels

    return put


def _with_errors(work: Callable[[], str]) -> str:
    """The HTML that `work` returns, or of its error."""
    try:
        return work()
    except (ValueError, BusyError) as error:
        return error_html(str(error))
    except Exception:  # a bug, or out of memory: the traceback goes only to the log
        log.exception("a request of the page failed")
        return error_html("this failed; the server's log says why")
