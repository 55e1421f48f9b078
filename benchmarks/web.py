"""`segclip web` under load: python benchmarks/web.py [PART ...] [--model mini]

Starts the command in a separate process, at 127.0.0.1, and measures (PARTs in this order; default: all):
  click    in Chromium, for a photo of 600x400: seconds from pressing Segment to the overlay, and from another label,
           background or protocol to its overlay; the same at the endpoint; bytes until the page is first seen
  twenty   20 people at once, with a photo each, three times with other labels: how many answers, how many were told to
           wait and came again, how many were lost
  hostile  bodies of 1 GiB in chunks, 220 slow connections, 500 requests that should be refused (damaged photos,
           decompression bombs, wrong types, path tricks ...), aborted uploads, pages of other origins; then whether
           the server still works, and its memory and open files. The server keeps encoded photos up to a bound: good
           photos fill them before either figure of memory, so that what differs is not what is kept

Needs the extra `test`, and for `click` Chromium.
"""

import argparse
import base64
import io
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np
import skimage.data
from PIL import Image

ROUNDS = 7
PEOPLE = 20
HOSTILE, SLOW, CHUNKED, ABORTED = 500, 220, 3, 100
MOST_KEPT = 64  # photos that the server keeps, if they take little memory
LABELS = ["cup", "table", "spoon", "cat"]
GIB, CHUNK = 2**30, 2**20
PATHS = (
    "/etc/passwd",
    "/static/../../../etc/passwd",
    "/examples/..%2f..%2fetc%2fpasswd.jpg",
    "/gradio_api/file=/etc/passwd",
)
CONFIG = '<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i"><Label value="cup"/></BrushLabels></View>'
SHOWN = "() => document.querySelector('#progress').hidden && document.querySelector('#canvas').ariaLabel !== '%s'"
FIRST = "() => performance.getEntries().reduce((sum, one) => sum + (one.transferSize || 0), 0)"


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
    photos = [photo_file("PNG", turned=number) for number in range(ROUNDS)]  # another each time: the server knows none
    report("endpoint, a new photo", [seconds(lambda photo=photo: ask(client, photo)) for photo in photos])
    sent = client.post("/photos", content=photos[0]).json()["photo_sha256"]
    asks = [{"labels": LABELS[:number]} for number in (1, 2, 3, 4)]
    asks += [{"labels": LABELS, "background": "none"}, {"labels": LABELS, "protocol": "paper"}]
    asks = [{"photo_sha256": sent, **ask} for ask in asks]
    report("endpoint, the same photo", [seconds(lambda one=one: client.post("/segment", json=one)) for one in asks])
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started, TemporaryDirectory() as folder:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.wait_for_selector("#examples button")
        page.wait_for_load_state("networkidle")
        print(f"  page: {page.evaluate(FIRST) / 1000:.0f} kB until it is seen")
        new, other = [], []
        for number in range(ROUNDS):
            file = Path(folder) / f"photo{number}.png"
            file.write_bytes(photo_file("PNG", turned=ROUNDS + number))
            page.click("#presets >> text=Clear")
            page.set_input_files("#file", file)
            page.wait_for_function("() => document.querySelector('#canvas').ariaLabel.includes('not segmented')")
            page.fill("#label", ", ".join(LABELS))
            new.append(until_shown(page, lambda: page.click("#go")))
            time.sleep(2)  # somebody looks at it
            other.append(until_shown(page, lambda: page.click("[aria-label='remove cat']")))
            other.append(until_shown(page, lambda: page.check("#background >> text=every pixel")))
            page.check("#background >> text=leave it")
            page.wait_for_timeout(1000)
            page.reload()
        browser.close()
    report("page, from the click to the overlay", new)
    report("page, from another setting to its overlay", other)


def until_shown(page: object, act: Callable[[], object]) -> float:
    before = page.get_attribute("#canvas", "aria-label")  # type: ignore[attr-defined]
    start = time.perf_counter()
    act()
    page.wait_for_function(SHOWN % before.replace("'", "\\'"))  # type: ignore[attr-defined]
    return time.perf_counter() - start


def report(what: str, times: list[float]) -> None:
    print(f"  {what}: median {statistics.median(times):.2f} s, worst {max(times):.2f} s of {len(times)}", flush=True)


