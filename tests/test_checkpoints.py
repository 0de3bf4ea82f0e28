"""Checkpoints, 18: files of every published layout, made here from random reference models; hostile and
broken files; export."""

import argparse
import builtins
import contextlib
import enum
import functools
import importlib
import io
import json
import operator
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import types
import warnings
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import transformers
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    HubertForCTC,
    HubertModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

import sgmim
from sgmim.core import CheckpointError, config_to_dict, read_json, save_checkpoint, write_json
from sgmim.models.audio_encoder import hubert_config
from sgmim.models.export import export_model, model_card
from sgmim.models.pretrained import open_checkpoint
from sgmim.models.published import (
    Weights,
    _vg_name,
    hubert_weights,
    image_weights,
    load_pretrained,
    vg_hubert_model,
)
from sgmim.models.reading import Inert, _file_kind, _inert_pickle, _scan_pickle, read_file
from sgmim.models.sgmim import (
    HUBERT_SIZES,
    SGMIM,
    SGMIMConfig,
    load_backbones,
    load_model,
    paper,
    scenes_tiny,
    vg_hubert,
)
from sgmim.models.sources import PAPER_AUDIO, PAPER_IMAGE, VG_HUB, _find_state, _timm_repo, locate

SMALL = replace(
    scenes_tiny(),
    image_size=48,
    image_width=64,
    image_depth=2,
    image_heads=2,
    audio_width=64,
    audio_depth=2,
    audio_heads=4,
    audio_hidden=96,
    conv_dim=(24,) * 7,
    conv_kernel=paper().conv_kernel,
    conv_stride=paper().conv_stride,
    conv_norm="group",
    conv_bias=False,
    embed_dim=24,
    pos_kernel=16,
    pos_groups=4,
    reinit_layers=0,
)
VG_SMALL = replace(SMALL, image_feature="cls", projection="mlp", reconstruction="none")


def close(a, b, tol=1e-5):
    torch.testing.assert_close(a, b, atol=tol, rtol=tol)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def shaken(module, seed=0):
    """Every parameter away from its start, so that no two LayerNorms are alike and a swap of names is seen
    in the output."""
    g = seeded(seed)
    for p in module.parameters():
        p.add_(torch.randn(p.shape, generator=g), alpha=0.02)
    return module.eval()


def empty_model(config):
    "A model whose parameters hold nothing in particular: as quick to make as it is to fill."
    with torch.device("meta"):
        m = SGMIM(replace(config, reconstruction="none"))
    m = m.to_empty(device="cpu").eval()
    for p in (m.audio_encoder.cls_token, *m.image_proj.parameters(), *m.audio_proj.parameters()):
        nn.init.normal_(p, std=0.02)
    return m


def small_hubert(seed=0):
    torch.manual_seed(seed)
    sizes = {theirs: getattr(SMALL, ours) for theirs, ours in HUBERT_SIZES.items()}
    return shaken(HubertModel(hubert_config(**sizes)), seed)


def to_fairseq(state):
    "transformers' names -> fairseq's, by a table of this file's own."

    def name(k):
        if k == "masked_spec_embed":
            return "mask_emb"
        k = k.replace("feature_projection.projection", "post_extract_proj").replace(
            "feature_projection.layer_norm", "layer_norm"
        )
        k = (
            k.replace("encoder.pos_conv_embed.conv", "encoder.pos_conv.0")
            .replace("parametrizations.weight.original0", "weight_g")
            .replace("parametrizations.weight.original1", "weight_v")
        )
        if k.startswith("encoder.layers."):
            k = k.replace(".layer_norm", ".self_attn_layer_norm").replace(".attention.", ".self_attn.")
            k = k.replace("feed_forward.intermediate_dense", "fc1").replace(
                "feed_forward.output_dense", "fc2"
            )
        if k.startswith("feature_extractor."):
            k = k.replace(".conv.", ".0.").replace(".layer_norm.", ".2.")
        return k

    return {name(k): v for k, v in state.items()}


def hubert_by_hand(s, x, heads, strides, cls=None):
    """HuBERT Base written out from tensors in fairseq's names: (B, L) -> (B, T, D), or (B, 1+T, D) with
    [CLS] put in before the encoder's LayerNorm."""

    def linear(x, n):
        return F.linear(x, s[n + ".weight"], s[n + ".bias"])

    def norm(x, n):
        return F.layer_norm(x, x.shape[-1:], s[n + ".weight"], s[n + ".bias"])

    x = x[:, None]
    for i, stride in enumerate(strides):
        x = F.conv1d(x, s[f"feature_extractor.conv_layers.{i}.0.weight"], stride=stride)
        if i == 0:
            x = F.group_norm(
                x,
                x.shape[1],
                s["feature_extractor.conv_layers.0.2.weight"],
                s["feature_extractor.conv_layers.0.2.bias"],
            )
        x = F.gelu(x)
    x = linear(norm(x.transpose(1, 2), "layer_norm"), "post_extract_proj")
    pos = "pos_conv.0." if "pos_conv.0.bias" in s else "encoder.pos_conv.0."
    v, g = s[pos + "weight_v"], s[pos + "weight_g"]
    y = F.conv1d(
        x.transpose(1, 2),
        g * v / v.norm(dim=(0, 1), keepdim=True),
        s[pos + "bias"],
        padding=v.shape[2] // 2,
        groups=v.shape[0] // v.shape[1],
    )
    x = x + F.gelu(y[..., : x.shape[1]]).transpose(1, 2)
    if cls is not None:
        x = torch.cat([cls.expand(len(x), -1, -1), x], 1)
    x = norm(x, "encoder.layer_norm")
    for i in range(sum(k.endswith(".fc1.bias") for k in s)):
        at = f"encoder.layers.{i}."
        q, k, v = (
            linear(x, f"{at}self_attn.{p}_proj").unflatten(2, (heads, -1)).transpose(1, 2) for p in "qkv"
        )
        a = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = norm(
            x + linear(a.transpose(1, 2).flatten(2), at + "self_attn.out_proj"), at + "self_attn_layer_norm"
        )
        x = norm(x + linear(F.gelu(linear(x, at + "fc1")), at + "fc2"), at + "final_layer_norm")
    return x


@contextlib.contextmanager
def foreign(*names):
    "Classes that pickle under the given names, of libraries that are not installed; gone again afterwards."
    made, before = [], set(sys.modules)
    for full in names:
        module, cls = full.rsplit(".", 1)
        for i in range(module.count(".") + 1):
            part = ".".join(module.split(".")[: i + 1])
            if part not in sys.modules:
                sys.modules[part] = types.ModuleType(part)
        kind = (
            enum.Enum(cls, "a b", module=module, qualname=cls)
            if cls.endswith("Choice")
            else type(cls, (dict,) if cls.endswith("Dict") else (), {"__module__": module})
        )
        setattr(sys.modules[module], cls, kind)
        made.append(kind)
    try:
        yield made
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] in {n.split(".")[0] for n in names}:
                del sys.modules[name]


