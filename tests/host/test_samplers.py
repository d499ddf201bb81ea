"""The host's own samplers on what UniGS Conditioning prepares; holding one half; ensembles."""

import numpy as np
import pytest

from demo.client import Interrupted, NodeFailed

SETTINGS = {"seed": 5, "steps": 3, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}


@pytest.fixture(scope="module")
def picture(upload):
    """Flat shapes, of a size that needs no padding."""
    pixels = np.full((64, 96, 3), 200, np.uint8)
    pixels[20:50, 30:70] = (180, 60, 40)
    return upload("shapes.png", pixels)


@pytest.fixture(scope="module")
def colours(upload):
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[20:50, 30:70] = (0, 128, 255)
    return upload("colours.png", pixels)


def conditioned(graph, loaded, **inputs):
    """UniGS Conditioning -> KSampler -> UniGS Split Latent -> two VAE Decode -> two Preview Image."""
    node = graph.add("UniGSConditioning", **loaded, **{"prompt": "", "negative": "", **inputs})
    model, positive, negative, latent = (graph.output(node, slot) for slot in range(4))
    sampled = graph.add(
        "KSampler",
        model=model,
        positive=positive,
        negative=negative,
        latent_image=latent,
        denoise=1.0,
        **SETTINGS,
    )
    split = graph.add("UniGSSplitLatent", latent=sampled)
    decoded = [graph.add("VAEDecode", samples=graph.output(split, slot), vae=loaded["vae"]) for slot in (0, 1)]
    return [graph.add("PreviewImage", images=images)[0] for images in decoded]


def sampled(graph, task, **inputs):
    node = graph.sampler(task, **SETTINGS, **inputs)
    return [graph.add("PreviewImage", images=graph.output(node, slot))[0] for slot in (0, 1)]


@pytest.mark.parametrize("task", ["entity", "synthesis"])
def test_a_ksampler_gives_what_the_unigs_sampler_gives(server, graph, shown, picture, colours, task):
    loaded = graph.loader()
    name, file = ("image", picture) if task == "entity" else ("colormap", colours)
    inputs = {name: graph.add("LoadImage", image=file), "prompt": "dog"}
    theirs, ours = conditioned(graph, loaded, task=task, **inputs), sampled(graph, task, **loaded, **inputs)
    done = server.client.run(graph.prompt)
    for one, other in zip(theirs, ours, strict=True):
        assert shown(done, one)[0].std() > 2
        assert np.array_equal(shown(done, one)[0], shown(done, other)[0])


@pytest.mark.parametrize("hold", ["none", "image"])
def test_latents_may_be_scaled_between_two_samplers(server, graph, shown, picture, hold):
    """The second KSampler goes on at another size and another shape than the conditioning's."""
    loaded = graph.loader()
    previews = conditioned(graph, loaded, task="entity", image=graph.add("LoadImage", image=picture), hold=hold)
    first, split = (
        next(node for node, spec in graph.prompt.items() if spec["class_type"] == kind)
        for kind in ("KSampler", "UniGSSplitLatent")
    )
    scaling = {"upscale_method": "nearest-exact", "width": 144 * 2, "height": 80 * 2, "crop": "center"}
    scaled = graph.add("LatentUpscale", samples=[first, 0], **scaling)
    again = {**graph.prompt[first]["inputs"], "latent_image": scaled, "denoise": 0.5}
    graph.prompt[split]["inputs"]["latent"] = graph.add("KSampler", **again)
    done = server.client.run(graph.prompt)
    height, width, _ = shown(done, previews[0])[0].shape
    assert height > 64 and width > 96
    assert all(shown(done, preview)[0].std() > 2 for preview in previews)


def test_latents_of_several_pictures_are_not_split_behind_the_conditioning(server, graph, picture):
    """The first picture's mask and control would be taken for each of them."""
    batch = graph.add("RepeatImageBatch", image=graph.add("LoadImage", image=picture), amount=2)
    conditioned(graph, graph.loader(), task="entity", image=batch)
    sampler = next(spec for spec in graph.prompt.values() if spec["class_type"] == "KSampler")
    latents = sampler["inputs"]["latent_image"]
    sampler["inputs"]["latent_image"] = graph.add("LatentFromBatch", samples=latents, batch_index=1, length=1)
    assert "given 2 pictures, but 1 latents are sampled" in failure(server, graph)


def test_a_scheduler_that_cannot_do_one_step_is_told(server, graph, picture):
    loaded, image = graph.loader(), graph.add("LoadImage", image=picture)
    node = graph.sampler("entity", image=image, **loaded, **{**SETTINGS, "steps": 1, "scheduler": "kl_optimal"})
    graph.add("PreviewImage", images=node)
    assert "scheduler kl_optimal gave no finite numbers in 1 step" in failure(server, graph)


