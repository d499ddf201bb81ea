"""Train UniGS: `python -m training.train_joint --config training/configs/tiny.toml --any.setting value`.

From nothing: first the autoencoder, then text encoder and UNet together, on all tasks at once. Stopped runs go on from
their last checkpoint when the same command is run again; the result is a pipeline folder `<output_dir>/pipeline`.
"""

import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import AutoencoderTiny
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm
from transformers import CLIPTokenizer

from training.autoencoder import train_autoencoder
from training.config import TrainConfig, load_config
from training.datasets.scenes import KINDS, Scenes, SpriteLibrary, prompt_words
from training.export import save_pipeline
from training.joint import Example, make_example
from training.model import JointModel, build_scheduler, build_text_encoder, build_tokenizer, build_unet
from training.muon import Muon, split_parameters
from training.validation import validation_sheet
from unigs.conditions import LATENT_CHANNELS, control_picture, encode_pixels, latent_mask, unet_input
from unigs.palette import LocationAwarePalette
from unigs.pipeline import UniGSPipeline
from unigs.tasks import Task

logger = logging.getLogger(__name__)


class Examples(Dataset[dict[str, Tensor]]):
    """Training examples by index: the same (seed, index) is always the same example."""

    def __init__(
        self, scenes: Scenes, palette: LocationAwarePalette, tokenizer: CLIPTokenizer, config: TrainConfig, length: int
    ):
        self.scenes, self.palette, self.tokenizer, self.config, self.length = scenes, palette, tokenizer, config, length

    def __len__(self) -> int:
        return self.length

    def example(self, index: int) -> Example:
        return make_example(
            self.scenes[index],
            np.random.default_rng([self.config.seed, 2, index]),
            self.palette,
            tasks=self.config.tasks,
            vocabulary=self.scenes.library.nouns,
            negatives=self.config.data.negatives,
            caption_dropout=self.config.data.caption_dropout,
        )

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        example = self.example(index)
        tokens = self.tokenizer(example.prompt, padding="max_length", truncation=True, return_tensors="pt")
        return {
            "image": torch.from_numpy(example.image).permute(2, 0, 1),
            "colormap": torch.from_numpy(example.colormap).permute(2, 0, 1),
            "coarse_mask": torch.from_numpy(example.coarse_mask),
            "input_ids": tokens.input_ids[0],
            "task": torch.tensor(example.task.spec.id),
        }