def save_as_fairseq(state, path, **options):
    """Like fairseq's own checkpoints: tensors under 'model', beside objects of classes from fairseq and
    omegaconf."""
    with foreign(
        "fairseq.data.dictionary.Dictionary",
        "omegaconf.dictconfig.DictConfig",
        "fairseq.tasks.hubert_pretraining.AnyDict",
        "fairseq.dataclass.constants.DDPChoice",
    ) as (Dictionary, DictConfig, AnyDict, DDP):
        d, cfg = Dictionary(), DictConfig()
        d.symbols, d.indices, cfg._content, cfg.kind = (
            ["<s>", "a"],
            {"a": 1},
            {"model": {"layers": 12}},
            DDP.a,
        )
        torch.save(
            OrderedDict(
                args=argparse.Namespace(arch="hubert"),
                cfg=cfg,
                model=state,
                task_state=AnyDict(dictionaries=[d]),
                optimizer_history=[{"num_updates": 4}],
                last_optimizer_state=None,
                extra_state={"epoch": 1},
            ),
            path,
            **options,
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Small files that several tests read."
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def hubert():
    "HuBERT Base at full size, with random weights."
    torch.manual_seed(0)
    return shaken(HubertModel(hubert_config()))


@pytest.fixture(scope="module")
def vits8():
    "ViT-S/8 at full size, timm's, with random weights."
    torch.manual_seed(1)
    return shaken(timm.create_model("vit_small_patch8_224", num_classes=0))


@pytest.fixture
def big(tmp_path):
    "A folder for large files, emptied at once."
    yield tmp_path
    for p in tmp_path.rglob("*"):
        if p.is_file():
            p.unlink()


# ---- full size


@pytest.mark.slow
@torch.no_grad()
def test_hubert_base_from_both_layouts(hubert, big):
    model, x = empty_model(replace(paper(), reinit_layers=0)), torch.randn(2, 12000, generator=seeded()) * 0.1
    wanted = hubert(x).last_hidden_state
    hubert.save_pretrained(big / "hf")
    report = load_pretrained(model, audio=big / "hf")
    close(model.audio_encoder.hubert(x).last_hidden_state, wanted)
    frames, n = model.audio_encoder.cnn(x)
    mask = torch.zeros(frames.shape[:2], dtype=torch.bool)
    # and by the path that training takes
    close(model.audio_encoder.transform(model.audio_encoder.embed(frames, mask), mask)[0], wanted)
    assert (
        report.sources["audio"].tensors == 210
        and report.reinitialised == ()
        and not report.sources["audio"].left_out
    )
    (big / "hf" / "model.safetensors").unlink()

    for p in model.audio_encoder.hubert.parameters():
        p.zero_()
    extra = {
        "mask_emb": torch.zeros(768),
        "final_proj.weight": torch.zeros(256, 768),
        "final_proj.bias": torch.zeros(256),
        "label_embs_concat": torch.zeros(504, 256),
    }
    save_as_fairseq({**to_fairseq(hubert.state_dict()), **extra}, big / "hubert_base_ls960.pt")
    report = load_pretrained(model, audio=big / "hubert_base_ls960.pt")
    close(model.audio_encoder.hubert(x).last_hidden_state, wanted)
    source = report.sources["audio"]
    assert source.tensors == 210 and set(source.left_out) == {
        "masked_spec_embed",
        "final_proj.weight",
        "final_proj.bias",
        "label_embs_concat",
    }
    assert {
        "fairseq.data.dictionary.Dictionary",
        "omegaconf.dictconfig.DictConfig",
        "argparse.Namespace",
    } <= set(source.not_read)
    assert not any(m.split(".")[0] in ("fairseq", "omegaconf") for m in sys.modules)

    # §3.2: the last 3 layers start afresh, the first 9 are HuBERT's
    model.config = replace(paper(), reconstruction="none")
    report = load_pretrained(model, audio=big / "hubert_base_ls960.pt", generator=seeded())
    assert report.reinitialised == tuple(f"audio_encoder.hubert.encoder.layers.{i}" for i in (9, 10, 11))
    close(
        model.audio_encoder.hubert(x, output_hidden_states=True).hidden_states[9],
        hubert(x, output_hidden_states=True).hidden_states[9],
    )
    for layer in model.audio_encoder.hubert.encoder.layers[9:]:
        assert (
            abs(layer.attention.q_proj.weight.std() - 0.02) < 1e-3
            and not layer.attention.q_proj.bias.any()
            and layer.layer_norm.weight.eq(1).all()
        )


@pytest.mark.slow
@torch.no_grad()
def test_mae_vit_b_16(big):
    torch.manual_seed(0)
    ref, image = (
        shaken(timm.create_model("vit_base_patch16_224", num_classes=0)),
        torch.randn(2, 3, 224, 224, generator=seeded()),
    )
    torch.save({"model": ref.state_dict()}, big / "mae_pretrain_vit_base.pth")
    model = empty_model(paper())
    report = load_pretrained(model, image=big / "mae_pretrain_vit_base.pth")
    close(model.image_encoder(image), ref.forward_features(image))
    assert report.sources["image"].tensors == 150 and report.sources["image"].not_read == ()


@pytest.mark.slow
@torch.no_grad()
def test_dino_vit_s_8(vits8, big):
    image = torch.randn(1, 3, 224, 224, generator=seeded())
    torch.save(vits8.state_dict(), big / "dino_deitsmall8_pretrain.pth")
    w = image_weights(big / "dino_deitsmall8_pretrain.pth", vg_hubert())
    model = empty_model(vg_hubert())
    load_backbones(model, w)
    close(model.image_encoder(image), vits8.forward_features(image))
    assert w["pos_embed"].shape == (1, 785, 384) and len(w) == 150
    with pytest.raises(CheckpointError, match="patch_size 8 where the model has 16"):
        image_weights(big / "dino_deitsmall8_pretrain.pth", paper())


@pytest.mark.slow
@torch.no_grad()
def test_vg_hubert_bundle(hubert, vits8, big):
    torch.manual_seed(3)
    heads = {
        f"{m}_cls_token_proj": nn.Sequential(nn.Linear(width, 1536), nn.GELU(), nn.Linear(1536, 2048))
        for m, width in (("audio", 768), ("visual", 384))
    }
    cls = torch.randn(1, 1, 768)
    state = {
        f"audio_encoder.{k.removeprefix('encoder.') if 'pos_conv' in k else k}": v
        for k, v in to_fairseq(hubert.state_dict()).items()
    }
    state |= {"audio_encoder.cls_token": cls, **{f"trm.{k}": v for k, v in vits8.state_dict().items()}}
    state |= {f"{name}.{k}": v for name, head in heads.items() for k, v in head.state_dict().items()}
    assert len(state) == 369
    torch.save(
        {"dual_encoder": state, "optimizer": {"state": {}, "param_groups": []}, "indices": [3, 1, 2]},
        big / "best_bundle.pth",
    )
    args = argparse.Namespace(
        layer_use=11,
        encoder_attention_heads=12,
        vit_arch="vitsmall",
        vit_patch_size=8,
        use_audio_cls_token=True,
        cls_loss=True,
        layer_norm_first=False,
        extractor_mode="default",
        common_embed_dim=2048,
        conv_feature_layers='__import__("os").abort()',
    )
    (big / "args.pkl").write_bytes(pickle.dumps(args))
    model, report = vg_hubert_model(big, device="cpu")
    assert model.config == vg_hubert() and not model.training
    assert (
        report.sources["model"].tensors == 369
        and report.sources["model"].left_out == ()
        and report.sources["model"].beside == ("optimizer", "indices")
    )
    image, x = torch.randn(1, 3, 224, 224, generator=seeded()), torch.randn(2, 8000, generator=seeded()) * 0.1
    close(model.embed_image(image), heads["visual_cls_token_proj"](vits8.forward_features(image)[:, 0]))
    e = hubert.encoder
    y = hubert.feature_projection(hubert.feature_extractor(x).transpose(1, 2))
    y = e.layer_norm(torch.cat([cls.expand(2, -1, -1), y + e.pos_conv_embed(y)], 1))
    for layer in e.layers:
        y = layer(y)
        y = y[0] if isinstance(y, tuple) else y
    close(model.embed_audio(x), heads["audio_cls_token_proj"](y[:, 0]))


# ---- HuBERT, in small


@pytest.mark.parametrize("zipped", [True, False])
@torch.no_grad()
def test_fairseq_file_against_a_reference_by_hand(files, zipped):
    ref, x = to_fairseq(small_hubert().state_dict()), torch.randn(2, 6000, generator=seeded()) * 0.1
    path = files / f"fairseq{zipped}.pt"
    save_as_fairseq(ref, path, _use_new_zipfile_serialization=zipped)
    assert _file_kind(path) == ("torch" if zipped else "torch (legacy)")
    model = empty_model(SMALL)
    load_pretrained(model, audio=path)
    close(model.audio_encoder.hubert(x).last_hidden_state, hubert_by_hand(ref, x, 4, SMALL.conv_stride))


@pytest.mark.parametrize("old_names", [True, False])
@pytest.mark.parametrize("prefix", ["", "hubert.", "module.hubert."])
@torch.no_grad()
def test_transformers_bin(tmp_path, prefix, old_names):
    ref = small_hubert()
    state = {prefix + k: v for k, v in ref.state_dict().items()} | {
        "lm_head.weight": torch.zeros(32, 64),
        prefix + "masked_spec_embed": torch.zeros(64),
    }
    if old_names:
        state = {
            k.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): v
            for k, v in state.items()
        }
    torch.save(state, tmp_path / "pytorch_model.bin")
    write_json(tmp_path / "config.json", ref.config.to_dict())
    w = hubert_weights(tmp_path, SMALL)
    assert set(w) == set(ref.state_dict()) and all(torch.equal(w[k], v) for k, v in ref.state_dict().items())
    assert (
        set(w.source.left_out) == {"lm_head.weight", "masked_spec_embed"} and w.source.name == tmp_path.name
    )
    assert hubert_weights(tmp_path / "pytorch_model.bin", SMALL).source.name == "pytorch_model.bin"


@torch.no_grad()
def test_hubert_for_ctc_as_transformers_saves_it(tmp_path):
    torch.manual_seed(0)
    ctc = shaken(HubertForCTC(small_hubert().config))
    ctc.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    model, x = empty_model(SMALL), torch.randn(1, 4000, generator=seeded())
    report = load_pretrained(model, audio=str(tmp_path))
    close(model.audio_encoder.hubert(x).last_hidden_state, ctc.hubert(x).last_hidden_state)
    assert set(report.sources["audio"].left_out) == {"lm_head.weight", "lm_head.bias"}


def test_hubert_of_another_size(tmp_path):
    ref = small_hubert()
    ref.save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    with pytest.raises(
        CheckpointError, match=r"audio_width 64 where the model has 768.*audio_depth 2 where the model has 12"
    ):
        hubert_weights(tmp_path)
    write_json(tmp_path / "config.json", {**config, "num_attention_heads": 8})  # what no shape shows
    with pytest.raises(CheckpointError, match="audio_heads 8 where the model has 4"):
        hubert_weights(tmp_path, SMALL)
    write_json(tmp_path / "config.json", {**config, "do_stable_layer_norm": True})  # HuBERT Large
    with pytest.raises(CheckpointError, match="do_stable_layer_norm True where the model has False"):
        hubert_weights(tmp_path, SMALL)
    (tmp_path / "config.json").write_text('{"model_type": "hub')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        hubert_weights(tmp_path, SMALL)
    (tmp_path / "config.json").unlink()  # without it, shapes speak
    hubert_weights(tmp_path, SMALL)
    for change, words in (
        (dict(audio_depth=3), "audio_depth 2 where the model has 3"),
        (dict(pos_kernel=32), "pos_kernel 16"),
        (dict(pos_groups=2), "pos_groups 4"),
        (dict(audio_hidden=100), "audio_hidden 96"),
        (dict(conv_norm="layer"), "conv_norm 'group'"),
        (dict(conv_dim=(24,) * 6 + (32,)), "conv_dim"),
    ):
        with pytest.raises(CheckpointError, match=words):
            hubert_weights(tmp_path, replace(SMALL, **change))


