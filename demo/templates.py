"""`python -m demo.templates`: writes the workflow templates and the blueprints of sub-graphs for the nodes as they are

`python -m demo.run --thumbnails` then takes their pictures.
"""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unigs.checkpoints import bundled_model_dir, open_checkpoint
from unigs.tasks import WITH_STUFF

from .canvas import Canvas, Node, Output
from .client import ComfyUIError
from .comfyui import REPO, ComfyUI
from .workflows import WORKFLOWS

SUBGRAPHS = REPO / "subgraphs"
# What the bundled checkpoint says of its own: among others, how to decode what it paints.
BUNDLED = open_checkpoint(bundled_model_dir()).settings
SMALL_MODEL = (
    "The bundled model is small and knows 128 x 128 scenes of emoji. For other pictures put a larger checkpoint into "
    "`models/unigs`."
)


def decoder_settings(task: str) -> dict[str, Any]:
    """What the bundled checkpoint recommends to Dichotomy Decode for pictures of its own size."""
    own, size = BUNDLED["task_defaults"][task], BUNDLED["default_size"]
    areas = {"min_area": round(own["min_share"] * size**2), "snap": round(own["snap_share"] * size)}
    return {"delta": own["delta"], "use_palette": own["use_palette"], **areas}


class Pieces(Canvas):
    """A canvas with the pieces that most graphs are made of."""

    def load(self) -> tuple[Node, dict[str, Output]]:
        """A UniGS Loader, and its outputs by the names of the inputs that take them."""
        loader = self.add("UniGSLoader")
        return loader, {name.lower(): loader[name] for name in ("MODEL", "CLIP", "VAE")}

    def picture(self, file: str, title: str = "Picture") -> Node:
        return self.add("LoadImage", title, image=file)

    def decode(self, sampled: Node, model: Output, image: Output, keep_background: bool = False) -> Node:
        """The decoder, with the settings of the bundled checkpoint; `image` is that whose edges the masks follow."""
        return self.add(
            "UniGSDichotomyDecode",
            colormap=sampled["colormap"],
            model=model,
            keep_background=keep_background,
            image=image,
            **decoder_settings(sampled.given["task"]),
        )

    def show(self, title: str, image: Output) -> Node:
        return self.add("PreviewImage", title, images=image)

    def show_masks(self, title: str, masks: Output) -> Node:
        return self.add("MaskPreview", title, mask=masks)

    def save(self, image: Output, prefix: str) -> Node:
        return self.add("SaveImage", "Result", images=image, filename_prefix=f"unigs/{prefix}")


def entity_segmentation(at: Pieces) -> None:
    note = at.note(
        "## Entity segmentation\n\nFinds **every** entity of a picture and gives one mask for each.\n\n"
        "1. **UniGS Sampler**, task *entity*, paints the colormap of the picture: one flat colour an entity.\n"
        "2. **Dichotomy Decode** splits the colours in two until every part is of one colour. *keep background* is on: "
        "in this task everything in the picture is an entity.\n"
        "3. **Entity Mask Split** gives single masks, boxes and cut-outs.\n\n"
        f"Sky and ground are background, unless the sampler's prompt is `{WITH_STUFF}`\n\n"
        f"*steps 0* and *cfg 0* stand for what the checkpoint recommends.\n\n{SMALL_MODEL}",
        height=470,
    )
    loader, loaded = at.load()
    picture = at.picture("unigs_entity.png")
    sampled = at.add("UniGSSampler", **loaded, task="entity", image=picture["IMAGE"])
    decoded = at.decode(sampled, loaded["model"], picture["IMAGE"], keep_background=True)
    split = at.add("UniGSEntityMaskSplit", masks=decoded["masks"], image=picture["IMAGE"])
    colormap = at.show("Colormap", sampled["colormap"])
    result = at.save(decoded["label preview"], "entities")
    masks = at.show_masks("Masks", decoded["masks"])
    cutouts = at.show("Cut-outs", split["RGBA cut-outs"])
    tree = at.add("PreviewImage", "How the colours were split", images=decoded["dichotomy tree"]).wide(550)
    at.arrange([note, loader, picture], [sampled, decoded], [colormap, masks, split], [result, cutouts, tree])


