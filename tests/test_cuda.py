"""What runs on a GPU against what runs on the CPU: a step, a gradient in pieces, a training that is
interrupted, embeddings and their recalls, the plan."""

import math
import os
import signal

import pytest
import torch
from conftest import Toy, micro
from test_parallel import agree, batch_of
from test_train import at, same

from sgmim.evaluation.retrieval import evaluate
from sgmim.models.patches import PatchMask, random_mask
from sgmim.models.sgmim import SGMIM
from sgmim.train import TrainConfig, fit
from sgmim.training.plan import measured
from sgmim.training.step import gradients, make_optimiser, train_step

GPU = torch.device("cuda")
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
QUICK = TrainConfig(
    epochs=2.0,
    batch_size=8,
    optimiser="adamw",
    lr=1e-3,
    schedule="cosine",
    max_seconds=4.0,
    save_every=5,
    log_every=1,
    seed=5,
    amp="off",
)


@pytest.fixture(autouse=True)
def exact():
    "float32 as it is, not TF32: the CPU is to be compared with."
    was = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = was


def gradient(device, micro_batch=0, amp="off"):
    "Losses and gradients of one batch, on the CPU."
    torch.manual_seed(3)
    model = SGMIM(micro(dropout=0.0)).train().to(device)
    batch = {k: v.to(device) for k, v in batch_of(8).items() if torch.is_tensor(v)}
    masks = PatchMask(*(m.to(device) for m in random_mask(8, 16, 0.75, torch.Generator().manual_seed(1))))
    out = gradients(
        model,
        batch,
        masks,
        [8],
        TrainConfig(amp=amp, micro_batch=micro_batch),
    )
    return out, {k: p.grad.cpu() for k, p in model.named_parameters() if p.grad is not None}


def test_the_gradient_is_that_of_the_cpu():
    agree(gradient(GPU), gradient("cpu"), 1e-4)


def test_a_gradient_in_pieces_is_that_of_the_whole():
    agree(gradient(GPU, 3), gradient(GPU), 1e-4)


def test_bfloat16_points_the_same_way():
    (said, a), (want, b) = gradient(GPU, amp="bf16"), gradient(GPU)

    def flat(grads):
        return torch.cat([grads[k].flatten().double() for k in sorted(grads)])

    assert abs(said["loss"] - want["loss"]) < 0.05 and torch.cosine_similarity(flat(a), flat(b), 0) > 0.98


def test_a_step_in_bfloat16_moves_the_weights_and_stays_finite():
    model = SGMIM(micro()).to(GPU).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    out = train_step(model, batch_of(8), make_optimiser(model, QUICK), 3, 10, 0, TrainConfig(amp="auto"))
    assert out["finite"] and math.isfinite(out["loss"]) and out["loss_mim"] > 0
    assert all(v.isfinite().all() for v in model.state_dict().values()) and any(
        not torch.equal(v, before[k]) for k, v in model.state_dict().items()
    )


def test_an_interrupted_run_goes_on(tmp_path):
    def run(out, hook=None):
        return fit(micro(), Toy(hook=hook), Toy(16, 2, seed=9), QUICK, out=out, device="cuda", progress=False)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", at(5 * 8 + 2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    cut, whole = run(tmp_path / "cut"), run(tmp_path / "whole")
    assert cut.record["steps"] == whole.record["steps"] and [h["step"] for h in cut.history] == [
        h["step"] for h in whole.history
    ]
    assert all(
        torch.allclose(a, b, atol=1e-3)
        for a, b in zip(cut.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    ) or same(cut, whole)  # CUDA adds in any order


def test_recalls_are_those_of_the_cpu():
    torch.manual_seed(3)
    model, data = SGMIM(micro()).eval(), Toy(30, 2, seed=9)
    want = evaluate(model, data, "cpu")
    got = evaluate(model.to(GPU), data, "cuda")
    # a near tie may fall the other way: one of 30 queries
    assert all(abs(a - b) < 4 for a, b in zip(got.row, want.row, strict=True))


def test_what_a_pair_costs_is_measured():
    cost = measured(micro(), QUICK, "cuda", seconds=0.05)
    assert cost.after > 0 and cost.bytes_fixed > 0 and cost.bytes_pair >= 0 and cost.bytes_saving == 0
