"""Decoding: exact on clean maps, sane on noisy ones, deterministic, and strict about its input."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter
from sklearn.cluster import KMeans

from benchmarks.colormaps import make_sample, match
from unigs.dichotomy import decode_colormap, decode_colormaps, dichotomy
from unigs.palette import LocationAwarePalette
from unigs.parts import split_components
from unigs.pipeline import UniGSPipeline
from unigs.splitting import FEW_POINTS, features, rgb_to_lab, two_means


@st.composite
def mask_sets(draw):
    """Up to 15 rectangles and scattered pixels, overlapping at will."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    masks = np.zeros((draw(st.integers(0, 15)), height, width), bool)
    for mask in masks:
        y1, x1 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        mask[y1 : draw(st.integers(y1 + 1, height)), x1 : draw(st.integers(x1 + 1, width))] = True
        mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
    return masks


def scene(size=256, radius=40, grid=5):
    """Nine discs on black: their masks (9, H, W) and their clean colormap in the bundled model's kind of palette."""
    masks = []
    for row in range(3):
        for column in range(3):
            canvas = Image.new("1", (size, size))
            y, x = size * (2 * row + 1) // 6, size * (2 * column + 1) // 6
            ImageDraw.Draw(canvas).ellipse([x - radius, y - radius // 2, x + radius, y + radius // 2], fill=1)
            masks.append(np.asarray(canvas))
    masks = np.stack(masks)
    return masks, LocationAwarePalette(grid, order="smooth").encode(masks)


def paint_badly(colormap, sigma=0.0, blur=0.0, drift=0.0, seed=0):
    """What a diffusion model and its autoencoder do to a colormap: blurred borders, colours that drift, white noise."""
    blurred = Image.fromarray(colormap).filter(ImageFilter.GaussianBlur(blur))
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-drift, drift, (4, 4, 3))
    planes = [
        np.asarray(Image.fromarray(coarse[..., c].astype(np.float32)).resize(blurred.size, Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    noisy = np.asarray(blurred, np.float32) + np.stack(planes, axis=2) + rng.normal(0, sigma, colormap.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)


def mean_iou(masks, entities):
    """Mean over the true masks of the best IoU with any entity."""
    ious = [[(m & e).sum() / (m | e).sum() for e in entities.masks] for m in masks]
    return np.mean([max(row, default=0) for row in ious])


@given(mask_sets(), st.sampled_from([(11, "raster"), (11, "gray"), (5, "smooth")]), st.booleans())
@settings(max_examples=200)
def test_decoding_a_clean_colormap_gives_the_visible_masks_back(masks, kind, keep_background):
    palette = LocationAwarePalette(kind[0], order=kind[1])
    colors = palette.assign(masks)
    top = np.zeros(masks.shape[1:], int)  # the number of the topmost mask
    for number, mask in enumerate(masks, start=1):
        top[mask] = number
    entities = decode_colormap(palette.encode(masks), keep_background=keep_background)
    visible = [number for number in np.unique(top) if number or keep_background]
    expected = {(top == n).tobytes(): [0, 0, 0] if n == 0 else colors[n - 1].tolist() for n in visible}
    assert len(entities) == len(visible)
    assert {m.tobytes(): c for m, c in zip(entities.masks, entities.colors.tolist(), strict=True)} == expected
    assert (entities.scores == 1).all()
    assert keep_background == bool((entities.labels > 0).all()) or (top > 0).all()


def test_a_full_grid_of_single_pixels_and_other_levels_come_back():
    palette = LocationAwarePalette(11)
    pixels = palette.cell_colors.reshape(11, 11, 3)
    assert len(decode_colormap(pixels)) == 121
    fine = LocationAwarePalette(16, levels=range(0, 256, 17))
    assert len(decode_colormap(fine.cell_colors.reshape(16, 16, 3)[:, 2:])) == 224


def test_a_large_clean_map_does_not_lose_a_pixel():
    masks = np.zeros((3, 700, 900), bool)
    masks[0, 5:600, 7:] = True
    masks[1, 300, 300] = True
    masks[2, 650:, :3] = True
    entities = decode_colormap(LocationAwarePalette().encode(masks))
    assert entities.areas.tolist() == [masks[0].sum() - 1, 150, 1]


@pytest.mark.parametrize("sigma, blur, drift", [(2, 0, 0), (6, 1, 0), (12, 1.5, 4), (0, 2, 0), (2, 1, 15), (0, 0, 15)])
@pytest.mark.parametrize("size, radius", [(128, 20), (256, 40)])
def test_noise_blur_and_drift_do_not_change_the_number_of_entities(sigma, blur, drift, size, radius):
    masks, clean = scene(size, radius)
    entities = decode_colormap(paint_badly(clean, sigma, blur, drift))
    assert len(entities) == 9
    assert mean_iou(masks, entities) > 0.9
    assert entities.scores.min() > 0.6
    background = decode_colormap(paint_badly(clean, sigma, blur, drift), keep_background=True)
    assert len(background) == 10
    assert background.labels.min() == 1


def test_both_parts_of_a_divided_entity_get_one_label_though_colours_drift():
    masks = np.zeros((2, 128, 128), bool)
    masks[0, 40:80] = True
    masks[1, 30:90, 50:70] = True  # in front
    entities = decode_colormap(paint_badly(LocationAwarePalette(5, order="smooth").encode(masks), 2, 1, 10))
    assert len(entities) == 2
    assert mean_iou([masks[0] & ~masks[1], masks[1]], entities) > 0.95


def test_pure_noise_on_one_colour_is_one_entity():
    for color in ([64, 128, 192], [0, 255, 0], [255, 255, 255]):
        noisy = paint_badly(np.full((90, 120, 3), color, np.uint8), sigma=10)
        entities = decode_colormap(noisy)
        assert len(entities) == 1
        assert entities.areas.tolist() == [90 * 120]


def test_noisy_black_is_background():
    noisy = paint_badly(np.zeros((90, 120, 3), np.uint8), sigma=10, drift=8)
    assert len(decode_colormap(noisy)) == 0
    assert len(decode_colormap(noisy, keep_background=True)) == 1


def test_small_entities_go_to_what_surrounds_them():
    masks = np.zeros((3, 60, 60), bool)
    masks[0, 10:50, 10:50] = True
    masks[1, 20:23, 20:23] = True
    masks[2, 2:4, 2:4] = True
    colormap = LocationAwarePalette().encode(masks)
    assert len(decode_colormap(colormap, min_area=4)) == 3
    entities = decode_colormap(colormap, min_area=10)
    assert (entities.labels == masks[0]).all()
    everything = decode_colormap(colormap, keep_background=True, min_area=10)
    assert (everything.labels == np.where(masks[0], 2, 1)).all()
    # Where nothing would be left, nothing is taken away.
    assert len(decode_colormap(colormap, min_area=10_000)) == 0
    assert len(decode_colormap(colormap, keep_background=True, min_area=10_000)) == 4


def test_colours_of_a_palette_are_no_background_however_dark():
    colormap = np.zeros((40, 40, 3), np.uint8)
    colormap[5:15, 5:15], colormap[20:35, 20:35] = (0, 0, 24), (255, 0, 0)
    assert len(decode_colormap(colormap)) == 1
    paints = np.array([[0, 0, 0], [0, 0, 24], [255, 0, 0]], np.uint8)
    assert len(decode_colormap(colormap, palette=paints)) == 2
    assert len(decode_colormap(colormap, palette=paints, criterion="nearest")) == 2


def test_the_background_radius_decides_what_is_black():
    colormap = np.zeros((20, 20, 3), np.uint8)
    colormap[5:15, 5:15] = [0, 0, 40]
    assert len(decode_colormap(colormap)) == 1
    assert len(decode_colormap(colormap, background_radius=64)) == 0


def test_scores_fall_with_the_distance_from_the_entitys_colour():
    masks, clean = scene()
    good, bad = (decode_colormap(paint_badly(clean, sigma)).scores.mean() for sigma in (1, 12))
    assert 0.5 < bad < good < 1


def test_a_picture_or_a_byte_tensor_is_as_good_as_an_array():
    _, colormap = scene(96, 15)
    expected = decode_colormap(colormap).labels
    assert (decode_colormap(Image.fromarray(colormap)).labels == expected).all()
    assert (decode_colormap(Image.fromarray(colormap).convert("RGBA")).labels == expected).all()
    assert (decode_colormap(torch.from_numpy(colormap)).labels == expected).all()


@st.composite
def colormaps(draw):
    """Maps of every kind: noise, gradients, flat or noisy patches, of any size from one pixel on."""
    height, width = draw(st.integers(1, 48)), draw(st.integers(1, 48))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["noise", "gradient", "patches", "speckles", "one colour"]))
    sigma = draw(st.sampled_from([0, 1, 4, 15]))
    if kind == "noise":
        picture = rng.integers(0, 256, (height, width, 3)).astype(float)
    elif kind == "gradient":
        picture = rng.normal(0, 3, (height, width, 3)).cumsum(axis=0) + 128
    elif kind == "patches":
        patches = rng.integers(0, 256, (3, 3, 3))
        picture = np.kron(patches, np.ones((height // 3 + 1, width // 3 + 1, 1)))[:height, :width]
    elif kind == "speckles":
        picture = rng.integers(0, 256, (4, 3))[rng.integers(0, 4, (height, width))].astype(float)
    else:
        picture = np.broadcast_to(rng.integers(0, 256, 3), (height, width, 3)).astype(float)
    return (picture + rng.normal(0, sigma, picture.shape)).round().clip(0, 255).astype(np.uint8)


def first_pixels(labels):
    """The label map with every label replaced by the place of its first pixel: equal for equal partitions."""
    _, first, index = np.unique(labels, return_index=True, return_inverse=True)
    return first[index].reshape(labels.shape)


TURNS = {
    "flipped left to right": (lambda x: x[:, ::-1], lambda x: x[:, ::-1]),
    "flipped top to bottom": (lambda x: x[::-1], lambda x: x[::-1]),
    "turned by 90 degrees": (np.rot90, lambda x: np.rot90(x, -1)),
    "transposed": (lambda x: x.swapaxes(0, 1), lambda x: x.swapaxes(0, 1)),
}


@given(colormaps(), st.sampled_from(["mean", "mean_squared"]))
@settings(max_examples=150)
def test_any_map_decodes_to_a_partition_that_turns_with_the_picture(colormap, criterion):
    found = dichotomy(colormap, criterion=criterion)
    assert found.clusters.shape == colormap.shape[:2]
    assert np.unique(found.clusters).tolist() == list(range(len(found.centers)))
    assert ((found.sureness >= 0) & (found.sureness <= 1)).all()
    entities = decode_colormap(colormap, keep_background=True, criterion=criterion)
    assert entities.labels.min() == 1
    assert entities.areas.sum() == colormap.shape[0] * colormap.shape[1]
    assert (decode_colormap(colormap, keep_background=True, criterion=criterion).labels == entities.labels).all()
    for name, (turn, back) in TURNS.items():
        turned = back(dichotomy(np.ascontiguousarray(turn(colormap)), criterion=criterion).clusters)
        assert (first_pixels(turned) == first_pixels(found.clusters)).all(), name


@given(colormaps(), st.integers(0, 40), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_every_option_gives_entities(colormap, min_area, components, denoise):
    colormap = colormap[:20, :20]
    for palette in (None, LocationAwarePalette(5)):
        entities = decode_colormap(colormap, min_area=min_area, palette=palette, components=components, denoise=denoise)
        assert entities.labels.shape == colormap.shape[:2]
    nearest = decode_colormap(colormap, criterion="nearest", palette=palette, denoise=denoise)
    assert len(nearest) <= 26  # what is nearest to black may still be far from it


@pytest.mark.parametrize(
    "options", [{}, {"criterion": "nearest", "palette": LocationAwarePalette()}, {"denoise": False, "delta": 60}]
)
@pytest.mark.parametrize("seed, entities", [(0, 16), (1, 40)])
def test_real_maps_turn_with_the_picture(seed, entities, options):
    colormap = make_sample(seed, entities, (181, 256), 6).colormap
    expected = dichotomy(colormap, **options)
    for name, (turn, back) in TURNS.items():
        found = dichotomy(np.ascontiguousarray(turn(colormap)), **options)
        assert (first_pixels(back(found.clusters)) == first_pixels(expected.clusters)).all(), name
        np.testing.assert_allclose(np.sort(found.sureness), np.sort(expected.sureness))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_flat_colours_just_further_apart_than_delta_are_told_apart(seed):
    rng = np.random.default_rng(seed)
    delta = rng.uniform(2, 40)
    colors = [rng.integers(0, 256, 3)]
    for color in rng.integers(0, 256, (12, 3)):
        if min(np.linalg.norm(color - other) for other in colors) > delta:
            colors.append(color)
    colors.append(colors[0] + np.array([1, 0, 0]) * np.ceil(delta + 0.01) * (1 if colors[0][0] < 128 else -1))
    numbers = rng.choice(len(colors), (25, 25), p=rng.dirichlet(np.full(len(colors), 0.3)))
    colormap = np.array(colors).astype(np.uint8)[numbers]
    used = colormap.reshape(-1, 3).astype(float)
    apart = np.linalg.norm(used[:, None] - used[None], axis=2)
    if apart[apart > 0].min(initial=np.inf) > delta:
        clusters = dichotomy(colormap, delta).clusters
        assert (first_pixels(clusters) == first_pixels(colormap @ np.array([65536, 256, 1]))).all()


@pytest.mark.parametrize(
    "colormap, message",
    [
        (np.zeros((4, 4, 3)), r"uint8 .* got float64 \(4, 4, 3\)"),
        (torch.zeros(1, 3, 4, 4), r"got float32 \(1, 3, 4, 4\).*permute"),
        (np.zeros((3, 4, 4), np.uint8), "channels last"),
        (np.zeros((4, 4, 4), np.uint8), "no alpha"),
        (np.zeros((1, 4, 4, 3), np.uint8), "one picture"),
        (np.zeros((4, 4), np.uint8), r"one picture \(H, W, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(H, W, 3\)"),
        (np.full((4, 4, 3), np.nan), "uint8"),
        (np.zeros((4, 4, 3), np.uint16), "got uint16"),
        (Image.new("I;16", (4, 4)), "mode RGB, RGBA, P, L or 1, got mode I;16"),
        (Image.new("F", (4, 4)), "got mode F"),
        (torch.zeros(4, 4, 3, dtype=torch.bfloat16), r"got bfloat16 \(4, 4, 3\)"),
        # Of these there is nothing to copy, so they are refused where they are.
        (torch.zeros(3, 4, 4, dtype=torch.uint8, device="meta"), "channels last"),
        (torch.zeros(4, 4, 3, device="meta"), "got float32"),
    ],
)
def test_other_layouts_are_errors(colormap, message):
    with pytest.raises(ValueError, match=message):
        decode_colormap(colormap)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"delta": 0}, "delta must be a positive number"),
        ({"delta": "ten"}, "delta must be a positive number, got 'ten'"),
        ({"delta": None}, "delta must be a positive number, got None"),
        ({"delta": float("nan")}, "delta"),
        ({"min_area": -1}, "must not be negative"),
        ({"background_radius": -1}, "must not be negative"),
        ({"criterion": "manhattan"}, "mean, mean_squared, nearest"),
        ({"criterion": "nearest"}, "needs a palette"),
        ({"palette": np.zeros((3, 4), np.uint8)}, r"uint8 colours \(K, 3\), got uint8 \(3, 4\)"),
        ({"palette": np.zeros((3, 3))}, "float64"),
    ],
)
def test_wrong_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        decode_colormap(np.zeros((4, 4, 3), np.uint8), **arguments)


def test_the_tree_starts_with_everything_and_every_split_shrinks_the_distance():
    masks, clean = scene()
    found = dichotomy(paint_badly(clean, 4, 1, 5))
    root = found.tree[0]
    assert root.depth == 0
    assert root.leaves.tolist() == list(range(found.leaves.max() + 1))
    ends = [node for node in found.tree if len(node.leaves) == 1]
    assert {int(node.leaves[0]) for node in ends} == set(root.leaves.tolist())
    assert max(node.distance for node in ends) < root.distance
    assert len(found.centers) == 10 == found.clusters.max() + 1
    assert found.sureness.min() < 1
    assert (dichotomy(clean).sureness == 1).all()


def test_lab_of_known_colours():
    # CIE Lab of the sRGB primaries for D65, as printed in colour science tables.
    expected = [[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86], [100, 0, 0], [0, 0, 0]]
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]])
    np.testing.assert_allclose(rgb_to_lab(colors), expected, atol=0.02)