def multi_region_inpainting(at: Pieces) -> None:
    note = at.note(
        "## Multi-region inpainting\n\nPaints new things into **several regions at once** and gives the mask of each."
        "\n\n1. **Coarse Mask From Box** makes a rough region around each box: draw them on the picture, or "
        "write `x1,y1,x2,y2` in pixels, separated by `;`.\n"
        "2. **UniGS Sampler**, task *inpainting*, paints what the prompt names, from left to right. Outside the "
        "regions the picture stays as it was, to the last bit.\n"
        "3. **Dichotomy Decode** gives the masks of what was painted.\n\n"
        "You can paint the regions instead: open the picture in the mask editor and connect MASK of *Load Image* to "
        "*coarse_mask*.",
        height=360,
    )
    loader, loaded = at.load()
    picture = at.picture("unigs_inpainting.png")
    region = at.add("UniGSCoarseMaskFromBox", boxes="10,82,56,126; 78,72,126,120", image=picture["IMAGE"])
    sampled = at.add(
        "UniGSSampler",
        **loaded,
        task="inpainting",
        prompt="gift and strawberry",
        image=picture["IMAGE"],
        coarse_mask=region["coarse mask"],
    )
    decoded = at.decode(sampled, loaded["model"], sampled["image"])
    where = at.show_masks("Coarse mask", region["coarse mask"])
    colormap = at.show("Colormap", sampled["colormap"])
    masks = at.show_masks("Masks", decoded["masks"])
    result = at.save(sampled["image"], "inpainting")
    at.arrange([note, loader, picture], [region, where], [sampled], [decoded, colormap], [result, masks])


def referring_segmentation(at: Pieces) -> None:
    note = at.note(
        "## Referring segmentation\n\nFinds what the **prompt** names, inside a rough region.\n\n"
        "1. **Coarse Mask From Box** makes a rough region around the box: where to look. Without a coarse mask the "
        "sampler looks everywhere.\n"
        "2. **UniGS Sampler**, task *referring*, paints only what the prompt names; the rest of the colormap stays "
        "black.\n"
        "3. **Dichotomy Decode** turns the colours into masks. Nothing found gives one empty mask.\n"
        "4. **Entity Mask Split** cuts what was found out of the picture.\n\n"
        "The better a model reads words, the less it needs the region.",
        height=360,
    )
    loader, loaded = at.load()
    picture = at.picture("unigs_referring.png")
    region = at.add("UniGSCoarseMaskFromBox", boxes="0,22,66,84", image=picture["IMAGE"])
    sampled = at.add(
        "UniGSSampler",
        **loaded,
        task="referring",
        prompt="dog",
        image=picture["IMAGE"],
        coarse_mask=region["coarse mask"],
    )
    decoded = at.decode(sampled, loaded["model"], picture["IMAGE"])
    split = at.add("UniGSEntityMaskSplit", masks=decoded["masks"], image=picture["IMAGE"])
    where = at.show_masks("Coarse mask", region["coarse mask"])
    colormap = at.show("Colormap", sampled["colormap"])
    masks = at.show_masks("Masks", decoded["masks"])
    result = at.save(split["RGBA cut-outs"], "referring")
    at.arrange([note, loader, picture], [region, where], [sampled], [decoded, split], [colormap, masks, result])


