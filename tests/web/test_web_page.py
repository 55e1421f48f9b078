"""The page in a real Chromium, with `mini`: what somebody sees who drops a photo there."""

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from helpers.web_server import Served, segmenters_of, serve
from PIL import Image
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

from segclip.checkpoints.loading import load
from segclip.segment.segmenter import Segmenter
from segclip.web.service import QUEUE_SIZE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium"),
]
PHOTO = skimage.data.coffee()
TIMEOUT = 60_000  # milliseconds
LABELS = ["cup", "table", "dog"]


@pytest.fixture(scope="module")
def mini() -> Segmenter:
    return Segmenter(load("mini", "cpu"))


@pytest.fixture(scope="module")
def served(mini: Segmenter) -> Iterator[Served]:
    with serve({"mini": segmenters_of(mini.model)}) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    with opened(browser, served) as page:
        yield page


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(PHOTO).save(tmp_path / "coffee.png")
    return tmp_path / "coffee.png"


@contextmanager
def opened(browser: Browser, served: Served, **window: Any) -> Iterator[Page]:
    """The page in a window of its own; at the end, that nothing went wrong in it, nor was asked of another server."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **window})
    wrong: list[str] = []
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if "Policy" in message.text else None)
    own = (served.address, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
    page.goto(served.address)
    page.wait_for_selector("#examples button")
    yield page
    context.close()
    assert wrong == []


def write_labels(page: Page, *labels: str) -> None:
    page.click("#presets >> text=Clear")
    page.fill("#label", ",".join(labels))


def segment(page: Page, photo: Path, *labels: str) -> None:
    page.set_input_files("#file", photo)
    write_labels(page, *labels)
    page.click("#go")
    wait_for(page, labels)


def wait_for(page: Page, labels: Any) -> None:
    page.wait_for_function(
        "names => names.every(n => document.querySelector('#canvas').ariaLabel.includes(n)) && "
        "document.querySelector('#canvas').ariaLabel.includes('segmented:')",
        arg=list(labels),
    )


def shown(page: Page) -> np.ndarray:
    """What is seen on the canvas, in the photo's size; without names on it."""
    page.uncheck("#names")
    page.mouse.move(1, 1)
    page.wait_for_timeout(150)
    image = Image.open(io.BytesIO(page.locator("#canvas").screenshot())).convert("RGB")
    return np.asarray(image.resize(PHOTO.shape[1::-1]), dtype=np.float32)


def downloaded(page: Page, text: str) -> tuple[str, bytes]:
    with page.expect_download() as download:
        page.click(f"#downloads >> text={text}")
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def row(page: Page, label: str) -> Any:
    return page.locator("#rows tr", has_text=label)


def under(page: Page, x: float, y: float) -> str:
    """What is told when the mouse is over this pixel of the photo."""
    box = page.locator("#canvas").bounding_box()
    assert box
    page.mouse.move(box["x"] + x * box["width"] / PHOTO.shape[1], box["y"] + y * box["height"] / PHOTO.shape[0])
    return page.inner_text("#under")


