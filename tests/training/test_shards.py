import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import webdataset
from safetensors.torch import load
from torch.utils.data import DataLoader

from tests.training.fixtures import write_refcoco
from training import prepare, shards, train_joint
from training.datasets.pictures import UnusableData
from training.latents import encode_batch
from training.loading import BatchPlan, TrainingData, example_source, open_mixture, stack
from training.shards import ShardedExamples
from training.sources import SourceConfig
from training.start import start_pipeline
from unigs.tasks import Task

CPU = torch.device("cpu")
SMALL = ("--resolution", "32", "--cpu", "--report-to", "none", "--dataloader-num-workers", "0", "--shard-size", "8")
NOTHING = [
    *("--model.block-out-channels", "16", "32", "--model.attention-levels", "1", "--model.text-width", "32"),
    *("--autoencoder.channels", "8", "--autoencoder.max-train-steps", "2", "--autoencoder.crop", "32"),
]


pytestmark = pytest.mark.usefixtures("one_thread", "fresh_process")


@pytest.fixture(scope="module")
def scenes_settings(sprites, inpainting_model, tmp_path_factory):
    """Command line: 20 scenes an epoch, two epochs, an AutoencoderKL and a frozen text encoder."""
    file = tmp_path_factory.mktemp("settings") / "scenes.toml"
    file.write_text(f'[data.sources.scenes]\ntype = "scenes"\nlength = 20\nsprites = "{sprites}"\n')
    model = ("--pretrained-model-name-or-path", str(inpainting_model))
    return ["--config", str(file), *SMALL, *model, "--epochs", "2", "--output-dir", str(file.parent / "out")]


@pytest.fixture(scope="module")
def coco_settings(inpainting_model, tmp_path_factory):
    """Command line: pictures of many shapes, in aspect buckets, with sentences."""
    folder = tmp_path_factory.mktemp("coco")
    paths = write_refcoco(folder)
    file = folder / "coco.toml"
    files = f'instances = "{paths["instances"]}"\npictures = "{paths["pictures"]}"\n'
    file.write_text(
        f"[data]\naspect_buckets = true\nmin_pixels = 1\n"
        f'[data.sources.ref]\ntype = "refcoco"\nannotations = "{paths["pickle 2"]}"\n{files}tasks = ["referring"]\n'
        f'[data.sources.coco]\ntype = "coco_instances"\n{files.replace("instances", "annotations", 1)}'
        'tasks = ["inpainting", "synthesis", "entity"]\n'
    )
    model = ("--pretrained-model-name-or-path", str(inpainting_model))
    return ["--config", str(file), *SMALL, *model, "--epochs", "4", "--output-dir", str(folder / "out")]


def opened(command: list[str], folder: Path | None):
    """The settings, and the source of examples as the trainer opens it."""
    config = prepare.load_prepare_config(command)
    config.data.shards = folder
    mixture = open_mixture(config)
    pipeline = start_pipeline(config, mixture, CPU)
    return config, pipeline, example_source(config, pipeline, mixture)


