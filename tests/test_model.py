"The model, 12-17: edge cases, faults and equivalences, at tiny sizes."

import copy
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import sgmim
from sgmim.core import CheckpointError, ConfigError, DataError, config_from_dict, config_to_dict, write_json
from sgmim.models.audio_encoder import (
    AudioEncoder,
    frame_count,
    hubert_config,
    reinit_layers,
    summarise,
    valid_frame_count,
)
from sgmim.models.decoder import Attention, Decoder, DecoderLayer, sincos_positions
from sgmim.models.image_encoder import ImageEncoder
from sgmim.models.losses import info_nce, mim_loss, similarity_matrix, total_loss
from sgmim.models.patches import PatchMask, gather_patches, patchify, random_mask, scatter_patches, unpatchify
from sgmim.models.sgmim import (
    ROWS,
    SGMIM,
    SGMIMConfig,
    _projection,
    build_audio_encoder,
    ema_update,
    load_backbones,
    load_model,
    momentum_at,
    paper,
    save_model,
    scenes_tiny,
    table4_rows,
    vg_hubert,
)
from sgmim.models.systems import PRESETS

replace = dataclasses.replace
MINI = replace(
    scenes_tiny(),
    image_size=48,
    image_width=32,
    image_depth=2,
    audio_width=32,
    audio_depth=2,
    audio_hidden=64,
    conv_dim=(16,) * 5,
    embed_dim=24,
    pos_kernel=8,
    pos_groups=4,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return SGMIM(replace(MINI, **changes))


def toy_batch(B=5, L=9000, S=48, seed=0):
    g, audio_len = seeded(seed), torch.linspace(L, L // 2, B).long()
    audio = torch.randn(B, L, generator=g) * 0.1 * (torch.arange(L) < audio_len[:, None])
    return dict(
        image=torch.randn(B, 3, S, S, generator=g),
        audio=audio,
        audio_len=audio_len,
        image_id=torch.arange(B),
        index=torch.arange(B),
    )


def take(batch, rows):
    return {k: v[rows] for k, v in batch.items()}


def close(a, b, tol=1e-5):
    torch.testing.assert_close(a, b, atol=tol, rtol=tol)


@pytest.fixture(scope="module")
def batch():
    return toy_batch()


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return make().audio_encoder.eval()


# ---- patches


@pytest.mark.parametrize(
    "N,ratio,V", [(196, 0.75, 49), (64, 0.75, 16), (4, 0.5, 2), (2, 0.5, 1), (16, 0.9, 2), (10, 0.33, 7)]
)
def test_mask_counts(N, ratio, V):
    m = random_mask(7, N, ratio, seeded())
    assert m.visible_idx.shape == (7, V) and m.mask.dtype == torch.bool
    assert (m.mask.sum(1) == N - V).all() and not m.mask.gather(1, m.visible_idx).any()
    assert (m.visible_idx.diff(dim=1) > 0).all()


@pytest.mark.parametrize("ratio", [0, 1, -1, 2, 0.01, 0.999, float("nan")])
def test_mask_ratio_refused(ratio):
    with pytest.raises(ConfigError, match="mask_ratio"):
        random_mask(2, 16, ratio)


def test_mask_random_state():
    torch.manual_seed(0)
    a = random_mask(4, 64)
    b = random_mask(4, 64)
    torch.manual_seed(0)
    c = random_mask(4, 64)
    assert torch.equal(a.mask, c.mask) and not torch.equal(a.mask, b.mask)
    state = torch.random.get_rng_state()
    random_mask(4, 64, generator=seeded())
    assert torch.equal(state, torch.random.get_rng_state())  # a generator leaves the global state alone


@pytest.mark.parametrize("S,P", [(48, 12), (224, 16), (8, 8), (6, 1)])
def test_patchify_round_trip(S, P):
    x = torch.randn(2, 3, S, S)
    assert torch.equal(unpatchify(patchify(x, P), P), x)
    unfolded = (
        F.unfold(x, P, stride=P).view(2, 3, P * P, -1).permute(0, 3, 2, 1).reshape(2, (S // P) ** 2, -1)
    )
    assert torch.equal(patchify(x, P), unfolded)


def test_patchify_one_channel_and_faults():
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(unpatchify(patchify(x, 4), 4), x)
    with pytest.raises(ConfigError, match="cannot be cut"):
        patchify(x, 3)
    with pytest.raises(ConfigError, match="not a square"):
        unpatchify(torch.zeros(1, 3, 16), 4)
    with pytest.raises(ConfigError, match="not a square"):
        unpatchify(torch.zeros(1, 4, 17), 4)


def test_scatter_inverts_gather_in_half_precision():
    m = random_mask(3, 16, generator=seeded())
    x = torch.randn(3, 16, 4, dtype=torch.bfloat16)
    full = scatter_patches(gather_patches(x, m), m, torch.zeros(4))
    assert full.dtype == torch.bfloat16 and torch.equal(full, x.masked_fill(m.mask[..., None], 0))
    assert torch.equal(scatter_patches(gather_patches(x, m), m, x), x)  # a fill of one vector a place


# ---- image encoder


def test_image_encoder_against_timm_and_loop(batch):
    enc = make().image_encoder.eval()
    m = random_mask(5, 16, generator=seeded())
    with torch.no_grad():
        assert torch.equal(enc(batch["image"]), enc.vit.forward_features(batch["image"]))
        whole = enc.embed(batch["image"])
        for b in range(5):
            tokens = torch.cat([whole[b, :1], whole[b, 1:][~m.mask[b]]])[None]
            close(enc(batch["image"], m)[b], enc.vit.norm(enc.vit.blocks(tokens))[0])


def test_hidden_patches_are_not_seen(batch):
    enc = make().image_encoder.eval()
    m = random_mask(5, 16, generator=seeded())
    hidden = m.mask.view(5, 1, 4, 4).repeat_interleave(12, 2).repeat_interleave(12, 3)
    with torch.no_grad():
        assert torch.equal(
            enc(batch["image"].masked_fill(hidden, float("inf")).nan_to_num(posinf=9.0), m),
            enc(batch["image"], m),
        )


@pytest.mark.parametrize("shape", [(2, 3, 96, 96), (2, 1, 48, 48), (2, 3, 48, 36)])
def test_wrong_image(shape):
    with pytest.raises(DataError, match="takes images of shape"):
        make().image_encoder(torch.zeros(shape))


def test_stochastic_depth_only_in_training(batch):
    enc = ImageEncoder(48, 12, 32, 3, 4, drop_path=0.9)
    enc.eval()
    assert torch.equal(enc(batch["image"]), enc(batch["image"]))
    enc.train()
    assert not torch.equal(enc(batch["image"]), enc(batch["image"]))


# ---- audio encoder


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_against_transformers(norm):
    torch.manual_seed(0)
    enc = make(conv_norm=norm).audio_encoder.eval()
    b = toy_batch()
    attend = (torch.arange(9000) < b["audio_len"][:, None]).long()
    with torch.no_grad():
        frames, n = enc.cnn(b["audio"], b["audio_len"])
        mask = torch.arange(frames.shape[1]) >= n[:, None]
        close(
            enc.transform(enc.embed(frames, mask), mask)[0][~mask],
            enc.hubert(b["audio"], attention_mask=attend).last_hidden_state[~mask],
        )
        assert torch.equal(n, enc.hubert._get_feat_extract_output_lengths(b["audio_len"]))


def test_attention_row_against_eager(encoder):
    b = toy_batch()
    eager = copy.deepcopy(encoder)
    eager.hubert.config._attn_implementation = "eager"
    rows = []
    eager.hubert.encoder.layers[-1].attention.register_forward_hook(
        lambda m, i, o: rows.append(o[1][:, :, 0])
    )
    with torch.no_grad():
        out = encoder(b["audio"], b["audio_len"])
        frames, n = encoder.cnn(b["audio"], b["audio_len"])
        e = eager.hubert.encoder
        x = torch.cat([eager.cls_token.expand(5, -1, -1), eager.embed(frames, out.frame_mask)], 1)
        bias = torch.zeros(5, 1, x.shape[1], x.shape[1]).masked_fill(
            F.pad(out.frame_mask, (1, 0))[:, None, None], float("-inf")
        )
        x = e.layer_norm(x)
        for layer in e.layers:
            x = layer(x, attention_mask=bias)
            x = x[0] if isinstance(x, tuple) else x
    close(out.attention, rows[0][..., 1:])
    close(out.cls, x[:, 0])


def test_padding_does_not_leak(encoder):
    b = toy_batch()
    dirty = b["audio"].clone()  # what lies behind the valid samples must not matter, frame by frame
    with torch.no_grad():
        out = encoder(b["audio"], b["audio_len"])
        for i in range(5):
            dirty[i, b["audio_len"][i] :] = torch.randn(int(9000 - b["audio_len"][i]), generator=seeded(i))
        noisy, longer = encoder(dirty, b["audio_len"]), encoder(F.pad(b["audio"], (0, 5000)), b["audio_len"])
        for i in range(5):
            alone, T = encoder(b["audio"][i : i + 1, : b["audio_len"][i]]), int((~out.frame_mask[i]).sum())
            for other, row in ((alone, 0), (noisy, i), (longer, i)):
                close(other.cls[row], out.cls[i])
                close(other.attention[row, :, :T], out.attention[i, :, :T])
                close(other.frames[row, :T], out.frames[i, :T])
    assert (out.attention.masked_select(out.frame_mask[:, None]) == 0).all()


def test_group_norm_depends_on_padding():
    enc = make(conv_norm="group").audio_encoder.eval()
    x = torch.randn(1, 6000, generator=seeded())
    with torch.no_grad():
        a, b = enc(x).cls, enc(F.pad(x, (0, 9000)), torch.tensor([6000])).cls
    assert (a - b).abs().max() > 1e-4


def plain_audio_encoder(w, c, audio, audio_len):
    """VG-HuBERT's audio encoder by its formulas, from the tensors `w` of our model and its configuration `c`:
    frames are padding where all samples of their piece of the mask are, and padded frames stay as they
    are. -> (B, 1+T, D)."""
    h = {k.removeprefix("hubert."): v for k, v in w.items()}
    x = audio[:, None]
    for i, stride in enumerate(c.conv_stride):
        name = f"feature_extractor.conv_layers.{i}"
        x = F.conv1d(x, h[f"{name}.conv.weight"], stride=stride)
        if i == 0:
            x = F.group_norm(x, x.shape[1], h[f"{name}.layer_norm.weight"], h[f"{name}.layer_norm.bias"])
        x = F.gelu(x)
    x = x.transpose(1, 2)
    T, D = x.shape[1], c.audio_width
    padding = torch.arange(audio.shape[1]) >= audio_len[:, None]
    if rest := audio.shape[1] % T:
        padding = padding[:, :-rest]
    padding = padding.view(len(audio), T, -1).all(-1)

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], h[f"{name}.weight"], h[f"{name}.bias"])

    def linear(x, name):
        return x @ h[f"{name}.weight"].T + h[f"{name}.bias"]

    x = linear(norm(x, "feature_projection.layer_norm"), "feature_projection.projection")
    conv = "encoder.pos_conv_embed.conv"
    g, v = (h[f"{conv}.parametrizations.weight.original{k}"] for k in (0, 1))
    kernel = g * v / v.pow(2).sum((0, 1), keepdim=True).sqrt()
    y = F.conv1d(x.transpose(1, 2), kernel, h[f"{conv}.bias"], padding=c.pos_kernel // 2, groups=c.pos_groups)
    x = x + F.gelu(y[..., :T]).transpose(1, 2)
    x = norm(torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1), "encoder.layer_norm")
    hidden = F.pad(padding, (1, 0))[:, None, None]
    for i in range(c.audio_depth):
        name = f"encoder.layers.{i}"
        q, k, v = (
            linear(x, f"{name}.attention.{p}_proj").view(len(x), T + 1, c.audio_heads, -1).transpose(1, 2)
            for p in "qkv"
        )
        score = (
            (q @ k.transpose(2, 3) / (D / c.audio_heads) ** 0.5)
            .masked_fill(hidden, float("-inf"))
            .softmax(-1)
        )
        a = linear((score @ v).transpose(1, 2).reshape(len(x), T + 1, D), f"{name}.attention.out_proj")
        x = norm(x + a, f"{name}.layer_norm")
        f = linear(
            F.gelu(linear(x, f"{name}.feed_forward.intermediate_dense")), f"{name}.feed_forward.output_dense"
        )
        x = norm(x + f, f"{name}.final_layer_norm")
    return x


def vg_rules(**changes):
    """A small audio encoder with VG-HuBERT's rules, its configuration, and recordings of 3 s: 30,000,
    16,000 and all 48,000 samples valid."""
    c = replace(
        vg_hubert(),
        audio_width=32,
        audio_depth=2,
        audio_heads=2,
        audio_hidden=48,
        conv_dim=(16,) * 7,
        pos_kernel=16,
        pos_groups=4,
        reinit_layers=0,
        image_depth=1,
    )
    torch.manual_seed(3)
    encoder = build_audio_encoder(replace(c, **changes)).eval()
    with torch.no_grad():
        for m in encoder.modules():
            if isinstance(m, nn.Linear):
                m.weight.mul_(5)  # as in a trained model, attention is not uniform
    audio_len = torch.tensor([30_000, 16_000, 48_000])
    return encoder, c, 0.1 * torch.randn(3, 48_000) * (torch.arange(48_000) < audio_len[:, None]), audio_len


@torch.no_grad()
def test_padded_captions_as_vg_huberts_code():
    encoder, c, audio, audio_len = vg_rules()
    out, plain = encoder(audio, audio_len), plain_audio_encoder(encoder.state_dict(), c, audio, audio_len)
    assert (~out.frame_mask).sum(1).tolist() == [94, 50, 149]
    assert ((out.cls - plain[:, 0]).norm(dim=1) / plain[:, 0].norm(dim=1)).max() < 1e-5
    close(out.frames[~out.frame_mask], plain[:, 1:][~out.frame_mask])


@torch.no_grad()
@pytest.mark.parametrize("rule", [dict(zero_padded_frames=True), dict(valid_frames="convolution")])
def test_either_rule_of_transformers_departs_from_vg_hubert(rule):
    encoder, c, audio, audio_len = vg_rules(**rule)
    error = (
        encoder(audio, audio_len).cls - plain_audio_encoder(encoder.state_dict(), c, audio, audio_len)[:, 0]
    ).norm(dim=1)
    assert error[:2].min() > 1e-3 and error[2] < 1e-4  # the unpadded recording is the same by all rules


@pytest.mark.parametrize(
    "length,valid,frames",
    [
        (48_000, 30_000, 94),
        (48_000, 16_000, 50),
        (160_000, 48_000, 150),
        (160_000, 80_000, 250),
        (160_000, 64_000, 200),
        (160_000, 160_000, 499),
        (160_000, 1, 1),
    ],
)
def test_valid_frames_as_vg_huberts_code(length, valid, frames):
    "The first five counts come from VG-HuBERT's own code."
    c = paper()
    T = frame_count(length, c.conv_kernel, c.conv_stride)
    assert valid_frame_count(torch.tensor([valid]), length, T).item() == frames


def test_both_rules_of_padding_are_in_the_presets():
    for preset in (paper(), vg_hubert()):
        assert (preset.zero_padded_frames, preset.valid_frames, preset.padding_matters) == (
            False,
            "any_sample",
            True,
        )
    assert (scenes_tiny().zero_padded_frames, scenes_tiny().valid_frames, scenes_tiny().padding_matters) == (
        True,
        "convolution",
        False,
    )


def test_a_short_recording_is_refused_by_either_rule():
    encoder, _, audio, _ = vg_rules()
    with pytest.raises(DataError, match=r"pairs \[1\] of the batch are too short"):
        encoder(audio, torch.tensor([48_000, 399, 48_000]))


def test_a_model_older_than_the_padding_rules_keeps_its_own(tmp_path):
    model = make()
    save_model(model, tmp_path)
    meta = json.loads((tmp_path / "config.json").read_text())
    for field in ("input_dropout", "zero_padded_frames", "valid_frames"):
        del meta["config"][field]
    (tmp_path / "config.json").write_text(json.dumps(meta))
    config = load_model(tmp_path, device="cpu").config
    assert (config.input_dropout, config.zero_padded_frames, config.valid_frames) == (
        0.0,
        True,
        "convolution",
    )


def test_order_of_pairs_and_batch_of_one(encoder):
    b = toy_batch()
    flip = torch.arange(4, -1, -1)
    with torch.no_grad():
        out = encoder(b["audio"], b["audio_len"])
        close(encoder(b["audio"][flip], b["audio_len"][flip]).cls, out.cls[flip])
        close(encoder(b["audio"][:1], b["audio_len"][:1]).cls, out.cls[:1])


def test_shortest_audio(encoder):
    n = encoder.shortest
    x = torch.randn(2, n + 640, generator=seeded())
    with torch.no_grad():
        out = encoder(x, torch.tensor([n + 640, n]))
    assert out.frame_mask.tolist() == [[False, False], [False, True]] and out.cls.isfinite().all()
    assert out.attention[1, :, 1].eq(0).all() and out.attention[1, :, 0].gt(0).all()
    with pytest.raises(DataError, match=r"pairs \[1\] of the batch are too short: \[1609\]"):
        encoder(x, torch.tensor([n, n - 1]))
    with pytest.raises(DataError, match="too short"):
        encoder(x[:, : n - 1])
    with pytest.raises(DataError, match="too short"):
        encoder(x, torch.tensor([0, n]))


def test_bad_audio(encoder):
    x, n = torch.zeros(3, 4000), torch.tensor([4000, 4000, 4000])
    for value in (float("nan"), float("inf")):
        bad = x.clone()
        bad[2, 17] = value
        with pytest.raises(DataError, match=r"pairs \[2\].*not finite"):
            encoder(bad, n)
    with pytest.raises(DataError, match="claim more samples than the 4000"):
        encoder(x, n + 1)
    with pytest.raises(DataError, match="floating point"):
        encoder(x.to(torch.int16), n)
    with pytest.raises(DataError, match="floating point"):
        encoder(x[0])
    with pytest.raises(DataError, match="got neither"):
        encoder()
    with torch.no_grad():
        assert encoder(x, n).cls.isfinite().all()  # silence is not a fault


def test_kept_frames(encoder):
    b = toy_batch()
    with torch.no_grad():
        out = encoder(b["audio"], b["audio_len"])
        frames, n = encoder.cnn(b["audio"], b["audio_len"])
        assert not frames.requires_grad
        # padding may hold anything
        again = encoder(frames=F.pad(frames, (0, 0, 0, 4), value=float("nan")), frames_len=n)
    close(again.cls, out.cls)
    close(again.attention[..., : frames.shape[1]], out.attention)


def test_frozen_and_unfrozen_cnn():
    b = toy_batch()
    for freeze in (True, False):
        m = make(freeze_cnn=freeze).train()
        m(b, generator=seeded())["loss"].backward()
        grads = [p.grad is not None for p in m.audio_encoder.hubert.feature_extractor.parameters()]
        assert all(grads) != freeze and any(grads) != freeze


def test_read_out_options(encoder):
    b = toy_batch()

    def W(**kw):
        e = AudioEncoder(encoder.hubert.config, **kw).eval()
        e.load_state_dict(encoder.state_dict())
        return e(b["audio"], b["audio_len"]).attention

    full, plain, again = W(drop_self=False), W(), W(renormalise=True)
    T = plain.shape[-1]
    assert full.shape[-1] == T + 1 and torch.equal(full[..., 1:], plain)
    close(full.sum(-1), torch.ones(5, 4))
    close(again, plain / plain.sum(-1, keepdim=True))
    assert not plain.requires_grad and W(attention_grad=True).requires_grad
    assert encoder(b["audio"], b["audio_len"], need_attention=False).attention is None


def test_dropout_is_the_recipes():
    c = hubert_config()
    assert (
        c.hidden_dropout,
        c.attention_dropout,
        c.activation_dropout,
        c.feat_proj_dropout,
        c.layerdrop,
    ) == (0.1, 0.1, 0.0, 0.1, 0.0)
    for preset in (paper(), vg_hubert()):
        assert (
            preset.dropout,
            preset.attention_dropout,
            preset.activation_dropout,
            preset.input_dropout,
        ) == (0.1, 0.1, 0.0, 0.1)
    assert not c.apply_spec_augment and c.mask_time_prob == 0 and c._attn_implementation == "sdpa"
    enc = make(dropout=0.5).audio_encoder.train()
    b = toy_batch()
    assert not torch.equal(enc(b["audio"]).cls, enc(b["audio"]).cls)
    enc.eval()
    assert torch.equal(enc(b["audio"]).cls, enc(b["audio"]).cls)


def test_large_hubert_is_refused():
    c = hubert_config(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    c.do_stable_layer_norm = True
    with pytest.raises(ConfigError, match="not supported"):
        AudioEncoder(c)


@pytest.mark.parametrize("L", [1, 399, 400, 401, 719, 720, 16000, 128000])
def test_frame_count(L):
    c = hubert_config()
    n = L
    for k, s in zip(c.conv_kernel, c.conv_stride, strict=True):
        n = 0 if n < k else (n - k) // s + 1
    assert (
        frame_count(L, c.conv_kernel, c.conv_stride)
        == n
        == frame_count(torch.tensor([L]), c.conv_kernel, c.conv_stride).item()
    )


def test_reinit(encoder):
    for n in (0, 1, 2):
        e = copy.deepcopy(encoder)
        with torch.no_grad():
            for p in e.parameters():
                p.add_(1.0)
        e.reinit_last_layers(n, seeded())
        for i, layer in enumerate(e.hubert.encoder.layers):
            fresh = (
                layer.layer_norm.weight.eq(1).all()
                and layer.attention.q_proj.bias.eq(0).all()
                and layer.attention.q_proj.weight.abs().max() < 0.2
            )
            assert bool(fresh) == (i >= 2 - n)
    a, b = copy.deepcopy(encoder), copy.deepcopy(encoder)
    reinit_layers(a.hubert.encoder.layers, seeded(3))
    reinit_layers(b.hubert.encoder.layers, seeded(3))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# ---- decoder


def test_attention_against_torch():
    a = Attention(32, 4, 12)
    ref = nn.MultiheadAttention(32, 4, kdim=12, vdim=12, batch_first=True)
    with torch.no_grad():
        ref.q_proj_weight.copy_(a.q.weight)
        ref.k_proj_weight.copy_(a.kv.weight[:32])
        ref.v_proj_weight.copy_(a.kv.weight[32:])
        ref.in_proj_bias.copy_(torch.cat([a.q.bias, a.kv.bias]))
        ref.out_proj.load_state_dict(a.out.state_dict())
        x = torch.randn(3, 5, 32)
        c = torch.randn(3, 7, 12)
        mask = torch.arange(7) >= torch.tensor([[7], [3], [1]])
        close(a(x, c, mask), ref(x, c, c, key_padding_mask=mask)[0])
        close(a(x, c), ref(x, c, c)[0])


@pytest.mark.parametrize("position", ["sincos", "learned"])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("width", [None, 16])
@pytest.mark.parametrize("depth", [1, 2])
def test_decoder_options(position, norm, width, depth):
    d = Decoder(16, 32, 12, width, depth, position, heads=4, norm=norm)
    m = random_mask(3, 16, generator=seeded())
    out = d(torch.randn(3, 5, 32), m, torch.randn(3, 4, 12))
    assert out.shape == (3, 16, 32) and len(d.layers) == depth
    out.sum().backward()
    assert all(p.grad is not None for p in d.parameters())
    assert ("position" in dict(d.named_parameters())) == (position == "learned")
    assert "position" not in d.state_dict() or position == "learned"


def test_order_of_a_layer():
    seen = []
    layer = DecoderLayer(16, 4, context_width=12)
    for name in ("cross", "attn", "mlp"):
        getattr(layer, name).register_forward_hook(lambda m, i, o, name=name: seen.append(name))
    layer(torch.randn(1, 3, 16), torch.randn(1, 4, 12))
    assert seen == ["cross", "attn", "mlp"]  # §3.2


def test_hidden_places_are_told_apart_by_position_alone():
    d = Decoder(16, 32, None, heads=4).eval()
    m = random_mask(1, 16, generator=seeded())
    with torch.no_grad():
        out = d(torch.randn(1, 5, 32), m)[0][m.mask[0]]
        d.position.zero_()
        same = d(torch.randn(1, 5, 32), m)[0][m.mask[0]]
    assert out.var(0).sum() > 1e-4 and same.var(0).sum() < 1e-8


def test_every_place_of_the_decoder_has_its_position():
    """Visible patches too: two of them exchanged are another image. What enters the first layer is the
    patch, or the mask token, plus its position."""
    d = Decoder(16, 32, None, heads=4).eval()
    m = random_mask(2, 16, generator=seeded())
    visible = torch.randn(2, 5, 32)
    entered = []
    d.layers[0].register_forward_hook(lambda layer, inputs, out: entered.append(inputs[0]))
    with torch.no_grad():
        d(visible, m)
    expected = scatter_patches(visible[:, 1:], m, d.mask_token) + d.position
    assert torch.equal(entered[0][:, 1:], expected) and torch.equal(entered[0][:, 0], visible[:, 0])
    assert (d.position[~m.mask[0]].norm(dim=1) > 1).all()


def test_positions_are_row_then_column():
    """The first half of the width depends on the row alone, the second on the column alone; patches are in
    reading order."""
    p = sincos_positions(5, 16).view(5, 5, 16)  # (row, column, D)
    assert torch.equal(p[:, :, :8], p[:, :1, :8].expand(5, 5, 8)) and torch.equal(
        p[:, :, 8:], p[:1, :, 8:].expand(5, 5, 8)
    )
    wavelength = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    for k in range(5):
        wave = torch.cat([(k / wavelength).sin(), (k / wavelength).cos()])
        close(p[k, 2, :8], wave)
        close(p[2, k, 8:], wave)


def test_decoder_context_faults():
    m, v = random_mask(1, 16), torch.randn(1, 5, 32)
    with pytest.raises(ConfigError, match="pass a context"):
        Decoder(16, 32, 12, heads=4)(v, m)
    with pytest.raises(ConfigError, match="pass no context"):
        Decoder(16, 32, None, heads=4)(v, m, torch.randn(1, 2, 12))
    with pytest.raises(ConfigError, match="multiple of 4"):
        sincos_positions(4, 30)


def test_summarise_by_hand():
    W = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]])
    z = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]]])
    assert torch.equal(summarise(W, z), torch.tensor([[[2.0, 1.0], [5.0, 5.0]]]))
    assert summarise(W, z.bfloat16()).dtype == torch.bfloat16


