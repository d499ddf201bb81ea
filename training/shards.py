"""Prepared examples in webdataset shards: latents' mean and deviation, and text, as a frozen model encodes them.

    manifest.json                  what they were made from, and how many there are
    shard-000000.tar               examples 0, 1, 2, ...: 000000000.json and 000000000.safetensors, and so on
    shard-000000.index.json        the size and checksum of that file, and where in it each example lies

A shard is finished when both of its files are there; they are written under other names first.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTokenizer

from training.config import TrainConfig
from training.datasets.pictures import UnusableData
from training.datasets.scenes import Scenes
from training.joint import JointExamples
from training.latents import Batch, token_numbers
from training.sources import SETTINGS, SourceConfig
from unigs.pipeline import UniGSPipeline
from unigs.tasks import Task

Facts = dict[str, Any]

FORMAT = 1
MANIFEST = "manifest.json"
ROOT = Path(__file__).resolve().parent.parent
# What makes examples and encodes them: another version of one of these files may make others.
CODE = (
    *("training/joint.py", "training/geometry.py", "training/latents.py", "training/sources.py"),
    *("training/datasets", "unigs/palette.py", "unigs/coarse_mask.py", "unigs/conditions.py", "unigs/tasks.py"),
)
# Settings of a model that change what it gives, beside its weights and their shapes.
VAE_SETTINGS = ("_class_name", "scaling_factor", "shift_factor", "act_fn", "norm_num_groups")
TEXT_SETTINGS = ("hidden_act", "num_attention_heads", "layer_norm_eps", "eos_token_id")
TENSORS = ("image_mean", "image_std", "colormap_mean", "colormap_std", "control", "mask", "text")


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    Attributes:
        facts: name -> what the examples were made from, see `fingerprint`.
        epoch_size: examples of an epoch.
        epochs: how many of them are prepared, or will be.
        shard_size: examples of a shard; the last one may have fewer.
        dtype: of the floating point tensors in the files, "float16" or "float32".
    """

    facts: Facts
    epoch_size: int
    epochs: int
    shard_size: int
    dtype: str

    @property
    def examples(self) -> int:
        return self.epoch_size * self.epochs

    @property
    def shards(self) -> int:
        return -(-self.examples // self.shard_size)

    def indices(self, shard: int) -> range:
        """The examples of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.examples))


def read_manifest(folder: Path) -> Manifest | None:
    """What the folder holds, None without a manifest. Raises ValueError if it cannot be read."""
    path = folder / MANIFEST
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged, or of another version ({error}): prepare into another folder") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    part = f"{MANIFEST}.{os.getpid()}.part"  # of a name of its own: every process writes the same
    _write(folder / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n", part)


# ------------------------------------------------------------------------------------------ what examples are made from


def fingerprint(config: TrainConfig, pipeline: UniGSPipeline, examples: JointExamples) -> Facts:
    """Name -> JSON value, of everything that decides what an example is.

    Pictures count by the name of their folder only, annotation files by their content.
    """
    mixture = examples.mixture
    facts: Facts = {
        "format": FORMAT,
        "code": code_hash(),
        "vae": model_hash(pipeline.vae, VAE_SETTINGS),
        "text_encoder": model_hash(pipeline.text_encoder, TEXT_SETTINGS) if config.text_encoder_is_frozen else None,
        "tokenizer": tokenizer_hash(pipeline.tokenizer) if config.text_encoder_is_frozen else None,
        "seed": mixture.seed,
        "tasks": mixture.tasks,
        "task_ratios": list(mixture.ratios.values()),
        "palette": examples.palette.to_config(),
        "conditioning_dropout_prob": examples.caption_dropout,
        "data.negatives": examples.negatives,
        "data.words_only": examples.words_only,
        "data.stuff_asked": examples.stuff_asked,
        "aspect buckets": examples.buckets,
    }
    if examples.geometry is not None:
        facts |= {f"geometry.{name}": value for name, value in asdict(examples.geometry).items()}
    chosen = {name: source for name, source in config.data.sources.items() if set(source.tasks) & set(config.tasks)}
    facts["data.sources"] = list(chosen)
    for (name, source), opened in zip(chosen.items(), mixture.sources, strict=True):
        facts |= {f"data.sources.{name}.{setting}": value for setting, value in _source_facts(source).items()}
        if isinstance(opened.dataset, Scenes):
            facts[f"data.sources.{name}.sprites"] = _sprites_hash(opened.dataset)
    return json.loads(json.dumps(facts))


def differences(then: Facts, now: Facts) -> str:
    """What differs, in a few words; "" if nothing does."""
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    told = [_difference(name, then.get(name), now.get(name)) for name in names[:3]]
    more = [f"and {len(names) - 3} more"] if len(names) > 3 else []
    return "; ".join(told + more)


def code_hash() -> str:
    """Of the text of the files `CODE`, whatever their line endings."""
    digest = hashlib.sha256()
    for name in CODE:
        path = ROOT / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\n")
            digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return _name_of(digest)


def model_hash(model: nn.Module, settings: tuple[str, ...]) -> str:
    """Of the weights, in float32 and in their order, and of some settings."""
    config: Any = model.config
    values = dict(config) if isinstance(config, dict) else config.to_dict()
    digest = hashlib.sha256(json.dumps([values.get(name) for name in settings]).encode())
    for weight in model.parameters():
        digest.update(str(tuple(weight.shape)).encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return _name_of(digest)


def tokenizer_hash(tokenizer: CLIPTokenizer) -> str:
    vocabulary = sorted(tokenizer.get_vocab().items())
    parts = [vocabulary, tokenizer.model_max_length, tokenizer.pad_token_id]
    return _name_of(hashlib.sha256(json.dumps(parts).encode()))


def _source_facts(source: SourceConfig) -> Facts:
    required, optional = SETTINGS[source.type]
    names = ("type", "tasks", "weight", *required, *optional)
    return {item.name: _value(getattr(source, item.name)) for item in fields(source) if item.name in names}


def _value(value: Any) -> Any:
    """A file is its size and checksum, a folder its name."""
    if isinstance(value, tuple):
        return [_value(item) for item in value]
    if not isinstance(value, Path):
        return value
    return f"{value.stat().st_size} bytes, {file_hash(value)}" if value.is_file() else value.resolve().name


def _sprites_hash(scenes: Scenes) -> str:
    digest = hashlib.sha256()
    for noun, sprite in scenes.library.sprites.items():
        digest.update(f"{noun} {sprite.size}".encode() + sprite.tobytes())
    return _name_of(digest)


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return _name_of(digest)


def _name_of(digest: Any) -> str:
    return "sha256 " + digest.hexdigest()[:32]


def _difference(name: str, then: Any, now: Any) -> str:
    if "sha256" in str(then) and "sha256" in str(now):
        return f"{name} has changed"
    return f"{name} is {_short(now)}, was {_short(then)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ------------------------------------------------------------------------------------------------------ writing shards


@dataclass(frozen=True)
class Sample:
    """An example in a shard.

    Attributes:
        facts: task, prompt, nouns, bucket, height and width in pixels.
        tensors: those of `TENSORS` that it needs.
    """

    index: int
    facts: Facts
    tensors: Batch

    def files(self) -> dict[str, Any]:
        """What webdataset's TarWriter takes."""
        facts = json.dumps({"index": self.index, **self.facts}, ensure_ascii=False)
        return {
            "__key__": f"{self.index:09d}",
            "json": facts.encode(),
            "safetensors": safetensors.torch.save(self.tensors),
        }


def tar_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:06d}.tar"