@pytest.fixture(scope="module")
def scenes_shards(scenes_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    prepare.main([*scenes_settings, "--shards", str(folder)])
    return folder


def compare(command: list[str], folder: Path, count: int, exact: bool) -> set[tuple[int, ...]]:
    """Examples from shards are those from the files; the sizes of their latents."""
    config, pipeline, cached = opened(command, folder)
    raw = opened(command, None)[2]
    assert isinstance(cached, ShardedExamples) and cached.epoch_size == raw.epoch_size
    vae, sizes = pipeline.vae.eval(), set()
    for index in range(count):
        pixels = raw.tensors(index)
        expected = {name: value[0] for name, value in encode_batch(vae, stack([pixels])).items()}
        if config.pretrained_model_name_or_path is not None:
            with torch.no_grad():
                ids = expected.pop("input_ids")
                expected["text"] = pipeline.text_encoder.eval()(ids[None]).last_hidden_state[0]
        tensors = cached.tensors(index)
        assert {name: (value.shape, value.dtype) for name, value in tensors.items()} == {
            name: (value.shape, value.dtype) for name, value in expected.items()
        }
        assert cached.bucket(index) == raw.bucket(index)
        for name in {"mask", "task", "input_ids"} & tensors.keys():
            assert torch.equal(tensors[name], expected[name])
        for name in tensors.keys() - {"mask", "task", "input_ids"}:
            tolerance = 1e-4 if exact else 1e-3
            assert torch.allclose(tensors[name], expected[name], rtol=tolerance, atol=tolerance), name
        assert cached.sample(index)[0]["prompt"] == raw.examples[index].prompt
        sizes.add(tuple(tensors["image_mean"].shape))
    factor = pipeline.vae_scale_factor
    for index in (3, 100):  # also those that are read for a second time are noised anew
        one, other = (TrainingData(source, config, factor, pipeline.scheduler) for source in (raw, cached))
        if index < count:
            assert all(torch.equal(one[index][n], other[index][n]) for n in ("noise", "posterior_noise", "timestep"))
        else:
            assert other[index]["noise"].shape[1:] == other[index]["image_mean"].shape[1:]
    return sizes


def test_they_are_what_the_files_give(scenes_settings, scenes_shards):
    assert compare(scenes_settings, scenes_shards, 40, exact=False) == {(4, 16, 16)}


def test_in_float32_exactly(scenes_settings, tmp_path):
    command = [*scenes_settings, "--epochs", "1", "--cache-dtype", "float32"]
    prepare.main([*command, "--shards", str(tmp_path)])
    compare(command, tmp_path, 20, exact=True)


def test_in_aspect_buckets_with_sentences(coco_settings, tmp_path):
    prepare.main([*coco_settings, "--shards", str(tmp_path)])
    assert len(compare(coco_settings, tmp_path, 28, exact=False)) >= 3
    config, pipeline, source = opened(coco_settings, tmp_path)
    data = TrainingData(source, config, pipeline.vae_scale_factor, pipeline.scheduler)
    loader = DataLoader(data, batch_sampler=BatchPlan(source.bucket, 3), collate_fn=stack, num_workers=1)
    for batch, _ in zip(loader, range(20), strict=False):  # more than once through, in a worker, every size its own
        assert batch["noise"].shape[2:] == batch["image_mean"].shape[2:] and len(batch["task"]) == 3


def test_a_model_from_nothing_gets_token_numbers(scenes_settings, tmp_path):
    command = [*scenes_settings, "--output-dir", str(tmp_path / "out"), *NOTHING, "--epochs", "1"]
    del command[(at := command.index("--pretrained-model-name-or-path")) : at + 2]
    prepare.main([*command, "--shards", str(tmp_path / "shards")])
    compare(command, tmp_path / "shards", 20, exact=False)
    with tarfile.open(tmp_path / "shards" / "shard-000000.tar") as archive:
        stored = load(archive.extractfile("000000003.safetensors").read())
    assert set(stored) <= {"image_mean", "colormap_mean", "control", "mask"}  # its deviation is 0, its text is trained
    assert not opened(command, tmp_path / "shards")[2].tensors(0)["image_std"].any()


def test_a_shard_is_a_plain_webdataset(scenes_shards):
    paths = sorted(map(str, scenes_shards.glob("*.tar")))
    assert [Path(path).name for path in paths] == [f"shard-{i:06d}.tar" for i in range(5)]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(40)]
    for sample in samples:
        facts, tensors = json.loads(sample["json"]), load(sample["safetensors"])
        assert {"index", "task", "prompt", "nouns", "bucket", "height", "width"} == set(facts)
        assert ("control" in tensors) == (facts["task"] == "inpainting")
        assert tensors["mask"].dtype == torch.uint8 and tensors["text"].dtype == torch.float16
        assert tensors["image_mean"].dtype == tensors["image_std"].dtype == torch.float16


