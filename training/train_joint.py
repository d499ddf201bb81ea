"""Train UniGS: `python -m training.train_joint --config training/configs/tiny.toml --any.setting value`.

A run that was stopped, by whatever, goes on from its last checkpoint when the same command is run again, and ends as if
it had never been stopped. The result is a pipeline folder, `<output_dir>/pipeline`. Several processes:
`accelerate launch -m training.train_joint ...`, see docs/training.md.
"""

import json
import logging
import math
import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel, cast_training_params
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from tqdm import tqdm

from training.checkpoints import (
    SHARDED,
    find_checkpoint,
    load_averages,
    save_checkpoint,
    save_trained_weights_only,
    set_aside,
    write_state,
)
from training.checks import check_settings, one_line_errors
from training.config import TrainConfig, load_config
from training.datasets.pictures import UnusableData
from training.export import export
from training.joint import Example
from training.latents import Batch, encode_batch
from training.loading import BatchPlan, ExampleSource, TrainingData, example_source, open_mixture, stack
from training.logs import Journal, Meter, Speed, not_told
from training.model import JointModel, add_adapters
from training.objective import add_noise, loss_weights, squared_errors
from training.optimizers import build_optimizers, learning_rate_schedule
from training.start import describe, start_pipeline
from training.validation import is_out_of_memory, validation_examples, validation_grid
from unigs.conditions import LATENT_CHANNELS, unet_input
from unigs.pipeline import UniGSPipeline
from unigs.tasks import Task

logger = logging.getLogger(__name__)

PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class NoLongerFinite(ArithmeticError):
    """The loss has run away."""


