"""The training loop, 17: it learns, from the right thing; one seed gives one result; and nothing that
stops it costs more than the steps since the last checkpoint."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TESTS, Toy, View, exchanged, first, listing, micro, run_python

import sgmim.train as train_module
from sgmim.core import (
    CheckpointError,
    ConfigError,
    DataError,
    SgmimError,
    load_checkpoint,
    read_json,
    rng_for,
)
from sgmim.data.batches import Pairs, eval_loader
from sgmim.evaluation.retrieval import evaluate, pool
from sgmim.models.pretrained import build_model, load_tiny_backbones, shipped
from sgmim.models.sgmim import SGMIM, load_model, scenes_tiny
from sgmim.models.systems import PRESETS
from sgmim.scenes.captions import _PLACE_PHRASES
from sgmim.scenes.corpus import TESTS as TEST_SPLITS
from sgmim.scenes.pictures import SCENE_PLACES, draw_scene, sample_scene
from sgmim.scenes.voices import SEEN_SPEAKERS, speak
from sgmim.train import TrainConfig, fit, recipe
from sgmim.training.feed import Feed, front_end_frames
from sgmim.training.optim import warmup_cosine, warmup_linear
from sgmim.training.snapshots import Snapshots
from sgmim.training.step import make_optimiser, train_step

# 40 pairs, 5 batches an epoch, 15 steps; dropout, masks, crops and speed all draw random numbers
QUICK = TrainConfig(
    epochs=3.0,
    batch_size=8,
    optimiser="adamw",
    lr=1e-3,
    schedule="cosine",
    max_seconds=4.0,
    speed=0.1,
    bucket=2,
    curriculum=0.2,
    save_every=5,
    log_every=1,
    seed=5,
)


def quick(data=None, model=None, **kwargs):
    changes = {k: kwargs.pop(k) for k in list(kwargs) if k in TrainConfig.__dataclass_fields__}
    return fit(
        model or micro(),
        Toy() if data is None else data,
        config=replace(QUICK, **changes),
        device="cpu",
        progress=False,
        **kwargs,
    )


def same(a, b):
    a, b = (x.model.state_dict() for x in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def snapshots(out):
    return sorted(p.name for p in (out / "checkpoints").iterdir())


def losses(fitted, name="loss"):
    return [h[name] for h in fitted.history if name in h]


class Crash(BaseException):
    pass  # an `Exception` of a corpus becomes a `DataError`


def at(k, action):
    """A hook that acts at the k-th reading of a waveform: with batches of 8, within step (k-1)//8, counted
    from 0."""

    def hook(n):
        if n == k:
            action()

    return hook


def crash():
    raise Crash


@pytest.fixture(scope="module")
def whole():
    "The run that nothing interrupts."
    return quick()


# ---- it learns

LEARN = TrainConfig(
    epochs=20.0,
    batch_size=32,
    optimiser="adamw",
    lr=3e-3,
    schedule="cosine",
    weight_decay=0.05,
    max_seconds=4.0,
    augment="none",
    cache_frames=True,
    log_every=20,
)


@pytest.mark.slow
def test_it_learns_what_it_is_shown(scenes):
    """128 pairs of the embedded corpus, as any user gets them: both losses fall, and the pairs are found
    by far better than by chance (1, 5 and 10 %)."""
    model = replace(
        micro(),
        image_size=96,
        patch_size=16,
        image_width=64,
        image_depth=2,
        audio_width=64,
        audio_hidden=128,
        conv_dim=(32, 64, 64, 64, 64),
        pos_kernel=16,
        embed_dim=64,
        dropout=0.0,
    )
    fitted = fit(
        model, first(scenes["train"], 128), config=replace(LEARN, epochs=36.0), device="cpu", progress=False
    )
    nce, mim = losses(fitted, "loss_nce"), losses(fitted, "loss_mim")
    assert nce[0] > 6.5 and nce[-1] < 5.2 and mim[-1] < 0.6 * mim[0]  # 2 log 32 = 6.93 is chance
    found = evaluate(fitted.model, first(scenes["train"], 100)).mean
    assert found[0] > 4 and found[1] > 25 and found[2] > 45, found


class Places:
    """Pictures of the embedded corpus, spoken of by their place alone ('in the snow'), in two voices:
    little to learn, and it holds for other pictures."""

    def __init__(self, split, n):
        said = {(p, s): speak(_PLACE_PHRASES[p][0], s).wave for p in SCENE_PLACES for s in SEEN_SPEAKERS[:2]}
        draw = [rng_for("places", split, i) for i in range(n)]
        self.images = [draw_scene(sample_scene(r, place=SCENE_PLACES[i % 8]), 32) for i, r in enumerate(draw)]
        self.waves = [said[SCENE_PLACES[i % 8], SEEN_SPEAKERS[r.integers(2)]] for i, r in enumerate(draw)]
        self.image_of_caption = np.arange(n)
        self.captions = [SimpleNamespace(samples=len(w)) for w in self.waves]

    def __len__(self):
        return len(self.waves)

    def image(self, i):
        return self.images[i]

    def audio(self, j):
        return self.waves[j]


@pytest.mark.slow
def test_it_learns_from_speech_that_belongs_to_the_image_and_from_no_other():
    """The same run on the same pictures and the same speech, once rightly paired and once with the speech
    dealt out anew, and both judged on pictures never seen. Chance for R@10 among 64 is 15.6 %; who knows
    the place alone has 8 images to choose from."""
    train, dev = Places("train", 256), Places("dev", 64)
    found, nce = [], []
    for data in (train, exchanged(train)):
        fitted = fit(micro(dropout=0.0), data, config=LEARN, device="cpu", progress=False)
        found.append(evaluate(fitted.model, dev).mean[2])
        nce.append(losses(fitted, "loss_nce"))
    assert found[0] > 40 and found[1] < 30, found
    # and what does not belong together is not learnt by heart within so few steps
    assert nce[0][-1] < 5.3 and min(nce[1]) > 6.2


# ---- one seed, one result


def test_one_seed_one_result(whole):
    torch.rand(7), np.random.rand(7)  # whatever was drawn before
    assert same(whole, quick())
    assert not same(whole, quick(seed=6))


@pytest.mark.slow
def test_workers_change_no_result(whole):
    assert same(whole, quick(workers=2))


@pytest.mark.slow
def test_a_result_written_is_the_same(whole, tmp_path):
    assert same(whole, quick(out=tmp_path))
    assert same(whole, SimpleNamespace(model=load_model(tmp_path / "best", device="cpu")))


# ---- interrupted

KILLED = """
import os, signal, sys, torch
from conftest import Toy
from test_train import at, quick
out, threads, reading, write = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(threads)
def die(): os.kill(os.getpid(), signal.SIGKILL)
fsync, n = os.fsync, 0
def counted(fd):
    global n
    n += 1
    if n == write: die()
    fsync(fd)
