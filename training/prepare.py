"""Prepare examples once, so that training neither opens pictures nor encodes them: docs/preparing.md.

    python -m training.prepare --config FILE.toml --shards FOLDER --epochs 4
    python -m training.train_joint --config FILE.toml --data.shards FOLDER

All settings are those of the training. Run it again to go on where it was stopped.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from training.checks import check_settings, one_line_errors
from training.config import TrainConfig, parse_settings, read_config
from training.encoding import Drawing, Drawn, Encoder
from training.joint import JointExamples
from training.loading import open_examples, open_mixture
from training.preview import preview
from training.shards import (
    Facts,
    Manifest,
    Sample,
    differences,
    file_hash,
    fingerprint,
    read_index,
    read_manifest,
    tar_path,
    write_manifest,
    write_shard,
)
from training.start import start_pipeline

logger = logging.getLogger(__name__)


@dataclass
class PrepareConfig(TrainConfig):
    """Settings of `python -m training.prepare`: its own, and all of the training."""

    shards: Path | None = None
    """folder to write into; data.shards if not given"""
    epochs: int = 1
    """epochs to prepare, each drawn anew; a longer training goes through them again"""
    shard_size: int = 1000
    """examples of a shard; so many are held in memory"""
    cache_dtype: Literal["float16", "float32"] = "float16"
    """of latents and text in the files; they are computed in float32"""
    prepare_batch_size: int = 4
    """examples that are encoded at once"""
    processes: int | None = None
    """how many processes share the work; WORLD_SIZE, as torchrun and accelerate set it, else 1"""
    process: int | None = None
    """which of them this is, from 0: it makes every shard whose number leaves that rest; RANK, else 0"""
    verify: bool = False
    """compare the finished shards with their checksums first, and make the damaged ones again"""
    preview: Path | None = None
    """only write a picture, .png, of 16 examples of each task, and estimate disk, memory and time; for a model from
    nothing the autoencoder is trained first, if it is not there yet"""


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    with one_line_errors():
        config = load_prepare_config(argv)
        folder, processes, process = check_prepare_settings(config)
        torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
        device = torch.device("cpu")
        if torch.cuda.is_available() and not config.cpu:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        mixture = open_mixture(config)
        if process:
            wait_for_autoencoder(config)
        pipeline = start_pipeline(config, mixture, device)
        examples = open_examples(config, mixture, pipeline.palette, pipeline.size_multiple)
        encoder = Encoder(pipeline, config.text_encoder_is_frozen, getattr(torch, config.cache_dtype), device)
        if config.preview is not None:
            preview(config, config.preview, pipeline, examples, encoder, config.epochs, folder)
            return
        manifest = open_folder(folder, config, fingerprint(config, pipeline, examples), mixture.epoch_size)
        try:
            prepare(folder, manifest, config, examples, encoder, processes, process)
        except KeyboardInterrupt:
            print(f"stopped: {progress_line(folder, manifest)}; the same command goes on from there", file=sys.stderr)
            raise SystemExit(130) from None


def load_prepare_config(argv: list[str] | None = None) -> PrepareConfig:
    """As `load_config` of the training, with the settings of `PrepareConfig`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    default = PrepareConfig(**vars(read_config(argv)))
    return parse_settings(PrepareConfig, argv, "training.prepare", default)