# The mean 6-D distance of white noise of this sigma on a flat patch.
@pytest.mark.parametrize("sigma, distance", [(2, 3.6), (5, 8.9), (6, 10.7), (8, 14.2)])
def test_delta_is_the_mean_distance_of_the_plain_dichotomy(sigma, distance):
    patch = paint_badly(np.full((64, 64, 3), (192, 128, 64), np.uint8), sigma)
    root = dichotomy(patch, denoise=False).tree[0]
    assert root.distance == pytest.approx(distance, abs=0.35)
    assert len(dichotomy(patch, delta=root.distance * 1.001, denoise=False).tree) == 1
    assert len(dichotomy(patch, delta=root.distance * 0.999, denoise=False).tree) > 1
    assert len(dichotomy(patch, delta=10, denoise=False).tree) == 1 or distance > 10
    assert len(dichotomy(patch).tree) == 1


def test_the_mean_squared_reading_splits_sooner():
    patch = paint_badly(np.full((64, 64, 3), 128, np.uint8), sigma=3)
    assert len(decode_colormap(patch, denoise=False)) == 1
    assert len(decode_colormap(patch, criterion="mean_squared", denoise=False)) > 10
    assert len(decode_colormap(patch, delta=1000, criterion="mean_squared", denoise=False)) == 1


