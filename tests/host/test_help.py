"""The help pages in ComfyUI's own help panel, with their pictures."""

import shutil
from collections.abc import Iterator

import pytest

from demo.comfyui import REPO
from demo.help_pictures import PICTURES

ARTIFACTS = REPO / "artifacts" / "host"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")]

OPEN = """name => {
    const stores = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia._s
    app.extensionManager.sidebarTab.activeSidebarTabId = "node-library"
    stores.get("nodeHelp").openHelp(stores.get("nodeDef").nodeDefsByName[name])
}"""
PICTURE = ".node-help-content img"


@pytest.fixture(scope="module", params=["en", "zh"])
def page(server, request) -> Iterator:
    from playwright.sync_api import sync_playwright

    server.client.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Locale": request.param})
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.language = request.param
        page.goto(server.url)
        page.wait_for_function("window.app?.graph && window.app.vueAppReady", timeout=120_000)
        yield page
        browser.close()
    server.client.post("/settings", {"Comfy.Locale": "en"})


@pytest.mark.parametrize("name", PICTURES)
def test_the_panel_shows_the_page_and_its_picture(page, name):
    page.evaluate(OPEN, name)
    file = REPO / "web" / "docs" / (f"{name}.md" if page.language == "en" else f"{name}/zh.md")
    heading = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    page.locator(".node-help-content h1", has_text=heading).wait_for(timeout=20_000)
    page.wait_for_function(
        "selector => [...document.querySelectorAll(selector)].some(one => one.naturalWidth > 0)", arg=PICTURE
    )
    assert page.locator(PICTURE).count() == 1
    page.screenshot(path=ARTIFACTS / f"help_{name}_{page.language}.png")
