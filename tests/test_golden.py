"""A golden training: two rows of Table 4, eight steps in float32 on noise. If the numbers of the code
move, this says so.

`python tests/test_golden.py` prints the values anew. Change them only together with a reason in the
commit."""

from dataclasses import replace

import pytest
import torch
from conftest import Toy, micro

from sgmim.models.sgmim import ROWS, SGMIM
from sgmim.train import TrainConfig, fit

STEPS = TrainConfig(
    epochs=2.0,
    batch_size=8,
    optimiser="bertadam",
    lr=1e-3,
    max_seconds=0.4,
    eval_seconds=0.4,
    augment="crop",
    amp="off",
    log_every=1,
)
# instead of micro's
PAPER = dict(
    similarity="dot", temperature=None, input_dropout=0.1, zero_padded_frames=False, valid_frames="any_sample"
)
GOLDEN = {
    "VG-HuBERT (M)": {
        "loss_nce": [4.07961, 4.232446, 4.151698, 4.0873, 3.953902, 4.215834, 4.176351, 4.13097],
        "loss_mim": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        "norms": [10.64486, 16.73537, 2.327044, 2.307668],
    },
    "+ Summary": {
        "loss_nce": [4.07961, 4.232446, 4.151698, 4.088715, 3.93866, 4.218952, 4.199702, 4.135796],
        "loss_mim": [0.0, 0.0, 1.392752, 1.123362, 1.10038, 1.028244, 0.9909072, 0.9593378],
        "norms": [10.6451, 16.73605, 2.325567, 2.31206, 17.68379, 10.56705],
    },
}


def golden_training(row):
    "{name: numbers} of a training: the losses of every step, and the norm of each part at the end."
    torch.manual_seed(0)
    model = SGMIM(micro(reconstruction=ROWS[row], mim_onset=0.5, **PAPER))
    fitted = fit(model, Toy(32), config=replace(STEPS, seed=1), device="cpu", progress=False)
    steps = [h for h in fitted.history if "loss" in h]
    found = {k: [h.get(k) or 0.0 for h in steps] for k in ("loss_nce", "loss_mim")}
    found["norms"] = [
        float(torch.stack([p.detach().double().norm() for p in part.parameters()]).norm())
        for _, part in model.named_children()
    ]
    return found


@pytest.mark.parametrize("row", ["VG-HuBERT (M)", "+ Summary"])
def test_golden_training(row):
    for name, numbers in golden_training(row).items():
        assert numbers == pytest.approx(GOLDEN[row][name], rel=1e-5), name


if __name__ == "__main__":
    for row in ("VG-HuBERT (M)", "+ Summary"):
        print(repr(row), {k: [float(f"{x:.7g}") for x in v] for k, v in golden_training(row).items()})
