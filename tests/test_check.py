"""The corpus check: planted faults, each found with the right severity; clean corpora of every layout
pass."""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT
from PIL import Image

from sgmim.core import ConfigError, DataError, read_json, write_json
from sgmim.data import check
from sgmim.data.check import (
    EXPECTED,
    CorpusReport,
    _bound,
    _check_counts,
    _check_lists,
    _check_overlap,
    _draw,
    _seek,
    check_data,
    report_figure,
)
from sgmim.data.corpora import load_corpus
from sgmim.data.corpus import Columns, Corpus, present
from sgmim.data.shards import write_shards
from sgmim.scenes.corpus import export_facc, export_places, export_spokencoco, load_scenes

pytestmark = pytest.mark.filterwarnings("ignore:.*left out")

LAYOUTS = {
    "places": {
        "train": "train",
        "dev_seen": "dev",
        "dev_unseen": "unseen dev",
        "test_seen": "test",
        "test_unseen": "unseen",
    },
    "spokencoco": {"train": "train", "val": "dev", "test": "test"},
    "facc": {"train": "train", "dev": "dev", "test": "test"},
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    "{layout: folder}: the same small corpus in every layout, never to be changed."
    home = tmp_path_factory.mktemp("clean")
    made = {
        name: load_scenes(split, n, captions=2, cache=home / "cache", seed=seed, progress=False)
        for name, split, n, seed in (
            ("train", "train", 24, 0),
            ("dev", "dev", 8, 0),
            ("test", "test-seen", 8, 0),
            ("unseen", "test-unseen", 8, 0),
            ("unseen dev", "test-unseen", 8, 1),
        )
    }
    for layout, export in (
        ("places", export_places),
        ("spokencoco", export_spokencoco),
        ("facc", export_facc),
    ):
        export({split: made[name] for split, name in LAYOUTS[layout].items()}, home / layout)
    for path in (home / "places/metadata").iterdir():
        write_json(path, {"data": read_json(path)["data"]})  # no base paths: the copies have to stand alone
    facc = home / "facc"
    with open(facc / "mine.csv", "w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["image", "audio", "speaker", "split"])
        for split in ("train", "dev", "test"):
            c = load_corpus(facc, split, kind="facc")
            rows.writerows(
                [
                    f"Flicker8k_Dataset/{c.image_names[x.image]}",
                    f"flickr_audio/wavs/{c.audio_names[j]}",
                    x.speaker,
                    split,
                ]
                for j, x in enumerate(c.captions)
            )
    (home / "pairs").mkdir()
    shutil.move(facc / "mine.csv", home / "pairs/mine.csv")
    for folder in ("flickr_audio/wavs", "Flicker8k_Dataset"):
        shutil.copytree(facc / folder, home / "pairs" / folder)
    for split in ("train", "dev", "test"):
        write_shards(load_corpus(facc, split), home / "shards", progress=False)
    return {layout: home / layout for layout in (*LAYOUTS, "pairs", "shards")}


@pytest.fixture
def copy(clean, tmp_path):
    "A function: layout -> a copy of that corpus, to be spoiled."
    return lambda layout: Path(shutil.copytree(clean[layout], tmp_path / layout))


def checked(folder, **options):
    return check_data(folder, **options)


def matching(report, severity, words):
    return [f for f in report.of(severity) if words in f.what]


def wavs(folder, split="test"):
    c = load_corpus(folder, split)
    return [c.audio_path(j) for j in range(len(c))]


def images(folder, split="test"):
    c = load_corpus(folder, split)
    return [c.image_path(i) for i in range(c.n_images)]


# ---- clean corpora


@pytest.mark.parametrize("layout", [*LAYOUTS, "pairs", "shards"])
def test_a_clean_corpus_passes(clean, layout):
    r = checked(clean[layout])
    assert r.ok and r.kind == layout and r.of("error") == r.of("warning") == [], str(r)
    assert set(r.stats["splits"]) == set(LAYOUTS.get(layout, LAYOUTS["facc"]))
    for split, s in r.stats["splits"].items():
        assert s["captions"] == sum(k * n for k, n in s["captions_per_image"].items()) and s["images"] == sum(
            s["captions_per_image"].values()
        )
        assert s["opened"] == {"recordings": s["captions"], "images": s["images"]} and s["rest"] == [0, 0]
        assert (
            s["rate"] == {16000: s["captions"]}
            and s["image_mode"] == {"RGB": s["images"]}
            and s["seconds"]["all"]
        )
        assert (
            0 < s["seconds"]["min"] <= s["seconds"]["median"] <= s["seconds"]["max"] < 4
            and s["seconds"]["hours"] > 0
        )
        assert (
            s["speakers"] == len(r.per_speaker[split])
            and r.per_speaker[split].sum() == s["captions"]
            and s["without_speaker"] == 0
        )
        if split != "train":
            assert s["shared_with_train"]["images"] == 0
    text = str(r)
    assert (
        len(text.splitlines()) <= 60
        and text.splitlines()[-1] == r.verdict
        and "ready to use (0 errors" in r.verdict
    )
    assert json.loads(json.dumps(r.to_dict()))["ok"] is True
    if layout in LAYOUTS:
        assert matching(r, "note", "official")  # it is a subset, and said to be one


def test_the_figure(clean):
    fig = report_figure(checked(clean["places"], splits=["train", "test_seen"]))
    assert [len(ax.get_lines()) > 0 for ax in fig.axes] == [True, True] and "cut in training" in fig.axes[
        0
    ].texts[0].get_text()
    report_figure(CorpusReport("."))  # a report without numbers is no error
    import matplotlib.pyplot as plt

    plt.close("all")


# ---- files: the same faults in every layout


def silent(path):
    soundfile.write(path, np.zeros(16000, np.float32), 16000)


def telephone(path):
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16000), 8000)


def stereo(path):
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (44100, 2)), 44100)


def tiny(path):
    soundfile.write(path, np.full(300, 0.1, np.float32), 16000)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def web_page(path):
    path.write_bytes(b"<html>404 not found</html>" * 10)


