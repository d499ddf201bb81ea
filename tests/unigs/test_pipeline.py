import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextModel

import unigs
from unigs import pipeline
from unigs.checkpoints import bundled_model_dir
from unigs.gallery import SCENES, read_scenes
from unigs.pipeline import UniGSPipeline
from unigs.tasks import WITH_STUFF, Task

SIZE = 64
rng = np.random.default_rng(0)
PICTURE = Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8))
HOLE = np.zeros((SIZE, SIZE), bool)
HOLE[16:40, 20:60] = True
INPUTS = {
    "inpainting": {"image": PICTURE, "coarse_mask": HOLE, "prompt": "dog and cat"},
    "synthesis": {"colormap": PICTURE, "prompt": "dog on grass"},
    "referring": {"image": PICTURE, "prompt": "dog"},
    "entity": {"image": PICTURE},
}


@pytest.fixture(scope="module")
def pipe() -> UniGSPipeline:
    pipe = UniGSPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: UniGSPipeline, task: str, seed: int = 0, **changes):
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": 2, "generator": generator, "output_type": "pt", **INPUTS[task], **changes}
    return pipe(task, **options)


def test_bundled_checkpoint(pipe):
    assert pipe.dtype == torch.float32
    assert pipe.default_size == 128
    assert pipe.palette == unigs.LocationAwarePalette(5, order="smooth", first="smallest")
    settings = {"num_inference_steps", "guidance_scale", "delta", "min_share", "use_palette", "snap_share"}
    assert all(set(pipe.defaults(task)) == settings for task in Task)
    files = [path for path in bundled_model_dir().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]


def test_the_bundled_checkpoint_tells_sky_from_ground_if_it_is_asked_for_stuff(pipe):
    scenes = read_scenes(SCENES)

    def with_two_grounds(prompt: str | None) -> list[bool]:
        generators = [torch.Generator().manual_seed(k) for k in range(len(scenes))]
        words = None if prompt is None else [prompt] * len(scenes)
        out = pipe("entity", image=[scene.picture for scene in scenes], prompt=words, generator=generators)
        edges = ((found.labels[0], found.labels[-1]) for found in out.entities)
        return [np.bincount(top).argmax() != np.bincount(bottom).argmax() for top, bottom in edges]

    truth = np.array([scene.place != "at a wall" for scene in scenes])
    assert (with_two_grounds(WITH_STUFF) == truth).mean() >= 0.9
    assert np.mean(with_two_grounds(None)) <= 0.1


@pytest.mark.parametrize("task", INPUTS)
def test_shapes_ranges_and_entities(pipe, task):
    out = run(pipe, task)
    for pictures in (out.images, out.colormaps):
        assert pictures.shape == (1, 3, SIZE, SIZE)
        assert pictures.dtype == torch.float32
        assert 0 <= pictures.min() <= pictures.max() <= 1
    (entities,) = out.entities
    assert entities.labels.shape == (SIZE, SIZE)
    if task == "entity":
        assert entities.labels.min() > 0  # the background is an entity too
    colormap = (out.colormaps[0] * 255).round().byte().permute(1, 2, 0).numpy()
    own = pipe.defaults(task)
    again = unigs.decode_colormap(
        colormap,
        keep_background=Task(task).spec.keep_background,
        delta=own["delta"],
        min_area=round(own["min_share"] * SIZE * SIZE),
        palette=pipe.palette if own["use_palette"] else None,
        background_radius=pipe.palette.background_radius,
        image=PICTURE if Task(task).spec.segments else (out.images[0] * 255).round().byte().permute(1, 2, 0),
        snap=round(own["snap_share"] * SIZE),
    )
    assert np.array_equal(entities.labels, again.labels)


@pytest.mark.parametrize("task", INPUTS)
def test_same_seed_same_result(pipe, task):
    first, second, other = run(pipe, task), run(pipe, task), run(pipe, task, seed=1)
    assert torch.equal(first.images, second.images) and torch.equal(first.colormaps, second.colormaps)
    assert not torch.equal(first.images, other.images)


def test_default_steps_are_those_of_the_checkpoint(pipe):
    seen = []
    run(pipe, "entity", num_inference_steps=None, callback_on_step_end=lambda p, i, t, tensors: seen.append(i))
    assert len(seen) == pipe.defaults("entity")["num_inference_steps"]


