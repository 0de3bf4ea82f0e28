"Files of the other systems: export, and CLIP's weights."

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2Config

from sgmim.apps.search import update_index
from sgmim.core import CheckpointError, ConfigError, DataError
from sgmim.data.corpora import open_splits
from sgmim.models.export import export_model
from sgmim.models.fast_vgs import RegionHDF5, RegionTSV, normalised_waveforms, pack_regions
from sgmim.models.pretrained import open_checkpoint, shipped
from sgmim.models.sgmim import save_model
from sgmim.models.sources import _timm_repo
from sgmim.models.speechclip import SpeechCLIPConfig, check_clip_kind, clip_weights, speechclip_tiny
from sgmim.models.systems import PRESETS, add_regions, fill_system, new_model, requirements
from sgmim.scenes.corpus import export_facc


def test_text_tower_does_not_overwrite_the_visual_one(tmp_path):
    from sgmim.models.speechclip import clip_tower

    own = clip_tower(speechclip_tiny()).state_dict()
    state = {f"visual.{k}": v for k, v in own.items()} | {k: torch.zeros(3) for k in own}
    torch.save(state, tmp_path / "clip.pt")
    tensors, _ = clip_weights(tmp_path / "clip.pt", speechclip_tiny())
    assert all(torch.equal(tensors[k], v) for k, v in own.items())


def test_a_model_of_regions_indexes_recordings_and_no_pictures(tmp_path, scenes):
    model = new_model(PRESETS["fast-vgs-tiny"]()).eval()
    soundfile.write(tmp_path / "a.wav", scenes["dev"].audio(0), 16_000)
    assert update_index(tmp_path / "sounds", tmp_path, model, "audio", progress=False)
    with pytest.raises(ConfigError, match="region features"):
        update_index(tmp_path / "pictures", tmp_path, model, progress=False)
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    "stated, name, changes, said",
    (
        ({"architecture": 5}, "x", {}, None),
        (
            {"architecture": "vit_base_patch32_clip_224"},
            "vit_base_patch32_clip_quickgelu_224.openai",
            {},
            None,
        ),
        ({"hidden_act": "gelu"}, "x", {"image_activation": "gelu"}, None),
        ({"hidden_act": "quick_gelu"}, "x", {"image_activation": "gelu"}, "'quick_gelu', the model 'gelu'"),
        (None, "timm/vit_base_patch32_clip_224.openai", {}, "take openai/clip-vit-base-patch32"),
        ({"vision_config": {"num_attention_heads": 8}}, "x", {}, "8 heads, the model 12"),
    ),
)
def test_a_clip_of_another_kind_is_refused(stated, name, changes, said):
    config = SpeechCLIPConfig(**changes)
    if said is None:
        return check_clip_kind(stated, name, config)
    with pytest.raises(CheckpointError, match=said):
        check_clip_kind(stated, name, config)


def test_names_of_timm_are_found_in_their_repositories():
    "Two of its CLIP networks share a file, and the other systems start from CNNs."
    assert _timm_repo("vit_base_patch32_clip_quickgelu_224.openai") == "timm/vit_base_patch32_clip_224.openai"
    assert _timm_repo("resnet50.tv_in1k") == "timm/resnet50.tv_in1k"


@pytest.mark.parametrize(
    "preset", ("resdavenet-tiny", "milan-style-tiny", "fast-vgs-tiny", "speechclip-tiny")
)
def test_an_exported_model_opens_as_the_same_model(preset, tmp_path):
    model = new_model(PRESETS[preset]()).eval()
    export_model(model, tmp_path)
    again = open_checkpoint(tmp_path)
    assert type(again) is type(model) and again.config == model.config
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    card = (tmp_path / "README.md").read_text()
    assert type(model).__name__ in card and "open_checkpoint" in card and "HuBERT with" not in card