def grey(path):
    Image.open(path).convert("L").save(path, "JPEG")


def strip(path):
    Image.new("RGB", (4000, 20)).save(path, "JPEG")


SOUND_FAULTS = [
    (Path.unlink, "error", "recordings missing"),
    (lambda p: p.write_bytes(b""), "error", "recordings empty"),
    (lambda p: p.write_bytes(p.read_bytes()[:44]), "error", "recordings empty"),
    (cut, "error", "opened recordings unreadable"),
    (web_page, "error", "opened recordings unreadable"),
    (tiny, "error", "opened recordings unreadable"),
    (silent, "warning", "opened recordings silent"),
    (telephone, "warning", "sampled below 16,000 Hz"),
    (stereo, "note", "several channels"),
]
IMAGE_FAULTS = [
    (Path.unlink, "error", "images missing"),
    (lambda p: p.write_bytes(b""), "error", "images empty"),
    (cut, "error", "opened images unreadable"),
    (web_page, "error", "opened images unreadable"),
    (strip, "error", "opened images unreadable"),
    (grey, "note", "not RGB"),
]


@pytest.mark.parametrize(
    "layout, files, faults",
    [
        pytest.param(layout, files, faults, id=f"{layout}-{name}", marks=pytest.mark.slow if slow else ())
        for layout, slow_ones in (
            ("places", ["images"]),
            ("spokencoco", ["recordings"]),
            ("facc", ["recordings", "images"]),
            ("pairs", ["recordings"]),
        )
        for name, files, faults in (("recordings", wavs, SOUND_FAULTS), ("images", images, IMAGE_FAULTS))
        for slow in (name in slow_ones,)
    ],
)
def test_a_bad_file_is_found(copy, layout, files, faults):
    folder = copy(layout)
    split = [s for s in LAYOUTS.get(layout, LAYOUTS["facc"]) if "test" in s][0]
    path = files(folder, split)[3]
    good = path.read_bytes()
    for spoil, severity, words in faults:
        spoil(path)
        r = checked(folder, splits=[split])
        assert matching(r, severity, words), f"{words}\n{r}"
        (found,) = matching(r, severity, words)
        assert found.do and found.what.startswith(f"{split}: 1 of ") and r.ok == (severity != "error"), str(r)
        if words.endswith(("missing", "empty", "unreadable")):
            assert len(found.where) == 1 and path.stem in found.where[0]
        path.write_bytes(good)
    assert checked(folder, splits=[split]).ok
    stereo(wavs(folder, split)[0])
    (found,) = matching(checked(folder, splits=[split]), "note", "not sampled at 16,000 Hz")
    assert found.what.endswith("(44,100 Hz: 1)")


def test_a_few_empty_recordings_are_a_warning(tmp_path):
    "As distributed, Places Audio has some: up to one in a hundred."
    soundfile.write(tmp_path / "0.wav", np.full(800, 0.1), 16000)
    for j in range(1, 200):
        shutil.copy(tmp_path / "0.wav", tmp_path / f"{j}.wav")
    Image.new("RGB", (300, 300), "red").save(tmp_path / "a.jpg")
    (tmp_path / "mine.csv").write_text("image,audio\n" + "".join(f"a.jpg,{j}.wav\n" for j in range(200)))
    for n, severity in ((2, "warning"), (3, "error")):
        for j in range(n):
            (tmp_path / f"{j}.wav").write_bytes(b"")
        r = checked(tmp_path)
        assert len(matching(r, severity, f"mine: {n} of 200 recordings empty")) == 1 and r.ok == (
            severity == "warning"
        )
        with pytest.warns(UserWarning, match="left out"):
            assert len(present(load_corpus(tmp_path))) == 200 - n  # what the advice promises


def test_the_examples_are_few_and_the_report_short(copy):
    folder = copy("places")
    rng = random.Random(0)
    for split in LAYOUTS["places"]:
        for path in wavs(folder, split)[2:]:
            rng.choice([Path.unlink, cut, silent, telephone, web_page, lambda p: p.write_bytes(b"")])(path)
        for path in images(folder, split)[2:]:
            rng.choice([Path.unlink, cut, grey, strip])(path)
    data = read_json(folder / "metadata/train_2020.json")
    for k, change in enumerate(
        ({"wav": "/x.wav"}, {"uttid": None}, {"image": "../x.jpg"}, {"text_alignment": "x"}, {"speaker": 3})
    ):
        data["data"][k] |= change
    write_json(folder / "metadata/train_2020.json", data)
    r = checked(folder)
    assert (
        not r.ok
        and len(r.of("error")) > 15
        and len(str(r).splitlines()) <= 60
        and str(r).splitlines()[-1].startswith("Verdict: NOT READY")
    )
    assert (
        "more lines" in str(r)
        and all(len(f.where) <= 3 for f in r.findings)
        and len(r.to_dict()["findings"]) == len(r.findings)
    )


# ---- where the files are


def test_a_moved_folder_is_found_and_the_option_named(copy, tmp_path):
    folder = copy("facc")
    there = tmp_path / "some where/data/vision/torralba/images256"
    there.parent.mkdir(parents=True)
    (folder / "Flicker8k_Dataset").rename(there)
    r = checked(folder, splits=["dev"])
    (found,) = matching(r, "error", "dev: all 8 images missing")
    assert f"add --image-root '{there}'" in found.do
    assert checked(folder, splits=["dev"], image_root=there).ok
    (folder / "flickr_audio/wavs").rename(tmp_path / "sounds")
    (found,) = matching(checked(folder, splits=["dev"], image_root=there), "error", "recordings missing")
    assert f"add --audio-root {tmp_path / 'sounds'}" in found.do
    assert checked(folder, splits=["dev"], image_root=there, audio_root=tmp_path / "sounds").ok
    wrong = checked(folder, image_root=tmp_path / "nowhere")
    # once, not for each split
    assert not wrong.ok and [f.what for f in wrong.of("error") if "is no folder" in f.what] == [
        f"train: image_root {tmp_path / 'nowhere'} is no folder"
    ]


