"""ComfyUI's own frontend in Chromium: each template opened from the template browser, queued, its result seen."""

import json
import time
from collections.abc import Iterator

import pytest

from demo.comfyui import PACK_NAME, REPO
from demo.workflows import names, node_titled, read, to_prompt

ARTIFACTS = REPO / "artifacts" / "host"

pytestmark = pytest.mark.browser


@pytest.fixture
def page(frontend) -> Iterator:
    page = frontend()
    yield page
    page.close()


# Pairs of nodes that lie on each other, as they are drawn: with their titles, and grown by what they show.
OVERLAPPING = """() => {
    const nodes = app.graph.nodes.map(node => [node.title, ...node.getBounding()])
    return nodes.flatMap(([one, x, y, width, height], index) => nodes.slice(index + 1)
        .filter(([, x2, y2, width2, height2]) => x < x2 + width2 && x2 < x + width && y < y2 + height2 && y2 < y + height)
        .map(([other]) => `${one} and ${other}`))
}"""


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
    assert page.evaluate(OVERLAPPING) == []
    # The frontend marks a failed node and says so.
    assert page.locator(".p-toast-message-error").count() == 0
    assert not json.loads(page.evaluate("() => JSON.stringify(app.lastNodeErrors)") or "null")


# Frontend 1.32 loses the translations of every pack when it loads its own, after them (ComfyUI_frontend#7214);
# here they are merged once more, as later frontends do (tried: 1.36).
MERGE = """async () => {
    const app = document.querySelector("#vue-app").__vue_app__
    const i18n = app._context.provides[app.__VUE_I18N_SYMBOL__].global
    for (const [locale, messages] of Object.entries(await (await fetch("/api/i18n")).json())) {
        i18n.mergeLocaleMessage(locale, messages)
    }
    window.translate = key => i18n.t(key)
}"""
# The frontend's own Chinese comes late and replaces what is there.
OWN_CHINESE_IS_THERE = """() => {
    const app = document.querySelector("#vue-app").__vue_app__
    const i18n = app._context.provides[app.__VUE_I18N_SYMBOL__].global
    return "KSampler" in (i18n.getLocaleMessage("zh").nodeDefs ?? {})
}"""
SHOWN = """name => {
    const node = LiteGraph.createNode(name)
    return {
        title: translate(`nodeDefs.${name}.display_name`),
        description: translate(`nodeDefs.${name}.description`),
        inputs: Object.fromEntries(node.inputs.map(({name: input, localized_name}) => [
            input, {name: localized_name, tooltip: translate(`nodeDefs.${name}.inputs.${input}.tooltip`)},
        ])),
        outputs: node.outputs.map(({localized_name}, slot) => ({
            name: localized_name, tooltip: translate(`nodeDefs.${name}.outputs.${slot}.tooltip`),
        })),
    }
}"""


def test_in_a_chinese_browser_the_nodes_are_chinese(frontend):
    page = frontend(locale="zh-CN")
    page.wait_for_function(OWN_CHINESE_IS_THERE, timeout=120_000)
    page.evaluate(MERGE)
    for name, zh in json.loads((REPO / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8")).items():
        shown = page.evaluate(SHOWN, name)
        assert (shown["title"], shown["description"]) == (zh["display_name"], zh["description"])
        assert shown["inputs"] == zh["inputs"]
        for output, expected in zip(shown["outputs"], zh["outputs"].values(), strict=True):
            assert output == {"name": output["name"], **expected}
    page.close()
