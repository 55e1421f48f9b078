"""`segclip web` under load: python benchmarks/web.py [PART ...] [--model mini]

Starts the command in a separate process, at 127.0.0.1, and measures (PARTs in this order; default: all):
  click    seconds from pressing Segment to the overlay in Chromium, for a photo of 600x400 and four labels; and the
           same at the endpoint
  twenty   20 people at once, at the endpoint and on the page: how many are served, how many are told to wait
  hostile  500 requests that should be refused: damaged photos, decompression bombs, wrong types, long labels, path
           tricks; then whether the server still works, and its memory

Needs the extra `test`, and for `click` Chromium.
"""

import argparse
import base64
import io
import random
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np
import skimage.data
from PIL import Image

ROUNDS = 7
PEOPLE = 20
HOSTILE = 500
LABELS = ["cup", "table", "spoon", "cat"]
PATHS = ("/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x.png", f"/tmp/{'0' * 64}/..")
ADDRESSES = ("/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://127.0.0.1:1/", "/static/../../../etc/passwd")


def main() -> None:
    parts = {"click": click, "twenty": twenty, "hostile": hostile}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *parts])
    parser.add_argument("--model", default="mini")
    arguments = parser.parse_args()
    with serve(arguments.model) as (address, process), httpx.Client(base_url=address, timeout=300) as client:
        for part in arguments.parts or parts:
            print(f"{part}:", flush=True)
            parts[part](client, process)


@contextmanager
def serve(model: str) -> Iterator[tuple[str, int]]:
    """The address and process id of the command."""
    command = [sys.executable, "-m", "segclip", "web", "--port", "0", "--model", model]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            yield next(line.strip() for line in process.stderr if line.startswith("http://")), process.pid
        finally:
            process.terminate()


