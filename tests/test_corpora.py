"""The official corpora, 09: every layout read as it is distributed, every fault named or counted, and the
exports of the embedded corpus read back."""

import csv
import hashlib
import json
import pickle
import random
import re
import shutil
import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
from conftest import micro

from sgmim.core import CheckpointError, ConfigError, DataError, read_json, write_json
from sgmim.data.corpora import (
    UNKNOWN,
    _entries,
    _find_root,
    _pick_split,
    flickr8k_audio,
    load_corpus,
    pairs,
    places_audio,
    protocol_splits,
    recognise,
    splits_of,
    spokencoco,
)
from sgmim.data.corpus import present
from sgmim.scenes.corpus import export_facc, export_places, export_spokencoco, load_scenes
from sgmim.train import TrainConfig, fit

pytestmark = pytest.mark.filterwarnings("ignore:.*left out")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    "{'train': 9 images, 'dev': 5, 'test': 6}, up to three captions each."
    folder = tmp_path_factory.mktemp("few")
    return {
        name: load_scenes(split, n, captions=3, cache=folder, progress=False)
        for name, split, n in (("train", "train", 9), ("dev", "dev", 5), ("test", "test-seen", 6))
    }


@pytest.fixture(scope="module")
def exported(few, tmp_path_factory):
    "The folder that holds them as places/, spokencoco/ and facc/."
    home = tmp_path_factory.mktemp("exported")
    export_places({"train": few["train"], "dev_seen": few["dev"], "test_seen": few["test"]}, home / "places")
    export_spokencoco({"train": few["train"], "val": few["dev"], "test": few["test"]}, home / "spokencoco")
    export_facc(few, home / "facc")
    return home


@pytest.fixture
def copy(exported, tmp_path):
    "The metadata of the exports, to break."

    def texts(folder, names):
        return [n for n in names if n.endswith((".jpg", ".wav"))]

    shutil.copytree(exported, tmp_path / "copy", ignore=texts)
    return tmp_path / "copy"


def refused(call, *said):
    with pytest.raises(DataError) as e:
        call()
    for words in said:
        assert words in str(e.value), (words, str(e.value))
    return str(e.value)


def changed(path, change, key="data"):
    "Change the list of a JSON file in place."
    whole = read_json(path)
    change(whole[key])
    path.write_text(json.dumps(whole))


# ---- what is exported comes back


def plain(text):
    return text.lower().replace(",", "").removesuffix(" .")


def heard(corpus):
    return [
        (corpus.audio(j).tobytes(), corpus.image(corpus.image_of_caption[j]).tobytes())
        for j in range(len(corpus))
    ]


