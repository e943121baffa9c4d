"""The page of `examples/server` in a real browser: headless Chromium, driven by selenium."""

from __future__ import annotations

import base64
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures import WAIT, Gate
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from serving import Service, serving

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"),
]


@pytest.fixture(scope="module")
def service(session_folder: Path, warm: None) -> Iterator[Service]:
    with serving("--fork", "--preload", "matplotlib.pyplot", "--size", "2", "--max-time", "1000") as service:
        yield service


@pytest.fixture(scope="module")
def browser(session_folder: Path, service: Service) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless=new",
        "--no-sandbox",  # root cannot have a sandbox
        "--disable-dev-shm-usage",
        "--disable-gpu",
        f"--user-data-dir={session_folder / 'browser'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as browser:
        yield browser


class Page:
    """The actions of a user at the page, and the visible results."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        browser.get(url)

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def type(self, code: str) -> None:
        self.find("#code").clear()
        self.find("#code").send_keys(code)

    def run(self, code: str) -> str:
        """Run the code to its end; returns the status line."""
        self.type(code)
        self.find("#run").click()
        self.wait_for(lambda: self.find("#run").is_enabled())
        return self.status

    def wait_for(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.browser, WAIT, poll_frequency=0.02).until(lambda _: condition())

    @property
    def output(self) -> str:
        return self.find("#output").text

    @property
    def status(self) -> str:
        return self.find("#status").text

    def complaints(self) -> list[str]:
        """The messages in the log of the browser."""
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture
def page(browser: webdriver.Chrome, service: Service) -> Iterator[Page]:
    page = Page(browser, service.url)
    yield page
    assert page.complaints() == []


def test_output_is_seen_while_the_code_runs(page: Page, gate: Gate) -> None:
    assert page.status == "Ready."
    page.type(f"print('before'); {gate.code} print('after')")
    page.find("#code").send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait_for(lambda: page.output == "before")
    assert page.status == "Running…"
    assert not page.find("#run").is_enabled()
    gate.open()
    page.wait_for(lambda: page.find("#run").is_enabled())
    assert page.output == "before\nafter"
    assert page.status.startswith("Done (")
    assert not page.find("#stop").is_enabled()


def test_stop_ends_the_code(page: Page) -> None:
    page.type("print(1)\nwhile True: pass")
    page.find("#run").click()
    page.wait_for(lambda: page.output == "1")
    page.find("#stop").click()
    page.wait_for(lambda: page.status == "Stopped.")
    assert page.run("print(2)").startswith("Done (")
    assert page.output == "2"


def test_streams_and_errors_are_told_apart(page: Page) -> None:
    code = "import sys\nprint('out', flush=True)\nprint('err', file=sys.stderr, flush=True)\n1 / 0"
    assert page.run(code).startswith("ZeroDivisionError: division by zero (")
    assert page.find(".stdout").text == "out"
    assert page.find(".stderr").text == "err"
    traceback = page.find(".error").text
    assert "ZeroDivisionError" in traceback
    assert "\x1b" not in traceback
    assert "[31m" not in traceback
    assert page.find(".error .red")


def test_text_that_javascript_takes_for_several_lines_is_shown(page: Page) -> None:
    assert page.run(r"print('a\u2028b\u2029c'); raise ValueError('\u2028')").startswith("ValueError: ")
    assert page.find(".stdout").get_property("textContent") == "a\u2028b\u2029c\n"


def test_plots_are_images(page: Page) -> None:
    code = "import matplotlib.pyplot as plt; plt.plot([1, 3, 2]); plt.show()"
    assert page.run(code).startswith("Done (")
    assert width_of(page, "img") > 100


def test_png_is_an_image(page: Page) -> None:
    picture = base64.b64encode(png(width=3, height=2)).decode()
    page.run(f"from IPython.display import Image\nfrom base64 import b64decode\nImage(b64decode('{picture}'))")
    assert width_of(page, "img") == 3


def test_svg_is_an_image_without_scripts(page: Page) -> None:
    code = """from IPython.display import SVG
SVG('<svg xmlns="http://www.w3.org/2000/svg" width="5" height="5"><script>top.document.title = "x"</script></svg>')"""
    page.run(code)
    assert width_of(page, "img") == 5
    assert page.browser.title == "Run Python"


def test_html_does_not_script_the_page(page: Page) -> None:
    script = 'for (const page of [document, top.document]) page.body.textContent = page.title = "scripted"'
    page.run(f"""from IPython.display import HTML, Javascript, display
display(HTML('<b id="there">bold</b><img src="/nowhere" onerror=\\'{script}\\'><script>{script}</script>'))
display(Javascript('{script}'))
print('<script>{script}</script>')""")
    page.browser.switch_to.frame(page.find("iframe"))
    assert page.find("body").text == "bold"
    page.browser.switch_to.default_content()
    assert page.browser.title == "Run Python"
    assert page.find(".stdout").text == f"<script>{script}</script>"
    page.complaints()  # a message about blocked scripts, or none: it depends on where the browser runs the frame


def test_output_changes_as_the_code_asks(page: Page) -> None:
    page.run("""from IPython.display import clear_output, display
print('gone'); clear_output(wait=True); print('0%\\r50%\\r', end='', flush=True); print('100%')
shown = display('first', display_id=True); print('between'); shown.update('second')""")
    assert page.output == "100%\n'second'\nbetween"


def test_refusal_is_shown(page: Page) -> None:
    assert page.run("import os; os._exit(3)").startswith("the kernel 'python3' died (exit code 3)")
    page.browser.execute_script("document.getElementById('code').value = '#'.repeat(100000)")
    page.find("#run").click()
    page.wait_for(lambda: page.status.startswith("Failed: the body of a request may have 65536 bytes at most"))
    assert "413" in page.complaints()[0]


def width_of(page: Page, selector: str) -> int:
    """The natural width of an image; 0 if it cannot be shown."""
    image = page.find(selector)
    page.wait_for(lambda: image.get_property("complete"))
    return int(image.get_property("naturalWidth"))


def png(width: int, height: int) -> bytes:
    """A grey picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
