"""Unusual and wrong input: it works as people expect, or one error names the input."""

import numpy as np
import pytest

from demo.client import NodeFailed, PromptRejected


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def picture(upload, pixels):
    return upload("plain.png", pixels)


def failure(server, graph) -> NodeFailed:
    with pytest.raises(NodeFailed) as caught:
        server.client.run(graph.prompt)
    return caught.value


def box_mask(graph, width, height, boxes="8,8,40,40"):
    return graph.add("UniGSCoarseMaskFromBox", boxes=boxes, width=width, height=height, kind="box", seed=0)


@pytest.mark.promise("any size")
@pytest.mark.parametrize("size", [(128, 128), (97, 131), (40, 200), (33, 33)])
def test_any_size_comes_back_as_it_was(server, graph, upload, shown, size):
    picture = upload(f"size{size[0]}x{size[1]}.png", np.full((*size, 3), 90, np.uint8))
    result = graph.sampler("entity", image=graph.add("LoadImage", image=picture), steps=1)
    both = [graph.add("PreviewImage", images=graph.output(result, slot)) for slot in (0, 1)]
    done = server.client.run(graph.prompt)
    assert [shown(done, node[0])[0].shape for node in both] == [(*size, 3)] * 2


def test_inpainting_leaves_the_rest_untouched(server, graph, picture, pixels, shown):
    image = graph.add("LoadImage", image=picture)
    mask = box_mask(graph, 128, 96)
    painted = graph.add(
        "SaveImage",
        images=graph.sampler("inpainting", image=image, coarse_mask=mask, prompt="dog", steps=2),
        filename_prefix="test",
    )
    drawn = graph.add("MaskPreview", mask=mask)
    done = server.client.run(graph.prompt)
    outside = shown(done, drawn[0])[0][..., 0] == 0
    found = shown(done, painted[0])[0]
    assert 0 < (~outside).sum() < outside.sum()
    assert np.array_equal(found[outside], pixels[outside])
    assert not np.array_equal(found[~outside], pixels[~outside])


@pytest.mark.promise("RGBA")
def test_transparent_pictures_are_taken_by_their_colours(server, graph, upload, pixels, shown):
    with_alpha = upload("rgba.png", np.dstack([pixels, np.full(pixels.shape[:2], 200, np.uint8)]))
    loaded = graph.add("LoadImage", image=with_alpha)
    rgba = graph.add("JoinImageWithAlpha", image=loaded, alpha=graph.output(loaded, 1))
    image = graph.sampler("inpainting", image=rgba, coarse_mask=box_mask(graph, 128, 96), prompt="dog", steps=1)
    node = graph.add("PreviewImage", images=image)
    found = shown(server.client.run(graph.prompt), node[0])[0]
    assert found.shape == pixels.shape and np.array_equal(found[60:, 60:], pixels[60:, 60:])


@pytest.mark.promise("mask count")
@pytest.mark.promise("batch")
def test_a_batch_of_pictures_and_one_mask_for_all(server, graph, picture, shown):
    image = graph.add("RepeatImageBatch", image=graph.add("LoadImage", image=picture), amount=3)
    sampled = graph.sampler("inpainting", image=image, coarse_mask=box_mask(graph, 128, 96), prompt="dog", steps=1)
    decoded = graph.add(
        "UniGSDichotomyDecode", colormap=graph.output(sampled, 1), delta=10.0, min_area=0, keep_background=True
    )
    split = graph.add(
        "UniGSEntityMaskSplit", masks=decoded, order="largest first", min_area=0, index=0, crop=False, image=sampled
    )
    previews = [graph.add("PreviewImage", images=output) for output in (sampled, graph.output(decoded, 1))]
    single = graph.add("MaskPreview", mask=graph.output(split, 2))
    done = server.client.run(graph.prompt)
    assert [len(shown(done, node[0])) for node in previews] == [3, 3]
    assert len(shown(done, single[0])) == 3


@pytest.mark.promise("batch")
@pytest.mark.parametrize("task", ["inpainting", "synthesis", "referring", "entity"])
def test_the_first_of_a_batch_is_what_it_is_alone(server, graph, picture, upload, shown, task):
    other = upload("other.png", np.full((96, 128, 3), 60, np.uint8))
    one, two = (graph.add("LoadImage", image=name) for name in (picture, other))
    both = graph.add("ImageBatch", image1=one, image2=two)
    mask = {"coarse_mask": box_mask(graph, 128, 96)} if task == "inpainting" else {}
    name = "colormap" if task == "synthesis" else "image"
    sampled = [graph.sampler(task, prompt="dog", steps=2, **{name: images}, **mask) for images in (one, both)]
    alone, together = ([graph.add("PreviewImage", images=graph.output(node, n))[0] for n in (0, 1)] for node in sampled)
    done = server.client.run(graph.prompt)
    for stream, single, batch in zip(("image", "colormap"), alone, together, strict=True):
        (expected,), (first, second) = shown(done, single), shown(done, batch)
        assert np.abs(first.astype(int) - expected).max() <= 2  # sums of another order, rounded
        if (task, stream) != ("referring", "colormap"):  # neither picture has a dog: both colormaps are empty
            assert not np.array_equal(second, expected)


