"""`python -m demo.help_pictures [node id ...]`: the pictures of the help pages, taken from ComfyUI's own frontend.

Each shows a node at work, with what it made: web/docs/<node id>.jpg. Needs Chromium and Playwright.
"""

import argparse
import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from .client import Prompt
from .comfyui import HOME, REPO, ComfyUI
from .templates import decoder_settings

DOCS = REPO / "web" / "docs"
SCENE = "unigs_entity.png"
Node = list[Any]

LEFT, TOP = 80, 160  # pixels of the window that are the frontend's own

# Puts the columns side by side and all other nodes out of sight; the width and height of what is to be seen.
ARRANGE = """([columns, left, top]) => {
    const gap = 30, head = LiteGraph.NODE_TITLE_HEIGHT
    for (const node of app.graph.nodes) node.pos = [-900, 200]
    let x = gap, height = 0
    for (const column of columns) {
        let y = 22, widest = 0
        for (const id of column) {
            const node = app.graph.getNodeById(id)
            const pictures = node.type.startsWith("Preview") || node.type.startsWith("MaskPreview")
            const width = pictures ? 190 : node.type.startsWith("UniGS") ? 300 : 250
            node.setSize([width, pictures ? 220 : node.computeSize()[1]])
            y += head
            node.pos = [x, y]
            y += node.size[1] + gap / 2
            widest = Math.max(widest, node.size[0])
        }
        x += widest + gap
        height = Math.max(height, y)
    }
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [left, top]
    app.canvas.setDirty(true, true)
    return [x, height]
}"""
FIX_SEEDS = """() => {
    for (const node of app.graph.nodes) for (const widget of node.widgets ?? [])
        if (widget.name === "control_after_generate") widget.value = "fixed"
}"""
DONE = "ids => ids.every(id => app.nodeOutputs[id]?.images?.length)"
SHOWN = """ids => ids.every(id => {
    const node = app.graph.getNodeById(id)
    return node.imgs?.length && node.imgs.every(image => image.naturalWidth > 0)
})"""


