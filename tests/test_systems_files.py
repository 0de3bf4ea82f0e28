"Files of the other systems: export, and CLIP's weights."

import pytest
import torch

from sgmim.core import ConfigError
from sgmim.models.export import export_model
from sgmim.models.speechclip import clip_weights, speechclip_tiny
from sgmim.models.systems import PRESETS, new_model


def test_export_of_another_system_writes_nothing(tmp_path):
    with pytest.raises(ConfigError, match="speechclip"):
        export_model(new_model(PRESETS["speechclip-tiny"]()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_text_tower_does_not_overwrite_the_visual_one(tmp_path):
    from sgmim.models.speechclip import clip_tower

    own = clip_tower(speechclip_tiny()).state_dict()
    state = {f"visual.{k}": v for k, v in own.items()} | {k: torch.zeros(3) for k in own}
    torch.save(state, tmp_path / "clip.pt")
    tensors, _ = clip_weights(tmp_path / "clip.pt", speechclip_tiny())
    assert all(torch.equal(tensors[k], v) for k, v in own.items())


def test_reader_of_a_model_of_regions(tmp_path):
    from sgmim.apps.search import _reader

    model = new_model(PRESETS["fast-vgs-tiny"]())
    assert callable(_reader(model, "audio", tmp_path))
    with pytest.raises(ConfigError, match="region features"):
        _reader(model, "images", tmp_path)


def test_odd_architecture_is_a_clear_error():
    from sgmim.core import CheckpointError
    from sgmim.models.speechclip import check_quick_gelu

    with pytest.raises(CheckpointError):
        check_quick_gelu({"architecture": 5}, "x")