def test_wav2vec2_is_no_hubert(tmp_path):
    c = small_hubert().config
    Wav2Vec2Model(
        Wav2Vec2Config(
            **{
                k: getattr(c, k)
                for k in (
                    "hidden_size",
                    "num_hidden_layers",
                    "num_attention_heads",
                    "intermediate_size",
                    "conv_dim",
                    "conv_kernel",
                    "conv_stride",
                    "num_conv_pos_embeddings",
                    "num_conv_pos_embedding_groups",
                )
            }
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="model_type 'wav2vec2' where the model has 'hubert'"):
        hubert_weights(tmp_path, SMALL)


def test_hubert_missing_and_left_over(tmp_path):
    state = small_hubert().state_dict()
    model, path = SGMIM(SMALL), tmp_path / "h.safetensors"
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for bad, words in (
        (
            {k: v for k, v in state.items() if k != "encoder.layer_norm.bias"},
            "1 missing: encoder.layer_norm.bias",
        ),
        ({**state, "quantizer.vars": torch.zeros(2)}, "1 unexpected: quantizer.vars"),
        ({**state, "encoder.layer_norm.bias": torch.zeros(65)}, "of another shape: encoder.layer_norm.bias"),
        ({k: v for k, v in state.items() if "layers.1." not in k}, "audio_depth 1 where the model has 2"),
    ):
        save_file(bad, path)
        with pytest.raises(CheckpointError, match=words):
            load_pretrained(model, audio=path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # refused, and left alone


def test_half_precision_and_damage(tmp_path):
    state = small_hubert().state_dict()
    save_file({k: v.half() for k, v in state.items()}, tmp_path / "half.safetensors")
    model = empty_model(SMALL)
    load_pretrained(model, audio=tmp_path / "half.safetensors")
    mine = model.audio_encoder.hubert.state_dict()
    assert all(v.dtype == torch.float32 for v in mine.values())
    close(mine["encoder.layer_norm.bias"], state["encoder.layer_norm.bias"], 1e-3)
    state["encoder.layer_norm.bias"] = state["encoder.layer_norm.bias"].clone()
    state["encoder.layer_norm.bias"][3] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="not finite, in encoder.layer_norm.bias"):
        load_pretrained(model, audio=tmp_path / "nan.safetensors")


# ---- images, in small


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(5)
    return shaken(SGMIM(SMALL).image_encoder.vit)


def test_mae_full_checkpoint(tmp_path, vit):
    decoder = {
        "mask_token": torch.zeros(1, 1, 32),
        "decoder_pos_embed": torch.zeros(1, 17, 32),
        "decoder_embed.weight": torch.zeros(32, 64),
        "decoder_blocks.0.norm1.bias": torch.zeros(32),
        "decoder_norm.bias": torch.zeros(32),
        "decoder_pred.bias": torch.zeros(432),
    }
    torch.save(
        {
            "model": {**vit.state_dict(), **decoder},
            "optimizer": {},
            "epoch": 799,
            "scaler": {},
            "args": argparse.Namespace(mask_ratio=0.75),
        },
        tmp_path / "mae.pth",
    )
    w = image_weights(tmp_path / "mae.pth", SMALL)
    assert set(w) == set(vit.state_dict()) and set(w.source.left_out) == set(decoder)
    assert w.source.beside == ("optimizer", "epoch", "scaler", "args") and w.source.not_read == (
        "argparse.Namespace",
    )


@pytest.mark.parametrize("zipped", [True, False])
@torch.no_grad()
def test_dino_full_checkpoint(tmp_path, vit, zipped):
    head = {
        "head.mlp.0.weight": torch.zeros(8, 64),
        "head.last_layer.weight_g": torch.ones(9, 1),
        "head.last_layer.weight_v": torch.zeros(9, 8),
    }
    teacher = {f"backbone.{k}": v for k, v in vit.state_dict().items()} | head
    student = {f"module.{k}": v + 1 for k, v in teacher.items()}
    torch.save(
        dict(
            student=student,
            teacher=teacher,
            optimizer={},
            epoch=800,
            args=argparse.Namespace(arch="vit_small"),
            dino_loss={"center": torch.zeros(1, 9)},
        ),
        tmp_path / "full.pth",
        _use_new_zipfile_serialization=zipped,
    )
    model, image = empty_model(SMALL), torch.randn(2, 3, 48, 48, generator=seeded())
    report = load_pretrained(model, image=tmp_path / "full.pth")
    close(model.image_encoder(image), vit.forward_features(image))
    assert (
        set(report.sources["image"].left_out) == set(head)
        and "student" in report.sources["image"].beside
        and "'teacher'" in str(report)
    )
    s = image_weights(tmp_path / "full.pth", SMALL, entry="student")
    assert all(torch.equal(s[k], v + 1) for k, v in vit.state_dict().items())
    with pytest.raises(CheckpointError, match="has no entry 'momentum'; it has student, teacher"):
        image_weights(tmp_path / "full.pth", entry="momentum")


def test_classifier_is_left_out_and_reported(tmp_path, vit):
    save_file(
        {**vit.state_dict(), "head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)},
        tmp_path / "model.safetensors",
    )
    # timm's config says other things
    write_json(tmp_path / "config.json", {"architecture": "vit_small_patch8_224"})
    w = image_weights(tmp_path, SMALL)
    assert set(w.source.left_out) == {
        "head.weight",
        "head.bias",
    } and "left out: head.bias, head.weight" in str(w.source)


def test_another_vit(tmp_path, vit):
    path = tmp_path / "v.safetensors"
    save_file(vit.state_dict(), path)
    with pytest.raises(
        CheckpointError,
        match=(
            r"for images of 48 pixels a side, the model takes 96: it is not resized here.*set image_size=48"
        ),
    ):
        image_weights(path, replace(SMALL, image_size=96))
    for change, words in (
        (dict(image_width=128), "image_width 64 where the model has 128"),
        (dict(image_depth=3), "image_depth 2"),
        (dict(patch_size=16), "patch_size 12"),
    ):
        with pytest.raises(CheckpointError, match=words):
            image_weights(path, replace(SMALL, **change))
    model = empty_model(SMALL)
    for bad, words in (
        ({**vit.state_dict(), "dist_token": torch.zeros(1)}, "1 unexpected: dist_token"),
        ({k: v for k, v in vit.state_dict().items() if k != "cls_token"}, "1 missing: cls_token"),
    ):
        save_file(bad, path)
        with pytest.raises(CheckpointError, match=words):
            load_pretrained(model, image=path)


def test_not_an_image_encoder(tmp_path):
    save_file({"vit.embeddings.cls_token": torch.zeros(1)}, tmp_path / "v.safetensors")
    with pytest.raises(CheckpointError, match="has no vision transformer under a name known here"):
        image_weights(tmp_path / "v.safetensors")
    save_file(
        {f"{p}.patch_embed.proj.weight": torch.zeros(1) for p in ("a", "b")}, tmp_path / "v.safetensors"
    )
    with pytest.raises(CheckpointError, match="more than one vision transformer, under 'a.', 'b.'"):
        image_weights(tmp_path / "v.safetensors")


def test_momentum_encoder_follows_and_runs_repeat(tmp_path, vit):
    save_file(vit.state_dict(), tmp_path / "v.safetensors")
    small_hubert().save_pretrained(tmp_path)

    def start():
        torch.manual_seed(0)
        m = SGMIM(replace(SMALL, reinit_layers=1))
        return m, load_pretrained(m, tmp_path / "v.safetensors", tmp_path, seeded(7))

    (a, report), (b, _) = start(), start()
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert torch.equal(a.momentum_encoder.vit.norm.bias, vit.norm.bias)
    kept = json.loads(json.dumps(report.to_dict()))
    assert (
        kept["image"]["name"] == "v.safetensors"
        and kept["audio"]["tensors"] == 50
        and kept["reinitialised"] == ["audio_encoder.hubert.encoder.layers.1"]
    )
    # no path of this machine
    assert len(kept["image"]["blake2b"]) == 32 and str(tmp_path.parent) not in json.dumps(kept)


def test_nothing_and_one(tmp_path, vit):
    m = SGMIM(SMALL)
    said = []
    assert (
        load_pretrained(m).to_dict() == {"reinitialised": []}
        and str(load_pretrained(m)) == "nothing was loaded"
    )
    save_file(vit.state_dict(), tmp_path / "v.safetensors")
    assert list(load_pretrained(m, image=tmp_path / "v.safetensors", progress=said.append).to_dict()) == [
        "image",
        "reinitialised",
    ]
    assert any("reading v.safetensors" in line for line in said)


# ---- VG-HuBERT, in small


def vg_state(seed=0):
    "Random tensors under VG-HuBERT's names; the heads and both [CLS] too."
    torch.manual_seed(seed)
    m = shaken(SGMIM(VG_SMALL), seed)
    back = {
        _vg_name(k): k
        for k in [
            f"audio_encoder.{k.removeprefix('encoder.') if 'pos_conv' in k else k}"
            for k in to_fairseq(m.audio_encoder.hubert.state_dict())
        ]
    }
    state = {back[f"audio_encoder.hubert.{k}"]: v for k, v in m.audio_encoder.hubert.state_dict().items()}
    state |= {
        "audio_encoder.cls_token": m.audio_encoder.cls_token.detach(),
        **{f"trm.{k}": v for k, v in m.image_encoder.vit.state_dict().items()},
    }
    return m, state | {
        f"{theirs}_cls_token_proj.{k}": v
        for theirs, ours in (("audio", m.audio_proj), ("visual", m.image_proj))
        for k, v in ours.state_dict().items()
    }


@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_vg_hubert_against_a_reference_by_hand(tmp_path, prefix):
    m, state = vg_state()
    torch.save({"dual_encoder": {prefix + k: v for k, v in state.items()}}, tmp_path / "best_bundle.pth")
    model, report = vg_hubert_model(tmp_path / "best_bundle.pth", VG_SMALL, device="cpu")
    x, image = torch.randn(2, 6000, generator=seeded()) * 0.1, torch.randn(2, 3, 48, 48, generator=seeded())
    audio = {k.removeprefix("audio_encoder."): v for k, v in state.items() if k.startswith("audio_encoder.")}

    def head(z, n):
        return F.linear(
            F.gelu(F.linear(z, state[f"{n}.0.weight"], state[f"{n}.0.bias"])),
            state[f"{n}.2.weight"],
            state[f"{n}.2.bias"],
        )

    z = hubert_by_hand(audio, x, 4, SMALL.conv_stride, cls=audio["cls_token"])
    close(model.embed_audio(x), head(z[:, 0], "audio_cls_token_proj"))
    close(model.audio_encoder(x).frames, z[:, 1:])
    close(
        model.embed_image(image),
        head(m.image_encoder.vit.forward_features(image)[:, 0], "visual_cls_token_proj"),
    )
    assert report.sources["model"].tensors == len(state) == len(model.state_dict()) and "no args.pkl" in str(
        report
    )


def test_vg_hubert_faults(tmp_path):
    _, state = vg_state()

    def bundle(s):
        torch.save({"dual_encoder": s}, tmp_path / "best_bundle.pth")

    # an auxiliary loss's: known
    bundle({**state, "audio_feats_proj.0.bias": torch.zeros(2), "visual_feats_proj.0.bias": torch.zeros(2)})
    assert vg_hubert_model(tmp_path, VG_SMALL, device="cpu")[1].sources["model"].left_out == (
        "audio_feats_proj.0.bias",
        "visual_feats_proj.0.bias",
    )
    for bad, words in (
        (
            {k: v for k, v in state.items() if k != "audio_encoder.cls_token"},
            "1 missing: audio_encoder.cls_token",
        ),
        ({**state, "xtrm.0.bias": torch.zeros(1)}, "1 unexpected: xtrm.0.bias"),
        ({k: v for k, v in state.items() if not k.startswith("audio_cls")}, "4 missing: audio_proj.0.weight"),
    ):
        bundle(bad)
        with pytest.raises(CheckpointError, match=words):
            vg_hubert_model(tmp_path, VG_SMALL)
    bundle(state)
    with pytest.raises(
        CheckpointError, match="the convolutional block of this VG-HuBERT does not fit: conv_dim"
    ):
        vg_hubert_model(tmp_path)
    for args, words in (
        (argparse.Namespace(layer_norm_first=True), "layer_norm_first True where the model has False"),
        ([3], "has no named settings"),
    ):
        (tmp_path / "args.pkl").write_bytes(pickle.dumps(args))
        with pytest.raises(CheckpointError, match=words):
            vg_hubert_model(tmp_path, VG_SMALL)
    (tmp_path / "args.pkl").write_bytes(pickle.dumps({"layer_use": 1}))
    vg_hubert_model(tmp_path, VG_SMALL, device="cpu")  # a dict will do
    with pytest.raises(CheckpointError, match="does not exist"):
        vg_hubert_model(tmp_path / "elsewhere")


def test_sizes_of_vg_hubert_come_from_its_tensors(tmp_path):
    c = replace(
        vg_hubert(),
        image_width=64,
        image_heads=1,
        image_depth=2,
        audio_width=128,
        audio_heads=2,
        audio_depth=2,
        audio_hidden=256,
        embed_dim=96,
        reinit_layers=2,
        decoder_heads=1,
    )
    torch.manual_seed(0)
    m = SGMIM(c)
    back = {
        _vg_name(f"audio_encoder.{k}"): f"audio_encoder.{k}"
        for k in to_fairseq(m.audio_encoder.hubert.state_dict())
    }
    heads = {"audio_proj": "audio_cls_token_proj", "image_proj": "visual_cls_token_proj"}

    def theirs(k):
        first, rest = k.split(".", 1)
        return back.get(k) or (
            k.replace("image_encoder.vit", "trm")
            if first == "image_encoder"
            else f"{heads.get(first, first)}.{rest}"
        )

    torch.save({"dual_encoder": {theirs(k): v for k, v in m.state_dict().items()}}, tmp_path / "b.pth")
    assert vg_hubert_model(tmp_path / "b.pth", device="cpu")[0].config == c


def test_encoders_of_a_bundle(tmp_path):
    m, state = vg_state()
    torch.save({"dual_encoder": state}, tmp_path / "best_bundle.pth")
    image, audio = (
        image_weights(tmp_path / "best_bundle.pth", SMALL),
        hubert_weights(tmp_path / "best_bundle.pth", SMALL),
    )
    model = empty_model(SMALL)
    load_backbones(model, image, audio)
    assert torch.equal(
        model.audio_encoder.hubert.encoder.layer_norm.bias, m.audio_encoder.hubert.encoder.layer_norm.bias
    )
    assert "cls_token" in audio.source.left_out and torch.equal(
        model.image_encoder.vit.norm.bias, m.image_encoder.vit.norm.bias
    )


def test_a_query_without_a_dimension_is_refused(tmp_path):
    state = {
        f"encoder.layer.0.attention.attention.{p}.weight": torch.tensor(1.0)
        for p in ("query", "key", "value")
    }
    save_file(
        state | {"embeddings.patch_embeddings.projection.weight": torch.zeros(8, 3, 4, 4)},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(CheckpointError, match="query, key and value"):
        image_weights(tmp_path / "a.safetensors")


# ---- transformers' names for a ViT

# MAE's own eps, and the model's
VIT_SIZES = dict(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=256,
    image_size=48,
    patch_size=12,
    layer_norm_eps=1e-6,
)
MAE_SIZES = dict(
    mask_ratio=0.0,
    decoder_hidden_size=32,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=64,
)


def features_of(model, image):
    "All patches of an image, in order: for MAE, noise that rises from patch to patch shuffles nothing."
    if not isinstance(model, ViTMAEModel):
        return model(image).last_hidden_state
    return model(image, noise=torch.arange(16.0).expand(len(image), -1)).last_hidden_state


@pytest.mark.parametrize("saved", ["old names", "new names"])
@pytest.mark.parametrize(
    "kind", ["ViTMAEForPreTraining", "ViTMAEModel", "ViTModel", "ViTForImageClassification"]
)
@torch.no_grad()
def test_vit_of_transformers(tmp_path, kind, saved):
    torch.manual_seed(0)
    mae = "MAE" in kind
    hf = shaken(
        getattr(transformers, kind)(
            (ViTMAEConfig if mae else ViTConfig)(**VIT_SIZES, **(MAE_SIZES if mae else {}))
        )
    )
    hf.save_pretrained(tmp_path)  # writes the names of the files on the hub
    if saved == "new names":
        save_file(hf.state_dict(), tmp_path / "model.safetensors")
    names = set(load_file(tmp_path / "model.safetensors"))
    assert any("attention.attention.query" in k for k in names) == (saved == "old names")
    model, image, said = empty_model(SMALL), torch.randn(2, 3, 48, 48, generator=seeded()), []
    report = load_pretrained(model, image=tmp_path, progress=said.append)
    close(model.image_encoder(image), features_of(getattr(hf, "vit", hf), image))
    assert report.sources["image"].tensors == len(
        model.image_encoder.vit.state_dict()
    ) and "transformers' names" in str(report)
    vit = {k.removeprefix("vit.") for k in names}
    # told, not lost
    assert len(report.sources["image"].left_out) == sum(
        k.startswith(("decoder.", "pooler.", "classifier.")) for k in vit
    )


@pytest.mark.slow
@torch.no_grad()
def test_vit_mae_base_at_full_size(big):
    with torch.device("meta"):
        hf = ViTMAEForPreTraining(ViTMAEConfig())
    torch.save(
        {
            k: torch.zeros(v.shape, dtype=torch.float16)
            for k, v in hf.state_dict().items()
            if k.startswith("vit.")
        },
        big / "pytorch_model.bin",
    )
    w = image_weights(big / "pytorch_model.bin", paper())
    with torch.device("meta"):
        own = SGMIM(replace(paper(), reconstruction="none")).image_encoder.vit.state_dict()
    assert {k: v.shape for k, v in w.items()} == {k: v.shape for k, v in own.items()}


def test_faults_of_a_vit_of_transformers(tmp_path):
    hf = ViTModel(ViTConfig(**VIT_SIZES))
    hf.save_pretrained(tmp_path)
    state, config = load_file(tmp_path / "model.safetensors"), read_json(tmp_path / "config.json")
    for change, words in (
        ({"num_attention_heads": 4}, "image_heads 4 where the model has 2"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"qkv_bias": False}, "qkv_bias False"),
    ):
        write_json(tmp_path / "config.json", {**config, **change})
        with pytest.raises(CheckpointError, match=words):
            image_weights(tmp_path, SMALL)
    write_json(tmp_path / "config.json", config)
    key = "encoder.layer.1.attention.attention.key.weight"
    for bad, words in (
        (
            {k: v for k, v in state.items() if k != key},
            r"query, key and value of blocks.1.attn.\*.weight are not all there",
        ),
        ({**state, key: torch.zeros(64, 63)}, "or of different widths"),
        ({**state, key: state[key].to(torch.int8)}, f"{key} is int8"),
        (
            {**state, "encoder.layer.7.layernorm_before.bias": torch.zeros(64)},
            "must be 0 to 2, but 7 is among them",
        ),
        (
            {k: v for k, v in state.items() if k != "layernorm.bias"},
            f"{tmp_path}, as image weights, .*1 missing: norm.bias",
        ),
    ):
        save_file(bad, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=words):
            load_pretrained(empty_model(SMALL), image=tmp_path)


@pytest.mark.parametrize(
    "extra,words",
    [
        ({"blocks.0.ls1.gamma": torch.ones(64)}, "layer scale and patches of 12 pixels, as DINOv2"),
        ({"reg_token": torch.ones(1, 4, 64)}, "register tokens and patches"),
        ({"pos_embed": torch.ones(1, 196, 64)}, "positional embedding has 196 rows, which are not"),
        ({"pos_embed": torch.ones(1, 198, 64), "dist_token": torch.ones(1, 1, 64)}, "198 rows"),
    ],
)
def test_a_vit_that_is_not_plain_is_named(tmp_path, vit, extra, words):
    save_file({**vit.state_dict(), **extra}, tmp_path / "v.safetensors")
    with pytest.raises(CheckpointError, match=f"v.safetensors.*{words}"):
        image_weights(tmp_path / "v.safetensors", SMALL)


def test_missing_tensors_name_the_file(tmp_path):
    hubert = {k: v for k, v in small_hubert().state_dict().items() if k != "encoder.layer_norm.bias"}
    save_file(hubert, tmp_path / "h.safetensors")
    with pytest.raises(
        CheckpointError,
        match=f"{tmp_path}/h.safetensors, as audio weights, .*1 missing: encoder.layer_norm.bias",
    ):
        load_pretrained(empty_model(SMALL), audio=tmp_path / "h.safetensors")


# ---- the files of VG-HuBERT that are on the hub


def vg_files(folder, *names):
    "Files of VG-HuBERT in small: the whole model, or its audio encoder alone, by name."
    _, state = vg_state()
    audio = {k.removeprefix("audio_encoder."): v for k, v in state.items() if k.startswith("audio_encoder.")}
    for name in names:
        torch.save(
            {"audio_encoder": audio} if "word" in name or "snapshot" in name else {"dual_encoder": state},
            folder / name,
        )
    return state, audio


def test_vg_hubert_audio_encoder_alone(tmp_path):
    _, audio = vg_files(tmp_path, "vg-hubert-word.pth")
    path = tmp_path / "vg-hubert-word.pth"
    for source in (path, tmp_path):  # the file, or its folder
        w = hubert_weights(source, SMALL)
        assert (
            len(w) == len(audio) - 1
            and w.source.left_out == ("cls_token",)
            and "'audio_encoder'" in w.source.layout
        )
    assert torch.equal(
        w["encoder.layers.1.feed_forward.output_dense.weight"], audio["encoder.layers.1.fc2.weight"]
    )
    for source in (path, tmp_path):
        with pytest.raises(
            CheckpointError,
            match=r"vg-hubert-word.pth has an audio encoder but no image encoder.*--audio-weights",
        ):
            vg_hubert_model(source, VG_SMALL)


@pytest.mark.parametrize(
    "names,took",
    [
        (["vg-hubert-syllable.pth"], 0),
        (["snapshot_20.pth", "best_bundle.pth"], 1),
        (["vg-hubert-syllable.pth", "vg-hubert-word.pth"], 0),
        (["best_bundle.pth", "snapshot_3.pth"], 0),
    ],
)
def test_folder_of_vg_hubert(tmp_path, names, took):
    vg_files(tmp_path, *names)
    said = []
    _, report = vg_hubert_model(tmp_path, VG_SMALL, "cpu", progress=said.append)
    assert report.sources["model"].name == names[took]
    assert len(names) == 1 or any(
        f"took {names[took]} of " in line and names[1 - took] in line for line in said
    )
    assert image_weights(tmp_path, SMALL)["norm.bias"].shape == (64,)


def test_folder_with_a_choice_of_vg_hubert(tmp_path):
    vg_files(tmp_path, "snapshot_20.pth", "snapshot_30.pth")
    with pytest.raises(
        CheckpointError, match="has snapshot_20.pth, snapshot_30.pth: give the path of the one"
    ):
        hubert_weights(tmp_path, SMALL)
    (tmp_path / "snapshot_20.pth").unlink()
    assert hubert_weights(tmp_path, SMALL).source.left_out == ("cls_token",)


def test_vg_hubert_by_its_name_on_the_hub(tmp_path, monkeypatch):
    vg_files(tmp_path, "vg-hubert-syllable.pth", "vg-hubert-word.pth")
    (tmp_path / "args.pkl").write_bytes(pickle.dumps(argparse.Namespace(encoder_attention_heads=4)))
    files = {p.name: p for p in tmp_path.iterdir()}
    fake_hub(monkeypatch, files)
    with pytest.raises(CheckpointError, match=f"no weights for {VG_HUB}: it is not in the cache"):
        vg_hubert_model(VG_HUB, VG_SMALL)
    _, report = vg_hubert_model(VG_HUB, VG_SMALL, "cpu", download=True)
    assert report.sources["model"].name == f"{VG_HUB}/vg-hubert-syllable.pth" and "no args.pkl" not in str(
        report
    )
    fake_hub(monkeypatch, {}, files)
    assert hubert_weights(VG_HUB, SMALL).source.name == VG_HUB

    with pytest.raises(CheckpointError, match="conv_dim"):
        open_checkpoint(Path(VG_HUB))  # found, and read: the small one has other convolutions


# ---- names on the hub; never the network


def fake_hub(monkeypatch, present, cached=(), fails=None):
    "hf_hub_download as it answers for a repository with files `present`, of which `cached` are here already."
    calls = []

    def download(repo, name, local_files_only=False, **kw):
        calls.append((repo, name, local_files_only))
        if name in cached:
            return str(cached[name])
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        if fails:
            raise fails
        if name not in present:
            raise EntryNotFoundError(f"404: no {name}")
        return str(present[name])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return calls


def test_hub_is_offline_unless_asked(tmp_path, monkeypatch):
    small_hubert().save_pretrained(tmp_path)
    here = {n: tmp_path / n for n in ("model.safetensors", "config.json")}
    calls = fake_hub(monkeypatch, here)
    with pytest.raises(
        CheckpointError,
        match=r"not in the cache on this machine.*download=True; --download.*hubert/hubert_base_ls960.pt",
    ):
        hubert_weights(PAPER_AUDIO, SMALL)
    assert calls and all(local for _, _, local in calls)
    w = hubert_weights(PAPER_AUDIO, SMALL, download=True)
    assert w.source.name == PAPER_AUDIO and len(w) == 50
    with pytest.raises(CheckpointError, match="audio_width 64 where the model has 768"):
        hubert_weights(PAPER_AUDIO, download=True)  # its config.json is read too


def test_hub_from_the_cache(tmp_path, monkeypatch):
    torch.save(small_hubert().state_dict(), tmp_path / "pytorch_model.bin")
    said = []
    # no safetensors, as HuBERT's repository has none
    fake_hub(monkeypatch, {}, {"pytorch_model.bin": tmp_path / "pytorch_model.bin"})
    assert (
        len(hubert_weights(PAPER_AUDIO, SMALL, progress=said.append)) == 50
        and "looking in the cache" in said[0]
    )


def test_timm_names(tmp_path, monkeypatch, vit):
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    calls = fake_hub(monkeypatch, {"model.safetensors": tmp_path / "model.safetensors"})
    assert (
        image_weights(PAPER_IMAGE, SMALL, download=True).source.name == "timm/vit_base_patch16_224.mae"
        and calls[0][0] == "timm/vit_base_patch16_224.mae"
    )
    with pytest.raises(
        CheckpointError, match="dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth"
    ):
        image_weights(PAPER_IMAGE, SMALL)
    with pytest.raises(CheckpointError, match="dino_deitsmall8_pretrain.pth"):
        image_weights("vit_small_patch8_224.dino", SMALL)
    with pytest.raises(CheckpointError, match="did you mean 'vit_base_patch16_224.mae'"):
        _timm_repo("vit_base_patch16_224.mea")
    with pytest.raises(CheckpointError, match="neither a file, nor a folder, nor one of timm's"):
        image_weights("vit_base_patch16_224")  # which of its many weights?


@pytest.mark.parametrize(
    "error,words",
    [
        (None, "it has none of model.safetensors"),
        (LocalEntryNotFoundError("offline"), "the hub cannot be reached"),
        (ConnectionError("no route"), "ConnectionError: no route"),
        (ValueError(), "ValueError: no details"),
    ],
)
def test_hub_refusals(monkeypatch, error, words):
    fake_hub(monkeypatch, {}, fails=error)
    with pytest.raises(
        CheckpointError, match=f"no weights for some/body: {words}.*https://huggingface.co/some/body"
    ):
        hubert_weights("some/body", download=True)


def test_locate(tmp_path):
    with pytest.raises(
        CheckpointError,
        match="none of model.safetensors, pytorch_model.bin, weights.safetensors, .*; it has nothing",
    ):
        locate(tmp_path)
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(CheckpointError, match="it has tf_model.h5"):
        locate(tmp_path)
    for name in ("some/where/mae.pth", "mae.pth", "/no/such/place", "weights/mae.pth"):
        with pytest.raises(CheckpointError, match="does not exist"):
            locate(name)


# ---- files that are no checkpoints


@pytest.mark.parametrize(
    "content,words",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>sign in", "a web page"),
        (b'\n  <html lang="en">', "a web page"),
        (b'<?xml version="1.0"?><Error>', "XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git lfs pull"),
        (b"\x1f\x8b\x08 gz", "compressed"),
        (b'{"error": "gated"}', "no format known"),
        (b"hello, world", "no format known"),
        (b"PK\x03\x04 rest of a zip", "cannot be read as torch"),
        (b"\x80\x02", "cannot be read as pickle"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "legacy"),
        (struct.pack("<Q", 99) + b'{"a":', "cannot be read as safetensors"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, words):
    for name in ("x.pt", "x.bin", "x.safetensors"):  # the name does not matter
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            read_file(tmp_path / name)
        with pytest.raises(CheckpointError, match=words):
            hubert_weights(tmp_path / name)


def test_missing_file_and_archives(tmp_path):
    for p in (tmp_path / "nowhere.pt", tmp_path):
        with pytest.raises(CheckpointError, match="does not exist"):
            read_file(p)
    (tmp_path / "x").write_text("x")
    with tarfile.open(tmp_path / "vg-hubert_3.tar", "w") as tar:
        tar.add(tmp_path / "x", "vg-hubert_3/best_bundle.pth")
    with pytest.raises(CheckpointError, match=r"is a tar archive. Unpack it"):
        read_file(tmp_path / "vg-hubert_3.tar")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as z:
        z.write(tmp_path / "x")
    with pytest.raises(CheckpointError, match="cannot be read as torch"):
        read_file(tmp_path / "x.zip")
    with pytest.raises(CheckpointError, match="at its top are: epoch, model"):
        torch.save({"epoch": 1, "model": {}}, tmp_path / "e.pt")
        hubert_weights(tmp_path / "e.pt")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_truncated(tmp_path, share):
    for i, zipped in enumerate((True, False, None)):
        path, state = tmp_path / f"{i}.pt", {"w": torch.randn(60, 50)}
        (
            save_file(state, path)
            if zipped is None
            else torch.save(
                {"model": state, "args": argparse.Namespace(a=1)}, path, _use_new_zipfile_serialization=zipped
            )
        )
        blob = path.read_bytes()
        path.write_bytes(blob[: int(len(blob) * share)])
        with pytest.raises(CheckpointError, match="fetch it again|no format known"):
            read_file(path)


# ---- hostile files


class Call:
    def __init__(self, f, *args):
        self.f, self.args = f, args

    def __reduce__(self):
        return self.f, self.args


def strikes(mark):
    "Objects whose unpickling would leave the file `mark` behind, or worse."
    write = f'open({str(mark)!r}, "w").close()'
    return [
        Call(os.system, f"touch {mark}"),
        Call(eval, write),
        Call(exec, write),
        Call(subprocess.Popen, ["touch", str(mark)]),
        Call(open, str(mark), "w"),
        Call(getattr, Call(importlib.import_module, "os"), "system"),
        Call(functools.partial(os.system, f"touch {mark}")),
        Call(operator.methodcaller("touch"), Path(mark)),
        Call(torch.hub.load, "a/b", "c"),
        Call(torch.load, "x"),
        Call(torch.storage._load_from_bytes, pickle.dumps(Call(eval, write))),
        Call(compile, write, "", "exec"),
        Call(builtins.__import__, "antigravity"),
        Call(setattr, OrderedDict, "x", 1),
        Call(sys.exit, 3),
    ]


def zip_with(path, data):
    "A file as torch.save writes it, whose pickle is `data`."
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, data if item.filename.endswith("data.pkl") else old.read(item))


def legacy_with(path, data):
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    buffer.seek(0)
    for _ in range(3):
        pickle.load(buffer)  # torch's magic number, version, machine: then comes the object
    path.write_bytes(buffer.getvalue()[: buffer.tell()] + data + pickle.dumps([], 2))


def safe(path):
    "Read it, or refuse it: names that it named."
    try:
        content, _, names = read_file(path)
    except CheckpointError as e:
        return str(e)
    return " ".join(names) + repr(content)


@pytest.mark.parametrize("i", range(15))
@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle"])
def test_hostile_objects_do_nothing(tmp_path, kind, i):
    mark, path = tmp_path / "mark", tmp_path / "x.pt"
    strike = strikes(mark)[i]
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"w": strike}))
    else:
        torch.save(
            {"model": {"w": torch.ones(3)}, "extra": strike},
            path,
            _use_new_zipfile_serialization=kind == "torch",
        )
    content, _, names = read_file(path)
    assert names and not mark.exists() and not hasattr(OrderedDict, "x") and "antigravity" not in sys.modules
    assert any(
        n.split(".")[-1] in str(strike.f) or n.endswith(("getattr", "partial", "methodcaller")) for n in names
    ), (names, strike.f)
    if kind != "pickle":
        assert isinstance(content["extra"], Inert)
        state, entry, beside = _find_state(content, path)
        assert entry == "model" and torch.equal(state["w"], torch.ones(3)) and beside == ("extra",)


