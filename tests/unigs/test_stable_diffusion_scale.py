"""Pipelines widened from Stable Diffusion, saved and opened again, in every precision."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from unigs.checkpoints import open_checkpoint
from unigs.conditions import decode_latents, encode_pixels, paste_known, vote
from unigs.pipeline import UniGSPipeline

SIZE = 64
rng = np.random.default_rng(0)
PICTURE = Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8))
COLORMAP = Image.fromarray(np.repeat(np.repeat(rng.integers(0, 5, (4, 4, 3), np.uint8) * 63, 16, 0), 16, 1))
HOLE = np.zeros((SIZE, SIZE), bool)
HOLE[16:40, 24:56] = True


def make(kind: str, tokenizer) -> StableDiffusionInpaintPipeline | StableDiffusionXLInpaintPipeline:
    """A narrow inpainting pipeline with the structure of Stable Diffusion 1 or XL, and random weights."""
    torch.manual_seed(0)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vae = AutoencoderKL(block_out_channels=(8, 16, 16), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)  # fmt: skip
    with torch.no_grad():  # what it encodes is no matter of chance, so that two pipelines encode the same
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -60
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1)  # fmt: skip
    unet = {"sample_size": 16, "in_channels": 9, "norm_num_groups": 4, "layers_per_block": 1}
    if kind == "SD1":
        return StableDiffusionInpaintPipeline(
            vae, CLIPTextModel(CLIPTextConfig(**text)), tokenizer,
            UNet2DConditionModel(**unet, block_out_channels=(16, 32), cross_attention_dim=32, attention_head_dim=4,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
            scheduler, None, None, requires_safety_checker=False)  # fmt: skip
    return StableDiffusionXLInpaintPipeline(
        vae, CLIPTextModel(CLIPTextConfig(**text)),
        CLIPTextModelWithProjection(CLIPTextConfig(**text, projection_dim=32)), tokenizer, tokenizer,
        UNet2DConditionModel(**unet, block_out_channels=(16, 32, 32), cross_attention_dim=64,
            attention_head_dim=(2, 4, 4), down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",), transformer_layers_per_block=(1, 1, 2),
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8),
        scheduler, force_zeros_for_empty_prompt=False, add_watermarker=False)  # fmt: skip


@pytest.fixture(scope="module")
def bundled() -> UniGSPipeline:
    return quiet(UniGSPipeline.from_pretrained())


@pytest.fixture(scope="module", params=["SD1", "XL"])
def original(request, bundled, tmp_path_factory):
    """A Stable Diffusion pipeline, and the folder it is saved in."""
    pipe = make(request.param, bundled.tokenizer)
    folder = tmp_path_factory.mktemp("inpainting") / request.param
    pipe.save_pretrained(folder)
    return quiet(pipe), folder


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(pipe: UniGSPipeline, seed: int = 0) -> torch.Tensor:
    side = SIZE // pipe.vae_scale_factor
    return torch.randn(1, 8, side, side, generator=torch.Generator().manual_seed(seed))


def run(pipe: UniGSPipeline, task: str = "inpainting", **changes):
    inputs = {"image": PICTURE} if task != "synthesis" else {"colormap": COLORMAP}
    if task == "inpainting":
        inputs["coarse_mask"] = HOLE
    words = {} if task == "entity" else {"prompt": "dog"}
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt", **inputs, **words, **changes}
    return pipe(task, **options)


def test_widened_it_inpaints_as_before(original):
    """New weights are zero, so the picture is the one that diffusers' own pipeline paints from the same noise, pasted
    into the true one."""
    pipe, folder = original
    widened = quiet(UniGSPipeline.from_inpainting(folder))
    latents = noise(widened)
    found = run(widened, latents=latents, prompt="inpainting: generate dog.", negative_prompt="cat")
    expected = pipe(
        prompt="inpainting: generate dog.",
        negative_prompt="cat",
        image=PICTURE,
        mask_image=Image.fromarray(HOLE),
        height=SIZE,
        width=SIZE,
        latents=latents[:, :4],
        num_inference_steps=3,
        guidance_scale=2.0,
        strength=1.0,
        output_type="pt",
    ).images
    picture = torch.from_numpy(np.array(PICTURE)).movedim(-1, 0)[None].float() / 255
    pasted = paste_known(expected, picture, torch.from_numpy(HOLE)[None])
    torch.testing.assert_close(found.images, pasted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["folder", "file"])
def test_saved_and_opened_it_paints_the_same(original, tmp_path, form):
    pipe = quiet(UniGSPipeline.from_inpainting(original[1]))
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with torch.no_grad():
        pipe.unet.class_embedding.weight.normal_()
    before = run(pipe, latents=noise(pipe))
    place = tmp_path / ("a.safetensors" if form == "file" else "a")
    for _ in range(2):  # the second time over files that are in use
        (pipe.save_single_file if form == "file" else pipe.save_pretrained)(place)
        pipe = quiet(UniGSPipeline.from_pretrained(place))
        assert isinstance(pipe.scheduler, EulerDiscreteScheduler) and pipe.default_size == 64
        after = run(pipe, latents=noise(pipe))
        for one, other in ((before.images, after.images), (before.colormaps, after.colormaps)):
            # the last bit hangs on how the weights lie in memory, which is that of the file
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]  # nothing is left over


def test_a_single_file_says_what_a_folder_says(bundled, tmp_path):
    bundled.save_single_file(tmp_path / "new" / "a.safetensors")
    bundled.save_pretrained(tmp_path / "b")
    file, folder = open_checkpoint(tmp_path / "new" / "a.safetensors"), open_checkpoint(tmp_path / "b")
    assert file.settings == folder.settings and file.settings["palette"]["grid"] == 5
    assert file.classes == folder.classes
    (tmp_path / "plain").touch()
    saved = [file.path, *(path for path in folder.path.rglob("*") if path.is_file())]
    assert {path.stat().st_mode for path in saved} == {(tmp_path / "plain").stat().st_mode}
    assert file.weights("unet").keys() == folder.weights("unet").keys()
    for text in ("", "dog and cat", "a very long text " * 20):
        ids = [opened.tokenizer()(text, truncation=True).input_ids for opened in (file, folder)]
        assert ids[0] == ids[1] == bundled.tokenizer(text, truncation=True).input_ids
    with safe_open(tmp_path / "new" / "a.safetensors", "pt") as opened:
        metadata = opened.metadata()
    assert metadata["unigs.prediction_type"] == bundled.scheduler.config["prediction_type"]
    assert json.loads(metadata["unigs.prompts"])["referring"] == "referring: find {nouns}."
    assert json.loads(metadata["unigs.settings"])["task_defaults"] == bundled.config["task_defaults"]
    assert metadata["modelspec.architecture"] == "unigs" and metadata["modelspec.resolution"] == "128x128"


def test_a_folder_holds_what_older_and_newer_tokenizers_read(bundled, tmp_path):
    bundled.save_pretrained(tmp_path)
    names = {path.name for path in (tmp_path / "tokenizer").iterdir()}
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= names


def test_wrong_names_and_options(bundled, tmp_path):
    with pytest.raises(ValueError, match="must end in .safetensors, got '.*a.ckpt'"):
        bundled.save_single_file(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="torch_dtype must be a torch.dtype or 'auto', got 'half'"):
        UniGSPipeline.from_pretrained(torch_dtype="half")
    bundled.save_single_file(tmp_path / "a.safetensors")
    with pytest.raises(TypeError, match="only torch_dtype for a single file, got device_map"):
        UniGSPipeline.from_pretrained(tmp_path / "a.safetensors", device_map="cpu")


def test_a_cut_write_leaves_the_old_file(bundled, tmp_path, monkeypatch):
    file = tmp_path / "a.safetensors"
    bundled.save_single_file(file)
    before = file.read_bytes()

    def cut(weights, path, metadata):
        Path(path).write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr("unigs.components.save_file", cut)
    with pytest.raises(OSError, match="No space"):
        bundled.save_single_file(file)
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_paints_nearly_the_same(original, bundled, dtype):
    for pipe in (UniGSPipeline.from_inpainting(original[1]), bundled):
        half = UniGSPipeline(**{**pipe.components, "palette": pipe.config["palette"]})
        before = run(pipe, "entity", latents=noise(pipe))
        try:
            half.to(dtype)
            after = run(half, "entity", latents=noise(pipe))
        finally:
            half.to(torch.float32)
        assert after.images.dtype == torch.float32
        for one, other in ((before.images, after.images), (before.colormaps, after.colormaps)):
            assert (one - other).abs().mean() < 4 / 255


# ------------------------------------------------------------------------------------------------ holding and ensembles


@pytest.mark.parametrize("hold", ["image", "colormap"])
@pytest.mark.parametrize("task", ["inpainting", "synthesis", "referring", "entity"])
def test_what_is_held_stays_what_it_is(bundled, task, hold):
    given, start, ends = {"image": PICTURE, "colormap": COLORMAP}, noise(bundled), []

    def look(pipe, i, t, tensors):
        ends.append(tensors["latents"])

    both = {**given, "latents": start, "output_type": "pil", "callback_on_step_end": look}
    out, _ = run(bundled, task, hold=hold, **both), run(bundled, task, **both)
    held = {"image": out.images, "colormap": out.colormaps}[hold][0]
    assert np.array_equal(np.asarray(held), np.asarray(given[hold]))  # bit for bit
    other = slice(4, 8) if hold == "image" else slice(0, 4)
    assert (ends[2] - ends[5])[:, other].abs().max() > 1e-3  # and the other half sees it


def test_at_each_step_the_held_half_has_the_noise_of_the_step(bundled, monkeypatch):
    start, inputs = noise(bundled), []
    forward = bundled.unet.forward
    monkeypatch.setattr(bundled.unet, "forward", lambda x, t, *a, **o: inputs.append((x, t)) or forward(x, t, *a, **o))
    run(bundled, "entity", hold="image", latents=start, guidance_scale=1.0)
    picture = torch.from_numpy(np.asarray(PICTURE)).movedim(-1, 0)[None].float() / 255
    known = encode_pixels(bundled.vae, picture)
    for x, t in inputs:
        torch.testing.assert_close(x[:, :4], bundled.scheduler.add_noise(known, start[:, :4], t[None]))
        torch.testing.assert_close(x[:, 9:], known)  # the control picture is the image too


def test_holding_needs_what_is_held(bundled):
    with pytest.raises(ValueError, match="hold='colormap' needs `colormap`"):
        run(bundled, "entity", hold="colormap")
    with pytest.raises(ValueError, match="hold must be 'image', 'colormap' or None, got 'mask'"):
        run(bundled, "entity", hold="mask")
    with pytest.raises(ValueError, match="must have the same height and width, got .*64, 64.*32, 64"):
        run(bundled, "entity", hold="colormap", colormap=COLORMAP.resize((64, 32)))


def test_a_pixel_takes_the_colour_that_most_agree_on():
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
    nearly_red = torch.tensor([0.9, 0, 0])
    members = torch.stack([red, blue, nearly_red, red])[:, None, :, None, None]
    assert torch.equal(vote(members).flatten(), red)
    assert torch.equal(vote(members[:2]).flatten(), red)  # of two the first
    assert torch.equal(vote(members[1:2]).flatten(), blue)


def test_an_ensemble_is_a_vote_of_single_runs(bundled):
    generator = torch.Generator().manual_seed(3)
    together = run(bundled, "entity", ensemble=3, generator=generator)
    generator = torch.Generator().manual_seed(3)
    single = [run(bundled, "entity", generator=generator) for _ in range(3)]
    assert torch.equal(together.images, single[0].images)
    assert torch.equal(together.colormaps, vote(torch.stack([one.colormaps for one in single])))
    for options in ({"ensemble": 0}, {"ensemble": 2, "latents": noise(bundled)}):
        with pytest.raises(ValueError, match="ensemble must be a whole number, at least 1, and more"):
            run(bundled, "entity", **options)
    with pytest.raises(ValueError, match="got 2 for task 'inpainting'"):
        run(bundled, "inpainting", ensemble=2)
    with pytest.raises(ValueError, match="ensemble is 2, but of two votes none wins"):
        run(bundled, "entity", ensemble=2)


# ----------------------------------------------------------------------------------------------------- memory and speed


def test_words_and_control_are_encoded_once_and_guidance_1_runs_half_the_batch(bundled, monkeypatch):
    calls = {"text": 0, "vae": 0, "rows": []}

    def counted(name, inner):
        def call(*args, **options):
            calls[name] += 1
            return inner(*args, **options)

        return call

    forward = bundled.unet.forward
    monkeypatch.setattr(bundled.text_encoder, "forward", counted("text", bundled.text_encoder.forward))
    monkeypatch.setattr(bundled.vae, "encode", counted("vae", bundled.vae.encode))
    monkeypatch.setattr(bundled.unet, "forward", lambda x, *a, **o: calls["rows"].append(len(x)) or forward(x, *a, **o))
    run(bundled, "referring", num_inference_steps=5, guidance_scale=1.0)
    assert calls == {"text": 1, "vae": 1, "rows": [1] * 5}
    run(bundled, "referring", num_inference_steps=5, guidance_scale=3.0)
    assert calls == {"text": 3, "vae": 2, "rows": [1] * 5 + [2] * 5}


def overflowing() -> AutoencoderKL:
    """Its first layer gives numbers that float16 cannot hold, and the group norm after it makes them small again."""
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2).eval()  # fmt: skip
    with torch.no_grad():
        vae.encoder.conv_in.weight *= 3e5
        vae.decoder.conv_in.weight *= 3e5
    return vae


@torch.no_grad()
def test_a_vae_that_overflows_works_in_float32(caplog):
    vae, pixels = overflowing(), torch.rand(1, 3, 16, 16)
    latents = encode_pixels(vae, pixels)
    decoded = decode_latents(vae, latents)
    vae.half()
    assert not vae.encode(pixels.half() * 2 - 1).latent_dist.mode().isfinite().all()
    assert (encode_pixels(vae, pixels).float() - latents).abs().max() < 0.02
    assert (decode_latents(vae, latents) - decoded).abs().max() < 0.02
    assert vae.dtype == torch.float16 and caplog.text.count("the VAE overflows in torch.float16") == 2


@torch.no_grad()
def test_a_vae_without_enough_memory_works_in_tiles(original, monkeypatch, caplog):
    vae, pixels = UniGSPipeline.from_inpainting(original[1]).vae, torch.rand(1, 3, 32, 32)
    expected, inner, tiled = encode_pixels(vae, pixels), vae.encode, []

    def encode(x):
        tiled.append(vae.use_tiling)
        if not vae.use_tiling:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return inner(x)

    monkeypatch.setattr(vae, "encode", encode)
    assert torch.equal(encode_pixels(vae, pixels), expected)  # one tile is enough here
    assert tiled == [False, True] and not vae.use_tiling and "in tiles" in caplog.text


def test_parts_are_offloaded_in_the_order_of_their_use(original, monkeypatch):
    """With accelerate's own hooks, on the one device that is here."""
    from accelerate import cpu_offload_with_hook

    pipe = quiet(UniGSPipeline.from_inpainting(original[1]))
    expected = run(pipe, latents=noise(pipe))
    hook, names = None, pipe.model_cpu_offload_seq.split("->")
    assert set(names) == {"text_encoder", "text_encoder_2", "unet", "vae"}
    pipe._all_hooks = []
    for name in names:
        if getattr(pipe, name) is not None:
            _, hook = cpu_offload_with_hook(getattr(pipe, name), "cpu", prev_module_hook=hook)
            pipe._all_hooks.append(hook)
    found = run(pipe, latents=noise(pipe))
    assert torch.equal(found.images, expected.images)


