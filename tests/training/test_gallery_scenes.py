"""The commands that write the scenes of the gallery, and the input pictures of the workflows."""

import numpy as np
import pytest
from PIL import Image

from training import examples, gallery_scenes
from training.datasets.scenes import KINDS, SPRITE_FOLDER, Scenes, SpriteLibrary
from unigs.gallery import read_scenes


def test_scenes_are_held_out_and_come_back_as_they_were_written(tmp_path, sprites):
    gallery_scenes.main(tmp_path, sprites)
    written = read_scenes(tmp_path)
    assert len(written) == gallery_scenes.COUNT
    assert len(list(tmp_path.iterdir())) == 2 * gallery_scenes.COUNT + 1
    records = gallery_scenes.suitable(Scenes(SpriteLibrary(sprites, KINDS), 128, "heldout"))
    for scene, record in zip(written, records, strict=False):
        assert record.key.startswith("scenes/heldout/") and record.place == scene.place != ""
        assert (scene.masks == record.masks).all() and scene.nouns == record.labels and len(scene.nouns) > 1
        assert scene.picture.tobytes() == record.image.tobytes()


@pytest.mark.skipif(not SPRITE_FOLDER.is_dir(), reason="needs the sprites of `python -m training.datasets.scenes`")
def test_the_commands_write_what_is_there(tmp_path, monkeypatch):
    gallery_scenes.main(tmp_path / "scenes")
    there = examples.FOLDER
    monkeypatch.setattr(examples, "FOLDER", tmp_path / "inputs")
    examples.main()
    for written, kept in ((tmp_path / "scenes", gallery_scenes.SCENES), (tmp_path / "inputs", there)):
        for file in (path for path in written.rglob("*") if path.is_file()):
            same = kept / file.relative_to(written)
            if file.suffix == ".png":
                assert np.array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(same))), same
            else:
                assert file.read_text() == same.read_text()