class Scene:
    """A prompt. Its ids begin at `first`: the frontend keeps what a node has shown by its id, graph for graph."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.prompt: Prompt = {}

    def add(self, class_type: str, /, **inputs: Any) -> Node:
        """The first output of a new node; its other inputs have their defaults."""
        node = str(self.first + len(self.prompt))
        self.prompt[node] = {"class_type": class_type, "inputs": inputs}
        return [node, 0]

    def picture(self, name: str = SCENE) -> Node:
        return self.add("LoadImage", image=name)

    def load(self) -> dict[str, Node]:
        node = self.add("UniGSLoader", checkpoint="bundled", dtype="default")
        return {name: [node[0], slot] for slot, name in enumerate(("model", "clip", "vae"))}

    def task(self, task: str, prompt: str = "", **inputs: Any) -> Node:
        settings = {"negative": "", "seed": 0, "steps": 0, "cfg": 0.0, "sampler_name": "ddim", "scheduler": "simple"}
        return self.add("UniGSSampler", **self.load(), task=task, prompt=prompt, **settings, **inputs)

    def decode(self, picture: Node) -> Node:
        """The decoder behind a sampler that finds everything in the picture."""
        colormap = [self.task("entity", image=picture)[0], 1]
        settings = {"keep_background": True, "image": picture, **decoder_settings("entity")}
        return self.add("UniGSDichotomyDecode", colormap=colormap, **settings)

    def preview(self, image: Node, slot: int = 0) -> Node:
        return self.add("PreviewImage", images=[image[0], slot])

    def mask(self, mask: Node, slot: int = 0) -> Node:
        return self.add("MaskPreview", mask=[mask[0], slot])


Columns = list[list[Node]]


def loader(scene: Scene) -> Columns:
    sampled = scene.task("entity", image=scene.picture())
    scene.preview(sampled, 1)
    return [[next([node, 0] for node, spec in scene.prompt.items() if spec["class_type"] == "UniGSLoader")]]


def sampler(scene: Scene) -> Columns:
    sampled = scene.task("entity", image=scene.picture())
    return [[sampled], [scene.preview(sampled), scene.preview(sampled, 1)]]


def decode(scene: Scene) -> Columns:
    decoded = scene.decode(scene.picture())
    return [[decoded], [scene.preview(decoded, 1), scene.mask(decoded)]]


def split(scene: Scene) -> Columns:
    picture = scene.picture()
    masks = scene.decode(picture)
    settings = {"order": "largest first", "min_area": 0, "index": 1, "crop": True}
    parts = scene.add("UniGSEntityMaskSplit", masks=masks, image=picture, **settings)
    return [[parts], [scene.preview(parts, 3), scene.mask(parts, 2)]]


def encode(scene: Scene) -> Columns:
    encoded = scene.add("UniGSColormapEncode", masks=scene.decode(scene.picture()), grid=11)
    return [[encoded], [scene.preview(encoded)]]


def coarse(scene: Scene) -> Columns:
    boxes = "1,27,59,81 cat\n4,80,58,126 hamburger"
    settings = {"width": 128, "height": 128, "kind": "curve", "seed": 0}
    mask = scene.add("UniGSCoarseMaskFromBox", boxes=boxes, **settings, image=scene.picture())
    return [[mask], [scene.mask(mask), scene.add("PreviewAny", source=[mask[0], 2])]]


def save(scene: Scene) -> Columns:
    picture = scene.picture()
    masks = scene.decode(picture)
    return [[scene.add("UniGSSaveEntities", image=picture, masks=masks, filename_prefix="UniGS/entities")]]


def conditioning(scene: Scene) -> Columns:
    return _with_ksampler(scene)[:2]


def split_latent(scene: Scene) -> Columns:
    return _with_ksampler(scene)[2:]


def _with_ksampler(scene: Scene) -> Columns:
    loaded = scene.load()
    ready = scene.add("UniGSConditioning", **loaded, task="entity", prompt="", negative="", image=scene.picture())
    taken = {name: [ready[0], slot] for slot, name in enumerate(("model", "positive", "negative", "latent_image"))}
    settings = {"seed": 0, "steps": 1, "cfg": 1.0, "sampler_name": "ddim", "scheduler": "simple", "denoise": 1.0}
    sampled = scene.add("KSampler", **taken, **settings)
    halves = scene.add("UniGSSplitLatent", latent=sampled)
    pictures = [scene.add("VAEDecode", samples=[halves[0], slot], vae=loaded["vae"]) for slot in (0, 1)]
    return [[ready], [sampled], [halves], pictures, [scene.preview(picture) for picture in pictures]]


PICTURES: dict[str, Callable[[Scene], Columns]] = {
    "UniGSLoader": loader,
    "UniGSSampler": sampler,
    "UniGSConditioning": conditioning,
    "UniGSSplitLatent": split_latent,
    "UniGSCoarseMaskFromBox": coarse,
    "UniGSColormapEncode": encode,
    "UniGSDichotomyDecode": decode,
    "UniGSEntityMaskSplit": split,
    "UniGSSaveEntities": save,
}


def take(page: Any, scene: Scene, columns: Columns) -> Image.Image:
    """Runs the scene in an open frontend; the nodes of the columns, as they look then."""
    page.evaluate("prompt => app.loadApiJson(prompt, 'help')", scene.prompt)
    page.evaluate(FIX_SEEDS)
    page.evaluate("() => app.queuePrompt(0)")
    showing = {
        int(node)
        for node, spec in scene.prompt.items()
        if spec["class_type"] in ("PreviewImage", "MaskPreview", "UniGSSaveEntities")
    }
    page.wait_for_function(DONE, arg=list(showing), timeout=120_000)
    ids = [[int(node) for node, _ in column] for column in columns]
    page.evaluate(ARRANGE, [ids, LEFT, TOP])
    page.wait_for_function(SHOWN, arg=list(showing & {node for column in ids for node in column}), timeout=30_000)
    width, height = page.evaluate(ARRANGE, [ids, LEFT, TOP])
    page.wait_for_timeout(1000)
    picture = Image.open(io.BytesIO(page.screenshot()))
    return picture.crop((LEFT, TOP, LEFT + int(width), TOP + int(height))).convert("RGB")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.help_pictures", description="Pictures of the help pages.")
    parser.add_argument("nodes", nargs="*", choices=[[], *PICTURES], metavar="node", help="default: all")
    chosen = parser.parse_args(argv).nodes or list(PICTURES)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("no Chromium: apt-get install chromium", file=sys.stderr)
        return 1
    from playwright.sync_api import sync_playwright

    data = HOME / "help-data"
    shutil.rmtree(data, ignore_errors=True)
    with ComfyUI(data=data, log=HOME / "help.log") as server, sync_playwright() as playwright:
        server.client.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False})
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.goto(server.url)
        page.wait_for_function("window.app?.graph && window.app.vueAppReady", timeout=120_000)
        for index, name in enumerate(chosen):
            scene = Scene(100 * (index + 1))
            columns = PICTURES[name](scene)
            place: Path = DOCS / f"{name}.jpg"
            take(page, scene, columns).save(place, quality=88, optimize=True)
            print(place.relative_to(REPO))
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