def test_from_a_photo_to_its_overlay(page: Page, mini: Segmenter, photo: Path) -> None:
    segment(page, photo, *LABELS)
    expected = mini.segment(PHOTO, LABELS)
    overlay = shown(page)
    page.fill("#opacity", "0")
    plain = shown(page)
    assert np.abs(plain - PHOTO).mean() < 12
    page.fill("#opacity", "55")
    changed = np.abs(overlay - plain).max(axis=2) > 25
    assert ((changed == (expected.labels > 0)).mean()) > 0.95
    cup = expected.found()
    (share,) = [one.share for one in cup if one.label == "cup"]
    assert f"{100 * share:.1f} %" in row(page, "cup").inner_text()
    assert f"cup {100 * share:.1f} %" in (page.get_attribute("#canvas", "aria-label") or "")

    # What is under the pointer, and a pin.
    said = under(page, 280, 120)
    label, score = said.split(", score ")
    assert label == "cup" and abs(float(score) - expected.scores[120, 280]) < 0.01, "the page rounds twice"
    page.mouse.down()
    page.mouse.up()
    under(page, 5, 5)
    page.mouse.move(1, 1)
    assert page.inner_text("#under").startswith(f"{said} (pinned")
    page.focus("#canvas")
    page.keyboard.press("Escape")
    assert page.inner_text("#under") == ""
    page.keyboard.press("ArrowRight")
    assert ", score " in page.inner_text("#under")
    page.keyboard.press("Escape")

    # An empty tick hides the label; a tap on another shows it alone.
    row(page, "cup").locator("input[type=checkbox]").uncheck()
    hidden = np.abs(shown(page) - plain).max(axis=2) > 25
    assert (hidden & (expected.labels == 1)).sum() < 0.05 * (expected.labels == 1).sum()
    row(page, "cup").locator("input[type=checkbox]").check()
    row(page, "cup").locator("button").click()
    alone = np.abs(shown(page) - plain).max(axis=2) > 25
    assert (alone == (expected.labels == 1)).mean() > 0.95
    assert row(page, "cup").locator("button").get_attribute("aria-pressed") == "true"

    # Zoomed, the same pixel is told.
    page.click("#zoom-in")
    box = page.locator("#canvas").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    middle = expected.labels[PHOTO.shape[0] // 2, PHOTO.shape[1] // 2]
    assert page.inner_text("#under").startswith((expected.names[middle - 1] if middle else "background") + ",")

    name, mask = downloaded(page, "Mask PNG")
    assert name == "coffee.mask.png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mask))), expected.labels)
    name, overlay_png = downloaded(page, "Overlay PNG")
    assert name == "coffee.overlay.png" and Image.open(io.BytesIO(overlay_png)).size == PHOTO.shape[1::-1]
    record = json.loads(downloaded(page, "JSON")[1])
    assert record["labels"] == LABELS and record["not_found"] == expected.not_found()
    name, coco = downloaded(page, "COCO")
    assert name == "coffee.coco.json" and json.loads(coco)["images"][0]["file_name"] == "coffee.png"
    assert len(json.loads(coco)["annotations"]) == sum(found.index > 0 for found in expected.found())


def test_other_settings_are_answered_by_themselves(page: Page, served: Served, mini: Segmenter, photo: Path) -> None:
    """The photo is sent once; what follows needs no click on Segment."""
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if "/photos" in request.url else None)
    segment(page, photo, "cup", "rocket", "boat")
    assert {"rocket", "boat"} <= set(mini.segment(PHOTO, ["cup", "rocket", "boat"]).not_found())
    rocket = page.locator("#missing li", has_text="rocket")
    assert "rocket not found: it seems not to be in the photo" in rocket.inner_text()
    rocket.get_by_text("Look for it anyway").click()  # it, and no other
    rocket.get_by_text("Leave it out").wait_for()
    alone = mini.segment(PHOTO, ["cup", "rocket"], presence=None)
    mask = np.asarray(Image.open(io.BytesIO(downloaded(page, "Mask PNG")[1])))
    np.testing.assert_array_equal(mask, alone.labels)  # "boat" is left out as before
    assert "it seems not to be in the photo" in page.locator("#missing li", has_text="boat").inner_text()
    rocket.get_by_text("Leave it out").click()
    rocket.get_by_text("Look for it anyway").wait_for()
    page.click("#advanced summary")
    page.check("#presence")  # now for all
    page.wait_for_function("() => !document.querySelector('#missing button')")
    page.uncheck("#presence")
    page.wait_for_selector("#missing button")

    page.check("#background >> text=every pixel one of the labels")
    page.wait_for_function("() => !document.querySelector('#rows tr.none')")
    page.select_option("#protocol", "paper")
    page.check("#background >> text=leave it as background")
    page.wait_for_function("() => document.querySelector('#progress').hidden")
    page.wait_for_timeout(500)
    page.wait_for_function("() => document.querySelector('#progress').hidden")
    assert json.loads(downloaded(page, "JSON")[1])["protocol"] == "paper"
    assert len(sent) == 1

    # Earlier results can be looked at again.
    page.click("#past li:last-child button")
    assert "segmented:" in (page.get_attribute("#canvas", "aria-label") or "")

    # The server forgets, and gets the photo again by itself.
    served.service.encodings = type(served.service.encodings)()
    page.fill("#label", "saucer")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#canvas').ariaLabel.includes('saucer')")
    assert len(sent) == 2