def click(client: httpx.Client, process: int) -> None:
    times = [seconds(lambda: ask(client, photo_file("PNG"))) for _ in range(ROUNDS)]
    print(f"  endpoint: median {statistics.median(times):.2f} s, best {min(times):.2f} s of {ROUNDS}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started, TemporaryDirectory() as folder:
        file = Path(folder) / "photo.png"
        file.write_bytes(photo_file("PNG"))
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.set_input_files("#photo input[type=file]", file)
        page.wait_for_selector(".seg-photo img")
        times = []
        for number in range(ROUNDS):
            turned = LABELS[number % len(LABELS) :] + LABELS[: number % len(LABELS)]
            page.fill("#labels textarea", ", ".join(turned))  # the page does not redraw an identical answer
            page.evaluate("document.querySelector('.seg-table')?.remove()")  # so that the next one is new
            start = time.perf_counter()
            page.click("#go")
            page.wait_for_selector(".seg-table")
            times.append(time.perf_counter() - start)
        browser.close()
    print(f"  page: median {statistics.median(times):.2f} s, best {min(times):.2f} s of {ROUNDS}")


def twenty(client: httpx.Client, process: int) -> None:
    photo = photo_file("PNG")
    uploaded = client.post("/gradio_api/upload", files={"files": ("photo.png", photo)}).json()[0]

    def page(number: int) -> str:
        response = press(client, uploaded, f"person{number}")
        return "served" if "seg-table" in response.text else refusal(response)

    def endpoint(number: int) -> str:
        response = ask(client, photo)
        return "served" if "mask_png" in response.text else refusal(response)

    for name, one in (("endpoint", endpoint), ("page", page)):
        start = time.perf_counter()
        with ThreadPoolExecutor(PEOPLE) as pool:
            counts = Counter(pool.map(one, range(PEOPLE)))
        print(f"  {name}: {PEOPLE} at once, {dict(counts)}, {time.perf_counter() - start:.1f} s")


def hostile(client: httpx.Client, process: int) -> None:
    chance = random.Random(0)
    before = memory(process)
    kinds = (damaged, bomb, wrong_type, long_labels, path_trick, bad_upload, wrong_address, garbage)
    counts: Counter[str] = Counter()
    odd = 0
    for number in range(HOSTILE):
        kind = kinds[number % len(kinds)]
        response = kind(client, chance)
        counts[f"{kind.__name__} {response.status_code}"] += 1
        odd += "Traceback" in response.text or "root:" in response.text or response.status_code == 500
    for name, count in sorted(counts.items()):
        print(f"  {name}: {count}")
    print(f"  responses with a traceback, a server file or status 500: {odd}")
    served = ask(client, photo_file("PNG")).status_code == 200 and client.get("/").status_code == 200
    print(f"  still works: {served}; peak memory before {before} MB, after {memory(process)} MB")


def damaged(client: httpx.Client, chance: random.Random) -> httpx.Response:
    data = bytearray(photo_file(chance.choice(("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"))))
    for _ in range(chance.randint(1, 30)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return ask(client, bytes(data[: chance.randint(1, len(data))]))


def bomb(client: httpx.Client, chance: random.Random) -> httpx.Response:
    """A PNG that claims to be huge, or a large black one."""
    if chance.random() < 0.1:
        file = io.BytesIO()
        Image.new("L", (6000, 6600)).save(file, "PNG")
        return ask(client, file.getvalue())
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + chance.randint(7000, 2**31 - 1).to_bytes(4, "big") * 2
    header += b"\x08\x02\x00\x00\x00"
    return ask(client, header + zlib.crc32(header[12:]).to_bytes(4, "big") + b"\x00\x00\x00\x00IEND\xaeB`\x82")


def wrong_type(client: httpx.Client, chance: random.Random) -> httpx.Response:
    good = {"photo": base64.b64encode(photo_file("PNG")).decode(), "labels": LABELS}
    field = chance.choice(("photo", "labels", "model", "protocol", "background", "presence", "coco"))
    wrong = chance.choice((None, 5, -1e308, True, [], {}, [[]], "\0", "../x", ["a", 5], {"path": "/etc/passwd"}))
    return client.post("/segment", json={**good, field: wrong})


def long_labels(client: httpx.Client, chance: random.Random) -> httpx.Response:
    labels = chance.choice(
        (["w" * chance.randint(101, 10**6)], ["w"] * 10**5, "猫," * 10**5, "🐈" * 10**5, ["\0" * 101])
    )
    return client.post("/segment", json={"photo": "", "labels": labels})


def path_trick(client: httpx.Client, chance: random.Random) -> httpx.Response:
    return press(client, chance.choice(PATHS), f"hostile{chance.random()}")


def bad_upload(client: httpx.Client, chance: random.Random) -> httpx.Response:
    """Upload a file that is not a photo to the page, with a bad name."""
    name = chance.choice(
        ("../../x.png", "x.svg", "x.html", "a" * 300 + ".png", ".png", "\u202egnp.x", "x.png/..", "x.exe")
    )
    uploaded = client.post("/gradio_api/upload", files={"files": (name, chance.randbytes(chance.randint(0, 5000)))})
    if uploaded.status_code != 200:
        return uploaded
    return press(client, uploaded.json()[0], f"hostile{chance.random()}")


def wrong_address(client: httpx.Client, chance: random.Random) -> httpx.Response:
    return client.request(chance.choice(("GET", "POST", "PUT")), chance.choice(ADDRESSES))


def garbage(client: httpx.Client, chance: random.Random) -> httpx.Response:
    body = chance.choice((b"[" * 10**5, b"{", b"\xff" * 100, chance.randbytes(1000), b'{"data": null}'))
    address = chance.choice(("/segment", "/gradio_api/queue/join", "/gradio_api/upload"))
    return client.post(address, content=body, headers={"content-type": "application/json"})


def ask(client: httpx.Client, photo: bytes) -> httpx.Response:
    return client.post("/segment", json={"photo": base64.b64encode(photo).decode(), "labels": LABELS})


def press(client: httpx.Client, file: str, session: str) -> httpx.Response:
    """Press Segment on the page, for a file that was uploaded or said to be."""
    (button,) = [d["id"] for d in client.get("/config").json()["dependencies"] if len(d["inputs"]) == 6]
    photo = {"path": file, "meta": {"_type": "gradio.FileData"}}
    values = [photo, ", ".join(LABELS), "automatic", 0.5, "open", None]
    message = {"data": values, "fn_index": button, "session_hash": session}
    joined = client.post("/gradio_api/queue/join", json=message)
    if joined.status_code != 200:
        return joined
    return client.get("/gradio_api/queue/data", params={"session_hash": session})


def refusal(response: httpx.Response) -> str:
    waits = response.status_code == 503 and "retry-after" in response.headers
    return "told to wait" if waits or "waiting already" in response.text else f"LOST: {response.text[:200]}"


def photo_file(form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(skimage.data.coffee())).save(file, form)
    return file.getvalue()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def memory(process: int) -> int:
    """Peak memory of a process in MB, from Linux."""
    status = Path(f"/proc/{process}/status")
    text = status.read_text() if status.exists() else ""
    return next((int(line.split()[1]) // 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main()