def test_strikes_are_real(tmp_path):
    for i in (0, 1, 2, 4):
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(strikes(tmp_path / f"m{i}")[i]))
        assert (tmp_path / f"m{i}").exists()


RAW = {
    "a protected class is changed": (
        b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aX\x01\x00\x00\x00bsb."
    ),
    "a protected function is changed": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x08\x00\x00\x00__name__X\x01\x00\x00\x00bs\x86b."
    ),
    "attribute of the stand-in": b"\x80\x02cos\npath\n}X\x05\x00\x00\x00stateX\x01\x00\x00\x00bsb.",
    "dotted name": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    "old style object": b"\x80\x02(X\x04\x00\x00\x00trueios\nsystem\n.",
    "storage that is none": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\nK\x00)){}tR.",
    "persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "extension": b"\x80\x02\x82\x01.",
    "no end": b"\x80\x02}q\x00",
    "class as a function of itself": b"\x80\x02cos\nsystem\ncos\nsystem\n\x85RK\x01\x85R.",
}


@pytest.mark.parametrize("name", RAW)
def test_hostile_pickles_by_hand(tmp_path, name):
    before = (
        dict(vars(torch._utils._rebuild_tensor_v2)),
        torch._utils._rebuild_tensor_v2.__name__,
        set(dir(OrderedDict)),
        set(dir(Inert)),
    )
    for kind in ("torch", "legacy", "pickle"):
        path = tmp_path / kind
        (
            zip_with(path, RAW[name])
            if kind == "torch"
            else legacy_with(path, RAW[name])
            if kind == "legacy"
            else path.write_bytes(RAW[name])
        )
        safe(path)
    after = (
        dict(vars(torch._utils._rebuild_tensor_v2)),
        torch._utils._rebuild_tensor_v2.__name__,
        set(dir(OrderedDict)),
        set(dir(Inert)),
    )
    assert before == after