def test_a_few_missing_files_are_not_looked_for(copy):
    "The folder is the right one: another that happens to hold such a name is no advice."
    folder = copy("facc")
    path = images(folder)[0]
    (folder.parent / "backup").mkdir()
    path.rename(folder.parent / "backup" / path.name)
    (found,) = matching(checked(folder, splits=["test"]), "error", "1 of 8 images missing")
    assert "backup" not in found.do and found.do.startswith("copy them there")


def test_files_in_other_folders_than_listed(copy):
    folder = copy("places")
    (folder / "flat").mkdir()
    for path in images(folder, "test_seen"):
        path.rename(folder / "flat" / path.name)
    (found,) = matching(checked(folder, splits=["test_seen"]), "error", "images missing")
    assert "the folders in between are not as listed" in found.do and str(folder / "flat") in found.do


def test_the_search_is_bounded(tmp_path):
    deep = tmp_path
    for k in range(30):
        deep = deep / f"d{k}"
    deep.mkdir(parents=True)
    (deep / "x.wav").write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path)
    start = time.monotonic()
    assert _seek(["x.wav"], [tmp_path]) == (None, None) and time.monotonic() - start < 3
    assert _seek(["x.wav"], [tmp_path], depth=40) == (deep, None)
    assert _seek(["x.wav"], [tmp_path], seconds=0, depth=40) == (None, None)
    assert _seek(["x.wav"], [tmp_path / "gone", tmp_path], depth=40)[0] == deep


def test_a_table_of_ones_own_elsewhere(copy, tmp_path):
    folder = copy("pairs")
    shutil.move(folder / "mine.csv", tmp_path / "mine.csv")
    (tmp_path / "x").mkdir()
    shutil.move(tmp_path / "mine.csv", tmp_path / "x/mine.csv")
    found = matching(checked(tmp_path / "x/mine.csv"), "error", "missing")
    assert {f.do.split("add ")[1].split()[0] for f in found} == {"--image-root", "--audio-root"} and all(
        str(folder) in f.do for f in found
    )
    assert checked(tmp_path / "x/mine.csv", audio_root=str(folder), image_root=folder).ok
    with pytest.raises(ConfigError, match="shards hold"):
        checked(tmp_path / "x/mine.csv", kind="shards", image_root=folder)


# ---- lists


def edit(path, change):
    data = read_json(path)
    change(data["data"])
    write_json(path, data)


def places_faults():
    def first(**new):
        return lambda data: data[0].update(new)

    yield "test_seen", first(wav="../../etc/passwd"), "warning", "1 x bad path"
    yield "test_seen", first(image="/abs.jpg"), "warning", "1 x bad path"
    yield "test_seen", lambda data: data[0].pop("wav"), "warning", "1 x missing key"
    yield "test_seen", lambda data: data.append(data[0]), "warning", "1 x duplicate"
    yield "test_seen", lambda data: data.append("x"), "warning", "1 x not a record"
    yield "test_seen", first(text_alignment="nonsense"), "note", "1 x bad alignment"
    yield "test_seen", first(speaker=None), "note", "1 x no speaker"
    yield (
        "test_seen",
        lambda data: data.append({**data[0], "uttid": "another"}),
        "warning",
        "1 recording is listed more than once",
    )
    yield (
        "test_seen",
        lambda data: [x.update(speaker=f"new {k}") for k, x in enumerate(data)],
        "warning",
        "test_seen: 0% of its captions have a speaker of the training split",
    )
    yield (
        "test_unseen",
        None,
        "warning",
        "test_unseen: 100% of its captions have a speaker of the training split",
    )
    yield "test_seen", lambda data: data.clear(), "error", "not one usable caption"


@pytest.mark.parametrize(
    "split, change, severity, words",
    list(places_faults()),
    ids=lambda x: x.replace(" ", "_")[:30] if isinstance(x, str) else "",
)
def test_a_fault_in_the_lists_is_found(copy, split, change, severity, words):
    folder = copy("places")
    file = folder / f"metadata/{split}_2020.json"
    train = read_json(folder / "metadata/train_2020.json")["data"]
    if change:
        edit(file, change)
    else:
        edit(
            file,
            lambda data: [x.update(speaker=train[k % len(train)]["speaker"]) for k, x in enumerate(data)],
        )
    r = checked(folder, splits=["train", split], sample=1)
    assert len(matching(r, severity, words)) == 1 and r.ok == (severity != "error"), str(r)
    assert len(r.of("error")) + len(r.of("warning")) == (severity != "note")  # nothing else is


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda t: t[: len(t) // 2], "not valid JSON"),
        (lambda t: "<html>", "web page"),
        (lambda t: "", "is empty"),
        (lambda t: t.replace('"data"', '"dta"', 1), 'no key "data"'),
    ],
)
def test_a_broken_metadata_file_is_found_and_the_others_are_checked(copy, damage, words):
    folder = copy("places")
    file = folder / "metadata/dev_seen_2020.json"
    file.write_text(damage(file.read_text()))
    r = checked(folder, sample=1)
    (found,) = r.of("error")
    assert (
        found.what.startswith("dev_seen: ")
        and words in found.what
        and not r.ok
        and len(r.stats["splits"]) == 4
    )


def test_facc_lists(copy):
    folder = copy("facc")
    speakers = (folder / "flickr_audio/wav2spk.txt").read_text().splitlines(True)
    (folder / "flickr_audio/wav2spk.txt").write_text("".join(speakers[1:]))
    with open(folder / "flickr_audio/wav2capt.txt", "a") as f:
        f.write("only two\n")
    r = checked(folder, sample=1)
    assert (
        r.ok
        and len(matching(r, "note", "train: 1 x no speaker")) == 1
        and r.stats["splits"]["train"]["without_speaker"] == 1
    )
    # the line concerns no split more than another: told once
    assert len(matching(r, "warning", "1 x bad line")) == 1
    assert len(matching(r, "note", "is not the published list")) == 2
    (folder / "Flickr_8k.devImages.txt").unlink()
    assert (
        len(matching(checked(folder, sample=1), "warning", "there is no dev split (there: train, test)")) == 1
    )