def test_summary_ignores_padding(encoder):
    b = toy_batch()
    with torch.no_grad():
        out = encoder(b["audio"], b["audio_len"])
    dirty = out.frames.masked_fill(out.frame_mask[..., None], 1e6)
    assert torch.equal(summarise(out.attention, dirty), summarise(out.attention, out.frames))


# ---- losses


def test_info_nce_by_hand():
    eye = torch.eye(2)
    assert math.isclose(info_nce(eye, eye).item(), 2 * math.log(1 + math.exp(-1)), rel_tol=1e-6)
    # asymmetric: similarities [[0, 1], [0, 0]]: rows log(1+e), log 2; columns log 2, log(1+e)
    a, b = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert math.isclose(info_nce(a, b).item(), math.log(1 + math.e) + math.log(2), rel_tol=1e-6)


def test_info_nce_directions_and_options():
    a, b = torch.randn(2, 6, 8, generator=seeded())
    s, right = a @ b.T, torch.arange(6)
    close(info_nce(a, b), F.cross_entropy(s, right) + F.cross_entropy(s.T, right))
    close(info_nce(a, b), info_nce(b, a))
    close(info_nce(a, b, temperature=0.07), info_nce(a / 0.07, b))
    close(info_nce(a, b, similarity="cosine"), info_nce(F.normalize(a), F.normalize(b)))
    t = s - torch.eye(6)
    close(info_nce(a, b, margin=1.0), F.cross_entropy(t, right) + F.cross_entropy(t.T, right))
    order = torch.randperm(6, generator=seeded())
    close(info_nce(a[order], b[order]), info_nce(a, b))


