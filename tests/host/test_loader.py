"""Checkpoints: found where people put them, opened in every form and precision, their palette used."""

import json
import shutil

import numpy as np
import pytest

from demo.client import NodeFailed, PromptRejected
from tests.unigs import ldm_files
from unigs.checkpoints import bundled_model_dir
from unigs.palette import LocationAwarePalette
from unigs.pipeline import UniGSPipeline

FORMS = ["bundled", "mine", "group/other", "one.safetensors"]


@pytest.fixture(scope="module", autouse=True)
def folders(server):
    """The bundled checkpoint in every form and place, Stable Diffusion (zeros, which take no disk), and neither."""
    models = server.data / "models"
    for folder in (models / "unigs" / "mine", server.data / "elsewhere" / "group" / "other"):
        shutil.copytree(bundled_model_dir(), folder)
    UniGSPipeline.from_pretrained().save_single_file(models / "unigs" / "one.safetensors")
    for name, index in (("broken", "{"), ("flux", json.dumps({"_class_name": "FluxPipeline"})), ("empty", None)):
        (models / "unigs" / name).mkdir()
        if index:
            (models / "unigs" / name / "model_index.json").write_text(index)
    files = models / "checkpoints"
    files.mkdir(exist_ok=True)
    ldm_files.write(files / "inpainting.safetensors", ldm_files.stable_diffusion_1())
    ldm_files.write(files / "base.safetensors", ldm_files.stable_diffusion_1(channels=4))
    (files / "one.safetensors").write_bytes(b"no safetensors")
    (files / "old.ckpt").write_bytes(b"a pickle")


def sampled(graph, loaded, image="unigs_entity.png", **inputs):
    image = graph.add("LoadImage", image=image)
    return graph.add("PreviewImage", images=graph.output(graph.sampler("entity", image=image, **loaded, **inputs), 1))


@pytest.mark.promise("model paths")
def test_checkpoints_are_listed_and_nothing_else(server):
    options = server.client.object_info("UniGSLoader")["UniGSLoader"]["input"]["required"]["checkpoint"][1]["options"]
    ours = ["bundled", "group/other", "mine", "one.safetensors"]
    assert options == [*ours, "base.safetensors", "inpainting.safetensors", "checkpoints/one.safetensors"]


@pytest.mark.promise("precision")
@pytest.mark.promise("model paths")
@pytest.mark.parametrize("dtype", ["default", "fp32", "fp16", "bf16"])
def test_the_same_weights_give_the_same_picture_in_every_form_and_precision(server, graph, shown, dtype):
    forms = FORMS if dtype == "default" else ["mine", "unigs/one.safetensors"]
    reference = sampled(graph, graph.loader())
    nodes = {form: sampled(graph, graph.loader(form, dtype)) for form in forms}
    done = server.client.run(graph.prompt)
    expected = shown(done, reference[0])[0].astype(float)
    assert expected.std() > 5
    for form, node in nodes.items():
        difference = np.abs(shown(done, node[0])[0] - expected).mean()
        # Weights are read in place, and sums depend on how they lie in a file: a pixel may round the other way.
        assert difference < {"bf16": 2, "fp16": 0.5}.get(dtype, 1e-3), form


def test_stable_diffusion_as_it_was_published_is_widened_with_a_warning(server, graph, shown, upload):
    """Names and sizes are those of the real files; every weight is zero, so the picture is the VAE's grey."""
    small = upload("small.png", np.zeros((64, 64, 3), np.uint8))
    node = sampled(graph, graph.loader("inpainting.safetensors", "fp16"), image=small, steps=1, cfg=1.0)
    done = server.client.run(graph.prompt)
    assert len(np.unique(shown(done, node[0])[0])) == 1
    assert "inpainting is a model of Stable Diffusion inpainting: it was widened" in server.log.read_text()
    assert "never learned inpainting" not in server.log.read_text()