def check_prepare_settings(config: PrepareConfig) -> tuple[Path, int, int]:
    """The folder to write into, how many processes there are, and which this is. Raises ValueError."""
    # what only the training needs, a GPU or a package, is none of this machine's business
    training = {"mixed_precision": "no", "use_8bit_adam": False, "report_to": "none"}
    lora = {"rank": None, "lora_alpha": TrainConfig.lora_alpha, "lora_layers": TrainConfig.lora_layers}
    check_settings(replace(config, **training, **lora))
    for name in ("epochs", "shard_size", "prepare_batch_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    processes = int(os.environ.get("WORLD_SIZE", 1)) if config.processes is None else config.processes
    process = int(os.environ.get("RANK", 0)) if config.process is None else config.process
    if not 0 <= process < processes:
        raise ValueError(f"process must be 0 to {processes - 1} of {processes} processes, got {process}")
    folder = config.data.shards if config.shards is None else config.shards
    if folder is None and config.preview is None:
        raise ValueError("no folder to write into: give --shards FOLDER, or --preview FILE.png to write no shards")
    if config.preview is not None and config.preview.suffix.lower() != ".png":
        raise ValueError(f"preview must be the name of a .png file, got {str(config.preview)!r}")
    return folder or Path(), processes, process


def wait_for_autoencoder(config: TrainConfig) -> None:
    """A model from nothing has an autoencoder that process 0 trains first; there must be one only."""
    file = config.output_dir / "vae" / "config.json"
    if config.pretrained_model_name_or_path is None and not file.is_file():
        logger.info("waiting until process 0 has trained the autoencoder, %s", file.parent)
        while not file.is_file():
            time.sleep(2)


def open_folder(folder: Path, config: PrepareConfig, facts: Facts, epoch_size: int) -> Manifest:
    """The manifest of the folder, written now if there is none, or it promises fewer epochs.

    Raises ValueError if what it holds was made from something else, or in another way.
    """
    wanted = Manifest(facts, epoch_size, config.epochs, config.shard_size, config.cache_dtype)
    folder.mkdir(parents=True, exist_ok=True)
    found = read_manifest(folder)
    if found is not None:
        if different := differences(found.facts, facts):
            raise ValueError(
                f"the shards in {str(folder)!r} were made from something else: {different}. "
                "Prepare into another folder, or with the settings they were made from"
            )
        for name, value, setting in (
            ("shard_size", found.shard_size, wanted.shard_size),
            ("cache_dtype", found.dtype, wanted.dtype),
        ):
            if value != setting:
                raise ValueError(f"{str(folder)!r} has {name} {value}, got {setting}: give {value}, or another folder")
        if found.epochs > wanted.epochs:
            raise ValueError(
                f"{str(folder)!r} is for {found.epochs} epochs, got {wanted.epochs}: "
                f"give --epochs {found.epochs}, or another folder"
            )
    if found != wanted:
        write_manifest(folder, wanted)
    return wanted


def prepare(
    folder: Path,
    manifest: Manifest,
    config: PrepareConfig,
    examples: JointExamples,
    encoder: Encoder,
    processes: int,
    process: int,
) -> None:
    """Make this process's shards that are not finished.

    Raises OSError if one cannot be written, TooManyBadPictures, and ValueError for latents that are not finite.
    """
    mine = range(process, manifest.shards, processes)
    todo = [shard for shard in mine if not is_finished(folder, manifest, shard, config.verify)]
    counts = {shard: len(manifest.indices(shard)) for shard in mine}
    total, left = sum(counts.values()), sum(counts[shard] for shard in todo)
    if left < total:
        logger.info("%d of %d shards are finished already", len(mine) - len(todo), len(mine))
    loader = DataLoader(
        Drawing(examples),
        batch_sampler=batches(manifest, todo, examples, config.prepare_batch_size),  # pyright: ignore
        num_workers=config.dataloader_num_workers,
        collate_fn=list,
    )
    bad: dict[str, str] = {}
    quiet = int(os.environ.get("LOCAL_RANK", 0)) > 0  # one bar a terminal
    with tqdm(total=total, initial=total - left, unit=" examples", smoothing=0.05, disable=quiet) as progress:
        drawn = iter(loader)
        for shard in todo:
            samples: dict[int, Sample] = {}
            while len(samples) < counts[shard]:
                items: list[Drawn] = next(drawn)
                for item in items:
                    bad |= item.bad
                samples |= {sample.index: sample for sample in encoder(items)}
                progress.update(len(items))
                progress.set_postfix(bad=len(bad), refresh=False)
            try:
                write_shard(folder, shard, (samples[index] for index in manifest.indices(shard)), counts[shard])
            except OSError as error:
                raise OSError(
                    f"cannot write {tar_path(folder, shard)}: {error.strerror}; {progress_line(folder, manifest)} and "
                    "stay: make room and run the same command again"
                ) from error
    if bad:
        first = "; ".join(f"{name}: {what}" for name, what in list(bad.items())[:3])
        logger.warning("bad pictures: %d, and others took their places: %s", len(bad), first)
    logger.info("%s; train with --data.shards %s", progress_line(folder, manifest), folder)


def batches(manifest: Manifest, shards: list[int], examples: JointExamples, size: int) -> Iterator[list[int]]:
    """The examples of each shard in batches of one bucket; no batch has examples of two shards."""
    for shard in shards:
        waiting: dict[int, list[int]] = {}
        for index in manifest.indices(shard):
            batch = waiting.setdefault(examples.bucket(index), [])
            batch.append(index)
            if len(batch) == size:
                yield waiting.pop(examples.bucket(index))
        yield from waiting.values()


def is_finished(folder: Path, manifest: Manifest, shard: int, verify: bool) -> bool:
    index = read_index(folder, shard, len(manifest.indices(shard)))
    if index is None or not verify:
        return index is not None
    path = tar_path(folder, shard)
    if file_hash(path) == index["checksum"]:
        return True
    logger.warning("%s is damaged: it is made again", path)
    return False


def progress_line(folder: Path, manifest: Manifest) -> str:
    done = [shard for shard in range(manifest.shards) if read_index(folder, shard, len(manifest.indices(shard)))]
    size = sum(tar_path(folder, shard).stat().st_size for shard in done)
    return f"{len(done)} of {manifest.shards} shards in {str(folder)!r} are finished ({size / 1e9:.2f} GB)"


if __name__ == "__main__":
    main()
