"""Other systems of Tables 1 to 3 at full size: their published layouts, built from independent parts with
random weights, load by name and give equal outputs."""

import pytest
import torch
import torchvision
from torch import nn

from sgmim.core import CheckpointError


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