def test_spokencoco_without_karpathys_split(copy):
    folder = copy("spokencoco")
    for path in [*folder.glob("*karpathy*"), *folder.glob("dataset*")]:
        path.unlink()
    r = checked(folder, sample=1)
    (found,) = matching(r, "warning", "there is no test split")
    # his numbers say nothing of these splits
    assert r.ok and "dataset_coco.json" in found.do and not matching(r, "note", "official")
    assert (
        len(
            matching(checked(copy_of(folder), karpathy="none", sample=1), "warning", "there is no test split")
        )
        == 1
    )


def copy_of(folder):
    return Path(shutil.copytree(folder, folder.with_name(folder.name + "2")))


def test_places_with_a_part_of_a_role_missing(copy):
    folder = copy("places")
    (folder / "metadata/test_unseen_2020.json").unlink()
    assert len(matching(checked(folder, sample=1), "warning", "the split test_unseen does not exist")) == 1
    shutil.copytree(folder / "metadata", folder.parent / "all")
    for split in ("dev_seen", "dev_unseen", "test_seen"):
        (folder / f"metadata/{split}_2020.json").unlink()
    for name in ("train", "val"):
        shutil.copy(
            folder.parent / "all" / ("train_2020.json" if name == "train" else "dev_seen_2020.json"),
            folder / f"metadata/{name}.json",
        )
    (folder / "metadata/train_2020.json").unlink()
    older = checked(folder, sample=1)  # the older splits have no test set
    assert (
        older.ok
        and [f.what.split(" (")[0] for f in older.of("warning")] == ["there is no test split"]
        and set(older.stats["splits"]) == {"train", "val"}
    )
    shutil.copy(folder.parent / "all/dev_seen_2020.json", folder / "metadata")
    both = checked(folder, sample=1)  # the two generations are not mixed
    assert set(both.stats["splits"]) == {"dev_seen"}


def test_a_table_that_is_one_split(tmp_path, clean):
    shutil.copytree(clean["pairs"], tmp_path / "x")
    rows = (tmp_path / "x/mine.csv").read_text().splitlines()
    (tmp_path / "x/mine.csv").write_text("\n".join(line.rpartition(",")[0] for line in rows))
    r = checked(tmp_path / "x", sample=1)
    assert (
        r.ok
        and list(r.stats["splits"]) == ["mine"]
        and len(matching(r, "note", "there is no")) == 3
        and not r.of("warning")
    )


# ---- between splits


def share(folder, layout, what):
    "Put the first image or recording of the test split into the training split too."
    if layout == "places":
        test = read_json(folder / "metadata/test_seen_2020.json")["data"][0]
        edit(folder / "metadata/train_2020.json", lambda data: data[0].update({what: test[what]}))
    elif layout == "spokencoco":
        files = {
            s: max(folder.glob(f"SpokenCOCO_{s}_unrolled*"), key=lambda p: len(p.name))
            for s in ("train", "test")
        }
        test = read_json(files["test"])["data"][0]
        if what == "image":
            edit(files["train"], lambda data: data.append(test))
        else:
            edit(files["train"], lambda data: data[0]["caption"].update(wav=test["caption"]["wav"]))
    else:
        lines = (folder / "mine.csv").read_text().splitlines()
        train, test = lines[1].split(","), next(line for line in lines if line.endswith("test")).split(",")
        train[0 if what == "image" else 1] = test[0 if what == "image" else 1]
        (folder / "mine.csv").write_text("\n".join([lines[0], ",".join(train), *lines[2:]]))


@pytest.mark.parametrize("layout", ["places", "spokencoco", "pairs"])
@pytest.mark.parametrize("what", ["image", "wav"])
def test_what_two_splits_share_is_an_error(copy, layout, what):
    folder = copy(layout)
    share(folder, layout, what)
    r = checked(folder, sample=1)
    words = "image" if what == "image" else "recording"
    found = [f for f in r.of("error") if f"share 1 {words}" in f.what]
    assert (
        len(found) == 1
        and not r.ok
        and "train" in found[0].what
        and "test" in found[0].what
        and "take them out of train" in found[0].do
    ), str(r)


def test_an_image_in_two_lists_of_facc_is_an_error(copy):
    folder = copy("facc")
    with open(folder / "Flickr_8k.trainImages.txt", "a") as f:
        f.write((folder / "Flickr_8k.testImages.txt").read_text().splitlines()[0] + "\n")
    r = checked(folder, sample=1)
    # the reader leaves it out of both
    assert (
        not r.ok and len(r.of("error")) == 2 and all("image in two splits" in f.what for f in r.of("error"))
    )


@pytest.mark.parametrize("files, what", [(wavs, "recordings"), (images, "images")])
def test_copies_under_other_names(copy, files, what):
    folder = copy("facc")
    train, test = files(folder, "train"), files(folder)
    shutil.copy(train[0], test[0])
    shutil.copy(train[1], train[2])
    r = checked(folder)
    (across,) = matching(r, "error", f"1 of the opened {what} is in two splits under different names")
    (within,) = matching(r, "warning", f"1 of the opened {what} has copies under other names")
    assert {Path(p).name for p in across.where[0].split(" = ")} == {train[0].name, test[0].name} and {
        Path(p).name for p in within.where[0].split(" = ")
    } == {train[1].name, train[2].name}


# ---- numbers