def test_optimized_it_paints_the_same(original):
    pipe = quiet(UniGSPipeline.from_inpainting(original[1]))
    before = run(pipe, latents=noise(pipe))
    assert pipe.optimize() is pipe
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    after = run(pipe, latents=noise(pipe))
    torch.testing.assert_close(after.images, before.images, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="'cuda_graph' needs the pipeline on an NVIDIA GPU, it is on cpu"):
        pipe.optimize("cuda_graph")
    with pytest.raises(ValueError, match="variant must be one of channels_last, compile, cuda_graph, got 'fast'"):
        pipe.optimize("fast")


# ----------------------------------------------------------------------------------------------------------------- LoRA


def lora(form: str, unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 on one attention layer, as kohya's scripts or as peft writes it."""
    torch.manual_seed(1)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = unet.get_submodule(name).in_features
    down, up = torch.randn(2, width), torch.randn(width, 2)
    if form == "kohya":
        stem = "lora_unet_" + name.replace(".", "_")
        return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(1.0)}
    return {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up * 0.5}


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_a_lora_of_the_base_model_fits(original, form):
    pytest.importorskip("peft")
    pipe = quiet(UniGSPipeline.from_inpainting(original[1]))
    before = run(pipe, latents=noise(pipe)).images
    changes = lora(form, pipe.unet)
    pipe.load_lora_weights(dict(changes))
    with_lora = run(pipe, latents=noise(pipe)).images
    pipe.unload_lora_weights()
    assert (with_lora - before).abs().max() > 1e-4
    assert torch.equal(run(pipe, latents=noise(pipe)).images, before)
    # by hand: W + alpha / rank * up @ down, with alpha / rank = 1 / 2
    down, up = list(changes.values())[:2]
    layer = pipe.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    with torch.no_grad():
        layer.weight.add_(up @ down, alpha=0.5 if form == "kohya" else 1.0)
    torch.testing.assert_close(run(pipe, latents=noise(pipe)).images, with_lora, rtol=0, atol=1e-5)