def synthesis(at: Pieces) -> None:
    note = at.note(
        "## Synthesis from a layout\n\nTakes the layout of a picture and paints **another picture** with it.\n\n"
        "1. **UniGS Sampler**, task *entity*, finds the entities of the picture.\n"
        "2. **Colormap Encode** paints their masks as a colormap, in the colours of the model that is connected to "
        "it.\n"
        "3. A second **UniGS Sampler**, task *synthesis*, paints what the prompt names, from left to right, where the "
        "colormap has an entity. It also gives the colormap of what it painted.\n\n"
        "The masks may come from anywhere: any MASK batch, one mask an entity.\n\n"
        "Change the nouns of the second prompt, or its seed.",
        height=400,
    )
    loader, loaded = at.load()
    picture = at.picture("unigs_synthesis.png")
    found = at.add("UniGSSampler", "Find the layout", **loaded, task="entity", image=picture["IMAGE"])
    entities = at.decode(found, loaded["model"], picture["IMAGE"])
    encoded = at.add("UniGSColormapEncode", masks=entities["masks"], model=loaded["model"])
    layout = at.show("Layout", encoded["colormap"])
    sampled = at.add(
        "UniGSSampler",
        "Paint a picture",
        **loaded,
        task="synthesis",
        prompt="cat and tree on grass",
        colormap=encoded["colormap"],
    )
    decoded = at.decode(sampled, loaded["model"], sampled["image"])
    result = at.save(sampled["image"], "synthesis")
    colormap = at.show("Colormap", sampled["colormap"])
    masks = at.show_masks("Masks", decoded["masks"])
    at.arrange(
        [note, loader, picture], [found, entities], [encoded, layout], [sampled, decoded], [result, colormap, masks]
    )


def remove_an_object(at: Pieces) -> None:
    note = at.note(
        "## Remove an object\n\nName a thing, and it is **taken out** of the picture.\n\n"
        "1. **UniGS Sampler**, task *referring*, finds what the prompt names, in the region around the box.\n"
        "2. **Dichotomy Decode** and **Entity Mask Split** give its mask, **Grow Mask** makes it a little larger, so "
        "that no edge is left.\n"
        "3. A second **UniGS Sampler**, task *inpainting*, paints the ground there. Its prompt names the place only, "
        "and an empty colormap is *held*: that tells the model that no entity stands in the hole.\n\n"
        "Outside the grown mask the picture stays as it was, to the last bit.\n\n"
        "Leave *coarse_mask* of the first sampler unconnected to look everywhere.",
        height=460,
    )
    loader, loaded = at.load()
    picture = at.picture("unigs_referring.png")
    region = at.add("UniGSCoarseMaskFromBox", boxes="0,22,66,84", image=picture["IMAGE"])
    found = at.add(
        "UniGSSampler",
        "Find it",
        **loaded,
        task="referring",
        prompt="dog",
        image=picture["IMAGE"],
        coarse_mask=region["coarse mask"],
    )
    colormap = at.show("Colormap", found["colormap"])
    decoded = at.decode(found, loaded["model"], picture["IMAGE"])
    masks = at.show_masks("Masks", decoded["masks"])
    split = at.add("UniGSEntityMaskSplit", masks=decoded["masks"])
    grown = at.add("GrowMask", mask=split["mask"], expand=4)
    hole = at.show_masks("Hole", grown["MASK"])
    size = at.add("GetImageSize", image=picture["IMAGE"])
    empty = at.add("EmptyImage", "Empty colormap", width=size["width"], height=size["height"])
    sampled = at.add(
        "UniGSSampler",
        "Paint the ground",
        **loaded,
        task="inpainting",
        prompt="on sand",
        image=picture["IMAGE"],
        coarse_mask=grown["MASK"],
        colormap=empty["IMAGE"],
        hold="colormap",
    )
    result = at.save(sampled["image"], "removed")
    at.arrange(
        [note, loader, picture],
        [region, colormap],
        [found, size],
        [decoded, split, grown],
        [sampled, empty],
        [masks, hole, result],
    )


def repaint_one_entity(at: Pieces) -> None:
    note = at.note(
        "## Re-paint one entity\n\nSegments a picture and paints **one of its entities** anew.\n\n"
        "1. **UniGS Sampler**, task *entity*, and **Dichotomy Decode** find everything in the picture.\n"
        "2. **Entity Mask Split** takes one of the masks: *index* counts from 0, in the *order* that is chosen there. "
        "With *largest first*, 0 is mostly the background.\n"
        "3. A second **UniGS Sampler**, task *inpainting*, paints what its prompt names there. The rest of the picture "
        "stays as it was, to the last bit.\n\n"
        "Queue it once, look at *Masks*, and change *index*.",
        height=380,
    )
    loader, loaded = at.load()
    picture = at.picture("unigs_entity.png")
    found = at.add("UniGSSampler", "Find everything", **loaded, task="entity", image=picture["IMAGE"])
    colormap = at.show("Colormap", found["colormap"])
    decoded = at.decode(found, loaded["model"], picture["IMAGE"], keep_background=True)
    masks = at.show_masks("Masks", decoded["masks"])
    split = at.add("UniGSEntityMaskSplit", "Which one", masks=decoded["masks"], index=1)
    grown = at.add("GrowMask", mask=split["mask"], expand=4)
    chosen = at.show_masks("Chosen", grown["MASK"])
    sampled = at.add(
        "UniGSSampler",
        "Paint it anew",
        **loaded,
        task="inpainting",
        prompt="pizza",
        image=picture["IMAGE"],
        coarse_mask=grown["MASK"],
    )
    result = at.save(sampled["image"], "repainted")
    at.arrange(
        [note, loader, picture], [found, decoded], [colormap, masks, chosen], [split, grown], [sampled], [result]
    )