class LostGradients(RuntimeError):
    """Most of the weights would stay what they are."""


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")

    with one_line_errors():  # whatever is wrong with settings, data and model is found before the first step
        # 1. Settings, data, and what to start from
        config = load_config(argv)
        check_settings(config)
        out = config.output_dir
        accelerator = Accelerator(
            cpu=config.cpu,
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(str(out), logging_dir=str(out)),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],  # others wait for the autoencoder
        )
        quiet = logging.INFO if accelerator.is_main_process else logging.WARNING
        logging.getLogger().setLevel(quiet)
        logging.getLogger("accelerate").setLevel(logging.WARNING)
        logging.getLogger("diffusers").setLevel(logging.ERROR)  # it warns of casting modules that there are none of
        sharded = accelerator.distributed_type in SHARDED
        check_launch(config, accelerator)
        set_seed(config.seed)
        torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
        folder, state = find_checkpoint(accelerator, out, config.resume_from_checkpoint)
        mixture = open_mixture(config)
        grids = validation_examples(config) if config.validation_steps and accelerator.is_main_process else {}
        with accelerator.main_process_first():
            pipeline = start_pipeline(config, mixture, accelerator.device)
        source = example_source(config, pipeline, mixture)

        # 2. Models, optimizers, learning rate
        model = make_trainable(pipeline, config, accelerator)
        global_batch = config.train_batch_size * accelerator.num_processes
        examples = global_batch * config.gradient_accumulation_steps  # of an update
        examples_left = config.num_train_epochs * source.epoch_size - state.get("examples", 0)
        steps = config.max_train_steps or state.get("step", 0) + max(0, math.ceil(examples_left / examples))
        chosen = build_optimizers(model, config, examples)
        schedule = learning_rate_schedule(config, steps)
        if accelerator.state.deepspeed_plugin is not None:  # it asks a loader that accelerate prepared; there is none
            accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = (
                config.train_batch_size
            )
        model, *optimizers = accelerator.prepare(model, *(optimizer for optimizer, _ in chosen))
        trained = [value for value in model.parameters() if value.requires_grad]
        if not sharded:
            save_trained_weights_only(accelerator)

        # 3. Resume
        step: int = state.get("step", 0)
        began_with = [value.detach().clone() for value in trained] if config.start_share else []
        if folder is not None:
            warn_of_changes(state["data"], settings_of_data(config, examples, source))
            as_set = [optimizer_settings(optimizer) for optimizer in optimizers]
            accelerator.load_state(str(folder))
            for optimizer, groups in zip(optimizers, as_set, strict=True):
                for group, settings in zip(optimizer.param_groups, groups, strict=True):
                    group.update(settings)
            accelerator.step = 0  # checkpoints lie between updates, however many batches make one now
            logger.info("resumed %s", folder)
        ema = EMAModel(trained, decay=config.ema_decay, foreach=not sharded) if config.use_ema else None
        if ema is not None and folder is not None:
            load_averages(accelerator, folder, ema, state["averaged_updates"])
        out.mkdir(parents=True, exist_ok=True)
        if accelerator.is_main_process:
            set_aside(out, step)
        journal = Journal(out / "metrics.jsonl", step, step < steps, accelerator.is_main_process)
        if accelerator.is_main_process:
            (out / "config.json").write_text(describe(config))
        start_trackers(accelerator, config, step)

    # 4. Data
    plan = BatchPlan(
        source.bucket,
        config.train_batch_size,
        accelerator.num_processes,
        accelerator.process_index,
        state.get("plan"),
    )
    # without a GPU the workers encode too: the autoencoder then runs beside the UNet instead of before it
    by_workers = accelerator.device.type == "cpu" and config.dataloader_num_workers > 0
    loader = DataLoader(
        TrainingData(source, config, pipeline.vae_scale_factor, pipeline.scheduler),
        batch_sampler=plan,
        num_workers=config.dataloader_num_workers,
        collate_fn=partial(collate, pipeline.vae if by_workers else None),
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=ignore_signals,
    )

    # 5. Train
    meter, speed = Meter(accelerator, state.get("meter")), Speed()
    examples_done: int = state.get("examples", 0)
    batches_done, saved_at = 0, step  # the step of the last checkpoint that was written
    started = time.monotonic() - state.get("seconds", 0.0)

    def save() -> bool:
        sums = meter.total()
        finite = sharded or all(bool(value.isfinite().all()) for value in trained)  # of parts others may say otherwise
        if not (finite and all(map(math.isfinite, sums))):  # the checkpoints that there are must stay
            raise NoLongerFinite(
                f"the loss, its gradient or a weight is no longer finite at step {step}, which is not saved: go on "
                "from an older checkpoint with a lower learning_rate, or with bf16, not fp16"
            )
        said = {
            "step": step,
            "examples": examples_done,
            "plan": plan.state_after(batches_done),
            "meter": sums,
            "averaged_updates": ema.optimization_step if ema is not None else 0,
            "seconds": time.monotonic() - started,
            "data": settings_of_data(config, examples, source),
        }
        write = partial(write_state, accelerator, ema)
        return save_checkpoint(accelerator, out / f"checkpoint-{step:06d}", said, write, config.checkpoints_total_limit)

    expected = one_line_errors(UnusableData, NoLongerFinite, LostGradients)
    bar = tqdm(total=steps, initial=step, unit="step", disable=not accelerator.is_main_process)
    with expected, StopRequest(accelerator) as stop, endless(loader) as batches, bar as progress:
        while step < steps and not stop.everywhere():
            rate = schedule(step)
            for optimizer, (_, full_rate) in zip(optimizers, chosen, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = full_rate * rate
            synced, norm = False, None
            while not synced:
                waiting = time.perf_counter()
                batch = next(batches)
                speed.waited += time.perf_counter() - waiting
                batches_done += 1
                batch = to_latents(batch, pipeline, accelerator.device)
                with accelerator.accumulate(model):
                    noisy, target = add_noise(batch, pipeline.scheduler)
                    inputs = unet_input(
                        noisy[:, :LATENT_CHANNELS], noisy[:, LATENT_CHANNELS:], batch["mask"], batch["control"]
                    )
                    with accelerator.autocast():
                        prediction = model(
                            inputs.contiguous(memory_format=torch.channels_last),
                            batch["timestep"],
                            batch["text"],
                            batch["task"],
                        )
                    errors = squared_errors(prediction, target)
                    weights = loss_weights(
                        batch["task"],
                        batch["timestep"],
                        pipeline.scheduler,
                        config.snr_gamma,
                        config.copied_stream_weight,
                    )
                    loss = (errors * weights).mean()
                    accelerator.backward(loss)
                    if config.torch_compile and not sharded and batches_done == 1:
                        check_gradients(model)
                    synced = accelerator.sync_gradients
                    norm = accelerator.clip_grad_norm_(trained, config.max_grad_norm) if synced else None
                    for optimizer in optimizers:
                        optimizer.step()
                        optimizer.zero_grad()
                meter.add_batch(loss, errors, batch["task"])
                speed.examples += global_batch
            if not accelerator.optimizer_step_was_skipped:  # as fp16 does where its gradients overflow
                meter.add_update(norm)
                if ema is not None:
                    ema.step(trained)
            step += 1
            examples_done += examples
            progress.update()

            end = step % config.logging_steps != 0  # in the logs only because the run ends
            if step == steps or not end:
                values = meter.means(begin_anew=not end)
                values |= {"learning_rate": chosen[0][1] * rate, "epoch": examples_done / source.epoch_size}
                if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
                    raise NoLongerFinite(
                        f"the loss is {values['loss']}, the norm of its gradient {values['grad_norm']} at step {step}, "
                        "which is not saved: go on from an older checkpoint with a lower learning_rate, or with bf16, "
                        "not fp16"
                    )
                progress.set_postfix(loss=f"{values['loss']:.4f}")
                journal.write(step, values, end)
                with not_told(f"step {step}"):
                    accelerator.log(values | speed.values(accelerator.device), step)
            if config.validation_steps and not sharded and (step == steps or step % config.validation_steps == 0):
                if grids:
                    with averaged(ema, trained), accelerator.autocast():
                        validate(accelerator, pipeline, grids, config, step, journal)
                    model.train()
                accelerator.wait_for_everyone()
            if step % config.checkpointing_steps == 0 or step == steps:
                saved_at = step if save() else saved_at
        if saved_at < step and not save():
            raise SystemExit(
                f"error: step {step} is lost, the run will go on from step {saved_at}: make room on the disk"
            )

    # 6. The end, or a stop
    if step < steps:
        logger.info("stopped at step %d of %d: the same command goes on from there", step, steps)
    else:
        with averaged(ema, trained):
            if began_with:
                for value, first in zip(trained, began_with, strict=True):
                    value.data.lerp_(first, config.start_share)
            export(accelerator, pipeline, model, config, step, examples_done, time.monotonic() - started, journal)
        logger.info("done: %s", out / "pipeline")
    # What talks to other processes goes before their group does: taken down by the interpreter, gloo may never end.
    del model, optimizers
    accelerator.free_memory()
    with not_told("the end of the run"):
        accelerator.end_training()


def check_launch(config: TrainConfig, accelerator: Accelerator) -> None:
    """Raises ValueError for what the way in which accelerate was launched does not allow."""
    accumulation, plugin = accelerator.gradient_accumulation_steps, accelerator.state.deepspeed_plugin
    if accumulation != config.gradient_accumulation_steps:
        raise ValueError(
            f"gradient_accumulation_steps is {config.gradient_accumulation_steps}, accelerate was launched with "
            f"{accumulation}: give both the same"
        )
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", config.mixed_precision):
        raise ValueError(
            f"mixed_precision is {config.mixed_precision}, accelerate was launched with {launched}: give both the same"
        )
    if accelerator.distributed_type not in SHARDED:
        return
    name = accelerator.distributed_type.value
    if plugin is not None and plugin.deepspeed_config.get("gradient_clipping") != config.max_grad_norm:
        clipping = plugin.deepspeed_config.get("gradient_clipping")
        raise ValueError(
            f"max_grad_norm is {config.max_grad_norm}, DeepSpeed's gradient_clipping {clipping}: give both"
        )
    if plugin is not None and plugin.zero_stage == 3:
        raise ValueError("DeepSpeed's ZeRO 3 is not supported: give ZeRO 2, or use FSDP, which divides the weights too")
    if plugin is not None and config.use_ema:
        raise ValueError("use_ema is not supported under DeepSpeed: leave it out (--no-use-ema), or use FSDP")
    if config.optimizer == "muon":
        raise ValueError(f"optimizer muon needs whole matrices, {name} divides them: give adamw")
    if config.rank is not None:
        raise ValueError(
            f"rank: LoRA is not supported under {name}, which it does not need: use plain data parallelism"
        )
    if config.validation_steps:
        logger.warning("no validation grids under %s: measure the exported model with training.evaluate", name)


def make_trainable(pipeline: UniGSPipeline, config: TrainConfig, accelerator: Accelerator) -> JointModel:
    """Place the parts of the pipeline, frozen ones in half precision, and give what is trained."""
    device, precision = accelerator.device, PRECISIONS[config.mixed_precision]
    pipeline.vae.requires_grad_(False).eval().to(device, precision)
    if device.type == "cpu":
        pipeline.vae.to(memory_format=torch.channels_last)
    text_encoder, unet = pipeline.text_encoder, pipeline.unet
    if config.text_encoder_is_frozen:
        text_encoder.requires_grad_(False).eval().to(device, precision)
    if config.rank is not None:
        unet.to(precision)
        add_adapters(unet, config, config.rank)
        cast_training_params(unet, torch.float32)
    else:
        unet.requires_grad_(True)
    if device.type == "cpu" and (unet.config["sample_size"] or 64) <= 32:
        unet.set_attn_processor(AttnProcessor())  # small attentions train a quarter faster without the fused kernel
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.torch_compile:
        unet.compile()
    if accelerator.distributed_type not in SHARDED:  # FSDP divides nothing but contiguous weights
        unet.to(memory_format=torch.channels_last)
    model = JointModel(unet, None if config.text_encoder_is_frozen else text_encoder.requires_grad_(True))
    return model.to(device).train()


def check_gradients(model: nn.Module) -> None:
    """After a first backward pass: raises LostGradients if most of the trained weights have none.

    So it is with torch 2.13 where a UNet is compiled for a CPU in bf16: the loss is right, and falls, but only the
    outermost layers learn.
    """
    weights = [value for name, value in model.named_parameters() if value.requires_grad and "lora_A" not in name]
    lost = sum(value.grad is None or not value.grad.any() for value in weights)
    if 2 * lost > len(weights):
        raise LostGradients(
            f"torch_compile: {lost} of {len(weights)} weights get no gradient from the compiled UNet, a fault of this "
            f"torch ({torch.__version__}): leave torch_compile out, or on a CPU give mixed_precision no"
        )


def collate(vae: AutoencoderKL | AutoencoderTiny | None, items: list[Batch]) -> Batch:
    """A batch; encoded, if there is a VAE and it is not yet."""
    batch = stack(items)
    return encode_batch(vae, batch) if vae is not None and "image" in batch else batch


def to_latents(batch: Batch, pipeline: UniGSPipeline, device: torch.device) -> Batch:
    """The batch on the device, with latents and with `text` as JointModel takes it."""
    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    if "image" in batch:
        batch = encode_batch(pipeline.vae, batch)
    if "text" not in batch:
        tokens = batch.pop("input_ids")
        if next(pipeline.text_encoder.parameters()).requires_grad:
            batch["text"] = tokens
        else:
            with torch.no_grad():
                batch["text"] = pipeline.text_encoder(tokens).last_hidden_state
    return {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}


@contextmanager
def endless(loader: DataLoader[Batch]) -> Iterator[Iterator[Batch]]:
    """The loader's batches. Its workers end with it, also after an error, for they do not listen to signals."""
    batches = iter(loader)
    try:
        yield batches
    finally:
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()


def ignore_signals(worker: int) -> None:
    """A signal to all processes is for the main one: the workers go on until it has saved."""
    for number in StopRequest.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """SIGTERM, SIGUSR1 and Ctrl-C ask a run to save and stop after the step; a second Ctrl-C breaks it off."""

    SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.asked = accelerator, False

    def __enter__(self) -> "StopRequest":
        self.before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        logger.info("%s: saving after this step, then stopping", signal.Signals(number).name)

    def everywhere(self) -> bool:
        """Whether any process was asked; all of them call this."""
        if self.accelerator.num_processes == 1:
            return self.asked
        flag = torch.tensor([float(self.asked)], device=self.accelerator.device)
        return float(self.accelerator.reduce(flag, reduction="sum")) > 0  # pyright: ignore[reportArgumentType]


@contextmanager
def averaged(ema: EMAModel | None, trained: list[nn.Parameter]) -> Iterator[None]:
    """The trained parameters have their moving averages, if there are such, and then their own values again."""
    if ema is None:
        yield
        return
    ema.store(trained)
    ema.copy_to(trained)
    try:
        yield
    finally:
        ema.restore(trained)


def validate(
    accelerator: Accelerator,
    pipeline: UniGSPipeline,
    grids: dict[Task, list[Example]],
    config: TrainConfig,
    step: int,
    journal: Journal,
) -> None:
    """Write `validation-<step>.png` and the measures of each task. Too little memory, or room on the disk, costs the
    grid, not the run."""
    pipeline.unet.eval()
    pipeline.text_encoder.eval()
    try:
        grid, measures = validation_grid(pipeline, grids, seed=config.seed)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("no validation grid at step %d: not enough memory for a single picture", step)
        return
    finally:
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
    try:
        grid.save(config.output_dir / f"validation-{step:06d}.png")
    except OSError as error:
        logger.warning("no validation grid at step %d: %s", step, error)
    measures = {f"validation/{name}": value for name, value in measures.items()}
    journal.write(step, measures, end=step % config.validation_steps != 0)
    with not_told(f"the validation at step {step}"):
        accelerator.log(measures, step)
        for tracker in accelerator.trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"validation": np.asarray(grid)[None]}, step, **options)


