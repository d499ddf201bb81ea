"""A coarse mask painted by hand in ComfyUI's own mask editor, on the picture of Load Image."""

import re

import numpy as np
import pytest

from demo.comfyui import REPO

ARTIFACTS = REPO / "artifacts" / "host"
SIZE = 128

pytestmark = pytest.mark.browser

LOADED = "app.graph.getNodeById(1)"
IN_VIEW = """() => {
    app.graph.nodes.forEach((node, index) => node.pos = [100 + 330 * index, 200])
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [0, 0]
    app.canvas.setDirty(true, true)
}"""


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def test_what_is_painted_is_filled_and_nothing_else(server, frontend, graph, upload, pixels, shown):
    picture = graph.add("LoadImage", image=upload("to paint on.png", pixels))
    painted = graph.output(picture, 1)
    filled = graph.sampler("inpainting", image=picture, coarse_mask=painted, prompt="dog", steps=2)
    mask, result = graph.add("MaskPreview", mask=painted), graph.add("PreviewImage", images=filled)

    page = frontend()
    page.evaluate("prompt => app.loadApiJson(prompt, 'paint')", graph.prompt)
    page.evaluate(IN_VIEW)
    page.wait_for_function(f"() => {LOADED}.imgs?.[0]?.naturalWidth > 0")
    page.wait_for_timeout(1000)  # a banner of the host may still push the canvas down
    left, top = page.evaluate("() => { const { x, y } = app.canvas.canvas.getBoundingClientRect(); return [x, y] }")
    page.mouse.click(left + 200, top + 185, button="right")  # the node's title
    page.get_by_text(re.compile("Open in Mask ?Editor")).first.click(timeout=20_000)
    canvas = page.locator("#maskEditorCanvasContainer")
    canvas.wait_for()
    page.wait_for_timeout(2000)  # the editor fits the picture into its window
    place = canvas.bounding_box()

    def at(x: int, y: int) -> tuple[float, float]:
        return place["x"] + x / SIZE * place["width"], place["y"] + y / SIZE * place["height"]

    page.mouse.move(*at(40, 60))
    page.mouse.down()
    page.mouse.move(*at(80, 60), steps=20)
    page.mouse.up()
    page.screenshot(path=ARTIFACTS / "mask_editor.png")
    before = page.evaluate(f"() => {LOADED}.widgets[0].value")
    page.get_by_role("button", name=re.compile("Save$")).last.click()  # before the word there may be an icon
    page.wait_for_function(f"before => {LOADED}.widgets[0].value !== before", arg=before)
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    page.screenshot(path=ARTIFACTS / "mask_editor_saved.png")
    page.close()

    done = server.client.run(sent)
    region = shown(done, mask[0])[0][..., 0] > 127
    after = shown(done, result[0])[0]
    assert region[60, 42:78].all()  # the stroke, all of it
    assert not region[:20].any() and not region[100:].any() and not region[:, 110:].any()
    assert np.array_equal(after[~region], pixels[~region])
    assert (after[region] != pixels[region]).any(axis=-1).mean() > 0.95