LAYOUTS = {
    "places": ("places", {}, {"dev": "dev_seen", "test": "test_seen"}),
    "unrolled": ("spokencoco", {"karpathy": "unrolled"}, {}),
    "dataset": ("spokencoco", {"karpathy": "dataset"}, {}),
    "facc": ("facc", {}, {}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_exports_come_back(few, exported, layout, split):
    "The same captions, speakers, texts, word times, sound, and each with its picture."
    folder, options, names = LAYOUTS[layout]
    scenes, corpus = few[split], load_corpus(exported / folder, names.get(split, split), **options)
    assert (
        len(corpus) == len(scenes) == len(present(corpus, strict=True))
        and corpus.n_images == len(scenes.scenes)
        and not corpus.skipped
    )
    theirs = heard(scenes)
    back = [theirs.index(pair) for pair in heard(corpus)]  # our caption j is their caption back[j]
    assert sorted(back) == list(range(len(scenes)))
    if layout != "dataset":
        assert back == sorted(back)
    numbers = {}
    for c, k in zip(corpus.captions, back, strict=True):
        t = scenes.captions[k]
        assert plain(c.text) == plain(t.text)
        assert (
            c.speaker.lower() == t.speaker.lower()
            if layout != "facc"
            else numbers.setdefault(t.speaker, c.speaker) == c.speaker
        )
        if layout in ("places", "unrolled"):
            assert [w for w, _, _ in c.words] == [w.upper().replace(" ", "_") for w, _, _ in t.words]
            assert np.allclose([w[1:] for w in c.words], [w[1:] for w in t.words], atol=0.0051)
        else:
            assert c.words == ()
    if layout == "places":
        assert [corpus.labels[c.image] for c in corpus.captions] == [
            scenes.scenes[t.image].place for t in scenes.captions
        ]


def test_spokencoco_as_distributed(few, exported):
    """Two files of its own, no test set among them; val2014 images with recordings under wavs/train;
    Karpathy's schema."""
    root = exported / "spokencoco"
    own = {s: read_json(root / f"SpokenCOCO_{s}.json")["data"] for s in ("train", "val")}
    assert not (root / "SpokenCOCO_test.json").exists()
    wavs = {
        (entry["image"].split("/")[0], c["wav"].split("/")[1])
        for data in own.values()
        for entry in data
        for c in entry["captions"]
    }
    assert wavs == {("train2014", "train"), ("val2014", "train"), ("val2014", "val")}
    images = read_json(root / "dataset_coco.json")["images"]
    assert all(
        {"filepath", "filename", "split", "sentences", "cocoid", "imgid", "sentids"} <= im.keys()
        and f"{im['cocoid']:012d}" in im["filename"]
        for im in images
    )
    assert [im["split"] for im in images].count("restval") == 2 and {
        im["filepath"] for im in images if im["split"] != "train"
    } == {"val2014"}
    assert len({im["cocoid"] for im in images}) == len(images) == 20
    for im in images:
        assert {s["raw"] for s in im["sentences"]} == {
            c["text"]
            for data in own.values()
            for e in data
            if e["image"].endswith(im["filename"])
            for c in e["captions"]
        }


def test_spokencoco_without_karpathy(few, tmp_path):
    "Without a test split the export is what it was before: SpokenCOCO's own splits, nothing of Karpathy's."
    export_spokencoco({"train": few["dev"], "val": few["test"]}, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.json")) == ["SpokenCOCO_train.json", "SpokenCOCO_val.json"]
    assert len(spokencoco(tmp_path, "val")) == len(few["test"]) and splits_of(tmp_path) == ["train", "val"]
    refused(
        lambda: spokencoco(tmp_path, "test"),
        "no split 'test'",
        "there are train, val",
        "dataset_coco.json",
        "--karpathy PATH",
    )
    with pytest.raises(ConfigError, match="not dev"):
        export_spokencoco({"dev": few["dev"]}, tmp_path / "x", karpathy=True)


# ---- JSON, a piece at a time


def read_whole(text):
    "What json makes of it: the entries, or None if it is no object with a list called data."
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found["data"] if isinstance(found, dict) and isinstance(found.get("data"), list) else None


def test_pieces_give_what_the_whole_gives(tmp_path):
    "Damaged in any way, in pieces of any size: the entries that json gives, or a DataError."
    rng, path, wholes = random.Random(1), tmp_path / "x.json", 0
    whole = {
        "base": 'x\u00e9"\\',
        "n": 12.5e3,
        "data": [{"a": 1, "b": [None, True]}, "é\u2028", 123, -1.5e-7, [], {}],
        "more": {"data": 3},
    }
    seeds = [json.dumps(whole, ensure_ascii=False, indent=indent) for indent in (None, 1)]
    for _ in range(300):
        text = list(rng.choice(seeds))
        for _ in range(rng.choice((0, 1, 1, 2))):
            i = rng.randrange(max(1, len(text)))
            if i >= len(text):
                break
            how = rng.randrange(4)
            if how == 0:
                del text[i]
            elif how == 1:
                text.insert(i, rng.choice('{}[],:" 1\n\\x'))
            elif how == 2:
                text[i] = rng.choice('{}[],:"0')
            elif rng.random() < 0.5:
                del text[i:]
        text = "".join(text)
        if text.count('"data"') > 2:
            continue
        path.write_text(text, encoding="utf-8")
        whole, piece = read_whole(text), rng.choice((1, 2, 5, 17, 1000))
        if whole is None:
            refused(lambda piece=piece: list(_entries(path, piece=piece)), str(path))
        else:
            assert list(_entries(path, piece=piece)) == list(enumerate(whole))
            wholes += 1
    assert 60 < wholes < 260


def test_little_memory(tmp_path):
    path = tmp_path / "large.json"
    with open(path, "w") as f:
        f.write('{"data": [')
        f.writelines(f'{{"uttid": "u{i}", "text": "{"x" * 60}"}}, ' for i in range(60_000))
        f.write('{}], "rest": 1}')
    tracemalloc.start()
    n = sum(1 for _ in _entries(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 60_001 and path.stat().st_size > 5e6 and peak < 1.2e6


# ---- files that cannot be read: always an error

WHERE = {
    "places": ("places/metadata/train_2020.json", lambda h: places_audio(h / "places", "train")),
    "own": (
        "spokencoco/SpokenCOCO_train.json",
        lambda h: spokencoco(h / "spokencoco", "train", karpathy="none"),
    ),
    "unrolled": (
        "spokencoco/SpokenCOCO_train_unrolled_karpathy_with_alignments.json",
        lambda h: spokencoco(h / "spokencoco", "train"),
    ),
    "joined": (
        "spokencoco/SpokenCOCO_val.json",
        lambda h: spokencoco(h / "spokencoco", "train", karpathy="dataset"),
    ),
    "listing": (
        "spokencoco/dataset_coco.json",
        lambda h: spokencoco(h / "spokencoco", "train", karpathy="dataset"),
    ),
}


@pytest.mark.parametrize("which", WHERE)
@pytest.mark.parametrize(
    "fault",
    [
        "directory",
        "empty",
        "blank",
        "html",
        "cut",
        "comma",
        "encoding",
        "list",
        "no key",
        "object",
        "deep",
        "zeros",
        "utf-16",
    ],
)
def test_broken_json(copy, which, fault):
    name, load = WHERE[which]
    path, key = copy / name, "images" if which == "listing" else "data"
    text = path.read_text(encoding="utf-8")
    half = text[: len(text) // 2]
    broken = {
        "empty": b"",
        "blank": b" \n\n",
        "html": b"\n<!DOCTYPE html><html>moved</html>",
        "cut": half.encode(),
        "comma": text.replace("{", "{,", 3).replace("{,", "{", 2).encode(),
        "encoding": half.encode() + b"\xe9\xff" + text[len(half) :].encode(),
        "list": b'[{"uttid": "u"}]',
        "no key": text.replace(f'"{key}"', f'"{key}x"', 1).encode(),
        "object": f'{{"{key}": {{"a": 1}}}}'.encode(),
        "deep": f'{{"{key}": {"[" * 100_000}'.encode(),
        "zeros": bytes(5000),
        "utf-16": text.encode("utf-16"),
    }
    if fault == "directory":
        path.unlink()
        path.mkdir()
        broken = {"places": ["no split 'train'"], "listing": ["no dataset_coco.json"]}
        refused(lambda: load(copy), *broken.get(which, [f"{path.name} is a folder; a file was expected"]))
        return
    path.write_bytes(broken[fault])
    lines, last = half.count("\n") + 1, len(half) - half.rfind("\n")
    message = refused(
        lambda: load(copy),
        *{
            "empty": ["is empty (0 bytes)"],
            "blank": ["is empty (3 bytes)"],
            "html": ['begins with "<"', "web page"],
            "cut": [f"line {lines}, column", "not valid JSON", "may be cut off"],
            "comma": ["line ", "column", "not valid JSON"],
            "encoding": [f"line {lines}, byte {len(half.encode())}: 0xe9 is not UTF-8"],
            "list": ["holds a list", f'an object with the key "{key}"'],
            "no key": [f'no key "{key}" (is "{key}x" meant?)'],
            "object": [f'"{key}" is an object; a list was expected'],
            "deep": ["not readable as JSON"],
            "zeros": ["not valid JSON"],
            "utf-16": ["line 1, byte 0: 0xff is not UTF-8"],
        }[fault],
    )
    assert path.name in message
    if fault == "cut":
        assert abs(int(re.search(r"column (\d+)", message)[1]) - last) < 100


def test_missing_files(copy, tmp_path):
    refused(lambda: places_audio(tmp_path / "nowhere"), "nowhere does not exist")
    refused(lambda: spokencoco(tmp_path / "nowhere"), "nowhere does not exist")
    refused(lambda: flickr8k_audio(tmp_path / "nowhere"), "nowhere does not exist")
    refused(lambda: pairs(tmp_path / "nowhere.csv"), "nowhere.csv does not exist")
    refused(
        lambda: places_audio(copy / "places/metadata/train_2020.json"),
        "is a file; the folder of the corpus was expected",
    )
    refused(
        lambda: places_audio(copy / "facc"), "no split 'train'; there are none", "metadata/<split>_2020.json"
    )
    refused(
        lambda: places_audio(copy / "places", "train", metadata="not_there.json"),
        "not_there.json does not exist",
    )
    refused(lambda: spokencoco(copy / "places"), "holds no SpokenCOCO_<split>.json")
    refused(lambda: flickr8k_audio(copy / "places"), "holds no flickr_audio/wav2capt.txt")
    (copy / "spokencoco/SpokenCOCO_val.json").unlink()
    refused(
        lambda: spokencoco(copy / "spokencoco", "test", karpathy="dataset"), "SpokenCOCO_val.json is missing"
    )
    for word in ("unrolled", "dataset"):
        refused(
            lambda word=word: spokencoco(spoiled(copy, word), karpathy=word),
            "holds no"
            f" {'dataset_coco' if word == 'dataset' else 'SpokenCOCO_<split>_unrolled_karpathy'}.json",
        )
    refused(
        lambda: spokencoco(copy / "spokencoco", karpathy="unroled"),
        "no such file or folder",
        "unrolled, dataset, none",
    )
    refused(lambda: spokencoco(copy / "spokencoco", karpathy=copy / "facc"), "no file of Karpathy's")


def spoiled(copy, word):
    for p in (copy / "spokencoco").glob("*karpathy*" if word == "unrolled" else "dataset_coco.json"):
        p.unlink()
    return copy / "spokencoco"


# ---- records that cannot be used: counted, or an error if strict


def check_skips(load, kinds, *said):
    "`load(strict)` leaves these kinds of records out and says so; if strict it refuses."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        corpus = load(False)
    assert corpus.skipped.counts == kinds, corpus.skipped
    assert any(
        "left out" in str(w.message) and "skipped lists all" in str(w.message) for w in caught
    ) == bool(corpus.skipped.left_out)
    text = "\n".join(f"{s.where}: {s.why}" for s in corpus.skipped)
    for words in said:
        assert words in text, (words, text)
    refused(
        lambda: load(True),
        f"{sum(corpus.skipped.left_out.values())} left out" if corpus.skipped.left_out else "kept in part",
        "strict=False",
    )
    return corpus


RECORDS = [
    ({"wav": "/etc/passwd"}, "bad path", "the wav '/etc/passwd' is absolute"),
    ({"wav": "wavs/../../x.wav"}, "bad path", "the wav 'wavs/../../x.wav' climbs out"),
    ({"image": "C:\\x.jpg"}, "bad path", "the image "),
    ({"image": ""}, "bad path", "the image is no path: ''"),
    ({"wav": 17}, "bad path", "the wav is no path: 17"),
    ({"image": None}, "bad path", "the image is no path: None"),
    ({"image": ["a"]}, "bad path", "the image is no path: ['a']"),
    ({"image": "a\0.jpg"}, "bad path", "the image is no path"),
    ({"uttid": 17}, "bad name", '"uttid" is a number; a text was expected'),
    ({"uttid": ""}, "bad name", '"uttid" is empty'),
    ({"uttid": "\ud800x"}, "bad name", "half a character"),
    ({"wav": "x\udfff.wav"}, "bad name", "half a character"),
    ({"uttid": None}, "bad name", '"uttid" is null'),
]
DEL = [
    ("uttid", 'no key "uttid" (is "uttidd" meant?); it has '),
    ("wav", 'no key "wav" (is "wavd" meant?)'),
    ("image", 'no key "image" (is "imaged" meant?)'),
]
KEPT = [
    ({"speaker": 3}, "no speaker", '"speaker" is a number'),
    ({"speaker": ""}, "no speaker", '"speaker" is empty'),
    ({"asr_text": None}, "no text", '"asr_text" is null'),
    ({"text_alignment": "0.1__A__0.2 0.3__B"}, "bad alignment", "the alignment holds '0.3__B'"),
    ({"text_alignment": "2__B__1"}, "bad alignment", "'2__B__1'"),
    ({"text_alignment": 4}, "bad alignment", '"text_alignment" is a number'),
]


@pytest.mark.parametrize("change,kind,said", RECORDS, ids=str)
def test_places_records_left_out(few, copy, change, kind, said):
    path = copy / "places/metadata/dev_seen_2020.json"
    changed(path, lambda data: data[2].update(change))
    corpus = check_skips(
        lambda strict: places_audio(copy / "places", "dev_seen", strict=strict),
        {kind: 1},
        "dev_seen_2020.json, data[2]",
        said,
    )
    texts = [plain(c.text) for c in few["dev"].captions]
    assert [c.text for c in corpus.captions] == texts[:2] + texts[3:]


@pytest.mark.parametrize("key,said", DEL)
def test_places_keys_that_are_not_there(copy, key, said):
    def change(data):
        data[1][key + "d"] = data[1].pop(key)

    changed(copy / "places/metadata/dev_seen_2020.json", change)
    check_skips(
        lambda strict: places_audio(copy / "places", "dev_seen", strict=strict),
        {"missing key": 1},
        "dev_seen_2020.json, data[1]",
        said,
    )


@pytest.mark.parametrize("change,kind,said", KEPT, ids=str)
def test_captions_without_what_training_can_do_without(few, copy, change, kind, said):
    "Kept without the speaker, the text or the word times; the rest of them stays."
    changed(copy / "places/metadata/dev_seen_2020.json", lambda data: data[2].update(change))
    corpus = check_skips(
        lambda strict: places_audio(copy / "places", "dev_seen", strict=strict),
        {kind: 1},
        "dev_seen_2020.json, data[2]",
        said,
        "The caption is kept without it",
    )
    c, name = corpus.captions[2], next(iter(change))
    assert len(corpus) == len(few["dev"]) and corpus.captions[1].words
    assert (
        (c.speaker == UNKNOWN) == (name == "speaker")
        and (c.text == "") == (name == "asr_text")
        and (c.words == ()) == (name == "text_alignment")
    )


def test_places_duplicates_and_strangers(few, copy):
    def change(data):
        data[3:5] = [dict(data[0]), "utterance"]

    changed(copy / "places/metadata/train_2020.json", change)
    check_skips(
        lambda strict: places_audio(copy / "places", strict=strict),
        {"duplicate": 1, "not a record": 1},
        "data[3]: the uttid",
        "was there before",
        "data[4]: a text; an object was expected",
    )


def test_nothing_usable(copy):
    def change(data):
        for r in data:
            r["wave"] = r.pop("wav")

    changed(copy / "places/metadata/dev_seen_2020.json", change)
    refused(
        lambda: places_audio(copy / "places", "dev_seen"),
        "places, split dev_seen: not one usable caption",
        'no key "wav" (is "wave" meant?)',
        "data[0]",
    )
    (copy / "places/metadata/dev_seen_2020.json").write_text('{"data": []}')
    refused(lambda: places_audio(copy / "places", "dev_seen"), "not one usable caption")


def test_an_image_in_several_records_is_one(copy):
    changed(
        copy / "places/metadata/train_2020.json",
        lambda data: [r.update(image="a/b/c.jpg", scenelabel="b") for r in data[1:4]],
    )
    corpus = places_audio(copy / "places")
    assert (
        list(corpus.image_names).count("a/b/c.jpg") == 1
        and len(set(corpus.image_of_caption[1:4])) == 1
        and len(set(corpus.image_names)) == corpus.n_images
    )


# ---- Places Audio: generations of splits, and folders


def test_places_2020_before_the_older_files(copy):
    "The generations are never mixed, wherever their files lie: the older val may hold what train_2020 has."
    meta, splits = copy / "places/metadata", copy / "places/placesaudio_2020_splits"
    n = {s: len(read_json(meta / f"{s}_2020.json")["data"]) for s in ("train", "dev_seen")}
    for name in ("train", "val"):
        shutil.copy(meta / "dev_seen_2020.json", meta / f"{name}.json")
    splits.mkdir()
    for p in meta.glob("*_2020.json"):
        p.rename(splits / p.name)
    assert (
        splits_of(copy / "places") == ["train", "dev_seen", "test_seen"]
        and len(places_audio(copy / "places", "train")) == n["train"] != n["dev_seen"]
    )
    refused(
        lambda: places_audio(copy / "places", "val"),
        "no split 'val'; there are train, dev_seen, test_seen",
        "comes in parts",
    )
    assert (
        len(places_audio(copy / "places", "train", metadata=meta / "train.json"))
        == len(places_audio(copy / "places", "val", metadata=meta))
        == n["dev_seen"]
    )
    assert (
        len(load_corpus(meta / "train.json")) == n["dev_seen"]
        and load_corpus(meta / "val.json").split == "val"
    )
    shutil.rmtree(splits)
    assert (
        splits_of(copy / "places") == ["train", "val"] and places_audio(copy / "places", "dev").split == "val"
    )
    assert protocol_splits("places", "dev", splits_of(copy / "places")) == ("val",)


def test_places_metadata_elsewhere(copy, tmp_path):
    (copy / "places/metadata").rename(tmp_path / "lists")
    assert len(places_audio(copy / "places", "dev-seen", metadata=tmp_path / "lists")) == len(
        load_corpus(copy / "places", "dev_seen", kind="places", metadata=tmp_path / "lists")
    )
    refused(
        lambda: places_audio(copy / "places", "dev", metadata=tmp_path / "lists"),
        "lists",
        "dev comes in parts",
        "dev_seen",
    )
    for name in (
        "placesaudio_2020_splits",
        "places/placesaudio_2020_splits",
        "places/placesaudio_2020_splits/metadata",
    ):
        target = copy / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(tmp_path / "lists", target)
        root = copy / name.split("/")[0]
        assert recognise(root) == "places" and splits_of(root) == ["train", "dev_seen", "test_seen"]
        shutil.rmtree(target)


def test_base_paths(exported, copy, tmp_path):
    "Used if the files are there and not below the root; the caller's word before both."
    base = {"image": exported / "places/images", "audio": exported / "places"}
    # its files are the exported ones, which the base paths of the copy still name
    corpus = places_audio(copy / "places")
    assert (corpus.image_root, corpus.audio_root) == (base["image"], base["audio"]) and len(
        present(corpus, strict=True)
    ) == len(corpus)
    path = copy / "places/metadata/train_2020.json"
    for wrong in ("/nowhere/images", "", None, 7, str(tmp_path)):
        path.write_text(
            json.dumps({"data": read_json(path)["data"], "image_base_path": wrong, "audio_base_path": wrong})
        )
        corpus = places_audio(copy / "places")
        assert corpus.audio_root == copy / "places" and corpus.image_root in (
            copy / "places/images",
            copy / "places",
        )
    (copy / "places/Places205").symlink_to(base["image"])
    assert places_audio(copy / "places").image_root == copy / "places/Places205"
    corpus = places_audio(copy / "places", image_root=base["image"], audio_root=str(base["audio"]))
    assert len(present(corpus, strict=True)) == len(corpus) and corpus.image_root == base["image"]
    for which in ("image_root", "audio_root"):
        refused(
            lambda which=which: places_audio(copy / "places", **{which: tmp_path / "none"}),
            f"{which} ",
            "is no folder",
        )


def test_find_root(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "b/19.wav").touch()
    names, guesses = [f"{i}.wav" for i in range(30)], [tmp_path / n for n in "xabc"]
    assert _find_root(guesses, names) == tmp_path / "b" and _find_root(guesses, names[:19]) == tmp_path / "a"
    assert (
        _find_root([tmp_path / "x", tmp_path / "y"], names) == tmp_path / "y"
        and _find_root(guesses, ["n" * 5000, "a\0"]) == tmp_path / "a"
    )


# ---- SpokenCOCO


def coco_change(copy, change, name="SpokenCOCO_train.json"):
    changed(copy / "spokencoco" / name, change)


COCO_FAULTS = [
    (
        lambda d: d[0]["captions"][0].update(uttid="spk_999_12"),
        {"uttid of another image": 1},
        "data[0].captions[0]: 'spk_999_12' is of image 999, and is listed under train2014/",
    ),
    (
        lambda d: d[0]["captions"][0].update(wav="/x.wav"),
        {"bad path": 1},
        "data[0].captions[0]: the wav '/x.wav' is absolute",
    ),
    (lambda d: d[0]["captions"].append("text"), {"not a record": 1}, "a text; an object was expected"),
    (lambda d: d[0].update(captions=[]), {"image without captions": 1}, "data[0]: train2014/"),
    (
        lambda d: d[0].update(captions={"a": 1}),
        {"not a record": 1},
        'data[0]: "captions" is an object; a list was expected',
    ),
    (lambda d: d[1].update(image=5), {"bad path": "all"}, "data[1].captions[0]: the image is no path: 5"),
    (
        lambda d: d[1].pop("image"),
        {"missing key": "all"},
        'data[1].captions[0]: no key "image"; it has text',
    ),
    (lambda d: d.append([1]), {"not a record": 1}, "]: a list; an object was expected"),
    (lambda d: d[0]["captions"][0].pop("text"), {"no text": 1}, 'no key "text"'),
    (lambda d: d[0]["captions"][0].pop("speaker"), {"no speaker": 1}, 'no key "speaker"'),
    (lambda d: d.append(d[0]), None, "was there before"),
]


@pytest.mark.parametrize("change,kinds,said", COCO_FAULTS, ids=range(len(COCO_FAULTS)))
@pytest.mark.parametrize("karpathy", ["none", "dataset"])
def test_spokencoco_faults(copy, change, kinds, said, karpathy):
    coco_change(copy, change)
    kinds = kinds or {
        "duplicate": len(read_json(copy / "spokencoco/SpokenCOCO_train.json")["data"][0]["captions"])
    }
    captions = len(read_json(copy / "spokencoco/SpokenCOCO_train.json")["data"][1].get("captions", ()))
    # all captions of the entry are lost
    kinds = {kind: captions if n == "all" else n for kind, n in kinds.items()}
    if karpathy == "dataset" and ("image is no path" in said or 'no key "image"' in said):
        kinds = {**kinds, "no spoken captions": 1}  # its name is lost
    check_skips(
        lambda strict: spokencoco(copy / "spokencoco", "train", karpathy=karpathy, strict=strict),
        kinds,
        "SpokenCOCO_train.json, data[",
        said,
    )


def test_join_counts_what_one_side_knows(copy):
    root = copy / "spokencoco"

    def change(images):
        gone.append(images.pop(0))
        images.append(
            {
                "filename": "COCO_val2014_000000009999.jpg",
                "filepath": "val2014",
                "split": "test",
                "sentences": [],
                "cocoid": 9999,
            }
        )

    gone = []
    changed(root / "dataset_coco.json", change, "images")
    check_skips(
        lambda strict: spokencoco(root, "test", karpathy="dataset", strict=strict),
        {"not in dataset_coco.json": 1, "no spoken captions": 1},
        f"SpokenCOCO_train.json, data[0]: train2014/{gone[0]['filename']}",
        "dataset_coco.json, COCO_val2014_000000009999.jpg: listed for test",
    )
    assert spokencoco(root, "train", karpathy="dataset").skipped.counts == {"not in dataset_coco.json": 1}
    for wrong in (
        {"filename": "x.jpg"},
        {"filename": 3, "split": "train"},
        "x",
        {"split": "train", "filename": ["x"]},
    ):
        changed(
            root / "dataset_coco.json", lambda images, wrong=wrong: images.__setitem__(1, wrong), "images"
        )
        refused(
            lambda: spokencoco(root, "test", karpathy="dataset"),
            'dataset_coco.json, images[1]: an object with the texts "filename" and "split"',
        )


def test_which_files_of_spokencoco(few, copy):
    """Unrolled before dataset_coco.json before SpokenCOCO's own; and never its own beside one of
    Karpathy's, where the test set may be in train."""
    root = copy / "spokencoco"

    def words(corpus):
        return any(c.words for c in corpus.captions)

    # the unrolled files have word times
    assert words(spokencoco(root, "test")) and not words(spokencoco(root, "test", karpathy="dataset"))
    assert splits_of(root) == ["train", "val", "test"] and splits_of(root, karpathy="none") == [
        "train",
        "val",
    ]
    test_file = root / "SpokenCOCO_test_unrolled_karpathy_with_alignments.json"
    moved = test_file.rename(copy / "elsewhere.json")
    # from dataset_coco.json, which is the same split
    assert (
        not words(spokencoco(root, "test"))
        and words(spokencoco(root, "dev"))
        and splits_of(root) == ["train", "val", "test"]
    )
    refused(lambda: spokencoco(root, "test", karpathy="unrolled"), "no split 'test'; there are train, val")
    assert (
        words(spokencoco(root, "test", karpathy=moved))
        and words(load_corpus(moved))
        and load_corpus(moved).split == "elsewhere"
    )
    listing = (root / "dataset_coco.json").rename(copy / "dataset_coco.json")
    refused(
        lambda: spokencoco(root, "test"),
        "no split 'test'; there are train, val",
        "dataset_coco.json beside them",
    )
    assert (
        len(spokencoco(root, "test", karpathy=listing))
        == len(spokencoco(root, "test", karpathy=copy))
        == len(few["test"])
    )
    for p in root.glob("*karpathy*"):
        p.unlink()
    assert splits_of(root) == ["train", "val"] and len(spokencoco(root, "train")) == len(
        read_captions(root / "SpokenCOCO_train.json")
    )
    refused(lambda: spokencoco(root, "test"), "no split", "dataset_coco.json")
    (copy / "up/SpokenCOCO").parent.mkdir()
    root.rename(copy / "up/SpokenCOCO")
    assert recognise(copy / "up") == "spokencoco" and len(load_corpus(copy / "up", "val")) == len(
        read_captions(copy / "up/SpokenCOCO/SpokenCOCO_val.json")
    )


def read_captions(path):
    return [c for entry in read_json(path)["data"] for c in entry["captions"]]


def test_names_of_unrolled_files(copy):
    "With alignments before without; the rolled files of Karpathy's splits are read too."
    root = copy / "spokencoco"
    for p in [*root.glob("*unrolled*"), root / "dataset_coco.json"]:
        p.unlink()
    entry = read_json(root / "SpokenCOCO_val.json")["data"][0]
    write_json(root / "SpokenCOCO_test_karpathy.json", {"data": [entry]})
    assert len(spokencoco(root, "test")) == len(entry["captions"]) and splits_of(root) == ["test"]
    write_json(
        root / "SpokenCOCO_test_unrolled_karpathy.json",
        {"data": [{"image": entry["image"], "caption": entry["captions"][0]}]},
    )
    assert len(spokencoco(root, "test")) == 1 and not spokencoco(root, "test").captions[0].words
    write_json(
        root / "SpokenCOCO_test_unrolled_karpathy_with_alignments.json",
        {"data": [{"image": entry["image"], "caption": entry["captions"][0], "text_alignment": "0__A__1"}]},
    )
    assert spokencoco(root, "test").captions[0].words == (("A", 0.0, 1.0),)


def test_shapes_of_an_unrolled_entry(tmp_path):
    "`caption` an object; flat; flat with `caption` the text; word times inside or beside."
    said = {"text": "a dog", "speaker": "s", "uttid": "x_7_1", "wav": "x.wav"}
    image, words = {"image": "val2014/COCO_val2014_000000000007.jpg"}, {"text_alignment": "0__A__1"}
    flat = {k: v for k, v in said.items() if k != "text"}
    for entry in (
        {**image, "caption": said, **words},
        {**image, "caption": {**said, **words}},
        {**image, **said, **words},
        {**image, **flat, "caption": "a dog", **words},
    ):
        write_json(tmp_path / "SpokenCOCO_test_unrolled_karpathy.json", {"data": [entry]})
        corpus = spokencoco(tmp_path, "test")
        c = corpus.captions[0]
        assert (c.text, c.speaker, c.uttid, c.words, corpus.image_names[0]) == (
            "a dog",
            "s",
            "x_7_1",
            (("A", 0.0, 1.0),),
            image["image"],
        ) and not corpus.skipped
    for entry, why in (
        ({**image, "caption": [said]}, "a list; an object was expected"),
        ({**image, "captoin": said}, 'no key "caption" (is "captoin" meant?)'),
    ):
        write_json(
            tmp_path / "SpokenCOCO_test_unrolled_karpathy.json", {"data": [entry, {**image, "caption": said}]}
        )
        assert [s.why.startswith(why) for s in spokencoco(tmp_path, "test").skipped] == [True]


@pytest.mark.parametrize(
    "uttid,good",
    [
        ("a_7_1", True),
        ("a_07_1", True),
        ("a_8_1", False),
        ("7_1", True),
        ("free", True),
        ("a_b_7_1", True),
        ("a_x_1", True),
        ("a_0_1", False),
        ("a_²_1", True),
        (f"a_{'9' * 5000}_1", False),
    ],
)
def test_the_image_in_an_uttid(tmp_path, uttid, good):
    entry = {
        "image": "val2014/COCO_val2014_000000000007.jpg",
        "captions": [
            {"text": "t", "speaker": "s", "uttid": uttid, "wav": "x.wav"},
            {"text": "t", "speaker": "s", "uttid": "q", "wav": "q.wav"},
        ],
    }
    write_json(tmp_path / "SpokenCOCO_val.json", {"data": [entry]})
    assert spokencoco(tmp_path, "val").skipped.counts == ({} if good else {"uttid of another image": 1})
    # an image without a number says nothing
    write_json(tmp_path / "SpokenCOCO_val.json", {"data": [{**entry, "image": "val2014/photo.jpg"}]})
    assert not spokencoco(tmp_path, "val").skipped


def test_restval(few, copy):
    for karpathy in ("unrolled", "dataset"):
        with_, without = (
            spokencoco(copy / "spokencoco", "train", karpathy=karpathy, restval=r) for r in (True, False)
        )
        assert (
            with_.n_images == 9
            and without.n_images == 7
            and all(n.startswith("train2014/") for n in without.image_names)
            and not without.skipped
        )
        assert spokencoco(copy / "spokencoco", "val", karpathy=karpathy, restval=False).n_images == 5
    splits = [
        {(c.uttid) for c in spokencoco(copy / "spokencoco", s).captions} for s in ("train", "val", "test")
    ]
    assert (
        not splits[0] & splits[1]
        and not splits[0] & splits[2]
        and not splits[1] & splits[2]
        and sum(map(len, splits)) == sum(len(s) for s in few.values())
    )


# ---- Flickr8k Audio


def facc_edit(copy, name, edit):
    path = copy / "facc" / name
    lines = path.read_text(encoding="utf-8").splitlines()
    edit(lines)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


FACC_FAULTS = [
    (
        "flickr_audio/wav2capt.txt",
        lambda lines: lines.__setitem__(2, lines[2] + " x"),
        {"bad line": 1},
        "wav2capt.txt, line 3: 4 fields; a recording, an image and #number",
    ),
    (
        "flickr_audio/wav2capt.txt",
        lambda lines: lines.__setitem__(2, re.sub("#.*", "1", lines[2])),
        {"bad line": 1},
        "wav2capt.txt, line 3: '1' is no #number",
    ),
    (
        "flickr_audio/wav2capt.txt",
        lambda lines: lines.__setitem__(2, re.sub("#.*", "#two", lines[2])),
        {"bad line": 1},
        "'#two' is no #number",
    ),
    ("flickr_audio/wav2capt.txt", lambda lines: lines.append(lines[0]), {"duplicate": 1}, "was there before"),
    (
        "flickr_audio/wav2capt.txt",
        lambda lines: lines.append("x_0.wav x.jpg #0"),
        {"in no list": 1},
        "x.jpg is in no list of images",
    ),
    (
        "flickr_audio/wav2capt.txt",
        lambda lines: lines.__setitem__(0, "/abs/" + lines[0]),
        {"bad path": 1, "no speaker": 1},
        "the wav ",
    ),
    (
        "flickr_audio/wav2spk.txt",
        lambda lines: lines.pop(0),
        {"no speaker": 1},
        "wav2capt.txt, line 1: train000000_scene_0.wav is not in wav2spk.txt",
    ),
    (
        "flickr_audio/wav2spk.txt",
        lambda lines: lines.__setitem__(1, "a b c"),
        {"bad line": 1, "no speaker": 1},
        "wav2spk.txt, line 2: 3 fields",
    ),
    (
        "flickr_audio/wav2spk.txt",
        lambda lines: lines.append(lines[0]),
        {"duplicate": 1},
        "train000000_scene_0.wav was there before",
    ),
    (
        "Flickr_8k.trainImages.txt",
        lambda lines: lines.append("y.jpg"),
        {"image without captions": 1},
        "Flickr_8k.trainImages.txt, line 10: y.jpg has no usable caption",
    ),
    (
        "Flickr_8k.trainImages.txt",
        lambda lines: lines.append(lines[3]),
        {"duplicate": 1},
        "Flickr_8k.trainImages.txt, line 10: train000003_scene.jpg is in line 4",
    ),
    (
        "Flickr_8k.devImages.txt",
        lambda lines: lines.append("train000001_scene.jpg"),
        {"image in two splits": 1},
        "Flickr_8k.trainImages.txt, line 2: train000001_scene.jpg is also in Flickr_8k.devImages.txt",
    ),
    (
        "Flickr8k.token.txt",
        lambda lines: lines.__setitem__(0, lines[0].replace("\t", " ")),
        {"bad line": 1, "no text": 1},
        "Flickr8k.token.txt, line 1: no tab",
    ),
]


@pytest.mark.parametrize("name,edit,kinds,said", FACC_FAULTS, ids=range(len(FACC_FAULTS)))
def test_facc_faults(few, copy, name, edit, kinds, said):
    facc_edit(copy, name, edit)
    corpus = check_skips(lambda strict: flickr8k_audio(copy / "facc", "train", strict=strict), kinds, said)
    if "image in two splits" in kinds:
        assert "train000001_scene.jpg" not in corpus.image_names and corpus.n_images == 8
        # it is in neither
        assert not {"train000001_scene.jpg"} & set(flickr8k_audio(copy / "facc", "dev").image_names)
        assert not flickr8k_audio(copy / "facc", "test").skipped


def test_facc_line_ends_and_blanks(few, copy, exported):
    "CR LF, blank lines, a byte order mark, no last line end, a list with trailing blanks: the same corpus."
    want = flickr8k_audio(exported / "facc", "train")
    for path in (copy / "facc").rglob("*.txt"):
        text = path.read_text(encoding="utf-8")
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", " \r\n\r\n").rstrip().encode())
    got = flickr8k_audio(copy / "facc", "train")
    assert (
        got.fingerprint == want.fingerprint
        and not got.skipped
        and [c.speaker for c in got.captions] == [c.speaker for c in want.captions]
    )
    assert [c.text for c in got.captions] == [c.text for c in want.captions]


def test_facc_files_that_are_not_there(copy):
    root = copy / "facc"
    (root / "Flickr8k_text").mkdir()
    for p in root.glob("Flickr*.txt"):
        p.rename(root / "Flickr8k_text" / p.name)
    assert flickr8k_audio(root, "val").captions[0].text and splits_of(root) == ["train", "dev", "test"]
    (root / "Flickr8k_text/Flickr8k.token.txt").unlink()
    corpus = flickr8k_audio(root, "dev")
    assert corpus.texts is None and corpus.captions[0].text == "" and not corpus.skipped
    (root / "Flickr8k_text/Flickr_8k.testImages.txt").unlink()
    refused(
        lambda: flickr8k_audio(root, "test"), "no split 'test'; there are train, dev", "Flickr8k_text.zip"
    )
    (root / "flickr_audio/wav2spk.txt").write_bytes(b"")
    refused(lambda: flickr8k_audio(root), "wav2spk.txt is empty")
    (root / "flickr_audio/wav2spk.txt").unlink()
    refused(lambda: flickr8k_audio(root), "wav2spk.txt does not exist")
    (root / "flickr_audio/wav2spk.txt").write_text("a.wav 1")
    (root / "flickr_audio/wav2capt.txt").write_bytes(b"<html>")
    refused(lambda: flickr8k_audio(root), "wav2capt.txt begins with", "web page")
    (root / "flickr_audio/wav2capt.txt").write_bytes(b"a.wav b.jpg #0\n\xff")
    refused(lambda: flickr8k_audio(root), "wav2capt.txt, line 2, byte 15: 0xff is not UTF-8")


@pytest.mark.slow
def test_facc_at_its_size(tmp_path):
    """40,000 lines of the shape of the original's, 8,000 images in lists of 6,000, 1,000 and 1,000; 91
    images have no caption."""
    rng = random.Random(0)
    images = [f"{rng.randrange(10**8, 4 * 10**9)}_{rng.randrange(16**10):010x}.jpg" for _ in range(8091)]
    capts = [f"{im[:-4]}_{k}.wav {im} #{k}" for im in images[:8000] for k in range(5)]
    rng.shuffle(capts)
    (tmp_path / "flickr_audio").mkdir()
    (tmp_path / "flickr_audio/wav2capt.txt").write_text("\n".join(capts) + "\n")
    (tmp_path / "flickr_audio/wav2spk.txt").write_text(
        "".join(f"{c.split()[0]} {1 + i % 183}\n" for i, c in enumerate(capts))
    )
    for name, part in (("train", images[:6000]), ("dev", images[6000:7000]), ("test", images[7000:8000])):
        (tmp_path / f"Flickr_8k.{name}Images.txt").write_text("\n".join(part) + "\n")
    got = {s: flickr8k_audio(tmp_path, s, strict=True) for s in ("train", "dev", "test")}
    assert {s: (c.n_images, len(c), len(c.speakers)) for s, c in got.items()} == {
        "train": (6000, 30_000, 183),
        "dev": (1000, 5000, 183),
        "test": (1000, 5000, 183),
    }
    for c in got.values():
        assert (np.bincount(c.image_of_caption) == 5).all() and all(
            c.image_names[c.image_of_caption[j]][:-4] == c.uttids[j][:-2] for j in range(0, len(c), 97)
        )


# ---- a table of one's own


def table(path, rows, names=None):
    names = names or list(rows[0])
    with open(path, "w", encoding="utf-8", newline="") as f:
        if path.suffix == ".jsonl":
            f.writelines(json.dumps(r) + "\n" for r in rows)
        else:
            csv.writer(f, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(
                [names, *([r.get(n, "") for n in names] for r in rows)]
            )
    return path


ROWS = [
    dict(
        image="i/a.jpg",
        audio="s/1.wav",
        text='one, "two"',
        speaker="Al",
        split="train",
        uttid="u1",
        alignment="0__ONE__1",
    ),
    dict(
        image="i/a.jpg",
        audio="s/2.wav",
        text="été\nline",
        speaker="Bo",
        split="train",
        uttid="u2",
        alignment="",
    ),
    dict(image="i/b.jpg", audio="s/3.wav", text="three", speaker="", split="dev", uttid="u3", alignment=""),
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".CSV"])
def test_tables(tmp_path, suffix):
    path = table(tmp_path / f"mine{suffix}", ROWS)
    train, dev = pairs(path, "train"), pairs(path, "val")
    assert [(c.image, c.uttid, c.text, c.speaker, c.words) for c in train.captions] == [
        (0, "u1", 'one, "two"', "Al", (("ONE", 0.0, 1.0),)),
        (0, "u2", "été\nline", "Bo", ()),
    ]
    assert (
        (dev.split, dev.name, dev.captions[0].speaker, dev.image_path(0))
        == ("dev", "pairs", UNKNOWN, tmp_path / "i/b.jpg")
        and not train.skipped
        and not dev.skipped
    )
    assert (
        splits_of(path) == ["train", "dev"]
        and recognise(path) == "pairs"
        and load_corpus(path, "dev").fingerprint == dev.fingerprint
    )
    refused(lambda: pairs(path), "holds the splits train, dev: say which")
    refused(lambda: pairs(path, "test"), "no split 'test'; there are train, dev")
    assert pairs(path, "train", audio_root=tmp_path.parent).audio_path(0) == tmp_path.parent / "s/1.wav"
    refused(lambda: pairs(path, "train", image_root=tmp_path / "none"), "is no folder")


def test_the_least_table(tmp_path):
    path = table(
        tmp_path / "holiday.csv",
        [dict(image="a.jpg", audio="1.wav", colour="x"), dict(image="a.jpg", audio="2.wav", colour="y")],
    )
    corpus = pairs(path)
    assert (corpus.split, [c.uttid for c in corpus.captions], corpus.texts, corpus.alignments) == (
        "holiday",
        ["1.wav", "2.wav"],
        None,
        None,
    ) and not corpus.skipped
    assert load_corpus(tmp_path).fingerprint == corpus.fingerprint and splits_of(tmp_path) == ["holiday"]
    refused(lambda: pairs(path, "train"), "no split 'train'; there is holiday", "no column 'split'")
    table(tmp_path / "test.csv", [dict(image="b.jpg", audio="3.wav")])  # a table a split
    assert splits_of(tmp_path) == ["holiday", "test"] and load_corpus(tmp_path, "test").n_images == 1
    refused(lambda: load_corpus(tmp_path), "holiday, test: say which")


@pytest.mark.parametrize(
    "text,said",
    [
        (
            "image,wav\na,b\n",
            "has no column 'audio'; its columns are image, wav. Known are image, audio, text",
        ),
        ("imgae,audio\n", "the column 'imgae' is not known; is 'image' meant?"),
        ("image,audio,speakr\n", "'speakr' is not known; is 'speaker' meant?"),
        ("image,audio,image\n", "the column image is there twice"),
        ("image|audio\n", "separated by commas"),
        ("Image,Audio\n", "is 'image' meant?"),
        ("image,audio\n", "not one usable caption"),
        ('image,audio\na,"b\n', "line 2: unexpected end of data"),
        (",\n\n", "has no column 'image'; its columns are"),
        ("", "is empty"),
        ("<html>", "web page"),
    ],
)
def test_tables_that_cannot_be(tmp_path, text, said):
    (tmp_path / "mine.csv").write_text(text)
    if text == ",\n\n":
        said = "not one usable caption"
    refused(lambda: pairs(tmp_path / "mine.csv"), "mine", said)


@pytest.mark.parametrize(
    "text,said",
    [
        ('{"image": "a", "audio": "b"}\n{"image": \n', "mine.jsonl, line 2, column"),
        ('{"image": "a"}\n', "has no column 'audio'"),
        ('{"image": "a", "audio": "b", "txt": ""}', "is 'text' meant?"),
        ("[1]\n", "not one usable caption"),
        ("[[" + "[" * 100_000, "line 1"),
    ],
)
def test_jsonl_that_cannot_be(tmp_path, text, said):
    (tmp_path / "mine.jsonl").write_text(text)
    refused(lambda: pairs(tmp_path / "mine.jsonl"), "mine", said)


def test_rows_left_out(tmp_path):
    good = "a.jpg,1.wav,train\n"
    (tmp_path / "mine.csv").write_text(
        "image,audio,split\n"
        + good
        + "a.jpg,1.wav,train\n\nb.jpg,train\nc.jpg,/3.wav,train\nd.jpg,4.wav,\n,5.wav,train\n"
    )
    check_skips(
        lambda strict: pairs(tmp_path / "mine.csv", "train", strict=strict),
        {"bad line": 1, "duplicate": 1, "bad path": 1, "no split": 1, "missing key": 1},
        "mine.csv, line 3: the uttid",
        "mine.csv, line 5: 2 fields; the heading has 3",
        "line 6: the audio '/3.wav' is absolute",
        "line 7: the column split is empty",
        'line 8: no key "image"; it has ',
    )
    (tmp_path / "mine.jsonl").write_text(
        '{"image": "a", "audio": "b"}\n7\n{"image": "a", "audio": 3}\n{"image": "a", "audoi": "c"}\n{"image":'
        ' "a", "audio": "d", "speaker": 5, "text": [], "alignment": "x"}\n'
    )
    check_skips(
        lambda strict: pairs(tmp_path / "mine.jsonl", strict=strict),
        {
            "not a record": 1,
            "bad path": 1,
            "missing key": 1,
            "no speaker": 1,
            "no text": 1,
            "bad alignment": 1,
        },
        "mine.jsonl, line 2: a number; an object was expected",
        "line 3: the audio is no path: 3",
        "line 4: no key",
        '"audoi"',
        'line 5: "speaker" is a number',
    )


# ---- one call for all


def test_what_is_recognised(exported, copy, tmp_path):
    for name in ("places", "spokencoco", "facc"):
        assert recognise(exported / name) == recognise(str(exported / name)) == name
    files = {
        "places": ["metadata/train_2020.json"],
        "spokencoco": ["SpokenCOCO_val.json", "SpokenCOCO_test_unrolled_karpathy_with_alignments.json"],
        "facc": ["flickr_audio/wav2capt.txt", "flickr_audio"],
    }
    for name, fs in files.items():
        for f in fs:
            assert recognise(exported / name / f) == name
    refused(lambda: recognise(tmp_path / "none"), "none does not exist")
    refused(lambda: recognise(exported / "spokencoco/dataset_coco.json"), "no metadata of a known kind")
    (tmp_path / "empty").mkdir()
    said = refused(lambda: load_corpus(tmp_path / "empty", "train"), "holds no corpus", "Found: nothing")
    for what in (
        "shards-<split>.json",
        "metadata/<split>_2020.json",
        "SpokenCOCO_<split>.json",
        "flickr_audio/wav2capt.txt",
        ".csv",
    ):
        assert what in said
    refused(lambda: recognise(exported / "facc/Flicker8k_Dataset"), "Found: dev000000_scene.jpg", ", …")
    shutil.copytree(copy / "facc/flickr_audio", copy / "places/flickr_audio")
    refused(lambda: recognise(copy / "places"), "more than one corpus: places, facc", "kind=")
    assert load_corpus(copy / "places", "train", kind="places").name == "places"


def test_files_of_official_corpora(few, exported):
    "A metadata file in the place of the folder: its own split."
    for f, split, n in (
        ("places/metadata/dev_seen_2020.json", "dev_seen", "dev"),
        ("spokencoco/SpokenCOCO_test_unrolled_karpathy_with_alignments.json", "test", "test"),
    ):
        corpus = load_corpus(exported / f)
        assert (
            splits_of(exported / f) == [split]
            and corpus.split == split
            and len(present(corpus, strict=True)) == len(few[n])
        )
    # its own val: every second image of Karpathy's val and test
    assert load_corpus(exported / "spokencoco/SpokenCOCO_val.json").n_images == 3 + 3
    assert len(load_corpus(exported / "facc/flickr_audio/wav2capt.txt", "test")) == len(few["test"])


def test_options_and_names(exported):
    with pytest.raises(
        ConfigError,
        match="reader of places has no option 'karpathy'; it has metadata, image_root, audio_root, strict",
    ):
        load_corpus(exported / "places", "train", karpathy="none")
    with pytest.raises(
        ConfigError, match="no kind 'place' of corpus; there are places, spokencoco, facc, pairs, shards"
    ):
        load_corpus(exported / "places", "train", kind="place")
    with pytest.raises(ConfigError, match="no role 'valid' of 'places'"):
        protocol_splits("places", "valid")
    refused(lambda: load_corpus(exported / "facc"), "train, dev, test: say which")
    for asked, given in (
        ("dev-seen", "dev_seen"),
        ("val_seen", "dev_seen"),
        ("TRAIN", "train"),
        ("test-seen", "test_seen"),
    ):
        assert load_corpus(exported / "places", asked).split == given
    for asked, given in (("dev", "val"), ("validation", "val")):
        assert load_corpus(exported / "spokencoco", asked).split == given
    assert (
        _pick_split("val", ["val", "dev"], "x") == "val"
        and load_corpus(exported / "facc", "val").split == "dev"
    )
    refused(lambda: _pick_split("valid", ["val", "dev"], "x"), "there are val, dev")
    assert [protocol_splits(k, "dev") for k in ("places", "spokencoco", "facc", "pairs")] == [
        ("dev_seen", "dev_unseen"),
        ("val",),
        ("dev",),
        ("dev",),
    ]
    assert protocol_splits("places", "test", splits_of(exported / "places")) == ("test_seen",)
    refused(lambda: protocol_splits("places", "test", ["train"]), "none of the splits train is a test set")


def test_shards_are_a_corpus_too(few, exported, tmp_path):
    shards = pytest.importorskip("sgmim.data.shards")
    corpus = places_audio(exported / "places", "dev_seen")
    shards.write_shards(corpus, tmp_path, progress=False)
    assert recognise(tmp_path) == "shards" and splits_of(tmp_path) == ["dev_seen"]
    packed = load_corpus(tmp_path, "dev-seen")
    assert len(packed) == len(corpus) and [c.text for c in packed.captions] == [
        c.text for c in corpus.captions
    ]
    assert load_corpus(tmp_path).split == "dev_seen"
    refused(lambda: load_corpus(tmp_path, "train"), "no split 'train'; there is dev_seen")


def test_columns_are_an_ordinary_corpus(few, exported):
    """Packed while reading, and pickled, selected, fingerprinted like any other; every process hashes it
    the same."""
    corpus = spokencoco(exported / "spokencoco", "train")
    again = pickle.loads(pickle.dumps(corpus))
    assert again.fingerprint == corpus.fingerprint == spokencoco(
        exported / "spokencoco", "train"
    ).fingerprint and [c for c in again.captions] == [c for c in corpus.captions]
    assert (
        corpus.image_of_caption.dtype == np.int64
        and hashlib.sha256(corpus.uttids.bytes.numpy().tobytes()).digest()
        == hashlib.sha256("".join(corpus.uttids).encode()).digest()
    )


# ---- what a training knows its corpus by


def test_the_pairing_is_part_of_the_fingerprint(few, exported):
    "The same files, paired in another way, are another corpus; so they are for the embedded corpus."
    corpus, other = (spokencoco(exported / "spokencoco", "train") for _ in range(2))
    other._image_of_caption = other._image_of_caption.roll(1)
    assert other.fingerprint != corpus.fingerprint
    scenes = load_scenes("train", 9, captions=3, cache=few["train"].folder.parents[1], progress=False)
    first, last = scenes.captions[0], scenes.captions[-1]
    scenes.captions[0] = replace(first, image=last.image)
    assert first.image != last.image and scenes.fingerprint != few["train"].fingerprint


QUICK = TrainConfig(
    epochs=1.0,
    batch_size=4,
    optimiser="adamw",
    lr=1e-3,
    max_seconds=0.5,
    eval_seconds=0.5,
    augment="none",
    save_every=1,
    max_unreadable=0.1,
)


def start(corpus, out, **kwargs):
    return fit(micro(), corpus, config=QUICK, out=out, device="cpu", progress=False, **kwargs)


def own(exported, tmp_path, split="train"):
    "A corpus whose files may be changed."
    if not (tmp_path / "corpus").exists():
        shutil.copytree(exported / "facc", tmp_path / "corpus")
    return load_corpus(tmp_path / "corpus", split)


def same_size(path):
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))


def longer(path):
    path.write_bytes(path.read_bytes() + bytes(100))


@pytest.mark.parametrize(
    "what, change",
    [
        ("image", longer),
        ("audio", same_size),
        pytest.param("image", same_size, marks=pytest.mark.slow),
        pytest.param("audio", longer, marks=pytest.mark.slow),
    ],
)
def test_a_file_replaced_under_its_name_is_noticed(exported, tmp_path, what, change):
    corpus = own(exported, tmp_path)
    start(corpus, tmp_path / "run")
    for k in (0, 3):
        path = getattr(corpus, f"{what}_path")(k)
        whole = path.read_bytes()
        change(path)
        with pytest.raises(CheckpointError, match="the content of the training data has changed"):
            start(own(exported, tmp_path), tmp_path / "run")
        path.write_bytes(whole)
    assert start(own(exported, tmp_path), tmp_path / "run").record["steps"] == len(corpus) // 4


def test_a_corpus_copied_elsewhere_is_the_same(exported, tmp_path):
    "Other folders and other times of the files."
    start(own(exported, tmp_path), tmp_path / "run")
    shutil.copytree(tmp_path / "corpus", tmp_path / "copy", copy_function=shutil.copyfile)
    assert start(load_corpus(tmp_path / "copy", "train"), tmp_path / "run").record["steps"]


def test_a_file_of_the_dev_set_replaced_is_noticed(exported, tmp_path):
    dev = own(exported, tmp_path, "dev")
    start(own(exported, tmp_path), tmp_path / "run", dev=dev)
    same_size(dev.audio_path(2))
    with pytest.raises(CheckpointError, match="the content of dev set dev has changed"):
        start(own(exported, tmp_path), tmp_path / "run", dev=own(exported, tmp_path, "dev"))


def test_a_file_that_was_mended_is_no_other_corpus(exported, tmp_path):
    """Too many could not be read, the message says to mend them: then the run goes on, with a warning and
    a note in its record."""
    corpus = own(exported, tmp_path)
    paths = [corpus.audio_path(j) for j in range(len(corpus))]
    whole = [p.read_bytes() for p in paths]
    for p in paths[1::5]:
        p.write_bytes(p.read_bytes()[:100])
    with pytest.raises(DataError, match="Repair the files"):
        start(corpus, tmp_path / "run")
    for p, b in zip(paths, whole, strict=True):
        p.write_bytes(b)
    assert list((tmp_path / "run").glob("checkpoints/step-*"))
    with pytest.warns(UserWarning, match="The run resumes, since it had unreadable files"):
        fitted = start(own(exported, tmp_path), tmp_path / "run")
    assert fitted.record["files_changed_at"]


def test_shards_are_known_by_their_checksums(exported, tmp_path):
    from sgmim.data import shards

    corpus = own(exported, tmp_path)
    for name in ("a", "b"):
        shards.write_shards(corpus, tmp_path / name, progress=False)
        same_size(corpus.audio_path(1))
    a, b = (load_corpus(tmp_path / name, "train") for name in ("a", "b"))
    assert a.fingerprint == b.fingerprint and a.marks != b.marks
    start(a, tmp_path / "run")
    with pytest.raises(CheckpointError, match="the content of the training data has changed"):
        start(b, tmp_path / "run")


# ---- lists that were written on other systems, or by other programs


def backslash(p):
    return p.replace("/", "\\")


def dotted(p):
    return "./" + p


def doubled(p):
    return p.replace("/", "//")


def inside(p):
    return p.replace("/", "/./")


def blank(p):
    return p + " \t"


def before(p):
    return "  " + p


def quoted(p):
    return f'"{p}"'


def marked(p):
    return f"\u202a{p}\ufeff"


def mixed(p):
    return ".\\" + p.replace("/", "\\\\")


WRITTEN = [backslash, dotted, doubled, inside, blank, before, quoted, marked, mixed]
ROOTS = {
    "places": ("places/images", "places"),
    "spokencoco": ("spokencoco", "spokencoco"),
    "facc": ("facc/Flicker8k_Dataset", "facc/flickr_audio/wavs"),
}


def rewritten(record, how):
    "A record of a JSON file with its paths changed, at any depth."
    if isinstance(record, list):
        return [rewritten(r, how) for r in record]
    if not isinstance(record, dict):
        return record
    return {
        k: how(v) if k in ("wav", "image") and isinstance(v, str) else rewritten(v, how)
        for k, v in record.items()
    }


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize(
    "kind, options",
    [
        ("places", {}),
        ("spokencoco", {"karpathy": "unrolled"}),
        ("spokencoco", {"karpathy": "dataset"}),
        ("spokencoco", {"karpathy": "none"}),
    ],
    ids=str,
)
def test_paths_of_official_lists_in_any_form(exported, copy, kind, options, how):
    "The same corpus, found on the disk, with the same fingerprint."
    for path in (copy / kind).rglob("*.json"):
        if path.name != "dataset_coco.json":
            write_json(path, {"data": rewritten(read_json(path)["data"], how)})
    image_root, audio_root = (exported / r for r in ROOTS[kind])
    want = load_corpus(exported / kind, "train", **options)
    got = load_corpus(copy / kind, "train", image_root=image_root, audio_root=audio_root, **options)
    assert (
        got.fingerprint == want.fingerprint
        and not got.skipped
        and len(present(got, strict=True)) == len(want)
    )
    assert (
        len(got.notes) == 1
        and "is read as" in got.notes[0]
        and ("backslash" in got.notes[0]) == ("\\" in how("a/b"))
    )


@pytest.mark.parametrize(
    "how",
    [lambda w: "wavs\\" + w, lambda w: "./wavs/" + w, lambda w: "wavs//" + w],
    ids=["backslash", "dotted", "doubled"],
)
def test_paths_of_facc_lists_in_any_form(exported, copy, how):
    "One list has the form, the other has not: the speakers, texts and splits still fit."
    facc_edit(
        copy,
        "flickr_audio/wav2capt.txt",
        lambda lines: lines.__setitem__(slice(None), [how(line) for line in lines]),
    )
    facc_edit(
        copy,
        "Flickr_8k.trainImages.txt",
        lambda lines: lines.__setitem__(slice(None), [".\\" + line for line in lines]),
    )
    facc_edit(
        copy,
        "flickr_audio/wav2spk.txt",
        lambda lines: lines.__setitem__(slice(None), ["wavs/" + line for line in lines]),
    )
    got = flickr8k_audio(
        copy / "facc",
        "train",
        image_root=exported / "facc/Flicker8k_Dataset",
        audio_root=exported / "facc/flickr_audio",
    )
    want = flickr8k_audio(exported / "facc", "train")
    assert (
        len(present(got, strict=True)) == len(want)
        and not got.skipped
        and [c.speaker for c in got.captions] == [c.speaker for c in want.captions]
    )
    assert [c.text for c in got.captions] == [c.text for c in want.captions]


def media(folder, rows):
    "Files for the pairs (image, audio), as they are named; no pixels, no sound."
    for pair in rows:
        for name in pair:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(bytes(99))


PLAIN = [(f"images/p{k}.jpg", f"wavs/s{k}.wav") for k in range(4)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("how", WRITTEN)
def test_paths_of_a_table_in_any_form(tmp_path, suffix, how):
    media(tmp_path, PLAIN)
    want = pairs(table(tmp_path / "t.csv", [dict(image=i, audio=a) for i, a in PLAIN]))
    got = pairs(
        (
            table(tmp_path / f"other/t{suffix}", [dict(image=how(i), audio=how(a)) for i, a in PLAIN])
            if (tmp_path / "other").mkdir() is None
            else None
        ),
        image_root=tmp_path,
        audio_root=tmp_path,
    )
    assert (
        got.fingerprint == want.fingerprint
        and list(got.uttids) == list(want.uttids)
        and len(present(got, strict=True)) == 4
    )


def test_a_backslash_can_be_part_of_a_name(tmp_path):
    "What is there as it is listed is taken; so are blanks."
    rows = [("a\\b.jpg", "wavs/x .wav"), ("c.jpg ", "wavs/a\\b.wav")]
    media(tmp_path, rows)
    corpus = pairs(table(tmp_path / "t.csv", [dict(image=i, audio=a) for i, a in rows]))
    assert (
        [*corpus.image_names, *corpus.audio_names] == ["a\\b.jpg", "c.jpg ", "wavs/x .wav", "wavs/a\\b.wav"]
        and len(present(corpus, strict=True)) == 2
        and not corpus.notes
    )


def test_two_forms_of_a_path_are_one_picture(tmp_path):
    rows = [("images/p0.jpg", "a.wav"), ("images\\p0.jpg", "b.wav"), ("./images/p1.jpg", "c.wav")]
    media(tmp_path, PLAIN)
    corpus = pairs(table(tmp_path / "t.csv", [dict(image=i, audio=a) for i, a in rows]))
    assert list(corpus.image_names) == [
        "images/p0.jpg",
        "images/p1.jpg",
    ] and corpus.image_of_caption.tolist() == [0, 0, 1]


DISK = {
    "suffix": ("s{}.wav", "s{}.WAV", "p{}.JPG", "p{}.jpg"),
    "stem": ("s{}.wav", "S{}.WAV", "P{}.jpg", "p{}.jpg"),
    "jpeg": ("s{}.wav", "s{}.wav", "p{}.jpg", "p{}.jpeg"),
    "jpg": ("s{}.wav", "s{}.wav", "p{}.JPEG", "p{}.jpg"),
    "nfc": ("\u00e9{}.wav", "e\u0301{}.wav", "\u00fc{}.jpg", "u\u0308{}.jpg"),
    "nfd": ("e\u0301{}.wav", "\u00e9{}.wav", "u\u0308{}.jpg", "\u00fc{}.jpg"),
    "hangul": ("\uac00{}.wav", "\u1100\u1161{}.wav", "p{}.jpg", "p{}.jpg"),
}


@pytest.mark.parametrize("listed_sound, sound, listed_picture, picture", DISK.values(), ids=DISK)
def test_files_that_the_disk_spells_otherwise(tmp_path, listed_sound, sound, listed_picture, picture):
    media(tmp_path, [("Images/" + picture.format(k), "wavs/" + sound.format(k)) for k in range(3)])
    corpus = pairs(
        table(
            tmp_path / "t.csv",
            [
                dict(image="images/" + listed_picture.format(k), audio="Wavs/" + listed_sound.format(k))
                for k in range(3)
            ],
        )
    )
    again = pickle.loads(pickle.dumps(corpus))
    assert len(present(corpus, strict=True)) == 3 and corpus.image_names[
        0
    ] == "images/" + listed_picture.format(0)  # the fingerprint is that of the list
    for c in (corpus, again, present(corpus)):
        assert c.audio_path(2) == tmp_path / "wavs" / sound.format(2) and c.image_path(
            1
        ) == tmp_path / "Images" / picture.format(1)


def test_another_listed_file_never_stands_in(tmp_path):
    """Names that differ in case alone can be two recordings; two files alike, or two lines that mean one
    file, are no answer."""
    media(tmp_path, [("p.jpg", "a.wav"), ("p.jpg", "B.wav"), ("p.jpg", "b.WAV"), ("p.jpg", "c.WAV")])
    corpus = pairs(
        table(
            tmp_path / "t.csv",
            [dict(image="p.jpg", audio=a) for a in ("a.wav", "A.wav", "b.wav", "c.wav", "C.wav", "maße.wav")],
        )
    )
    assert list(present(corpus).audio_names) == ["a.wav"] and corpus.audio_path(1) == tmp_path / "A.wav"
    said = {s.where: s.why for s in present(corpus).skipped}
    assert (
        "there are B.wav and b.WAV, and it is not clear" in said["b.wav"]
        and "there is a.wav, and" in said["A.wav"]
        and said["maße.wav"].endswith("does not exist")
    )


def test_the_root_is_found_by_another_spelling(tmp_path):
    (tmp_path / "a").mkdir()
    media(tmp_path / "b", [("x.JPG", "x.WAV")])
    assert _find_root([tmp_path / "a", tmp_path / "b"], ["x.jpg"]) == tmp_path / "b"


# ---- absolute paths


def absolute(tmp_path, how, image_base, audio_base, suffix=".csv", **options):
    "The table in tmp/c of pairs that are below the two bases."
    rows = [dict(image=how(image_base / i), audio=how(audio_base / a)) for i, a in PLAIN]
    return pairs(table(tmp_path / f"c/t{suffix}", rows), **options)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize(
    "how",
    [
        str,
        lambda p: p.as_uri(),
        lambda p: "file://localhost" + str(p),
        lambda p: str(p).replace("/c/", "/c/./"),
        lambda p: f'"{p}"',
        lambda p: f"{p} ",
    ],
    ids=["path", "uri", "localhost", "dot", "quoted", "blank"],
)
def test_absolute_paths_below_the_root(tmp_path, suffix, how):
    "They become relative: the corpus is the same as with relative paths, wherever it lies."
    media(tmp_path / "c", PLAIN)
    corpus = absolute(tmp_path, how, tmp_path / "c", tmp_path / "c", suffix)
    want = pairs(table(tmp_path / "c/t.csv", [dict(image=i, audio=a) for i, a in PLAIN]))
    assert (
        corpus.fingerprint == want.fingerprint
        and list(corpus.uttids) == list(want.uttids)
        and not corpus.skipped
        and len(present(corpus, strict=True)) == 4
    )


def test_absolute_paths_below_the_given_roots(tmp_path):
    (tmp_path / "c").mkdir()
    media(tmp_path / "x", PLAIN)
    refused(
        lambda: absolute(tmp_path, str, tmp_path / "x", tmp_path / "x"),
        f"and not below {tmp_path}/c",
        "--image-root DIR",
    )
    roots = dict(image_root=tmp_path / "x/images", audio_root=tmp_path / "x")
    corpus = absolute(tmp_path, str, tmp_path / "x", tmp_path / "x", **roots)
    assert (
        corpus.image_names[0] == "p0.jpg"
        and corpus.audio_names[0] == "wavs/s0.wav"
        and len(present(corpus, strict=True)) == 4
    )
    (tmp_path / "link").symlink_to(tmp_path / "x")
    for base in ("x", "link"):  # whichever of them is listed, and whichever is named
        corpus = (
            absolute(
                tmp_path,
                str,
                tmp_path / "link",
                tmp_path / "x",
                image_root=tmp_path / base,
                audio_root=tmp_path / base,
            )
            if base == "link"
            else corpus
        )
        assert len(present(corpus, strict=True)) == 4


def test_absolute_and_relative_paths_in_one_table(tmp_path):
    media(tmp_path, PLAIN)
    rows = [
        dict(image=str(tmp_path / i) if k % 2 else i, audio=a if k % 2 else str(tmp_path / a))
        for k, (i, a) in enumerate(PLAIN + PLAIN[:1])
    ]
    rows[-1]["audio"] = PLAIN[1][1]
    corpus = pairs(table(tmp_path / "t.csv", rows))
    assert (
        corpus.n_images == 4
        and len(present(corpus, strict=True)) == 5
        and all(n[0] != "/" for n in [*corpus.image_names, *corpus.audio_names, *corpus.uttids])
    )


@pytest.mark.parametrize("kind", ["places", "spokencoco"])
def test_absolute_paths_of_official_lists(exported, copy, kind):
    base = {r: exported / p for r, p in zip(("image", "wav"), ROOTS[kind], strict=True)}

    def full(records):
        if isinstance(records, list):
            return [full(r) for r in records]
        if not isinstance(records, dict):
            return records
        return {
            k: str(base[k] / v) if k in base and isinstance(v, str) else full(v) for k, v in records.items()
        }

    for path in (copy / kind).rglob("*.json"):
        if path.name != "dataset_coco.json":
            write_json(path, {"data": full(read_json(path)["data"])})
    got = load_corpus(copy / kind, "train", image_root=base["image"], audio_root=base["wav"])
    assert got.fingerprint == load_corpus(exported / kind, "train").fingerprint and len(
        present(got, strict=True)
    ) == len(got)


OUT = [
    "/etc/passwd",
    "{root}/../x.wav",
    "{root}/wavs/../../x.wav",
    "{root}/out/x.wav",
    "{root}2/x.wav",
    "file:///etc/passwd",
    "//server/share/x.wav",
    "\\\\server\\share\\x.wav",
    "C:\\data\\x.wav",
    "d:/x.wav",
    "file:///C:/x.wav",
    "..\\x.wav",
    "wavs\\..\\..\\x.wav",
    " ../x.wav",
    '"../x.wav"',
    "\\x.wav",
    "https://example.org/x.wav",
    "{root}/wavs/leads_out.wav",
    "/",
    " ",
]


@pytest.mark.parametrize("path", OUT)
def test_paths_that_lead_out(tmp_path, path):
    root = tmp_path / "c"
    media(root, PLAIN)
    media(tmp_path, [("x.jpg", "x.wav")])
    (root / "out").symlink_to(tmp_path)
    (root / "wavs/leads_out.wav").symlink_to(tmp_path / "x.wav")
    corpus = pairs(
        table(
            root / "t.csv",
            [
                dict(image="images/p0.jpg", audio="wavs/s0.wav", uttid="a"),
                dict(image="images/p1.jpg", audio=path.format(root=root), uttid="b"),
            ],
        )
    )
    assert (
        corpus.skipped.counts == {"bad path": 1}
        and len(corpus) == 1
        and "line 3: the audio" in str(corpus.skipped)
    )


def test_the_option_is_said_once(tmp_path):
    (tmp_path / "c").mkdir()
    said = refused(
        lambda: absolute(tmp_path, str, tmp_path / "x", tmp_path / "x"),
        "4 left out (4 bad path)",
        "image_root=DIR",
    )
    assert said.count("--image-root") == said.count("--audio-root") == said.count("Remedy") == 1
    assert "List the paths relative" in refused(
        lambda: absolute(tmp_path, lambda p: "C:" + str(p).replace("/", "\\"), tmp_path, tmp_path),
        "a path of Windows",
    )


# ---- tables as programs write them

TABLES = {
    "crlf": b"image,audio\r\na.jpg,1.wav\r\n",
    "cr": b"image,audio\ra.jpg,1.wav\r",
    "bom": b"\xef\xbb\xbfimage,audio\na.jpg,1.wav\n",
    "semicolon": b"image;audio;text\na.jpg;1.wav;one, two\n",
    "quoted": b'"image";"audio"\n"a.jpg";"1.wav"\n',
    "sep": b"sep=;\r\nimage;audio\r\na.jpg;1.wav\r\n",
    "tabs": b"image\taudio\na.jpg\t1.wav\n",
    "blank lines": b"\n\nimage,audio\n\na.jpg,1.wav\n\n",
}


@pytest.mark.parametrize("content", TABLES.values(), ids=TABLES)
def test_tables_of_spreadsheets(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    corpus = pairs(tmp_path / "t.csv")
    assert (
        list(corpus.image_names) == ["a.jpg"] and list(corpus.audio_names) == ["1.wav"] and not corpus.skipped
    )


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_tables_in_other_encodings(tmp_path, suffix, encoding):
    text = (
        table(tmp_path / f"t{suffix}", [dict(image="é.jpg", audio="1.wav")])
        .read_text(encoding="utf-8")
        .replace("\\u00e9", "é")
    )
    (tmp_path / f"t{suffix}").write_bytes(text.encode(encoding))
    refused(
        lambda: load_corpus(tmp_path / f"t{suffix}"),
        f"t{suffix}",
        "CSV UTF-8",
        "the file is UTF-16" if "16" in encoding else "not UTF-8",
    )


# ---- files of the operating system

APPLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(50)
BESIDE = [
    "._{}",
    ".{}",
    ".~lock.{}#",
    "~${}",
    "{}~",
    ".#{}",
    ".{}.swp",
    "Thumbs.db",
    "desktop.ini",
    ".DS_Store",
]


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("kind", ["places", "spokencoco", "facc", "csv", "tsv", "jsonl"])
def test_files_of_the_system_are_no_lists(copy, tmp_path, kind, beside):
    folder = copy / kind
    if kind in ("csv", "tsv", "jsonl"):
        folder.mkdir()
        table(folder / f"pairs.{kind}", [dict(image="a.jpg", audio="1.wav", split="train")])
    want = splits_of(folder)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        (path.parent / beside.format(path.name)).write_bytes(APPLE)
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
        shutil.copytree(
            tmp_path / "copy" / kind,
            folder / name,
            ignore=lambda f, names: [n for n in names if n[0] in "@_."],
        )
    assert (
        splits_of(folder) == want
        and recognise(folder) == (kind if kind in ROOTS else "pairs")
        and len(load_corpus(folder, "train"))
    )


@pytest.mark.parametrize(
    "name",
    ["__MACOSX", "@eaDir", ".ipynb_checkpoints", ".Trash-1000", "$RECYCLE.BIN", "lost+found", "#recycle"],
)
def test_folders_of_the_system_are_no_roots(tmp_path, name):
    media(tmp_path / name, PLAIN)
    (tmp_path / "other").mkdir()
    corpus = pairs(table(tmp_path / "t.csv", [dict(image=i, audio=a) for i, a in PLAIN]))
    assert (corpus.image_root, corpus.audio_root) == (tmp_path, tmp_path)
    refused(lambda: present(corpus), "missing", "--audio-root DIR")


def test_what_macos_keeps_beside_a_file(tmp_path):
    for name in ("._pairs.csv", "pairs.csv", "train_2020.json"):
        (tmp_path / name).write_bytes(APPLE)
    for name in ("._pairs.csv", "pairs.csv", "train_2020.json"):
        refused(lambda name=name: load_corpus(tmp_path / name), name, "AppleDouble")


def test_a_folder_with_lists_of_its_own_is_no_root(tmp_path):
    "Another corpus inside the folder: its files of the same names are not taken."
    media(tmp_path / "other", PLAIN)
    table(tmp_path / "other/pairs.csv", [dict(image=i, audio=a) for i, a in PLAIN])
    corpus = pairs(table(tmp_path / "t.csv", [dict(image=i, audio=a) for i, a in PLAIN]))
    assert corpus.audio_root == corpus.image_root == tmp_path
    (tmp_path / "other/pairs.csv").unlink()
    assert pairs(tmp_path / "t.csv").audio_root == tmp_path / "other"


def test_splits_that_are_numbers_stay_apart(tmp_path):
    table(tmp_path / "t.jsonl", [dict(image="a", audio=f"{k}.wav", split=k % 2) for k in range(4)])
    assert splits_of(tmp_path / "t.jsonl") == ["0", "1"] and len(load_corpus(tmp_path / "t.jsonl", "1")) == 2


def test_semicolons_in_a_table_whose_lines_end_with_cr(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"image;audio;text\ra.jpg;1.wav;one, two\r")
    assert list(pairs(tmp_path / "t.csv").audio_names) == ["1.wav"]


# ---- one recording for two pictures; keys that are misspelt


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_one_recording_for_two_pictures(tmp_path, suffix):
    "Both pairs stay, with names of their own; the same pair twice is a duplicate."
    rows = [
        dict(image=i, audio=a)
        for i, a in (("a", "s"), ("b", "s"), ("a", "s"), ("b", "s"), ("b", "./s"), ("c", "t"))
    ]
    corpus = pairs(table(tmp_path / f"t{suffix}", rows))
    assert (
        list(corpus.uttids) == ["s", "s b", "t"]
        and [corpus.image_names[c.image] for c in corpus.captions] == ["a", "b", "c"]
        and corpus.skipped.counts == {"duplicate": 3}
    )


SLIPS = ["captons", "caption_s", "Captions", "captionss", "captionns", "CAPTIONS"]


@pytest.mark.parametrize("key", SLIPS)
@pytest.mark.parametrize("karpathy", ["none", "dataset"])
def test_all_captions_of_a_misspelt_key_are_counted(copy, key, karpathy):
    def change(data):
        data[0][key] = data[0].pop("captions") * 2

    coco_change(copy, change)
    n = len(read_json(copy / "spokencoco/SpokenCOCO_train.json")["data"][0][key])
    corpus = spokencoco(copy / "spokencoco", "train", karpathy=karpathy)
    assert (
        corpus.skipped.counts == {"missing key": n}
        and n > 2
        and f'no key "captions" (is "{key}" meant?)' in str(corpus.skipped)
    )


@pytest.mark.parametrize(
    "kind, old, new",
    [
        ("places", "text_alignment", "text_alignmnt"),
        ("places", "scenelabel", "scene_label"),
        ("places", "text_alignment", "Text_Alignment"),
        ("spokencoco", "text_alignment", "textalignment"),
    ],
)
def test_optional_keys_that_are_misspelt(copy, kind, old, new):
    path = (
        copy
        / kind
        / {
            "places": "metadata/train_2020.json",
            "spokencoco": "SpokenCOCO_train_unrolled_karpathy_with_alignments.json",
        }[kind]
    )
    data = read_json(path)["data"]
    for r in [data[1], data[1].get("caption", {})]:
        if old in r:
            r[new] = r.pop(old)
    if kind == "spokencoco":
        data[1]["caption"][new] = data[1].pop(new, "") or data[1]["caption"].pop(new)
    write_json(path, {"data": data})
    corpus = load_corpus(copy / kind, "train")
    assert (
        corpus.skipped.counts == {"misspelt key": 1}
        and f'no key "{old}" (is "{new}" meant?)' in str(corpus.skipped)
        and not corpus.skipped.left_out
    )


@pytest.mark.parametrize(
    "old, new", [("speaker", "speakr"), ("text", "txt"), ("uttid", "utt_id"), ("alignment", "alignmnt")]
)
def test_misspelt_keys_in_a_line_of_jsonl(tmp_path, old, new):
    full = dict(image="a", audio="s", speaker="x", text="t", uttid="u", alignment="0__A__1")
    corpus = pairs(
        table(
            tmp_path / "t.jsonl",
            [
                full,
                {new if k == old else k: v for k, v in full.items()}
                | {"audio": "r"}
                | ({"uttid": "v"} if old != "uttid" else {}),
            ],
        )
    )
    assert (
        len(corpus) == 2
        and corpus.skipped.counts == {"misspelt key": 1}
        and f'line 2: no key "{old}" (is "{new}" meant?)' in str(corpus.skipped)
    )


def test_keys_of_karpathys_listing(copy):
    changed(
        copy / "spokencoco/dataset_coco.json",
        lambda images: images[1].update(file_name=images[1].pop("filename")),
        "images",
    )
    refused(
        lambda: spokencoco(copy / "spokencoco", "test", karpathy="dataset"),
        "images[1]",
        'no key "filename" (is "file_name" meant?)',
    )


# ---- FACC: what its names say


@pytest.mark.parametrize(
    "line, kind, said",
    [
        (
            "train000000_scene_7.wav train000000_scene.jpg #8",
            "wrong number",
            "train000000_scene_7.wav ends in _7, and its line says #8",
        ),
        (
            "train000000_scene_7.wav train000001_scene.jpg #7",
            "recording of another image",
            "is of train000000_scene.jpg, and is listed under train000001_scene.jpg",
        ),
    ],
)
def test_facc_names_against_their_lines(copy, line, kind, said):
    facc_edit(copy, "flickr_audio/wav2capt.txt", lambda lines: lines.append(line))
    facc_edit(copy, "flickr_audio/wav2spk.txt", lambda lines: lines.append("train000000_scene_7.wav 1"))
    n = len(flickr8k_audio(copy / "facc", "train"))
    corpus = flickr8k_audio(copy / "facc", "train")
    assert (
        corpus.skipped.counts == {kind: 1}
        and said in str(corpus.skipped)
        and bool(corpus.skipped.left_out) == (kind != "wrong number")
    )
    assert kind != "wrong number" or corpus.captions[n - 1].text == ""  # either text may be the wrong one


@pytest.mark.parametrize("path", ["", "flickr_audio", "flickr_audio/wav2capt.txt"])
def test_flickr_audio_without_the_lists(copy, path):
    for p in (copy / "facc").glob("Flickr_8k.*"):
        p.unlink()
    for call in (lambda: splits_of(copy / "facc" / path), lambda: load_corpus(copy / "facc" / path, "train")):
        refused(call, "holds no Flickr_8k.trainImages.txt", "put them into", "facc")