os.fsync = counted
quick(Toy(hook=at(reading, die)), out=out)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_twice(whole, tmp_path):
    """Two real processes, killed: one within step 8, one half-way through writing the snapshot of step 10.
    The third ends where an uninterrupted run does."""
    threads = torch.get_num_threads()
    done = run_python(KILLED, tmp_path, threads, 8 * 7 + 3, 0)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert snapshots(tmp_path) == ["step-00000005"]
    done = run_python(KILLED, tmp_path, threads, 0, 2)  # the weights are written, their description is not
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert snapshots(tmp_path) == [".step-00000010.part", "step-00000005"]
    resumed = quick(out=tmp_path)
    assert same(whole, resumed) and snapshots(tmp_path) == ["step-00000010", "step-00000015"]
    assert [h["step"] for h in resumed.history] == list(range(1, 16)) and losses(resumed) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimiser,row", [("bertadam", "summary"), ("adamw", "none"), ("bertadam", "frames")]
)
def test_crashed(tmp_path, optimiser, row):
    """With the optimiser's state; also where parts of the model get no gradient before the onset of
    reconstruction."""
    settings = dict(model=micro(reconstruction=row, mim_onset=1.5), optimiser=optimiser, save_every=4)
    with pytest.raises(Crash):
        quick(Toy(hook=at(8 * 6 + 1, crash)), out=tmp_path, **settings)
    assert snapshots(tmp_path) == ["step-00000004"]
    assert same(quick(**settings), quick(out=tmp_path, **settings))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(whole, tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=f"{signal.Signals(number).name} at step 8.*{tmp_path.name}"):
        quick(Toy(hook=at(8 * 7 + 3, lambda: os.kill(os.getpid(), number))), out=tmp_path)
    assert snapshots(tmp_path) == ["step-00000005", "step-00000008"] and signal.getsignal(number) is before
    assert same(whole, quick(out=tmp_path))


def test_stopped_without_a_folder():
    with pytest.raises(KeyboardInterrupt, match="SIGTERM at step 1$"):
        quick(Toy(hook=at(1, lambda: os.kill(os.getpid(), signal.SIGTERM))))


def test_in_a_thread(whole):
    "Where no signal handler can be set."
    result = []
    thread = threading.Thread(target=lambda: result.append(quick()))
    thread.start()
    thread.join()
    assert same(whole, result[0])


def break_file(path):
    with open(path, "r+b") as f:
        f.truncate(path.stat().st_size // 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm",
    [
        lambda p: break_file(p / "weights.safetensors"),
        lambda p: break_file(p / "config.json"),
        lambda p: (p / "config.json").unlink(),
        lambda p: [f.unlink() for f in p.iterdir()],
    ],
    ids=["weights", "config", "half", "empty"],
)
def test_a_broken_snapshot_is_passed_over(whole, tmp_path, capsys, harm):
    with pytest.raises(Crash):
        quick(Toy(hook=at(8 * 12 + 1, crash)), out=tmp_path)
    assert snapshots(tmp_path) == ["step-00000005", "step-00000010"]
    harm(tmp_path / "checkpoints" / "step-00000010")
    toy = Toy()
    assert same(whole, quick(toy, out=tmp_path))
    said = capsys.readouterr().err
    assert "skipping a broken checkpoint" in said and "step-00000010" in said
    assert toy.read == 8 * 10  # it went on from step 5


@pytest.mark.slow
def test_only_broken_snapshots(whole, tmp_path, capsys):
    with pytest.raises(Crash):
        quick(Toy(hook=at(8 * 12 + 1, crash)), out=tmp_path)
    for p in (tmp_path / "checkpoints").iterdir():
        break_file(p / "weights.safetensors")
    assert same(whole, quick(out=tmp_path)) and capsys.readouterr().err.count("skipping") == 2


@pytest.mark.slow
def test_a_finished_run_is_not_repeated(whole, tmp_path, monkeypatch):
    quick(out=tmp_path)
    monkeypatch.setattr(train_module, "train_step", None)
    again = quick(out=tmp_path)
    assert same(whole, again) and losses(again) == losses(whole) and again.record["steps"] == 15


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        dict(lr=2e-3),
        dict(seed=6),
        dict(epochs=4.0),
        dict(model=micro(embed_dim=8)),
        dict(model=micro(lam=1.0)),
        dict(data=Toy(48)),
    ],
    ids=lambda c: next(iter(c)),
)
def test_another_run_in_the_folder(tmp_path, change):
    with pytest.raises(Crash):
        quick(Toy(hook=at(8 * 12 + 1, crash)), out=tmp_path)
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match="holds another run.*resume=False") as e:
        quick(out=tmp_path, **change)
    assert str(tmp_path) in str(e.value) and listing(tmp_path) == before


