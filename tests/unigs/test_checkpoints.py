"""What a file or folder is, and what is said of those that are something else."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unigs import ldm_files
from unigs.checkpoints import Kind, bundled_model_dir, open_checkpoint, weight_files
from unigs.pipeline import UniGSPipeline
from unigs.stable_diffusion import SD1, SD2, SDXL

FAMILIES = {
    SD1.name: (SD1, ldm_files.stable_diffusion_1),
    SD2.name: (SD2, ldm_files.stable_diffusion_2),
    SDXL.name: (SDXL, ldm_files.stable_diffusion_xl),
}
UNET = "model.diffusion_model."


@pytest.mark.parametrize("channels, kind", [(9, Kind.INPAINTING), (4, Kind.BASE)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_told_by_its_tensors_and_not_by_the_name_of_the_file(tmp_path, name, channels, kind):
    family, shapes = FAMILIES[name]
    opened = open_checkpoint(ldm_files.write(tmp_path / "whatever-v2-xl.safetensors", shapes(channels)))
    assert opened.family is family and opened.kind is kind
    assert opened.config("unet")["in_channels"] == channels
    assert opened.weights("unet")["input_blocks.0.0.weight"].shape == (320, channels, 3, 3)
    assert opened.classes.keys() - family.pad_tokens.keys() == family.configs.keys()


@pytest.mark.parametrize(
    "name, parameters", [(SD1.name, 859_563_528), (SD2.name, 865_953_288), (SDXL.name, 2_567_506_248)]
)
def test_every_tensor_of_an_original_file_finds_its_place(tmp_path, name, parameters):
    """Nothing is missing and nothing is left over, in files of the published sizes; the weights stay in the file."""
    _, shapes = FAMILIES[name]
    file = ldm_files.write(tmp_path / "a.safetensors", shapes())
    pipe = UniGSPipeline.from_inpainting(file, torch_dtype="auto")
    assert sum(weight.numel() for weight in pipe.unet.parameters()) == parameters
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float16}
    assert pipe.default_size == (1024 if name == SDXL.name else 512)
    assert (pipe.text_encoder_2 is not None) == (name == SDXL.name)
    assert pipe.tokenizer("a dog").input_ids == [49406, 320, 1929, 49407]
    assert is_mapped(pipe.unet.down_blocks[1].resnets[0].conv1.weight, file)
    assert is_mapped(pipe.vae.decoder.conv_in.weight, file)


def is_mapped(weight: torch.Tensor, file: Path) -> bool:
    """Whether the weight lies in the file and not in memory; taken for granted where the system does not tell."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return True
    ranges = [line.split()[0].split("-") for line in maps.read_text().splitlines() if line.endswith(str(file))]
    return any(int(first, 16) <= weight.data_ptr() < int(last, 16) for first, last in ranges)


def test_a_base_model_is_widened_with_a_warning(tmp_path, caplog):
    file = ldm_files.write(tmp_path / "base.safetensors", ldm_files.stable_diffusion_1(channels=4))
    pipe = UniGSPipeline.from_inpainting(file, torch_dtype="auto", task_embedding=False)
    assert pipe.unet.config["in_channels"] == 13 and pipe.unet.config["num_class_embeds"] is None
    assert "base is a base model, which never learned inpainting" in caplog.text


