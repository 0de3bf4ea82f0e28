"""The models of the paper at their full size, with random weights, on two pairs: counts, shapes,
gradients, and one step against the plain formulas."""

import copy
import math

import pytest
import torch

import sgmim.training.step
from sgmim.core import set_seed
from sgmim.models.patches import random_mask
from sgmim.models.sgmim import SGMIM, paper, vg_hubert
from sgmim.train import recipe
from sgmim.training.plan import parameter_counts
from sgmim.training.step import make_optimiser, train_step

B, SECONDS = 2, 1.5


@pytest.fixture(scope="module")
def pairs():
    g = torch.Generator().manual_seed(0)
    n = round(SECONDS * 16_000)
    return {
        "image": torch.randn(B, 3, 224, 224, generator=g),
        "audio": 0.1 * torch.randn(B, n, generator=g),
        "audio_len": torch.tensor([n, n - 4000]),
        "image_id": torch.arange(B),
        "index": torch.arange(B),
    }


@pytest.fixture(scope="module")
def model():
    set_seed(0)
    return SGMIM(paper())


@pytest.mark.slow
def test_the_sizes_of_section_3_2(model):
    """ViT-B/16 and HuBERT Base as published, projections 768 → 768, a decoder of one layer with
    cross-attention, a momentum encoder like the image encoder."""
    counts = parameter_counts(model.config)
    assert counts["image_encoder"][1] == counts["momentum_encoder"][1] == 85_798_656
    # HubertModel(HubertConfig()): [CLS] for SpecAugment's vector
    assert counts["audio_encoder"][1] == 94_371_712
    # the convolutions stay as they are
    assert counts["audio_encoder"][1] - counts["audio_encoder"][0] == 4_200_448
    assert counts["image_proj"] == counts["audio_proj"] == (768 * 768 + 768,) * 2
    attention, mlp, norm = 4 * (768 * 768 + 768), 768 * 3072 + 3072 + 3072 * 768 + 768, 2 * 768
    # cross-attention, self-attention, feed-forward
    assert counts["decoder"][1] >= 2 * attention + mlp + 3 * norm


def test_vg_hubert_has_its_sizes():
    counts = parameter_counts(vg_hubert())
    assert counts["image_encoder"][1] == 21_670_272  # DINO's ViT-S/8 without a head
    assert counts["image_proj"][1] == (384 * 1536 + 1536) + (1536 * 2048 + 2048) and counts["audio_proj"][
        1
    ] == (768 * 1536 + 1536) + (1536 * 2048 + 2048)
    assert counts["all"][0] == counts["all"][1] - 4_200_448


def plain_loss(model, batch, mask):
    "Equations 2 to 5, term by term."
    c = model.config
    Z_I, heard = model.image_encoder(batch["image"]), model.audio_encoder(batch["audio"], batch["audio_len"])
    z_I, z_A = model.image_proj(Z_I.mean(1)), model.audio_proj(heard.cls)
    s = [[(z_I[i] * z_A[j]).sum() for j in range(B)] for i in range(B)]
    L_I = -sum(torch.log(s[i][i].exp() / sum(s[i][j].exp() for j in range(B))) for i in range(B)) / B
    L_A = -sum(torch.log(s[i][i].exp() / sum(s[j][i].exp() for j in range(B))) for i in range(B)) / B
    W = heard.attention
    summary = torch.stack(
        [
            torch.stack([sum(W[b, h, t] * heard.frames[b, t] for t in range(W.shape[2])) for h in range(12)])
            for b in range(B)
        ]
    )
    predicted = model.decoder(model.image_encoder(batch["image"], mask), mask, summary, None)
    with torch.no_grad():
        target = model.momentum_encoder(batch["image"])[:, 1:]
    hidden = [(b, k) for b in range(B) for k in range(196) if mask.mask[b, k]]
    # a distance: eq. 4's minus sign is a misprint
    L_MIM = sum(((target[b, k] - predicted[b, k]) ** 2).mean() for b, k in hidden) / len(hidden)
    return L_I + L_A + c.lam * L_MIM


@pytest.mark.slow
def test_one_step_equals_the_plain_formulas(model, pairs, monkeypatch):
    """The loss of eqs. 2-5 term by term, its gradient clipped by hand, BertAdam and the momentum encoder
    by their formulas."""
    config, step, steps = recipe("paper-spokencoco"), 50, 1000
    for m in (m for m in model.modules() if isinstance(m, torch.nn.Dropout)):
        m.p = 0.0
    for layer in model.audio_encoder.hubert.encoder.layers:
        layer.attention.dropout = 0.0
    before = copy.deepcopy(model)
    masks = []
    monkeypatch.setattr(
        sgmim.training.step, "random_mask", lambda *a: masks.append(random_mask(*a)) or masks[-1]
    )
    out = train_step(model.train(), pairs, make_optimiser(model, config), step, steps, 0, config)
    assert len(masks) == 1 and masks[0].mask.sum(1).tolist() == [147, 147]  # 75 % of 196
    lr = 5e-6 * (step / steps) / 0.1
    assert math.isclose(out["lr"], lr) and math.isclose(
        out["alpha"], 1 - 0.001 * (1 + math.cos(math.pi * step / steps)) / 2
    )
    loss = plain_loss(before.train(), pairs, masks[0])
    assert loss.isfinite() and math.isclose(out["loss"], loss, rel_tol=1e-4), (out["loss"], loss)
    loss.backward()
    trained = {n: p for n, p in before.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained.values())
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in trained.values()))
    after, moved = dict(model.named_parameters()), 0
    for n, p in trained.items():
        g = p.grad * min(1.0, 1 / (norm + 1e-6))
        m, v = 0.1 * g, 0.001 * g * g  # the first step's moments, not corrected for bias
        expected = p.detach() - lr * (m / (v.sqrt() + 1e-6) + 0.01 * p.detach())
        change = (expected - p).abs().max().item()
        moved += bool(change > 0)
        # a gradient that is a sum of thousands of terms comes out a little different in another order; its
        # sign decides the update, so compare where it is not noise
        clear = g.abs() > 1e-2 * g.abs().max()
        assert torch.allclose(after[n][clear], expected[clear], atol=0.02 * change + 1e-9), n
    # where the gradient is below the last bit of the weight, the formula moves nothing either
    assert moved >= len(trained) - 2
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert all(
        n.startswith(("audio_encoder.hubert.feature_extractor", "momentum_encoder")) or "pos_embed" in n
        for n in frozen
    ), frozen
    for (n, new), old, theirs in zip(
        model.momentum_encoder.named_parameters(),
        before.momentum_encoder.parameters(),
        model.image_encoder.parameters(),
        strict=True,
    ):
        assert torch.allclose(new, out["alpha"] * old + (1 - out["alpha"]) * theirs, atol=1e-7), n
