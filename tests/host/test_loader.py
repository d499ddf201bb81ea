"""Checkpoints: found where people put them, opened in every precision, their palette used."""

import json
import shutil

import numpy as np
import pytest

from unigs.checkpoints import bundled_model_dir
from unigs.palette import LocationAwarePalette


@pytest.fixture(scope="module", autouse=True)
def folders(server):
    """One checkpoint in models/unigs, one in a sub-folder elsewhere, and three folders that are none of ours."""
    models = server.data / "models" / "unigs"
    for folder in (models / "mine", server.data / "elsewhere" / "group" / "other"):
        shutil.copytree(bundled_model_dir(), folder)
    for name, index in (
        ("broken", "{"),
        ("sd", json.dumps({"_class_name": "StableDiffusionPipeline"})),
        ("empty", None),
    ):
        (models / name).mkdir()
        if index:
            (models / name / "model_index.json").write_text(index)


def sampled(graph, loader):
    image = graph.add("LoadImage", image="unigs_entity.png")
    sockets = {name: graph.output(loader, slot) for slot, name in enumerate(("model", "clip", "vae"))}
    return graph.add("PreviewImage", images=graph.output(graph.sampler("entity", image=image, **sockets), 1))


def test_pipeline_folders_are_listed_and_nothing_else(server):
    options = server.client.object_info("UniGSLoader")["UniGSLoader"]["input"]["required"]["checkpoint"][1]["options"]
    assert options == ["bundled", "group/other", "mine"]


def test_the_same_weights_give_the_same_picture_from_everywhere_in_every_precision(server, graph, shown):
    choices = [("bundled", "default"), ("mine", "default"), ("group/other", "fp32"), ("mine", "fp16"), ("mine", "bf16")]
    nodes = [sampled(graph, graph.add("UniGSLoader", checkpoint=name, dtype=dtype)) for name, dtype in choices]
    done = server.client.run(graph.prompt)
    first, *others = [shown(done, node[0])[0].astype(float) for node in nodes]
    assert first.std() > 5
    for (name, dtype), other in zip(choices[1:], others, strict=True):
        assert np.abs(other - first).mean() < (2 if dtype == "bf16" else 0.5), (name, dtype)


def test_a_newer_file_under_the_same_name_is_loaded_again(server, graph):
    loader = graph.add("UniGSLoader", checkpoint="mine", dtype="default")
    sampled(graph, loader)
    server.client.run(graph.prompt)
    assert loader[0] in server.client.run(graph.prompt).cached
    (server.data / "models" / "unigs" / "mine" / "model_index.json").touch()
    assert loader[0] not in server.client.run(graph.prompt).cached


def test_colormap_encode_takes_the_palette_of_the_model(server, graph, shown):
    boxes = "4,4,40,40; 70,70,120,120"
    masks = graph.output(graph.add("UniGSCoarseMaskFromBox", boxes=boxes, width=128, height=128, kind="box", seed=0), 1)
    loader = graph.add("UniGSLoader", checkpoint="bundled", dtype="default")
    own = graph.add("PreviewImage", images=graph.add("UniGSColormapEncode", masks=masks, grid=11, model=loader))
    plain = graph.add("PreviewImage", images=graph.add("UniGSColormapEncode", masks=masks, grid=4))
    drawn = graph.add("MaskPreview", mask=masks)
    done = server.client.run(graph.prompt)
    given = np.stack(shown(done, drawn[0]))[..., 0] > 127
    palette = json.loads((bundled_model_dir() / "model_index.json").read_text())["palette"]
    assert np.array_equal(shown(done, own[0])[0], LocationAwarePalette.from_config(palette).encode(given))
    assert np.array_equal(shown(done, plain[0])[0], LocationAwarePalette(4).encode(given))
