"""Several processes are one training: two real ones on gloo against one, the gradient of a batch in pieces
against the whole, and what stops one process stops all."""

import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, TESTS, Toy, micro
from test_train import QUICK, Crash, at, batches, crash, losses, quick, same, snapshots

from sgmim.core import ConfigError, SgmimError, read_json
from sgmim.data.batches import Pairs, pool_loader
from sgmim.evaluation.retrieval import evaluate, retrieval_metrics
from sgmim.models.patches import random_mask
from sgmim.models.sgmim import SGMIM
from sgmim.training.parallel import Team, join
from sgmim.training.step import gradients, make_optimiser, train_step

STILL = dict(dropout=0.0)  # the noise of dropout is each process' own
CPU = torch.device("cpu")

PLAIN = dict(model=micro(**STILL), speed=0.0)
# pairs, micro_batch: the last is one piece for one process and two for the other
CASES = ((8, 0), (7, 0), (8, 3), (7, 3))
DEV = dict(n=30, captions=2, seed=9)

TEAM = """
import os, sys, torch, signal
from copy import deepcopy
from conftest import Toy, micro
from test_parallel import CASES, CPU, DEV, PLAIN, QUICK, STILL, Crash, at, batch_of, build, crash
from test_parallel import grads_of, quick
from sgmim.training.parallel import join
from sgmim.evaluation.retrieval import evaluate
from dataclasses import replace
torch.set_num_threads(1)
out = sys.argv[1]
team, device = join('cpu')
found = {'size': team.size}
fitted = quick(dev=Toy(**DEV), out=out + '/together', **PLAIN)
found['history'], found['record'] = fitted.history, fitted.record
found['gradients'] = {case: grads_of(team, *case) for case in CASES}
torch.manual_seed(3)
found['result'] = evaluate(build(), Toy(**DEV), 'cpu', batch_size=7, team=team).to_dict()
found['continued'] = quick(out=out + '/alone', **PLAIN).history
stop = at(4*6 + 2, lambda: os.kill(os.getpid(), signal.SIGTERM)) if team.rank == 1 else None
try: quick(Toy(hook=stop), out=out + '/stopped', **PLAIN)
except KeyboardInterrupt as e: found['stopped'] = str(e)
bad = Toy(40)
if team.rank == 1:
    for w in bad.waves: w[:] = float('inf')
poisoned = batch_of(8)
spoilt = [{**poisoned, 'image': poisoned['image']*(1 if k < 2 else float('nan'))} for k in range(5)]
try: quick(spoilt, model=micro(**STILL))
except Exception as e: found['poisoned'] = str(e)
starts = {'seeds': lambda: quick(seed=team.rank, **PLAIN),
          'small': lambda: quick([batch_of(8), batch_of(1)], model=micro(**STILL))}
for name, start in starts.items():
    try: start()
    except ValueError as e: found[name] = str(e)
everyone = team.everyone({k: found.get(k) for k in ('stopped', 'poisoned', 'result', 'seeds', 'small')})
if team.first: torch.save({**found, 'everyone': everyone}, out + '/found.pt')
"""


def build(**changes):
    torch.manual_seed(3)
    return SGMIM(micro(**{**STILL, **changes})).train()


def batch_of(n):
    pairs = Pairs(Toy(20, 2), 4.0)
    return pairs.collate([pairs[j] for j in range(5, 5 + n)])  # with two captions of one image


def grads_of(team, n, micro_batch=0, whole=None, **changes):
    "Losses and gradients of one batch, of whose rows this process has its share."
    model, batch = build(**changes), batch_of(n)
    masks = random_mask(n, 16, 0.75, torch.Generator().manual_seed(1))
    net = model
    if team.size > 1:
        net = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    rows = team.rows(n)
    out = gradients(
        net,
        {k: v[rows] for k, v in batch.items()},
        masks,
        team.everyone(rows.stop - rows.start),
        replace(QUICK, micro_batch=micro_batch),
        team=team,
    )
    return out, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def agree(a, b, eps=1e-5):
    (said, grads), (said_b, grads_b) = a, b
    assert said.keys() == said_b.keys() and grads.keys() == grads_b.keys() and len(grads) > 30
    for k in said:
        assert abs(said[k] - said_b[k]) < eps, (k, said[k], said_b[k])
    for k in grads:
        torch.testing.assert_close(grads[k], grads_b[k], rtol=1e-4, atol=eps, msg=lambda m, k=k: f"{k}: {m}")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    "What two processes did together, after one had begun a run alone."
    out = tmp_path_factory.mktemp("team")
    with pytest.raises(Crash):
        quick(Toy(hook=at(8 * 6 + 3, crash)), out=out / "alone", **PLAIN)
    assert snapshots(out / "alone") == ["step-00000005"]
    (out / "script.py").write_text(TEAM)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            str(out / "script.py"),
            str(out),
        ],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, TESTS))), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out / "found.pt", weights_only=False) | {"out": out}  # written by this test itself