def test_same_image_is_no_negative():
    a, b = torch.randn(2, 4, 8, generator=seeded())
    a[1] = a[0]
    ids = torch.tensor([3, 3, 1, 2])
    s = a @ b.T
    s[0, 1] = s[1, 0] = -1e4
    close(info_nce(a, b, ids), F.cross_entropy(s, torch.arange(4)) + F.cross_entropy(s.T, torch.arange(4)))
    assert info_nce(a, b, ids, mask_same_image=False) > info_nce(a, b, ids)
    assert info_nce(a, b, torch.zeros(4)).item() < 1e-6  # nothing but one image: nothing to tell apart


def test_info_nce_faults_and_extremes():
    z = torch.randn(4, 8, generator=seeded())
    with pytest.raises(DataError, match="no negatives"):
        info_nce(z[:1], z[:1])
    with pytest.raises(DataError, match="no negatives"):
        info_nce(z[:0], z[:0])
    with pytest.raises(DataError, match="as many captions"):
        info_nce(z, z[:3])
    with pytest.raises(ConfigError, match="temperature"):
        info_nce(z, z, temperature=-1.0)
    with pytest.raises(ConfigError, match="similarity"):
        similarity_matrix(z, z, "euclid")
    assert info_nce(1e3 * z, -1e3 * z).isfinite() and info_nce(z * float("nan"), z).isnan()
    half = info_nce(z.bfloat16(), z.bfloat16())
    assert half.dtype == torch.float32


