import numpy as np
import pytest

from training.datasets.scenes import HELD_OUT_KINDS, KINDS, PLACES, Scenes, SpriteLibrary, fetch_sprites


def test_the_split_by_identity_is_disjoint():
    assert not set(KINDS) & set(HELD_OUT_KINDS)
    assert not set(KINDS.values()) & set(HELD_OUT_KINDS.values())


def test_a_scene_is_a_function_of_split_and_index(scenes, sprites):
    again = Scenes(SpriteLibrary(sprites, KINDS), 64, "train")
    other = Scenes(SpriteLibrary(sprites, KINDS), 64, "heldout")
    for index in range(5):
        assert np.array_equal(scenes[index].image, again[index].image)
        assert not np.array_equal(scenes[index].image, other[index].image)


def test_masks_are_exact_and_named(scenes):
    counts = set()
    for index in range(40):
        record = scenes[index]
        counts.add(len(record.labels))
        assert record.image.shape == (64, 64, 3) and record.image.dtype == np.uint8
        assert record.masks.shape == (len(record.labels), 64, 64) and record.masks.dtype == bool
        assert record.masks.sum(0).max() <= 1  # no two overlap
        assert record.masks.any((1, 2)).all()
        assert len(set(record.labels)) == len(record.labels) and set(record.labels) <= set(KINDS)
        assert record.place in PLACES and record.key == f"scenes/train/{index}"
    assert counts == {1, 2, 3}


def test_wrong_input(sprites, tmp_path):
    with pytest.raises(FileNotFoundError, match="no sprite 1f436.webp for 'dog'.*python -m training.datasets.scenes"):
        SpriteLibrary(tmp_path, KINDS)
    with pytest.raises(ValueError, match="unknown split 'test'"):
        Scenes(SpriteLibrary(sprites, KINDS), 64, "test")


def test_fetching_without_npm_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="npm is needed"):
        fetch_sprites(tmp_path / "sprites")
