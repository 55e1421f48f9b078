"""Label Studio with segclip as its model, tried for real: python benchmarks/label_studio.py LABEL_STUDIO [--shot FILE]

LABEL_STUDIO is the program of an installation of its own, since it pins many packages:
  python -m venv studio && studio/bin/pip install label-studio
  python benchmarks/label_studio.py studio/bin/label-studio

Starts Label Studio and `segclip web` at 127.0.0.1, makes a project for brush strokes and one for polygons, uploads a
photo, connects the model, asks for predictions, and compares what Label Studio stored with what the segmenter finds.
With --shot, a screenshot of the labelling page, which needs the extra `test` and Chromium.
"""

import argparse
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import httpx
import numpy as np
import skimage.data
from PIL import Image

from segclip.annotate.polygons import clean_labels
from segclip.segment.segmenter import Segmenter

USER, PASSWORD, TOKEN = "someone@example.com", "a-long-password", "0123456789abcdef0123456789abcdef01234567"
LABELS = ("cup", "spoon")
DECODE = """import json, sys
from label_studio_sdk.converter.brush import decode_rle
sys.stdout.buffer.write(bytes(decode_rle(json.load(sys.stdin))))"""
PATIENCE = 900  # seconds for a server to start, or to predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("label_studio")
    parser.add_argument("--shot")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder, studio(arguments.label_studio, folder) as address, backend(address) as model:
        client = httpx.Client(base_url=address, headers={"Authorization": f"Token {TOKEN}"}, timeout=PATIENCE)
        print(f"Label Studio {client.get('/api/version').json()['release']}, model at {model}", flush=True)
        for shape in ("BrushLabels", "PolygonLabels"):
            task = predict(client, model, shape)
            check(client.get(f"/api/tasks/{task['id']}").json(), shape, arguments.label_studio)
            if arguments.shot and shape == "BrushLabels":
                shoot(address, task, arguments.shot)


@contextmanager
def studio(program: str, folder: str) -> Iterator[str]:
    """A Label Studio with one user; its address."""
    port = free_port()
    settings = {
        "LABEL_STUDIO_BASE_DATA_DIR": folder,
        "LABEL_STUDIO_HOST": f"http://127.0.0.1:{port}",
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "COLLECT_ANALYTICS": "false",
        "SENTRY_DSN": "",  # it would report its errors
        "FRONTEND_SENTRY_DSN": "",
        "USE_DEFAULT_BANNED_SUBNETS": "false",  # the model is on this machine
    }
    command = [program, "start", "--port", str(port), "--no-browser", "--username", USER, "--password", PASSWORD]
    with open(os.path.join(folder, "log"), "w") as log:
        process = subprocess.Popen(
            [*command, "--user-token", TOKEN], env={**os.environ, **settings}, stdout=log, stderr=log
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def backend(studio: str) -> Iterator[str]:
    """`segclip web` that may fetch from this Label Studio; its address."""
    port = free_port()
    command = [sys.executable, "-m", "segclip", "web", "--port", str(port), "--label-studio", studio]
    process = subprocess.Popen(command, env={**os.environ, "LABEL_STUDIO_API_KEY": TOKEN})
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def predict(client: httpx.Client, model: str, shape: str) -> dict[str, Any]:
    """The task of a new project whose predictions came from the model."""
    labels = "".join(f'<Label value="{label}"/>' for label in LABELS)
    image = '<Image name="image" value="$image" zoom="true"/>'
    config = f'<View>{image}<{shape} name="label" toName="image">{labels}</{shape}></View>'
    project = done(client.post("/api/projects", json={"title": shape, "label_config": config}))["id"]
    file = io.BytesIO()
    Image.fromarray(skimage.data.coffee()).save(file, "PNG")
    done(client.post(f"/api/projects/{project}/import", files={"file": ("coffee.png", file.getvalue(), "image/png")}))
    done(client.post("/api/ml", json={"project": project, "url": model, "title": "segclip"}))
    done(client.patch(f"/api/projects/{project}", json={"show_collab_predictions": True}))
    (task,) = done(client.get("/api/tasks", params={"project": project}))["tasks"]
    action = {"selectedItems": {"all": True, "excluded": []}, "filters": {"conjunction": "and", "items": []}}
    start = time.perf_counter()
    done(client.post("/api/dm/actions", params={"id": "retrieve_tasks_predictions", "project": project}, json=action))
    while not done(client.get(f"/api/tasks/{task['id']}"))["predictions"]:
        if time.perf_counter() - start > PATIENCE:
            raise SystemExit("no prediction came")
        time.sleep(0.5)
    print(f"{shape}: predicted after {time.perf_counter() - start:.1f} s", flush=True)
    return task


def check(task: dict[str, Any], shape: str, program: str) -> None:
    """Compare the stored prediction with what the segmenter finds."""
    result = Segmenter("mini").segment(skimage.data.coffee(), LABELS)
    labels = clean_labels(result.labels, 0.0005 * result.labels.size)
    (prediction,) = task["predictions"]
    drawn = {name: np.zeros(labels.shape, bool) for name in LABELS}
    for region in prediction["result"]:
        (name,) = region["value"][shape.lower()]
        drawn[name] |= draw(region, labels.shape, program)
    for index, name in enumerate(LABELS, 1):
        same = (drawn[name] == (labels == index)).mean()
        print(f"  {name}: {drawn[name].mean():.1%} of the photo, {same:.2%} of the pixels as the segmenter says")
    print(f"  score {prediction['score']:.2f}, {prediction['model_version']}", flush=True)


def draw(region: dict[str, Any], size: tuple[int, int], program: str) -> np.ndarray:
    if "rle" in region["value"]:  # read by Label Studio's own converter
        python = Path(program).with_name("python")
        given = json.dumps(region["value"]["rle"]).encode()
        decoded = subprocess.run([python, "-c", DECODE], input=given, stdout=subprocess.PIPE, check=True).stdout
        return np.frombuffer(decoded, np.uint8).reshape(*size, 4)[..., 3] > 0
    points = np.array(region["value"]["points"]) * [size[1] / 100, size[0] / 100]
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [points.round().astype(np.int32)], 1)
    return mask > 0


def shoot(address: str, task: dict[str, Any], file: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(f"{address}/user/login")
        page.fill("input[name=email]", USER)
        page.fill("input[name=password]", PASSWORD)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "/user/login" not in url)
        page.goto(f"{address}/projects/{task['project']}/data?task={task['id']}")
        page.wait_for_selector("canvas")
        page.wait_for_timeout(8000)
        page.screenshot(path=file)
        browser.close()
    print(f"  {file}", flush=True)


def done(response: httpx.Response) -> Any:
    if response.is_error:
        raise SystemExit(f"{response.request.method} {response.url}: {response.status_code} {response.text[:500]}")
    return response.json()


def wait_for(address: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if httpx.get(address, timeout=10).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{address} does not answer")
        time.sleep(0.5)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


if __name__ == "__main__":
    main()