def test_mim_loss():
    p, t = torch.randn(2, 3, 7, 5, generator=seeded())
    mask = random_mask(3, 7, 0.5, seeded()).mask
    close(mim_loss(p, t, mask), F.mse_loss(p[mask], t[mask]))
    close(mim_loss(p, t, mask, reduction="sum"), ((p - t)[mask] ** 2).sum(-1).mean())
    # minimal where they agree: the sign of eq. 4
    assert mim_loss(p, p, mask) == 0 and mim_loss(p, t, mask) > 0
    close(mim_loss(p, t, mask, normalise_target=True), F.mse_loss(p[mask], F.layer_norm(t, (5,))[mask]))
    moved = torch.where(mask[..., None], p, p + 9)
    assert torch.equal(mim_loss(moved, t, mask), mim_loss(p, t, mask))
    t.requires_grad_()
    p.requires_grad_()
    mim_loss(p, t, mask).backward()
    assert t.grad is None and p.grad is not None
    with pytest.raises(ConfigError, match="reduction"):
        mim_loss(p, t, mask, reduction="max")
    assert mim_loss(p.detach() * float("nan"), t, mask).isnan()
    assert mim_loss(p.bfloat16(), t.bfloat16(), mask).dtype == torch.float32


def test_total_loss():
    assert (
        total_loss(torch.tensor(1.0), torch.tensor(3.0)) == 7
        and total_loss(torch.tensor(1.0), torch.tensor(3.0), 0.5) == 2.5
    )
    assert total_loss(torch.tensor(1.0)) == 1