def twenty(client: httpx.Client, process: int) -> None:
    waited: Counter[str] = Counter()

    def insist(send: Callable[[], httpx.Response]) -> httpx.Response:
        """As the page does: who is told to wait comes again."""
        while (response := send()).status_code == 503:
            waited["told to wait"] += 1
            time.sleep(int(response.headers["retry-after"]))
        return response

    def person(number: int) -> str:
        photo = photo_file("PNG", turned=100 + number)
        sha256 = insist(lambda: client.post("/photos", content=photo)).json()["photo_sha256"]
        for labels in (LABELS, LABELS[:2], [f"thing {number}"]):
            query = {"photo_sha256": sha256, "labels": labels}
            response = insist(lambda query=query: client.post("/segment", json=query))
            if response.json().get("labels") != labels:
                return f"LOST: {response.text[:200]}"
        return "served"

    start = time.perf_counter()
    with ThreadPoolExecutor(PEOPLE) as pool:
        counts = Counter(pool.map(person, range(PEOPLE)))
    print(f"  {PEOPLE} at once, 3 questions each: {dict(counts)}, {dict(waited)}, {time.perf_counter() - start:.1f} s")


def hostile(client: httpx.Client, process: int) -> None:
    kept = fill(client)
    before, files = memory(process), open_files(process)
    for part in (chunked, slow, uploads, aborted, origins):
        print(f"  {part.__name__}: {part(client)}", flush=True)
        print(f"    memory {memory(process)} MB, {'works' if works(client) else 'DOES NOT WORK'}", flush=True)
    time.sleep(15)  # what is idle is closed
    peak, kept_now = memory(process, "VmHWM"), fill(client)
    print(f"  memory before {before} MB, now {memory(process)} MB, peak {peak} MB; photos kept {kept}, {kept_now}")
    print(f"  open files before {files}, now {open_files(process)}; waiting {client.get('/health').json()['waiting']}")


def fill(client: httpx.Client) -> int:
    """Send good photos until only such are kept, as many as there is room for; how many that is."""
    for number in range(MOST_KEPT):
        client.post("/photos", content=photo_file("PNG", turned=number)).raise_for_status()
    return client.get("/health").json()["photos_kept"]


