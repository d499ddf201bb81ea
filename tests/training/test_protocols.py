"""What is asked and measured, with a model whose answers are known."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from tests.training.test_perceptual import Means
from training.datasets import Record, RecordSet
from training.perceptual import Networks, open_networks
from training.protocols import (
    measure_entity,
    measure_inpainting,
    measure_referring,
    measure_synthesis,
    referred,
)
from training.questions import Model, Question
from training.second_look import selected
from unigs.checkpoints import bundled_model_dir
from unigs.conditions import encode_pixels
from unigs.entities import Entities
from unigs.palette import LocationAwarePalette
from unigs.pipeline import UniGSPipeline
from unigs.tasks import DEFAULT_SETTINGS, Task

SIZE = 64


class Known:
    """Stands for a pipeline: gives back the picture, and the labels that `find` says.

    Attributes:
        find: (picture (H, W, 3) uint8, prompt, coarse mask (H, W) bool) -> labels (H, W).
        calls: the options of each call.
    """

    palette, default_size = LocationAwarePalette(), SIZE

    def __init__(self, find: Callable[[np.ndarray, str | None, np.ndarray], np.ndarray]):
        self.find, self.calls = find, []
        self.vae = AutoencoderTiny.from_pretrained(bundled_model_dir() / "vae")

    decoder_settings = UniGSPipeline.decoder_settings

    def defaults(self, task: Any) -> dict[str, float]:
        return DEFAULT_SETTINGS[task]

    def set_progress_bar_config(self, **options: Any) -> None:
        pass

    def __call__(self, task: Any, image: torch.Tensor, callback_on_step_end: Callable, **options: Any) -> Any:
        self.calls.append({"task": task, "image": image, **options})
        with torch.no_grad():
            latents = encode_pixels(self.vae, image)
        callback_on_step_end(self, 0, 0, {"latents": torch.cat([latents, latents], 1)})
        pixels = (image * 255).round().byte().permute(0, 2, 3, 1).numpy()
        prompts = options["prompt"] or [None] * len(pixels)
        labels = [self.find(*row) for row in zip(pixels, prompts, options["coarse_mask"], strict=True)]
        entities = [Entities.from_labels(label, scores=np.linspace(1, 0.5, 10)) for label in labels]
        return SimpleNamespace(images=image, colormaps=image, entities=entities)


def record(*boxes: tuple[int, int, int, int], nouns: str = "dog cat frog", **options: Any) -> Record:
    """Entity k is painted in grey 40 * k."""
    labels = np.zeros((SIZE, SIZE), int)
    for k, (top, left, bottom, right) in enumerate(boxes, 1):
        labels[top:bottom, left:right] = k
    image = np.repeat(40 * labels[..., None], 3, axis=2).astype(np.uint8)
    masks = labels == np.arange(1, len(boxes) + 1)[:, None, None]
    return Record.from_arrays(image, masks, nouns.split()[: len(boxes)], **options)


RECORDS = [record((0, 0, 20, 30), (30, 30, 60, 60)), record((10, 10, 40, 40)), record((0, 0, 9, 9), (40, 0, 64, 64))]


class Few(RecordSet):
    nouns = ["dog", "cat", "frog", "house"]

    def __len__(self) -> int:
        return len(RECORDS)

    def record(self, index: int) -> Record:
        return RECORDS[index]

    def picture_size(self, index: int) -> tuple[int, int]:
        return RECORDS[index].size


def by_grey(pixels: np.ndarray, *_: Any) -> np.ndarray:
    """The perfect answer: each grey is an entity, black is background."""
    return pixels[..., 0] // 40


def values(measures: Any) -> dict[str, float]:
    return {name: measure.value for name, measure in measures.items() if measure.value is not None}


def test_perfect_entities():
    for background, found in ((True, lambda *inputs: by_grey(*inputs) + 1), (False, by_grey)):
        measures = values(measure_entity(Model(Known(found)), RECORDS, background))
        for name in ("AP", "AP50", "AP75", "mIoU", "F1@0.5", "PQ", "SQ", "RQ"):
            assert measures[name] == pytest.approx(1), name
        assert measures["entities found"] == measures["entities true"] == pytest.approx(5 / 3 + background)


def test_the_decoder_can_be_another():
    """The pipeline says that everything is one entity; its colormap, here the picture, has the true ones."""
    pipeline = Known(lambda pixels, *_: np.ones(pixels.shape[:2], int))
    one = values(measure_entity(Model(pipeline), RECORDS, background=True))
    squared = values(measure_entity(Model(pipeline, criterion="mean_squared"), RECORDS, background=True))
    assert one["entities found"] == 1 and one["mIoU"] < 0.5
    assert squared["entities found"] == squared["entities true"] and squared["mIoU"] > 0.95
    large = values(measure_entity(Model(pipeline, min_area=100, criterion="mean_squared"), RECORDS, background=True))
    assert large["entities found"] == pytest.approx(squared["entities true"] - 1 / 3)  # all but the one of 9 x 9
    measure_entity(Model(pipeline, delta=5.0, use_palette=True, snap=4), RECORDS, background=True)
    asked = pipeline.calls[-1]
    assert (asked["delta"], asked["min_area"], asked["use_palette"], asked["snap"]) == (5.0, None, True, 4)


def test_background_is_an_entity_of_scenes_and_void_elsewhere():
    """A model that makes an entity of the background, which nobody annotated, is right; of a scene it must."""
    with_background = Model(Known(lambda *inputs: by_grey(*inputs) + 1))
    of_void = values(measure_entity(with_background, RECORDS, background=False))
    assert of_void["AP"] == of_void["PQ"] == of_void["mIoU"] == of_void["F1@0.5"] == 1
    without = values(measure_entity(Model(Known(by_grey)), RECORDS, background=True))
    assert without["mIoU"] == 1 and without["RQ"] == without["F1@0.5"] == pytest.approx(5 / (5 + 3 / 2))


def test_things_and_stuff_are_told_apart_where_there_is_both():
    boxes = (0, 0, 20, 30), (30, 30, 60, 60)
    records = [record(*boxes, is_thing=np.array([True, False])), record(*boxes[:1])]
    only_first = Model(Known(lambda pixels, *_: (by_grey(pixels) == 1).astype(int)))
    found = values(measure_entity(only_first, records, background=False))
    assert found["mIoU"] == pytest.approx(2 / 3) and found["mIoU, things"] == 1 and found["mIoU, stuff"] == 0
    assert "mIoU, things" not in values(measure_entity(only_first, records[1:], background=False))


def test_an_entity_that_is_half_found_by_hand():
    def half(pixels: np.ndarray, *_: Any) -> np.ndarray:
        labels = by_grey(pixels)
        labels[:, :5] = 0
        return labels

    # entity of 20 x 30 pixels, 5 columns missing
    measures = values(measure_entity(Model(Known(half)), [record((0, 0, 20, 30))], background=False))
    assert measures["mIoU"] == measures["PQ"] == pytest.approx(25 / 30)
    assert measures["AP"] == pytest.approx(7 / 10)  # IoU thresholds 0.50 to 0.80
    assert measures["F1@0.5"] == 1


def test_labels_come_back_to_the_annotated_size():
    """A picture of three times the model's size, in another shape."""
    small = record((0, 0, 20, 30), (30, 30, 60, 60))
    image, masks = (np.repeat(np.repeat(a, 3, axis), 6, 1 + axis) for a, axis in ((small.image, 0), (small.masks, 1)))
    large = Record.from_arrays(image, masks, small.labels)
    pipeline = Known(lambda pixels, *_: (pixels[..., 0].astype(int) + 20) // 40)
    measures = values(measure_entity(Model(pipeline), [large], background=False))
    assert pipeline.calls[0]["image"].shape == (1, 3, 45, 91)  # as many pixels as 64 x 64, twice as wide as high
    assert 0.9 < measures["mIoU"] < 1
    model = Model(pipeline, short_side=80, max_side=133)
    assert model.size(192, 384) == (66, 133) and model.size(300, 200) == (120, 80) and model.size(40, 40) == (80, 80)


def test_pictures_of_all_sizes_do_not_wait_for_each_other():
    asked = []

    def questions():
        for number in range(40):
            asked.append(number)
            yield Question(number, np.zeros((8 + number, 9, 3), np.uint8), None)

    answers = Model(Known(by_grey), batch_size=2).answer(Task.ENTITY, questions())
    first = next(answers)
    assert len(asked) == 8 and first.question.picture == 0
    assert sorted(answer.question.picture for answer in [first, *answers]) == list(range(40))


def test_noise_of_a_picture_does_not_depend_on_its_batch():
    seeds = []
    for size in (1, 2, 3):
        pipeline = Known(by_grey)
        measure_entity(Model(pipeline, batch_size=size, seed=5), RECORDS, background=False)
        assert [len(call["image"]) for call in pipeline.calls] == [[1, 1, 1], [2, 1], [3]][size - 1]
        seeds.append([generator.initial_seed() for call in pipeline.calls for generator in call["generator"]])
    assert seeds[0] == seeds[1] == seeds[2] and len(set(seeds[0])) == 3


def test_referring_by_nouns():
    nouns = ["dog", "cat", "frog"]

    def perfect(pixels: np.ndarray, prompt: str, coarse: np.ndarray) -> np.ndarray:
        return (
            (by_grey(pixels) == nouns.index(prompt) + 1).astype(int) if prompt in nouns else np.zeros((SIZE, SIZE), int)
        )

    pipeline = Known(perfect)
    measures = measure_referring(Model(pipeline), RECORDS, Few())
    found = values(measures)
    assert found["gIoU"] == found["cIoU"] == found["gIoU, with coarse mask"] == found["empty for absent"] == 1
    assert found["gIoU, wrong word"] < 1 and found["cIoU, wrong word with coarse mask"] < 1
    assert measures["gIoU"].pictures == 2  # of a single object everything would be right
    areas = np.array([[600, 900], [81, 24 * 64]])
    shares = areas / areas.sum(1, keepdims=True)
    assert found["gIoU, everything"] == pytest.approx(shares.mean())
    assert found["cIoU, everything"] == pytest.approx(areas.sum() / (2 * areas.sum()))
    asked = [prompt for call in pipeline.calls for prompt in call["prompt"]]
    assert len(asked) == 4 * 4 and asked.count("dog") >= 4


def test_ciou_and_giou_by_hand():
    """Two samples: nothing found of 81 pixels, all 1536 of the other."""
    measures = values(
        measure_referring(
            Model(Known(lambda pixels, prompt, _: (by_grey(pixels) == 2).astype(int))),
            RECORDS[2:],
            Few(),
            baselines=False,
        )
    )
    assert measures["gIoU"] == pytest.approx(1 / 2)
    assert measures["cIoU"] == pytest.approx(1536 / (81 + 1536 + 1536))
    assert not any("wrong" in name or "absent" in name for name in measures)


def test_every_sentence_of_every_object_is_asked():
    phrases = [("left one", "the big one"), ("right one",)]
    samples = referred(record((0, 0, 9, 9), (20, 20, 40, 40), nouns="dog dog", phrases=phrases))
    assert [(words, int(mask.sum())) for words, mask in samples] == [
        ("left one", 81),
        ("the big one", 81),
        ("right one", 400),
    ]
    one = referred(RECORDS[0], np.random.default_rng(0))
    assert len(one) == 1 and len(referred(RECORDS[0])) == 2 and referred(RECORDS[1]) == []
    crowd = referred(record((0, 0, 9, 9), (20, 20, 40, 40), (50, 50, 60, 60), nouns="dog cat dog"))
    assert [(noun, int(mask.sum())) for noun, mask in crowd] == [("dog", 181), ("cat", 400)]


NOUNS = ["dog", "cat", "frog"]


def seen(pixels: np.ndarray, prompt: str | None, *_: Any) -> np.ndarray:
    """The perfect segmenter: all entities and the background without a prompt, else what it names."""
    if prompt is None:
        return by_grey(pixels) + 1
    return (by_grey(pixels) == NOUNS.index(prompt) + 1).astype(int)


def test_inpainting_keeps_what_it_is_given(alexnet, clip_folder):
    networks = open_networks(None, alexnet, clip_folder, torch.device("cpu"))
    networks.inception = Means()
    measures = measure_inpainting(Model(Known(by_grey)), RECORDS, networks, Model(Known(seen)))
    found = values(measures)
    assert found["kept pixels unchanged"] == found["step across the border, of the true one"] == 1
    assert found["FID"] == found["local FID"] == pytest.approx(0, abs=1e-3)
    assert found["CLIP score"] == found["CLIP score, true picture"]
    assert 15 < found["PSNR, kept pixels"] < 60  # what the autoencoder loses
    assert 0 < found["LPIPS, kept pixels"] < 1
    assert {measure.pictures for name, measure in measures.items() if "named" not in name} == {3}


def test_inpainting_is_asked_as_in_training():
    pipeline = Known(lambda pixels, prompt, coarse: coarse.astype(int))
    measures = measure_inpainting(Model(pipeline), RECORDS, Networks(), Model(Known(seen)))
    call = pipeline.calls[0]
    assert all(prompt.startswith("inpainting: generate ") for prompt in call["prompt"])
    assert call["coarse_mask"].any((1, 2)).all() and not call["coarse_mask"].all((1, 2)).any()
    assert 0 < measures["mIoU of the colormap"].value < 1  # what is in the hole, instead of the objects
    for name, option in (("FID", "inception"), ("local FID", "inception"), ("LPIPS, kept pixels", "lpips")):
        assert measures[name].value is None and f"--{option}" in measures[name].not_run
    assert "--clip-model" in measures["CLIP score"].not_run


def test_what_is_inpainted_is_looked_at_again():
    """The true objects are painted; the colormap has them, has them not, or makes one of all that is in the hole."""
    for own, low, high in (
        (lambda pixels, _, coarse: by_grey(pixels) * coarse, 0.99, 1),
        (lambda pixels, _, coarse: np.zeros_like(by_grey(pixels)), 0, 0),
        (lambda pixels, _, coarse: coarse.astype(int), 0.01, 0.9),
    ):
        found = values(measure_inpainting(Model(Known(own)), RECORDS, Networks(), Model(Known(seen))))
        assert low <= found["colormap consistency"] <= high
        assert found["colormap consistency, true picture"] > 0.95  # less the background that is in the hole
        assert found["named objects found"] == found["named objects found, true picture"] == 1
        assert found["named objects found, other word"] == 0


def test_a_hole_that_is_painted_in_another_colour_has_a_seam():
    class Brighter(Known):
        def __call__(self, task: Any, image: torch.Tensor, callback_on_step_end: Callable, **options: Any) -> Any:
            out = super().__call__(task, image, callback_on_step_end, **options)
            hole = torch.from_numpy(options["coarse_mask"])[:, None]
            return SimpleNamespace(images=torch.where(hole, out.images + 0.2, out.images), entities=out.entities)

    [large] = [record((10, 10, 50, 50))]
    found = values(measure_inpainting(Model(Brighter(by_grey)), [large], Networks(), Model(Known(seen))))
    assert found["step across the border, of the true one"] > 1.2 and found["kept pixels unchanged"] == 1


def test_synthesis_is_segmented_again():
    """The painted picture is the true one, and the colormap that comes back misses one of two objects."""
    model = Model(Known(lambda pixels, *_: (by_grey(pixels) == 1).astype(int)))
    found = values(measure_synthesis(model, RECORDS, Networks(Means()), Model(Known(seen))))
    assert found["FID"] == pytest.approx(0, abs=1e-3)
    assert found["colormap consistency"] == found["colormap consistency, true picture"] == 1
    assert found["mIoU of the own colormap"] == pytest.approx(3 / 5)
    assert found["named objects found"] == found["named objects found, true picture"] == 1
    assert found["named objects found, other word"] == 0
    for call in model.pipeline.calls:
        assert call["colormap"].shape == call["image"].shape and call["coarse_mask"].all()


def test_synthesis_that_paints_nothing_is_seen():
    class Blank(Known):
        def __call__(self, task: Any, image: torch.Tensor, callback_on_step_end: Callable, **options: Any) -> Any:
            return super().__call__(task, torch.zeros_like(image), callback_on_step_end, **options)

    found = values(measure_synthesis(Model(Blank(by_grey)), RECORDS, Networks(), Model(Known(seen))))
    assert found["colormap consistency"] < 0.3 and found["colormap consistency, true picture"] == 1
    assert found["named objects found"] == 0 and found["named objects found, true picture"] == 1


def test_a_segmenter_that_does_not_read_finds_no_more_by_the_noun_than_by_another():
    """It selects the largest object, whatever is asked."""

    def largest(pixels: np.ndarray, *_: Any) -> np.ndarray:
        labels = by_grey(pixels)
        return (labels == 1 + np.bincount(labels.ravel(), minlength=2)[1:].argmax()).astype(int)

    found = values(measure_synthesis(Model(Known(by_grey)), RECORDS, Networks(), Model(Known(largest))))
    assert found["named objects found"] == found["named objects found, other word"] == 0.5


def test_what_is_selected_is_the_noun_that_overlaps_most():
    left, right = np.zeros((2, 8, 8), bool)
    left[2:6, :3], right[2:6, 5:] = True, True
    kinds = {"dog": left, "cat": right}
    assert selected(left, kinds) == "dog" and selected(right, kinds) == "cat"
    assert selected(~left & ~right, kinds) is None and selected(np.zeros_like(left), kinds) is None
    assert selected(np.ones_like(left), kinds) is None  # it is mostly the rest