# ---- configuration


@pytest.mark.parametrize(
    "field,value",
    [
        ("image_size", 0),
        ("image_size", 96.0),
        ("patch_size", 13),
        ("image_heads", 3),
        ("audio_heads", 7),
        ("pos_groups", 5),
        ("decoder_heads", 3),
        ("decoder_width", 30),
        ("decoder_width", 0),
        ("audio_depth", 0),
        ("embed_dim", -1),
        ("embed_dim", True),
        ("image_width", "128"),
        ("mask_ratio", 0.0),
        ("mask_ratio", 1.0),
        ("mask_ratio", 0.99),
        ("mask_ratio", float("nan")),
        ("lam", -1.0),
        ("lam", float("nan")),
        ("mim_onset", -1.0),
        ("temperature", 0.0),
        ("margin", -1.0),
        ("similarity", "Dot"),
        ("reconstruction", "full"),
        ("reconstruction", None),
        ("conv_norm", "batch"),
        ("image_feature", "max"),
        ("image_feature", None),
        ("projection", "Linear"),
        ("decoder_position", "rope"),
        ("decoder_norm", "mid"),
        ("mim_reduction", "max"),
        ("momentum_horizon", "epoch"),
        ("momentum_start", 1.1),
        ("momentum_end", 0.5),
        ("momentum_start", -0.1),
        ("reinit_layers", 3),
        ("reinit_layers", -1),
        ("dropout", 1.0),
        ("attention_dropout", -0.1),
        ("conv_kernel", (20, 4)),
        ("conv_stride", (10, 4, 4, 2, 0)),
        ("image_mlp_ratio", 0.0),
    ],
)
def test_impossible_configurations(field, value):
    with pytest.raises(ConfigError) as e:
        replace(MINI, **{field: value})
    assert "must be" in str(e.value) and "SGMIMConfig" in str(e.value)


