"""The page in a real Chromium, with `mini`: what somebody sees who drops a photo there."""

import io
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from helpers.web_server import Served, segmenters_of, serve
from PIL import Image
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

from segclip.checkpoints.loading import load
from segclip.visualize import palette
from segclip.web.service import QUEUE_SIZE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium")
PHOTO = skimage.data.coffee()
TIMEOUT = 120_000  # milliseconds


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve({"mini": segmenters_of(load("mini", "cpu"))}, tmp_path_factory.mktemp("uploads")) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(PHOTO).save(tmp_path / "coffee.png")
    return tmp_path / "coffee.png"


def opened(browser: Browser, served: Served, width: int = 1280, height: int = 900) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(TIMEOUT)
    page.goto(served.address)
    page.wait_for_selector("#go")
    return page


def drop(page: Page, photo: Path) -> None:
    page.set_input_files("#photo input[type=file]", photo)
    page.wait_for_selector(".seg-photo img")


OPAQUE = """() => {
    for (let e = document.querySelector(".seg-photo"); e; e = e.parentElement)
        if (getComputedStyle(e).opacity !== "1") return false;
    return true;
}"""


def segment(page: Page, labels: str) -> None:
    page.fill("#labels textarea", labels)
    page.click("#go")
    page.wait_for_selector(".seg-table")


def shown(page: Page) -> np.ndarray:
    """What is seen of the photo, in its own size; the names on it hidden, the colours not fading."""
    page.wait_for_function(OPAQUE)  # gradio fades what it waits for
    page.add_style_tag(content=".seg-name { display: none !important } .seg-photo img { transition: none !important }")
    image = Image.open(io.BytesIO(page.locator(".seg-photo").screenshot())).convert("RGB")
    return np.asarray(image.resize(PHOTO.shape[1::-1]), dtype=np.float32)


@pytest.mark.slow
def test_from_a_photo_to_its_overlay(browser: Browser, served: Served, photo: Path) -> None:
    page = opened(browser, served)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.reload()
    drop(page, photo)
    before = shown(page)
    assert np.abs(before - PHOTO).mean() < 10
    segment(page, "cup, table\ndog")
    assert [url for url in requests if not url.startswith((served.address, "data:", "blob:"))] == []

    # The colour of "cup" is where the cup is, and nowhere else; and where the model said.
    overlay = shown(page)
    changed = np.abs(overlay - before).max(axis=2) > 25
    assert changed[120, 280] and not changed[10, 10] and not changed[390, 590]  # in the cup; corners of the table
    towards = overlay[120, 280] - before[120, 280]
    assert towards @ (palette(2)[1] - before[120, 280]) > 0
    query = served.service.query("cup, table, dog", "mini", "open", "auto")
    expected = served.service.segment(PHOTO, query).labels
    assert (changed == (expected > 0)).mean() > 0.97
    share = f"{(expected == 1).mean():.1%}"
    assert share in page.inner_text(".seg-row-1") and "cup" in page.inner_text(".seg-row-1")

    # An empty tick hides the label's colour.
    page.uncheck(".seg-row-1 input")
    page.mouse.move(1, 1)
    hidden = np.abs(shown(page) - before).max(axis=2) > 25
    assert (hidden & (expected == 1)).sum() < 0.05 * (expected == 1).sum()

    with page.expect_download() as download:
        page.click("text=Mask PNG")
    assert download.value.suggested_filename == "coffee.mask.png"
    np.testing.assert_array_equal(np.asarray(Image.open(download.value.path())), expected)
    page.close()


@pytest.mark.slow
def test_on_a_phone(browser: Browser, served: Served, tmp_path: Path, photo: Path) -> None:
    page = opened(browser, served, 375, 812)
    (tmp_path / "cat.jpg").write_text("no image")
    page.set_input_files("#photo input[type=file]", tmp_path / "cat.jpg")
    assert "not an image of a known format" in page.inner_text('[role="alert"]')
    page.click("#try-cat")
    page.wait_for_selector(".seg-photo img")
    assert "cat" in page.input_value("#labels textarea")
    assert not page.is_visible("#threshold input[type=range]")
    page.click("#how >> text=threshold")
    assert page.is_visible("#threshold input[type=range]")
    page.click("#go")
    page.wait_for_selector(".seg-table")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for part in ("#go", ".seg-photo", ".seg-table", ".seg-files"):
        box = page.locator(part).bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 375, part
    page.close()


@pytest.mark.slow
def test_labels_run_no_script(browser: Browser, served: Served, photo: Path) -> None:
    page = opened(browser, served)
    alerts: list[str] = []

    def note(dialog: Dialog) -> None:
        alerts.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    labels = ["<img src=x onerror=alert(1)>", "${alert(2)}", "{{constructor}}", "</style><script>alert(3)</script>"]
    page.click("#how >> text=none")
    drop(page, photo)
    segment(page, "\n".join(labels))
    seen = page.inner_text("#stage")
    assert alerts == [] and all(label in seen for label in labels)
    page.close()


@pytest.mark.slow
def test_a_full_queue_in_words(browser: Browser, served: Served, photo: Path) -> None:
    page = opened(browser, served)
    drop(page, photo)
    page.fill("#labels textarea", "cup")
    with ExitStack() as line:
        for _ in range(QUEUE_SIZE):
            line.enter_context(served.service.slot())
        page.click("#go")
        assert "waiting" in page.inner_text('[role="alert"]')
    page.click("#go")
    page.wait_for_selector(".seg-table")
    page.close()