def test_torchscript_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_file(tmp_path / "script.pt")


def test_a_file_that_names_what_is_installed_imports_nothing(tmp_path):
    (tmp_path / "sentinel_module.py").write_text('raise SystemExit("imported")')
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02csentinel_module\nThing\n)R.")
    sys.path.insert(0, str(tmp_path))
    try:
        content, _, names = read_file(tmp_path / "x.pkl")
    finally:
        sys.path.remove(str(tmp_path))
    assert (
        names == ("sentinel_module.Thing",)
        and "sentinel_module" not in sys.modules
        and "not read" in repr(content)
    )


def test_stand_ins_take_everything():
    with foreign("lib.a.MyDict", "lib.a.MyChoice", "lib.a.Plain") as (MyDict, Choice, Plain):

        class MyList(list):
            __module__, __qualname__ = "lib.a", "MyList"

        class MySet(set):
            __module__, __qualname__ = "lib.a", "MySet"

        class Slots:
            __slots__ = ("a",)
            __module__, __qualname__ = "lib.a", "Slots"

        for c in (MyList, MySet, Slots):
            setattr(sys.modules["lib.a"], c.__qualname__, c)
        p, s = Plain(), Slots()
        p.x, s.a = [1, {"y": 2}], 4
        objects = [MyDict(a=1, b=MyDict()), Choice.b, p, MyList([1, 2]), MySet([3]), s, {p: 1}, (p, p)]
        blobs = [pickle.dumps(objects, protocol) for protocol in range(2, 6)]
    for blob in blobs:
        seen = set()
        read = _inert_pickle(seen).load(io.BytesIO(blob))
        assert (
            "lib.a.Plain" in seen
            and "lib.a.MyDict" in seen
            and read[2].state == {"x": [1, {"y": 2}]}
            and read[7][0] is read[7][1]
        )