def boxes_to_picture(at: Pieces) -> None:
    note = at.note(
        "## A picture from words and boxes\n\nWrite **what stands where**; a picture of it is painted, with the mask "
        "of each thing.\n\n"
        "1. **Coarse Mask From Box**: a box and a label for each thing, like `10,20,60,90 cat`, separated by `;`; or "
        "draw them. *regions* is one mask a box, *prompt* the labels from left to right.\n"
        "2. **Colormap Encode** paints the regions as a colormap, in the colours of the model that is connected to "
        "it.\n"
        "3. **Concatenate** puts the place behind the labels.\n"
        "4. **UniGS Sampler**, task *synthesis*, paints the picture.\n\n"
        "With *kind* box the things are angular, with another *seed* their outlines differ.",
        height=430,
    )
    loader, loaded = at.load()
    boxes = at.add("UniGSCoarseMaskFromBox", boxes="10,56,60,118 strawberry; 72,14,118,66 apple")
    encoded = at.add("UniGSColormapEncode", masks=boxes["regions"], model=loaded["model"])
    words = at.add(
        "StringConcatenate", "The labels, and where", string_a=boxes["prompt"], string_b="on grass", delimiter=" "
    )
    layout = at.show("Layout", encoded["colormap"])
    sampled = at.add("UniGSSampler", **loaded, task="synthesis", prompt=words["STRING"], colormap=encoded["colormap"])
    decoded = at.decode(sampled, loaded["model"], sampled["image"])
    result = at.save(sampled["image"], "from_boxes")
    colormap = at.show("Colormap", sampled["colormap"])
    masks = at.show_masks("Masks", decoded["masks"])
    at.arrange([note, loader], [boxes, words], [encoded, layout], [sampled], [decoded, result], [colormap, masks])


def batch_to_layers(at: Pieces) -> None:
    note = at.note(
        "## A batch into layers\n\nSegments **several pictures at once** and saves each entity as a transparent layer."
        "\n\n1. **Batch Images** puts pictures of one size into a batch, two at a time. Any node that gives a batch of "
        "pictures will do.\n"
        "2. **UniGS Sampler**, task *entity*, paints all their colormaps in one go.\n"
        "3. **Dichotomy Decode** gives one batch of masks for each picture.\n"
        "4. **Save Entities** writes for each picture an RGBA layer an entity, in the size of the picture, an overlay, "
        "an indexed PNG and COCO's JSON, into ComfyUI's output folder.",
        height=400,
    )
    loader, loaded = at.load()
    files = ("unigs_entity.png", "unigs_referring.png", "unigs_synthesis.png")
    pictures = [at.picture(file, f"Picture {number}") for number, file in enumerate(files, 1)]
    two = at.add("ImageBatch", image1=pictures[0]["IMAGE"], image2=pictures[1]["IMAGE"])
    batch = at.add("ImageBatch", image1=two["IMAGE"], image2=pictures[2]["IMAGE"])
    sampled = at.add("UniGSSampler", **loaded, task="entity", image=batch["IMAGE"])
    decoded = at.decode(sampled, loaded["model"], batch["IMAGE"], keep_background=True)
    colormap = at.show("Colormap", sampled["colormap"])
    masks = at.show_masks("Masks", decoded["masks"])
    layers = at.add(
        "UniGSSaveEntities",
        "Result",
        image=batch["IMAGE"],
        masks=decoded["masks"],
        scores=decoded["scores"],
        model=loaded["model"],
        filename_prefix="unigs/layers",
    ).wide(540)
    at.arrange([note, loader], pictures, [two, batch, sampled, decoded], [colormap, masks], [layers])


