"""Other systems of Tables 1 to 3 at full size: their published layouts, built from independent parts with
random weights, load by name and give equal outputs."""

import argparse
import re

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from transformers import HubertModel, Wav2Vec2Config, Wav2Vec2Model

from sgmim.core import CheckpointError
from sgmim.models.audio_encoder import hubert_config
from sgmim.models.pretrained import open_checkpoint


def random_norms(module):
    "BatchNorms as after a training; outputs stay near 1."
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for v in (m.weight, m.bias, m.running_mean):
                v.data = 0.5 * torch.rand_like(v)
            m.running_var = torch.rand_like(m.running_var) + 0.5
    return module.eval()


def time_block(width_in, width, stride):
    "torchvision's residual block, over time alone."
    down = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    block = torchvision.models.resnet.BasicBlock(width_in, width, stride, down if stride > 1 else None)
    block.conv1 = nn.Conv2d(width_in, width, (1, 9), stride, (0, 4), bias=False)
    block.conv2 = nn.Conv2d(width, width, (1, 9), 1, (0, 4), bias=False)
    return block


def time_stages(widths):
    "{'layer1': …, 'layer4': …} of two blocks each."
    pairs = list(zip(widths, widths[1:], strict=False))
    return {
        f"layer{s}": nn.Sequential(time_block(a, b, 2), time_block(b, b, 1))
        for s, (a, b) in enumerate(pairs, 1)
    }


def numbers(state):
    "Values in tensors that are trained: no running statistics, no counters."
    return sum(v.numel() for k, v in state.items() if "running_" not in k and "num_batches" not in k)


def assert_close(a, b):
    "Equal to 1e-5 of the largest value."
    assert (a - b).abs().max() < 1e-5 * b.abs().max()


# --- ResDAVEnet


def resdavenet_parts(widths):
    "The published networks: audio as torchvision's blocks, image as torchvision's ResNet-50."
    audio = dict(batchnorm1=nn.BatchNorm2d(1), conv1=nn.Conv2d(1, 128, (40, 1), bias=False))
    audio = nn.ModuleDict(audio | dict(bn1=nn.BatchNorm2d(128)) | time_stages(widths))
    image = torchvision.models.resnet50()
    image.avgpool, image.fc = nn.Identity(), nn.Identity()
    image.embedder = nn.Conv2d(2048, 1024, 1)
    return random_norms(audio), random_norms(image)


