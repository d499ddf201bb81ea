"""The help pages as people see them in ComfyUI, with their pictures."""

from collections.abc import Iterator

import pytest

from demo.comfyui import REPO
from demo.help_pictures import DOCS, PICTURES

ARTIFACTS = REPO / "artifacts" / "host"

SHOWN = [name for name in PICTURES if f"({name}.jpg)" in (DOCS / f"{name}.md").read_text(encoding="utf-8")]

pytestmark = pytest.mark.browser

SELECT = """name => {
    app.graph.clear()
    const node = LiteGraph.createNode(name)
    app.graph.add(node)
    node.pos = [500, 400]
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [0, 0]
    app.canvas.selectItems([node])
    app.canvas.setDirty(true, true)
}"""


@pytest.fixture(scope="module", params=["en", "zh"])
def page(server, frontend, request) -> Iterator:
    server.client.post("/settings", {"Comfy.Locale": request.param})
    page = frontend(viewport={"width": 1400, "height": 1000})
    page.language = request.param
    yield page
    page.close()
    server.client.post("/settings", {"Comfy.Locale": "en"})


@pytest.mark.parametrize("name", SHOWN)
def test_the_info_button_of_a_node_shows_the_page_and_its_picture(page, name):
    info, picture = page.locator('[data-testid="info-button"]'), page.locator(f'img[src$="/docs/{name}.jpg"]')
    for _ in range(20):  # a frontend that has just come up does not see a selection
        page.evaluate(SELECT, name)
        page.wait_for_timeout(1000)
        if info.is_visible():
            break
    if picture.count() == 0:  # a panel that is open follows the selection
        info.click()
    picture.wait_for(timeout=20_000)
    page.wait_for_function("picture => picture.naturalWidth > 0", arg=picture.element_handle())
    file = DOCS / (f"{name}.md" if page.language == "en" else f"{name}/zh.md")
    heading = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    assert page.locator("h1", has_text=heading).count() == 1
    page.screenshot(path=ARTIFACTS / f"help_{name}_{page.language}.png")