@pytest.fixture(scope="module")
def one():
    return quick(dev=Toy(**DEV), **PLAIN)


@pytest.mark.slow
def test_two_processes_compute_what_one_does(found, one):
    assert found["size"] == 2

    def pick(history, k):
        return np.array([h[k] for h in history if k in h])

    for k in ("loss", "loss_nce", "loss_mim", "lr", "alpha"):
        a, b = pick(found["history"], k), pick(one.history, k)
        assert len(a) == len(b) == 15 and abs(a - b)[:6].max() < 1e-5, (k, a - b)
        # AdamW divides small gradients by their own size, and so makes last bits grow
        assert abs(a - b).max() < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_their_gradients_are_those_of_one(found, case):
    agree(found["gradients"][case], grads_of(Team(), case[0]))


@pytest.mark.slow
def test_what_cannot_be_one_training_is_said(found):
    assert all("different runs" in e["seeds"] for e in found["everyone"]) and all(
        "batch of 1 pairs cannot be shared by 2" in e["small"] for e in found["everyone"]
    )


@pytest.mark.slow
def test_every_test_caption_is_embedded_once(found):
    "The very numbers of one process, on both processes: none twice, none left out."
    alone = evaluate(build(), Toy(**DEV), "cpu", batch_size=7).to_dict()
    assert (
        found["result"] == alone
        and alone["audio_to_image"]["n_queries"] == 60
        and alone["image_to_audio"]["n_queries"] == 30
    )
    assert [e["result"] for e in found["everyone"]] == [alone] * 2


@pytest.mark.slow
def test_one_writes_for_all(found):
    record = read_json(found["out"] / "together" / "record.json")
    assert record["processes"] == 2 and record["steps"] == 15 and record["pairs_seen"] == 120
    assert snapshots(found["out"] / "together") == ["step-00000010", "step-00000015"] and not list(
        found["out"].rglob("*.part")
    )


@pytest.mark.slow
def test_what_one_began_two_go_on_with(found):
    alone = quick(**PLAIN)
    assert [h["step"] for h in found["continued"]] == list(range(1, 16))
    a, b = ([h["loss"] for h in x] for x in (found["continued"], alone.history))
    assert a[:5] == b[:5] and np.abs(np.subtract(a, b))[:8].max() < 1e-5


@pytest.mark.slow
def test_what_stops_one_stops_all(found):
    "At the same step, with a checkpoint; and a loss that is no number is the same error everywhere."
    said = [e["stopped"] for e in found["everyone"]]
    assert said[1].startswith("SIGTERM at step 7;") and said[0].startswith(
        "another process was stopped at step 7;"
    ), said
    assert snapshots(found["out"] / "stopped")[-1] == "step-00000007"
    assert all("the loss is nan at step 3" in e["poisoned"] for e in found["everyone"])


# ---- one process


@pytest.mark.parametrize("row", ["none", "plain", "frames", "summary"])
@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_a_cached_gradient_is_that_of_the_whole_batch(row, micro_batch):
    agree(grads_of(Team(), 8, micro_batch, reconstruction=row), grads_of(Team(), 8, reconstruction=row))


def test_both_passes_of_a_cached_gradient_hear_the_same_dropout():
    """With dropout the pieces draw their own noise, so the whole is made of pieces here too: one graph
    over both."""
    model, batch = build(dropout=0.3), batch_of(8)
    out = gradients(model, batch, None, [8], replace(QUICK, micro_batch=4), seed=11)
    got = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    made, real = [], torch.manual_seed
    from sgmim.core import stable_hash

    for k in range(2):
        real((11 + stable_hash(0, k) * (k > 0)) % 2**63)
        made.append(model({n: v[4 * k : 4 * k + 4] for n, v in batch.items()}, reconstruct=False))
    z = [torch.cat([m[n] for m in made]) for n in ("z_image", "z_audio")]
    loss = model.contrast(*z, batch["image_id"])
    loss.backward()
    assert (
        abs(float(loss.detach()) - out["loss_nce"]) < 1e-5
        and abs(float(made[0]["loss_nce"].detach()) - out["loss_nce"]) > 0.1
    )
    for k, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[k], p.grad, rtol=1e-4, atol=1e-5)