@pytest.mark.slow
def test_starting_afresh(whole, tmp_path):
    "`resume=False` forgets what was there: an interruption of the new run goes back to the new run."
    quick(out=tmp_path, lr=5e-3)
    with pytest.raises(Crash):
        quick(Toy(hook=at(8 * 2 + 1, crash)), out=tmp_path, resume=False)
    assert not list(tmp_path.glob("checkpoints/*"))  # also before it has a snapshot of its own
    with pytest.raises(Crash):
        quick(Toy(hook=at(8 * 7 + 1, crash)), out=tmp_path, resume=False)
    assert snapshots(tmp_path) == ["step-00000005"]
    assert same(whole, quick(out=tmp_path))


@pytest.mark.slow
def test_a_corpus_without_a_name(tmp_path):
    "A class of one's own has a different `repr` in each process; the run is the same."
    with pytest.raises(Crash):
        quick(View(Toy(hook=at(8 * 7 + 1, crash)), range(40)), out=tmp_path)
    toy = Toy()
    resumed = quick(View(toy, range(40)), out=tmp_path)
    # a sample of 8, then the steps from 5 on
    assert toy.read == 8 + 8 * 10 and same(resumed, quick(View(Toy(), range(40))))


@pytest.mark.slow
def test_batches_of_ones_own(tmp_path):
    "A `DataLoader` that shuffles gives the same order when a run goes on; so does a list."
    pairs = Pairs(Toy(), 4.0)

    def loader():
        return torch.utils.data.DataLoader(pairs, 8, shuffle=True, collate_fn=pairs.collate, drop_last=True)

    class Broken:
        def __init__(self, data, k):
            self.data, self.k = data, k

        def __len__(self):
            return len(self.data)

        def __iter__(self):
            for batch in self.data:
                self.k -= 1
                if not self.k:
                    raise Crash
                yield batch

    for data, name in ((loader(), "loader"), (list(loader()), "list")):
        expected = quick(data)
        with pytest.raises(Crash):
            quick(Broken(data, 8), out=tmp_path / name)
        assert snapshots(tmp_path / name) == ["step-00000005"]
        run = read_json(tmp_path / name / "checkpoints" / "step-00000005" / "config.json")
        assert run["step"] == 5 and same(expected, quick(Broken(data, -1), out=tmp_path / name))


# ---- what decides a run: initial weights, data, dev set


def model_of(seed, **changes):
    torch.manual_seed(seed)
    return SGMIM(micro(**changes))


def interrupted(out, data=None, **kwargs):
    "A run that stops after step 7; its last snapshot is of step 5."
    real, steps = train_module.train_step, []

    def stopping(*args, **kw):
        steps.append(0)
        if len(steps) == 8:
            raise Crash
        return real(*args, **kw)

    train_module.train_step = stopping
    try:
        with pytest.raises(Crash):
            quick(data, out=out, **kwargs)
    finally:
        train_module.train_step = real


def refused(said, data=None, **kwargs):
    with pytest.raises(CheckpointError, match=said) as e:
        quick(data, **kwargs)
    return str(e.value)


@pytest.mark.parametrize("name, seconds", [("places", 25), ("spokencoco", 10), ("facc", 10), ("", 10)])
def test_evaluation_takes_as_much_of_a_caption_as_peers_do(name, seconds):
    corpus = Toy(4)
    corpus.name = name
    assert (
        pool(micro(), corpus).pairs.max_samples == seconds * 16_000
        and pool(micro(), corpus, 3.0).pairs.max_samples == 48_000
    )


def test_the_demo_pads_its_tests_where_padding_matters():
    from sgmim.apps import demo

    splits = {name: Toy(12) for name in TEST_SPLITS}
    model = SGMIM(micro(zero_padded_frames=False, valid_frames="any_sample")).eval()
    found = demo._test_results(model, splits, seconds=1.0)["test-seen"][0]
    assert found.row == evaluate(model, Toy(12), max_seconds=1.0).row


@pytest.mark.slow
def test_other_initial_weights_are_another_run(tmp_path):
    interrupted(tmp_path, model=model_of(1))
    before = listing(tmp_path)
    assert "all else" in refused(
        "holds another run.*initial weights differ .*image_encoder", model=model_of(2), out=tmp_path
    )
    changed = model_of(1)
    with torch.no_grad():
        changed.audio_encoder.hubert.encoder.layers[0].final_layer_norm.weight.mul_(1.01)
    assert "image_encoder" not in refused(
        r"initial weights differ \(audio_encoder\)", model=changed, out=tmp_path
    )
    assert listing(tmp_path) == before
    assert same(quick(model=model_of(1), out=tmp_path), quick(model=model_of(1)))
    refused("initial weights differ", model=model_of(2), out=tmp_path)  # also of a run that is done


@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True])
def test_the_same_model_object_goes_on(tmp_path, done):
    "Its weights are those of the interruption, or the best at the end; elsewhere it begins another run."
    model = model_of(1)
    if done:
        quick(model=model, out=tmp_path / "run")
    else:
        interrupted(tmp_path / "run", model=model)
    assert same(quick(model=model, out=tmp_path / "run"), quick(model=model_of(1)))
    quick(model=model, out=tmp_path / "other")
    refused("initial weights differ", model=model, out=tmp_path / "run")


