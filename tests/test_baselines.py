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
from transformers import HubertModel

from sgmim.core import CheckpointError
from sgmim.models.audio_encoder import hubert_config


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
    assert report.sources["model"].left_out == ("clip.model.logit_scale",)
    pixels, sound = torch.randn(2, 3, 224, 224), 0.1 * torch.randn(2, 16_000)
    clip.load_state_dict({k: v.half().float() for k, v in clip.state_dict().items()})
    with torch.no_grad():
        assert_close(model.embed_image(pixels), F.normalize(clip(clip_pixels(pixels)), dim=1))
        states = torch.stack(hubert(sound, output_hidden_states=True).hidden_states)
        mixed = torch.einsum("s,sbtd->btd", weights.softmax(0), states)
        z = encoder(torch.cat([cls.expand(2, -1, -1), mixed], 1))[:, 0]
        assert_close(model.embed_audio(sound), F.normalize(proj(z), dim=1))