def index_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:06d}.index.json"


def write_shard(folder: Path, shard: int, samples: Iterable[Sample], count: int) -> None:
    """Write both files of a shard. They appear under their names when they are whole, the index last.

    Raises OSError if the disk is full, ValueError if the file does not read as it was written.
    """
    from webdataset.writer import TarWriter  # reading needs only the standard library

    path = tar_path(folder, shard)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            with TarWriter(file, user="unigs", mtime=0, encoder=False) as archive:
                for sample in samples:
                    archive.write(sample.files())
            file.flush()
            os.fsync(file.fileno())
        index = index_of(part)
        if len(index["places"]) != count:
            raise ValueError(f"{part} holds {len(index['places'])} of {count} examples: does another process write it?")
        index_path(folder, shard).unlink(missing_ok=True)
        part.replace(path)
        _write(index_path(folder, shard), json.dumps(index), f"{path.name}.part")
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def index_of(tar: Path) -> Facts:
    """`size` in bytes and `checksum` of a shard, and for each of its examples the `buckets` and `places`.

    A place is the offset and size of the JSON, and the offset and size of the tensors, in bytes.

    Raises ValueError if it is no shard.
    """
    places, buckets = [], []
    try:
        with tarfile.open(tar) as archive:
            members = archive.getmembers()
            for about, tensors in zip(members[::2], members[1::2], strict=True):
                if about.name.removesuffix(".json") != tensors.name.removesuffix(".safetensors"):
                    raise ValueError(f"{about.name} and {tensors.name} lie together")
                file: Any = archive.extractfile(about)
                buckets.append(json.load(file)["bucket"])
                places.append([about.offset_data, about.size, tensors.offset_data, tensors.size])
    except (tarfile.TarError, ValueError, KeyError) as error:
        raise ValueError(f"{tar} is damaged: {error}") from None
    return {"size": tar.stat().st_size, "checksum": file_hash(tar), "buckets": buckets, "places": places}