def start_trackers(accelerator: Accelerator, config: TrainConfig, step: int) -> None:
    """TensorBoard, which forgets what it was told of steps after `step`; or Weights & Biases, which keeps that, and
    takes no notice of what it is told of them again."""
    if config.report_to == "wandb":
        name = config.output_dir / "wandb-id"
        if accelerator.is_main_process and not name.is_file():
            name.write_text(uuid.uuid4().hex)
        options = {"resume": "allow", "id": name.read_text() if accelerator.is_main_process else ""}
        accelerator.init_trackers(config.tracker_project_name, json.loads(describe(config)), {"wandb": options})
    elif config.report_to == "tensorboard":
        accelerator.init_trackers("logs", init_kwargs={"tensorboard": {"purge_step": step + 1}})


def optimizer_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Of each of its groups what the settings of the run decide, as decay and betas; the learning rate is set in each
    step."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def settings_of_data(config: TrainConfig, examples: int, source: ExampleSource) -> dict[str, Any]:
    """What decides which examples come in which order, and what is learnt of them, as JSON has it."""
    settings = json.loads(describe(config))
    names = (
        *("seed", "tasks", "task_ratios", "resolution", "center_crop", "random_flip"),
        *("conditioning_dropout_prob", "noise_offset", "prediction_type", "rescale_betas_zero_snr", "optimizer"),
        *("snr_gamma", "copied_stream_weight", "lora_alpha"),
        *("last_timestep_share", "default_steps_share", "late_painting", "reconstructed_share", "data", "palette"),
        *(("task_defaults",) if config.default_steps_share else ()),
    )
    prepared = {} if source.prepared is None else {"number of prepared examples": source.prepared}
    return {**{name: settings[name] for name in names}, "examples of an update": examples, **prepared}


def warn_of_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ValueError for another optimizer, which cannot go on from the state of the old, and another lora_alpha."""
    if before.get("optimizer", now["optimizer"]) != now["optimizer"]:
        raise ValueError(
            f"optimizer is {now['optimizer']}, the checkpoint's is {before['optimizer']}: give that one, or another "
            "output_dir; pretrained_model_name_or_path takes the weights of a finished run"
        )
    if before.get("lora_alpha", now["lora_alpha"]) != now["lora_alpha"]:
        raise ValueError(
            f"lora_alpha is {now['lora_alpha']}, the checkpoint's is {before['lora_alpha']}: it would scale all that "
            "was learnt; give that one, or another output_dir"
        )
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        logger.warning(
            "resumed with another %s: the run goes on, but not as it would have gone on with the old",
            ", ".join(changed),
        )


if __name__ == "__main__":
    main()
