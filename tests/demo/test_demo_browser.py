"""The demo page in a real browser, as a Space serves it: Debian's Chromium, driven by playwright."""

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
pytest.importorskip("playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="needs chromium")]
TITLES = ["Plain", "${1+1} <b>odd</b>"]
SECONDS_TO_START = 200  # importing Gradio and transformers takes most of it on a busy machine


def noise(path: Path, height: int, width: int) -> Path:
    Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A Space with two models and two examples, started as on the Hub: `python app.py`."""
    folder = tmp_path_factory.mktemp("demo")
    models = {title: saved(folder / title[0], segmenter(seed)) for seed, title in enumerate(TITLES)}
    examples = [noise(folder / "first.png", 24, 40), noise(folder / "second.png", 32, 48)]
    space = write_space(models, folder / "space", examples)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Without PYTHONPATH, since the Space must find the package in its own folder.
    environment = {**os.environ, "PYTHONPATH": "", "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "0"}
    with open(folder / "log", "w") as log:
        server = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + SECONDS_TO_START
        while not answers(f"http://127.0.0.1:{port}"):
            assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture
def tab(address):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1360, "height": 900})
        tab.set_default_timeout(60_000)
        tab.goto(address)
        tab.get_by_text("40 × 24 pixels").wait_for()
        yield tab
        browser.close()


def upload(tab, path: Path) -> None:
    tab.locator("button[aria-label='Clear'], button[title='Clear'], button[aria-label='Remove Image']").first.click()
    tab.locator("input[type=file]").first.set_input_files(path)


def test_the_page_shows_each_models_result_loads_nothing_from_other_servers_and_fits_a_phone(tab):
    text = tab.inner_text("body")
    assert all(f"{title}: FCN on resnet18" in text for title in TITLES)
    assert all(f"{title} " in text.split("From image to label map")[1] for title in TITLES)
    urls = tab.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert urls and not [url for url in urls if "127.0.0.1" not in url and not url.startswith(("data:", "blob:"))]
    tab.set_viewport_size({"width": 360, "height": 800})
    tab.wait_for_function("innerWidth == 360")
    assert tab.evaluate("document.documentElement.scrollWidth") == 360


def test_an_example_and_an_upload_are_segmented_and_a_file_that_is_not_an_image_gets_an_error(tab, tmp_path):
    tab.locator(".gallery-item").nth(1).click()
    tab.get_by_text("48 × 32 pixels").wait_for()
    upload(tab, noise(tmp_path / "own.png", 30, 20))
    tab.get_by_text("20 × 30 pixels").wait_for()
    (tmp_path / "fake.jpg").write_text("this is no image")
    upload(tab, tmp_path / "fake.jpg")
    tab.get_by_text("fake.jpg").first.wait_for()