def test_configuration_round_trip_and_typos():
    for preset in PRESETS.values():
        kind = type(preset())
        assert config_from_dict(kind, json.loads(json.dumps(config_to_dict(preset())))) == preset()
    with pytest.raises(ConfigError, match="did you mean 'momentum_start'"):
        config_from_dict(SGMIMConfig, {"momentum_strat": 0.9})
    with pytest.raises(dataclasses.FrozenInstanceError):
        MINI.lam = 1.0
    assert hash(paper()) == hash(paper())


def test_paper_to_the_letter():
    c = paper()
    assert (c.image_size, c.patch_size, c.image_depth, c.image_width, c.image_heads) == (224, 16, 12, 768, 12)
    assert (len(c.conv_dim), c.audio_depth, c.audio_width, c.audio_heads, c.reinit_layers) == (
        7,
        12,
        768,
        12,
        3,
    )
    assert (
        c.decoder_depth,
        c.embed_dim,
        c.mask_ratio,
        c.lam,
        c.mim_onset,
        c.momentum_start,
        c.momentum_end,
    ) == (1, 768, 0.75, 2.0, 3.0, 0.999, 1.0)
    assert (c.reconstruction, c.similarity, c.temperature, c.margin) == ("summary", "dot", None, 0.0)
    assert (c.image_feature, c.projection) == ("mean", "linear")


def test_presets():
    own = [name for name, make in PRESETS.items() if make().system == "sgmim"]
    assert own == ["scenes-tiny", "paper-places", "paper-spokencoco", "paper-facc", "vg-hubert"]
    assert all(PRESETS[f"paper-{corpus}"]() == paper() for corpus in ("places", "spokencoco", "facc"))


def test_vg_hubert_to_the_letter():
    c = vg_hubert()
    assert (c.image_size, c.patch_size, c.image_width, c.image_depth, c.image_heads, c.image_mlp_ratio) == (
        224,
        8,
        384,
        12,
        6,
        4.0,
    )
    assert (c.image_feature, c.projection, c.embed_dim, c.reconstruction, c.reinit_layers) == (
        "cls",
        "mlp",
        2048,
        "none",
        3,
    )
    assert (c.similarity, c.temperature, c.margin, c.mask_same_image) == ("dot", None, 1.0, True)
    audio = [
        f.name for f in dataclasses.fields(c) if f.name.startswith(("audio_", "conv_", "pos_", "dropout"))
    ]
    # HuBERT Base in both
    assert len(audio) == 12 and all(getattr(c, f) == getattr(paper(), f) for f in audio)
    # the choices combine
    SGMIM(replace(MINI, decoder_heads=4, reconstruction="summary", image_feature="cls", projection="mlp"))


def test_table4_rows():
    rows = table4_rows(paper())
    assert [r.reconstruction for r in rows.values()] == ["none", "plain", "frames", "summary"] and list(
        rows
    ) == list(ROWS)
    for r in rows.values():
        assert replace(r, reconstruction="summary") == paper()


def test_paper_model_on_meta():
    with torch.device("meta"):
        m = SGMIM(paper())
    millions = {k: sum(p.numel() for p in v.parameters()) / 1e6 for k, v in m.named_children()}
    assert (
        abs(millions["image_encoder"] - 85.80) < 0.01
        and millions["momentum_encoder"] == millions["image_encoder"]
    )
    assert abs(millions["audio_encoder"] - 94.37) < 0.01 and 9 < millions["decoder"] < 11
    assert sum(p.numel() for p in m.momentum_encoder.parameters() if p.requires_grad) == 0
    assert sum(p.numel() for p in m.parameters()) == 277_196_416


def test_vg_hubert_model_on_meta():
    with torch.device("meta"):
        m = SGMIM(vg_hubert())
    count = {k: sum(p.numel() for p in v.parameters()) for k, v in m.named_children()}
    assert count == {
        "image_encoder": 21_670_272,
        "audio_encoder": 94_371_712,
        "image_proj": 3_739_136,
        "audio_proj": 4_328_960,
    }
    assert m.image_encoder.vit.pos_embed.shape == (1, 785, 384) and m.decoder is m.momentum_encoder is None
    shapes = {k: tuple(v.shape) for k, v in m.state_dict().items()}
    assert (
        len(shapes) == 369
        and shapes["image_proj.0.weight"] == (1536, 384)
        and shapes["audio_proj.2.weight"] == (2048, 1536)
    )


# ---- the model


@pytest.mark.parametrize("kind", ["none", "plain", "frames", "summary"])
def test_one_step_of_each_row(kind, batch):
    m = make(reconstruction=kind).train()
    out = m(batch, generator=seeded())
    out["loss"].backward()
    assert set(out) == {"loss", "loss_nce", "loss_mim", "z_image", "z_audio"} and all(
        v.isfinite().all() for v in out.values()
    )
    assert (out["loss_mim"] == 0) == (kind == "none")
    idle = {n for n, p in m.named_parameters() if p.grad is None}
    trained = [
        p
        for n, p in m.named_parameters()
        if not n.startswith(("momentum_encoder.", "audio_encoder.hubert.feature_extractor."))
    ]
    assert all(n.startswith(("momentum_encoder.", "audio_encoder.hubert.feature_extractor.")) for n in idle)
    assert all(p.grad is not None and p.requires_grad for p in trained)


def test_mim_trains_the_audio_encoder_only_where_guided(batch):
    for kind, expected in (("plain", False), ("frames", True), ("summary", True)):
        m = make(reconstruction=kind)
        m(batch, generator=seeded())["loss_mim"].backward()
        assert (
            any(p.grad is not None and p.grad.abs().sum() > 0 for p in m.audio_encoder.parameters())
            == expected
        )


def test_attention_gradient_is_an_option(batch):
    grads = []
    for carries in (False, True):
        m = make(attention_grad=carries)
        assert m.hear(batch).attention.requires_grad == carries
        m(batch, generator=seeded())["loss_mim"].backward()
        grads.append(m.audio_encoder.hubert.encoder.layers[-1].attention.q_proj.weight.grad)
    assert not torch.equal(*grads)  # through W, the reconstruction also trains what [CLS] asks for