def test_later_passes_have_every_example_once_in_another_order(scenes_settings, scenes_shards):
    source = opened(scenes_settings, scenes_shards)[2]
    passes = [[source.number(turn * 40 + place) for place in range(40)] for turn in range(4)]
    assert passes[0] == list(range(40))
    assert all(sorted(order) == passes[0] for order in passes)
    assert len(set(map(tuple, passes))) == 4
    for order in passes:  # reads stay within a shard until it is through
        assert sum(one // 8 != other // 8 for one, other in zip(order, order[1:], strict=False)) == 4
    again = pickle.loads(pickle.dumps(source))
    assert [again.number(index) for index in (159, 40, 3)] == [source.number(index) for index in (159, 40, 3)]
    assert torch.equal(again.tensors(77)["image_mean"], source.tensors(source.number(77))["image_mean"])


@pytest.mark.parametrize(
    "change, told",
    [
        (["--seed", "1"], "seed is 1, was 0"),
        (["--palette.grid", "5"], "palette is .*, was "),
        (["--conditioning-dropout-prob", "0.2"], "conditioning_dropout_prob is 0.2, was 0.1"),
        (["--data.negatives", "0.3"], "data.negatives is 0.3"),
        (["--no-random-flip"], "geometry.flip is 0.0, was 0.5"),
        (["--tasks", "entity"], "tasks is .*entity.*, was "),
        (["--resolution", "48"], "geometry.size"),
        (["--data.aspect-buckets"], "aspect buckets"),
    ],
)
def test_shards_of_other_settings_are_refused(scenes_settings, scenes_shards, change, told):
    with pytest.raises(ValueError, match=rf"made from something else: .*{told}.*another folder, or train with"):
        opened([*scenes_settings, *change], scenes_shards)


def test_settings_that_make_no_other_examples_do_not_matter(scenes_settings, scenes_shards):
    more = ["--learning-rate", "1", "--train-batch-size", "7", "--snr-gamma", "5", "--max-train-steps", "9"]
    opened([*scenes_settings, *more], scenes_shards)


def test_stale_caches_are_refused(scenes_settings, scenes_shards, monkeypatch):
    config = prepare.load_prepare_config(scenes_settings)
    config.data.shards = scenes_shards
    mixture = open_mixture(config)
    for part, name in (("vae", "encoder.conv_in.bias"), ("text_encoder", None)):
        pipeline = start_pipeline(config, mixture, CPU)
        model = getattr(pipeline, part)
        value = next(model.parameters()) if name is None else model.get_parameter(name)
        value.data.view(-1)[0] += 1e-3
        with pytest.raises(ValueError, match=f"something else: {part} has changed. Prepare again"):
            example_source(config, pipeline, mixture)
    pipeline = start_pipeline(config, mixture, CPU)
    pipeline.vae.register_to_config(scaling_factor=0.5)
    with pytest.raises(ValueError, match="vae has changed"):
        example_source(config, pipeline, mixture)
    pipeline = start_pipeline(config, mixture, CPU)
    monkeypatch.setattr(shards, "CODE", (*shards.CODE, "training/muon.py"))
    with pytest.raises(ValueError, match="code has changed"):
        example_source(config, pipeline, mixture)


def test_code_is_the_same_with_other_line_endings(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROOT", tmp_path)
    monkeypatch.setattr(shards, "CODE", ("one.py", "folder"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "one.py").write_bytes(b"a = 1\nb = 2\n")
    (tmp_path / "folder" / "two.py").write_bytes(b"c = 3\n")
    before = shards.code_hash()
    (tmp_path / "one.py").write_bytes(b"a = 1\r\nb = 2\r\n")
    assert shards.code_hash() == before
    (tmp_path / "folder" / "two.py").write_bytes(b"c = 4\n")
    assert shards.code_hash() != before


def test_annotations_count_by_what_is_in_them(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("{}")
    source = SourceConfig(type="coco_instances", annotations=file, pictures=tmp_path / "train2017")
    facts = shards._source_facts(source)
    moved = tmp_path / "elsewhere" / "b.json"
    moved.parent.mkdir()
    moved.write_text("{}")
    there = replace(source, annotations=moved, pictures=tmp_path / "elsewhere" / "train2017")
    assert shards._source_facts(there) == facts
    moved.write_text("[]")
    assert "annotations" in shards.differences(facts, shards._source_facts(there))
    assert "tasks" in shards.differences(facts, shards._source_facts(replace(source, tasks=(Task.ENTITY,))))


def test_what_is_missing_or_damaged_is_named(scenes_settings, scenes_shards, tmp_path):
    with pytest.raises(FileNotFoundError, match="data.shards: no manifest.json in .*run `python -m training.prepare"):
        opened(scenes_settings, tmp_path)
    for file in scenes_shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tar = tmp_path / "shard-000002.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:-512])
    with pytest.raises(ValueError, match="1 of 5 shards in .* are missing or cut off, shard-000002.tar first"):
        opened(scenes_settings, tmp_path)
    place = json.loads((tmp_path / "shard-000002.index.json").read_text())["places"][1]
    tar.write_bytes(content[: place[2]] + b"\xff" * 64 + content[place[2] + 64 :])
    with pytest.raises(UnusableData, match=r"shard-000002.tar is damaged .*with --verify"):
        opened(scenes_settings, tmp_path)[2].tensors(17)
    with pytest.raises(ValueError, match="is damaged"):
        tar.write_bytes(b"no tar")
        shards.index_of(tar)
    tar.unlink()
    with pytest.raises(ValueError, match="1 of 5 shards"):
        opened(scenes_settings, tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="manifest.json is damaged, or of another version"):
        opened(scenes_settings, tmp_path)


def test_training_from_them_is_training_from_the_files(scenes_settings, scenes_shards, tmp_path):
    command = scenes_settings[: (at := scenes_settings.index("--shard-size"))] + scenes_settings[at + 2 :]
    del command[(at := command.index("--epochs")) : at + 2]
    more = ["--max-train-steps", "3", "--validation-steps", "0", "--logging-steps", "1", "--lr-warmup-steps", "0"]
    losses = []
    for name, source in (("files", []), ("shards", ["--data.shards", str(scenes_shards)])):
        out = tmp_path / name
        train_joint.main([*command, *more, *source, "--learning-rate", "1e-3", "--output-dir", str(out)])
        rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-4)