@pytest.mark.parametrize(
    "name, split, images, captions, severity",
    [
        ("facc", "train", 6000, 30_000, None),
        ("facc", "train", 6000, 29_999, "warning"),
        ("facc", "train", 6001, 30_005, "warning"),
        ("facc", "train", 2000, 10_000, "note"),
        ("facc", "train", 2000, 30_000, "note"),
        ("facc", "train", 5000, 10_000, "warning"),
        ("spokencoco", "test", 5000, 25_031, None),
        ("spokencoco", "test", 5000, 25_010, "warning"),
        ("spokencoco", "train", 113_287, 566_000, None),
        ("spokencoco", "train", 113_287, 5000, "note"),
        ("spokencoco", "train", 113_000, 566_000, "warning"),
        ("places", "train", 1, 402_385, None),
        ("places", "train", 1, 100_000, "note"),
        ("places", "test_seen", 1009, 1009, None),
        ("places", "val", 3, 3, "note"),
        ("pairs", "train", 3, 3, None),
        ("places", "mine", 3, 3, None),
    ],
)
def test_official_numbers(name, split, images, captions, severity):
    r = CorpusReport(".")
    _check_counts(r, name, split, images, captions)
    assert [f.severity for f in r.findings] == ([severity] if severity else []), r.findings


def test_expected_is_about_the_protocol():
    from sgmim.data.corpora import protocol_splits

    for kind, splits in EXPECTED.items():
        assert {s for role in ("train", "dev", "test") for s in protocol_splits(kind, role)} <= splits.keys()


@pytest.mark.parametrize(
    "n, total, share",
    [(0, 10, 1), (10, 10, 0), (0, 0, 0), (100, 10**6, 0.0295), (200, 10**6, 0.0149), (1, 2, 0.95)],
)
def test_the_rule_of_three(n, total, share):
    assert _bound(n, total) == pytest.approx(share, abs=1e-4)


def test_the_sample_depends_on_the_seed_alone(clean):
    seen = []
    for options in ({}, {"workers": 1}, {"seed": 1}):
        r = checked(clean["facc"], splits=["train"], sample=5, **options)
        s = r.stats["splits"]["train"]
        assert (
            s["opened"] == {"recordings": 5, "images": 5}
            and s["rest"] == [pytest.approx(1 - 0.05**0.2)] * 2
            and not s["seconds"]["all"]
            and "~" in str(r)
        )
        seen.append(r.seconds["train"].tolist())
    assert seen[0] == seen[1] != seen[2]
    assert (
        checked(clean["facc"], splits=["train"], sample=5, all_files=True).stats["splits"]["train"]["opened"][
            "recordings"
        ]
        == 48
    )
    assert (
        set(_draw(np.arange(20) % 2, 4, 0, "a")) <= set(range(1, 20, 2))
        and len(_draw(np.zeros(4), 2, 0)) == 0
    )


def test_a_sample_can_miss_a_fault_and_says_so(copy):
    folder = copy("facc")
    cut(wavs(folder, "train")[5])
    results = [checked(folder, splits=["train"], sample=8, seed=seed) for seed in range(30)]
    assert {r.ok for r in results} == {True, False}  # 8 of 48
    for r in results:
        assert (
            ("< 31.2%" in str(r)) == r.ok
            and ("some were bad" in str(r)) != r.ok
            and (r.ok or "--all" in r.of("error")[0].do)
        )
    assert not checked(folder, splits=["train"], sample=8, all_files=True).ok


def test_long_recordings(tmp_path):
    for j, seconds in enumerate((1, 9, 12, 30)):
        soundfile.write(tmp_path / f"{j}.wav", np.full(seconds * 16000, 0.1), 16000)
    Image.new("RGB", (400, 300)).save(tmp_path / "a.png")
    (tmp_path / "mine.csv").write_text("image,audio\n" + "".join(f"a.png,{j}.wav\n" for j in range(4)))
    r = checked(tmp_path)
    s = r.stats["splits"]["mine"]["seconds"]
    assert s == {
        "min": 1,
        "median": 10.5,
        "max": 30,
        "hours": pytest.approx(52 / 3600),
        "all": True,
        "train_cut": 8,
        "over_train": 0.75,
        "eval_cut": 10,
        "over_eval": 0.5,
    } and not matching(r, "warning", "longer")
    (tmp_path / "0.wav").unlink()
    assert len(matching(checked(tmp_path), "warning", "67% of the opened recordings longer than 10 s")) == 1