@pytest.mark.parametrize("half", ["image", "colormap"])
@pytest.mark.parametrize("task", ["entity", "synthesis"])
def test_a_half_is_held(server, graph, shown, picture, colours, task, half):
    loaded = graph.loader()
    inputs = {"image": graph.add("LoadImage", image=picture), "colormap": graph.add("LoadImage", image=colours)}
    inputs |= {"prompt": "dog", "hold": half}
    theirs, ours = conditioned(graph, loaded, task=task, **inputs), sampled(graph, task, **loaded, **inputs)
    free = sampled(graph, task, **loaded, **{**inputs, "hold": "none"})
    given = graph.add("PreviewImage", images=inputs[half])[0]
    done = server.client.run(graph.prompt)
    held, other = (0, 1) if half == "image" else (1, 0)
    assert np.array_equal(shown(done, ours[held])[0], shown(done, given)[0])  # as it came in
    through_vae = shown(done, theirs[held])[0].astype(float) - shown(done, given)[0]
    assert np.abs(through_vae).mean() < 25  # the KSampler's is decoded from latents
    assert np.array_equal(shown(done, ours[other])[0], shown(done, theirs[other])[0])
    assert not np.array_equal(shown(done, ours[other])[0], shown(done, free[other])[0])  # the other half looks at it


def test_what_is_held_is_pasted_nowhere_else(server, graph, shown, picture):
    """Inpainting under a held picture returns that picture, hole and all."""
    image = graph.add("LoadImage", image=picture)
    mask = graph.add("UniGSCoarseMaskFromBox", boxes="30,20,70,50", width=96, height=64, kind="box", seed=0)
    painted = sampled(graph, "inpainting", image=image, coarse_mask=mask, prompt="dog", hold="image")
    given = graph.add("PreviewImage", images=image)[0]
    done = server.client.run(graph.prompt)
    assert np.array_equal(shown(done, painted[0])[0], shown(done, given)[0])


def failure(server, graph) -> str:
    with pytest.raises(NodeFailed) as caught:
        server.client.run(graph.prompt)
    assert caught.value.data["exception_type"] == "ValueError"
    return str(caught.value)


def test_what_is_held_must_have_the_size_of_the_picture(server, graph, picture, upload):
    small = upload("small.png", np.zeros((32, 64, 3), np.uint8))
    inputs = {"image": graph.add("LoadImage", image=picture), "colormap": graph.add("LoadImage", image=small)}
    sampled(graph, "entity", hold="colormap", **inputs)
    assert "image (64, 96) and {'colormap': (32, 64)}" in failure(server, graph)


def test_other_latents_are_not_split(server, graph):
    empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    split = graph.add("UniGSSplitLatent", latent=empty)
    graph.add("PreviewImage", images=graph.add("VAEDecode", samples=split, vae=graph.loader()["vae"]))
    assert "latent: expected 8 channels, got latents (1, 4, 8, 8)" in failure(server, graph)


def test_a_vae_of_another_sort_is_told(server, graph, picture):
    loaded = graph.loader()
    loaded["vae"] = graph.add("VAELoader", vae_name="pixel_space")
    sampled(graph, "entity", image=graph.add("LoadImage", image=picture), **loaded)
    assert "vae: expected the VAE of the UniGS Loader" in failure(server, graph)


def colormaps(graph, picture, count, **inputs):
    image = graph.add("LoadImage", image=picture)
    return sampled(graph, "entity", image=image, **graph.loader(), ensemble=count, **inputs)


def test_an_ensemble_votes_on_the_colour_of_each_pixel(server, graph, shown, picture):
    voted = colormaps(graph, picture, 3)
    single = [
        [graph.add("PreviewImage", images=graph.output(one, slot))[0] for slot in (0, 1)]
        for seed in (5, 6, 7)
        for one in [graph.sampler("entity", **{**SETTINGS, "seed": seed}, image=graph.add("LoadImage", image=picture))]
    ]
    done = server.client.run(graph.prompt)
    members = np.stack([shown(done, colormap)[0] for _, colormap in single]).astype(int)  # (3, H, W, 3)
    distances = np.stack([np.abs(members - one).sum(axis=(0, 3)) for one in members])
    expected = np.take_along_axis(members, distances.argmin(axis=0)[None, ..., None], axis=0)[0]
    found = shown(done, voted[1])[0]
    assert (np.abs(found - expected).max(axis=-1) <= 1).mean() > 0.99  # previews are rounded before they vote here
    assert not np.array_equal(members[0], members[1])
    assert np.array_equal(shown(done, voted[0])[0], shown(done, single[0][0])[0])  # the picture of the first
    steps = [step for node, *step in done.progress if graph.prompt[node].get("inputs", {}).get("ensemble") == 3]
    assert steps[-1] == [9, 9] and steps == sorted(steps)


def test_an_ensemble_can_be_cancelled(server, graph, picture):
    colormaps(graph, picture, 64)
    seen = []

    def cancel(node, value, maximum):
        seen.append((value, maximum))
        if value == 4:  # in the second colormap of three steps
            server.client.interrupt()

    with pytest.raises(Interrupted):
        server.client.run(graph.prompt, on_progress=cancel)
    assert max(seen) < (40, 192) and seen[-1][1] == 192
