"""What ComfyUI says of the nodes: all there, all explained, saved workflows safe."""

import re

import pytest

# Saved workflows store inputs by position, prompts by id: both are for ever. Appending is the only change
# that this table may see.
INPUTS = {
    "UniGSLoader": ["checkpoint", "dtype"],
    "UniGSColormapEncode": ["masks", "grid", "model"],
    "UniGSCoarseMaskFromBox": ["boxes", "width", "height", "kind", "seed", "image", "bboxes"],
    "UniGSSampler": [
        *["model", "clip", "vae", "task", "prompt", "negative", "seed", "steps", "cfg", "sampler_name", "scheduler"],
        *["image", "coarse_mask", "colormap", "hold", "ensemble"],
    ],
    "UniGSConditioning": [
        *["model", "clip", "vae", "task", "prompt", "negative", "image", "coarse_mask", "colormap", "hold"],
    ],
    "UniGSSplitLatent": ["latent"],
    "UniGSDichotomyDecode": [
        "colormap",
        "delta",
        "min_area",
        "keep_background",
        "model",
        "components",
        "use_palette",
        "image",
        "snap",
    ],
    "UniGSEntityMaskSplit": [
        *["masks", "order", "min_area", "index", "crop", "image"],
        *["box_format", "crop_factor", "scores"],
    ],
    "UniGSSaveEntities": ["image", "masks", "filename_prefix", "scores", "model"],
}
OUTPUTS = {
    "UniGSLoader": ["MODEL", "CLIP", "VAE"],
    "UniGSColormapEncode": ["IMAGE"],
    "UniGSCoarseMaskFromBox": ["MASK", "MASK", "STRING"],
    "UniGSSampler": ["IMAGE", "IMAGE"],
    "UniGSConditioning": ["MODEL", "CONDITIONING", "CONDITIONING", "LATENT"],
    "UniGSSplitLatent": ["LATENT", "LATENT"],
    "UniGSDichotomyDecode": ["MASK", "IMAGE", "IMAGE", "INT", "FLOAT"],
    "UniGSEntityMaskSplit": ["MASK", "BBOX", "MASK", "IMAGE", "MASK", "BBOX", "SEGS", "FLOAT"],
    "UniGSSaveEntities": [],
}
DISPLAY_NAMES = {
    "UniGSLoader": "UniGS Loader",
    "UniGSColormapEncode": "Colormap Encode",
    "UniGSCoarseMaskFromBox": "Coarse Mask From Box",
    "UniGSSampler": "UniGS Sampler",
    "UniGSConditioning": "UniGS Conditioning",
    "UniGSSplitLatent": "UniGS Split Latent",
    "UniGSDichotomyDecode": "Dichotomy Decode",
    "UniGSEntityMaskSplit": "Entity Mask Split",
    "UniGSSaveEntities": "Save Entities",
}


@pytest.mark.promise("node ids")
def test_every_node_of_ours_is_there_and_no_other_has_our_prefix(object_info):
    assert {name for name in object_info if name.startswith("UniGS")} == INPUTS.keys()


@pytest.mark.promise("saved workflows")
@pytest.mark.parametrize("name", INPUTS)
def test_sockets_and_widgets_are_what_saved_workflows_expect(object_info, name):
    node = object_info[name]
    assert [*node["input"].get("required", {}), *node["input"].get("optional", {})] == INPUTS[name]
    assert node["output"] == OUTPUTS[name]
    assert node["display_name"] == DISPLAY_NAMES[name]


@pytest.mark.parametrize("name", INPUTS)
def test_everything_is_explained(object_info, name):
    node = object_info[name]
    assert node["category"] == "UniGS" and len(node["description"]) > 40
    for group in (node["input"][kind] for kind in ("required", "optional") if kind in node["input"]):
        for _, settings in group.values():
            assert settings["tooltip"].endswith((".", ")"))
    assert len(node["output_tooltips"]) == len(node["output"])
    assert all(tip.endswith(".") for tip in node["output_tooltips"])


def test_the_loader_lists_the_bundled_checkpoint_first(object_info):
    assert object_info["UniGSLoader"]["input"]["required"]["checkpoint"][1]["options"][0] == "bundled"


def test_a_new_node_has_no_box(object_info):
    """It would count beside the boxes that are connected."""
    assert object_info["UniGSCoarseMaskFromBox"]["input"]["required"]["boxes"][1]["default"] == ""


def test_the_pack_was_imported_without_a_complaint(server, object_info):
    complaints = ("IMPORT FAILED", "Cannot import", "Error while calling", "Traceback")
    lines = [line for line in server.log.read_text().splitlines() if "comfyui-unigs" in line]
    assert lines and not [line for line in lines if any(complaint in line for complaint in complaints)]


def test_the_pack_costs_less_than_a_second_at_start(server, object_info):
    """Heavy libraries come with the first checkpoint."""
    found = re.findall(r"([\d.]+) seconds.*comfyui-unigs", server.log.read_text())
    assert found and float(found[-1]) < 1.0


@pytest.mark.parametrize("name", INPUTS)
def test_numbers_have_sensible_ranges(object_info, name):
    for group in object_info[name]["input"].values():
        for one, (kind, *settings) in group.items():
            if kind in ("INT", "FLOAT") and not settings[0].get("forceInput"):
                given = settings[0]
                assert given["min"] <= given["default"] <= given["max"], one
                assert one == "index" or given["min"] >= 0, one