def test_v_prediction_of_stable_diffusion_2_shows_in_one_bias(tmp_path):
    shapes = ldm_files.stable_diffusion_2(channels=4)
    file = ldm_files.write(tmp_path / "a.safetensors", shapes)
    assert open_checkpoint(file).config("scheduler")["prediction_type"] == "epsilon"
    ldm_files.fill(file, UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias", [0.5, -0.5] * 160)
    opened = open_checkpoint(file)
    assert (
        opened.config("scheduler")["prediction_type"] == "v_prediction" and opened.config("unet")["sample_size"] == 96
    )
    assert SD2.configs["scheduler"]["prediction_type"] == "epsilon"  # the table stays what it was


def test_names_go_where_they_belong(tmp_path):
    file = ldm_files.write(tmp_path / "a.safetensors", ldm_files.stable_diffusion_1(), dtype="F16")
    places = {
        UNET + "input_blocks.1.0.in_layers.2.bias": "unet.down_blocks.0.resnets.0.conv1.bias",
        UNET + "input_blocks.6.0.op.bias": "unet.down_blocks.1.downsamplers.0.conv.bias",
        UNET + "middle_block.1.norm.weight": "unet.mid_block.attentions.0.norm.weight",
        UNET + "output_blocks.2.1.conv.bias": "unet.up_blocks.0.upsamplers.0.conv.bias",
        UNET + "output_blocks.5.2.conv.bias": "unet.up_blocks.1.upsamplers.0.conv.bias",
        UNET + "output_blocks.11.1.proj_out.bias": "unet.up_blocks.3.attentions.2.proj_out.bias",
        "first_stage_model.decoder.up.3.block.0.norm1.bias": "vae.decoder.up_blocks.0.resnets.0.norm1.bias",
        "first_stage_model.encoder.mid.attn_1.q.bias": "vae.encoder.mid_block.attentions.0.to_q.bias",
    }
    for value, name in enumerate(places, start=1):
        ldm_files.fill(file, name, [float(value)])
    pipe = UniGSPipeline.from_inpainting(file, torch_dtype="auto")
    state = {
        f"{part}.{name}": value for part in ("unet", "vae") for name, value in getattr(pipe, part).state_dict().items()
    }
    assert [float(state[name][0]) for name in places.values()] == [*map(float, range(1, len(places) + 1))]


def without(shapes: ldm_files.Shapes, *prefixes: str) -> ldm_files.Shapes:
    return {name: shape for name, shape in shapes.items() if not name.startswith(prefixes)}


SD1_SHAPES = ldm_files.stable_diffusion_1()
ONLY = {
    part: {name.removeprefix(prefix): shape for name, shape in SD1_SHAPES.items() if name.startswith(prefix)}
    for part, prefix in SD1.prefixes.items()
}


@pytest.mark.parametrize(
    "shapes, message",
    [
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)}, "it is a LoRA: load the model"),
        ({"unet.mid_block.attentions.0.to_q.lora_A.weight": (4, 320)}, "it is a LoRA: load the model"),
        ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "it is a ControlNet"),
        ({"double_blocks.0.img_attn.qkv.weight": (9, 3)}, "it is a Flux or Hunyuan model"),
        ({"emb_params": (2, 768)}, "it is a textual inversion"),
        (ONLY["unet"], "it is a UNet without the text encoder"),
        (ONLY["vae"], "it is a VAE without the UNet"),
        (ONLY["text_encoder"], "it is a text encoder without the UNet"),
        (without(SD1_SHAPES, "cond_stage_model."), "it is Stable Diffusion 1 without its text_encoder"),
        (without(SD1_SHAPES, "first_stage_model.", "cond_"), "it is Stable Diffusion 1 without its vae, text_encoder"),
        (ldm_files.stable_diffusion_1(channels=5), ".* 5 input channels .the depth model."),
        (ldm_files.stable_diffusion_1(channels=13), ".* 13 input channels .UniGS without its settings."),
        ({"anything": (1,)}, "its tensors are of no model that is known here"),
        ({}, "its tensors are of no model that is known here"),
    ],
)
def test_other_files_are_called_by_their_name(tmp_path, shapes, message):
    with pytest.raises(ValueError, match=f"^cannot open '.*a.safetensors': {message}"):
        open_checkpoint(ldm_files.write(tmp_path / "a.safetensors", shapes))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: expected a pipeline folder or a .safetensors file"):
        open_checkpoint(tmp_path / "nothing.safetensors")
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match="is a pickle, which can run any program"):
        open_checkpoint(pickle)
    for content in (b"", b"x", b"\x80\x02}q\x00.", b"\xff" * 64, b"{}" * 40):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="bad.safetensors is truncated, damaged or no safetensors file"):
            open_checkpoint(tmp_path / "bad.safetensors")
    cut = ldm_files.write(tmp_path / "cut.safetensors", SD1_SHAPES, cut=1000)
    with pytest.raises(ValueError, match="cut.safetensors is truncated"):
        open_checkpoint(cut)


