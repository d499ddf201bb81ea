"""ComfyUI's own frontend in Chromium: each template opened from the template browser, queued, its result seen."""

import json
import shutil
import time
from collections.abc import Iterator

import pytest

from demo.comfyui import PACK_NAME, REPO
from demo.workflows import names, node_titled, read, to_prompt

ARTIFACTS = REPO / "artifacts" / "host"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(server, browser) -> Iterator:
    # A first visit brings the template browser up by itself; as a returning visitor one opens it.
    server.client.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False})
    page = browser.new_page(viewport={"width": 1680, "height": 1050})
    page.goto(server.url)
    page.wait_for_function("window.app?.graph && window.app.vueAppReady", timeout=120_000)
    yield page
    page.close()


@pytest.mark.parametrize("name", names())
def test_a_template_opens_without_a_complaint_and_runs(server, object_info, page, name):
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_text(PACK_NAME, exact=True).first.click()
    page.locator(f'[data-testid="template-workflow-{name}"]').first.click()
    page.wait_for_function(
        "title => app.graph.nodes.some(node => node.title === title)", arg="Colormap", timeout=60_000
    )

    assert page.get_by_text("missing", exact=False).count() == 0
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    for node in sent.values():
        node.pop("_meta")
    assert sent == to_prompt(read(name), object_info)  # what the other tests send is what people send

    page.evaluate("() => app.queuePrompt(0)")
    result = node_titled(read(name), "Result")
    deadline = time.monotonic() + 300
    while not page.evaluate("id => app.graph.getNodeById(id).imgs?.[0]?.naturalWidth > 0", int(result)):
        assert time.monotonic() < deadline, "no result within five minutes"
        time.sleep(0.5)
    time.sleep(2)
    page.keyboard.press("Escape")
    page.keyboard.press(".")  # fit the view to the graph
    time.sleep(1)
    page.screenshot(path=ARTIFACTS / f"{name}.png")
    # The frontend marks a failed node and says so.
    assert page.locator(".p-toast-message-error").count() == 0
    assert not json.loads(page.evaluate("() => JSON.stringify(app.lastNodeErrors)") or "null")