def dichotomy_of_pixels(pixels, delta=10.0):
    """The recursion on every single pixel, by scikit-learn: sets of pixel numbers."""
    points = features(pixels.reshape(-1, 3).astype(float))
    parts, stack = [], [np.arange(len(points))]
    while stack:
        members = stack.pop()
        if np.linalg.norm(points[members] - points[members].mean(axis=0), axis=1).mean() <= delta:
            parts.append(members)
            continue
        side = KMeans(2, n_init=10, random_state=0, tol=0).fit_predict(points[members]) > 0
        stack += [members[side], members[~side]]
    return {part.tobytes() for part in parts}


@pytest.mark.parametrize("entities", [3, 12, 24])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_histogram_gives_what_the_pixels_themselves_give(entities, seed):
    colormap = make_sample(seed, entities, (96, 96), None).colormap
    clusters = dichotomy(colormap, denoise=False).clusters.ravel()
    found = {np.flatnonzero(clusters == k).tobytes() for k in range(clusters.max() + 1)}
    assert found == dichotomy_of_pixels(colormap)


def two_cluster_problems():
    rng = np.random.default_rng(0)
    for number in range(80):
        count = int(rng.integers(2, 300))
        if number % 4 == 0:
            colors = rng.uniform(0, 255, (count, 3))
        elif number % 4 == 1:
            hubs = rng.uniform(0, 255, (rng.integers(2, 9), 3))
            colors = (hubs[rng.integers(0, len(hubs), count)] + rng.normal(0, 8, (count, 3))).clip(0, 255)
        elif number % 4 == 2:
            colors = rng.choice([0.0, 64, 128, 192, 255], (count, 3))
        else:
            colors = rng.integers(0, 4, (count, 3)) * 8.0 + 100
        colors = np.unique(colors, axis=0)
        if len(colors) > 1:
            yield colors, np.exp(rng.normal(0, 1.5, len(colors)))