TEMPLATES: list[Callable[[Pieces], None]] = [
    entity_segmentation,
    multi_region_inpainting,
    referring_segmentation,
    synthesis,
    remove_an_object,
    repaint_one_entity,
    boxes_to_picture,
    batch_to_layers,
]


def segment(at: Pieces) -> None:
    """Finds everything in a picture: one mask an entity, and transparent cut-outs."""
    loaded, image = given(at), at.input("image", "IMAGE")
    sampled = at.add("UniGSSampler", **loaded, task="entity", image=image, seed=at.input("seed", "INT"))
    decoded = at.decode(sampled, loaded["model"], image, keep_background=True)
    split = at.add("UniGSEntityMaskSplit", masks=decoded["masks"], image=image)
    at.output("masks", decoded["masks"])
    at.output("cut-outs", split["RGBA cut-outs"])
    at.output("label preview", decoded["label preview"])
    at.output("colormap", sampled["colormap"])
    at.arrange([sampled], [decoded, split])


def inpaint(at: Pieces) -> None:
    """Paints what the prompt names into the coarse mask of a picture, and gives the masks of what it painted."""
    loaded, image, where = given(at), at.input("image", "IMAGE"), at.input("coarse_mask", "MASK")
    words = {"prompt": at.input("prompt", "STRING"), "seed": at.input("seed", "INT")}
    sampled = at.add("UniGSSampler", **loaded, task="inpainting", image=image, coarse_mask=where, **words)
    decoded = at.decode(sampled, loaded["model"], sampled["image"])
    at.output("image", sampled["image"])
    at.output("masks", decoded["masks"])
    at.arrange([sampled], [decoded])


def synthesize(at: Pieces) -> None:
    """Paints a picture of a layout: one mask an entity, named by the prompt from left to right."""
    loaded, layout = given(at), at.input("masks", "MASK")
    words = {"prompt": at.input("prompt", "STRING"), "seed": at.input("seed", "INT")}
    encoded = at.add("UniGSColormapEncode", masks=layout, model=loaded["model"])
    sampled = at.add("UniGSSampler", **loaded, task="synthesis", colormap=encoded["colormap"], **words)
    decoded = at.decode(sampled, loaded["model"], sampled["image"])
    at.output("image", sampled["image"])
    at.output("masks", decoded["masks"])
    at.arrange([encoded], [sampled], [decoded])


def given(at: Pieces) -> dict[str, Output]:
    """MODEL, CLIP and VAE as inputs of the sub-graph, so that several of them share one loader."""
    return {name: at.input(name, name.upper()) for name in ("model", "clip", "vae")}


# The name of a file is what the node library shows.
BLUEPRINTS: dict[str, Callable[[Pieces], None]] = {
    "Segment (UniGS)": segment,
    "Inpaint (UniGS)": inpaint,
    "Synthesize (UniGS)": synthesize,
}


def drawn(object_info: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    """File -> the graph that belongs into it, for a server with these nodes (`Client.object_info`)."""
    found = {}
    for draw in TEMPLATES:
        canvas = Pieces(draw.__name__, object_info)
        draw(canvas)
        found[WORKFLOWS / f"{draw.__name__}.json"] = canvas.template()
    for title, draw in BLUEPRINTS.items():
        canvas = Pieces(f"subgraphs/{draw.__name__}", object_info)
        draw(canvas)
        found[SUBGRAPHS / f"{title}.json"] = canvas.blueprint(title, draw.__doc__ or "")
    return found


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with ComfyUI() as server:
            graphs = drawn(server.client.object_info())
    except ComfyUIError as error:
        print(error, file=sys.stderr)
        return 1
    SUBGRAPHS.mkdir(exist_ok=True)
    for file, graph in graphs.items():
        file.write_text(json.dumps(graph, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(file.relative_to(REPO))
    return 0


if __name__ == "__main__":
    sys.exit(main())