@pytest.mark.slow
def test_a_configuration_goes_on_with_whatever_it_began_with(tmp_path):
    interrupted(tmp_path, model=model_of(1))
    assert same(quick(out=tmp_path), quick(model=model_of(1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [list, lambda b: torch.utils.data.DataLoader(b, batch_size=None)], ids=["list", "loader"]
)
def test_other_batches_are_another_run(tmp_path, make):
    mine, other = batches(), batches()
    other[3]["audio"] = other[3]["audio"].flip(0)
    fitted = quick(make(mine), out=tmp_path)
    assert len(fitted.record["data"]["fingerprint"]) > 5
    assert same(fitted, quick(make(batches()), out=tmp_path))
    refused("batch 4 of the data is not the one that this run saw", make(other), out=tmp_path)
    interrupted(tmp_path / "two", make(mine))
    refused("batch 4 of the data", make(other), out=tmp_path / "two")
    assert same(fitted, quick(make(batches()), out=tmp_path / "two"))


def test_batches_that_are_random_may_be_named(tmp_path):
    class Named(list):
        fingerprint = "mine, version 1"

    interrupted(tmp_path, Named(batches()))
    other = Named(reversed(batches()))
    assert quick(other, out=tmp_path).record["data"]["fingerprint"] == "mine, version 1"
    other.fingerprint = "version 2"
    refused("data.fingerprint is 'mine, version 1' there and 'version 2' here", other, out=tmp_path)


class Mine(View):
    "A corpus class of one's own, without a fingerprint."

    def __init__(self, seed=0, change=None):
        super().__init__(Toy(), range(40))
        rng = np.random.default_rng(seed)
        if change == "images":
            self.corpus.images = rng.integers(0, 256, self.corpus.images.shape, dtype=np.uint8)
        if change == "recordings":
            self.corpus.waves = [rng.normal(0, 0.1, len(w)).astype(np.float32) for w in self.corpus.waves]
        self.image = self.corpus.image


@pytest.mark.parametrize("change", ["images", "recordings"])
def test_another_corpus_of_the_same_lengths_is_another_run(tmp_path, change):
    quick(Mine(), out=tmp_path, epochs=0.4)
    refused("the content of the training data has changed", Mine(1, change), out=tmp_path, epochs=0.4)
    quick(Mine(), out=tmp_path, epochs=0.4)


def test_another_pairing_is_another_run(tmp_path):
    swapped = Mine()
    swapped.image_of_caption = np.roll(swapped.image_of_caption, 1)
    assert (
        Feed(Mine(), QUICK, model=micro()).fingerprint["fingerprint"]
        != Feed(swapped, QUICK, model=micro()).fingerprint["fingerprint"]
    )
    quick(Mine(), out=tmp_path, epochs=0.4)
    refused("data.fingerprint", swapped, out=tmp_path, epochs=0.4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dev",
    [None, Toy(20, seed=2), Toy(24, seed=1), {"other": Toy(20, seed=1)}, "loader"],
    ids=["none", "content", "size", "name", "loader"],
)
def test_another_dev_set_is_another_run(tmp_path, dev):
    interrupted(tmp_path, dev=Toy(20, seed=1))
    refused("dev", dev=batches(2) if dev == "loader" else dev, out=tmp_path)
    assert quick(dev={"dev": Toy(20, seed=1)}, out=tmp_path).record["steps"] == 15


@pytest.mark.slow
def test_other_dev_batches_are_another_run(tmp_path):
    def loader(seed):
        pairs = Pairs(Toy(20, seed=seed), 4.0)
        return torch.utils.data.DataLoader(pairs, 8, shuffle=True, collate_fn=pairs.collate)

    interrupted(tmp_path, dev=loader(1))
    refused("the content of dev set dev has changed", dev=loader(2), out=tmp_path)
    quick(dev=loader(1), out=tmp_path)


def test_the_refusal_says_which_fields_differ(tmp_path):
    interrupted(tmp_path)
    said = refused("holds another run", model=micro(lam=1.0), lr=2e-3, out=tmp_path)
    assert (
        "model.lam is 2.0 there and 1.0 here" in said
        and "train.lr is 0.001 there and 0.002 here" in said
        and "train.seed" not in said
    )


@pytest.mark.slow
def test_a_folder_of_an_older_version_goes_on(whole, tmp_path):
    """Its snapshots say less: nothing of initial weights, content, dev set and pairs; and zeros before the
    onset are in its sums."""
    interrupted(tmp_path, log_every=4, save_every=2, model=micro(mim_onset=1.0))
    for path in tmp_path.glob("checkpoints/*/config.json"):
        meta = read_json(path)
        for k in ("start", "content", "dev"):
            del meta["about"][k]
        for k in ("pairs", "seen", "changed"):
            del meta[k]
        meta["sums"].pop("n_mim", None)
        path.write_text(json.dumps(meta))
    fitted = quick(out=tmp_path, log_every=4, save_every=2, model=micro(mim_onset=1.0))
    expected = quick(log_every=4, model=micro(mim_onset=1.0))
    assert same(fitted, expected) and fitted.record["pairs_seen"] == 120
    assert losses(fitted, "loss_mim") == pytest.approx(losses(expected, "loss_mim"))


# ---- best/ and the lock


def best_of(out):
    return load_checkpoint(out / "best")[1]["step"]


@pytest.mark.parametrize(
    "harm",
    [shutil.rmtree, lambda p: break_file(p / "weights.safetensors"), lambda p: (p / "config.json").unlink()],
    ids=["missing", "broken", "half"],
)
def test_a_best_model_that_is_lost_is_said_before_training(tmp_path, monkeypatch, harm):
    monkeypatch.setattr(
        train_module,
        "evaluate",
        lambda model, *a, **k: SimpleNamespace(mean=(float(model.training),) * 3, to_dict=dict),
    )
    settings = dict(dev=Toy(20, seed=1), save_every=2, eval_every=0.2)
    interrupted(tmp_path, **settings)  # best at step 1; snapshots of steps 4 and 6
    assert best_of(tmp_path) == 1
    harm(tmp_path / "best")
    monkeypatch.setattr(train_module, "train_step", None)
    assert str(tmp_path / "best") in refused(
        "the best model so far, of step 1, is lost.*backup.*resume=False", out=tmp_path, **settings
    )


@pytest.mark.slow
def test_a_best_model_that_a_snapshot_holds_is_put_back(tmp_path, monkeypatch):
    settings = dict(dev=Toy(20, seed=1))
    expected = quick(**settings)
    interrupted(tmp_path, **settings)
    assert best_of(tmp_path) == 5
    shutil.rmtree(tmp_path / "best")
    monkeypatch.setattr(train_module, "log_recalls", lambda *a: None)
    fitted = quick(out=tmp_path, **settings)
    assert (
        best_of(tmp_path) == 5
        and same(fitted, SimpleNamespace(model=load_model(tmp_path / "best", device="cpu")))
        and not same(fitted, expected)
    )


@pytest.mark.slow
def test_interrupted_while_best_was_replaced(tmp_path):
    "Whole, but under its other name; and later than the snapshot."
    settings = dict(dev=Toy(20, seed=1), eval_every=0.2)
    expected = quick(**settings)
    interrupted(tmp_path, **settings)
    (tmp_path / "best").rename(tmp_path / ".best.part")
    fitted = quick(out=tmp_path, **settings)
    assert same(fitted, expected) and fitted.record["metrics"]["best"] == expected.record["metrics"]["best"]


def test_an_equal_score_does_not_replace_the_best(monkeypatch, tmp_path):
    monkeypatch.setattr(
        train_module, "evaluate", lambda *a, **k: SimpleNamespace(mean=(30.0, 0.0, 8.0), to_dict=dict)
    )
    assert (
        quick(dev=Toy(), out=tmp_path, epochs=2.0).record["metrics"]["best"]
        == {"step": 5, "score": [30.0, 8.0]}
        and best_of(tmp_path) == 5
    )


LOCKED = """
import sys
from conftest import Toy
from test_train import at, quick
quick(Toy(hook=at(3, lambda: (print('in', flush=True), sys.stdin.read()))), out=sys.argv[1])
"""


@pytest.mark.slow
def test_two_runs_in_one_folder(whole, tmp_path):
    "The second is refused, in the same process and in another; a killed process keeps nobody out."
    inside = []

    def second():
        inside.append(refused("another run uses .*in this process", out=tmp_path))

    quick(Toy(hook=at(8 * 6 + 1, second)), out=tmp_path)
    assert inside and ".running" not in [p.name for p in tmp_path.iterdir()]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])}
    with subprocess.Popen(
        [sys.executable, "-c", LOCKED, str(tmp_path / "x")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=env,
    ) as other:
        assert other.stdout.readline() == b"in\n"
        assert (
            str(other.pid) in refused("another run uses", out=tmp_path / "x")
            and not (tmp_path / "x" / "checkpoints").exists()
        )
        other.kill()
    assert same(whole, quick(out=tmp_path / "x"))


# ---- what is counted


def test_the_reconstruction_loss_is_the_mean_of_the_steps_that_have_one():
    "Windows of 4 steps, onset at step 5: none, 3 of 4, all."
    settings = dict(model=micro(mim_onset=1.0), epochs=2.4)
    each, mean = quick(**settings).history, quick(log_every=4, **settings).history
    mim = [h.get("loss_mim") for h in each]
    assert mim[:5] == [None] * 5 and "loss_mim" not in mean[0]
    assert [h["loss_mim"] for h in mean[1:]] == pytest.approx([np.mean(mim[5:8]), np.mean(mim[8:12])])
    assert [h["loss"] for h in mean] == pytest.approx(
        [np.mean([h["loss"] for h in each[k : k + 4]]) for k in (0, 4, 8)]
    )
    assert all("loss_mim" not in h for h in quick(model=micro(reconstruction="none"), epochs=0.4).history)


def test_pairs_are_counted_as_they_are_seen(tmp_path):
    "A last batch that is smaller, a step that is skipped, and an interruption."
    uneven = [*batches(4), {k: v[:3] for k, v in batches(5)[4].items()}]
    assert quick(uneven).record["pairs_seen"] == 3 * (4 * 8 + 3)
    interrupted(tmp_path, uneven)
    assert quick(uneven, out=tmp_path).record["pairs_seen"] == 3 * (4 * 8 + 3)
    assert quick(batches(5, poison=3), max_skipped=3).record["pairs_seen"] == 3 * 4 * 8


# ---- the front end


@pytest.mark.slow
def test_a_preset_does_not_train_on_a_random_front_end(scenes):
    corpus, config = first(scenes["train"], 40), replace(recipe("scenes-tiny"), epochs=1.0)
    fitted = fit("scenes-tiny", corpus, config=config, device="cpu", progress=False)
    for name, w in load_checkpoint(shipped("tiny-hubert"))[0].items():
        if name.startswith("feature_extractor"):
            assert torch.equal(fitted.model.audio_encoder.hubert.state_dict()[name], w), name
    made, expected = build_model("scenes-tiny"), load_tiny_backbones(SGMIM(scenes_tiny()))
    for k, v in expected.state_dict().items():
        assert torch.equal(v, made.state_dict()[k]) or not k.startswith(
            ("image_encoder", "audio_encoder.hubert", "momentum")
        ), k
    with pytest.raises(ConfigError, match="front end.*is random.*load_tiny_backbones.*freeze_cnn=False"):
        fit(scenes_tiny(), corpus, config=config, device="cpu", progress=False)
    with pytest.warns(UserWarning, match="front end.*is random"):
        fit(SGMIM(scenes_tiny()), corpus, config=config, device="cpu", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(replace(scenes_tiny(), freeze_cnn=False), corpus, config=config, device="cpu", progress=False)


@pytest.mark.parametrize("name", ["paper-places", "paper-spokencoco", "paper-facc", "vg-hubert"])
def test_the_papers_presets_need_weights(name, monkeypatch):
    "Built small here: the sizes are the preset's."
    small = micro(conv_norm="group")
    monkeypatch.setitem(PRESETS, name, lambda: small)
    with pytest.raises(ConfigError, match="front end.*is random.*load_pretrained.*freeze_cnn=False"):
        fit(name, Toy(), config=QUICK, device="cpu", progress=False)


# ---- faults


def full(*args):
    raise OSError(28, "No space left on device")


def test_full_disk(whole, tmp_path, monkeypatch):
    """The disk fills while a snapshot is written: the one before stays whole, and the run goes on from it
    once there is room."""
    with monkeypatch.context() as m:
        with pytest.raises(SgmimError, match="No space left.*free disk space"):
            quick(Toy(hook=at(8 * 7 + 1, lambda: m.setattr(os, "fsync", full))), out=tmp_path)
    assert snapshots(tmp_path) == ["step-00000005"]
    load_checkpoint(tmp_path / "checkpoints" / "step-00000005")
    assert same(whole, quick(out=tmp_path))


def test_a_folder_that_cannot_be_written(tmp_path):
    "It says so before the first step, not after an hour."
    (tmp_path / "file").write_text("in the way")
    toy = Toy()
    with pytest.raises(SgmimError, match="cannot write") as e:
        quick(toy, out=tmp_path / "file" / "run")
    assert (
        str(tmp_path / "file" / "run") in str(e.value)
        and toy.read == 0
        and listing(tmp_path) == {"file": b"in the way"}
    )


def batches(n=5, size=8, poison=None):
    pairs = Pairs(Toy(n * size), 4.0)
    made = [pairs.collate([pairs[j] for j in range(k * size, (k + 1) * size)]) for k in range(n)]
    if poison is not None:
        made[poison]["image"][3, 0, 5, 5] = float("nan")
    return made


@pytest.mark.parametrize("every", [1, 4, 50])
def test_a_loss_that_is_no_number(tmp_path, every):
    "Named with its step; and no snapshot is of broken weights, however seldom the loss is looked at."
    with pytest.raises(SgmimError) as e:
        quick(batches(poison=3), out=tmp_path, log_every=every, save_every=1)
    assert (
        "step 4" in str(e.value)
        and ("nan" in str(e.value) or "finite" in str(e.value))
        and "learning rate" in str(e.value)
    )
    tensors, meta = load_checkpoint(tmp_path / "checkpoints" / "step-00000003")
    assert meta["step"] == 3 and all(v.isfinite().all() for v in tensors.values())
    assert snapshots(tmp_path) == ["step-00000002", "step-00000003"] and str(tmp_path / "checkpoints") in str(
        e.value
    )


def test_a_loss_that_is_no_number_without_a_folder():
    with pytest.raises(SgmimError, match=r"the loss is nan at step 4.*captions of the batch: \[24, 25"):
        quick(batches(poison=3))


def test_sound_that_is_no_number():
    toy = Toy()
    toy.waves[7][100] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        quick(toy)


@pytest.mark.parametrize(
    "data,error,said",
    [
        (lambda: (b for b in batches()), ConfigError, "needs a length"),
        (lambda: [], DataError, "do not fill one batch"),
        (lambda: Toy(7), DataError, "do not fill one batch of 8"),
    ],
    ids=["generator", "empty", "few"],
)
def test_data_that_cannot_be(data, error, said):
    with pytest.raises(error, match=said):
        quick(data())


def test_data_that_end():
    "An iterator with a length, used up after one pass."

    class Once:
        def __init__(self):
            self.it = iter(batches())

        def __len__(self):
            return 5

        def __iter__(self):
            return self.it

    with pytest.raises(DataError, match="iterated again"):
        quick(Once())


def test_unknown_names():
    with pytest.raises(ConfigError, match="no preset 'scenes-tyni'; the presets are scenes-tiny, paper"):
        fit("scenes-tyni", Toy(), progress=False)
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        fit(micro(), Toy(), config=QUICK, device="gpu", progress=False)


@pytest.mark.parametrize(
    "bad",
    [
        dict(epochs=0),
        dict(lr=0.0),
        dict(lr=-1.0),
        dict(lr=float("nan")),
        dict(batch_size=1),
        dict(warmup=1.0),
        dict(warmup=-0.1),
        dict(curriculum=1.0),
        dict(optimiser="sgd"),
        dict(schedule="step"),
        dict(amp="fp16"),
        dict(save_every=0),
        dict(log_every=0),
        dict(eval_every=0.0),
        dict(max_seconds=0.0),
        dict(clip=-1.0),
        dict(weight_decay=-0.1),
        dict(bucket=-1),
        dict(speed=-0.1),
        dict(speed=1.0),
    ],
    ids=str,
)
def test_settings_that_cannot_be(bad):
    with pytest.raises(ConfigError, match=f"TrainConfig.{next(iter(bad))}"):
        TrainConfig(**bad)


def test_frames_cannot_be_cached():
    settings = dict(cache_frames=True, speed=0.0)
    with pytest.raises(ConfigError, match="freeze_cnn"):
        quick(model=micro(freeze_cnn=False), **settings)
    with pytest.raises(ConfigError, match="needs a corpus"):
        quick(batches(), **settings)
    with pytest.raises(ConfigError, match="conv_norm='layer'"):
        quick(model=micro(conv_norm="group"), **settings)
    with pytest.raises(ConfigError, match="speed"):
        quick(cache_frames=True)


# ---- what it takes and gives


def test_what_fit_takes(whole):
    """A configuration or a model; a corpus, a list or a loader. The same seed and the same batches give
    the same weights."""
    torch.manual_seed(QUICK.seed)
    assert same(whole, quick(model=SGMIM(micro())))
    as_list = batches()
    assert same(quick(as_list), quick(torch.utils.data.DataLoader(as_list, batch_size=None)))


def test_presets(scenes):
    "The name of a preset brings its own settings; one batch makes an epoch."
    fitted = fit(
        "scenes-tiny", first(scenes["train"], 40), first(scenes["dev"], 16), device="cpu", progress=False
    )
    assert (
        fitted.model.config == scenes_tiny()
        and fitted.record["config"]["train"] == read_back(recipe("scenes-tiny"))
        and fitted.record["steps"] == round(recipe("scenes-tiny").epochs)
    )
    assert losses(fitted, "recall_at_1") and not fitted.model.training and fitted.folder is None
    with pytest.raises(ConfigError, match="no preset"):
        recipe("nothing")
    assert recipe("paper-spokencoco") == TrainConfig()


def read_back(config):
    return json.loads(json.dumps(vars(config)))


def test_cached_frames_change_nothing():
    fresh, cached = quick(speed=0.0), quick(speed=0.0, cache_frames=True)
    for (k, a), b in zip(fresh.model.state_dict().items(), cached.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3, msg=k)
    toy, model = Toy(), SGMIM(micro()).eval()
    for j, f in enumerate(front_end_frames(model, Pairs(toy), batch_size=7)):
        alone, n = model.audio_encoder.cnn(torch.tensor(toy.waves[j])[None])
        torch.testing.assert_close(f, alone[0, :n], atol=1e-5, rtol=1e-4)


def test_bfloat16():
    fitted = quick(amp="bf16", epochs=1.0)
    assert (
        all(p.dtype == torch.float32 for p in fitted.model.parameters()) and np.isfinite(losses(fitted)).all()
    )
    assert not same(fitted, quick(epochs=1.0))


def test_the_folder(tmp_path):
    fitted = quick(out=tmp_path, dev=first(Toy(seed=1), 20))
    assert {p.name for p in tmp_path.iterdir()} == {
        "checkpoints",
        "best",
        "log.jsonl",
        "curves.png",
        "record.json",
    } and fitted.folder == tmp_path
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (
        log == json.loads(json.dumps(fitted.history))
        and [h["step"] for h in log if "loss" in h] == list(range(1, 16))
        and [h["step"] for h in log if "recall_at_1" in h] == [5, 10, 15]
    )
    record = read_json(tmp_path / "record.json")
    assert record == json.loads(json.dumps(fitted.record)) and (
        record["kind"],
        record["seed"],
        record["steps"],
        record["pairs_seen"],
    ) == ("train", 5, 15, 120)
    assert (
        record["config"]["train"] == read_back(QUICK)
        and record["data"]["pairs"] == 40
        and record["wall_seconds"] >= 0
    )
    assert record["metrics"]["best"]["step"] in (5, 10, 15) and len(record["metrics"]["dev"]) == 3
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    h = log[0]
    assert math.isclose(h["loss"], h["loss_nce"] + 2 * h["loss_mim"], rel_tol=1e-5) and h["epoch"] == 0.2


def test_the_best_on_dev_is_kept(monkeypatch, tmp_path):
    "Chosen by the mean R@1 of both directions, then by R@10; a later draw does not replace it."
    scores = {
        1: (10.0, 50.0, 20.0),
        2: (30.0, 5.0, 8.0),
        3: (30.0, 99.0, 8.0),
        4: (29.0, 99.0, 99.0),
        5: (30.0, 5.0, 9.0),
        6: (0.0, 0.0, 0.0),
    }
    states, step = {}, [0]

    def fake(model, data, device=None, **kwargs):
        step[0] += 1
        states[step[0]] = {k: v.clone() for k, v in model.state_dict().items()}
        return SimpleNamespace(mean=scores[step[0]], to_dict=lambda: {"mean": scores[step[0]]})

    monkeypatch.setattr(train_module, "evaluate", fake)
    for out in (None, tmp_path):
        step[0] = 0
        fitted = quick(Toy(8), dev=Toy(), out=out, epochs=6.0)  # a step per epoch
        assert fitted.record["metrics"]["best"] == {"step": 5, "score": [30.0, 9.0]}
        assert all(
            torch.equal(v, states[5][k]) for k, v in fitted.model.state_dict().items()
        ) and not torch.equal(states[5]["image_proj.weight"], states[6]["image_proj.weight"])
    assert same(fitted, SimpleNamespace(model=load_model(tmp_path / "best", device="cpu")))
    assert load_checkpoint(tmp_path / "best")[1]["dev"] == {"dev": {"mean": [30.0, 5.0, 9.0]}}


def test_the_best_survives_an_interruption(tmp_path, monkeypatch):
    "Best at step 5, crashed after the snapshot of step 10, gone on: the weights of step 5 are returned."
    state = {}

    def falling(model, data, device=None, **kwargs):
        n = len(state)
        state[n] = {k: v.clone() for k, v in model.state_dict().items()}
        return SimpleNamespace(mean=(90.0 - n, 90.0 - n, 90.0 - n), to_dict=dict)

    monkeypatch.setattr(train_module, "evaluate", falling)
    with pytest.raises(Crash):
        quick(Toy(hook=at(8 * 12 + 1, crash)), dev=Toy(), out=tmp_path)
    fitted = quick(dev=Toy(), out=tmp_path)
    assert fitted.record["metrics"]["best"]["step"] == 5 and all(
        torch.equal(v, state[0][k]) for k, v in fitted.model.state_dict().items()
    )


def test_evaluation_leaves_no_trace(whole):
    assert losses(quick(dev=first(Toy(seed=1), 20), eval_every=0.2)) == losses(whole)


def test_evaluate(scenes):
    torch.manual_seed(0)
    model = SGMIM(scenes_tiny()).train()
    result = evaluate(model, first(scenes["dev"], 24))
    assert model.training and result.audio_to_image.n_queries == result.audio_to_image.n_items == 24
    assert result.row == evaluate(model, eval_loader(Pairs(first(scenes["dev"], 24), 10.0), 5)).row
    # 96-pixel images for a model of 32
    assert evaluate(SGMIM(micro()), first(scenes["dev"], 24)).audio_to_image.n_queries == 24


# ---- one step


@pytest.fixture
def one(request):
    torch.manual_seed(0)
    model = SGMIM(micro()).train()
    return SimpleNamespace(
        model=model, optimiser=make_optimiser(model, QUICK), batch=batches(1)[0], device=torch.device("cpu")
    )


def step(one, k=5, steps=15, onset=0, config=QUICK):
    return train_step(one.model, one.batch, one.optimiser, k, steps, onset, config)


def test_what_is_not_trained(one):
    trained = {id(p) for g in one.optimiser.param_groups for p in g["params"]}
    names = {n for n, p in one.model.named_parameters() if id(p) not in trained}
    assert names and all(
        n.startswith(("momentum_encoder.", "audio_encoder.hubert.feature_extractor.")) for n in names
    )
    assert {n for n, _ in one.model.named_parameters() if n.startswith("momentum_encoder.")} <= names
    before = {n: p.detach().clone() for n, p in one.model.named_parameters()}
    step(one)
    for n, p in one.model.named_parameters():
        if n in names:
            assert p.grad is None and not p.requires_grad
        if n.startswith("audio_encoder.hubert.feature_extractor."):
            assert torch.equal(p, before[n])
    moved = {n for n, p in one.model.named_parameters() if not torch.equal(p, before[n])}
    for part in ("image_encoder", "audio_encoder", "image_proj", "audio_proj", "decoder", "momentum_encoder"):
        assert any(n.startswith(part + ".") for n in moved), part


def test_the_momentum_encoder_follows(one):
    before = [p.clone() for p in one.model.momentum_encoder.parameters()]
    alpha = step(one, k=5)["alpha"]
    assert math.isclose(alpha, 1 - (1 - 0.99) * (1 + math.cos(math.pi * 5 / 15)) / 2)
    for m, was, p in zip(
        one.model.momentum_encoder.parameters(), before, one.model.image_encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(m, alpha * was + (1 - alpha) * p, atol=1e-7, rtol=1e-5)
    assert not one.model.momentum_encoder.training and one.model.training


def test_the_momentums_horizon(one):
    "Over the whole training, or from the onset of reconstruction on."

    def alpha(k, horizon):
        return step(
            SimpleNamespace(
                **{
                    **vars(one),
                    "model": one.models[horizon],
                    "optimiser": make_optimiser(one.models[horizon], QUICK),
                }
            ),
            k=k,
            onset=5,
        )["alpha"]

    one.models = {h: model_of(0, momentum_horizon=h) for h in ("training", "reconstruction")}

    def half(x):
        return 1 - (1 - 0.99) * (1 + math.cos(math.pi * x)) / 2

    assert [alpha(k, "training") for k in (3, 10)] == pytest.approx([half(3 / 15), half(10 / 15)], abs=1e-9)
    assert [alpha(k, "reconstruction") for k in (3, 5, 10)] == pytest.approx(
        [0.99, 0.99, half(5 / 10)], abs=1e-9
    )


def test_gradients_are_clipped(one):
    def norm(clip):
        step(one, config=replace(QUICK, clip=clip))
        return (
            torch.stack([p.grad.norm() for p in one.model.parameters() if p.grad is not None]).norm().item()
        )

    free = norm(0.0)
    assert free > 0.5 and norm(0.01) == pytest.approx(0.01, rel=1e-3) and norm(1e6) > 0.05


def test_the_first_step_moves_nothing_and_the_onset_begins_reconstruction(one):
    before = {k: v.clone() for k, v in one.model.state_dict().items()}
    r = step(one, k=0, onset=3)
    assert r["lr"] == 0 and r["loss_mim"] == 0 and r["loss"] == r["loss_nce"] > 0
    for k, v in one.model.state_dict().items():
        torch.testing.assert_close(v, before[k], atol=1e-7, rtol=1e-6)
    assert step(one, k=2, onset=3)["loss_mim"] == 0
    r = step(one, k=3, onset=3)
    assert r["loss_mim"] > 0 and math.isclose(r["loss"], r["loss_nce"] + 2 * r["loss_mim"], rel_tol=1e-6)


def test_a_step_draws_from_its_number_alone(one):
    torch.manual_seed(3)
    a = [float(step(one, k=0)["loss_mim"]) for _ in range(2)]  # at rate 0 the weights stay
    torch.manual_seed(4)
    assert (
        a[0]
        == a[1]
        == float(step(one, k=0)["loss_mim"])
        != float(step(one, k=0, config=replace(QUICK, seed=6))["loss_mim"])
    )


@pytest.mark.parametrize(
    "schedule,shape",
    [pytest.param("linear", warmup_linear, marks=pytest.mark.slow), ("cosine", warmup_cosine)],
)
def test_the_rate(schedule, shape):
    fitted = quick(schedule=schedule, epochs=4.0, warmup=0.25, optimiser="bertadam")
    rates = losses(fitted, "lr")
    assert rates == pytest.approx([1e-3 * shape(k / 20, 0.25) for k in range(20)])
    assert (
        rates[0] == 0
        and rates[5] == max(rates) == 1e-3
        and all(a < b for a, b in zip(rates[:5], rates[1:6], strict=False))
        and all(a > b for a, b in zip(rates[5:], rates[6:], strict=False))
    )
    assert 0 < rates[-1] < 2e-4


def test_reconstruction_begins_after_its_epochs():
    history = quick(model=micro(mim_onset=2.0)).history
    assert all("loss_mim" not in h for h in history[:10]) and all(h["loss_mim"] > 0 for h in history[10:])


def test_same_images_are_no_negatives():
    "Five captions an image in one batch: the loss knows; the run does not fail."
    fitted = quick(Toy(8, captions=5), epochs=1.0)
    assert np.isfinite(losses(fitted)).all() and len(losses(fitted)) == 5


def test_a_fraction_of_an_epoch():
    assert quick(epochs=0.4).record["steps"] == 2 and quick(epochs=0.01).record["steps"] == 1
    assert Feed(Toy(47), QUICK, model=micro()).per_epoch == 5


# ---- snapshots


def test_snapshots_keep_the_newest(tmp_path):
    shots = Snapshots(tmp_path, keep=2)
    assert shots.latest() is None
    for s in (5, 10, 100, 15_000_000):
        shots.save(s, {"a": torch.full((2,), float(s))}, {"x": s})
    assert [p.name for p in shots.steps()] == ["step-00000100", "step-15000000"]
    tensors, meta = shots.latest()
    assert tensors["a"].tolist() == [15e6] * 2 and meta["x"] == meta["step"] == 15_000_000
    (tmp_path / "step-of-mine").mkdir()
    shutil.copytree(tmp_path / "step-15000000", tmp_path / ".step-99999999.part")
    assert shots.latest()[1]["step"] == 15_000_000  # neither is a snapshot
