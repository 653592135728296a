"""The page in headless Chromium, over a live server."""

import base64
import http.client
import io
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import CHECKOUT, PATIENCE, Live, add_model, eventually, free_ports, running
from PIL import Image

from serving.client import SamplingError
from serving.page.pictures import tile
from serving.page.server import LARGEST

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on PATH", allow_module_level=True)

# Writes down whom the page's process calls.
WATCHED = """
import runpy, sys

def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        with open(LOG, "a") as log:
            print(event, arguments[1] if event == "socket.connect" else arguments[0], file=log)

LOG = sys.argv.pop(1)
sys.addaudithook(hook)
runpy.run_module("serving", run_name="__main__")
"""
MILLISECONDS = 1000 * PATIENCE


@dataclass
class Shown:
    url: str
    calls: Path
    browser: Any

    def called_outside(self) -> list[str]:
        """What it has asked for of others than this machine."""
        here = ("127.0.0.1", "localhost", "::1")
        return [call for call in self.calls.read_text().splitlines() if not any(name in call for name in here)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shown(live: Live, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("page")
    with page_of(folder, browser, "--url", live.url("grpc"), "--metrics-url", live.url("metrics")) as shown:
        yield shown


@contextmanager
def page_of(folder: Path, browser: Any, *options: str) -> Iterator[Shown]:
    (port,) = free_ports(1)
    command = [sys.executable, "-c", WATCHED, folder / "calls", "page", "--port", str(port), *options]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=log, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: "Ctrl-C" in (folder / "log").read_text() or process.poll() is not None, "the page is up")
        assert process.poll() is None, (folder / "log").read_text()
        yield Shown(f"http://127.0.0.1:{port}", folder / "calls", browser)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    assert not {"Traceback", "Aborted"} & {*re.findall(r"\w+", (folder / "log").read_text())}


class Visit:
    """One page that is open."""

    def __init__(self, shown: Shown, model: str | None, width: int = 1280, height: int = 900) -> None:
        self.context = shown.browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(MILLISECONDS)
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(shown.url if model is None else f"{shown.url}/?model={model}")
        if model is not None:
            self.wait(f"document.querySelector('#model input')?.value === '{model}'")

    def wait(self, expression: str) -> None:
        self.page.wait_for_function(expression)

    def fill(self, field: str, value: object) -> None:
        box = self.page.locator(f"#{field} input:not([type=range]), #{field} textarea").first
        box.fill(str(value))
        box.dispatch_event("change")
        box.blur()

    def choose(self, model: str) -> None:
        box = self.page.locator("#model input").first
        box.click()
        box.fill(model)
        box.press("Enter")

    def tab_to(self, selector: str) -> None:
        for _ in range(60):
            if self.page.evaluate(f"document.activeElement.matches('{selector}, {selector} *')"):
                return
            self.page.keyboard.press("Tab")
        pytest.fail(f"{selector} is not reached")

    def draw(self, button: str = "#go") -> None:
        self.page.click(button)
        self.drawn()

    def drawn(self) -> None:
        self.wait("/samples? (is|are) drawn/.test(document.querySelector('#status').innerText)")

    def status(self) -> str:
        return str(self.page.inner_text("#status")).strip()

    def pictures(self, count: int) -> list[np.ndarray]:
        self.wait(f"document.querySelectorAll('#samples button img').length === {count}")
        sources = self.page.eval_on_selector_all(
            "#samples button img",
            """images => Promise.all(images.map(async image => {
                const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
                return btoa(String.fromCharCode(...bytes));
            }))""",
        )
        return [np.array(Image.open(io.BytesIO(base64.b64decode(source)))) for source in sources]


@pytest.fixture
def visit(shown: Shown) -> Iterator[Any]:
    visits: list[Visit] = []

    def open_page(*arguments: object, **options: int) -> Visit:
        visits.append(Visit(shown, *arguments, **options))
        return visits[-1]

    yield open_page
    for one in visits:
        one.context.close()
        assert not one.errors
        assert {url.split("/")[2] for url in one.asked if "://" in url} == {shown.url.split("/")[2]}


def test_the_pixels_are_those_of_sample(live: Live, shown: Shown, visit: Any, tmp_path: Path) -> None:
    page = visit("tiny")
    page.wait("document.querySelector('#steps input')?.value === '4'")
    page.fill("seed", 7)
    page.fill("count", 3)
    page.fill("steps", 6)
    assert not page.page.locator("#opacity").is_visible(), "there is nothing to look at yet"
    page.draw()
    page.fill("opacity", 0)
    with live.client("grpc") as client:
        samples = client.sample("tiny", 3, seed=7, steps=6)
    bare = [np.array(tile(samples, row, 0.0)) for row in range(3)]
    eventually(lambda: all(map(np.array_equal, page.pictures(3), bare)), "the masks are gone")
    assert "--seed 7" in page.page.inner_text("#command")
    page.fill("opacity", 0.5)
    wanted = np.array(tile(samples, 2, 0.5))
    eventually(lambda: np.array_equal(page.pictures(3)[2], wanted), "the mask is mixed in")
    page.page.click("#save")
    with page.page.expect_download() as download:
        page.page.click("#file a[download], #file a")
    with np.load(download.value.path()) as taken:
        assert np.array_equal(taken["image"], samples.arrays["image"])
    assert samples.provenance[0]["bundle"] in page.page.inner_text("#provenance")
    page.draw("#next")
    page.wait("document.querySelector('#command').innerText.includes('--seed 10')")
    assert not shown.called_outside()


def test_nobody_has_the_page_ask_others(shown: Shown, visit: Any) -> None:
    """Gradio would fetch what a request names, of machines in the internet."""
    asked = f"{shown.url}/gradio_api/file=http://example.com/picture.png"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(asked)
    page = visit("tiny_picture")
    page.page.route(
        "**/gradio_api/upload*", lambda route: route.fulfill(json=["http://example.com/picture.png"], status=200)
    )
    page.page.set_input_files("#files input[type=file]", {"name": "a.png", "mimeType": "image/png", "buffer": b"x"})
    page.page.wait_for_selector("#files >> text=a.png")
    with page.page.expect_response(lambda answer: answer.request.method == "POST" and answer.status != 200):
        page.page.click("#go")
    assert not shown.called_outside()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{shown.url}/gradio_api/runs")


def test_a_file_that_is_too_large_is_not_taken(shown: Shown) -> None:
    """It would fill the disk of the machine that shows the page."""
    for bytes_given, status in ((1000, 200), (LARGEST + 1000, 413)):
        head, tail = (
            b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n',
            b"\r\n--edge--\r\n",
        )
        connection = http.client.HTTPConnection(shown.url.removeprefix("http://"))
        sent = head + bytes(bytes_given) + tail
        connection.request("POST", "/gradio_api/upload", sent, {"Content-Type": "multipart/form-data; boundary=edge"})
        assert connection.getresponse().status == status
        connection.close()


def test_who_comes_by_another_machine_s_name_is_refused(shown: Shown) -> None:
    """A page of theirs, whose name was made to lead here."""
    for name, status in (("localhost", 200), ("example.com", 400)):
        connection = http.client.HTTPConnection(shown.url.removeprefix("http://"))
        connection.request("GET", "/config", headers={"Host": f"{name}:{connection.port}"})
        assert connection.getresponse().status == status
        connection.close()


def test_a_server_that_comes_up_later_is_found(browser: Any, tmp_path: Path) -> None:
    add_model(repository := tmp_path / "models", "tiny")
    (port,) = free_ports(1)
    with page_of(tmp_path, browser, "--url", f"127.0.0.1:{port}") as shown:
        page = Visit(shown, None)
        page.wait("document.querySelector('#about')?.innerText.includes('no server answers')")
        with running(repository, f"--grpc-port={port}"):
            page.wait("document.querySelector('#model input')?.value === 'tiny'")
            page.draw()
        page.context.close()


def test_what_is_refused_is_said_in_the_servers_words(live: Live, visit: Any) -> None:
    with pytest.raises(SamplingError) as theirs, live.client("grpc") as client:
        client.sample("tiny", 1, steps=5000, solver="ddim")
    page = visit("tiny")
    page.wait("document.querySelector('#steps input')?.value === '4'")
    page.fill("steps", 5000)
    page.page.click("#go")
    page.page.wait_for_selector("#status [role=alert]")
    assert page.status() == str(theirs.value)
    assert page.page.get_attribute("#status", "role") == "status"  # what changes in it is read aloud


def test_next_leaves_no_seed_out(visit: Any) -> None:
    page = visit("tiny")
    page.wait("document.querySelector('#steps input')?.value === '4'")
    page.draw()
    page.fill("steps", 0)
    page.page.click("#next")
    page.page.wait_for_selector("#status [role=alert]")
    page.fill("steps", 5)
    page.page.click("#next")
    page.wait("document.querySelector('#command').innerText.includes('--steps 5')")
    assert "--seed 4 " in " ".join(page.page.inner_text("#command").split())


def test_a_chain_need_not_draw_a_mask_to_refuse_the_steps_of_its_image(visit: Any) -> None:
    page = visit("cmr_flow")
    page.wait("document.querySelector('#mask_steps input')?.value === '4'")
    page.fill("steps", 0)
    page.page.click("#go")
    page.page.wait_for_selector("#status [role=alert]")
    assert page.status() == "steps is 0; it must be from 1 to 1000"
    assert page.page.locator("#go").is_enabled()


def test_the_keyboard_is_enough(visit: Any) -> None:
    page = visit("tiny")
    page.wait("document.querySelector('#steps input')?.value === '4'")
    keyboard, tab_to = page.page.keyboard, page.tab_to
    tab_to("#model")
    keyboard.press("Control+A")
    keyboard.type("cmr_flow")
    keyboard.press("Enter")
    page.wait("document.querySelector('#mask_steps input')?.value === '4'")
    tab_to("#seed")
    keyboard.press("Control+A")
    keyboard.type("12")
    tab_to("#go")
    keyboard.press("Enter")
    page.drawn()
    before = page.pictures(4)
    tab_to("#samples button")
    keyboard.press("Enter")
    assert "seed 12" in page.page.inner_text("#samples")
    assert all(name in page.page.inner_text("#legend") for name in ("LV", "MYO", "RV"))
    keyboard.press("Escape")
    tab_to("#opacity input[type=range]")
    for _ in range(5):
        keyboard.press("ArrowRight")
    page.wait("document.querySelector('#opacity input[type=range]').value > 0.4")
    eventually(lambda: not all(map(np.array_equal, before, page.pictures(4))), "the masks are seen better")
    tab_to("#save")
    keyboard.press("Enter")
    page.page.wait_for_selector("#file a[download]")


def test_a_phone_is_wide_enough(visit: Any) -> None:
    page = visit("cmr_flow", width=360, height=740)
    page.draw()
    page.pictures(4)
    assert page.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for selector in ("#go", "#next", "#samples", "#command", "#save", "#opacity", "#model"):
        box = page.page.locator(selector).bounding_box()
        assert box["x"] >= 0, selector
        assert box["x"] + box["width"] <= 360, selector


def test_masks_and_pictures_of_ones_own(live: Live, visit: Any, tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "photo: $5.png")
    page = visit("tiny_picture")
    page.page.set_input_files("#files input[type=file]", tmp_path / "photo: $5.png")
    page.page.wait_for_selector("#files >> text=photo")
    page.draw()
    (picture,) = page.pictures(1)
    assert picture.shape == (16, 16 + 2 + 16, 3)
    assert np.array_equal(picture[:, :16, 0], grey)
    assert "Side by side: photo (given), image" in page.page.inner_text("#legend")
    assert "photo: $5.png: 8-bit" in page.status()
    assert "--condition 'photo: $5.png'" in page.page.inner_text("#command").replace("\n", "")
    assert "near copy" in page.page.inner_text("#provenance")
    assert "near copy" in page.page.inner_text("#legend")
    assert "but for those that you give. Not for diagnosis" in page.page.inner_text(".synthetic")
    assert page.page.locator("#opacity").is_visible()


def test_labels(live: Live, visit: Any) -> None:
    page = visit("tiny_label")
    page.wait("document.querySelector('#labels')?.innerText.includes('normal')")
    page.fill("count", 2)
    box = page.page.locator("#labels input")
    box.click()
    box.fill("malig")
    box.press("Enter")
    page.wait("document.querySelector('#labels').innerText.includes('malignant')")
    box.press("Escape")
    page.draw()
    with live.client("grpc") as client:
        expected = client.sample("tiny_label", 2, label=["normal", "malignant"])
    for row, picture in enumerate(page.pictures(2)):
        assert np.array_equal(picture[..., 0], np.array(tile(expected, row, 0.4).convert("RGB"))[..., 0])
    assert not page.page.locator("#opacity").is_visible(), "there is no mask"
    assert "--label normal --label malignant" in " ".join(page.page.inner_text("#command").split())


def test_cancel(live: Live, visit: Any) -> None:
    page = visit("tiny_gated")
    page.wait("document.querySelector('#steps input')?.value === '4'")
    with live.closed("tiny_gated") as waiting:
        page.page.click("#go")
        eventually(waiting.exists, "the model has begun")
        page.wait("document.querySelector('#status').innerText.includes('0 of 4 samples')")
        page.tab_to("#stop")
        page.page.keyboard.press("Enter")
        page.wait("document.querySelector('#status').innerText.includes('Cancelled, with 0 of 4 samples drawn')")


def test_no_press_is_lost(live: Live, visit: Any) -> None:
    page = visit("tiny")
    for turn in range(6):
        for model in ("cmr_flow", "tiny", "cmr_ddpm")[turn % 3 :]:
            page.choose(model)
        page.fill("seed", 100 * turn)
        page.page.click("#go")
        page.wait(f"document.querySelector('#command')?.innerText.includes('--seed {100 * turn} ')")
        page.page.click("#next")
        page.wait(
            "document.querySelector('#stop').click(), document.querySelector('#status').innerText.includes('Cancelled')"
            f" || document.querySelector('#command')?.innerText.includes('--seed {100 * turn + 4} ')"
        )
    assert not [url for url in page.asked if "/queue/" in url], "its stream loses an event that begins as another ends"


def test_nothing_is_drawn_by_the_fields_of_another_model(live: Live, visit: Any) -> None:
    page = visit("tiny")
    page.wait("document.querySelector('#go').disabled === false")
    with live.closed("tiny_gated") as waiting:
        page.choose("tiny_gated")
        page.wait("document.querySelector('#go').disabled && document.querySelector('#next').disabled")
        eventually(waiting.exists, "the model is asked how it draws")
        page.choose("cmr_flow")
    page.wait("document.querySelector('#mask_steps input')?.value === '4'")
    page.draw()
    assert "--solver euler" in " ".join(page.page.inner_text("#command").split())
