import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from training.perceptual import ClipScore, Fid, Lpips, open_lpips, open_networks, read_weights

CPU = torch.device("cpu")


class Means(nn.Module):
    """A stand-in for Inception: the mean of each channel, in each quarter."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.dtype == torch.uint8 and pixels.shape[1:] == (3, 299, 299)
        return nn.functional.adaptive_avg_pool2d(pixels.float(), 2).flatten(1)


def random_picture(rng: np.random.Generator, size: tuple[int, int] = (40, 50)) -> np.ndarray:
    return rng.integers(0, 256, (*size, 3), np.uint8)


def test_fid_of_equal_pictures_is_zero_and_of_shifted_ones_the_shift():
    rng = np.random.default_rng(0)
    pictures = [60 + random_picture(rng, (int(size), 40)) // 4 for size in rng.integers(30, 60, 20)]
    same, brighter = Fid(Means()), Fid(Means())
    for picture in pictures:
        same.add(picture, picture)
        brighter.add(picture, picture + np.uint8(10))
    assert same.measure().value == pytest.approx(0, abs=1e-6)
    # the covariances are equal; each of the 12 means differs by 10
    assert brighter.measure().value == pytest.approx(12 * 10**2, rel=1e-3)
    assert brighter.measure().pictures == 20 and brighter.measure().interval is None


def test_fid_without_weights_or_pictures_says_what_to_do():
    fid = Fid(None)
    fid.add(*[random_picture(np.random.default_rng(0))] * 2)
    assert fid.measure().value is None and "--inception-weights" in fid.measure().not_run
    assert "two pictures" in Fid(Means()).measure().not_run


def test_lpips_is_that_of_torchmetrics(alexnet, monkeypatch):
    from torchmetrics.functional.image import lpips as theirs

    ours = open_lpips(alexnet)
    # the backbone is torchvision's, which need not be installed: ours has the same layers under the same numbers
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained: [*ours.features])
    oracle = theirs._LPIPS(net="alex", pnet_rand=True)
    x, y = torch.rand(2, 3, 3, 70, 90)
    with torch.no_grad():
        expected = oracle(2 * x - 1, 2 * y - 1).flatten()
    assert expected.min() > 1e-3
    torch.testing.assert_close(ours(x, y), expected, rtol=1e-4, atol=1e-6)
    assert ours(x, x).abs().max() == 0


def test_lpips_takes_small_pictures(alexnet):
    rng = np.random.default_rng(0)
    small = [random_picture(rng, (9, 40)) for _ in range(2)]
    assert open_lpips(alexnet).of(*small) > 0


def test_clip_score_is_a_hundred_times_the_cosine(clip_folder):
    score = ClipScore(clip_folder, CPU)
    picture = random_picture(np.random.default_rng(0))
    found = score(picture, "dog and cat")
    pixels = score.processor(images=[picture], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        seen = score.model.vision_model(pixels).pooler_output @ score.model.visual_projection.weight.T
        read = score.model.text_model(**score.tokenizer(["dog and cat"], return_tensors="pt")).pooler_output
        read = read @ score.model.text_projection.weight.T
    cosine = float((seen / seen.norm() * read / read.norm()).sum())
    assert found == pytest.approx(max(0, 100 * cosine), abs=1e-3)
    scores = [score(picture, text) for text in ("dog", "cat", "a " * 40)]  # the last is cut to what the model takes
    assert len(set(scores)) == 3 or max(scores) == 0


def test_networks_are_opened_from_files_alone(alexnet, clip_folder, tmp_path):
    networks = open_networks(None, alexnet, clip_folder, CPU)
    assert networks.inception is None and networks.lpips is not None and networks.clip is not None
    save_file(torch.load(alexnet), tmp_path / "alexnet.safetensors")
    assert open_networks(None, tmp_path / "alexnet.safetensors", None, CPU).lpips is not None


class Evil:
    def __reduce__(self):
        return print, ("this must never be run",)


@pytest.mark.parametrize("option", ["inception-weights", "lpips-weights", "clip-model"])
@pytest.mark.parametrize("content", ["missing", "text", "pickle", "list", "safetensors", "other tensors"])
def test_wrong_weights_are_told_in_one_line(option, content, tmp_path, capfd):
    path = tmp_path / ("weights.safetensors" if content == "safetensors" else "weights.pth")
    if content in ("text", "safetensors"):
        path.write_text("not weights at all")
    elif content != "missing":
        torch.save({"pickle": {"a": Evil()}, "list": [1, 2]}.get(content, {"a": torch.zeros(2)}), path)
    if option == "clip-model" and content != "missing":
        path = tmp_path  # a folder without a model
    names = ("inception-weights", "lpips-weights", "clip-model")
    with pytest.raises(ValueError) as error:
        open_networks(*(path if name == option else None for name in names), CPU)
    message = str(error.value)
    assert message.startswith(f"--{option} {path}: ") and "\n" not in message
    assert "never be run" not in capfd.readouterr().out


def test_weights_must_be_complete(alexnet):
    state = read_weights(alexnet)
    linear = {f"lin{i}.model.1.weight": torch.zeros(1, n, 1, 1) for i, n in enumerate((64, 192, 384, 256, 256))}
    assert Lpips(state, linear)(*torch.rand(2, 1, 3, 64, 64)).item() == 0
    del state["features.3.bias"]
    with pytest.raises(ValueError, match="features.3.bias"):
        Lpips(state, linear)