def test_mostly_background(page: Page, mini: Segmenter, photo: Path) -> None:
    assert (mini.segment(PHOTO, ["rocket"]).labels == 0).all()
    segment(page, photo, "rocket")
    page.click("#every-pixel")
    page.wait_for_function("() => document.querySelector('#mostly').hidden")
    assert "100.0 %" in row(page, "rocket").inner_text()


def test_several_photos(page: Page, mini: Segmenter, photo: Path, tmp_path: Path) -> None:
    cat = skimage.data.chelsea()
    (tmp_path / "more").mkdir()
    Image.fromarray(cat).save(tmp_path / "more" / "coffee.png")  # the same name
    Image.fromarray(cat).save(tmp_path / "cat.tiff")  # which Chromium does not show
    write_labels(page, "cat", "cup")
    page.set_input_files("#file", [photo, tmp_path / "more" / "coffee.png", tmp_path / "cat.tiff"])
    page.wait_for_function("() => document.querySelectorAll('#photos button.done').length === 3")
    page.wait_for_function("() => document.querySelector('#progress').hidden")
    name, packed = downloaded(page, "All photos")
    assert name == "segclip.zip"
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.testzip() is None
        names = {
            f"{stem}.{end}"
            for stem in ("coffee", "coffee (2)", "cat")
            for end in ("mask.png", "overlay.png", "json", "coco.json")
        }
        assert set(archive.namelist()) == names
        mask = np.asarray(Image.open(io.BytesIO(archive.read("cat.mask.png"))))
        overlay = np.asarray(Image.open(io.BytesIO(archive.read("cat.overlay.png"))).convert("RGB"), np.float32)
    expected = mini.segment(cat, ["cat", "cup"]).labels
    np.testing.assert_array_equal(mask, expected)
    assert np.abs(overlay[expected == 0] - cat[expected == 0]).mean() < 12


def test_chips(page: Page) -> None:
    def chips() -> list[str]:
        return [text.strip(" ×\n") for text in page.locator("#chips li").all_inner_texts()]

    page.click("#presets >> text=Clear")
    page.type("#label", "cat, Potted  plant,")
    assert chips() == ["cat", "Potted plant"]
    page.type("#label", "CAT,dog")
    page.keyboard.press("Enter")
    assert chips() == ["cat", "Potted plant", "dog"]
    page.keyboard.press("Backspace")
    page.click("[aria-label='remove cat']")
    assert chips() == ["Potted plant"]
    page.evaluate("""() => {
        const event = new ClipboardEvent("paste", { clipboardData: new DataTransfer(), cancelable: true });
        event.clipboardData.setData("text", "car\\nbus\\n");
        document.querySelector("#label").dispatchEvent(event);
    }""")
    assert chips() == ["Potted plant", "car", "bus"]
    page.type("#label", "background,")
    assert "background" in page.inner_text("#alert")
    page.reload()
    page.wait_for_selector("#chips li")
    assert chips() == ["Potted plant", "car", "bus"]
    page.click("#presets >> text=VOC")
    assert len(chips()) == 20
    page.click("#presets >> text=COCO")
    assert len(chips()) == 80


