import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from training import train_joint
from training.config import load_config
from training.evaluate import intersection_over_union, match_entities
from training.model import build_tokenizer
from training.muon import Muon, orthogonalize, split_parameters
from unigs.pipeline import UniGSPipeline
from unigs.tasks import Task

TINY = "training/configs/tiny.toml"
SMALL = [
    *("--config", TINY, "--resolution", "32", "--train-batch-size", "4", "--max-train-steps", "4", "--cpu"),
    *("--checkpointing-steps", "2", "--validation-steps", "4", "--dataloader-num-workers", "0"),
    *("--model.block-out-channels", "16", "32", "--model.attention-levels", "1", "--model.text-width", "32"),
    *("--autoencoder.channels", "8", "--autoencoder.max-train-steps", "3", "--autoencoder.crop", "32"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """With several, the order of sums may change under load, and bit-equal weights cannot be asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(sprites, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    train_joint.main([*SMALL, "--output-dir", str(out), "--data.sprites", str(sprites)])
    return out


def test_what_a_run_leaves_behind(run):
    assert [path.name for path in train_joint.checkpoints(run)] == ["checkpoint-000002", "checkpoint-000004"]
    assert json.loads((run / "config.json").read_text())["resolution"] == 32
    assert list((run / "logs").rglob("events.out.tfevents.*"))
    sheet = Image.open(run / "validation-000004.png")
    assert sheet.size == (8 * 32, 4 * 3 * 32)
    pipe = UniGSPipeline.from_pretrained(run / "pipeline")
    assert pipe.default_size == 32 and pipe.palette.grid == 5
    assert pipe.defaults("entity")["num_inference_steps"] == 1
    weights = load_file(run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (run / "pipeline" / "tokenizer").iterdir()}
    out = pipe("entity", image=Image.new("RGB", (32, 32)))
    assert out.images[0].size == (32, 32)


def test_a_resumed_run_ends_with_the_same_weights(run, sprites, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(run, out)
    shutil.rmtree(out / "checkpoint-000004")
    shutil.rmtree(out / "pipeline")
    train_joint.main([*SMALL, "--output-dir", str(out), "--data.sprites", str(sprites)])
    for name in ("model.safetensors",):
        straight, resumed = (load_file(folder / "checkpoint-000004" / name) for folder in (run, out))
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    straight, resumed = (
        load_file(folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors") for folder in (run, out)
    )
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)  # the averaged weights too


def test_wrong_settings_end_with_one_line(tmp_path, sprites):
    with pytest.raises(SystemExit, match="expected a TOML file"):
        load_config(["--config", str(tmp_path / "none.toml")])
    (tmp_path / "a.toml").write_text("resolutoin = 3")
    with pytest.raises(SystemExit, match="unknown setting 'resolutoin'; expected one of .*resolution"):
        load_config(["--config", str(tmp_path / "a.toml")])
    (tmp_path / "a.toml").write_text("resolution = 'big'")
    with pytest.raises(SystemExit, match="resolution = 'big' should be of type int"):
        load_config(["--config", str(tmp_path / "a.toml")])
    with pytest.raises(SystemExit, match="--resume-from-checkpoint: nowhere is not a folder"):
        folders = ["--output-dir", str(tmp_path), "--data.sprites", str(sprites)]
        train_joint.main([*SMALL, *folders, "--resume-from-checkpoint", "nowhere"])


def test_the_command_line_overrides_the_file():
    config = load_config(["--config", TINY, "--palette.grid", "3", "--learning-rate", "0.5", "--tasks", "entity"])
    assert config.palette.grid == 3 and config.palette.order == "smooth"
    assert config.learning_rate == 0.5 and config.tasks == (Task.ENTITY,)


def test_streams_that_copy_the_control_weigh_less():
    order = [task.spec.id for task in Task]
    weights = train_joint.stream_weights(torch.tensor(order), 0.2)
    assert weights.tolist() == [[1, 1], [1, pytest.approx(0.2)], [pytest.approx(0.2), 1], [pytest.approx(0.2), 1]]


def test_timesteps_are_often_the_last_and_later_for_painting():
    generator = torch.Generator().manual_seed(0)
    tasks = torch.arange(4000) % 4
    timesteps = train_joint.draw_timesteps(tasks, 1000, 0.3, generator)
    last = [(timesteps[tasks == i] == 999).float().mean().item() for i in range(4)]
    assert last == [pytest.approx(0.3, abs=0.05)] * 4
    assert timesteps.min() >= 0 and timesteps.max() == 999
    means = [timesteps[(tasks == i) & (timesteps < 999)].float().mean().item() for i in range(4)]
    assert means == [pytest.approx(1000 * 2 / 3, abs=30)] * 2 + [pytest.approx(500, abs=30)] * 2


def test_muon_orthogonalises_and_descends():
    torch.manual_seed(0)
    for shape in ((3, 16, 64), (3, 64, 16), (1, 8, 8)):
        singular = torch.linalg.svdvals(orthogonalize(torch.randn(shape), 5))
        assert 0.5 < singular.min() and singular.max() < 1.3
    conv = torch.nn.Conv2d(4, 8, 3)
    matrices, others = split_parameters(torch.nn.Sequential(conv, torch.nn.Embedding(3, 4), torch.nn.GroupNorm(2, 8)))
    assert [tuple(matrix.shape) for matrix in matrices] == [(8, 4, 3, 3)] and len(others) == 4
    optimizer, x = Muon(matrices, lr=0.05), torch.randn(16, 4, 3, 3)
    target = x.flatten(1) @ torch.randn(36, 8)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (conv(x).flatten(1) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_known_words_are_one_token_and_others_fall_to_pieces(tmp_path):
    config = load_config(["--config", TINY]).model
    tokenizer = build_tokenizer(tmp_path, train_joint.prompt_words(), config)
    assert len(tokenizer) <= config.vocabulary
    assert all(len(tokenizer.tokenize(word)) == 1 for word in train_joint.prompt_words())
    again = build_tokenizer(tmp_path / "again", train_joint.prompt_words(), config)
    assert again.get_vocab() == tokenizer.get_vocab()
    text = "synthesis: generate dog, 2 cats and penguin on grass."
    assert tokenizer.tokenize(text) == [
        *("synthesis</w>", ":</w>", "generate</w>", "dog</w>", ",</w>", "2</w>", "cats</w>", "and</w>"),
        *("penguin</w>", "on</w>", "grass</w>", ".</w>"),
    ]
    assert len(tokenizer.tokenize("xylophone")) > 1
    assert tokenizer("Dog").input_ids == tokenizer("dog").input_ids
    assert tokenizer("dog").input_ids[0] == tokenizer.bos_token_id == len(tokenizer) - 2
    assert tokenizer("dog").input_ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id


def test_matching():
    truth = np.zeros((2, 4, 4), bool)
    truth[0, :2], truth[1, 2:] = True, True
    assert match_entities(truth[::-1], truth).tolist() == [1, 1]
    assert match_entities(truth[:1], truth).tolist() == [1, 0]
    assert match_entities(truth[:0], truth).tolist() == [0, 0]
    empty = np.zeros((1, 4, 4), bool)
    assert intersection_over_union(empty, empty)[0, 0] == 1 and intersection_over_union(empty, truth[:1])[0, 0] == 0
