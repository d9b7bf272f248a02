"""The demo page in a real browser, as a Space serves it: Debian's chromium, driven by selenium."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import saved, segmenter

from afdcd_hf.demo import write_space

pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
TITLES = ["Plain", "${1+1} <b>odd</b>"]
SECONDS, SECONDS_TO_START = 60, 200  # Gradio's and transformers' imports take most on a busy machine


def noise(path: Path, height: int, width: int) -> Path:
    Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A Space of two models and two examples, run as the Hub runs it: `python app.py`."""
    folder = tmp_path_factory.mktemp("demo")
    models = {title: saved(folder / title[0], segmenter(seed)) for seed, title in enumerate(TITLES)}
    examples = [noise(folder / "first.png", 24, 40), noise(folder / "second.png", 32, 48)]
    space = write_space(models, folder / "space", examples)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not the environment's PYTHONPATH: the Space has to find the package in its own folder.
    environment = {**os.environ, "PYTHONPATH": "", "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "0"}
    with open(folder / "log", "w") as log:
        server = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}") or server.poll() is not None, SECONDS_TO_START)
        assert server.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def browser(address):
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1360,900")
    options.binary_location = CHROMIUM
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.get(address)
        wait_for(lambda: "24 pixels" in text(driver))
        yield driver
    finally:
        driver.quit()


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def wait_for(condition, seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


def text(browser) -> str:
    return browser.execute_script("return document.body.innerText")


def find(browser, selector: str) -> list:
    return browser.find_elements("css selector", selector)


def upload(browser, path: Path) -> None:
    find(browser, "button[aria-label='Clear'], button[title='Clear'], button[aria-label='Remove Image']")[0].click()
    wait_for(lambda: find(browser, "input[type=file]"))
    find(browser, "input[type=file]")[0].send_keys(str(path))


def test_the_page_has_a_result_of_each_model_fetches_nothing_from_elsewhere_and_fits_a_phone(browser):
    assert all(f"{title}: FCN on resnet18" in text(browser) for title in TITLES)
    assert all(f"{title} " in text(browser).split("From image to label map")[1] for title in TITLES)
    urls = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert urls and not [url for url in urls if "127.0.0.1" not in url and not url.startswith(("data:", "blob:"))]
    metrics = {"width": 360, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wait_for(lambda: browser.execute_script("return innerWidth") == 360)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360


def test_an_example_and_an_uploaded_image_are_segmented_and_a_file_that_is_none_gets_an_answer(browser, tmp_path):
    wait_for(lambda: len(find(browser, ".gallery-item")) == 2)  # Gradio loads the examples' code after the page's
    find(browser, ".gallery-item")[1].click()
    wait_for(lambda: "48 × 32 pixels" in text(browser))
    upload(browser, noise(tmp_path / "own.png", 30, 20))
    wait_for(lambda: "20 × 30 pixels" in text(browser))
    (tmp_path / "fake.jpg").write_text("this is no image")
    upload(browser, tmp_path / "fake.jpg")
    wait_for(lambda: "fake.jpg" in text(browser))