def test_a_file_with_holes_is_refused_before_anything_is_run(tmp_path):
    lacking = without(SD1_SHAPES, UNET + "output_blocks.4.")
    file = ldm_files.write(tmp_path / "a.safetensors", lacking)
    with pytest.raises(ValueError, match="unet of .*a.safetensors' is missing .* weights, like 'up_blocks.1"):
        UniGSPipeline.from_inpainting(file, torch_dtype="auto")
    other = {**SD1_SHAPES, UNET + "time_embed.2.bias": (7,)}
    with pytest.raises(ValueError, match="has another shape for 1 weights, like 'time_embedding.linear_2.bias'"):
        UniGSPipeline.from_inpainting(ldm_files.write(tmp_path / "b.safetensors", other), torch_dtype="auto")


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"unigs.version": "99"}, "a UniGS file of version 99"),
        ({"unigs.version": "1"}, "its UniGS metadata is damaged"),
        ({"unigs.version": "1"} | dict.fromkeys(("unigs.prompts", "unigs.settings", "unigs.classes", "unigs.configs",
          "unigs.tokenizers"), "{}"), "nothing is said of scheduler, text_encoder, tokenizer, unet, vae"),
    ],
)  # fmt: skip
def test_damaged_metadata(tmp_path, metadata, message):
    save_file({"unet.a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path / "a.safetensors")


def test_folders(tmp_path):
    assert open_checkpoint(bundled_model_dir()).kind is Kind.UNIGS
    with pytest.raises(FileNotFoundError, match="no model_index.json"):
        open_checkpoint(tmp_path)
    index = tmp_path / "model_index.json"
    for content, message in (
        ("{", "is no JSON"),
        ("[]", "must hold a JSON object, got list"),
        ('{"_class_name": "FluxPipeline"}', "holds a FluxPipeline: expected"),
        (
            json.dumps({"_class_name": "UniGSPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}),
            "names no scheduler, text_encoder, tokenizer, vae: get the whole model",
        ),
        ((bundled_model_dir() / "model_index.json").read_text(), "is missing: expected a pipeline folder"),
    ):
        index.write_text(content)
        with pytest.raises(ValueError, match=message):
            open_checkpoint(tmp_path)


def test_a_tokenizer_without_words_is_refused(tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(bundled_model_dir(), folder)
    (folder / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(ValueError, match="tokenizer' holds neither vocab.json and merges.txt nor tokenizer.json"):
        open_checkpoint(folder)
    (folder / "tokenizer" / "tokenizer.json").touch()
    assert open_checkpoint(folder).kind is Kind.UNIGS


def test_which_of_several_files_of_weights_are_read(tmp_path):
    def files():
        return [file.name for file in weight_files(tmp_path)]

    with pytest.raises(ValueError, match="holds no weights as .safetensors, and no other format is opened"):
        files()
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    (tmp_path / "diffusion_pytorch_model.non_ema.safetensors").touch()
    with pytest.raises(ValueError, match="holds no weights as .safetensors"):
        files()
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").touch()
    assert files() == ["diffusion_pytorch_model.fp16.safetensors"]
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    assert files() == ["diffusion_pytorch_model.safetensors"]
    parts = [f"diffusion_pytorch_model-{part}-of-00002.safetensors" for part in ("00001", "00002")]
    weight_map = json.dumps({"weight_map": {"a": parts[1], "b": parts[0], "c": parts[0]}})
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(weight_map)
    assert files() == ["diffusion_pytorch_model.safetensors"]  # the parts are not there
    for part in parts:
        (tmp_path / part).touch()
    assert files() == parts


def test_weights_of_no_variant_come_first(tmp_path):
    parts = [f"model.fp16-{part}-of-00002.safetensors" for part in ("00001", "00002")]
    (tmp_path / "model.safetensors.index.fp16.json").write_text(
        json.dumps({"weight_map": {"a": parts[0], "b": parts[1]}})
    )
    for part in parts:
        (tmp_path / part).touch()
    assert [file.name for file in weight_files(tmp_path)] == parts
    (tmp_path / "model.safetensors").touch()
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]


def test_weights_are_converted_on_request_and_whole_numbers_are_not(tmp_path):
    pipe = UniGSPipeline.from_pretrained(torch_dtype=torch.bfloat16)
    file = tmp_path / "a.safetensors"
    pipe.save_single_file(file)
    opened = open_checkpoint(file)
    assert {weight.dtype for weight in opened.weights("unet").values()} == {torch.bfloat16}
    assert {weight.dtype for weight in opened.weights("unet", torch.float32).values()} == {torch.float32}