@pytest.mark.parametrize(
    "preset, changes", (("fast-vgs-tiny", {"pos_groups": 7}), ("resdavenet-tiny", {"n_mels": 0}))
)
def test_sizes_that_no_model_has_are_said(preset, changes, tmp_path):
    with pytest.raises(ConfigError, match=f"no {preset[:-5]} model has these sizes"):
        new_model(replace(PRESETS[preset](), **changes))
    save_model(new_model(PRESETS[preset]()), tmp_path)
    path = tmp_path / "config.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"config": meta["config"] | changes}))
    with pytest.raises(CheckpointError, match="config.json"):
        open_checkpoint(tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = new_model(PRESETS["speechclip-tiny"]())
    with torch.no_grad():
        model.layer_weights.fill_(torch.nan)
    save_model(model, tmp_path)
    with pytest.raises(CheckpointError, match="not finite"):
        open_checkpoint(tmp_path)


def test_fast_vgs_starts_from_wav2vec2_with_its_config(tmp_path):
    "Of the sizes of a small model; a HuBERT is refused."
    from transformers import Wav2Vec2Model

    config = replace(PRESETS["fast-vgs-tiny"](), audio_depth=2)
    sizes = new_model(config).audio_encoder.hubert.config.to_dict() | {"model_type": "wav2vec2"}
    theirs = Wav2Vec2Model(Wav2Vec2Config(**{**sizes, "num_hidden_layers": 12}))
    theirs.save_pretrained(tmp_path)
    used = fill_system(new_model(config), {"audio": tmp_path}, shipped)
    assert "audio" in used
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"wav2vec2"', '"hubert"'))
    with pytest.raises(CheckpointError, match="model_type 'hubert'"):
        fill_system(new_model(config), {"audio": tmp_path}, shipped)


def test_regions_are_given_to_a_corpus_on_disk(tmp_path, scenes):
    "Its images have paths; the features have the names of the files."
    export_facc({"train": scenes["dev"]}, tmp_path)
    corpus = open_splits(tmp_path, "facc", ["train"])["train"]
    table = {Path(name).stem: np.zeros((36, 2052), np.float32) for name in corpus.image_names}
    add_regions(corpus, table)
    assert corpus.regions(0).shape == (36, 2052)
    table.pop(Path(corpus.image_names[0]).stem)
    with pytest.raises(DataError, match="1 of .* images have no region features"):
        add_regions(corpus, table)


@pytest.mark.parametrize(
    "content, said",
    (
        (b"", "empty"),
        (b"\x1f\x8b\x00\xff\x00", "not a TSV"),
        (b"\xff\xfe\tx\n", "not a TSV"),
        (b"\n\n", "not a TSV"),
    ),
)
def test_files_that_hold_no_regions(content, said, tmp_path):
    (tmp_path / "r.tsv").write_bytes(content)
    with pytest.raises(DataError, match=f"r.tsv: .*{said}"):
        RegionTSV(tmp_path / "r.tsv")


@pytest.mark.parametrize("row", (-1, 2, "0", 0.5, None))
def test_rows_that_a_file_of_regions_does_not_have(row):
    file = {"features": np.zeros((2, 1, 4)), "boxes": np.zeros((2, 1, 4)), "img_h": [9, 9], "img_w": [9, 9]}
    with pytest.raises(DataError, match="image x: row .* of 2"):
        RegionHDF5(file, {"x": row}, 1)["x"]


@pytest.mark.parametrize(
    "changes, said",
    (
        ({"img_h": [9]}, "many rows in each"),
        ({"img_h": np.ones((2, 1))}, "img_h and img_w of 1"),
        ({"img_w": 9}, "img_h and img_w of 1"),
        ({"features": np.full((2, 1, 4), "x")}, "image x: expected numbers"),
        ({"features": np.zeros((2, 1, 5))}, "takes 4 numbers a box, got 5"),
    ),
)
def test_odd_entries_of_a_file_of_regions(changes, said):
    file = {"features": np.zeros((2, 1, 4)), "boxes": np.zeros((2, 1, 4)), "img_h": [9, 9], "img_w": [9, 9]}
    with pytest.raises(DataError, match=said):
        RegionHDF5(file | changes, {"x": 0}, 1, 4)["x"]


@pytest.mark.parametrize(
    "features, box, size, said",
    (
        (np.nan, (0, 0, 1, 1), (9, 9), "features are not finite"),
        (0.0, (2, 0, 1, 1), (9, 9), "corners in the wrong order"),
        (0.0, (0, 0, 1, 1), (10**400, 9), "an image of 9 x "),
    ),
)
def test_regions_that_cannot_be(features, box, size, said):
    with pytest.raises(DataError, match=said):
        pack_regions(np.full((1, 4), features), np.array([box]), size, "image x", 1)


@pytest.mark.parametrize("value", (0.0, 1 / 3))
def test_a_caption_without_sound_is_embedded(value):
    "A constant is silence, also where rounding leaves some variance."
    model = new_model(PRESETS["fast-vgs-tiny"]()).eval()
    wave = torch.full((1, 79_999), value)
    with torch.no_grad():
        z = model.embed_audio(wave, torch.tensor([79_999]))
    assert z.isfinite().all() and not normalised_waveforms(wave, None, 79_999)[0].any()


def test_needs_of_a_preset_say_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="resdavenet takes no pre-trained audio encoder"):
        requirements("resdavenet", {"audio": "gone.pt"})
    assert any("gone.tsv: MISSING" in line for line in requirements("fast-vgs", {}, ["gone.tsv"]))


def test_images_may_have_names_in_any_script(tmp_path):
    (tmp_path / "r.tsv").write_text("Zürich\tx\n", encoding="utf-8")
    assert "Zürich" in RegionTSV(tmp_path / "r.tsv")


@pytest.mark.parametrize(
    "changes",
    ({"heads": 0}, {"conv_dim": (32,)}, {"conv_stride": (0,) * 5}, {"num_boxes": 0}, {"eval_seconds": -1.0}),
)
def test_sizes_of_fast_vgs_that_cannot_be_built(changes):
    with pytest.raises(ConfigError, match=f"{next(iter(changes))} = |has these sizes"):
        new_model(replace(PRESETS["fast-vgs-tiny"](), **changes))


def test_a_corpus_without_names_of_images():
    with pytest.raises(DataError, match="has no image_names"):
        add_regions([], {})
