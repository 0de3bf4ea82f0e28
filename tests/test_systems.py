"The other systems of Tables 1 to 3 in the training loop, in checkpoints, with their data, and in the tables."

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Toy

from sgmim.core import CheckpointError, ConfigError, DataError, load_checkpoint
from sgmim.evaluation.retrieval import evaluate
from sgmim.models import systems as S
from sgmim.models.fast_vgs import fast_vgs_tiny
from sgmim.models.milan import milan_style_tiny
from sgmim.models.pretrained import build_model, open_checkpoint, shipped
from sgmim.models.resdavenet import resdavenet_tiny
from sgmim.models.sgmim import load_model
from sgmim.models.speechclip import speechclip_tiny
from sgmim.train import TrainConfig, fit, recipe
from sgmim.training.step import make_optimiser, train_step

SMALL = {
    "resdavenet": replace(resdavenet_tiny(), image_channels=(8, 8, 16, 16), audio_widths=(8, 8, 16, 16, 16)),
    "milan-style": milan_style_tiny(),
    "fast-vgs": replace(fast_vgs_tiny(), audio_depth=1, image_depth=1, freeze_cnn=False),
    "speechclip": replace(
        speechclip_tiny(), audio_depth=1, image_depth=1, train_image=True, train_audio=True
    ),
}
QUICK = TrainConfig(
    **dict(epochs=1.0, batch_size=8, optimiser="adamw", lr=1e-3, warmup=0.0, max_seconds=4.0),
    **dict(eval_seconds=4.0, augment="none", save_every=2, log_every=1, amp="off"),
)


def toy(n=40, **options):
    corpus = Toy(n, size=96, **options)
    regions = np.random.default_rng(1).random((n, 6, 132), dtype=np.float32)
    corpus.regions = regions.__getitem__
    return corpus


def train(config, corpus, out=None, **changes):
    torch.manual_seed(0)
    model = S.new_model(config)
    return fit(model, corpus, toy(16), replace(QUICK, **changes), out=out, device="cpu", progress=False)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "name", ["resdavenet", *(pytest.param(n, marks=pytest.mark.slow) for n in [*SMALL][1:])]
)
def test_an_interrupted_run_continues_to_the_same_weights(name, tmp_path):
    whole = train(SMALL[name], toy(), tmp_path / "whole")

    def stop(k):
        if k == 8 * 3 + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SMALL[name], toy(hook=stop), tmp_path / "two")
    again = train(SMALL[name], toy(), tmp_path / "two")
    assert same(whole.model, again.model)
    assert [h["loss_nce"] for h in whole.history if "loss" in h] == [
        h["loss_nce"] for h in again.history if "loss" in h
    ]
    opened = open_checkpoint(tmp_path / "two")
    assert type(opened) is type(whole.model) and same(opened, whole.model)
    assert evaluate(opened, toy(16)).mean == evaluate(whole.model, toy(16)).mean
    with pytest.raises(CheckpointError, match=f"another system, '{name}'"):
        load_model(tmp_path / "two/best")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_learns_eight_pairs(name):
    fitted = train(SMALL[name], toy(8), epochs=60.0, batch_size=8, lr=2e-3)
    losses = [h["loss_nce"] for h in fitted.history if "loss" in h]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", ["resdavenet", "milan-style", "fast-vgs"])
def test_gradient_caching_is_refused_with_batch_norm(name):
    with pytest.raises(ConfigError, match="micro_batch must be 0.*BatchNorm"):
        train(SMALL[name], toy(), micro_batch=4)


