"""The command that writes the scenes of the gallery."""

from training import gallery_scenes
from training.datasets.scenes import KINDS, Scenes, SpriteLibrary
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