def test_plain_files_name_nothing(tmp_path):
    state = {
        "a": torch.randn(3, 2),
        "b": torch.ones(2, dtype=torch.bfloat16),
        "p": nn.Parameter(torch.zeros(1)),
        "i": torch.arange(3),
    }
    for zipped in (True, False):
        torch.save(OrderedDict(state), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        content, kind, names = read_file(tmp_path / "x.pt")
        assert names == () and all(torch.equal(content[k], v) for k, v in state.items())
        # by the stand-ins
        torch.save(
            {"model": OrderedDict(state), "args": argparse.Namespace(n=1)},
            tmp_path / "y.pt",
            _use_new_zipfile_serialization=zipped,
        )
        content, kind, names = read_file(tmp_path / "y.pt")
        got = _find_state(content, "y.pt")[0]
        assert names == ("argparse.Namespace",) and all(
            torch.equal(got[k], v) and got[k].dtype == v.dtype and type(got[k]) is torch.Tensor
            for k, v in state.items()
        )


# ---- files that would exhaust the machine, or hold what is no weight


def limited(gigabytes=3):
    """Less address space for what follows, so that a test of a bomb fails and does not take the machine
    with it."""

    @contextlib.contextmanager
    def within():
        old, used = (
            resource.getrlimit(resource.RLIMIT_AS),
            int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize(),
        )
        resource.setrlimit(resource.RLIMIT_AS, (used + gigabytes * 2**30, old[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, old)

    return within()


def no_model_is_built(monkeypatch):
    "Building a model fails where it would take memory: on any device but torch's meta device."
    build = SGMIM.__init__

    def checked(self, config):
        assert torch.empty(0).device.type == "meta", "a model was built before its file was checked"
        build(self, config)

    monkeypatch.setattr(SGMIM, "__init__", checked)


FC1 = "audio_encoder.encoder.layers.1.fc1.weight"
SIZES = {
    "layer of audio": {"audio_encoder.encoder.layers.999999.fc1.weight": torch.zeros(1)},
    "block of image": {"trm.blocks.999999.norm1.bias": torch.zeros(1)},
    "gap": {"trm.blocks.3.norm1.bias": torch.zeros(1)},
    "index that is no number": {"trm.blocks.x.norm1.bias": torch.zeros(1)},
    "leading zero": {"trm.blocks.01.norm1.bias": torch.zeros(1)},
    "index of 5,000 digits": {f"trm.blocks.{'9' * 5000}.norm1.bias": torch.zeros(1)},
    "convolution": {"audio_encoder.feature_extractor.conv_layers.999999.0.weight": torch.zeros(1)},
    "many layers": {f"trm.blocks.{i}.norm1.bias": torch.zeros(1) for i in range(2, 400)},
    "width": {"trm.patch_embed.proj.weight": torch.zeros(10**9, 0, 12, 12)},
    "patches": {"trm.pos_embed": torch.zeros(1, 10**12 + 1, 0)},
    "embedding": {"audio_cls_token_proj.2.weight": torch.zeros(10**12, 0)},
    "hidden width": {"audio_encoder.encoder.layers.0.fc1.weight": torch.zeros(10**12, 0)},
    "positional kernel": {"audio_encoder.pos_conv.0.weight_v": torch.zeros(64, 0, 10**12)},
    "scalar": {"audio_cls_token_proj.2.weight": torch.tensor(1.0)},
}


@pytest.mark.parametrize("what", SIZES)
def test_sizes_are_checked_before_a_model_is_built(tmp_path, monkeypatch, what):
    c = replace(
        vg_hubert(),
        image_width=64,
        image_heads=1,
        image_depth=2,
        audio_width=64,
        audio_heads=1,
        audio_depth=2,
        audio_hidden=96,
        embed_dim=24,
        reinit_layers=2,
        decoder_heads=1,
        patch_size=12,
        image_size=48,
    )
    _, state = vg_state()
    torch.save({"dual_encoder": {**state, **SIZES[what]}}, tmp_path / "b.pth")
    no_model_is_built(monkeypatch)
    monkeypatch.setattr(sgmim.models.published, "vg_hubert", lambda: replace(c, conv_dim=SMALL.conv_dim))
    with limited(), pytest.raises(CheckpointError, match="b.pth"):
        vg_hubert_model(tmp_path / "b.pth")


@pytest.mark.parametrize(
    "read,extra",
    [
        (image_weights, {"blocks.999999.norm1.bias": torch.zeros(1)}),
        (hubert_weights, {"encoder.layers.999999.layer_norm.bias": torch.zeros(1)}),
    ],
)
def test_layers_of_one_encoder_have_no_gap(tmp_path, vit, read, extra):
    save_file({**vit.state_dict(), **small_hubert().state_dict(), **extra}, tmp_path / "x.safetensors")
    with pytest.raises(
        CheckpointError,
        match="x.safetensors: 3 layers have tensors.*must be 0 to 2, but 999999 is among them",
    ):
        read(tmp_path / "x.safetensors", SMALL)


CONFIGS = {
    "depth": dict(image_depth=10**6),
    "audio depth": dict(audio_depth=10**6),
    "decoder depth": dict(decoder_depth=10**6),
    "one layer more": dict(image_depth=3),
    "image": dict(image_size=12 * 10**6),
    "image beyond floats": dict(image_size=12 * 10**400),
    "width": dict(image_width=64 * 10**9),
    "hidden": dict(audio_hidden=10**12),
    "embedding": dict(embed_dim=10**12),
    "ratio": dict(image_mlp_ratio=1e12),
    "infinite ratio": dict(image_mlp_ratio=float("inf")),
    "decoder ratio": dict(decoder_mlp_ratio=1e12),
    "convolutions": dict(conv_dim=[24] * 10**5, conv_kernel=[2] * 10**5, conv_stride=[2] * 10**5),
    "kernel": dict(conv_kernel=[10**12] * 7),
    "positions": dict(pos_kernel=10**12),
    "channels": dict(conv_dim=[10**12] * 7),
    "decoder width": dict(decoder_width=4 * 10**9, decoder_heads=2),
    "heads": dict(audio_heads=10**9),
    "patches": dict(patch_size=1),
}


@pytest.fixture(scope="module")
def small_model():
    return SGMIM(replace(SMALL, reconstruction="summary"))


@pytest.mark.parametrize("what", CONFIGS)
def test_config_json_is_compared_with_the_tensors(tmp_path, monkeypatch, small_model, what):
    save_checkpoint(
        tmp_path / "ours", small_model.state_dict(), {"config": config_to_dict(small_model.config)}
    )
    export_model(small_model, tmp_path / "exported")
    no_model_is_built(monkeypatch)
    for folder in (tmp_path / "ours", tmp_path / "exported"):
        config = read_json(folder / "config.json")
        config["config"].update(CONFIGS[what])
        (folder / "config.json").write_text(json.dumps(config))  # infinity too, as JSON has it not
        with limited(), pytest.raises(CheckpointError, match=folder.name):
            load_model(folder, device="cpu")


@pytest.mark.parametrize("heads", [10**9, 0, -1, "12", 2.0, [1], pytest.param(10**5000, id="5,000 digits")])
def test_heads_of_args_pkl(tmp_path, heads):
    _, state = vg_state()
    torch.save({"dual_encoder": state}, tmp_path / "best_bundle.pth")
    (tmp_path / "args.pkl").write_bytes(pickle.dumps(argparse.Namespace(encoder_attention_heads=heads)))
    with pytest.raises(CheckpointError, match="best_bundle.pth|args.pkl"):
        vg_hubert_model(tmp_path)


def nested():
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)


ODD = {
    **{
        d: lambda v, d=d: v.to(getattr(torch, d))
        for d in ("int8", "uint8", "int32", "int64", "bool", "complex64", "float8_e4m3fn")
    },
    "quantised": lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
    "sparse": lambda v: v.to_sparse(),
    "sparse_csr": lambda v: v.to_sparse_csr(),
    "sparse ": lambda v: torch.sparse_coo_tensor(torch.zeros(2, 1), torch.ones(1), (10**9, 10**9)),
    "meta": lambda v: torch.empty(10**9, 10**9, device="meta"),
    "nested": lambda v: nested(),
    "of which only 1 are stored": lambda v: torch.zeros(1, 1).expand(10**6, 10**6),
    "values, of which": lambda v: torch.zeros(96).expand(64, 96).T,
    "not finite": lambda v: v * float("nan"),
    "not finite, in": lambda v: v / 0,
    "too large for float32": lambda v: torch.full_like(v, 1e300, dtype=torch.float64),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("said", ODD)
def test_what_is_no_weight(tmp_path, said):
    _, state = vg_state()
    fault = f"b.pth has .*{said}" + "|missing" * (
        said == "nested"
    )  # PyTorch 2.15 does not read these any more
    for zipped in (True, False)[: 1 if "float8" in said else 2]:  # the old format has no float8
        torch.save(
            {"dual_encoder": {**state, FC1: ODD[said](state[FC1])}},
            tmp_path / "b.pth",
            _use_new_zipfile_serialization=zipped,
        )
        with limited(), pytest.raises(CheckpointError, match=fault) as e:
            vg_hubert_model(tmp_path / "b.pth", VG_SMALL)
        assert "encoder.layers.1.feed_forward.intermediate_dense.weight" in str(e.value)
        if said != "nested":
            with limited(), pytest.raises(CheckpointError, match=fault):
                hubert_weights(tmp_path / "b.pth", SMALL)


@pytest.mark.parametrize(
    "said",
    ["int8", "bool", "complex64", "float8_e4m3fn", "not finite", "not finite, in", "too large for float32"],
)
def test_what_is_no_weight_in_a_model_of_ours(tmp_path, small_model, said):
    key = "image_encoder.vit.norm.bias"
    state = {**small_model.state_dict(), key: ODD[said](small_model.state_dict()[key] + 1)}
    save_checkpoint(tmp_path / "ours", state, {"config": config_to_dict(small_model.config)})
    export_model(small_model, tmp_path / "exported")
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "exported" / "model.safetensors")
    for folder in (tmp_path / "ours", tmp_path / "exported"):
        with pytest.raises(CheckpointError, match=f"{folder.name}/.*safetensors has .*{said}") as e:
            load_model(folder, device="cpu")
        assert key in str(e.value)


def test_halves_doubles_and_views_are_weights(tmp_path):
    m, state = vg_state()
    wide = torch.zeros(96, 128)
    wide[:, ::2] = state[FC1]
    for change in (
        {k: v.bfloat16() for k, v in state.items()},
        {k: v.double() for k, v in state.items()},
        {FC1: state[FC1].T.contiguous().T},
        {FC1: wide[:, ::2]},
    ):
        torch.save({"dual_encoder": {**state, **change}}, tmp_path / "b.pth")
        close(
            vg_hubert_model(tmp_path / "b.pth", VG_SMALL, "cpu")[0].state_dict()[_vg_name(FC1)],
            m.state_dict()[_vg_name(FC1)],
            1e-2,
        )


def test_tensors_that_together_claim_more_than_their_file(tmp_path):
    _, state = vg_state()
    torch.save(
        {
            "dual_encoder": {
                **state,
                **{f"trm.x{i}": torch.zeros(1)[0] for i in range(3)},
                **dict.fromkeys((f"trm.y{i}" for i in range(100)), torch.zeros(10**5)),
            }
        },
        tmp_path / "b.pth",
    )
    with pytest.raises(CheckpointError, match="b.pth has .* bytes, but its tensors claim"):
        vg_hubert_model(tmp_path / "b.pth", VG_SMALL)


def zip_again(path, change, compression=zipfile.ZIP_STORED):
    "What torch.save writes, packed again entry by entry: (name, bytes) -> bytes."
    buffer = io.BytesIO()
    torch.save({"model": {"w": torch.ones(777)}}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", compression) as new:
        for item in old.infolist():
            new.writestr(item.filename, change(item.filename, old.read(item)))


@pytest.mark.parametrize("entry", ["data/0", "data.pkl", "byteorder", ""])
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zip_bombs(tmp_path, entry, compression):
    zip_again(
        tmp_path / "b.pth",
        lambda name, data: bytes(10**7) if entry and name.endswith(entry) else data,
        compression,
    )
    with limited(1), pytest.raises(CheckpointError, match="b.pth is a compressed archive"):
        read_file(tmp_path / "b.pth")


def test_zip_directory_that_lies(tmp_path):
    zip_again(tmp_path / "b.pth", lambda name, data: data)
    blob = bytearray((tmp_path / "b.pth").read_bytes())
    at = blob.rfind(b"PK\1\2")
    blob[at + 20 : at + 28] = struct.pack("<II", 2**32 - 16, 2**32 - 16)
    (tmp_path / "b.pth").write_bytes(blob)
    with pytest.raises(CheckpointError, match="entries claim 4,29"):
        read_file(tmp_path / "b.pth")
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "twice.pth", "w") as z:
        warnings.simplefilter("ignore")
        for _ in range(2):
            z.writestr("a/data.pkl", b"\x80\x02}.")
    with pytest.raises(CheckpointError, match="or share names"):
        read_file(tmp_path / "twice.pth")


BOMBS = {
    "place in the memo": b"\x80\x02K\x01r\x00\x00\x00\x20.",
    "tuple in a tuple": b"\x80\x02}()" + b"\x85" * 10**5 + b"K\x01u.",
    "set in a set": b"\x80\x04(" + b"(" * 10**5 + b"\x91" * 10**5 + b"K\x01d.",
    "shared tuples as a key": (
        b"\x80\x02}((K\x01tq\x00"
        + b"".join(b"0(" + (b"h" + bytes([i])) * 10 + b"tq" + bytes([i + 1]) for i in range(40))
        + b"K\x01u."
    ),
    "many names": b"\x80\x02" + b"".join(b"ca\nb%d\n0" % i for i in range(2000)) + b"}.",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 10**12) + b"x.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 10**12) + b"x.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 10**12) + b"}.",
    "number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"1.",
    "many sets": b"\x80\x04(" + b"\x8f" * 1_000_001 + b"l.",
    "digits": b"\x80\x02I" + b"9" * 10**5 + b"\n.",
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "many sets" else ()) for n in BOMBS]
)
def test_pickles_that_would_exhaust_the_machine(tmp_path, name):
    path = tmp_path / "b.pth"
    for write in (zip_with, legacy_with, lambda path, data: path.write_bytes(data)):
        write(path, BOMBS[name])
        with limited(1), pytest.raises(CheckpointError, match="b.pth cannot be read as"):
            read_file(path)