def chunked(client: httpx.Client) -> str:
    """Bodies of 1 GiB without a length."""
    counts: Counter[str] = Counter()
    for path in ("/photos", "/segment", "/predict")[:CHUNKED]:
        sent, chunk = 0, f"{CHUNK:x}\r\n".encode() + bytes(CHUNK) + b"\r\n"
        with connection(client) as one, suppress(OSError):
            one.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            for _ in range(GIB // CHUNK):
                one.sendall(chunk)
                sent += CHUNK
        counts[f"cut after about {sent / 2**20:.0f} MiB" if sent < GIB else "LET IN"] += 1
    return str(dict(counts))


def slow(client: httpx.Client) -> str:
    """Connections that send no header, half of one, or a body byte by byte, all held open while others ask."""
    starts = (
        b"",
        b"GET / HTTP/1.1\r\nHost: loc",
        b"POST /photos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\nx",
    )
    held = []
    for number in range(SLOW):
        held.append(connection(client))
        held[-1].sendall(starts[number % len(starts)])
    with httpx.Client(base_url=client.base_url, timeout=60) as other:
        times = [seconds(lambda: ask(other, photo_file("PNG"))) for _ in range(3)]
        served = works(other)
    for one in held:
        one.close()
    return f"{SLOW} held open: others are {'served' if served else 'SHUT OUT'} within {max(times):.2f} s"


def uploads(client: httpx.Client) -> str:
    """Requests that should be refused; what is counted is how they were answered."""
    chance, counts, odd = random.Random(0), Counter[str](), 0
    kinds = (damaged, bomb, wrong_type, long_labels, path_trick, bad_task, garbage, raw_upload)
    for number in range(HOSTILE):
        kind = kinds[number % len(kinds)]
        response = kind(client, chance)
        counts[f"{kind.__name__} {response.status_code}"] += 1
        odd += "Traceback" in response.text or "root:" in response.text or response.status_code == 500
    answers = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
    return f"{HOSTILE} ({answers}); with a traceback, a server file or status 500: {odd}"


def aborted(client: httpx.Client) -> str:
    """Uploads whose senders leave, some with a reset."""
    for number in range(ABORTED):
        one = connection(client)
        one.sendall(b"POST /photos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15000000\r\n\r\n")
        with suppress(OSError):
            one.sendall(bytes(random.Random(number).randrange(5_000_000)))
        if number % 2:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        one.close()
    return f"{ABORTED} uploads aborted"


def origins(client: httpx.Client) -> str:
    """What pages of other sites send, and names that lead here from elsewhere."""
    counts: Counter[int] = Counter()
    for origin in ("https://evil.example", "null", "http://localhost:1", "http://127.0.0.1.evil.example"):
        for path in ("/photos", "/segment", "/predict", "/setup"):
            counts[client.post(path, content=photo_file("PNG"), headers={"origin": origin}).status_code] += 1
    for host in ("evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example"):
        counts[client.get("/health", headers={"host": host}).status_code] += 1
    return f"answered with {dict(counts)}; let in: {counts[200]}"


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
    field = chance.choice(("photo", "labels", "model", "protocol", "background", "presence", "coco", "scores"))
    wrong = chance.choice((None, 5, -1e308, True, [], {}, [[]], "\0", "../x", ["a", 5], {"path": "/etc/passwd"}))
    return client.post("/segment", json={**good, field: wrong})


def long_labels(client: httpx.Client, chance: random.Random) -> httpx.Response:
    labels = chance.choice(
        (["w" * chance.randint(101, 10**6)], ["w"] * 10**5, "猫," * 10**5, "🐈" * 10**5, ["\0" * 101], [{}] * 10**6)
    )
    return client.post("/segment", json={"photo": "", "labels": labels})


def path_trick(client: httpx.Client, chance: random.Random) -> httpx.Response:
    return client.request(chance.choice(("GET", "POST", "PUT")), chance.choice(PATHS))


def bad_task(client: httpx.Client, chance: random.Random) -> httpx.Response:
    """A task of Label Studio whose photo is elsewhere, or a configuration that would grow."""
    photo = chance.choice(("http://127.0.0.1:1/x", "file:///etc/passwd", "http://169.254.169.254/", "data:,", None, 5))
    entities = '<!DOCTYPE x [<!ENTITY a "' + "a" * 1000 + '">]>'
    config = chance.choice((CONFIG, entities + CONFIG, "<View>" * 10_000, "", None))
    return client.post("/predict", json={"tasks": [{"data": {"i": photo}}], "label_config": config})


def garbage(client: httpx.Client, chance: random.Random) -> httpx.Response:
    body = chance.choice((b"[" * 10**5, b"{", b"\xff" * 100, chance.randbytes(1000), b'{"data": null}'))
    address = chance.choice(("/segment", "/predict", "/setup", "/webhook"))
    return client.post(address, content=body, headers={"content-type": "application/json"})


def raw_upload(client: httpx.Client, chance: random.Random) -> httpx.Response:
    return client.post("/photos", content=chance.randbytes(chance.randint(0, 5000)))


def ask(client: httpx.Client, photo: bytes) -> httpx.Response:
    return client.post("/segment", json={"photo": base64.b64encode(photo).decode(), "labels": LABELS})


def works(client: httpx.Client) -> bool:
    return ask(client, photo_file("PNG")).status_code == 200 and client.get("/").status_code == 200


def connection(client: httpx.Client) -> socket.socket:
    assert client.base_url.port
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=30)


def photo_file(form: str, turned: int = 0) -> bytes:
    """The photo, turned sideways by so many pixels."""
    file = io.BytesIO()
    Image.fromarray(np.roll(skimage.data.coffee(), turned, axis=1)).save(file, form)
    return file.getvalue()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def memory(process: int, which: str = "VmRSS") -> int:
    """Memory of a process in MB, now (VmRSS) or at its peak (VmHWM), from Linux."""
    status = Path(f"/proc/{process}/status")
    text = status.read_text() if status.exists() else ""
    return next((int(line.split()[1]) // 1024 for line in text.splitlines() if line.startswith(which)), 0)


def open_files(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").glob("*")))


if __name__ == "__main__":
    main()
