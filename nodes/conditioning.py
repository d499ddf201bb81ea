"""UniGS Conditioning: a task -> what the host's own samplers take. UniGS Split Latent: what they give, in two.

UniGS Sampler prepares its inputs by the same function.
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_management import intermediate_device
from comfy_api.latest import io
from torch import Tensor

from ..unigs.conditions import LATENT_CHANNELS, check_task_inputs, control_picture, latent_mask, pad_to_multiple
from ..unigs.tasks import Task
from .types import (
    CATEGORY,
    NOT_GIVEN,
    as_masks_like,
    as_pictures,
    check_choices,
    image_batch,
    same_batch,
    size_of,
    spread,
)

HALVES = ("image", "colormap")  # of the latents: channels 0-3 and 4-7
NO_HOLD = "none"
HOLDS = [NO_HOLD, *HALVES]


@dataclass(frozen=True)
class Prepared:
    """A task, ready to be sampled.

    Attributes:
        model: the MODEL; a clone that holds one half of its latents if that was asked for.
        positive, negative: CONDITIONING.
        latent: LATENT of B x 8 channels, padded.
        source: (B, 3, H, W), the picture that the task works on.
        mask: (B, H, W) bool, the coarse mask.
        held: IMAGE (B, H, W, 3), the half that is given, or None.
    """

    model: Any
    positive: list
    negative: list
    latent: dict[str, Tensor]
    source: Tensor
    mask: Tensor
    held: Tensor | None


def prepare(
    model: Any,
    clip: Any,
    vae: Any,
    task: Task,
    prompt: str,
    negative: str,
    image: Tensor | None = None,
    coarse_mask: Tensor | None = None,
    colormap: Tensor | None = None,
    hold: str = NO_HOLD,
) -> Prepared:
    """Raises ValueError naming the input that is missing or does not fit."""
    from .native import encode, settings_of, with_held, with_task

    # 1. Inputs, as the engine speaks: pictures (B, 3, H, W), coarse mask (B, H, W); all where the host keeps pictures.
    settings, device = settings_of(model), intermediate_device()
    given = {
        name: as_pictures(value, name).to(device)
        for name, value in (("image", image), ("colormap", colormap))
        if value is not None
    }
    check_task_inputs(
        task,
        has_image="image" in given,
        has_colormap="colormap" in given,
        has_coarse_mask=coarse_mask is not None,
        has_prompt=bool(prompt.strip()),
    )
    _check_hold(hold, given)
    source_name = "image" if task.spec.needs_image else "colormap"
    used = {name: pixels for name, pixels in given.items() if name in (source_name, hold)}
    size = size_of(used[source_name])
    if other := {name: size_of(pixels) for name, pixels in used.items() if size_of(pixels) != size}:
        raise ValueError(
            f"{source_name} and what is held must have one size, got {source_name} {size} and {other} (height, width): "
            "scale one of them"
        )
    if coarse_mask is None or task.spec.coarse_mask == "full":
        mask = torch.ones(1, *size, dtype=torch.bool, device=device)
    else:
        mask = as_masks_like(coarse_mask, "coarse_mask", size).to(device)
        if not mask.flatten(1).any(dim=1).all():
            raise ValueError(
                "coarse_mask: nothing is selected: nothing was found where the mask comes from, or no region was "
                "painted; paint one, or give Coarse Mask From Box a box"
            )
    batch = same_batch({**used, "coarse_mask": mask})
    used = {name: spread(pixels, batch) for name, pixels in used.items()}
    mask, source = spread(mask, batch), used[source_name]

    # 2. What the UNet sees beside the noise, padded to sides it can halve often enough.
    def encoded(pixels: Tensor) -> Tensor:
        latents = encode(vae, image_batch(pad_to_multiple(pixels, settings.size_multiple)))
        if latents.ndim != 4 or latents.shape[1] != LATENT_CHANNELS:
            raise ValueError(f"vae: expected the VAE of the UniGS Loader, got one with latents {tuple(latents.shape)}")
        return latents

    padded_mask = pad_to_multiple(mask, settings.size_multiple)
    control = encoded(control_picture(task, source, mask, source))
    regions = latent_mask(padded_mask, size_of(control))

    def conditioning(text: str) -> list:
        tokens = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return with_task(tokens, task, regions, control, size_of(padded_mask))

    # 3. What the samplers start from: nothing, or the half that is given beside nothing.
    empty = torch.zeros(batch, 2 * LATENT_CHANNELS, *size_of(control), device=device)
    latent, held = {"samples": empty}, None
    if hold != NO_HOLD:
        model, held = with_held(model, hold), image_batch(used[hold])
        halves = list(model.get_model_object("latent_format").process_out(empty).chunk(2, dim=1))
        halves[HALVES.index(hold)] = encoded(used[hold])
        latent = {
            "samples": torch.cat(halves, dim=1),
            "noise_mask": torch.ones(batch, 1, *size_of(control), device=device),
        }
    positive, negative_ = conditioning(task.spec.prompt(prompt)), conditioning(negative)
    return Prepared(model, positive, negative_, latent, source, mask, held)


def task_inputs() -> list[Any]:
    """The inputs that UniGS Sampler and UniGS Conditioning begin with."""
    return [
        io.Model.Input("model", tooltip="From the UniGS Loader."),
        io.Clip.Input("clip", tooltip="From the UniGS Loader."),
        io.Vae.Input("vae", tooltip="From the UniGS Loader."),
        io.Combo.Input(
            "task",
            options=[task.value for task in Task],
            default=Task.ENTITY.value,
            tooltip="inpainting: paint new things into the coarse mask. synthesis: paint a picture of a "
            "colormap. referring: find what the prompt names. entity: find everything.",
        ),
        io.String.Input(
            "prompt",
            multiline=True,
            default="",
            tooltip="What to paint or to find: dog and cat. The task entity looks only at a text that begins with "
            "panoptic:, like panoptic: all entities and stuff.",
        ),
        io.String.Input(
            "negative",
            multiline=True,
            default="",
            tooltip="What to keep away from. Has an effect where cfg is not 1.",
        ),
    ]


def picture_inputs() -> list[Any]:
    """The optional inputs of both, in this order; what comes later is appended behind them."""
    return [
        io.Image.Input(
            "image",
            optional=True,
            tooltip="The picture, for inpainting, referring and entity. Any size, any batch.",
        ),
        io.Mask.Input(
            "coarse_mask",
            optional=True,
            tooltip="1 where to paint (inpainting) or to look (referring; without it: everywhere). One for "
            "each picture, or one for all.",
        ),
        io.Image.Input(
            "colormap",
            optional=True,
            tooltip="For synthesis: the colormap of Colormap Encode. For any task: the colormap to hold.",
        ),
        io.Combo.Input(
            "hold",
            options=HOLDS,
            default=NO_HOLD,
            optional=True,
            tooltip="image or colormap: this half is given, by the input of that name, and stays what it is "
            "while the other half is denoised to match it.",
        ),
    ]


def _check_hold(hold: str, given: Container[str]) -> None:
    if hold != NO_HOLD and hold not in given:
        raise ValueError(f"hold is {hold!r}, but there is no `{hold}`: connect what is to be held, or set hold to none")


def check_task(
    task: str | None,
    prompt: str | None,
    hold: str | None,
    pictures: dict[str, Any],
    **choices: tuple[str | None, list[str]],
) -> bool | str:
    """For `validate_inputs`, before anything has run: True, or what is wrong. Values behind links are None.

    Args:
        pictures: "image", "coarse_mask" and "colormap", each NOT_GIVEN or anything else.
        choices: those of other inputs, for `check_choices`.
    """
    chosen = check_choices({"task": (task, [known.value for known in Task]), "hold": (hold, HOLDS), **choices})
    if chosen is not True:
        return chosen
    given = {name for name, value in pictures.items() if value is not NOT_GIVEN}
    try:
        if task is not None:
            there = {f"has_{name}": name in given for name in pictures}
            check_task_inputs(Task(task), **there, has_prompt=prompt is None or bool(prompt.strip()))
        _check_hold(hold or NO_HOLD, given)
    except ValueError as error:
        return str(error)
    return True


class UniGSConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniGSConditioning",
            display_name="UniGS Conditioning",
            category=CATEGORY,
            description="Turns a task and its inputs into what ComfyUI's own samplers take: connect all four outputs "
            "to a KSampler, or to any other sampler, and its LATENT to UniGS Split Latent.",
            inputs=[*task_inputs(), *picture_inputs()],
            outputs=[
                io.Model.Output(
                    "prepared_model", display_name="MODEL", tooltip="The MODEL to sample; it holds a half if asked to."
                ),
                io.Conditioning.Output(
                    "positive_conditioning", display_name="positive", tooltip="The prompt, the task and its pictures."
                ),
                io.Conditioning.Output(
                    "negative_conditioning", display_name="negative", tooltip="The same with the negative text."
                ),
                io.Latent.Output(
                    "latent", display_name="LATENT", tooltip="Empty latents of picture and colormap, or the held half."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        task: str | None = None,
        prompt: str | None = None,
        hold: str | None = None,
        image: Any = NOT_GIVEN,
        coarse_mask: Any = NOT_GIVEN,
        colormap: Any = NOT_GIVEN,
    ) -> bool | str:
        return check_task(task, prompt, hold, {"image": image, "coarse_mask": coarse_mask, "colormap": colormap})

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        task: str,
        prompt: str,
        negative: str,
        image: Tensor | None = None,
        coarse_mask: Tensor | None = None,
        colormap: Tensor | None = None,
        hold: str = NO_HOLD,
    ) -> io.NodeOutput:
        ready = prepare(model, clip, vae, Task.parse(task), prompt, negative, image, coarse_mask, colormap, hold)
        return io.NodeOutput(ready.model, ready.positive, ready.negative, ready.latent)


class UniGSSplitLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniGSSplitLatent",
            display_name="UniGS Split Latent",
            category=CATEGORY,
            description="Splits what a sampler made of UniGS Conditioning into the latents of the picture and of its "
            "colormap, each for a VAE Decode.",
            inputs=[io.Latent.Input("latent", tooltip="From a KSampler that samples a UniGS MODEL.")],
            outputs=[
                io.Latent.Output("image_latent", display_name="image", tooltip="The picture, for VAE Decode."),
                io.Latent.Output("colormap_latent", display_name="colormap", tooltip="The colormap, for VAE Decode."),
            ],
        )

    @classmethod
    def execute(cls, latent: dict[str, Tensor]) -> io.NodeOutput:
        samples = latent["samples"]
        if samples.ndim != 4 or samples.shape[1] != 2 * LATENT_CHANNELS:
            raise ValueError(
                f"latent: expected {2 * LATENT_CHANNELS} channels, got latents {tuple(samples.shape)}: connect the "
                "sampler behind UniGS Conditioning"
            )
        return io.NodeOutput(*({"samples": half.contiguous()} for half in samples.chunk(2, dim=1)))