@pytest.mark.promise("mask count")
def test_masks_in_another_number_than_pictures(server, graph, picture):
    image = graph.add("RepeatImageBatch", image=graph.add("LoadImage", image=picture), amount=3)
    two = graph.output(box_mask(graph, 128, 96, "8,8,40,40; 60,60,90,90"), 1)
    graph.add("PreviewImage", images=graph.sampler("inpainting", image=image, coarse_mask=two, prompt="dog"))
    error = failure(server, graph)
    assert error.data["exception_type"] == "ValueError"
    assert "image: 3, coarse_mask: 2" in str(error)


@pytest.mark.promise("mask size")
def test_a_mask_of_another_size_is_scaled(server, graph, picture, pixels, shown):
    image = graph.sampler(
        "inpainting",
        image=graph.add("LoadImage", image=picture),
        coarse_mask=box_mask(graph, 256, 192, "0,0,64,64"),
        prompt="dog",
        steps=1,
    )
    node = graph.add("PreviewImage", images=image)
    found = shown(server.client.run(graph.prompt), node[0])[0]
    changed = (found != pixels).any(axis=-1)
    assert changed[:32, :32].mean() > 0.9 and not changed[80:].any()


def test_a_picture_without_alpha_has_an_empty_mask_and_the_error_says_so(server, graph, picture):
    image = graph.add("LoadImage", image=picture)
    painted = graph.sampler("inpainting", image=image, coarse_mask=graph.output(image, 1), prompt="dog")
    graph.add("PreviewImage", images=painted)
    assert "coarse_mask: nothing is selected" in str(failure(server, graph))


@pytest.mark.promise("nothing found")
def test_nothing_found_is_one_empty_mask_all_the_way(server, graph, shown):
    """A black colormap, through every node behind it."""
    black = graph.add("EmptyImage", width=64, height=48, batch_size=1, color=0)
    decoded = graph.add("UniGSDichotomyDecode", colormap=black, delta=10.0, min_area=0, keep_background=False)
    split = graph.add(
        "UniGSEntityMaskSplit", masks=decoded, order="largest first", min_area=0, index=0, crop=True, image=black
    )
    encoded = graph.add("UniGSColormapEncode", masks=decoded, grid=11)
    settings = {"boxes": "", "width": 64, "height": 48, "kind": "curve", "seed": 0}
    boxed = [graph.add("UniGSCoarseMaskFromBox", **settings, bboxes=graph.output(split, slot)) for slot in (1, 5)]
    outputs = {
        "masks": graph.add("MaskPreview", mask=decoded),
        "single": graph.add("MaskPreview", mask=split),
        "chosen": graph.add("MaskPreview", mask=graph.output(split, 2)),
        "cut-outs": graph.add("PreviewImage", images=graph.output(split, 3)),
        "labels": graph.add("PreviewImage", images=graph.output(decoded, 1)),
        "tree": graph.add("PreviewImage", images=graph.output(decoded, 2)),
        "colormap": graph.add("PreviewImage", images=encoded),
        "of a box": graph.add("MaskPreview", mask=boxed[0]),
        "of all boxes": graph.add("MaskPreview", mask=graph.output(boxed[1], 1)),
    }
    done = server.client.run(graph.prompt)
    for name in ("masks", "single", "chosen", "cut-outs", "colormap", "of a box", "of all boxes"):
        (found,) = shown(done, outputs[name][0])
        assert found.shape[:2] == (48, 64) and not found.any(), name
    assert len(shown(done, outputs["labels"][0])) == len(shown(done, outputs["tree"][0])) == 1

    graph.add("PreviewImage", images=graph.sampler("inpainting", image=black, coarse_mask=boxed[0], prompt="dog"))
    assert "coarse_mask: nothing is selected: nothing was found" in str(failure(server, graph))