def test_a_training_in_micro_batches():
    whole, pieces = quick(**PLAIN), quick(micro_batch=3, **PLAIN)
    assert np.abs(np.subtract(losses(whole), losses(pieces)))[:6].max() < 1e-5 and not same(whole, pieces)


def test_steps_that_are_no_number_can_be_left_out():
    data = batches(5, poison=3)
    with pytest.raises(SgmimError, match="the loss is nan at step 4 .*max_skipped"):
        quick(data)
    fitted = quick(data, max_skipped=3)
    assert [s["step"] for s in fitted.record["skipped"]] == [4, 9, 14] and fitted.record["skipped"][0][
        "captions"
    ] == list(range(24, 32))
    assert (
        all(v.isfinite().all() for v in fitted.model.state_dict().values())
        and np.isfinite(losses(fitted)).all()
    )
    with pytest.raises(SgmimError, match="at step 14 .*steps of this kind so far: 3"):
        quick(data, max_skipped=2)


def test_a_gradient_that_is_no_number_is_found(monkeypatch):
    model = build()
    optimiser, before = make_optimiser(model, QUICK), deepcopy(model.state_dict())
    model.image_proj.weight.register_hook(lambda g: g * float("inf"))
    out = train_step(model, batch_of(8), optimiser, 3, 15, 0, QUICK)
    assert not out["finite"] and np.isfinite(out["loss"])
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_how_a_process_finds_its_place(monkeypatch):
    assert join("cpu") == (Team(0, 1), CPU)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(
        ConfigError, match="WORLD_SIZE is 4, but MASTER_ADDR, MASTER_PORT not set: start with torchrun"
    ):
        join("cpu")


@pytest.mark.parametrize("n,size", [(8, 2), (7, 3), (2, 3), (100, 8)])
def test_rows_are_dealt_once(n, size):
    rows = [Team(r, size).rows(n) for r in range(size)]
    assert [i for r in rows for i in range(n)[r]] == list(range(n)) and max(
        r.stop - r.start for r in rows
    ) - min(r.stop - r.start for r in rows) <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_a_pool_is_dealt_once(size):
    loader = pool_loader(Pairs(Toy(30, 2), 4.0), 8)
    shares = [list(loader.deal(r, size)) for r in range(size)]
    turn = [s[k] for k in range(max(map(len, shares))) for s in shares if k < len(s)]
    whole = list(loader)
    assert len(turn) == len(whole) == 12
    for a, b in zip(turn, whole, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Half(Team):
    "A process that plays its part, and whose fellows are played by the test."

    def everyone(self, x):
        raise AssertionError

    def reduce(self, x, op="sum"):
        self.posted.append((op, x.clone()))
        return self.answers[len(self.posted) - 1] if self.answers else x


def test_scores_are_shared_out():
    "Each process scores its blocks; together they have the ranks of one."
    g = torch.Generator().manual_seed(0)
    image, owner = torch.randn(20, 6, generator=g), torch.arange(60) % 20
    audio = image[owner] + torch.randn(60, 6, generator=g)
    alone, answers = retrieval_metrics(image, audio, owner), None
    for _ in range(3):  # the answers of each exchange need those of the one before
        posted = []
        for rank in range(3):
            team = Half(rank, 3)
            object.__setattr__(team, "posted", []), object.__setattr__(team, "answers", answers)
            result = retrieval_metrics(image, audio, owner, block=7, team=team)
            posted.append(team.posted)
        answers = [
            (
                torch.stack([p[k][1] for p in posted]).sum(0)
                if op == "sum"
                else torch.stack([p[k][1] for p in posted]).amax(0)
            )
            for k, (op, _) in enumerate(posted[0])
        ]
    for side in ("audio_to_image", "image_to_audio"):
        assert (getattr(result, side).ranks == getattr(alone, side).ranks).all()
