"""A headless Chromium for tests of pages: `from browser import browser, open_page`.

A page is a file; nothing that it asks of the network gets through, and asking counts as a problem.
"""
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = "chromium", "chromium-browser", "google-chrome-stable", "google-chrome"
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run", "--hide-scrollbars"]


@pytest.fixture(scope="module") # not longer: while it lives, no other test could run an event loop of its own
def browser():
    "A started browser, or a skip that says what is missing."
    if not CHROMIUM: pytest.skip("no browser: none of " + ", ".join(NAMES) + " is on the PATH, nor is CHROMIUM set")
    api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed: pip install playwright")
    with api.sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield started
        started.close()


@contextmanager
def open_page(browser,
              path: Path|str|None, # of an HTML file, with its #hash if it has one; None: a blank page
              scheme: str="light", # what the reader prefers, "light" or "dark"
              width: int=1280, height: int=900, # of the window
              script: bool=True, # is JavaScript switched on?
              init: str|None=None, # JavaScript to run before the page's own
              **context): # more for `new_context`
    "A page in a context of its own. `page.problems` lists errors and warnings of the console, exceptions and wishes for the network."
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height}, java_script_enabled=script, **context)
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.problems = []
    page.on("console", lambda m: m.type in ("error", "warning") and page.problems.append(f"{m.type}: {m.text}"))
    page.on("pageerror", lambda e: page.problems.append(f"exception: {e}"))
    page.on("requestfailed", lambda r: page.problems.append(f"not loaded: {r.url}"))
    context.route(lambda url: not url.startswith(("file:", "data:", "blob:", "about:")), lambda route: route.abort())
    if init: page.add_init_script(init)
    if path is not None:
        file, _, mark = str(path).partition("#")
        page.goto(Path(file).resolve().as_uri() + ("#" + mark if mark else ""))
    try: yield page
    finally: context.close()


def overflow(page) -> int:
    "How many pixels the page is wider than the window."
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