def test_no_k_means_finds_a_better_split():
    for colors, weights in two_cluster_problems():
        points = features(colors)
        points -= weights @ points / weights.sum()
        side = two_means(points, weights)
        assert side.any()
        assert not side.all()
        means = [weights[part] @ points[part] / weights[part].sum() for part in (side, ~side)]
        ours = weights @ ((points - np.where(side[:, None], *means)) ** 2).sum(axis=1)
        oracle = KMeans(2, n_init=20, random_state=0, tol=0).fit(points, sample_weight=weights).inertia_
        assert ours <= oracle * 1.001 + 1e-6


@pytest.mark.parametrize("count", range(2, FEW_POINTS + 1))
def test_no_split_of_few_colours_is_better(count):
    rng = np.random.default_rng(count)
    points, weights = features(rng.uniform(0, 255, (count, 3))), np.exp(rng.normal(0, 3, count))
    points -= weights @ points / weights.sum()

    def spread(side):
        parts = [(points[part], weights[part]) for part in (side, ~side)]
        return sum(mass @ ((part - mass @ part / mass.sum()) ** 2).sum(axis=1) for part, mass in parts)

    cuts = (np.array(cut) for cut in itertools.product((False, True), repeat=count))
    assert spread(two_means(points, weights)) <= min(spread(cut) for cut in cuts if 0 < cut.sum() < count) * (1 + 1e-9)