@torch.no_grad()
def encode_batch(vae: AutoencoderTiny, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pictures become `latents` (B, 8, h, w) to be denoised, coarse `mask` (B, 1, h, w) and `control` (B, 4, h, w).

    A control that is the whole image or the colormap is not encoded a second time.
    """
    image, colormap = batch["image"] / 255, batch["colormap"] / 255
    task = batch["task"]
    holes = with_control(task, "image with hole")
    cut_out = control_picture(Task.INPAINTING, image[holes], batch["coarse_mask"][holes])
    latents = encode_pixels(vae, torch.cat([image, colormap, cut_out]))
    image_latents, colormap_latents, hole_latents = latents.split([len(image), len(image), len(cut_out)])
    control = torch.where(with_control(task, "colormap")[:, None, None, None], colormap_latents, image_latents)
    control[holes] = hole_latents
    mask = latent_mask(batch["coarse_mask"], (latents.shape[-2], latents.shape[-1]))
    return {
        "latents": torch.cat([image_latents, colormap_latents], dim=1),
        "mask": mask,
        "control": control,
        "input_ids": batch["input_ids"],
        "task": task,
    }


def with_control(task: Tensor, control: str) -> Tensor:
    """(B,) bool: which of the tasks (B,), given by their ids, have this kind of control picture."""
    ids = [name.spec.id for name in Task if name.spec.control == control]
    return torch.isin(task, torch.tensor(ids, device=task.device))


def stream_weights(task: Tensor, copied: float) -> Tensor:
    """(B, 2) loss weights of the picture and the colormap stream; `copied` for one that the control already shows."""
    weights = torch.ones(len(task), 2, device=task.device)
    weights[with_control(task, "image"), 0] = copied
    weights[with_control(task, "colormap"), 1] = copied
    return weights


def draw_timesteps(task: Tensor, steps: int, last_share: float, generator: torch.Generator) -> Tensor:
    """(B,) timesteps.

    For `last_share` of the examples the very last one, where few-step sampling starts. Otherwise for segmentation a
    uniform draw, for painting the later of two, because what is painted where is decided at high noise.
    """
    first, second = torch.randint(0, steps, (2, len(task)), generator=generator)
    last = torch.rand(len(task), generator=generator) < last_share
    segmentation = with_control(task.cpu(), "image")
    timesteps = torch.where(segmentation, first, torch.maximum(first, second)).masked_fill(last, steps - 1)
    return timesteps.to(task.device)


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    config = load_config(argv)
    out = config.output_dir
    accelerator = Accelerator(
        cpu=config.cpu,
        mixed_precision=config.mixed_precision,
        log_with=None if config.report_to == "none" else config.report_to,
        project_config=ProjectConfiguration(str(out), logging_dir=str(out / "logs")),
    )
    set_seed(config.seed)

    # 1. Data
    library = SpriteLibrary(config.data.sprites, KINDS)
    scenes = Scenes(library, config.resolution, "train", config.data.max_objects)
    palette = LocationAwarePalette(config.palette.grid, config.palette.levels, config.palette.order)

    # 2. Autoencoder, trained once, and tokenizer
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(json.dumps(asdict(config), indent=2, default=str))
        if not (out / "vae" / "config.json").is_file():
            vae = train_autoencoder(
                config.autoencoder, scenes, palette, accelerator.device, config.dataloader_num_workers, config.seed
            )
            vae.save_pretrained(out / "vae")
        if not (out / "tokenizer" / "vocab.json").is_file():
            build_tokenizer(out / "tokenizer", prompt_words(), config.model)
    accelerator.wait_for_everyone()
    vae = AutoencoderTiny.from_pretrained(out / "vae").requires_grad_(False).eval()
    vae = vae.to(accelerator.device, memory_format=torch.channels_last)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer", local_files_only=True)

    # 3. Models, optimisers, schedules
    factor = 2 ** (len(config.autoencoder.encoder_blocks) - 1)
    unet = build_unet(config.model, config.resolution // factor).to(memory_format=torch.channels_last)
    text_encoder = build_text_encoder(tokenizer, config.model)
    scheduler = build_scheduler()
    trained = JointModel(text_encoder, unet)
    matrices, others = split_parameters(trained)
    muon = Muon(matrices, lr=config.learning_rate, ns_steps=4)
    adamw = torch.optim.AdamW(
        others, lr=config.adam_learning_rate, betas=(0.9, 0.95), weight_decay=config.adam_weight_decay
    )
    ema = EMAModel(trained.parameters(), decay=config.ema_decay, foreach=True)

    batch_size = config.train_batch_size * accelerator.num_processes
    examples = Examples(scenes, palette, tokenizer, config, config.max_train_steps * batch_size)
    # without a GPU the workers encode too: the autoencoder then runs beside the UNet instead of before it
    encoded_by_workers = accelerator.device.type == "cpu"
    loader = DataLoader(
        examples,
        config.train_batch_size,
        num_workers=config.dataloader_num_workers,
        collate_fn=(lambda items: encode_batch(vae, default_collate(items))) if encoded_by_workers else default_collate,
    )
    trained, muon, adamw, loader = accelerator.prepare(trained, muon, adamw, loader)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema)
    accelerator.init_trackers("logs")

    # 4. Resume
    step = resume(accelerator, config)
    if step:
        loader = accelerator.skip_first_batches(loader, step)

    # 5. Train
    progress = tqdm(
        total=config.max_train_steps, initial=step, desc="joint", unit="step", disable=not accelerator.is_main_process
    )
    for batch in loader:
        rate = learning_rate_factor(step, config)
        for optimizer, base in ((muon, config.learning_rate), (adamw, config.adam_learning_rate)):
            for group in optimizer.param_groups:
                group["lr"] = base * rate
        if not encoded_by_workers:
            batch = encode_batch(vae, dict(batch))
        latents = batch["latents"]
        # noise is a function of (seed, step, process), so a resumed run draws what the uninterrupted one would have
        seed = np.random.SeedSequence([config.seed, 3, step, accelerator.process_index]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        timesteps = draw_timesteps(
            batch["task"], scheduler.config["num_train_timesteps"], config.last_timestep_share, generator
        )
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = scheduler.get_velocity(latents, noise, timesteps)

        inputs = unet_input(noisy[:, :LATENT_CHANNELS], noisy[:, LATENT_CHANNELS:], batch["mask"], batch["control"])
        with accelerator.autocast():
            velocity = trained(
                inputs.contiguous(memory_format=torch.channels_last), timesteps, batch["input_ids"], batch["task"]
            )
        errors = (velocity.float() - target).square().unflatten(1, (2, LATENT_CHANNELS)).mean((2, 3, 4))  # (B, 2)
        loss = (errors * stream_weights(batch["task"], config.copied_stream_weight)).mean()
        muon.zero_grad()
        adamw.zero_grad()
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(trained.parameters(), config.max_grad_norm)
        muon.step()
        adamw.step()
        ema.step(trained.parameters())
        step += 1

        progress.update()
        if step % 10 == 0:
            values = {"loss": loss.item(), "learning_rate": config.learning_rate * rate}
            values["grad_norm"] = 0.0 if norm is None else float(norm)
            for name in Task:
                rows = batch["task"] == name.spec.id
                if rows.any():
                    values[f"picture/{name.value}"], values[f"colormap/{name.value}"] = errors[rows].mean(0).tolist()
            accelerator.log(values, step)
            progress.set_postfix(loss=f"{values['loss']:.4f}")
        if step % config.checkpointing_steps == 0 or step == config.max_train_steps:
            save_checkpoint(accelerator, config, step)
        if accelerator.is_main_process and (step % config.validation_steps == 0 or step == config.max_train_steps):
            ema.store(trained.parameters())
            ema.copy_to(trained.parameters())
            pipeline = UniGSPipeline(
                vae,
                text_encoder.eval(),
                tokenizer,
                unet.eval(),
                scheduler,
                palette=palette.to_config(),
                task_defaults=config.task_defaults,
                default_size=config.resolution,
            )
            save_pipeline(pipeline, out / "tokenizer", out / "pipeline")
            sheet = validation_sheet(pipeline, Scenes(library, config.resolution, "heldout", config.data.max_objects))
            sheet.save(out / f"validation-{step:06d}.png")
            ema.restore(trained.parameters())
            trained.train()
    accelerator.end_training()
    logger.info("done: %s", out / "pipeline")


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, constant, linear to zero at the end."""
    left = (config.max_train_steps - step) / max(1.0, config.lr_cooldown * config.max_train_steps)
    return min(1.0, (step + 1) / max(1, config.lr_warmup_steps), left)


def save_checkpoint(accelerator: Accelerator, config: TrainConfig, step: int) -> None:
    """Write `checkpoint-<step>` under another name first, so that a cut write never looks like a checkpoint."""
    folder = config.output_dir / f"checkpoint-{step:06d}"
    scratch = folder.with_name(folder.name + ".tmp")
    if accelerator.is_main_process:
        shutil.rmtree(scratch, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(scratch))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
        for old in checkpoints(config.output_dir)[: -config.checkpoints_total_limit]:
            shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*") if path.suffix != ".tmp")


def resume(accelerator: Accelerator, config: TrainConfig) -> int:
    """Load the checkpoint that the configuration asks for; the number of steps it had done."""
    if config.resume_from_checkpoint is None:
        return 0
    if config.resume_from_checkpoint == "latest":
        found = checkpoints(config.output_dir)
        if not found:
            return 0
        folder = found[-1]
    else:
        folder = Path(config.resume_from_checkpoint)
        if not folder.is_dir():
            raise SystemExit(
                f"--resume-from-checkpoint: {folder} is not a folder; expected a checkpoint-<step> folder or 'latest'"
            )
    accelerator.load_state(str(folder))
    logger.info("resumed %s", folder)
    return int(folder.name.split("-")[-1])


if __name__ == "__main__":
    main()