def test_large_and_nested_pickles_are_read():
    for content in (
        {"indices": list(range(10**5))},
        [[[[(1, (2, (3,)))] * 50] * 50]],
        {(1, 2): {3, 4}, "a": frozenset([5])},
        10**40,
    ):
        for protocol in range(6):
            _scan_pickle(io.BytesIO(pickle.dumps(content, protocol)))
    loop = ([],)
    loop[0].append(loop)
    for protocol in range(6):
        _scan_pickle(io.BytesIO(pickle.dumps(loop, protocol)))


@pytest.mark.parametrize(
    "header,body,length",
    [
        (
            {
                "a": dict(dtype="F32", shape=[2], data_offsets=[0, 8]),
                "b": dict(dtype="F32", shape=[2], data_offsets=[4, 12]),
            },
            12,
            None,
        ),
        ({"a": dict(dtype="F32", shape=[10**9], data_offsets=[0, 4 * 10**9])}, 12, None),
        ({"a": dict(dtype="F32", shape=[2**62, 8], data_offsets=[0, 8])}, 8, None),
        (b'{"a":' + b"[" * 10**5, 0, None),
        (b"{}", 0, 500 * 2**20),
        (b"{" + b" " * 2**24 + b"}", 0, None),
    ],
)
def test_safetensors_that_lie(tmp_path, header, body, length):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length or len(text)) + text + bytes(body))
    write_json(tmp_path / "config.json", {"config": {}})
    with limited(1):
        with pytest.raises(CheckpointError, match="model.safetensors"):
            read_file(tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match="model.safetensors"):
            load_model(tmp_path)