@pytest.mark.slow
@pytest.mark.parametrize("second, millions", [(256, 46.49), (128, 44.67)])
def test_a_published_resdavenet_loads(tmp_path, second, millions):
    from sgmim.models.resdavenet import mel_batch, resdavenet_model

    audio, image = resdavenet_parts((128, second, 256, 512, 1024))
    assert (len(audio.state_dict()), len(image.state_dict())) == (131, 320)
    assert round(numbers(audio.state_dict()) / 1e6, 2) == millions
    assert round(numbers(image.state_dict()) / 1e6, 2) == 25.61
    (tmp_path / "models").mkdir()
    (tmp_path / "args.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")  # never read
    for part, net in (("audio", audio), ("image", image)):
        state = {f"module.{k}": v for k, v in net.state_dict().items()}
        torch.save(state, tmp_path / "models" / f"best_{part}_model.pth")
    model, report = resdavenet_model(tmp_path, device="cpu")
    assert type(open_checkpoint(tmp_path)) is type(model)
    assert [s.tensors for s in report.sources.values()] == [131, 320]
    pixels, sound = torch.randn(2, 3, 224, 224), torch.randn(2, 20_000)
    with torch.no_grad():
        grid = image.embedder(image(pixels).view(2, 2048, 7, 7))
        assert_close(model.embed_image(pixels), grid.mean((2, 3)))
        mel, _ = mel_batch(sound, torch.tensor([20_000, 12_000]))
        x = torch.relu(audio["bn1"](audio["conv1"](mel[:, None])))
        for s in range(1, 5):
            x = audio[f"layer{s}"](x)
        assert x.shape == (2, 1024, 1, 128)
        z_audio = torch.stack([x[0, :, 0, : 126 // 16].mean(1), x[1, :, 0, : 76 // 16].mean(1)])
        assert_close(model.embed_audio(sound, torch.tensor([20_000, 12_000])), z_audio)
    (tmp_path / "models/best_image_model.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="best_image_model.pth is empty"):
        resdavenet_model(tmp_path, device="cpu")


# --- SpeechCLIP

FAIRSEQ = [
    (r"(conv_layers\.\d+)\.conv\.", r"\1.0."),
    (r"(conv_layers\.\d+)\.layer_norm\.", r"\1.2."),
    (r"^feature_projection\.layer_norm\.", "layer_norm."),
    (r"^feature_projection\.projection\.", "post_extract_proj."),
    (r"\.feed_forward\.intermediate_dense\.", ".fc1."),
    (r"\.feed_forward\.output_dense\.", ".fc2."),
    (r"(layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"\.attention\.", ".self_attn."),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
    (r"pos_conv_embed\.conv\.", "pos_conv.0."),
]
OPENAI = [
    (r"^blocks\.", "transformer.resblocks."),
    (r"\.attn\.qkv\.", ".attn.in_proj_"),
    (r"\.attn\.proj", ".attn.out_proj"),
    (r"\.norm([12])", r".ln_\1"),
    (r"^norm_pre", "ln_pre"),
    (r"^norm\.", "ln_post."),
    (r"\.fc1", ".c_fc"),
    (r"\.fc2", ".c_proj"),
    (r"^patch_embed\.proj", "conv1"),
    (r"^head.weight", "proj"),
    (r"^cls_token", "class_embedding"),
    (r"^pos_embed", "positional_embedding"),
]


def renamed(name, rules):
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def openai_tensors(net):
    "The tensors of timm's CLIP under OpenAI's names."
    state = {renamed(k, OPENAI): v for k, v in net.state_dict().items() if k != "head.bias"}
    state["class_embedding"] = state["class_embedding"].flatten()
    state["positional_embedding"] = state["positional_embedding"][0]
    return state | {"proj": state["proj"].T}


@pytest.mark.slow
def test_a_published_speechclip_loads(tmp_path):
    from sgmim.models.speechclip import clip_pixels, speechclip_model

    clip = timm.create_model("vit_base_patch32_clip_quickgelu_224", num_classes=512).eval()
    clip.head.bias.data.zero_()
    visual = openai_tensors(clip)
    assert (len(visual), numbers(visual)) == (152, 87_849_216)
    hubert = HubertModel(hubert_config()).eval()
    layer = nn.TransformerEncoderLayer(768, 8, 3072, 0.1, "gelu", batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, nn.LayerNorm(768), enable_nested_tensor=False).eval()
    proj, cls, weights = nn.Linear(768, 512), torch.randn(1, 1, 768), torch.randn(13)
    branch = {f"self_att.model.{k}": v for k, v in encoder.state_dict().items()}
    branch |= {"cls": cls} | {f"linear_proj.{k}": v for k, v in proj.state_dict().items()}
    assert len(branch) == 17 and round(numbers(branch) / 1e6, 3) == 7.484
    state = {f"parallel_branch.{k}": v for k, v in branch.items()}
    state |= {f"audio_encoder.encoder.{renamed(k, FAIRSEQ)}": v for k, v in hubert.state_dict().items()}
    state |= {f"clip.model.visual.{k}": v.half() for k, v in visual.items()}
    state |= {"audio_encoder.weightedsum_layer.weights": weights, "clip.model.logit_scale": torch.ones(())}
    config = argparse.Namespace(a=1)  # a class that is not read
    torch.save({"state_dict": state, "hyper_parameters": {"config": config}}, tmp_path / "x.ckpt")
    model, report = speechclip_model(tmp_path / "x.ckpt", device="cpu")
    assert type(open_checkpoint(tmp_path / "x.ckpt")) is type(model)
    assert report.sources["model"].left_out == ("clip.model.logit_scale",)
    pixels, sound = torch.randn(2, 3, 224, 224), 0.1 * torch.randn(2, 16_000)
    clip.load_state_dict({k: v.half().float() for k, v in clip.state_dict().items()})
    with torch.no_grad():
        assert_close(model.embed_image(pixels), F.normalize(clip(clip_pixels(pixels)), dim=1))
        states = torch.stack(hubert(sound, output_hidden_states=True).hidden_states)
        mixed = torch.einsum("s,sbtd->btd", weights.softmax(0), states)
        z = encoder(torch.cat([cls.expand(2, -1, -1), mixed], 1))[:, 0]
        assert_close(model.embed_audio(sound), F.normalize(proj(z), dim=1))


# --- FaST-VGS


def linear(name, d_in, d_out):
    "A linear layer under a name."
    layer = nn.Linear(d_in, d_out)
    return {f"{name}.weight": layer.weight.detach(), f"{name}.bias": layer.bias.detach()}


def bert_tensors(layer):
    "The tensors of torch's post-norm layer under BERT's names."
    s, out = layer.state_dict(), {}
    for p in ("weight", "bias"):
        parts = s[f"self_attn.in_proj_{p}"].chunk(3)
        out |= {f"attention.self.{n}.{p}": v for n, v in zip(("query", "key", "value"), parts, strict=True)}
        out[f"attention.output.dense.{p}"] = s[f"self_attn.out_proj.{p}"]
        out[f"attention.output.LayerNorm.{p}"] = s[f"norm1.{p}"]
        out[f"intermediate.dense.{p}"], out[f"output.dense.{p}"] = s[f"linear1.{p}"], s[f"linear2.{p}"]
        out[f"output.LayerNorm.{p}"] = s[f"norm2.{p}"]
    return out


def fast_vgs_parts():
    "wav2vec2 of transformers, torch's layers, torchvision's blocks, and all as a bundle."
    sizes = dict(num_hidden_layers=8, layerdrop=0.0, apply_spec_augment=False, mask_time_prob=0.0)
    wav2vec2 = Wav2Vec2Model(Wav2Vec2Config(**sizes)).eval()
    options = dict(activation="gelu", batch_first=True, layer_norm_eps=1e-12)
    layers = [nn.TransformerEncoderLayer(768, 12, 3072, **options).eval() for _ in range(7)]
    stack = dict(linear=nn.Linear(768, 128), bn1=nn.BatchNorm2d(128))
    stack = random_norms(nn.ModuleDict(stack | time_stages((128, 128, 256, 512, 768))))
    state = {"visual_cls_token": torch.randn(1, 1, 768)}
    state |= linear("visn_fc.visn_fc", 2048, 768) | linear("visn_fc.box_fc", 4, 768)
    for norm in ("visn", "box"):
        state |= {f"visn_fc.{norm}_layer_norm.{p}": torch.rand(768) for p in ("weight", "bias")}
    for name, layer in zip((*(f"trm.{i}" for i in range(6)), "trm2"), layers, strict=True):
        state |= {f"{name}.{k}": v for k, v in bert_tensors(layer).items()}
    for name in ("visual_cls_token_proj_coarse", "audio_cls_token_proj_coarse", "audio_cls_token_proj_pre"):
        state |= linear(f"{name}.0", 768, 1536) | linear(f"{name}.2", 1536, 768)
    state |= linear("trm2_proj", 768, 768) | {f"conv2.{k}": v for k, v in stack.state_dict().items()}
    speech = {renamed(k, FAIRSEQ): v for k, v in wav2vec2.state_dict().items() if k != "masked_spec_embed"}
    speech |= {"cls_token": torch.randn(1, 1, 768), "mask_emb": torch.rand(768)}
    speech |= {"quantizer.vars": torch.rand(1, 640, 128)} | linear("quantizer.weight_proj", 512, 640)
    speech |= linear("project_q", 256, 256) | linear("final_proj", 768, 256)
    state |= {f"conv1_trm1_trm3.{k}": v for k, v in speech.items()}
    return wav2vec2, layers, stack, state


@pytest.mark.slow
def test_a_published_fast_vgs_loads(tmp_path):
    from sgmim.models.fast_vgs import fast_vgs_model

    wav2vec2, layers, stack, s = fast_vgs_parts()
    assert len(s) == 417
    content = {
        "dual_encoder": s,
        "cross_encoder": {"fc.2.bias": torch.ones(1)},
        "indices": [],
        "libri_indices": [],
    }
    torch.save(content, tmp_path / "best_bundle.pth")
    (tmp_path / "args.pkl").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")  # never read
    model, report = fast_vgs_model(tmp_path, device="cpu")
    assert type(open_checkpoint(tmp_path)) is type(model)
    source = report.sources["model"]
    assert (source.tensors, len(source.left_out)) == (405, 12) and "cross_encoder" in source.beside
    used = [v for k, v in s.items() if k not in source.left_out]
    assert round(sum(v.numel() for v in used) / 1e6, 2) == 153.61
    assert sorted(len(v) for v in (source.left_out, model.state_dict())) == [12, 405]

    def mlp(name, x):
        x = F.gelu(F.linear(x, s[f"{name}.0.weight"], s[f"{name}.0.bias"]))
        return F.linear(x, s[f"{name}.2.weight"], s[f"{name}.2.bias"])

    regions = torch.rand(2, 36, 2052)
    with torch.no_grad():
        x = 0
        for v, a, b in ((regions[..., :2048], "visn_fc", "visn"), (regions[..., 2048:], "box_fc", "box")):
            v = F.linear(v, s[f"visn_fc.{a}.weight"], s[f"visn_fc.{a}.bias"])
            norm = (s[f"visn_fc.{b}_layer_norm.{p}"] for p in ("weight", "bias"))
            x = x + F.layer_norm(v, (768,), *norm, 1e-12) / 2
        x = torch.cat([s["visual_cls_token"].expand(2, -1, -1), x], 1)
        for layer in layers[:6]:
            x = layer(x)
        assert_close(model.embed_image(regions), mlp("visual_cls_token_proj_coarse", x[:, 0]))
        # ten seconds exactly: nothing is padded; 499 // 16 = 31 of the 32 compressed frames count
        sound = torch.randn(1, 160_000)
        wave = (sound - sound.mean()) / sound.std(correction=0)
        frames, _ = wav2vec2.feature_projection(wav2vec2.feature_extractor(wave).mT)
        frames = torch.cat([s["conv1_trm1_trm3.cls_token"], frames], 1)
        z = wav2vec2.encoder(frames).last_hidden_state
        x = torch.relu(stack["bn1"](stack["linear"](z[:, 1:]).mT[:, :, None]))
        for i in range(1, 5):
            x = stack[f"layer{i}"](x)
        x = torch.cat([mlp("audio_cls_token_proj_pre", z[:, 0])[:, None], x[:, :, 0].mT], 1)
        assert x.shape == (1, 1 + 32, 768)
        x = layers[6](x[:, : 1 + 499 // 16])[:, 0]
        assert_close(model.embed_audio(sound), F.linear(x, s["trm2_proj.weight"], s["trm2_proj.bias"]))
        eight = model.train().audio_encoder.cnn(torch.randn(1, 128_000))[0]
        assert eight.shape[1] == 399 and model.conv2(torch.randn(1, 399, 768)).shape[1] == 25