def test_determinism_and_lambda(batch):
    m = make()
    a, b, c = (m(batch, generator=seeded(s))["loss_mim"] for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    out = m(batch, generator=seeded(), lam=0.5)
    close(out["loss"], out["loss_nce"] + 0.5 * out["loss_mim"])
    close(m(batch, generator=seeded(), lam=0.0)["loss"], out["loss_nce"])
    assert torch.equal(m(batch, reconstruct=False)["loss"], out["loss_nce"])


def test_pairs_do_not_mix(batch):
    m = make().eval()
    with torch.no_grad():
        whole = m(batch, reconstruct=False)
        for i in range(5):
            one = take(batch, slice(i, i + 1))
            close(m.embed_image(one["image"])[0], whole["z_image"][i])
            close(m.embed_audio(one["audio"][:, : one["audio_len"][0]])[0], whole["z_audio"][i])
        mask = random_mask(5, 16, generator=seeded())
        r = m.reconstruct(batch, mask)
        sub = m.reconstruct(take(batch, slice(2, 4)), PatchMask(mask.visible_idx[2:4], mask.mask[2:4]))
    for k in r:
        close(sub[k].float(), r[k][2:4].float())


def test_pool_cls(batch):
    for pool in (True, False):
        m = make(pool_cls=pool).eval()
        with torch.no_grad():
            Z = m.image_encoder(batch["image"])
            close(m.embed_image(batch["image"]), m.image_proj(Z.mean(1) if pool else Z[:, 1:].mean(1)))


def test_image_feature_and_projection(batch):
    for pool in (True, False):  # pool_cls concerns the mean alone
        m = make(image_feature="cls", projection="mlp", pool_cls=pool, reconstruction="none").eval()
        with torch.no_grad():
            z = (
                F.gelu(m.image_encoder(batch["image"])[:, 0] @ m.image_proj[0].weight.T)
                @ m.image_proj[2].weight.T
            )
            close(m.embed_image(batch["image"]), z)
            close(m(batch)["z_image"], z)
    assert m.image_proj[0].weight.shape == m.audio_proj[0].weight.shape == (64, 32)  # twice the audio's width


def test_projection_starts_as_in_vg_huberts_code():
    torch.manual_seed(0)
    p = _projection("mlp", 300, 400, 500)
    for layer in (p[0], p[2]):
        assert (
            abs(layer.weight.std() - 0.02) < 5e-4 and abs(layer.weight.mean()) < 5e-4 and not layer.bias.any()
        )
    torch.manual_seed(0)
    a = _projection("linear", 3, 7, 5)
    torch.manual_seed(0)
    assert torch.equal(a.weight, nn.Linear(3, 5).weight)


def test_names_of_the_linear_head_are_those_of_older_checkpoints():
    assert {
        k for k in make().state_dict() if "proj." in k and k.startswith(("image_proj", "audio_proj"))
    } == {f"{m}_proj.{k}" for m in ("image", "audio") for k in ("weight", "bias")}


def test_swapped_captions_change_the_reconstruction_where_guided(batch):
    swapped = {**batch, "audio": batch["audio"].flip(0), "audio_len": batch["audio_len"].flip(0)}
    mask = random_mask(5, 16, generator=seeded())
    for kind in ("plain", "frames", "summary"):
        m = make(reconstruction=kind).eval()
        with torch.no_grad():
            a, b = (m.reconstruct(x, mask)["predicted"] for x in (batch, swapped))
        assert torch.equal(a, b) == (kind == "plain")


def test_same_seed_same_encoders():
    a, b = make(reconstruction="none"), make(reconstruction="summary")
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_a_batch_without_ids_or_audio(batch):
    m = make()
    no_id = {k: batch[k] for k in ("image", "audio", "audio_len")}
    close(m(no_id, reconstruct=False)["loss"], m(batch, reconstruct=False)["loss"])
    with pytest.raises(DataError, match="got neither"):
        m({"image": batch["image"]})
    with pytest.raises(DataError, match="no negatives"):
        m(take(batch, slice(0, 1)))
    with pytest.raises(ConfigError, match="no decoder"):
        make(reconstruction="none").reconstruct(batch)


def test_autocast(batch):
    for kind in ("plain", "frames", "summary"):
        m = make(reconstruction=kind)
        full = m(batch, generator=seeded())["loss"]
        with torch.autocast("cpu", torch.bfloat16):
            out = m(batch, generator=seeded())
        out["loss"].backward()
        assert out["loss"].dtype == torch.float32 and abs(out["loss"] - full) < 0.1 * full


def test_nan_stays_visible(batch):
    m = make()
    bad = {**batch, "image": batch["image"].clone()}
    bad["image"][0, 0, 0, 0] = float("nan")
    assert m(bad, generator=seeded())["loss"].isnan()


# ---- momentum


def test_momentum_schedule():
    values = [momentum_at(s, 1000) for s in range(1001)]
    assert (
        values[0] == 0.999
        and values[-1] == 1.0
        and all(a <= b for a, b in zip(values, values[1:], strict=False))
    )
    assert (
        momentum_at(5, 10, 0.9, 0.9) == 0.9
        and momentum_at(0, 0) in (0.999, 1.0)
        and momentum_at(3, 3, onset=3) <= 1
    )


def test_momentum_update_against_loop(batch):
    m = make().train()
    bar = [p.clone() for p in m.momentum_encoder.parameters()]
    with torch.no_grad():
        for p in m.image_encoder.parameters():
            p.add_(torch.randn(p.shape, generator=seeded()))
    for alpha in (0.5, 0.9):
        bar = [alpha * a + (1 - alpha) * p for a, p in zip(bar, m.image_encoder.parameters(), strict=True)]
        m.update_momentum(alpha)
    for a, b in zip(m.momentum_encoder.parameters(), bar, strict=True):
        close(a, b.detach())
    before = [p.clone() for p in m.momentum_encoder.parameters()]
    m.update_momentum(1.0)
    m(batch, generator=seeded())["loss"].backward()
    assert all(torch.equal(a, b) for a, b in zip(m.momentum_encoder.parameters(), before, strict=True))
    assert all(p.grad is None and not p.requires_grad for p in m.momentum_encoder.parameters())
    make(reconstruction="none").update_momentum(0.5)  # nothing to move, no error


def test_momentum_is_a_copy_in_evaluation_mode(batch):
    m = make(image_drop_path=0.9)
    for mode in (True, False):
        m.train(mode)
        assert not any(x.training for x in m.momentum_encoder.modules()) and m.image_encoder.training == mode
    assert {id(p) for p in m.momentum_encoder.parameters()}.isdisjoint(
        {id(p) for p in m.image_encoder.parameters()}
    )
    m.train()
    mask = random_mask(5, 16)
    assert torch.equal(m.reconstruct(batch, mask)["target"], m.reconstruct(batch, mask)["target"])


def test_ema_of_half_precision():
    a, b = nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2).bfloat16()
    ema_update(a, b, 0.0)
    assert torch.equal(a.weight, b.weight)