@pytest.mark.slow
def test_a_large_corpus_takes_seconds(tmp_path):
    "Half a million captions: lists, overlaps and the listing of folders are linear."
    n, start = 300_000, time.monotonic()
    for k in range(30):
        (tmp_path / f"w{k}").mkdir()

    def corpus(split, n):
        return Corpus(
            "places",
            split,
            tmp_path,
            tmp_path,
            Columns(
                [f"{split}{i}.jpg" for i in range(n)],
                np.arange(n),
                [f"w{j % 30}/{split}{j}.wav" for j in range(n)],
                [f"{split}{j}" for j in range(n)],
                [f"s{j % 2000}" for j in range(n)],
            ),
        )

    corpora = {s: corpus(s, k) for s, k in (("train", n), ("dev_seen", n // 3), ("test_seen", n // 3))}
    r = CorpusReport(tmp_path)
    made = time.monotonic()
    for c in corpora.values():
        _check_lists(r, c)
        sound, picture = check._check_files(r, c)
        assert not sound.any() and not picture.any()
    _check_overlap(r, corpora)
    assert len(r.of("error")) == 6 and time.monotonic() - made < 15, (made - start, time.monotonic() - made)


# ---- shards


def test_broken_shards(copy):
    folder = copy("shards")
    tar = folder / "test-00000.tar"
    good = bytearray(tar.read_bytes())
    changed = bytearray(good)
    changed[1000] ^= 255  # in the first image
    tar.write_bytes(changed)
    r = checked(folder)
    assert (
        not r.ok
        and len(matching(r, "error", "has changed")) == 1
        and len(matching(r, "error", "opened images unreadable")) == 1
    )
    tar.write_bytes(good[:-600])
    r = checked(folder)
    assert (
        not r.ok
        and r.of("error")[0].what.startswith("test: ")
        and "are listed" in r.of("error")[0].what
        and set(r.stats["splits"]) == {"train", "dev"}
    )
    tar.unlink()
    assert "does not exist" in checked(folder).of("error")[0].what
    with pytest.raises(ConfigError, match="shards hold their images"):
        checked(folder, image_root=folder)


def test_large_shards_are_not_read_unasked(clean, monkeypatch):
    monkeypatch.setattr(check, "_DIGEST_BYTES", 10)
    r = checked(clean["shards"], splits=["test"])
    assert r.ok and len(matching(r, "note", "digests")) == 1 and r.stats["splits"]["test"]["digests"] is False
    assert (
        checked(clean["shards"], splits=["test"], all_files=True).stats["splits"]["test"]["digests"] is True
    )


def test_shards_that_share_images(copy):
    folder = copy("shards")
    for path in folder.glob("*test*"):
        path.unlink()
    write_shards(load_corpus(copy("facc"), "train"), folder, split="test", progress=False)
    assert [f.what for f in checked(folder, sample=1).of("error")] == [
        "test and train share 24 images",
        "test and train share 48 recordings",
    ]


# ---- what is no corpus


def test_bad_paths(tmp_path, clean):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "two").mkdir()
    shutil.copy(clean["spokencoco"] / "SpokenCOCO_train.json", tmp_path / "two")
    shutil.copytree(clean["places"] / "metadata", tmp_path / "two/metadata")
    for path, words in (
        (tmp_path / "gone", "does not exist"),
        (tmp_path / "a.txt", "no metadata of a known kind"),
        (tmp_path / "empty", "holds no corpus"),
        (clean["places"] / "wavs", "holds no corpus"),
        (tmp_path / "two", "more than one corpus"),
    ):
        r = checked(path)
        assert (
            not r.ok
            and len(r.findings) == 1
            and words in r.findings[0].what
            and r.findings[0].do
            and str(r).splitlines()[-1] == r.verdict
            and json.dumps(r.to_dict())
        )
    r = checked(tmp_path / "two", kind="places", sample=1)
    assert not r.ok and matching(r, "error", "recordings missing")
    assert not checked(clean["facc"], kind="places").ok  # another kind than it is


def test_bad_arguments(clean):
    for options, words in (
        ({"sample": 0}, "sample"),
        ({"workers": 0}, "workers"),
        ({"kind": "plces"}, "no kind 'plces'"),
        ({"nonsense": 1}, "no option 'nonsense'"),
    ):
        with pytest.raises(ConfigError, match=words):
            checked(clean["facc"], **options)
    r = checked(clean["facc"], splits=["tset"])
    assert not r.ok and "no split 'tset'" in r.findings[0].what


def test_one_file_of_several(clean):
    r = checked(clean["places"] / "metadata/train_2020.json", sample=1)
    # nobody asked for the other splits
    assert r.ok and list(r.stats["splits"]) == ["train"] and not r.of("warning")


def test_a_folder_that_may_not_be_read(copy, monkeypatch):
    folder = copy("facc")
    listed, allowed = os.scandir, os.access
    sounds = str(folder / "flickr_audio/wavs")

    def scandir(path="."):
        if str(path).startswith(sounds):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(
        os, "access", lambda path, *a, **k: not str(path).startswith(sounds) and allowed(path, *a, **k)
    )
    (found,) = matching(checked(folder, splits=["dev"]), "error", "recordings missing")
    assert "you may not read the folder" in found.do and sounds in found.do


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is closed to root")
def test_a_closed_corpus(copy):
    folder = copy("facc")
    folder.chmod(0)
    try:
        r = checked(folder)
    finally:
        folder.chmod(0o755)
    assert not r.ok and len(r.findings) == 1


def test_a_corpus_that_cannot_be_listed(clean, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(check, "recognise", denied)
    r = checked(clean["facc"])
    assert not r.ok and "Permission denied" in r.findings[0].what


# ---- lists of other systems


def own(
    folder,
    n=4,
    listed=lambda k: (f"images/p{k}.jpg", f"wavs/s{k}.wav"),
    head="image,audio",
    more=lambda k: "",
):
    """A table of n pairs in `folder`, and their files. `listed(k)`: how the table names them; `more(k)`:
    its further columns."""
    for name in ("images", "wavs"):
        (folder / name).mkdir(parents=True)
    for k in range(n):
        Image.new("RGB", (240, 240), (40 * k % 256, k % 7, k % 256)).save(folder / f"images/p{k}.jpg")
        soundfile.write(folder / f"wavs/s{k}.wav", 0.2 * np.sin(np.arange(16000) / (5 + k)), 16000)
    (folder / "pairs.csv").write_text(
        "\n".join([head, *(",".join(listed(k)) + more(k) for k in range(n))]) + "\n", encoding="utf-8"
    )
    return folder / "pairs.csv"


def gone(folder, names="wavs/*"):
    for path in folder.glob(names):
        path.unlink()


SPELT = [
    ("backslashes", lambda k: (f"images\\p{k}.jpg", f"wavs\\s{k}.wav")),
    ("with blanks", lambda k: (f"./images/p{k}.jpg", f"wavs//s{k}.wav ")),
    ("images/P0.JPG is images/p0.jpg", lambda k: (f"images/P{k}.JPG", f"wavs/s{k}.wav")),
    ("wavs/s0.WAV is wavs/s0.wav", lambda k: (f"images/p{k}.jpeg", f"wavs/s{k}.WAV")),
]


@pytest.mark.parametrize("said, listed", SPELT, ids=[s for s, _ in SPELT])
def test_paths_that_are_read_otherwise_are_told(tmp_path, said, listed):
    r = checked(own(tmp_path / "c", listed=listed))
    assert (
        r.ok and not r.of("warning") and said in " ".join(f.what + " ".join(f.where) for f in r.of("note"))
    ), str(r)
    assert r.stats["splits"]["pairs"]["opened"] == {"recordings": 4, "images": 4}


def test_absolute_paths_elsewhere_are_told_once(tmp_path):
    "With the option, for three splits."
    own(tmp_path / "media")
    (tmp_path / "c").mkdir()
    rows = [
        f"{tmp_path}/media/images/p{k}.jpg,{tmp_path}/media/wavs/s{k}.wav,{split}"
        for k, split in enumerate(("train", "dev", "test"))
    ]
    (tmp_path / "c/t.csv").write_text("\n".join(["image,audio,split", *rows]) + "\n")
    text = str(checked(tmp_path / "c"))
    assert (
        text.count("--image-root DIR") == text.count("--audio-root DIR") == 1
        and text.count("is absolute") == 3
    )
    assert checked(tmp_path / "c", image_root=tmp_path / "media", audio_root=tmp_path / "media").ok


def test_one_file_of_two_splits_in_two_spellings(tmp_path):
    table = own(
        tmp_path / "c",
        2,
        listed=lambda k: (("images/p0.jpg", "IMAGES/P0.JPG")[k], f"wavs/s{k}.wav"),
        head="image,audio,split",
        more=lambda k: (",train", ",test")[k],
    )
    assert matching(checked(table), "error", "train and test share 1 image")


# ---- advice on moved files


def others(folder, kind):
    "Another corpus in `folder` with files of the same names; its lists as `kind` has them."
    own(folder)
    (folder / "pairs.csv").unlink()
    lists = {
        "csv": "pairs.csv",
        "tsv": "x.tsv",
        "jsonl": "lists/x.jsonl",
        "places": "metadata/train_2020.json",
        "older": "metadata/val.json",
        "spokencoco": "SpokenCOCO_train.json",
        "facc": "flickr_audio/wav2capt.txt",
        "shards": "shards-train.json",
        "upper": "PAIRS.CSV",
    }
    path = folder / lists[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"data": [{"wav": "a.wav"}]}')


@pytest.mark.parametrize(
    "kind", ["csv", "tsv", "jsonl", "places", "older", "spokencoco", "facc", "shards", "upper"]
)
@pytest.mark.parametrize("where", ["beside", "inside", "deep"])
def test_files_of_another_corpus_are_not_advised(tmp_path, kind, where):
    table = own(tmp_path / "mine")
    gone(table.parent)
    others(
        {"beside": tmp_path / "other", "inside": tmp_path / "mine/sub/other", "deep": tmp_path / "x/y/other"}[
            where
        ],
        kind,
    )
    (found,) = matching(checked(table), "error", "recordings missing")
    assert "other" not in found.do and found.do.endswith(
        "name the folder that holds them with --audio-root DIR."
    )


def test_part_of_the_files_beside_is_not_advised(tmp_path):
    "Nearly all names have to be there, outside the own folder; below it one is enough."
    table = own(tmp_path / "mine", 20)
    (tmp_path / "mine/wavs").rename(tmp_path / "away")
    (tmp_path / "backup/wavs").mkdir(parents=True)
    for k in range(0, 20, 2):
        shutil.copy(tmp_path / f"away/s{k}.wav", tmp_path / "backup/wavs")
    assert "backup" not in checked(table).of("error")[0].do
    for k in range(1, 20, 2):
        shutil.copy(tmp_path / f"away/s{k}.wav", tmp_path / "backup/wavs")
    assert f"add --audio-root {tmp_path / 'backup'}" in checked(table).of("error")[0].do
    for k in range(1, 20):
        (tmp_path / f"backup/wavs/s{k}.wav").unlink()
    (tmp_path / "backup").rename(tmp_path / "mine/deep")
    (tmp_path / "mine/deep").rename(tmp_path / "mine/images/deep")
    assert f"add --audio-root {tmp_path / 'mine/images/deep'}" in checked(table).of("error")[0].do


@pytest.mark.parametrize("name", [".Trash-1000", "__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN"])
def test_folders_of_the_system_are_not_advised(tmp_path, name):
    table = own(tmp_path / "mine")
    (tmp_path / "mine" / name).mkdir()
    (tmp_path / "mine/wavs").rename(tmp_path / "mine" / name / "wavs")
    assert name not in str(checked(table))


@pytest.mark.parametrize(
    "beside", ["._pairs.csv", ".~lock.pairs.csv#", "~$pairs.csv", "Thumbs.db", ".DS_Store", "pairs.csv~"]
)
def test_files_of_the_system_are_not_checked(tmp_path, beside):
    table = own(tmp_path / "c")
    table.with_name(beside).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(50))
    r = checked(table.parent)
    assert r.ok and list(r.stats["splits"]) == ["pairs"]


# ---- one rule for the checker and for training


def images_of(folder):
    return sorted((folder / "images").iterdir())


def sounds_of(folder):
    return sorted((folder / "wavs").iterdir())


@pytest.mark.parametrize(
    "files, spoil, words",
    [
        (sounds_of, Path.unlink, "recordings missing"),
        pytest.param(images_of, Path.unlink, "images missing", marks=pytest.mark.slow),
        pytest.param(images_of, lambda p: p.write_bytes(b""), "images empty", marks=pytest.mark.slow),
        pytest.param(sounds_of, web_page, "opened recordings unreadable", marks=pytest.mark.slow),
        (images_of, web_page, "opened images unreadable"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_training_tolerates_is_a_warning(tmp_path, files, spoil, words):
    table = own(tmp_path / "c", 100)
    for n, severity in ((1, "warning"), (2, "error")):
        spoil(files(table.parent)[0 if "missing" in words else n])
        r = checked(table)
        assert len(matching(r, severity, words)) == 1 and r.ok == (severity == "warning"), str(r)
        assert checked(table, max_unreadable=0.02).ok and not checked(table, max_unreadable=0.001).ok
        assert ("refused" in opened(table)) == (severity == "error") or "unreadable" in words


def opened(table):
    from sgmim.data.corpora import open_splits

    try:
        open_splits(table, "pairs", ["pairs"], max_missing=0.01)
    except DataError as e:
        return f"refused: {e}"
    return ""


def test_missing_and_empty_files_count_together(tmp_path):
    table = own(tmp_path / "c", 100)
    sounds_of(table.parent)[0].unlink()
    images_of(table.parent)[50].write_bytes(b"")
    assert [f.what.split(" ")[5] for f in checked(table).of("error")] == [
        "missing",
        "empty",
    ] and "refused" in opened(table)


def test_captions_are_counted_and_not_pictures(tmp_path):
    "One picture of a hundred that has half of the captions."
    table = own(tmp_path / "c", 100, listed=lambda k: (f"images/p{max(0, k - 50)}.jpg", f"wavs/s{k}.wav"))
    (tmp_path / "c/images/p0.jpg").write_bytes(b"<html>")
    assert matching(checked(table), "error", "1 of 50 opened images unreadable") and not checked(table).ok


# ---- what lists can say wrongly


@pytest.mark.parametrize(
    "words, late",
    [
        ("0__A__100", True),
        ("0__A__0.5 0.5__B__2", True),
        ("99__A__100", True),
        ("0__A__1.05", False),
        ("0__A__1", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("layout", ["pairs", "shards"])
def test_an_alignment_that_ends_after_its_recording(tmp_path, words, late, layout):
    table = own(
        tmp_path / "c", head="image,audio,alignment", more=lambda k: "," + (words if k == 2 else "0__A__0.9")
    )
    if layout == "shards":
        write_shards(load_corpus(table), tmp_path / "s", progress=False)
    found = matching(
        checked(table if layout == "pairs" else tmp_path / "s"),
        "warning",
        "1 of 4 opened recordings end before the last word",
    )
    assert bool(found) == late and (not late or "the recording at 1.00 s" in found[0].where[0])


@pytest.mark.parametrize(
    "texts, said",
    [
        (["a", "", " ", "b"], "2 of 4 captions have an empty text"),
        (["", "", "", ""], "4 of 4 captions have an empty text"),
        (["a", "b", "c", "d"], None),
    ],
)
def test_empty_texts(tmp_path, texts, said):
    r = checked(own(tmp_path / "c", head="image,audio,text", more=lambda k: "," + texts[k]))
    assert r.ok and bool(matching(r, "note", said or "empty text")) == bool(said)


@pytest.mark.parametrize(
    "kind, spoil, severity, said",
    [
        (
            "spokencoco",
            lambda d: d[0].update(captons=d[0].pop("captions") * 3),
            "error",
            'no key "captions" (is "captons" meant?)',
        ),
        ("places", lambda d: d[0].update(wave=d[0].pop("wav")), "warning", 'no key "wav" (is "wave" meant?)'),
        (
            "places",
            lambda d: d[0].update(Scenelabel=d[0].pop("scenelabel")),
            "note",
            'no key "scenelabel" (is "Scenelabel" meant?)',
        ),
        ("places", lambda d: d[0].update(asr_text="  "), "note", "1 of "),
        ("places", lambda d: d[0].update(text_alignment="0__A__100"), "warning", "the words end at 100 s"),
    ],
)
def test_slips_in_official_lists(copy, kind, spoil, severity, said):
    folder = copy(kind)
    options = {"karpathy": "none"} if kind == "spokencoco" else {}
    edit(folder / {"places": "metadata/train_2020.json", "spokencoco": "SpokenCOCO_train.json"}[kind], spoil)
    r = checked(folder, splits=["train"], **options)
    severity = "warning" if severity == "error" else severity
    assert said in " ".join(f.what + " ".join(f.where) for f in r.of(severity)), str(r)
    if kind == "spokencoco":
        assert matching(r, "warning", "6 x missing key")


def test_a_facc_number_that_is_not_that_of_its_recording(copy):
    folder = copy("facc")
    path = folder / "flickr_audio/wav2capt.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].replace("#0", "#1"), *lines[1:]]) + "\n")
    (found,) = matching(checked(folder, splits=["train"], sample=1), "warning", "1 x wrong number")
    assert "ends in _0, and its line says #1" in found.where[0] and "which of the two numbers" in found.do


def test_flickr_audio_alone(copy):
    folder = copy("facc")
    for path in folder.glob("Flickr_8k.*"):
        path.unlink()
    (found,) = checked(folder).of("error")
    assert "Flickr_8k.trainImages.txt" in found.what and str(folder) in found.what


# ---- opening for training, evaluation and tables: the same rule, and the option that is needed


@pytest.mark.parametrize(
    "pattern, option, other",
    [("images/*", "--image-root DIR", "--audio-root"), ("wavs/*", "--audio-root DIR", "--image-root")],
)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_option_for_files_elsewhere_is_named(tmp_path, pattern, option, other, share):
    table = own(tmp_path / "c")
    for path in sorted(table.parent.glob(pattern))[: round(4 * share)]:
        path.unlink()
    said = opened(table)
    assert "refused" in said and said.count(option) == 1 and other not in said


@pytest.mark.parametrize(
    "lost, refused",
    [
        pytest.param(0, False, marks=pytest.mark.slow),
        (1, False),
        (2, True),
        pytest.param(100, True, marks=pytest.mark.slow),
    ],
)
def test_a_table_of_the_paper_tolerates_what_training_does(tmp_path, lost, refused):
    from sgmim.paper.runs import RunOptions, TablePlan, open_data, plan_runs

    table = own(tmp_path / "c", 100, head="image,audio,split", more=lambda k: ",train")
    lines = table.read_text().splitlines()
    table.write_text(
        "\n".join([*lines, "images/p0.jpg,wavs/s0.wav,dev", "images/p0.jpg,wavs/s0.wav,test"]) + "\n"
    )
    for path in sounds_of(table.parent)[100 - lost :]:
        path.unlink()
    spec, options = plan_runs(TablePlan(3, "facc"), tmp_path)[0], RunOptions(table, {"kind": "pairs"})
    if not refused:
        assert len(open_data(spec, options)["train"]) == 100 - lost
    else:
        with pytest.raises(DataError, match="--audio-root DIR"):
            open_data(spec, options)


def test_the_command_has_the_rule_too(tmp_path, capsys):
    from sgmim.apps.commands import run_command

    table = own(tmp_path / "c", 10)
    sounds_of(table.parent)[0].unlink()
    assert (
        run_command("sgmim_check_data", [str(table)]) == 1
        and run_command("sgmim_check_data", [str(table), "--max-unreadable", ".1"]) == 0
    )


@pytest.mark.slow
def test_no_fault_of_an_earlier_version_is_back(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tests/faults.py", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