def test_a_base_model_is_too_with_another_warning(server, graph):
    decoded = graph.add("VAEDecode", samples=graph.add("EmptyLatentImage", width=64, height=64, batch_size=1),
        vae=graph.loader("base.safetensors", "fp16")["vae"])  # fmt: skip
    graph.add("PreviewImage", images=decoded)
    server.client.run(graph.prompt)
    assert "has not been trained for colormaps yet, and never learned inpainting" in server.log.read_text()


def test_a_file_that_is_no_checkpoint_says_so(server, graph):
    sampled(graph, graph.loader("checkpoints/one.safetensors"))
    with pytest.raises(NodeFailed, match="one.safetensors is truncated, damaged or no safetensors file"):
        server.client.run(graph.prompt)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../models/unigs/mine", "leads out of the model folders"),
        ("/etc", "leads out of the model folders"),
        ("old.ckpt", "is a pickle"),
        ("gone", "is none of bundled, group/other"),
    ],
)
def test_names_that_are_refused(server, graph, name, message):
    sampled(graph, graph.loader(name))
    with pytest.raises(PromptRejected, match=f"checkpoint: .*{message}"):
        server.client.run(graph.prompt)


def test_a_newer_file_under_the_same_name_is_loaded_again(server, graph):
    loaded = {name: graph.loader(name)["model"][0] for name in ("mine", "one.safetensors")}
    for node in loaded.values():
        sampled(graph, {name: graph.output([node, 0], slot) for slot, name in enumerate(("model", "clip", "vae"))})
    server.client.run(graph.prompt)
    assert set(loaded.values()) <= set(server.client.run(graph.prompt).cached)
    (server.data / "models" / "unigs" / "mine" / "model_index.json").touch()
    (server.data / "models" / "unigs" / "one.safetensors").touch()
    assert not set(loaded.values()) & set(server.client.run(graph.prompt).cached)


def test_colormap_encode_takes_the_palette_of_the_model(server, graph, shown):
    boxes = "4,4,40,40; 70,70,120,120"
    masks = graph.output(graph.add("UniGSCoarseMaskFromBox", boxes=boxes, width=128, height=128, kind="box", seed=0), 1)
    loader = graph.add("UniGSLoader", checkpoint="one.safetensors", dtype="default")
    own = graph.add("PreviewImage", images=graph.add("UniGSColormapEncode", masks=masks, grid=11, model=loader))
    plain = graph.add("PreviewImage", images=graph.add("UniGSColormapEncode", masks=masks, grid=4))
    drawn = graph.add("MaskPreview", mask=masks)
    done = server.client.run(graph.prompt)
    given = np.stack(shown(done, drawn[0]))[..., 0] > 127
    palette = json.loads((bundled_model_dir() / "model_index.json").read_text())["palette"]
    assert np.array_equal(shown(done, own[0])[0], LocationAwarePalette.from_config(palette).encode(given))
    assert np.array_equal(shown(done, plain[0])[0], LocationAwarePalette(4).encode(given))


def test_more_entities_than_the_palette_has_colours(server, graph):
    """With a model, `grid` is not what to change."""
    palette = json.loads((bundled_model_dir() / "model_index.json").read_text())["palette"]
    most = LocationAwarePalette.from_config(palette).grid ** 2
    boxes = "; ".join(f"{index % 16},{index // 16},{index % 16 + 1},{index // 16 + 1}" for index in range(most + 1))
    masks = graph.output(graph.add("UniGSCoarseMaskFromBox", boxes=boxes, width=16, height=16, kind="box", seed=0), 1)
    colormap = graph.add("UniGSColormapEncode", masks=masks, grid=11, model=graph.loader()["model"])
    graph.add("PreviewImage", images=colormap)
    with pytest.raises(NodeFailed, match=f"masks: {most + 1} entities, but the model's palette has {most} colours"):
        server.client.run(graph.prompt)