# ---- checkpoints


@pytest.mark.parametrize("kind", ["none", "summary"])
def test_save_load(tmp_path, kind, batch):
    m = make(reconstruction=kind).eval()
    m.update_momentum(0.3)
    save_model(m, tmp_path / "m", {"epoch": 3})
    back = load_model(tmp_path / "m", device="cpu")
    assert back.config == m.config and not back.training
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in m.state_dict().items())
    with torch.no_grad():
        assert torch.equal(back(batch, generator=seeded())["loss"], m(batch, generator=seeded())["loss"])
    assert json.loads((tmp_path / "m" / "config.json").read_text())["epoch"] == 3
    assert back.momentum_encoder is None or not any(
        p.requires_grad for p in back.momentum_encoder.parameters()
    )


def test_shipped_weights_load():
    m = SGMIM.from_pretrained(Path(sgmim.__file__).parent / "weights" / "scenes-tiny", device="cpu")
    # written before some of the fields existed
    assert isinstance(m, SGMIM) and not m.training and m.config == scenes_tiny()


def test_exported_layout_loads(tmp_path, batch):
    m, folder = make(projection="mlp").eval(), tmp_path / "m"
    folder.mkdir()
    save_file(m.state_dict(), folder / "model.safetensors")
    meta = {"model_type": "sgmim", "config": config_to_dict(m.config)}
    write_json(folder / "config.json", meta)
    back = load_model(folder, device="cpu")
    with torch.no_grad():
        assert torch.equal(back(batch, generator=seeded())["loss"], m(batch, generator=seeded())["loss"])
    for broken in ([1], {**meta, "config": 3}):
        write_json(folder / "config.json", broken)
        with pytest.raises(CheckpointError, match="does not contain an sgmim model"):
            load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        load_model(folder)
    write_json(folder / "config.json", meta)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        load_model(folder)


def test_checkpoint_faults(tmp_path):
    m = make()
    save_model(m, tmp_path / "m")
    load_model(tmp_path / "m", device="cpu")
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "nowhere")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    for change, words in (
        ({"image_wdith": 3}, "did you mean 'image_width'"),
        ({"image_heads": 5}, "image_heads"),
        ({"embed_dim": 30}, "image_proj.weight"),
    ):
        write_json(tmp_path / "m" / "config.json", {**config, "config": {**config["config"], **change}})
        with pytest.raises(CheckpointError, match=words):
            load_model(tmp_path / "m", device="cpu")
    write_json(tmp_path / "m" / "config.json", {k: v for k, v in config.items() if k != "config"})
    with pytest.raises(CheckpointError, match="does not contain an sgmim model"):
        load_model(tmp_path / "m")
    write_json(tmp_path / "m" / "config.json", config)
    blob = (tmp_path / "m" / "weights.safetensors").read_bytes()
    (tmp_path / "m" / "weights.safetensors").write_bytes(blob[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        load_model(tmp_path / "m")


def test_the_mask_that_is_given_is_used(batch):
    m, mask = make().eval(), random_mask(5, 16, generator=seeded())
    with torch.no_grad():
        close(m(batch, mask=mask)["loss_mim"], mim_loss(**m.reconstruct(batch, mask)))


def test_backbones_are_checked_before_any_is_loaded():
    m = make()
    before = {k: v.clone() for k, v in m.state_dict().items()}
    image = {k: v + 1 for k, v in m.image_encoder.vit.state_dict().items()}
    with pytest.raises(CheckpointError, match="the audio weights"):
        load_backbones(m, image, {"encoder.layers.0.fc1.weight": torch.zeros(1)})
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())


def test_backbones(batch):
    donor, m = make(seed=1), make(seed=2, reinit_layers=1)
    image = {
        **donor.image_encoder.vit.state_dict(),
        "head.weight": torch.zeros(1),
        "decoder_blocks.0.x": torch.zeros(1),
        "mask_token": torch.zeros(1),
    }
    # the names of older files
    audio = {
        k.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): v
        for k, v in donor.audio_encoder.hubert.state_dict().items()
    }
    cls = m.audio_encoder.cls_token.clone()
    load_backbones(
        m,
        image,
        {**audio, "final_proj.weight": torch.zeros(1), "masked_spec_embed": torch.zeros(32)},
        seeded(),
    )
    mine, theirs = m.audio_encoder.hubert.state_dict(), donor.audio_encoder.hubert.state_dict()
    changed = {k for k in mine if not torch.equal(mine[k], theirs[k])}
    assert changed and all(k.startswith("encoder.layers.1.") for k in changed)
    for e in (m.image_encoder, m.momentum_encoder):
        assert all(
            torch.equal(a, b) for a, b in zip(e.parameters(), donor.image_encoder.parameters(), strict=True)
        )
    assert torch.equal(m.audio_encoder.cls_token, cls)  # [CLS] is ours, not HuBERT's
    again = make(seed=2, reinit_layers=1)
    load_backbones(again, image, audio, seeded())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in m.state_dict().items())
    assert torch.isfinite(m(batch, generator=seeded())["loss"])


def test_backbones_refused_leave_the_model_alone():
    m = make()
    before = {k: v.clone() for k, v in m.state_dict().items()}
    image, audio = m.image_encoder.vit.state_dict(), m.audio_encoder.hubert.state_dict()
    for bad, words in (
        (dict(image_weights={k: v for k, v in image.items() if k != "norm.bias"}), "1 missing: norm.bias"),
        (dict(image_weights={**image, "blocks.9.norm1.weight": torch.zeros(32)}), "1 unexpected: blocks.9"),
        (dict(image_weights={**image, "pos_embed": torch.zeros(1, 197, 32)}), "of another shape: pos_embed"),
        (dict(audio_weights={**audio, "encoder.layers.7.x": torch.zeros(1)}), "unexpected"),
        (dict(audio_weights={}), "missing"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_backbones(m, **bad)
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())


# ---- the package


@pytest.mark.slow
def test_modules_import_alone():
    names = [
        "models.patches",
        "models.losses",
        "models.image_encoder",
        "models.audio_encoder",
        "models.decoder",
        "models.sgmim",
    ]
    code = (
        "; ".join(f"import sgmim.{n}" for n in names)
        + "; import sys; assert 'fastcore' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