def test_gradient_caching_of_speechclip_is_exact():
    config = replace(SMALL["speechclip"], branch_dropout=0.0, frozen_dropout=False)
    config = replace(config, train_audio=False, train_image=False)
    losses = []
    for micro in (0, 3):
        torch.manual_seed(0)
        model = S.new_model(config)
        for part in model.frozen_parts:  # as after loading: not fresh
            for p in getattr(model, part).parameters():
                p.data += 0.01
        how = replace(QUICK, micro_batch=micro)
        fitted = fit(model, toy(), None, how, device="cpu", progress=False)
        losses.append([h["loss_nce"] for h in fitted.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_frozen_parts_are_not_in_snapshots(tmp_path):
    torch.manual_seed(0)
    model = S.new_model(replace(SMALL["speechclip"], train_audio=False, train_image=False))
    assert model.frozen_parts == ("image_encoder", "audio_encoder")
    with pytest.raises(ConfigError, match="image_encoder is random and frozen"):
        fit(model, toy(), None, QUICK, device="cpu", progress=False)
    for part in model.frozen_parts:
        for p in getattr(model, part).parameters():
            p.data += 0.01
    fitted = fit(model, toy(), None, QUICK, out=tmp_path, device="cpu", progress=False)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    kept = {k.split(".")[1] for k in load_checkpoint(newest)[0] if k.startswith("model.")}
    assert kept == {"branch", "layer_weights"}
    assert same(open_checkpoint(tmp_path), fitted.model)


def test_small_presets_start_from_shipped_weights():
    hubert = load_checkpoint(shipped("tiny-hubert"))[0]
    for name in ("fast-vgs-tiny", "speechclip-tiny"):
        model = build_model(name)
        encoder = model.audio_encoder if name.startswith("speech") else model.audio_encoder.hubert
        assert all(torch.equal(v, hubert[k].float()) for k, v in encoder.state_dict().items())
    clip = load_checkpoint(shipped("tiny-clip"))[0]
    assert all(torch.equal(v, clip[k].float()) for k, v in model.image_encoder.state_dict().items())


def test_every_preset_has_a_recipe():
    assert all(isinstance(recipe(name), TrainConfig) for name in S.PRESETS)
    assert {*S.OTHER_ROWS.values()} <= {*S.PRESETS}


# --- region features


def write_tsv(path, ids, n=36):
    import base64

    rng = np.random.default_rng(0)

    def packed(x):
        return base64.b64encode(np.ascontiguousarray(x)).decode()

    with open(path, "w") as f:
        for name in ids:
            boxes = np.tile(np.array([[0, 0, 60, 50]], np.float32), (n, 1))
            whole, share = packed(np.zeros(n, np.int64)), packed(np.ones(n, np.float32))
            features = packed(rng.random((n, 2048), dtype=np.float32))
            row = [name, 50, 60, whole, share, whole, share, n, packed(boxes), features]
            f.write("\t".join(map(str, row)) + "\n")
    return path


def test_regions_are_found_by_path_name_or_stem(tmp_path):
    ids = ["COCO_val2014_000000000042", "l/laundromat/gsun_1.jpg", "1000268201_693b08cb0e.jpg"]
    table = S.open_regions([write_tsv(tmp_path / "a.tsv", ids)])
    images = ["val2014/COCO_val2014_000000000042.jpg", "images/l/laundromat/gsun_1.jpg"]
    corpus = SimpleNamespace(image_names=[*images, "Flicker8k_Dataset/1000268201_693b08cb0e.jpg"])
    S.add_regions(corpus, table)
    assert [corpus.regions(i).shape for i in range(3)] == [(36, 2052)] * 3
    assert not np.array_equal(corpus.regions(0), corpus.regions(1))


def test_faults_of_region_files(tmp_path):
    table = S.open_regions([write_tsv(tmp_path / "a.tsv", ["a"])])
    with pytest.raises(DataError, match="1 of 2 images have no region features, the first: x/b.jpg"):
        S.add_regions(SimpleNamespace(image_names=["x/a.jpg", "x/b.jpg"]), table)
    with pytest.raises(DataError, match="gone.tsv does not exist"):
        S.open_regions([tmp_path / "gone.tsv"])
    (tmp_path / "a.pkl").write_bytes(b"")
    with pytest.raises(DataError, match="TSV files, or an HDF5 file with its JSON; got a.pkl"):
        S.open_regions([tmp_path / "a.pkl"])
    few = S.open_regions([write_tsv(tmp_path / "few.tsv", ["a"], n=20)])
    with pytest.raises(DataError, match="36 boxes an image"):
        few["a"]


def test_a_corpus_without_regions_is_refused():
    corpus = Toy(40, size=96)
    with pytest.raises(DataError, match="takes region features.*--regions FILE"):
        train(SMALL["fast-vgs"], corpus)


def test_requirements_name_what_is_missing(tmp_path):
    lines = S.requirements("fast-vgs", {"audio": "facebook/wav2vec2-base"})
    assert [("MISSING" in line) for line in lines] == [True, True]
    (tmp_path / "w.pt").write_bytes(b"x" * 10)
    [line] = S.requirements("resdavenet", {"image": str(tmp_path / "w.pt")})
    assert "found" in line


def test_only_parts_that_a_system_has_are_loaded():
    with pytest.raises(ConfigError, match="resdavenet takes no pre-trained audio encoder"):
        S.fill_system(S.new_model(SMALL["resdavenet"]), {"audio": Path("x")}, shipped)


def test_an_hdf5_file_is_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "val.hdf5", "w") as f:
        f["features"] = rng.random((2, 36, 2048), dtype=np.float32)
        f["boxes"] = np.tile(np.array([[0, 0, 60, 50]], np.float32), (2, 36, 1))
        f["img_h"], f["img_w"] = np.array([50, 50]), np.array([60, 120])
        features = f["features"][1]
    (tmp_path / "val_imgid2idex.json").write_text('{"a": 1, "b": 0}')
    table = S.open_regions([tmp_path / "val.hdf5", tmp_path / "val_imgid2idex.json"])
    for copy in (table, pickle.loads(pickle.dumps(table))):  # as a loading process gets it
        assert np.array_equal(copy["a"][:, :2048], features)
        assert np.allclose(copy["a"][0, 2048:], [0, 0, 0.5, 1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resdavenet", "milan-style", "fast-vgs", "speechclip"])
def test_one_step_at_full_size(name):
    torch.manual_seed(0)
    model, seconds = S.new_model(S.PRESETS[name]()).train(), 2
    batch = {
        "image": torch.rand(2, *model.config.image_shape),
        "audio": 0.1 * torch.randn(2, seconds * 16_000),
        "audio_len": torch.tensor([seconds * 16_000, 20_000]),
        "image_id": torch.tensor([0, 1]),
        "index": torch.tensor([0, 1]),
    }
    config = replace(recipe(name), amp="off")
    losses = train_step(model, batch, make_optimiser(model, config), 0, 10, 0, config)
    assert losses["finite"] and losses["loss"] > 0