def test_settings_of_the_decoder(monkeypatch):
    """They are the checkpoint's for the task, if the call does not say; min_share is a share of any size."""
    pipe = UniGSPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    own = {
        task.value: {"delta": 12.0, "min_share": 0.25, "use_palette": task is Task.ENTITY, "snap_share": 0.25}
        for task in Task
    }
    pipe.register_to_config(task_defaults=own)
    seen = []
    decode = pipeline.decode_colormaps
    monkeypatch.setattr(pipeline, "decode_colormaps", lambda maps, **given: seen.append(given) or decode(maps, **given))
    (entities,) = run(pipe, "entity").entities
    assert entities.areas.min() >= SIZE * SIZE / 4 or len(entities) == 1
    run(pipe, "entity", image=PICTURE.resize((32, 16)), delta=20.0)
    run(pipe, "referring", min_area=0)
    run(pipe, "referring", min_area=0, use_palette=True)
    run(pipe, "entity", use_palette=False, snap=3)
    names = ("keep_background", "delta", "min_area", "palette", "snap")
    assert [tuple(given[name] for name in names) for given in seen] == [
        (True, 12.0, SIZE * SIZE // 4, pipe.palette, SIZE // 4),
        (True, 20.0, 128, pipe.palette, round(0.25 * 512**0.5)),
        (False, 12.0, 0, None, SIZE // 4),
        (False, 12.0, 0, pipe.palette, SIZE // 4),
        (True, 12.0, SIZE * SIZE // 4, None, 3),
    ]
    with pytest.raises(ValueError, match="snap not negative, got 12.0, 1024 and -1"):
        run(pipe, "entity", snap=-1)


@pytest.mark.parametrize("task", INPUTS)
def test_masks_follow_the_edges_of_the_picture_that_was_given_or_painted(pipe, task, monkeypatch):
    seen = []
    decode = pipeline.decode_colormaps
    monkeypatch.setattr(pipeline, "decode_colormaps", lambda maps, **given: seen.append(given) or decode(maps, **given))
    out = run(pipe, task, snap=5)
    painted = (out.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(seen[0]["images"], np.asarray(PICTURE)[None] if Task(task).spec.segments else painted)
    run(pipe, task, snap=0)
    assert seen[1]["images"] is None


def test_pixels_outside_the_hole_stay_bit_identical(pipe):
    out = run(pipe, "inpainting", output_type="pil")
    before, after = np.asarray(PICTURE), np.asarray(out.images[0])
    assert np.array_equal(before[~HOLE], after[~HOLE])
    assert not np.array_equal(before[HOLE], after[HOLE])


def test_what_is_in_the_hole_does_not_matter(pipe):
    changed = np.asarray(PICTURE).copy()
    changed[HOLE] = 255 - changed[HOLE]
    first, second = run(pipe, "inpainting"), run(pipe, "inpainting", image=Image.fromarray(changed))
    assert torch.equal(first.images[0, :, HOLE], second.images[0, :, HOLE])
    assert torch.equal(first.colormaps, second.colormaps)


@pytest.mark.parametrize("width, height", [(50, 37), (129, 64), (1, 1)])
def test_any_size(pipe, width, height):
    picture = PICTURE.resize((width, height))
    out = run(pipe, "referring", image=picture, output_type="pil", num_inference_steps=1)
    assert out.images[0].size == out.colormaps[0].size == (width, height)
    assert out.entities[0].labels.shape == (height, width)


def test_a_batch_gives_what_single_calls_give(pipe):
    other = PICTURE.rotate(90)
    latents = torch.randn(2, 8, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(0))
    both = run(pipe, "referring", image=[PICTURE, other], prompt=["dog", "cat"], latents=latents)
    for i, (picture, noun) in enumerate([(PICTURE, "dog"), (other, "cat")]):
        one = run(pipe, "referring", image=picture, prompt=noun, latents=latents[i : i + 1])
        torch.testing.assert_close(both.images[i], one.images[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(both.colormaps[i], one.colormaps[0], rtol=0, atol=1e-4)


def test_one_generator_a_picture(pipe):
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    both = run(pipe, "entity", image=[PICTURE, PICTURE], generator=generators)
    one = run(pipe, "entity", seed=4)
    torch.testing.assert_close(both.colormaps[1], one.colormaps[0], rtol=0, atol=1e-4)


def test_inputs_of_length_one_serve_the_whole_batch(pipe):
    out = run(pipe, "inpainting", prompt=["dog", "cat", ["dog", "cat"]])
    assert out.images.shape[0] == len(out.entities) == 3


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_other_schedulers(pipe, scheduler):
    default = pipe.scheduler
    try:
        expected = run(pipe, "entity", num_inference_steps=20)
        pipe.scheduler = scheduler.from_config(default.config)
        out = run(pipe, "entity", num_inference_steps=20)
    finally:
        pipe.scheduler = default
    assert (out.images - expected.images).abs().mean() < 0.2
    assert not torch.equal(out.images, expected.images)


def test_guidance(pipe):
    plain, guided = run(pipe, "synthesis", guidance_scale=1.0), run(pipe, "synthesis", guidance_scale=4.0)
    assert not torch.allclose(plain.images, guided.images)
    away = run(pipe, "synthesis", guidance_scale=4.0, negative_prompt=Task.SYNTHESIS.spec.prompt("dog on grass"))
    torch.testing.assert_close(
        away.images, plain.images, rtol=0, atol=1e-3
    )  # towards = away from: nothing is left to guide


def test_callback_and_interrupt(pipe):
    steps = []

    def stop_after_two(pipeline, step, timestep, tensors):
        steps.append((step, timestep, tuple(tensors["latents"].shape)))
        pipeline._interrupt = step == 1

    run(pipe, "entity", num_inference_steps=10, callback_on_step_end=stop_after_two)
    assert [step for step, _, _ in steps] == [0, 1]
    assert steps[0][1] == 999 and steps[0][2] == (1, 8, SIZE // 4, SIZE // 4)
    run(pipe, "entity", num_inference_steps=3, callback_on_step_end=lambda p, i, t, x: steps.append((i, t, ())))
    assert steps[-1][0] == 2  # the next call is not interrupted


def test_a_callback_gets_the_tensors_that_it_asks_for(pipe):
    names = []
    options = {"callback_on_step_end": lambda p, i, t, tensors: names.append(list(tensors)), "num_inference_steps": 1}
    run(pipe, "entity", **options)
    run(pipe, "entity", callback_on_step_end_tensor_inputs=["latents"], **options)
    assert names == [["latents", "prompt_embeds"], ["latents"]]


def test_an_interrupted_ensemble_votes_with_what_was_done(pipe):
    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = step == 3  # within the second of five

    generator = torch.Generator().manual_seed(3)
    cut = run(pipe, "entity", num_inference_steps=3, ensemble=5, callback_on_step_end=stop, generator=generator)
    whole = run(pipe, "entity", num_inference_steps=3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(cut.colormaps, whole.colormaps)


def test_save_and_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = UniGSPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.palette == pipe.palette and again.defaults("entity") == pipe.defaults("entity")
    assert torch.equal(run(again, "referring").colormaps, run(pipe, "referring").colormaps)


def test_the_folder_above_is_saved_to_like_any_other(pipe, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "runs" / "notes.txt").write_text("of a run")
    pipe.save_pretrained(tmp_path / "runs" / "..")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "runs" / "notes.txt").read_text() == "of a run"
    assert (tmp_path / "model_index.json").is_file()


def test_a_model_saved_over_another_is_the_one_that_is_loaded(pipe, tmp_path):
    other = UniGSPipeline.from_pretrained()
    other.unet.conv_in.weight.data.zero_()
    other.save_pretrained(tmp_path, max_shard_size="8MB")
    other.save_pretrained(tmp_path, variant="fp16")
    assert not UniGSPipeline.from_pretrained(tmp_path).unet.conv_in.weight.any()
    pipe.save_pretrained(tmp_path)
    unet = UniGSPipeline.from_pretrained(tmp_path).unet
    assert torch.equal(unet.conv_in.weight, pipe.unet.conv_in.weight)
    left = {file.name for file in (tmp_path / "unet").iterdir()}
    names = {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"}
    assert left == {"config.json", *names}


@pytest.mark.parametrize(
    "task, changes, message",
    [
        ("paint", {}, "unknown task 'paint'"),
        ("entity", {"image": None}, "'entity' needs `image`"),
        ("synthesis", {"colormap": None}, "'synthesis' needs `colormap`"),
        ("inpainting", {"coarse_mask": None}, "'inpainting' needs `coarse_mask`"),
        ("referring", {"prompt": None}, "'referring' needs `prompt`"),
        ("referring", {"prompt": " "}, "needs a prompt"),
        ("inpainting", {"coarse_mask": np.zeros((SIZE, SIZE), bool)}, "`coarse_mask` is empty"),
        ("inpainting", {"coarse_mask": np.ones((8, 8), bool)}, r"height and width \(64, 64\), got shape \(1, 8, 8\)"),
        ("inpainting", {"coarse_mask": np.full((SIZE, SIZE), 0.5)}, "0 and 1 only"),
        ("entity", {"image": torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)}, "must be float"),
        ("entity", {"image": torch.full((1, 3, SIZE, SIZE), 2.0)}, r"lie in \[0, 1\], got 2 to 2"),
        ("entity", {"image": [PICTURE, PICTURE.resize((32, 32))]}, "must have one size"),
        ("entity", {"image": []}, "must be PIL pictures or a tensor"),
        ("entity", {"image": Image.new("I;16", (SIZE, SIZE))}, "`image` has more than 8 bits a pixel .mode I;16."),
        ("inpainting", {"coarse_mask": Image.new("F", (SIZE, SIZE))}, "`coarse_mask` has more than 8 bits a pixel"),
        ("entity", {"callback_on_step_end_tensor_inputs": ["noise"]}, r"tensor_inputs must be of .* got \['noise'\]"),
        (
            "entity",
            {"ensemble": 3, "hold": "colormap", "colormap": PICTURE},
            "there is nothing to vote",
        ),
        ("referring", {"image": [PICTURE] * 3, "prompt": ["dog", "cat"]}, r"length 1 or 3 .*'prompt': 2"),
        ("entity", {"num_inference_steps": 0}, "at least 1"),
        ("entity", {"delta": 0.0}, "delta must be a positive number, min_area and snap not negative, got 0.0, "),
        (
            "entity",
            {"min_area": -1},
            "min_area and snap not negative, got .*, -1 and ",
        ),
        ("entity", {"delta": float("inf")}, "delta must be a positive number, .* got inf, "),
        ("entity", {"ensemble": 3.5}, "ensemble must be a whole number"),
        ("inpainting", {"guidance_scale": float("nan")}, "must be finite numbers, got nan and 0.0"),
        ("inpainting", {"eta": float("inf")}, "must be finite numbers, got .* and inf"),
        ("inpainting", {"prompt": "."}, "needs a prompt"),
        ("entity", {"image": torch.zeros(0, 3, SIZE, SIZE)}, "must be float"),
        ("entity", {"output_type": "np"}, "'pil' or 'pt'"),
        ("entity", {"latents": torch.zeros(1, 4, 16, 16)}, r"latents must have shape \(1, 8, 16, 16\)"),
    ],
)
def test_wrong_input_is_named(pipe, task, changes, message):
    options = {**INPUTS.get(task, {}), **changes}
    with pytest.raises(ValueError, match=message):
        pipe(task, **options)


def test_wrong_checkpoints(tmp_path, pipe):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        UniGSPipeline.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no model_index.json"):
        UniGSPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match="holds a StableDiffusionPipeline: expected"):
        UniGSPipeline.from_pretrained(tmp_path)
    narrow = UNet2DConditionModel(in_channels=9, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, cross_attention_dim=8)  # fmt: skip
    with pytest.raises(ValueError, match="13 input and 8 output channels, got 9 and 4"):
        UniGSPipeline(pipe.vae, pipe.text_encoder, pipe.tokenizer, narrow, pipe.scheduler)


def test_from_inpainting(pipe, tmp_path):
    """A Stable Diffusion inpainting folder as diffusers writes it, with small random models."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=16, in_channels=9, block_out_channels=(16, 32), norm_num_groups=4,
        layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128, attention_head_dim=4)  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    text_encoder = CLIPTextModel(pipe.text_encoder.config)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    StableDiffusionInpaintPipeline(
        vae,
        text_encoder,
        pipe.tokenizer,
        unet,
        scheduler,
        None,
        None,
        requires_safety_checker=False,  # pyright: ignore[reportArgumentType]
    ).save_pretrained(tmp_path)
    widened = UniGSPipeline.from_inpainting(tmp_path)
    widened.set_progress_bar_config(disable=True)
    assert widened.default_size == 32
    assert widened.palette.grid == 11
    with pytest.raises(
        ValueError, match="Stable Diffusion inpainting, not of UniGS yet: UniGSPipeline.from_inpainting"
    ):
        UniGSPipeline.from_pretrained(tmp_path)
    out = run(widened, "inpainting")
    assert out.images.shape == (1, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match="is UniGS already: open it with UniGSPipeline.from_pretrained"):
        UniGSPipeline.from_inpainting(bundled_model_dir())
