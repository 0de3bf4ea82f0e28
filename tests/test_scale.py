"""A corpus of files through training and evaluation: what cannot be read, where it lies, and how much
memory a large pool takes."""

import itertools
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
import torch.multiprocessing  # gives ForkingPickler its way with tensors
from conftest import Toy, micro
from PIL import Image

from sgmim.core import CheckpointError, DataError, read_json
from sgmim.data.audio import write_audio
from sgmim.data.batches import Order, Pairs, collate, pool_loader, train_loader
from sgmim.data.corpus import (
    Columns,
    Corpus,
    Strings,
    measure,
    overlap,
    parse_words,
    path_fault,
    present,
    select,
)
from sgmim.evaluation.retrieval import Embeddings, embed, evaluate, pool, retrieval_metrics
from sgmim.models.inputs import corpus_pairs
from sgmim.models.sgmim import SGMIM
from sgmim.train import TrainConfig, fit
from sgmim.training.feed import Feed

QUICK = TrainConfig(
    epochs=3.0,
    batch_size=8,
    optimiser="adamw",
    lr=1e-3,
    schedule="cosine",
    max_seconds=0.4,
    eval_seconds=0.4,
    augment="none",
    log_every=1,
    save_every=2,
    seed=5,
)


def on_disk(folder, n=24, captions=2, size=40, seed=0, name="toy"):
    "A corpus of files: PNGs that are not square, and wavs, some at 8 kHz, some stereo."
    toy = Toy(n, captions, size, seed)
    for i in range(n):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(toy.images[i]).resize((size + i % 3, size)).save(folder / f"images/{i}.png")
    for j, w in enumerate(toy.waves):
        w = np.clip(w, -1, 1)
        write_audio(
            folder / f"wavs/{j % 2}/{j}.wav",
            np.stack([w, w], 1) if j % 5 == 0 else w,
            8000 if j % 7 == 0 else 16_000,
        )
    k = np.arange(len(toy))
    return Corpus(
        name,
        "train",
        folder / "images",
        folder,
        Columns(
            [f"{i}.png" for i in range(n)],
            toy.image_of_caption,
            [f"wavs/{j % 2}/{j}.wav" for j in k],
            [f"u{j}" for j in k],
            [f"s{j % 3}" for j in k],
            texts=[f"text {j}" for j in k],
        ),
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return on_disk(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SGMIM_CACHE", str(tmp_path / "cache"))


def quick(data, **kwargs):
    config = replace(QUICK, **{k: kwargs.pop(k) for k in list(kwargs) if hasattr(QUICK, k)})
    return fit(micro(), data, config=config, device="cpu", progress=False, **kwargs)


# ---------------------------------------------------------------- what cannot be read


def broken_copy(tmp_path, recordings=(), images=()):
    corpus = on_disk(tmp_path / "broken")
    for j in recordings:
        corpus.audio_path(j).write_bytes(corpus.audio_path(j).read_bytes()[:900])
    for i in images:
        corpus.image_path(i).write_bytes(b"no image")
    return corpus


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_pairs_are_left_out_counted_and_listed(tmp_path, workers):
    corpus = broken_copy(tmp_path, recordings=(3,), images=(10,))  # caption 3, and both captions of image 10
    fitted = quick(corpus, max_unreadable=0.1, out=tmp_path / "run", workers=workers)
    listed = read_json(tmp_path / "run" / "unreadable.json")
    assert (
        set(listed) == {"caption 3", "caption 20", "caption 21"}
        and "truncated" in listed["caption 3"]
        and "10.png" in listed["caption 20"]
    )
    assert (
        fitted.record["unreadable"]["pairs"] == 3
        and fitted.record["unreadable"]["first"] == listed
        and fitted.record["steps"] == 18
    )


def test_too_many_are_an_error_that_says_which(tmp_path):
    corpus = broken_copy(tmp_path, recordings=(3, 7, 9))
    with pytest.raises(
        DataError,
        match=(
            r"of 48 pairs could not be read by step \d+ \(the last: caption \d+, .*truncated.*more than"
            r" max_unreadable=1.00%.*sgmim_check_data"
        ),
    ):
        quick(corpus)


def test_a_disk_that_is_gone_stops_the_training(tmp_path):
    corpus = on_disk(tmp_path)
    corpus.audio_root = tmp_path / "elsewhere"
    with pytest.raises(DataError, match="too few of this batch are left. Is the disk available"):
        quick(corpus, max_unreadable=0.99)


@pytest.mark.slow
def test_unreadable_pairs_survive_an_interruption(tmp_path):
    "The list, and the sums of the log, go on where they were."
    corpus = broken_copy(tmp_path, recordings=range(0, 48, 6))
    whole = quick(corpus, max_unreadable=0.5, log_every=4)
    import sgmim.train as module

    real, steps = module.train_step, []

    def crash(*args, **kwargs):
        steps.append(args[3])
        if args[3] == 7:
            raise RuntimeError("power cut")
        return real(*args, **kwargs)

    module.train_step = crash
    try:
        with pytest.raises(RuntimeError, match="power cut"):
            quick(corpus, max_unreadable=0.5, log_every=4, out=tmp_path / "run")
    finally:
        module.train_step = real
    resumed = quick(corpus, max_unreadable=0.5, log_every=4, out=tmp_path / "run")
    assert (
        resumed.record["unreadable"] == whole.record["unreadable"]
        and whole.record["unreadable"]["pairs"] == 8
    )
    for a, b in zip(whole.history, resumed.history, strict=True):
        assert {k: v for k, v in a.items() if "second" not in k} == {
            k: v for k, v in b.items() if "second" not in k
        }
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    )


def test_without_skip_the_first_is_an_error(tmp_path):
    corpus = broken_copy(tmp_path, recordings=(2,))
    with pytest.raises(DataError, match="truncated"):
        Pairs(corpus, 1.0)[2]
    what, why = Pairs(corpus, 1.0, skip=True)[2]["unreadable"]
    assert what == "caption 2" and "truncated" in why


def test_evaluation_counts_what_it_leaves_out(tmp_path):
    corpus, model = broken_copy(tmp_path, recordings=(5,), images=(0,)), SGMIM(micro())
    with pytest.raises(DataError, match=r"2 of 72 images and captions could not be read"):
        evaluate(model, corpus)
    found = embed(model, pool(model.config, corpus, 1.0), max_unreadable=0.1)
    assert sorted(what for what, _ in found.unreadable) == ["caption 0", "caption 1", "caption 5", "image 0"]
    result = found.metrics()
    assert (result.unreadable, result.audio_to_image.n_queries, result.audio_to_image.n_items) == (4, 45, 23)
    assert result.to_dict()["unreadable"] == 4


# ---------------------------------------------------------------- evaluation


def test_the_pool_is_that_of_the_pairs(files):
    "Images once and captions once give the numbers of one pass over all pairs."
    model = SGMIM(micro())
    pairs = corpus_pairs(files, 1.0, model.config)
    a = embed(model, pool_loader(pairs, 7))
    b = embed(model, [collate([pairs[j] for j in range(k, k + 8)]) for k in range(0, 48, 8)])
    assert a.metrics().row == b.metrics().row
    order = a.index.argsort()
    assert (
        torch.allclose(a.z_audio[order], b.z_audio, atol=1e-5)
        and torch.allclose(a.z_image, b.z_image, atol=1e-5)
        and torch.equal(a.image_of_caption[order], b.image_of_caption)
    )


def test_each_image_is_decoded_once(files, monkeypatch):
    reads, image = [], Corpus.image
    monkeypatch.setattr(
        Corpus, "image", lambda self, i, size=None: reads.append(int(i)) or image(self, i, size)
    )
    evaluate(SGMIM(micro()), files)
    assert sorted(reads) == list(range(24))


def test_the_cap_on_the_length_is_used(files):
    model = SGMIM(micro())
    lengths = {
        s: max(int(b["audio_len"].max()) for b in pool(model.config, files, s) if "audio" in b)
        for s in (0.2, 10.0)
    }
    assert lengths[0.2] == 3200 and lengths[10.0] == measure(files).samples.max()


@pytest.mark.slow
def test_several_dev_sets_count_alike(files, tmp_path):
    "Places: the mean over seen and unseen chooses the checkpoint."
    other = on_disk(tmp_path / "other", seed=9)
    fitted = quick(files, dev={"dev_seen": files, "dev_unseen": other}, out=tmp_path / "run")
    checks = [h for h in fitted.history if "sets" in h]
    assert len(checks) == 3
    for h in checks:
        assert set(h["sets"]) == {"dev_seen", "dev_unseen"}
        assert h["recall_at_1"] == pytest.approx(np.mean([s[0] for s in h["sets"].values()]))
    best = max(checks, key=lambda h: (h["recall_at_1"], h["recall_at_10"], -h["step"]))
    assert fitted.record["metrics"]["best"] == {
        "step": best["step"],
        "score": [best["recall_at_1"], best["recall_at_10"]],
    }
    kept = read_json(tmp_path / "run" / "best" / "config.json")["dev"]
    assert np.mean([kept[n]["mean"]["recall_at_1"] for n in ("dev_seen", "dev_unseen")]) == pytest.approx(
        best["recall_at_1"]
    )


def test_embeddings_are_kept_and_recognised(files, tmp_path):
    model = SGMIM(micro())
    made = embed(model, pool(model.config, files))
    made.save(tmp_path, data=files.fingerprint, max_seconds=10.0)
    back = Embeddings.load(tmp_path, data=files.fingerprint)
    assert back.metrics().row == made.metrics().row and torch.equal(back.index, made.index)
    with pytest.raises(CheckpointError, match="are of something else: max_seconds is 10.0, not 25.0"):
        Embeddings.load(tmp_path, max_seconds=25.0)
    (tmp_path / "weights.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="truncated"):
        Embeddings.load(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory as Linux tells it")
def test_the_pool_of_spokencoco_fits_in_one_gigabyte():
    """5,000 images × 25,031 captions of 768 numbers, scored in a process of its own; what it adds to the
    memory of the libraries stays below 1 GiB."""
    code = """
import resource, torch
from sgmim.evaluation.retrieval import retrieval_metrics
torch.set_num_threads(2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024
before = peak()
g = torch.Generator().manual_seed(0)
z_image, owner = torch.randn(5000, 768, generator=g), torch.arange(25_031) % 5000
z_audio = z_image[owner] + 5*torch.randn(25_031, 768, generator=g)
r = retrieval_metrics(z_image, z_audio, owner)
print(peak() - before, r.audio_to_image.n_items, r.image_to_audio.n_items, r.audio_to_image.recall_at_10)
"""
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    ).stdout.split()
    assert int(said[0]) < 2**30 and said[1:3] == ["5000", "25031"] and 0 < float(said[3]) < 100


def test_blocks_do_not_change_the_ranks():
    g = torch.Generator().manual_seed(1)
    z_image = torch.randn(50, 16, generator=g)
    z_audio = torch.randn(251, 16, generator=g)
    owner = torch.arange(251) % 50
    rows = {b: retrieval_metrics(z_image, z_audio, owner, block=b).row for b in (1, 7, 251, 1024)}
    assert len(set(rows.values())) == 1


# ---------------------------------------------------------------- order and workers


def test_groups_keep_an_epoch_whole_and_batches_near():
    groups = np.repeat(np.arange(40), 25)
    order = Order(np.arange(1000), 50, 60, seed=3, groups=groups, window=4)
    for epoch in range(3):
        batches = [order[s] for s in range(20 * epoch, 20 * epoch + 20)]
        assert sorted(np.concatenate(batches)) == list(range(1000))
        assert all(len(set(groups[b])) <= 4 for b in batches)  # windows of 100 captions, batches of 50
    assert not np.array_equal(order[0], order[20]) and np.array_equal(
        order[33], Order(np.arange(1000), 50, 60, seed=3, groups=groups, window=4)[33]
    )
    bucketed = Order(np.arange(1000) % 97, 10, 60, seed=3, bucket=10, groups=groups, window=4)
    found = [bucketed[s] for s in range(100 - 40)]
    assert (
        all(len(set(groups[b])) <= 4 for b in found)
        and np.mean([np.ptp(np.arange(1000)[b] % 97) for b in found]) < 30
    )


def test_workers_give_the_same_batches(files):
    pairs = corpus_pairs(files, 0.4, micro(), "randaugment", speed=0.1)
    order = Order(pairs.lengths, 8, 6, seed=1)
    for a, b in zip(train_loader(pairs, order), train_loader(pairs, order, workers=2), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in ("image", "audio", "audio_len", "index"))


def test_a_worker_is_handed_little():
    n = 60_000
    large = Corpus(
        "large",
        "train",
        ".",
        ".",
        Columns(
            [f"{i}.jpg" for i in range(n // 5)],
            np.arange(n) // 5,
            [f"wavs/{j}.wav" for j in range(n)],
            [f"utt{j}" for j in range(n)],
            ["s"] * n,
            texts=["a dog"] * n,
        ),
    )
    # handles, and one number a caption for the lengths
    assert len(ForkingPickler.dumps(Pairs(large))) < 50_000 + 20 * n
    copy = pickle.loads(pickle.dumps(select(large, np.arange(n) < 10)))
    assert [c.uttid for c in copy.captions] == [f"utt{j}" for j in range(10)] and copy.image_names[
        1
    ] == "1.jpg"


def test_only_the_needed_part_of_a_recording_is_read(tmp_path, monkeypatch):
    import soundfile

    wave = np.random.default_rng(0).uniform(-0.1, 0.1, 60 * 16_000)
    write_audio(tmp_path / "long.wav", wave)
    corpus = Corpus("x", "train", tmp_path, tmp_path, Columns(["a.png"], [0], ["long.wav"], ["u"], ["s"]))
    asked, read = [], soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, frames=-1, *a, **k: asked.append(frames) or read(self, frames, *a, **k),
    )
    assert len(corpus.audio(0, 2.0)) == 32_000 and sum(asked) < 2.2 * 16_000
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    item = Pairs(corpus, 2.0, speed=0.5)[0, 3]
    assert len(item["audio"]) <= 32_000 and len(Pairs(corpus, 2.0)[0]["audio"]) == 32_000


def test_large_jpegs_are_decoded_small_but_never_too_small(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (1600, 2400, 3), dtype=np.uint8)).save(
        tmp_path / "a.jpg"
    )
    corpus = Corpus("x", "train", tmp_path, tmp_path, Columns(["a.jpg"], [0], ["a.wav"], ["u"], ["s"]))
    assert corpus.image(0).shape == (1600, 2400, 3)
    for size in (100, 256, 448, 800, 801):
        assert size <= min(corpus.image(0, size).shape[:2]) < max(2 * size, 1601)
    sides = [
        corpus_pairs(corpus, 1.0, micro(image_size=224, patch_size=16, crop_pct=0.875), a).side
        for a in ("none", "randaugment")
    ]
    assert sides == [256, 448]


# ---------------------------------------------------------------- the type


def test_columns_that_do_not_fit(files):
    with pytest.raises(DataError, match="keep has shape"):
        select(files, [True])
    with pytest.raises(DataError, match="not one usable caption"):
        select(files, np.zeros(48, bool))


def test_present_counts_empty_wavs_and_missing_files(tmp_path):
    corpus = on_disk(tmp_path)
    corpus.audio_path(1).write_bytes(b"RIFF" + b"\0" * 40)  # a header and no sound
    corpus.audio_path(2).unlink()
    corpus.image_path(5).write_bytes(b"")
    with pytest.warns(UserWarning, match="4 left out"):
        found = present(corpus)
    assert (
        found.skipped.counts == {"empty image": 2, "empty recording": 1, "missing recording": 1}
        and len(found) == 44
        and found.n_images == 23
    )
    assert {s.where for s in found.skipped} == {"u1", "u2", "u10", "u11"}
    for j in range(len(found)):
        assert len(found.audio(j)) and found.captions[j].text == f"text {found.captions[j].uttid[1:]}"
    with pytest.raises(DataError, match="strict=False"):
        present(corpus, strict=True)
    assert present(found) is found


def test_lengths_are_measured_once(tmp_path, monkeypatch):
    corpus = on_disk(tmp_path)
    whole = corpus.audio_path(4).read_bytes()
    corpus.audio_path(4).write_bytes(b"junk")
    measure(corpus, cache=tmp_path / "c", progress=False)
    assert corpus.samples[4] == 0 and [int(s) for s in corpus.samples[[0, 1, 7]]] == [
        2 * round(len(corpus.audio(0)) / 2),
        len(corpus.audio(1)),
        2 * round(len(corpus.audio(7)) / 2),
    ]
    assert not (tmp_path / "c").exists(), "a length that could not be read was kept"
    corpus.audio_path(4).write_bytes(whole)
    corpus._samples = None
    measure(corpus, cache=tmp_path / "c", progress=False)
    monkeypatch.setattr("sgmim.data.corpus._lengths", None)  # the files are not opened again
    again = Corpus(
        corpus.name,
        corpus.split,
        corpus.image_root,
        corpus.audio_root,
        Columns(
            list(corpus.image_names),
            corpus.image_of_caption,
            list(corpus.audio_names),
            list(corpus.uttids),
            ["s"] * 48,
        ),
    )
    assert (
        np.array_equal(measure(again, cache=tmp_path / "c").samples, corpus.samples) and corpus.samples.all()
    )
    assert select(again, np.arange(48) > 40).samples.tolist() == corpus.samples[41:].tolist()


def test_the_fingerprint_is_of_the_content(tmp_path):
    a, b = on_disk(tmp_path / "a"), on_disk(tmp_path / "b")
    assert a.fingerprint == b.fingerprint != select(a, np.arange(48) != 7).fingerprint
    assert json.loads(json.dumps(overlap(a, b))) == {"speakers": 1.0, "images": 1.0, "scenes": None}


def test_strings_of_any_kind():
    names = ["", "a", "ñandú", "日本", "x" * 1000, "\n", ""]
    s = Strings(names)
    assert (
        list(s) == names
        and s[-2] == "\n"
        and s[4] == "x" * 1000
        and list(pickle.loads(pickle.dumps(s))) == names
    )


@pytest.mark.parametrize(
    "bad", ["1.0__A", "x__A__2", "2__A__1", "1____2", "-1__A__2", "nan__A__2", "0__A__inf"]
)
def test_alignments_that_are_none(bad):
    with pytest.raises(DataError, match="utt: the alignment holds"):
        parse_words(f"0__OK__1 {bad}", "utt")


@pytest.mark.parametrize(
    "path,ok",
    [
        ("a/b.wav", True),
        ("a..b/c", True),
        ("../a", False),
        ("a/..", False),
        ("/a", False),
        ("C:/a", False),
        ("\\a", False),
        ("", False),
        (None, False),
        (7, False),
    ],
)
def test_paths_stay_below_their_root(path, ok):
    assert (path_fault(path) is None) == ok


@pytest.mark.parametrize(
    "norm,pad,padded",
    [
        ("group", "auto", True),
        ("group", "full", True),
        ("group", "batch", False),
        ("layer", "auto", False),
        ("layer", "full", True),
    ],
)
def test_padding_is_part_of_the_recipe(files, norm, pad, padded):
    """A GroupNorm hears the padding, so its waveforms get the full length unless asked otherwise;
    evaluation always gives it."""
    model = micro(conv_norm=norm, conv_bias=norm == "layer")
    feed = Feed(files, replace(QUICK, pad=pad, bucket=2), model=model)
    lengths = {b["audio"].shape[1] for b in itertools.islice(feed.from_step(0), 4)}
    assert (lengths == {6400}) == padded
    assert ({b["audio"].shape[1] for b in pool(model, files, 0.4, 8) if "audio" in b} == {6400}) == (
        norm == "group"
    )


# ---------------------------------------------------------------- workers started anew, and what else a long
# run meets


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_however_they_are_started(files, method, monkeypatch):
    """A worker that is started by spawn receives the corpus through shared memory; ids and groups stay
    what they are, there and here."""
    pairs, truth = corpus_pairs(files, 0.4, micro()), files.image_of_caption.copy()
    order = Order(pairs.lengths, 8, 6, seed=1, groups=files.image_of_caption, window=8)
    loaders = [train_loader(pairs, order, workers=1), *pool_loader(pairs, 16, workers=1).loaders]
    for loader in loaders:
        loader.multiprocessing_context = method
        for batch in loader:
            if "index" in batch:
                assert batch["image_id"].tolist() == truth[batch["index"]].tolist()
    assert (
        np.array_equal(pairs.image_of_caption, truth)
        and np.array_equal(files.image_of_caption, truth)
        and order[5].tolist() == Order(pairs.lengths, 8, 6, seed=1, groups=truth, window=8)[5].tolist()
    )


@pytest.mark.slow
def test_the_limit_can_be_raised_and_the_run_goes_on(tmp_path):
    "The list is there when the error comes, and the same run goes on with a higher share allowed."
    corpus = broken_copy(tmp_path, recordings=range(0, 48, 6))
    with pytest.raises(DataError, match="allow a higher share; then resume the run"):
        quick(corpus, max_unreadable=0.1, out=tmp_path / "run")
    assert len(read_json(tmp_path / "run" / "unreadable.json")) == 5
    fitted = quick(corpus, max_unreadable=0.5, out=tmp_path / "run")
    assert fitted.record["steps"] == 18 and fitted.record["unreadable"]["pairs"] == 8
    with pytest.raises(CheckpointError, match="holds another run"):
        quick(corpus, max_unreadable=0.5, lr=2e-3, out=tmp_path / "run")


@pytest.mark.slow
def test_dev_sets_obey_the_same_limit(tmp_path):
    dev = broken_copy(tmp_path, recordings=(5,))
    assert quick(on_disk(tmp_path / "train"), dev=dev, max_unreadable=0.1).record["metrics"]["best"]
    with pytest.raises(DataError, match="could not be read"):
        quick(on_disk(tmp_path / "train"), dev=dev)


def test_recordings_too_short_for_a_frame_are_unreadable(tmp_path):
    corpus = on_disk(tmp_path)
    # HuBERT's front end could, this one needs 1610
    write_audio(corpus.audio_path(3), 0.1 * np.ones(500, np.float32))
    assert "caption 3" in quick(corpus, max_unreadable=0.1).record["unreadable"]["first"]
    with pytest.raises(DataError, match="could not be read"):
        evaluate(SGMIM(micro()), corpus, max_seconds=0.05)


@pytest.mark.slow
def test_kept_frames_of_what_cannot_be_read(tmp_path):
    corpus = broken_copy(tmp_path, recordings=(3,))
    fitted = quick(corpus, max_unreadable=0.1, cache_frames=True)
    assert list(fitted.record["unreadable"]["first"]) == ["caption 3"]


@pytest.mark.slow
def test_unreadable_headers_do_not_share_a_bucket(tmp_path):
    corpus = on_disk(tmp_path)
    for j in range(0, 48, 12):
        corpus.audio_path(j).write_bytes(b"junk")
    assert quick(corpus, max_unreadable=0.2, bucket=3, pad="batch").record["unreadable"]["pairs"] == 4


def test_an_operating_systems_error_is_a_fault_of_the_file(files, monkeypatch):
    def broken(self, j, max_seconds=None):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Corpus, "audio", broken)
    assert corpus_pairs(files, 0.4, micro())[0] == {
        "unreadable": ("caption 0", "[Errno 5] Input/output error")
    }


def test_other_files_under_the_same_names_are_other_data(tmp_path):
    a, b = on_disk(tmp_path / "a"), on_disk(tmp_path / "b", seed=1)
    assert a.fingerprint == b.fingerprint and a.content != b.content
    measure(a, cache=tmp_path / "c", progress=False), measure(b, cache=tmp_path / "c", progress=False)
    assert not np.array_equal(a.samples, b.samples)


def test_lengths_that_cannot_be_kept_are_no_reason_to_stop(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="could not be kept"):
        assert measure(on_disk(tmp_path), cache=tmp_path / "file", progress=False).samples.all()


def test_batches_of_ones_own_may_say_unreadable():
    toy = Pairs(Toy(8))
    batch = {**collate([toy[j] for j in range(8)]), "unreadable": [("mine", "gone")]}
    with pytest.raises(DataError, match="1 of 8 pairs"):
        quick([batch])
    assert quick([batch], max_unreadable=0.5).record["unreadable"]["first"] == {"mine": "gone"}
