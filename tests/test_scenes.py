"""The embedded corpus and the loaders, 04-07: the same everywhere, true, without leaks, whole after any
interruption."""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, Toy, first, listing, run_python

from sgmim.core import ConfigError, DataError, SgmimError, cache_folder, read_json, rng_for
from sgmim.data.batches import Order, Pairs, collate, eval_loader, train_loader
from sgmim.data.image import normalise
from sgmim.scenes import corpus as scenes_module
from sgmim.scenes.captions import _PLACE_PHRASES, _SIZE_WORDS, caption, thing_names
from sgmim.scenes.corpus import (
    _CHUNK,
    DEFAULT_RECIPE,
    RECIPES,
    SPLITS,
    _held_out,
    _make_chunk,
    load_scenes,
    make_item,
)
from sgmim.scenes.pictures import content, draw_scene, sample_scene
from sgmim.scenes.voices import (
    OTHER_SPEAKERS,
    SEEN_SPEAKERS,
    SPEAKERS,
    UNSEEN_SPEAKERS,
    Speaker,
    Utterance,
    speak,
    vary,
)

# ---- captions say what is there


def either(options):
    return "(?:" + "|".join(map(re.escape, options)) + ")"


def mention(thing):
    category, colour, size = thing
    return (
        "an? "
        + (either(_SIZE_WORDS[size]) + " " if size else "")
        + (f"{colour} " if colour else "")
        + either(thing_names(category))
    )


def sentence(said):
    "A pattern that a caption with these facts matches as a whole: it can say nothing more, and nothing less."
    names = [mention(t) for t in said.things]
    body = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " (?:and|with) " + names[-1]
    if len(names) == 2:
        body = f"(?:{body}|{names[0]} (?P<relation>above|over|below|under|next to|beside) {names[1]})"
    if said.place is None:
        return f"(?:there is )?{body}"
    where = either(_PLACE_PHRASES[said.place])
    return f"(?:(?:there is )?{body} {where}|{where}, {body.replace('?P<relation>', '?P<other>')})"