def quality(samples, **options):
    """Mean IoU, F1 at IoU 0.75, and the share of maps with one entity too many or too few at most."""
    ious, f1, close = [], [], []
    for sample in samples:
        iou, found = match(decode_colormap(sample.colormap, **options).labels, sample.labels)
        ious.append(iou.mean())
        f1.append(2 * (iou >= 0.75).sum() / (found + len(iou)))
        close.append(abs(found - len(iou)) <= 1)
    return np.mean(ious), np.mean(f1), np.mean(close)


@pytest.mark.parametrize("sigma", [2, 6, 12])
def test_noisy_maps_of_one_to_forty_entities(sigma):
    samples = [make_sample(seed, n, (512, 512), sigma) for n in (1, 4, 16, 40) for seed in (2, 3)]
    iou, f1, close = quality(samples)
    assert iou >= 0.98
    assert f1 >= 0.99
    assert close >= 7 / 8


@pytest.mark.parametrize(
    "damage, sigma", [("moved", 6), ("correlated", 6), ("correlated", 12), ("jpeg", 2), ("jpeg", 6), ("resized", 6)]
)
def test_other_damages(damage, sigma):
    samples = [make_sample(seed, n, (512, 512), sigma, damage) for n in (4, 16, 40) for seed in (2, 3)]
    iou, f1, _ = quality(samples)
    assert iou >= 0.95
    assert f1 >= 0.95