def read_index(folder: Path, shard: int, count: int) -> Facts | None:
    """What `index_of` gave when the shard was written; None if it is not finished, cut off, or has not `count`
    examples."""
    try:
        index = json.loads(index_path(folder, shard).read_text(encoding="utf-8"))
        whole = tar_path(folder, shard).stat().st_size == index["size"] and len(index["places"]) == count
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return index if whole else None


def _write(path: Path, text: str, name: str) -> None:
    """Write a file that is never seen half written; it has another name until it is whole."""
    part = path.with_name(name)
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


# ------------------------------------------------------------------------------------------------------ reading shards


class ShardedExamples:
    """Examples from shards, by index without end, as `ExampleSource` of training/loading.py.

    The first time through, example i is the one that the data sets' own files give for i. After that the prepared
    examples come again, each once a pass, in another order: shards are drawn, then the examples within each.

    A file is opened for each example that is read, so workers share nothing.

    Args:
        folder: of the shards.
        facts: what the examples must have been made from.
        tokenizer: of prompts whose text is not cached.

    Raises ValueError or FileNotFoundError with one line if there are none, not all, or other ones.
    """

    def __init__(self, folder: Path, facts: Facts, tokenizer: CLIPTokenizer):
        manifest = read_manifest(folder)
        if manifest is None:
            raise FileNotFoundError(
                f"data.shards: no {MANIFEST} in {str(folder)!r}: run `python -m training.prepare --shards {folder}` "
                "with the settings of the training"
            )
        if different := differences(manifest.facts, facts):
            raise ValueError(
                f"data.shards: those in {str(folder)!r} were made from something else: {different}. "
                "Prepare again into another folder, or train with the settings they were made from"
            )
        self.folder, self.manifest, self.tokenizer = folder, manifest, tokenizer
        self.epoch_size, self.seed = manifest.epoch_size, facts["seed"]
        indices = [read_index(folder, shard, len(manifest.indices(shard))) for shard in range(manifest.shards)]
        missing = [shard for shard, index in enumerate(indices) if index is None]
        if missing:
            raise ValueError(
                f"data.shards: {len(missing)} of {manifest.shards} shards in {str(folder)!r} are missing or cut off, "
                f"{tar_path(folder, missing[0]).name} first: run training.prepare again, it makes only these"
            )
        self._buckets = np.concatenate([np.array(index["buckets"], np.int16) for index in indices if index])
        self._places = np.concatenate([np.array(index["places"], np.int64) for index in indices if index])
        self.prepared: int | None = len(self._places)
        self._orders: dict[int, np.ndarray] = {}

    def bucket(self, index: int) -> int:
        return int(self._buckets[self.number(index)])

    def tensors(self, index: int) -> Batch:
        """What `encode_batch` makes of one example, in float32, and `text` (L, C) or `input_ids` (L,).

        Raises UnusableData if the shard is damaged.
        """
        facts, stored = self.sample(index)
        task = Task(facts["task"])
        image, colormap = stored["image_mean"].float(), stored["colormap_mean"].float()
        control = {"image": image, "colormap": colormap}.get(task.spec.control)
        tensors = {
            "image_mean": image,
            "image_std": stored["image_std"].float() if "image_std" in stored else torch.zeros_like(image),
            "colormap_mean": colormap,
            "colormap_std": stored["colormap_std"].float() if "colormap_std" in stored else torch.zeros_like(colormap),
            "control": stored["control"].float() if control is None else control,
            "mask": stored["mask"].float(),
            "task": torch.tensor(task.spec.id),
        }
        if "text" in stored:
            return {**tensors, "text": stored["text"].float()}
        return {**tensors, "input_ids": token_numbers(self.tokenizer, facts["prompt"])}

    def sample(self, index: int) -> tuple[Facts, Batch]:
        """The facts and the tensors of an example as they are in its shard."""
        number = self.number(index)
        path = tar_path(self.folder, number // self.manifest.shard_size)
        begin, length, tensors_begin, tensors_length = self._places[number].tolist()
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            content = file.read(tensors_begin + tensors_length - begin)
        try:
            facts = json.loads(content[:length])
            if facts["index"] != number:
                raise ValueError(f"example {facts['index']} lies where {number} should")
            return facts, safetensors.torch.load(content[tensors_begin - begin :])
        except (ValueError, KeyError, SafetensorError) as error:
            raise UnusableData(f"{path} is damaged ({error}): run training.prepare again with --verify") from None

    def number(self, index: int) -> int:
        """Which of the prepared examples comes at `index`."""
        turn, place = divmod(index, len(self._places))
        return int(self._order(turn)[place]) if turn else place

    def _order(self, turn: int) -> np.ndarray:
        """(N,) int64: the examples in the order of a pass. The last two orders are held."""
        if turn not in self._orders:
            self._orders.pop(turn - 2, None)
            rng = np.random.default_rng([self.seed, 6, turn])
            shards = rng.permutation(self.manifest.shards).tolist()
            self._orders[turn] = np.concatenate([rng.permutation(self.manifest.indices(shard)) for shard in shards])
        return self._orders[turn]


def stored_tensors(encoded: Batch, task: Task, has_deviation: bool, dtype: torch.dtype) -> Batch:
    """Of an encoded example what a shard must keep; the rest follows from it.

    Args:
        encoded: one example of `encode_batch`, and perhaps `text`.
        has_deviation: whether the VAE has one: without, it is 0.
    """
    left_out = {"task", *(() if task.spec.control == "image with hole" else ("control",))}
    left_out |= set() if has_deviation else {"image_std", "colormap_std"}
    kept: dict[str, Tensor] = {}
    for name, value in encoded.items():
        if name in TENSORS and name not in left_out:
            kept[name] = value.to("cpu", torch.uint8 if name == "mask" else dtype).contiguous()
    return kept


def split_batch(batch: Batch) -> Iterator[Batch]:
    """Its examples, one by one."""
    count = len(next(iter(batch.values())))
    return ({name: value[row] for name, value in batch.items()} for row in range(count))
