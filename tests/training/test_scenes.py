import numpy as np
import pytest

from training.datasets.scenes import (
    HELD_OUT_KINDS,
    HELD_OUT_SPRITES,
    HORIZONS,
    KINDS,
    LIKE_HELD_OUT,
    OTHER_SPRITES,
    PHOTOGRAPH,
    PLACES,
    Scenes,
    Shadow,
    SpriteLibrary,
    fetch_sprites,
    things,
)


def test_the_split_by_identity_is_disjoint():
    assert not set(KINDS) & set(HELD_OUT_KINDS)
    assert set(OTHER_SPRITES) | set(HELD_OUT_SPRITES) <= set(KINDS)
    tables = [set(table.values()) for table in (KINDS, OTHER_SPRITES, HELD_OUT_KINDS, HELD_OUT_SPRITES)]
    assert len(set().union(*tables)) == sum(map(len, tables))


def test_things_are_named_by_unicode_and_hold_nothing_that_is_held_out(tmp_path):
    held_out = {*HELD_OUT_KINDS.values(), *HELD_OUT_SPRITES.values(), *LIKE_HELD_OUT}
    for code in (*held_out, "1f32d", "1f980", "1f600"):  # hot dog, crab; a face is no thing
        (tmp_path / f"{code}.webp").touch()
    assert things(tmp_path) == {"hot dog": "1f32d", "crab": "1f980"}
    with pytest.raises(FileNotFoundError, match="no sprites of things in .*python -m training.datasets.scenes"):
        things(tmp_path / "nowhere")


def test_nobody_may_ask_for_what_a_photograph_shows(scenes):
    shown = {scenes[index].also_present for index in range(200) if scenes[index].place == PHOTOGRAPH}
    assert shown == {frozenset(), frozenset({"cat"}), frozenset({"rocket"})}
    assert not any(scenes[index].also_present for index in range(200) if scenes[index].place != PHOTOGRAPH)


def test_many_objects_are_smaller(sprites):
    few, many = (Scenes(SpriteLibrary(sprites, KINDS), 64, "train", count) for count in (3, 6))
    sizes = {3: [], 6: []}
    for index in range(60):
        for scenes in (few, many):
            record = scenes[index]
            if len(record.labels) == scenes.max_objects:
                sizes[scenes.max_objects] += record.masks.sum((1, 2)).tolist()
    assert 0.3 < np.mean(sizes[6]) / np.mean(sizes[3]) < 0.7


def test_a_scene_is_a_function_of_split_and_index(scenes, sprites):
    again = Scenes(SpriteLibrary(sprites, KINDS), 64, "train")
    other = Scenes(SpriteLibrary(sprites, KINDS), 64, "heldout")
    for index in range(5):
        assert np.array_equal(scenes[index].image, again[index].image)
        assert not np.array_equal(scenes[index].image, other[index].image)


def test_masks_are_exact_and_named(scenes):
    counts, repeated = set(), 0
    for index in range(40):
        record = scenes[index]
        counts.add(len(record.labels))
        assert record.image.shape == (64, 64, 3) and record.image.dtype == np.uint8
        assert record.masks.shape == (len(record.labels), 64, 64) and record.masks.dtype == bool
        assert record.masks.sum(0).max() <= 1  # no two overlap
        assert record.masks.any((1, 2)).all()
        assert len(set(record.labels[1:])) == len(record.labels[1:]) and set(record.labels) <= set(KINDS)
        repeated += record.labels[:1] == record.labels[1:2]
        assert record.place in PLACES and record.key == f"scenes/train/{index}"
    assert counts == {1, 2, 3} and 0 < repeated < 10


def test_sky_and_ground_are_entities_if_asked_for(scenes, sprites):
    with_stuff, horizons = Scenes(SpriteLibrary(sprites, KINDS), 64, "train", stuff=True), 0
    assert set(with_stuff.nouns) - set(scenes.nouns) == {"sky", "ground"}
    for index in range(20):
        record, without = with_stuff[index], scenes[index]
        objects = len(without.labels)
        assert np.array_equal(record.image, without.image) and without.is_thing.all()
        assert np.array_equal(record.masks[:objects], without.masks)
        if record.place not in HORIZONS:
            assert record.labels == without.labels
            continue
        horizons += 1
        assert record.labels[objects:] == ["sky", "ground"]
        assert record.is_thing.tolist() == [True] * objects + [False, False]
        assert (record.masks.sum(0) == 1).all()  # nothing is left over
        sky, ground = record.masks[objects:]
        assert np.nonzero(sky)[0].max() < np.nonzero(ground)[0].min()
    assert horizons > 8


def test_a_shadow_lies_beside_its_object():
    alpha = np.zeros((64, 64), np.float32)
    alpha[20:40, 20:40] = 1
    missing = Shadow(right=10, down=5, blur=1.0, strength=0.4).cast(alpha)
    assert missing.shape == (64, 64) and missing.min() >= 0 and missing.max() == pytest.approx(0.4, abs=1e-3)
    ys, xs = np.nonzero(missing > 0.2)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (30, 49, 25, 44)
    left = Shadow(right=-25, down=30, blur=1.0, strength=0.4).cast(alpha)  # half of it is outside the picture
    ys, xs = np.nonzero(left > 0.2)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (0, 14, 50, 63)


def test_some_scenes_have_shadows():
    drawn = [Shadow.draw(np.random.default_rng(seed), 128) for seed in range(100)]
    assert 15 < sum(shadow is not None for shadow in drawn) < 45


def test_wrong_input(sprites, tmp_path):
    with pytest.raises(FileNotFoundError, match="no sprite 1f436.webp for 'dog'.*python -m training.datasets.scenes"):
        SpriteLibrary(tmp_path, KINDS)
    with pytest.raises(ValueError, match="unknown split 'test'"):
        Scenes(SpriteLibrary(sprites, KINDS), 64, "test")
    for count in (0, len(KINDS) + 1):
        with pytest.raises(ValueError, match=f"max_objects must lie in 1 to 24, the number of kinds, got {count}"):
            Scenes(SpriteLibrary(sprites, KINDS), 64, max_objects=count)


def test_fetching_without_npm_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="npm is needed"):
        fetch_sprites(tmp_path / "sprites")
