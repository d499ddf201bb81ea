"""Boxes drawn on the picture of Coarse Mask From Box, in Chromium; the node's text is what is saved and run."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from demo.comfyui import PACK_NAME, REPO
from demo.graph import Graph
from demo.workflows import read, to_prompt
from unigs.boxes import LabelledBox, parse_boxes
from unigs.coarse_mask import coarse_mask

ARTIFACTS = REPO / "artifacts" / "host"
WIDTH, HEIGHT = 160, 120

pytestmark = pytest.mark.browser

NODE = "app.graph.nodes.find(node => node.type === 'UniGSCoarseMaskFromBox')"
# The node in the middle of the window, one pixel of the graph a pixel of the screen.
IN_VIEW = f"""() => {{
    const node = {NODE}, other = app.graph.nodes.filter(other => other !== node)
    node.pos = [700, 160]
    other.forEach((other, index) => other.pos = [100, 160 + 500 * index])
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [0, 0]
    app.canvas.setDirty(true, true)
}}"""
# Pictures come a moment after the graph.
IN_PROPORTION = """ratio => {
    const { width, height } = document.querySelector(".unigs-boxes-stage").getBoundingClientRect()
    return Math.abs(width / height - ratio) < 0.01
}"""
WORDS = """async module => {
    const { wordsIn } = await import(module)
    const told = words => Object.fromEntries(Object.entries(words).map(([key, value]) => [key, String(value)]))
    return [told(wordsIn("en")), told(wordsIn("zh"))]
}"""


class Editor:
    """The widget on the one Coarse Mask From Box of an open page."""

    def __init__(self, page: Any):
        self.page = page
        self.stage = page.locator(".unigs-boxes-stage")
        self.boxes = page.locator(".unigs-boxes-box")
        self.notice = page.locator(".unigs-boxes-notice")

    @property
    def text(self) -> str:
        return self.page.evaluate(f"() => {NODE}.widgets.find(widget => widget.name === 'boxes').value")

    @property
    def found(self) -> list[LabelledBox]:
        return parse_boxes(self.text)

    def write(self, text: str) -> None:
        self.page.locator("textarea").first.fill(text)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where on the screen a point of the picture is."""
        place = self.stage.bounding_box()
        return place["x"] + x / WIDTH * place["width"], place["y"] + y / HEIGHT * place["height"]

    def drag(self, start: tuple[float, float], end: tuple[float, float], drop: bool = True) -> None:
        self.page.mouse.move(*self.at(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(*end), steps=5)
        if drop:
            self.page.mouse.up()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def shows(self, *expected: tuple[float, ...]) -> bool:
        """Whether the boxes are these; on the screen, a pixel of the picture is as small as it is there."""
        found = [box for box, _ in self.found]
        return len(found) == len(expected) and np.allclose(found, np.reshape(expected, (-1, 4)), atol=1)


def try_to_change(editor: Editor) -> None:
    """By everything that would change the first box of an editor that is not locked."""
    editor.boxes.first.focus()
    editor.press("ArrowRight", "Shift+ArrowUp", "Delete")
    editor.stage.focus()
    editor.press("Enter", "Escape")
    editor.drag((60, 60), (75, 110))


@pytest.fixture(scope="module")
def page(frontend) -> Iterator:
    page = frontend()
    yield page
    page.close()


@pytest.fixture(scope="module")
def picture(upload) -> str:
    ramp = np.linspace(0, 255, WIDTH).astype(np.uint8)
    return upload("boxes.png", np.stack([np.tile(ramp, (HEIGHT, 1))] * 3, axis=-1))


def box_node(graph: Graph, boxes: str, **inputs: Any) -> list[Any]:
    settings = {"width": WIDTH, "height": HEIGHT, "kind": "box", "seed": 3}
    return graph.add("UniGSCoarseMaskFromBox", boxes=boxes, **settings, **inputs)


@pytest.fixture
def opened(page) -> Callable[[Graph], Editor]:
    """`opened(graph)`: the graph in the frontend, and the widget of its node."""

    def open_graph(graph: Graph) -> Editor:
        page.evaluate("prompt => app.loadApiJson(prompt, 'boxes')", graph.prompt)
        page.evaluate(IN_VIEW)
        editor = Editor(page)
        editor.stage.wait_for()
        page.wait_for_function(IN_PROPORTION, arg=WIDTH / HEIGHT)
        place = None
        while place != (now := editor.stage.bounding_box()):  # a banner of the host may still push it down
            place = now
            page.wait_for_timeout(300)
        return editor

    return open_graph


@pytest.fixture
def editor(opened, graph) -> Editor:
    """On an empty canvas, with two boxes."""
    box_node(graph, "10,10,50,50; 80,20,130,100 dog")
    return opened(graph)


def test_boxes_are_drawn_moved_resized_and_removed_with_the_mouse(editor):
    editor.drag((60, 60), (75, 110))
    assert editor.shows((10, 10, 50, 50), (80, 20, 130, 100), (60, 60, 75, 110))
    assert [label for _, label in editor.found] == ["", "dog", ""]
    editor.drag((100, 60), (110, 50))
    assert editor.shows((10, 10, 50, 50), (90, 10, 140, 90), (60, 60, 75, 110))
    editor.drag((100, 60), (300, 50))  # as far as the picture goes, and no smaller
    assert editor.shows((10, 10, 50, 50), (110, 0, 160, 80), (60, 60, 75, 110))
    editor.drag((50, 30), (30, 35))  # a side
    assert editor.shows((10, 10, 30, 50), (110, 0, 160, 80), (60, 60, 75, 110))
    editor.drag((10, 10), (45, 60))  # a corner, past the opposite one
    assert editor.shows((30, 50, 45, 60), (110, 0, 160, 80), (60, 60, 75, 110))
    editor.page.mouse.click(*editor.at(67, 80))
    editor.press("Delete")
    assert editor.shows((30, 50, 45, 60), (110, 0, 160, 80))
    assert all(side == round(side) for box, _ in editor.found for side in box)


def test_a_click_draws_nothing_and_escape_drops_what_is_dragged(editor):
    before = editor.text
    editor.page.mouse.click(*editor.at(60, 110))
    assert editor.text == before
    for start, end in (((60, 60), (75, 110)), ((100, 60), (110, 50))):
        editor.drag(start, end, drop=False)
        editor.press("Escape")
        editor.page.mouse.up()
        assert editor.text == before and editor.boxes.count() == 2


def test_with_shift_a_box_begins_inside_another(editor):
    editor.page.keyboard.down("Shift")
    editor.drag((90, 40), (110, 70))
    editor.page.keyboard.up("Shift")
    assert editor.shows((10, 10, 50, 50), (80, 20, 130, 100), (90, 40, 110, 70))
    editor.drag((100, 60), (95, 60))  # the small one is within reach
    assert editor.shows((10, 10, 50, 50), (80, 20, 130, 100), (85, 40, 105, 70))


def test_labels_are_typed(editor):
    editor.drag((60, 60), (75, 110))
    editor.press("Enter")
    editor.page.keyboard.type("black cat")
    editor.press("Enter")
    assert [label for _, label in editor.found] == ["", "dog", "black cat"]
    editor.page.mouse.dblclick(*editor.at(100, 60))
    editor.page.keyboard.type("2 ; wild\tgeese,")  # nothing that the text would read as something else
    editor.page.mouse.click(*editor.at(150, 115))
    assert [label for _, label in editor.found] == ["", "wild geese", "black cat"]
    editor.page.mouse.dblclick(*editor.at(30, 30))
    editor.page.keyboard.type("ball")
    editor.drag((30, 30), (40, 45))  # what was typed stays, also in the box that is moved
    assert editor.shows((20, 25, 60, 65), (80, 20, 130, 100), (60, 60, 75, 110))
    assert [label for _, label in editor.found] == ["ball", "wild geese", "black cat"]
    editor.drag((40, 45), (30, 30))
    editor.page.mouse.dblclick(*editor.at(30, 30))
    editor.page.keyboard.type(" ")
    editor.press("Enter")
    editor.page.mouse.dblclick(*editor.at(100, 60))
    editor.page.keyboard.type("tree")
    editor.press("Escape")
    assert [label for _, label in editor.found] == ["", "wild geese", "black cat"]
    editor.press("Enter", "Delete", "Enter")
    assert [label for _, label in editor.found] == ["", "", "black cat"]
    assert editor.boxes.locator(".unigs-boxes-label").all_inner_texts() == ["", "", "black cat"]


def test_a_second_finger_changes_nothing(editor):
    editor.drag((100, 60), (110, 50), drop=False)
    editor.stage.evaluate(
        """stage => {
            const { left, top } = stage.getBoundingClientRect()
            const where = { clientX: left + 9, clientY: top + 9 }
            const finger = { ...where, pointerId: 77, isPrimary: false, button: 0, bubbles: true }
            for (const type of ["down", "move", "up"]) stage.dispatchEvent(new PointerEvent(`pointer${type}`, finger))
        }"""
    )
    editor.page.mouse.up()
    assert editor.shows((10, 10, 50, 50), (90, 10, 140, 90))


def test_everything_can_be_done_by_keyboard(editor):
    def label_of_focused() -> str:
        return editor.page.evaluate("() => document.activeElement.getAttribute('aria-label')")

    editor.write("10,10,50,50")
    editor.stage.focus()
    editor.press("ArrowRight")
    assert label_of_focused() == "Box 1: 10, 10 to 50, 50"
    editor.press("ArrowRight", "ArrowDown", "ArrowDown", "Control+ArrowRight")
    assert editor.text == "21,12,61,52"
    editor.press("Shift+ArrowRight", "Shift+ArrowUp", "Control+Shift+ArrowDown", "ArrowLeft", "ArrowUp")
    assert editor.text == "20,11,61,60"
    editor.press(*["Control+ArrowUp"] * 3)
    assert editor.text == "20,0,61,49"
    editor.press("Escape")
    assert label_of_focused() == editor.stage.get_attribute("aria-label")
    editor.press("Enter")  # a new box, in the middle
    assert editor.text == "20,0,61,49\n60,45,100,75"
    editor.press("Enter", "c", "a", "t", "Enter")
    assert label_of_focused() == "Box 2, cat: 60, 45 to 100, 75"
    editor.press("Shift+Tab")
    assert label_of_focused().startswith("Box 1:")
    assert editor.boxes.first.evaluate("box => getComputedStyle(box).outlineStyle") == "solid"
    editor.press("Tab", "Delete")
    assert editor.text == "20,0,61,49"
    assert label_of_focused().startswith("Box 1:")
    editor.press("Backspace", "Delete", "Delete")
    assert editor.text == "" and editor.page.evaluate(f"() => {NODE} !== undefined")  # the node itself stays
    assert label_of_focused() == editor.stage.get_attribute("aria-label")


def test_the_host_undoes_each_change(editor):
    for change in (
        lambda: editor.drag((60, 60), (75, 110)),
        lambda: editor.press("ArrowLeft"),
        lambda: editor.press("Enter", "c", "a", "t", "Enter"),
    ):
        editor.boxes.first.focus()
        before = editor.text
        change()
        assert editor.text != before
        editor.press("Control+z")
        editor.page.wait_for_function(f"before => {NODE}?.widgets[0].value === before", arg=before)


def test_the_text_and_the_boxes_are_one(editor):
    editor.write("5,5,25,25 cat; 30.5 30 60 60")
    assert editor.boxes.count() == 2
    editor.drag((15, 15), (25, 15))
    assert editor.text == "15,5,35,25 cat\n30.5,30,60,60"  # what nobody touched stays as it was written


def test_text_that_cannot_be_read_is_never_written_over(editor):
    wrong = "10,10,50,50; 80,20,130 dog"
    editor.write(wrong)
    editor.page.wait_for_function("() => document.querySelector('.unigs-boxes-notice').textContent.includes('130 dog')")
    editor.drag((60, 60), (75, 110))
    editor.stage.focus()
    editor.press("Enter", "ArrowRight", "ArrowRight", "Delete")
    assert editor.text == wrong
    editor.write("10,10,50,50; 80,20,130,100 dog")
    editor.drag((60, 60), (75, 110))
    assert len(editor.found) == 3


def test_boxes_of_another_node_are_shown_as_such(opened, graph):
    box_node(graph, graph.add("PrimitiveStringMultiline", value="1,1,9,9"))
    editor = opened(graph)
    assert editor.notice.inner_text() == "The boxes come from a connected node."
    assert editor.stage.get_attribute("aria-disabled") == "true"


def test_both_readers_of_the_text_agree(page):
    texts = ["", " ; \n", "1,2,3,4", " 1, 2,3 ,4 ;5 6 7 8;\n9,10,11.5,12\n\n", ",1,2,3,4,", "10, 20, 60, 90 cat"]
    texts += ["1 2 3 4 a  black\tdog, sitting ;5,6,7,8,猫\n-1,0,1e1,.5 e2e", "+1,2.,3,4 Ünder", "1,2,3,4 été; 1,2"]
    texts += ["1,2,3", "1,2,3,4,5", "1,2,3,4cat", "1,2,3,4 5 cats", "1,2,3,4 (cat)", "cat", "[1,2,3,4]", "0x1,2,3,4"]
    module = f"/extensions/{PACK_NAME}/box_text.js"
    read_by_widget = page.evaluate(
        "async ([module, texts]) => { const { parseBoxes } = await import(module); return texts.map(parseBoxes) }",
        [module, texts],
    )
    written = page.evaluate(
        "async ([module, all]) => { const { formatBoxes } = await import(module); return all.map(formatBoxes) }",
        [module, [found["boxes"] for found in read_by_widget]],
    )
    for text, found, again in zip(texts, read_by_widget, written, strict=True):
        boxes = [((box["x1"], box["y1"], box["x2"], box["y2"]), box["label"]) for box in found["boxes"]]
        assert parse_boxes(again) == boxes
        if found["unreadable"] is None:
            assert parse_boxes(text) == boxes
        else:
            with pytest.raises(ValueError, match="boxes") as caught:
                parse_boxes(text)
            assert repr(found["unreadable"]) in str(caught.value)


def test_the_picture_of_a_load_image_is_shown_and_boxes_lie_in_its_pixels(opened, graph, upload, page):
    wide = upload("boxes wide.png", np.full((60, 240, 3), 200, np.uint8))
    box_node(graph, "60,15,120,45", image=graph.add("LoadImage", image=wide))
    page.evaluate("prompt => app.loadApiJson(prompt, 'boxes')", graph.prompt)
    page.evaluate(IN_VIEW)
    shown = page.locator(".unigs-boxes-picture")
    page.wait_for_function("() => document.querySelector('.unigs-boxes-picture')?.naturalWidth === 240")
    stage, box = (page.locator(part).bounding_box() for part in (".unigs-boxes-stage", ".unigs-boxes-box"))
    assert "wide.png" in shown.get_attribute("src")
    assert stage["width"] / stage["height"] == pytest.approx(4, rel=0.05)
    assert (box["x"] - stage["x"]) / stage["width"] == pytest.approx(0.25, abs=0.02)
    assert box["width"] / stage["width"] == pytest.approx(0.25, abs=0.02)
    assert box["height"] / stage["height"] == pytest.approx(0.5, abs=0.02)


def test_the_picture_of_another_node_is_shown_after_a_run(opened, graph, picture, page):
    settings = {"upscale_method": "nearest-exact", "width": 3200, "height": 2400, "crop": "disabled"}
    scaled = graph.add("ImageScale", image=graph.add("LoadImage", image=picture), **settings)
    graph.add("MaskPreview", mask=box_node(graph, "1600,1200,3200,2400", image=scaled))
    editor = opened(graph)
    text = editor.text
    assert "Run the workflow once" in editor.notice.inner_text()
    try_to_change(editor)
    assert editor.text == text  # its coordinates are those of a picture that is not known yet
    page.evaluate("() => app.queuePrompt(0)")
    page.wait_for_function("() => document.querySelector('.unigs-boxes-picture')?.naturalWidth > 0")
    shown = page.locator(".unigs-boxes-picture")
    assert shown.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [1024, 768]
    box = editor.boxes.first
    assert box.evaluate("box => [box.style.left, box.style.top, box.style.width]") == ["50%", "50%", "50%"]
    page.wait_for_timeout(500)
    page.screenshot(path=ARTIFACTS / "boxes_after_a_run.png")
    box.focus()
    editor.press("ArrowLeft")
    assert editor.text == "1599,1200,3199,2400"


def test_a_page_loaded_anew_learns_what_a_cached_node_showed(frontend, graph, picture):
    settings = {"upscale_method": "nearest-exact", "width": 640, "height": 240, "crop": "disabled"}
    scaled = graph.add("ImageScale", image=graph.add("LoadImage", image=picture), **settings)
    graph.add("MaskPreview", mask=box_node(graph, "320,120,640,240", image=scaled))
    for _ in range(2):  # the second time nothing runs, and the host tells nothing of it
        page = frontend()
        page.evaluate("prompt => app.loadApiJson(prompt, 'boxes')", graph.prompt)
        page.evaluate(IN_VIEW)
        editor = Editor(page)
        editor.stage.wait_for()
        assert "Run the workflow once" in editor.notice.inner_text()
        page.evaluate("() => app.queuePrompt(0)")
        page.wait_for_function("() => document.querySelector('.unigs-boxes-picture')?.naturalWidth > 0")
        page.wait_for_function(IN_PROPORTION, arg=640 / 240)
        assert "As of the last run: 640 × 240" in editor.notice.inner_text()
        page.close()


def test_a_size_of_other_nodes_is_known_after_a_run(opened, graph, page):
    sides = {name: graph.add("PrimitiveInt", value=value) for name, value in (("width", 400), ("height", 300))}
    node = box_node(graph, "100,75,200,150")
    graph.prompt[node[0]]["inputs"] |= sides
    graph.add("MaskPreview", mask=node)
    page.evaluate("prompt => app.loadApiJson(prompt, 'boxes')", graph.prompt)
    page.evaluate(IN_VIEW)
    editor = Editor(page)
    editor.stage.wait_for()
    assert "Run the workflow once to draw in the size" in editor.notice.inner_text()
    try_to_change(editor)
    assert editor.text == "100,75,200,150"
    page.evaluate("() => app.queuePrompt(0)")
    box = editor.boxes.first
    page.wait_for_function("() => document.querySelector('.unigs-boxes-box')?.style.width === '25%'")
    assert box.evaluate("box => [box.style.left, box.style.top, box.style.height]") == ["25%", "25%", "25%"]
    assert "Run the workflow" not in editor.notice.inner_text()
    box.focus()
    editor.press("ArrowRight")
    assert editor.text == "101,75,201,150"


def test_what_is_drawn_is_saved_and_run(server, object_info, opened, graph, picture, page, shown):
    node = box_node(graph, "", image=graph.add("LoadImage", image=picture))
    mask, prompt = graph.add("MaskPreview", mask=node), graph.add("PreviewAny", source=graph.output(node, 2))
    editor = opened(graph)
    for start, end, label in (((90, 20), (150, 70), "dog"), ((10, 50), (60, 110), "cat")):
        editor.drag(start, end)
        editor.press("Enter")
        editor.page.keyboard.type(label)
        editor.press("Enter")
    text = editor.text
    page.screenshot(path=ARTIFACTS / "boxes_drawn.png")

    saved = page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    values = next(one["widgets_values"] for one in saved["nodes"] if one["type"] == "UniGSCoarseMaskFromBox")
    assert values == [text, WIDTH, HEIGHT, "box", 3, values[-1]]  # the widget itself has no place in it
    page.evaluate("() => app.graph.clear()")
    page.evaluate("workflow => app.loadGraphData(workflow)", saved)
    page.wait_for_function("() => document.querySelectorAll('.unigs-boxes-box').length === 2")
    assert editor.text == text

    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert sent[node[0]]["inputs"] == to_prompt(saved, object_info)[node[0]]["inputs"]
    done = server.client.run(sent)
    rng = np.random.default_rng(3)
    regions = [coarse_mask([box], (HEIGHT, WIDTH), "box", rng) for box, _ in parse_boxes(text)]
    assert np.array_equal(shown(done, mask[0])[0][..., 0] > 127, np.logical_or(*regions))
    assert done.outputs[prompt[0]]["text"] == ["cat and dog"]


@pytest.mark.promise("saved workflows")
def test_a_workflow_from_before_the_widget_opens_as_it_was(page, object_info):
    workflow = read("multi_region_inpainting")
    node = next(node for node in workflow["nodes"] if node["type"] == "UniGSCoarseMaskFromBox")
    node["outputs"] = node["outputs"][:2]
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    page.wait_for_function("() => document.querySelectorAll('.unigs-boxes-box').length === 2")
    assert Editor(page).text == node["widgets_values"][0]
    assert page.evaluate(f"() => {NODE}.outputs.map(output => output.name)") == ["coarse mask", "regions", "prompt"]
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    for one in sent.values():
        one.pop("_meta")
    assert sent == to_prompt(workflow, object_info)


def test_the_widget_speaks_chinese(page, opened, graph):
    page.route("**/settings/Comfy.Locale", lambda route: route.fulfill())  # the language of this page alone
    page.evaluate("() => app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    box_node(graph, "1,1,9,9 猫")
    editor = opened(graph)
    notice, label = editor.notice.inner_text(), editor.boxes.first.get_attribute("aria-label")
    page.evaluate("() => app.extensionManager.setting.set('Comfy.Locale', 'en')")
    page.unroute("**/settings/Comfy.Locale")
    assert notice.startswith("拖动：绘制。") and label == "框 1，猫：1, 1 至 9, 9"
    english, chinese = page.evaluate(WORDS, f"/extensions/{PACK_NAME}/box_words.js")
    assert english.keys() == chinese.keys()
    assert all(any("一" <= letter <= "鿿" for letter in text) for text in chinese.values())


def test_boxes_beyond_the_picture_are_cut_off_and_labels_are_written_inside(opened, graph, page):
    box_node(graph, "140,10,155,50; 100,60,1600,100")
    editor = opened(graph)
    stage = editor.stage.bounding_box()
    outside = [stage["x"] + stage["width"] + 20, stage["y"] + stage["height"] * 80 / HEIGHT]
    assert page.evaluate("([x, y]) => document.elementFromPoint(x, y).closest('.unigs-boxes-box')", outside) is None
    editor.boxes.first.dblclick()
    field = page.locator(".unigs-boxes-input").bounding_box()
    assert field["x"] > stage["x"] and field["x"] + field["width"] <= stage["x"] + stage["width"]


def test_without_the_widget_the_text_does_it_all(frontend, graph):
    page = frontend(blocked="**/boxes.js")
    box_node(graph, "1,1,9,9")
    page.evaluate("prompt => app.loadApiJson(prompt, 'boxes')", graph.prompt)
    Editor(page).write("10,10,50,50 cat")
    assert Editor(page).stage.count() == 0
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert sent["1"]["inputs"]["boxes"] == "10,10,50,50 cat"
    page.close()