# ---- export


def test_export_of_the_shipped_model(tmp_path):
    shipped = Path(sgmim.__file__).parent / "weights" / "scenes-tiny"
    m, record = load_model(shipped, device="cpu"), read_json(shipped / "record.json")
    out = export_model(m, tmp_path / "a" / "model", record, licence="apache-2.0")
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "record.json",
    ]
    back = SGMIM.from_pretrained(out, device="cpu")
    assert back.config == m.config and all(
        torch.equal(v, back.state_dict()[k]) for k, v in m.state_dict().items()
    )
    image, audio = (
        torch.randn(2, 3, 96, 96, generator=seeded()),
        torch.randn(2, 16000, generator=seeded()) * 0.1,
    )
    with torch.no_grad():
        assert torch.equal(m.embed_image(image), back.embed_image(image)) and torch.equal(
            m.embed_audio(audio), back.embed_audio(audio)
        )
    config = read_json(out / "config.json")
    assert (config["model_type"], config["architectures"], config["sgmim_version"]) == (
        "sgmim",
        ["SGMIM"],
        sgmim.__version__,
    )
    assert (
        set(load_file(out / "model.safetensors")) == set(m.state_dict())
        and read_json(out / "record.json") == record
    )
    card = (out / "README.md").read_text(encoding="utf-8")
    for words in (
        "library_name: sgmim",
        "license: apache-2.0",
        "- visually-grounded-speech",
        "KR-20260064400-A",
        "CC BY-NC 4.0",
        "## Intended use",
        "SGMIM.from_pretrained",
        "Scenes(train: 12000 images, 24000 captions)",
        "`lr=0.001`",
        "@inproceedings{woo2024sgmim",
        "| test-seen | 47.9 | 81.5 | 91.4 | 50.6 | 82.7 | 91.8 | 1000 | 1000 |",
        "96, 96",
    ):
        assert words in card, words
    assert card.count("---\n") == 2 and card.startswith("---\n") and "license_name" not in card


def test_card_says_only_what_the_record_says():
    m = empty_model(SMALL)
    card = model_card(m)
    assert (
        "No record of its training" in card
        and "No record of its results" in card
        and "license: other\nlicense_name: see-model-card" in card
        and "contrastive learning alone" in card
    )
    recall = {"recall_at_1": 10.0, "recall_at_5": None, "recall_at_10": 30, "n_queries": 5, "n_items": 4}
    record = {
        "metrics": {"audio_to_image": recall, "image_to_audio": recall},
        "seed": 3,
        "pretrained": {"image": {"name": "mae.pth", "layout": "torch", "blake2b": "ab"}},
        "data": {"train": "x1"},
    }
    card = model_card(m, record, "cc-by-nc-4.0")
    for words in (
        "| test | 10.0 | – | 30.0 | 10.0 | – | 30.0 | 5 | 4 |",
        "started from, image: mae.pth (torch; blake2b `ab`)",
        "- data, train: x1",
        "- seed: 3",
        "license: cc-by-nc-4.0",
    ):
        assert words in card, words
    assert "No record of its results" in model_card(m, {"metrics": {"loss": 1.0}})


def test_export_overwrites_and_reports_failure(tmp_path):
    m = empty_model(SMALL)
    export_model(m, tmp_path / "m")
    export_model(m, tmp_path / "m")
    (tmp_path / "file").touch()
    with pytest.raises(sgmim.core.SgmimError, match="cannot write"):
        export_model(m, tmp_path / "file" / "m")
    with pytest.raises(CheckpointError, match="neither|holds no SG-MIM|is not a checkpoint|does not exist"):
        SGMIM.from_pretrained(tmp_path)


def test_a_hubert_folder_is_no_sgmim(tmp_path):
    small_hubert().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not contain an sgmim model"):
        SGMIM.from_pretrained(tmp_path)


def test_weights_are_a_dict():
    w = Weights({"a": 1})
    assert w.source is None and dict(w) == {"a": 1} and isinstance(SGMIMConfig(), object)