def test_errors_in_words(browser: Browser, served: Served, page: Page, photo: Path, tmp_path: Path) -> None:
    page.click("#presets >> text=Clear")
    page.click("#go")
    assert page.inner_text("#alert").startswith("No photo yet")
    (tmp_path / "cat.jpg").write_text("no image")
    page.set_input_files("#file", [tmp_path / "cat.jpg", photo])
    page.wait_for_selector("#stage:not([hidden])")
    page.wait_for_function("() => document.querySelector('#alert').textContent.includes('cat.jpg: not an image')")
    page.click("#go")
    assert page.inner_text("#alert").startswith("No labels yet")
    assert page.is_visible("#canvas")  # the photo stays

    # The queue is full: it says so, and asks again.
    page.fill("#label", "cup")
    with ExitStack() as queue:
        for _ in range(QUEUE_SIZE):
            queue.enter_context(served.service.slot())
        page.click("#go")
        page.wait_for_function("() => document.querySelector('#progress').textContent.includes('waiting')")
    wait_for(page, ["cup"])


def test_on_a_phone(browser: Browser, served: Served) -> None:
    window = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "color_scheme": "dark"}
    with opened(browser, served, **window) as page:
        page.tap("#examples >> text=cat")
        wait_for(page, ["cat"])
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for part in ("#go", "#canvas", "#rows", "#downloads", "#history"):
            box = page.locator(part).bounding_box()
            assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390, part
        page.tap("#canvas")
        assert ", score " in page.inner_text("#under")
        assert contrasts(page) == []
    with opened(browser, served) as page:
        page.click("#examples >> text=cat")
        wait_for(page, ["cat"])
        page.click("#advanced summary")
        assert contrasts(page) == []


def contrasts(page: Page) -> list[Any]:
    """Texts that stand out less than WCAG 2.2 AA asks for (1.4.3: 4.5 to 1)."""
    return page.evaluate("""() => {
        const parts = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
        const light = ([r, g, b]) => [r, g, b].map((one) => one / 255)
            .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
            .reduce((sum, one, i) => sum + one * [0.2126, 0.7152, 0.0722][i], 0);
        const behind = (element) => {
            for (; element; element = element.parentElement) {
                const colour = parts(getComputedStyle(element).backgroundColor);
                if (colour.length === 3) return colour;
            }
        };
        const weak = [];
        for (const element of document.querySelectorAll("body *")) {
            const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
            if (!own || !element.checkVisibility()) continue;
            const [a, b] = [light(parts(getComputedStyle(element).color)), light(behind(element))];
            const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            if (ratio < 4.5) weak.push([element.outerHTML.slice(0, 80), ratio]);
        }
        return weak;
    }""")


def test_every_control_has_a_name_and_a_place_in_the_order(page: Page, photo: Path) -> None:
    segment(page, photo, "cup")
    page.click("#advanced summary")
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input, select, canvas:not([aria-hidden])")]
        .filter((one) => one.checkVisibility() && !(one.ariaLabel || one.textContent.trim() || one.labels?.length))
        .map((one) => one.outerHTML)""")
    assert nameless == []
    page.focus("#file")
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"label", "go", "opacity", "canvas", "alone", "beside"} <= seen


def test_labels_run_no_script(page: Page, photo: Path) -> None:
    alerts: list[str] = []

    def note(dialog: Dialog) -> None:
        alerts.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    labels = ["<img src=x onerror=alert(1)>", "${alert(2)}", "{{constructor}}", "</style><script>alert(3)</script>"]
    page.check("#background >> text=every pixel")
    segment(page, photo, *labels)
    seen = page.inner_text("#rows") + page.inner_text("#missing")
    assert alerts == [] and all(label in seen for label in labels)


def test_dropped_and_pasted_photos(page: Page) -> None:
    write_labels(page, "cat")
    give = """async ([kind, name]) => {
        const blob = await (await fetch("/examples/cat.jpg")).blob();
        const data = new DataTransfer();
        data.items.add(new File([blob], name, { type: "image/jpeg" }));
        const more = { bubbles: true, cancelable: true };
        document.body.dispatchEvent(kind === "drop" ? new DragEvent("drop", { dataTransfer: data, ...more })
            : new ClipboardEvent("paste", { clipboardData: data, ...more }));
    }"""
    page.evaluate(give, ["drop", "dropped.jpg"])
    wait_for(page, ["dropped.jpg"])
    page.evaluate(give, ["paste", "pasted.jpg"])
    wait_for(page, ["pasted.jpg"])