def test_a_large_map_is_decoded_as_well():
    iou, f1, close = quality([make_sample(1, 40, (1024, 1280), 6)])
    assert iou >= 0.98
    assert f1 == 1
    assert close == 1


def test_maps_that_went_through_the_bundled_autoencoder():
    pipe = UniGSPipeline.from_pretrained()
    f1 = []
    for seed in (2, 3, 4, 5):
        for n in (1, 4, 16):
            sample = make_sample(seed, n, (512, 512), None)
            masks = sample.labels == np.arange(1, n + 1)[:, None, None]
            picture = torch.from_numpy(pipe.palette.encode(masks)).permute(2, 0, 1)[None] / 127.5 - 1
            with torch.no_grad():
                painted = pipe.vae.decode(pipe.vae.encode(picture).latents).sample
            colormap = ((painted[0].permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
            iou, found = match(decode_colormap(colormap).labels, sample.labels)
            f1.append(2 * (iou >= 0.75).sum() / (found + n))
    assert np.mean(f1) >= 0.97


def test_scores_rank_good_entities_before_bad_ones():
    coco, evaluate = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "entity"}]}
    results = []
    for number, (seed, sigma) in enumerate((s, sigma) for s in (2, 4, 6) for sigma in (6, 14)):
        sample = make_sample(seed, 40, (256, 256), sigma)
        truth["images"].append({"id": number, "height": 256, "width": 256})
        true = decode_colormap(make_sample(seed, 40, (256, 256), None).colormap)
        for mask, area, box in zip(true.to_coco_rle(), true.areas.tolist(), true.boxes.tolist(), strict=True):
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            fields = {"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            truth["annotations"].append({**fields, "segmentation": mask, "area": area, "bbox": bbox})
        found = decode_colormap(sample.colormap)
        for mask, score in zip(found.to_coco_rle(), found.scores.tolist(), strict=True):
            results.append({"image_id": number, "category_id": 1, "segmentation": mask, "score": score})

    def average_precision(scored):
        dataset = coco.COCO()
        dataset.dataset = truth
        dataset.createIndex()
        evaluation = evaluate.COCOeval(dataset, dataset.loadRes([dict(r) for r in scored]), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats[0]

    assert average_precision(results) > average_precision([{**r, "score": 1.0} for r in results]) + 0.005


def test_clusters_of_one_palette_colour_are_one_entity():
    colormap = np.zeros((60, 90, 3), np.uint8)
    colormap[10:50, 10:30] = (64, 128, 192)
    colormap[10:50, 40:60] = (64, 128, 212)
    colormap[10:50, 70:80] = (255, 0, 0)
    assert len(decode_colormap(colormap)) == 3
    entities = decode_colormap(colormap, palette=LocationAwarePalette())
    assert entities.areas.tolist() == [1600, 400]
    given_colors = decode_colormap(colormap, palette=np.array([(64, 128, 192), (255, 0, 0)], np.uint8))
    assert (given_colors.labels == entities.labels).all()


def test_the_nearest_paint_needs_no_splits():
    sample = make_sample(1, 16, (256, 256), 4)
    palette = LocationAwarePalette()
    found = dichotomy(sample.colormap, criterion="nearest", palette=palette)
    assert {node.depth for node in found.tree} == {0, 1}
    iou, count = match(decode_colormap(sample.colormap, criterion="nearest", palette=palette).labels, sample.labels)
    assert iou.mean() > 0.9
    assert abs(count - 16) <= 2


def test_parts_of_one_colour_that_lie_apart_are_entities_if_asked_for():
    colormap = np.zeros((128, 128, 3), np.uint8)
    colormap[10:40, 10:40] = colormap[80:120, 80:120] = (255, 128, 0)
    colormap[60:62, 10:40] = colormap[63:65, 10:40] = (0, 128, 255)  # a pixel apart is not apart
    assert decode_colormap(colormap).areas.tolist() == [2500, 120]
    entities = decode_colormap(colormap, components=True)
    assert entities.areas.tolist() == [1600, 900, 120]
    assert entities.colors.tolist() == [[255, 128, 0], [255, 128, 0], [0, 128, 255]]
    noisy = decode_colormap(paint_badly(colormap, 6, 1), components=True)
    assert len(noisy) == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_a_batch_is_decoded_like_each_of_its_maps(processes):
    colormaps = [make_sample(seed, 8, (128, 128), 6).colormap for seed in range(6)]
    batch = decode_colormaps(iter(colormaps), keep_background=True, min_area=20, processes=processes)
    for colormap, entities in zip(colormaps, batch, strict=True):
        assert (decode_colormap(colormap, keep_background=True, min_area=20).labels == entities.labels).all()
    for tensor in (torch.from_numpy(np.stack(colormaps)), torch.from_numpy(np.stack(colormaps, axis=3)).movedim(3, 0)):
        for colormap, entities in zip(colormaps, decode_colormaps(tensor, processes=processes), strict=True):
            assert (decode_colormap(colormap).labels == entities.labels).all()
    assert decode_colormaps([]) == []
    with pytest.raises(ValueError, match="uint8"):
        decode_colormaps([colormaps[0], np.zeros((4, 4, 3))], processes=processes)
    with pytest.raises(ValueError, match="a whole number, at least 1, got 0"):
        decode_colormaps(colormaps, processes=0)


def test_parts_of_noisy_entities_lose_no_pixel_and_crumbs_are_no_parts():
    labels = np.zeros((200, 200), np.uint8)
    labels[20:60, 20:60] = labels[120:180, 120:180] = 1
    labels[90, 90] = 1  # a crumb
    parts, origin = split_components(labels)
    assert origin.tolist() == [0, 0]
    assert ((parts > 0) == (labels > 0)).all()
    assert sorted(np.bincount(parts.ravel())[1:].tolist()) == [1600, 3601]


def test_the_score_of_a_lone_cluster_counts_the_distance_to_black():
    flat, noisy = np.full((40, 40, 3), 200, np.uint8), paint_badly(np.full((40, 40, 3), 60, np.uint8), 8)
    assert decode_colormap(flat).scores.tolist() == [1]
    lone = decode_colormap(noisy, denoise=False, delta=50).scores
    assert 0.8 < lone[0] < 0.95
    dark = paint_badly(np.full((40, 40, 3), 4, np.uint8), 4)
    assert decode_colormap(dark, keep_background=True, denoise=False, delta=50).scores.tolist() == [1]


def test_a_tree_has_only_nodes_with_leaves():
    for seed in range(4):
        found = dichotomy(make_sample(seed, 24, (256, 256), 8).colormap)
        assert all(len(node.leaves) for node in found.tree)
        assert (
            max(int(node.leaves.max()) for node in found.tree) == found.leaves.max() == len(found.cluster_of_leaf) - 1
        )


def test_transparent_parts_are_background():
    picture = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (5, 5, 15, 15))
    entities = decode_colormap(picture)
    assert entities.areas.tolist() == [100]
    assert entities.colors.tolist() == [[0, 0, 255]]


def test_more_entities_than_the_palette_has_colours():
    levels = np.arange(0, 256, 36)
    colors = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)[1:]
    flat = np.kron(colors.reshape(7, 73, 3), np.ones((12, 12, 1))).astype(np.uint8)
    assert len(decode_colormap(flat)) == 511
    assert len(decode_colormap(paint_badly(flat, 2))) >= 500


def test_mixtures_between_two_entities_do_not_join_them():
    """Bands of colours of which each is like the next: two entities with a soft border, if delta is not too large."""
    first, second = np.array([(180, 120, 130), (120, 160, 180)])
    shares = np.repeat(np.linspace(0, 1, 6), [34, 12, 12, 12, 12, 34])
    colormap = np.zeros((128, 128, 3))
    colormap[30:100, : len(shares)] = first + (second - first) * shares[:, None]
    colormap += np.random.default_rng(0).normal(0, 3, colormap.shape) * (colormap > 0)
    colormap = colormap.clip(0, 255).round().astype(np.uint8)
    half = 70 * len(shares) // 2
    assert decode_colormap(colormap, delta=20).areas == pytest.approx([half, half], rel=0.05)
    assert len(decode_colormap(colormap, delta=10)) == 3
    assert len(decode_colormap(colormap, delta=60)) == 1