@pytest.mark.promise("stable entities")
def test_masks_there_and_back(server, graph, shown):
    """Boxes -> masks -> colormap -> masks: the same masks, largest first."""
    boxes = ["2,2,40,40", "50,4,80,28", "10,60,90,92"]
    joined = graph.output(box_mask(graph, 96, 96, "; ".join(boxes)), 1)
    colormap = graph.add("UniGSColormapEncode", masks=joined, grid=5)
    decoded = graph.add("UniGSDichotomyDecode", colormap=colormap, delta=10.0, min_area=0, keep_background=False)
    before, after = (graph.add("MaskPreview", mask=mask) for mask in (joined, decoded))
    done = server.client.run(graph.prompt)
    given = np.stack(shown(done, before[0]))[..., 0] > 0
    given = given & ~np.stack([given[i + 1 :].any(axis=0) for i in range(len(given))])  # later masks lie on top
    found = np.stack(shown(done, after[0]))[..., 0] > 0
    order = np.argsort(-given.sum(axis=(1, 2)), kind="stable")
    assert np.array_equal(found, given[order])


def test_colours_near_one_of_the_palette_are_one_entity_if_asked(server, graph, upload):
    """Two shades of the red of the default palette, which are two entities to whoever does not know it."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[8:28, 8:56], pixels[36:56, 8:56] = (255, 0, 0), (232, 24, 24)
    image = graph.add("LoadImage", image=upload("shades.png", pixels))
    counts = {}
    for use_palette in (False, True):
        settings = {"delta": 5.0, "min_area": 0, "keep_background": False, "use_palette": use_palette}
        decoded = graph.add("UniGSDichotomyDecode", colormap=image, **settings)
        counts[use_palette] = graph.add("PreviewAny", source=graph.output(decoded, 3))[0]
    done = server.client.run(graph.prompt)
    assert {key: done.outputs[node]["text"] for key, node in counts.items()} == {False: ["2"], True: ["1"]}


def test_masks_follow_the_edges_of_a_picture(server, graph, upload, shown):
    """A square that is two pixels larger in the picture than in its colormap."""
    colormap, picture = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    colormap[20:44, 20:44], picture[18:46, 18:46] = (255, 0, 0), 220
    image = graph.add("LoadImage", image=upload("square.png", picture))
    small = graph.add("ImageScale", image=image, upscale_method="area", width=32, height=32, crop="disabled")
    two = graph.add("ImageBatch", image1=image, image2=image)
    settings = {"delta": 10.0, "min_area": 0, "keep_background": False}
    settings["colormap"] = graph.add("LoadImage", image=upload("square_map.png", colormap))
    masks = graph.add("UniGSDichotomyDecode", **settings)
    preview = graph.add("MaskPreview", mask=masks)

    def area(**inputs):
        graph.prompt[masks[0]]["inputs"].update(inputs)
        return int((shown(server.client.run(graph.prompt), preview[0])[0][..., 0] > 0).sum())

    with pytest.raises(
        PromptRejected, match="snap: 10 pixels towards edges of which picture. Connect image, or set sn"
    ):
        area(snap=10)
    with pytest.raises(PromptRejected, match="snap: must lie in 0 to 1024, got 2000"):
        area(image=image, snap=2000)
    assert area(snap=0) == 24**2
    assert area(snap=10) == pytest.approx(28**2, abs=8)  # its corners stay out
    with pytest.raises(NodeFailed, match="the picture whose edges are followed must be uint8 of shape .64, 64, 3."):
        area(image=small)
    with pytest.raises(NodeFailed, match="image: 2 pictures for 1 colormaps; give one for each, or one for all"):
        area(image=two)
    assert area(snap=0) == 24**2  # the image is not looked at then


def test_a_box_outside_the_picture(server, graph):
    graph.add("MaskPreview", mask=box_mask(graph, 128, 96, "8,8,40,40; 500,500,600,600"))
    assert "box 1 (500, 500, 600, 600) lies outside the picture" in str(failure(server, graph))


@pytest.mark.promise("stable entities")
def test_entities_are_the_same_in_every_run(server, graph, picture, shown):
    """From the picture on: nothing is kept from the first run."""
    sampled = graph.sampler("entity", image=graph.add("LoadImage", image=picture), seed=3)
    decoded = graph.add(
        "UniGSDichotomyDecode", colormap=graph.output(sampled, 1), delta=10.0, min_area=0, keep_background=True
    )
    node = graph.add("MaskPreview", mask=decoded)
    runs = []
    for _ in range(2):
        server.client.free()
        done = server.client.run(graph.prompt)
        assert decoded[0] not in done.cached
        runs.append(np.stack(shown(done, node[0])))
    assert len(runs[0]) > 1 and np.array_equal(*runs)


def test_a_checkpoint_that_is_not_there(server, graph):
    loader = graph.add("UniGSLoader", checkpoint="gone", dtype="default")
    graph.add(
        "PreviewImage",
        images=graph.add(
            "VAEDecode",
            samples=graph.add("EmptyLatentImage", width=64, height=64, batch_size=1),
            vae=graph.output(loader, 2),
        ),
    )
    with pytest.raises(PromptRejected, match="checkpoint: 'gone' is none of bundled"):
        server.client.run(graph.prompt)


def test_the_model_in_another_sampler_says_what_to_use(server, graph):
    loader = graph.add("UniGSLoader", checkpoint="bundled", dtype="default")
    text = graph.add("CLIPTextEncode", text="dog", clip=graph.output(loader, 1))
    latent = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    sampled = graph.add(
        "KSampler",
        model=loader,
        seed=0,
        steps=1,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        positive=text,
        negative=text,
        latent_image=latent,
        denoise=1.0,
    )
    graph.add("PreviewImage", images=graph.add("VAEDecode", samples=sampled, vae=graph.output(loader, 2)))
    assert "UniGS Sampler" in (told := str(failure(server, graph))) and "UniGS Conditioning" in told


def test_an_order_that_does_not_exist_is_refused(server, graph):
    masks = box_mask(graph, 64, 64)
    split = graph.add("UniGSEntityMaskSplit", masks=masks, order="by name", min_area=0, index=0, crop=False)
    graph.add("MaskPreview", mask=split)
    with pytest.raises(PromptRejected, match="order: 'by name' is none of largest first"):
        server.client.run(graph.prompt)


def test_masks_are_ordered_cut_out_and_chosen(server, graph, picture, pixels, shown):
    masks = graph.output(box_mask(graph, 128, 96, "90,8,120,90; 4,40,30,60; 40,4,80,30"), 1)
    split = graph.add(
        "UniGSEntityMaskSplit",
        masks=masks,
        order="left to right",
        min_area=0,
        index=-1,
        crop=True,
        image=graph.add("LoadImage", image=picture),
    )
    given, singles, chosen = (graph.add("MaskPreview", mask=mask) for mask in (masks, split, graph.output(split, 2)))
    cutouts = graph.add("SaveImage", images=graph.output(split, 3), filename_prefix="cut-outs")
    again = graph.add(
        "UniGSCoarseMaskFromBox", boxes="", width=128, height=96, kind="box", seed=5, bboxes=graph.output(split, 1)
    )
    found_again = graph.add("MaskPreview", mask=again)
    done = server.client.run(graph.prompt)
    right, left, middle = np.stack(shown(done, given[0]))[..., 0] > 127
    found = np.stack(shown(done, singles[0]))[..., 0] > 127
    assert np.array_equal(found, np.stack([left, middle, right]))
    assert np.array_equal(shown(done, chosen[0])[0][..., 0] > 127, right)
    assert len(shown(done, found_again[0])) == 3  # a list of boxes: the node runs once for each
    for mask, cutout in zip(found, shown(done, cutouts[0]), strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        assert np.array_equal(cutout[..., :3], pixels[inside]) and (cutout[..., 3] == 255).all()


def test_labels_of_boxes_are_the_prompt(server, graph, picture, shown):
    mask = box_mask(graph, 128, 96, "70,8,120,90 dog; 50,60,60,70\n4,40,30,60 cat")
    prompt = graph.output(mask, 2)
    text = graph.add("PreviewAny", source=prompt)
    given = {"image": graph.add("LoadImage", image=picture), "coarse_mask": mask, **graph.loader(), "steps": 1}
    both = [
        graph.add("PreviewImage", images=graph.sampler("inpainting", prompt=words, **given))
        for words in (prompt, "cat and dog")
    ]
    done = server.client.run(graph.prompt)
    assert done.outputs[text[0]]["text"] == ["cat and dog"]
    assert np.array_equal(*(shown(done, node[0])[0] for node in both))


def test_boxes_without_labels_are_no_prompt(server, graph, picture):
    mask = box_mask(graph, 128, 96)
    image = graph.add("LoadImage", image=picture)
    graph.add(
        "PreviewImage",
        images=graph.sampler("inpainting", image=image, coarse_mask=mask, prompt=graph.output(mask, 2)),
    )
    assert "prompt" in str(failure(server, graph))


@pytest.mark.parametrize(("name", "value"), [("task", "sing"), ("sampler_name", "best"), ("scheduler", "")])
def test_choices_that_do_not_exist_are_refused_before_the_graph_runs(server, graph, picture, name, value):
    inputs = {"task": "entity", "image": graph.add("LoadImage", image=picture), name: value}
    graph.add("PreviewImage", images=graph.sampler(**inputs))
    with pytest.raises(PromptRejected, match=name):
        server.client.run(graph.prompt)