def middle(thing):
    return (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2


def test_captions_are_true():
    relations = []
    for i in range(1500):
        rng = rng_for("test", i)
        scene = sample_scene(rng)
        said = caption(scene, rng)
        assert said.place in (None, scene.place)
        truth = {t.category: t for t in scene.things}
        assert sorted(c for c, _, _ in said.things) == sorted(truth)
        for category, colour, size in said.things:
            assert colour in (None, truth[category].colour) and size in (None, truth[category].size)
        match = re.fullmatch(sentence(said), said.text[0].lower() + said.text[1:])
        assert match, (said, scene)
        for article, word in re.findall(r"\b(an?) (\w)", said.text.lower()):
            assert (article == "an") == (word in "aeiou"), said.text
        groups = match.groupdict()
        if relation := groups.get("relation") or groups.get("other"):
            (ax, ay), (bx, by) = (middle(truth[c]) for c, _, _ in said.things)
            assert {
                "above": ay < by - 0.25,
                "over": ay < by - 0.25,
                "below": ay > by + 0.25,
                "under": ay > by + 0.25,
            }.get(relation, abs(ax - bx) > 0.25), (said, scene)
            relations.append(relation)
    assert set(relations) == {"above", "over", "below", "under", "next to", "beside"}


def test_a_caption_depends_on_its_generator_alone():
    scene = sample_scene(rng_for("scene"))
    assert caption(scene, rng_for(1)) == caption(scene, rng_for(1))
    assert len({caption(scene, rng_for(i)).text for i in range(30)}) > 5


# ---- voices

TEXT = "There is a big red car next to an umbrella, on the beach"


@pytest.mark.parametrize("name", [s.name for s in SEEN_SPEAKERS + UNSEEN_SPEAKERS + OTHER_SPEAKERS])
def test_words_tile_the_waveform(name):
    said = speak(TEXT, SPEAKERS[name])
    words, starts, ends = zip(*said.words, strict=True)
    assert " ".join(words) == TEXT.replace(",", "")
    assert starts[0] == 0 and starts[1:] == ends[:-1] and abs(ends[-1] - len(said.wave) / 16000) < 2 / 16000
    assert all(0.01 < e - s < 1.5 for s, e in zip(starts, ends, strict=True))
    assert said.wave.dtype == np.float32 and said.wave.ndim == 1 and 0.05 < np.abs(said.wave).max() <= 1
    # sound begins and ends with the first and the last word: silence was cut off
    assert np.abs(said.wave[:1600]).max() > 0.003 and np.abs(said.wave[-1600:]).max() > 0.003


@pytest.mark.parametrize(
    "text", ["A moon and a fish in a room", "A fish and a moon in a room", "Wool and a moon in a fish"]
)
def test_words_lie_where_the_times_say(text):
    "Only one word hisses, and it is found by its times: it has the largest share of energy above 3 kHz."
    for speaker in SEEN_SPEAKERS[:4] + UNSEEN_SPEAKERS:
        said = speak(text, speaker)

        def hiss(start, end, said=said):
            power = np.abs(np.fft.rfft(said.wave[int(start * 16000) : int(end * 16000)], 16000)) ** 2
            return power[3000:].sum() / power.sum()

        assert max(said.words, key=lambda w: hiss(*w[1:]))[0] == "fish", speaker


def test_speech_is_the_same_in_another_process_and_after_other_sentences():
    code = (
        "import sys, hashlib; from sgmim.scenes.voices import *; speak('Something else', UNSEEN_SPEAKERS[0]);"
        " print([hashlib.sha256(speak(sys.argv[1], s, 47, 171).wave.tobytes()).hexdigest()"
        " for s in (SEEN_SPEAKERS[1], UNSEEN_SPEAKERS[3])])"
    )
    import hashlib

    here = [
        hashlib.sha256(speak(TEXT, s, 47, 171).wave.tobytes()).hexdigest()
        for s in (SEEN_SPEAKERS[1], UNSEEN_SPEAKERS[3])
    ]
    assert run_python(code, TEXT).stdout.strip() == str(here)


def test_threads_take_turns():
    texts = [f"{n} ducks" for n in ("One", "Two", "Three", "Four")]
    alone, together = {t: speak(t, SEEN_SPEAKERS[0]).wave for t in texts}, {}
    threads = [
        threading.Thread(target=lambda t=t: together.update({t: speak(t, SEEN_SPEAKERS[0]).wave}))
        for t in texts
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(np.array_equal(alone[t], together[t]) for t in texts)


def test_what_cannot_be_said():
    for text in ("", " ", "…", "?!"):
        with pytest.raises(DataError, match="at least one word"):
            speak(text, SEEN_SPEAKERS[0])
    with pytest.raises(ConfigError, match="no voice 'xx-nowhere\\+m1'"):
        speak("A cat", Speaker("x", "xx-nowhere+m1"))
    assert len(speak("A cat", SEEN_SPEAKERS[0]).wave) > 1000  # and the next one is fine


def test_speakers_vary_but_stay_themselves():
    drawn = {vary(SEEN_SPEAKERS[0], rng_for(i)) for i in range(50)}
    assert len(drawn) > 20 and all(
        abs(p - SEEN_SPEAKERS[0].pitch) <= 8
        and 0.92 * SEEN_SPEAKERS[0].rate - 1 <= r <= 1.12 * SEEN_SPEAKERS[0].rate
        for p, r in drawn
    )
    groups = [{s.voice for s in g} for g in (SEEN_SPEAKERS, UNSEEN_SPEAKERS, OTHER_SPEAKERS)]
    assert [len(g) for g in groups] == [8, 4, 8] and not (groups[0] | groups[2]) & groups[1]
    # an unseen speaker is another vocal tract, not only another accent
    seen, unseen = ({s.voice.split("+")[1] for s in g} for g in (SEEN_SPEAKERS, UNSEEN_SPEAKERS))
    assert not seen & unseen


def test_without_espeak(monkeypatch):
    def missing(name, *args, **kwargs):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(
        SgmimError, match="espeak-ng.*could not be opened.*pip install espeakng-loader.*apt install espeak-ng"
    ):
        speak("A cat", SEEN_SPEAKERS[0])


def test_with_a_broken_espeak(monkeypatch, tmp_path):
    "A wheel whose library is missing, or whose voices are."
    loader = pytest.importorskip("espeakng_loader")
    with monkeypatch.context() as m:
        m.setattr(loader, "get_library_path", lambda: str(tmp_path / "libespeak-ng.so"))
        m.setattr(ctypes, "CDLL", lambda name, *a, **k: (_ for _ in ()).throw(OSError(f"{name}: not found")))
        with pytest.raises(SgmimError, match="libespeak-ng.*not found"):
            speak("A cat", SEEN_SPEAKERS[0])


SABOTAGE = {
    "missing": (
        "import ctypes\ndef no(name, *a, **k): raise OSError(f'{name} is missing')\nctypes.CDLL = no\nraise"
        " ImportError('no espeakng_loader')"
    ),
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("how,said", [("missing", "pip install espeakng-loader"), ("killed", "-9")])
def test_a_worker_that_fails_says_why(monkeypatch, tmp_path, how, said):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "espeakng_loader.py").write_text(SABOTAGE[how])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    with pytest.raises(SgmimError) as e:
        load_scenes("dev", 3, cache=tmp_path / "cache", progress=False)
    assert said in str(e.value) and str(tmp_path / "cache") in str(e.value)
    assert not any(n.endswith((".bin", "done.json")) for n in listing(tmp_path / "cache"))


# ---- the corpus: the same everywhere


def folder_of(cache, name):
    return next(cache.glob(f"*/{name}"))


def test_any_number_of_workers_in_any_process(scenes, cache, tmp_path):
    "One worker or two, another process or this one, a longer or a shorter split: the same bytes."
    whole = listing(folder_of(cache, "train-130x1"))
    load_scenes("train", _CHUNK + 5, cache=tmp_path, progress=False)
    folder = folder_of(tmp_path, f"train-{_CHUNK + 5}x1")
    two = listing(folder)
    assert [two[f"00000.{e}"] == whole[f"00000.{e}"] for e in ("bin", "json")] == [True, True]
    (tmp_path / "here").mkdir()
    _make_chunk(tmp_path / "here", 1, "train", _CHUNK + 5, 1, 0, 96, "scenes-1")
    here = listing(tmp_path / "here")
    assert here == {n: two[n] for n in ("00001.bin", "00001.json")}
    part = read_json(folder / "00001.json")
    assert (
        part["captions"] == json.loads(whole["00001.json"])["captions"][: len(part["captions"])]
        and len(part["images"]) == 5
    )


def test_another_seed_is_another_corpus():
    assert make_item("dev", 0)[0] == make_item("dev", 0)[0] != make_item("dev", 0, seed=1)[0]
    assert make_item("dev", 0)[0] != make_item("dev", 1)[0]


def test_what_the_corpus_gives(scenes):
    train = scenes["train"]
    assert len(train) == len(train.captions) == len(train.image_of_caption) == len(
        train.scenes
    ) == 130 and "train" in repr(train)
    for j in (0, 99, 100, 129):  # on both sides of the border of a chunk
        i = train.image_of_caption[j]
        scene, ((said, speaker, uttered),) = make_item("train", i)
        c, wave, image = train.captions[j], train.audio(j), train.image(i)
        assert (c.text, c.place, c.things, c.speaker, c.image, train.scene(i)) == (
            said.text,
            said.place,
            said.things,
            speaker.name,
            i,
            scene,
        )
        assert (
            wave.dtype == np.float32
            and wave.shape == (c.samples,) == uttered.wave.shape
            and np.abs(wave - uttered.wave).max() < 1 / 32000
        )
        assert image.shape == (96, 96, 3) and image.dtype == np.uint8
        # a JPEG of it
        assert (
            np.abs(image.astype(float) - draw_scene(scene)).mean()
            < 6
            < 20
            < np.abs(image.astype(float) - draw_scene(train.scene(i - 1))).mean()
        )
        assert [w for w, _, _ in c.words] == [w for w, _, _ in uttered.words] and np.allclose(
            [t[1:] for t in c.words], [t[1:] for t in uttered.words], atol=1e-4
        )
    assert max(c.samples for c in train.captions) <= 4 * 16000
    again = load_scenes("train", 130, cache=train.folder.parents[1], progress=False)
    assert again.fingerprint == train.fingerprint != scenes["dev"].fingerprint


def test_captions_of_one_image_differ():
    counts = []
    for i in range(6):
        _, spoken = make_item("train", i, captions=5)
        texts = [said.text for said, _, _ in spoken]
        assert len(set(texts)) == len(texts)
        counts.append(len(texts))
    assert max(counts) == 5 and min(counts) >= 1


# ---- no leaks

ONE_KIND = [name for name, rule in SPLITS.items() if rule.speakers in RECIPES[DEFAULT_RECIPE].voices]


@pytest.fixture(scope="module")
def drawn():
    "{split: [(scene, [text], [speaker name])]}: many items of each split, without the work of speaking them."
    with pytest.MonkeyPatch.context() as m:
        m.setattr(
            scenes_module,
            "speak",
            lambda text, *args: Utterance(np.zeros(16000, np.float32), ((text, 0.0, 1.0),)),
        )
        many = {}
        for name, n in {**dict.fromkeys(ONE_KIND, 300), "train": 3000}.items():
            items = [make_item(name, i, captions=2) for i in range(n)]
            many[name] = [
                (s, [said.text for said, _, _ in spoken], [v.name for _, v, _ in spoken])
                for s, spoken in items
            ]
    return many


def texts(items):
    return {t for _, ts, _ in items for t in ts}


def contents(items):
    return {content(s) for s, _, _ in items}


def voices(items):
    return {v for _, _, vs in items for v in vs}


def combinations(scene):
    "Pairs of a thing and its colour, and pairs of things."
    names = sorted(t.category for t in scene.things)
    return {(t.category, t.colour) for t in scene.things if t.colour} | {
        (a, b) for k, a in enumerate(names) for b in names[k + 1 :]
    }


def test_no_sentence_is_in_two_kinds_of_split(drawn):
    kinds = {
        "train": texts(drawn["train"]) | texts(drawn["pretrain"]),
        "dev": texts(drawn["dev"]),
        "test": set().union(*(texts(drawn[k]) for k in drawn if "test" in k)),
    }
    assert all(len(v) > 200 for v in kinds.values())
    for a, b in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not kinds[a] & kinds[b], (a, b)
    assert texts(drawn["train"]) & texts(drawn["pretrain"])  # such meetings happen where they may


def test_no_scene_is_in_two_splits(drawn):
    train = contents(drawn["train"]) | contents(drawn["pretrain"])
    others = {k: contents(v) for k, v in drawn.items() if k not in ("train", "pretrain")}
    for name, c in others.items():
        assert not c & train, name
    assert (
        not others["dev"] & (others["test-seen"] | others["test-unseen"])
        and not others["test-seen"] & others["test-unseen"]
    )
    assert contents(drawn["train"]) & contents(drawn["pretrain"])
    # so many scenes do come again within train
    assert len(contents(drawn["train"][:1500]) & contents(drawn["train"][1500:])) > 20


def test_speakers_of_each_split(drawn):
    seen, unseen = {s.name for s in SEEN_SPEAKERS}, {s.name for s in UNSEEN_SPEAKERS}
    assert voices(drawn["test-unseen"]) == unseen
    for name in ("train", "dev", "test-seen", "test-novel"):
        assert voices(drawn[name]) == seen, name
    assert voices(drawn["pretrain"]) == seen | {s.name for s in OTHER_SPEAKERS}


def test_novel_scenes_hold_what_training_never_shows(drawn):
    shown = set().union(
        *(combinations(s) for s, _, _ in drawn["train"]), *(combinations(s) for s, _, _ in drawn["pretrain"])
    )
    for scene, _, _ in drawn["test-novel"]:
        assert combinations(scene) - shown and _held_out(content(scene)[1])
    for name in ("dev", "test-seen", "test-unseen"):  # elsewhere nearly all was shown: the rest is chance
        known = [not combinations(s) - shown for s, _, _ in drawn[name]]
        assert np.mean(known) > 0.97 and not any(_held_out(content(s)[1]) for s, _, _ in drawn[name]), name
    things = {t.category for s, _, _ in drawn["train"] for t in s.things}
    colours = {t.colour for s, _, _ in drawn["train"] for t in s.things}
    for scene, _, _ in drawn["test-novel"]:  # the parts are familiar
        assert {t.category for t in scene.things} <= things and {t.colour for t in scene.things} <= colours


# ---- faults


def test_what_cannot_be_loaded(tmp_path):
    for args, said in (
        (("tets-seen", 10), "it has train, dev, test-seen"),
        (("train", 0), "at least one image"),
        (("train", -3), "at least one image"),
        (("train", 5, 0), "1 to 5 captions"),
        (("train", 5, 6), "1 to 5 captions"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_scenes(*args, cache=tmp_path, progress=False)
    with pytest.raises(SgmimError, match="16 pixels"):
        load_scenes("dev", 1, size=8, cache=tmp_path, progress=False)
    assert not any(n.endswith((".bin", "done.json")) for n in listing(tmp_path))


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SgmimError, match=re.escape(str(tmp_path / "file"))):
        load_scenes("dev", 1, cache=tmp_path / "file", progress=False)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SGMIM_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("SGMIM_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "sgmim")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_while_generating(scenes, cache, tmp_path):
    """A real process, killed with its workers between its first and its last chunk; then the corpus is
    loaded as if nothing had been."""
    code = (
        "import os, sys; from sgmim.scenes.corpus import load_scenes; os.cpu_count = lambda: 1;"
        ' load_scenes("dev", 120, cache=sys.argv[1], progress=False)'
    )
    p = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        end = time.time() + 200
        while not list(tmp_path.glob("*/*/00000.json")) and time.time() < end and p.poll() is None:
            time.sleep(0.005)
        os.killpg(p.pid, signal.SIGKILL)
    finally:
        p.kill()
        p.wait()
    left = listing(folder_of(tmp_path, "dev-120x1"))
    assert {"00000.bin", "00000.json"} <= set(left) and "done.json" not in left and "00001.json" not in left
    stamp = (folder_of(tmp_path, "dev-120x1") / "00000.bin").stat().st_mtime_ns
    again = load_scenes("dev", 120, cache=tmp_path, progress=False)
    whole, made = listing(folder_of(cache, "dev-120x1")), listing(folder_of(tmp_path, "dev-120x1"))
    assert {k: v for k, v in made.items() if not k.endswith(".part")} == whole
    assert (again.folder / "00000.bin").stat().st_mtime_ns == stamp  # what was done was not done again


@pytest.mark.parametrize("done", [False, True])
def test_broken_chunks_are_made_again(scenes, cache, tmp_path, done):
    "Truncated or missing files, also of a corpus that was once complete."
    source = folder_of(cache, "dev-120x1")
    folder = tmp_path / source.parent.name / source.name
    shutil.copytree(source, folder)
    with open(folder / "00001.bin", "r+b") as f:
        f.truncate(5000)
    if not done:
        (folder / "done.json").unlink()
    again = load_scenes("dev", 120, cache=tmp_path, progress=False)
    assert listing(folder) == listing(source)
    assert np.array_equal(again.audio(119), scenes["dev"].audio(119)) and np.array_equal(
        again.image(119), scenes["dev"].image(119)
    )


# ---- loaders


def lengths(n=103):
    return np.random.default_rng(3).integers(1000, 60000, n)


@pytest.mark.parametrize("bucket", [0, 3])
def test_an_epoch_covers_all(bucket):
    order = Order(lengths(), 10, 200, seed=1, bucket=bucket)
    epochs = [np.concatenate([order[s] for s in range(e * 10, e * 10 + 10)]) for e in range(20)]
    assert order.per_epoch == 10 and all(len(e) == len(set(e.tolist())) == 100 for e in epochs)
    # another order, and another rest left out
    assert len({tuple(e) for e in epochs}) == 20 and len({tuple(sorted(e)) for e in epochs}) > 10
    assert set(np.concatenate(epochs).tolist()) == set(range(103))
    exact = Order(lengths(100), 10, 10)
    assert sorted(np.concatenate([exact[s] for s in range(10)])) == list(range(100))


@pytest.mark.parametrize(
    "settings", [{}, {"bucket": 4}, {"curriculum": 0.4}, {"bucket": 4, "curriculum": 0.4}], ids=str
)
def test_an_order_is_a_function_of_the_step(settings):
    def make(seed=1):
        return Order(lengths(), 10, 60, seed=seed, **settings)

    forwards = make()
    steps = [forwards[s].tolist() for s in range(60)]
    back = make()
    for s in np.random.default_rng(0).permutation(60):
        assert back[s].tolist() == steps[s] == make()[s].tolist()
    assert [make(2)[s].tolist() for s in range(60)] != steps
    for s in (-1, 60):
        with pytest.raises(IndexError):
            forwards[s]
    assert len(forwards) == 60


def test_buckets_hold_captions_of_like_length():
    L = lengths(640)
    plain, bucketed = Order(L, 8, 80), Order(L, 8, 80, bucket=20)

    def waste(order):
        return np.mean([1 - L[order[s]].mean() / L[order[s]].max() for s in range(80)])

    assert waste(bucketed) < 0.1 < 0.3 < waste(plain)
    first_ones = [L[bucketed[s]].max() for s in range(80)]
    # the batches themselves come in no order of length
    assert np.corrcoef(np.arange(20), first_ones[:20])[0, 1] < 0.8


def test_curriculum_begins_with_short_captions():
    L = lengths(400)
    order = Order(L, 10, 100, curriculum=0.5)
    rank = np.argsort(np.argsort(L))
    highest = [rank[order[s]].max() for s in range(50)]
    assert (
        highest[0] < 100
        and all(h < (0.25 + 0.75 * s / 50) * 400 + 1 for s, h in enumerate(highest))
        and max(highest[40:]) > 300
    )
    assert all(len(set(order[s].tolist())) == 10 for s in range(50))
    assert sorted(np.concatenate([order[s] for s in range(50, 90)])) == list(range(400))  # then whole epochs


@pytest.mark.parametrize("size", [-1, 0, 1, 104])
def test_batches_that_cannot_be(size):
    with pytest.raises(ConfigError, match="batch_size must be 2 to 103"):
        Order(lengths(), size, 10)


def jitter(image):
    "An augmentation that draws from torch's global generator."
    return (torch.rand(1) * 255).to(torch.uint8).expand(image.shape).numpy()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_augmentation_depends_on_seed_and_step_alone():
    pairs = Pairs(Toy(), transform=jitter, speed=0.2)

    def batches(seed=0, start=0, workers=0, disturb=0):
        order = Order(pairs.lengths, 8, 12, seed=seed)
        torch.manual_seed(disturb)
        return list(train_loader(pairs, order, start, workers))

    whole = batches()
    assert len(whole) == 12 and all(equal(a, b) for a, b in zip(whole, batches(disturb=9), strict=True))
    assert len(tail := batches(start=7)) == 5 and all(
        equal(a, b) for a, b in zip(whole[7:], tail, strict=True)
    )
    assert all(equal(a, b) for a, b in zip(whole, batches(workers=2), strict=True))
    drawn = {}  # within a batch each caption has its own draw, and another at its next turn
    for b in whole:
        for j, x in zip(b["index"].tolist(), b["image"][:, 0, 0, 0].tolist(), strict=True):
            drawn.setdefault(j, []).append(x)
    assert (
        len({x for xs in drawn.values() for x in xs}) > 40
        and sum(len(set(xs)) > 1 for xs in drawn.values()) > 25
    )
    other = batches(seed=1)
    assert not any(equal(a, b) for a, b in zip(whole, other, strict=True))


def test_speed():
    """Up to a share faster or slower, drawn anew each time; as it is where no draw is given; and cut at
    the same second."""
    toy = Toy()
    fast, plain = Pairs(toy, max_seconds=0.3, speed=0.2), Pairs(toy, max_seconds=0.3)
    ratios = [
        len(fast[j, d]["audio"]) / len(toy.waves[j])
        for j in range(20)
        for d in range(10)
        if len(toy.waves[j]) < 3500
    ]
    assert 0.82 < min(ratios) < 0.9 and 1.1 < max(ratios) < 1.26 and len(set(ratios)) > 50
    assert max(len(fast[j, d]["audio"]) for j in range(20) for d in range(10)) == 4800
    assert all(np.array_equal(fast[j]["audio"], plain[j]["audio"]) for j in range(20)) and np.array_equal(
        fast[3, 5]["audio"], fast[3, 5]["audio"]
    )
    # the pitch goes with the speed
    tone = np.sin(2 * np.pi * 500 * np.arange(4000) / 16000).astype(np.float32)
    toy.waves[0] = tone
    heard = fast[0, 1]["audio"]
    peak = np.abs(np.fft.rfft(heard, 16000)).argmax()
    assert abs(peak * len(heard) / (500 * len(tone)) - 1) < 0.01 and abs(peak - 500) > 2


def test_pairs_without_a_draw_are_left_to_the_caller():
    pairs = Pairs(Toy(), transform=jitter)
    torch.manual_seed(0)
    assert not np.array_equal(pairs[0]["image"], pairs[0]["image"])


@pytest.mark.parametrize("pad", [False, True])
def test_a_batch(scenes, pad):
    train = scenes["train"]
    pairs = Pairs(train, max_seconds=1.5, pad=pad)
    batch = pairs.collate([pairs[j] for j in (5, 120, 17)])
    assert {k: (v.dtype, v.ndim) for k, v in batch.items()} == {
        "image": (torch.float32, 4),
        "audio": (torch.float32, 2),
        "audio_len": (torch.int64, 1),
        "image_id": (torch.int64, 1),
        "index": (torch.int64, 1),
    }
    assert (
        batch["index"].tolist() == [5, 120, 17]
        and batch["image_id"].tolist() == train.image_of_caption[[5, 120, 17]].tolist()
    )
    assert (
        batch["audio"].shape[1] == (24000 if pad else batch["audio_len"].max())
        and batch["audio_len"].max() <= 24000
    )
    for row, j in enumerate((5, 120, 17)):
        wave, n = train.audio(j)[:24000], int(batch["audio_len"][row])
        assert (
            n == len(wave) == pairs.lengths[j]
            and np.array_equal(batch["audio"][row, :n], wave)
            and not batch["audio"][row, n:].any()
        )
        assert torch.equal(batch["image"][row], normalise(np.array(train.image(train.image_of_caption[j]))))


def test_a_batch_of_frames():
    pairs = Pairs(Toy())
    pairs.frames = [torch.full((3 + j % 4, 5), float(j)) for j in range(40)]
    batch = collate([pairs[j] for j in (2, 3, 4)])
    assert (
        "audio" not in batch
        and batch["frames"].shape == (3, 6, 5)
        and batch["frames_len"].tolist() == [5, 6, 3]
    )
    assert batch["frames"][2, :3].eq(4).all() and batch["frames"][2, 3:].eq(0).all()


def test_evaluation_reads_everything_once():
    toy = Toy(21, captions=2)
    batches = list(eval_loader(Pairs(toy), 8))
    assert sorted(j for b in batches for j in b["index"].tolist()) == list(range(42)) and [
        len(b["index"]) for b in batches
    ] == [8] * 5 + [2]
    n = torch.cat([b["audio_len"] for b in batches])
    assert (n.diff() >= 0).all()


def test_kept_images_are_read_once():
    toy = Toy(5, captions=3)
    reads = []
    image = toy.image
    toy.image = lambda i: reads.append(i) or image(i)
    kept, plain = Pairs(toy), Pairs(toy)
    kept.keep_images()
    for j in range(15):
        assert np.array_equal(kept[j]["image"], plain[j]["image"])
    assert len(reads) == 5 + 15


def test_a_view_is_a_corpus(scenes):
    "What the other tests use: the first pairs of a corpus, through the same loaders."
    batch = next(iter(eval_loader(Pairs(first(scenes["dev"], 7)), 64)))
    assert sorted(batch["index"].tolist()) == list(range(7))
