"""A corpus in shards, 08: the same pairs as from loose files, whole after any interruption, and never
silently wrong."""

import hashlib
import io
import json
import os
import pickle
import random
import re
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.multiprocessing
from conftest import Toy, listing
from PIL import Image

from sgmim.core import ConfigError, DataError, SgmimError, read_json, write_json
from sgmim.data import corpus as corpus_module
from sgmim.data import shards as shards_module
from sgmim.data.batches import Order, Pairs, eval_loader, train_loader
from sgmim.data.corpus import Columns, Corpus, measure, overlap
from sgmim.data.image import eval_transform
from sgmim.data.shards import (
    _decode_image,
    _image_member,
    _Reader,
    _shrink,
    open_shards,
    verify_shards,
    write_shards,
)
from sgmim.scenes.corpus import export_spokencoco, load_scenes

N, PER = 10, 3  # images of the small corpus, captions each


def build(root, name="train"):
    "The `Corpus` of a folder that export_spokencoco wrote."
    entries = read_json(root / f"SpokenCOCO_{name}.json")["data"]
    captions = [(i, c) for i, e in enumerate(entries) for c in e["captions"]]
    return Corpus(
        "spokencoco",
        name,
        root,
        root,
        Columns(
            [e["image"] for e in entries],
            [i for i, _ in captions],
            [c["wav"] for _, c in captions],
            [c["uttid"] for _, c in captions],
            [c["speaker"] for _, c in captions],
            [c["text"] for _, c in captions],
            ["0.10__A__0.20" if k % 2 else "" for k in range(len(captions))],
            [f"place{i % 3}" for i in range(len(entries))],
        ),
    )


@pytest.fixture(scope="module")
def made(cache):
    return load_scenes("dev", N, captions=PER, cache=cache, progress=False)


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loose")
    export_spokencoco({"train": made}, folder)
    return folder


@pytest.fixture
def loose(exported):
    return build(exported)


@pytest.fixture
def own(exported, tmp_path):
    "A copy of the files, to be spoilt."
    shutil.copytree(exported, tmp_path / "own")
    return build(tmp_path / "own")


@pytest.fixture(scope="module")
def written(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(build(exported), folder, shard_mb=0.3, size=256, progress=False)
    return folder


@pytest.fixture
def shards(written):
    return open_shards(written, "train")


@pytest.fixture
def copy(written, tmp_path):
    "A copy of the shards, to be spoilt."
    return Path(shutil.copytree(written, tmp_path / "copy"))


def _to_arrays(corpus, folder, **kw):
    return write_shards(corpus, folder, **{"shard_mb": 0.3, "size": 256, "progress": False, **kw})


def corpus_of(root, images=(), audio=(), of=None):
    "A corpus of files in `root`."
    images, audio = list(images), list(audio)
    return Corpus(
        "hand",
        "all",
        root,
        root,
        Columns(
            images,
            range(len(images)) if of is None else of,
            audio,
            [f"u{j}" for j in range(len(audio))],
            ["s"] * len(audio),
        ),
    )


def tone(seconds=0.3, rate=16_000, channels=1, loud=0.3):
    t = np.arange(round(seconds * rate)) / rate
    return np.stack([loud * np.sin(2 * np.pi * (220 + 110 * c) * t) for c in range(channels)], 1)


# ---- what is written


def test_layout_for_other_tools(loose, written, shards):
    tars = sorted(written.glob("*.tar"))
    assert [p.name for p in tars] == [f"train-{k:05d}.tar" for k in range(len(tars))] and len(tars) > 2
    assert {p.name for p in written.iterdir()} == {
        *(p.name for p in tars),
        "shards-train.json",
        "shards-train.npz",
    }
    seen = []
    for k, path in enumerate(tars):
        with tarfile.open(path) as t:
            for m in t:
                assert (
                    m.isfile()
                    and (m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) == (0, 0, 0, "", "", 0o644)
                    and m.name.isascii()
                )
                seen.append((k, m.name, m.offset_data, m.size, t.extractfile(m).read()))
    names = [
        f"{i:08d}.{s}"
        for i in range(N)
        for s in ("jpg", *(f"{c}.flac" for c in range(int((loose.image_of_caption == i).sum()))), "json")
    ]
    assert [n for _, n, *_ in seen] == names
    for i in range(N):  # the index points to exactly these bytes
        k, _, at, size, blob = next(s for s in seen if s[1] == f"{i:08d}.jpg")
        assert shards._image_at[i, :3].tolist() == [k, at, size] and blob == loose.image_path(
            i
        ).read_bytes() == shards.image_bytes(i)
        facts = json.loads(next(s for s in seen if s[1] == f"{i:08d}.json")[4])
        js = np.flatnonzero(loose.image_of_caption == i)
        assert facts == {
            "image": loose.image_names[i],
            "label": loose.labels[i],
            "uttids": [loose.uttids[j] for j in js],
            "speakers": [loose.captions[j].speaker for j in js],
            "texts": [loose.texts[j] for j in js],
            "alignments": [loose.alignments[j] for j in js],
            "samples": shards.samples[js].tolist(),
        }
        for c, j in enumerate(js):
            k, _, at, size, blob = next(s for s in seen if s[1] == f"{i:08d}.{c}.flac")
            assert shards._sound_at[j, :3].tolist() == [k, at, size] and blob == shards.sound_bytes(j)
            info = soundfile.info(io.BytesIO(blob))
            assert (info.format, info.subtype, info.samplerate, info.channels, info.frames) == (
                "FLAC",
                "PCM_16",
                16_000,
                1,
                shards.samples[j],
            )


def test_webdataset_groups_the_samples(written, loose):
    wds = pytest.importorskip("webdataset")
    samples = list(wds.WebDataset([str(p) for p in sorted(written.glob("*.tar"))], shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"{i:08d}" for i in range(N)]
    for i, s in enumerate(samples):
        assert s["jpg"] == loose.image_path(i).read_bytes()
        assert sorted(k for k in s if k.endswith("flac")) == [
            f"{c}.flac" for c in range(int((loose.image_of_caption == i).sum()))
        ]


def test_index_says_what_it_is(loose, written):
    meta = read_json(written / "shards-train.json")
    assert (
        meta["format"] == 1
        and meta["corpus"] == "spokencoco"
        and meta["split"] == "train"
        and meta["rate"] == 16_000
    )
    assert meta["settings"] == {
        "size": 256,
        "shard_mb": 0.3,
        "audio": "flac",
        "jpeg_quality": 92,
        "max_seconds": None,
    }
    assert (
        meta["source"] == {"fingerprint": loose.fingerprint, "images": N, "captions": len(loose)}
        and meta["skipped"] == meta["skipped_before"] == []
    )
    for s in meta["shards"]:
        blob = (written / s["file"]).read_bytes()
        assert s["bytes"] == len(blob) and s["blake2b"] == hashlib.blake2b(blob, digest_size=16).hexdigest()
        assert len(blob) >= 3e5 or s is meta["shards"][-1]
    assert meta["shards"][-1]["stop"] == N
    np.load(written / "shards-train.npz", allow_pickle=False).close()


@pytest.mark.parametrize("workers", [1, 5])
def test_equal_bytes_whatever_the_number_of_threads(loose, written, tmp_path, workers):
    _to_arrays(loose, tmp_path / "again", workers=workers)
    assert listing(tmp_path / "again") == listing(written)


# ---- the same pairs


def test_the_same_corpus(loose, shards):
    assert (
        isinstance(shards, Corpus)
        and len(shards) == len(loose)
        and shards.n_images == N
        and "Shards(spokencoco, train" in repr(shards)
    )
    assert [
        list(getattr(shards, c))
        for c in ("image_names", "audio_names", "uttids", "texts", "alignments", "labels", "speakers")
    ] == [
        list(getattr(loose, c))
        for c in ("image_names", "audio_names", "uttids", "texts", "alignments", "labels", "speakers")
    ]
    assert np.array_equal(shards.image_of_caption, loose.image_of_caption) and np.array_equal(
        shards.speaker_of_caption, loose.speaker_of_caption
    )
    assert shards.fingerprint == shards.source_fingerprint == loose.fingerprint
    assert (
        measure(shards) is shards
        and np.array_equal(shards.samples, measure(loose).samples)
        and list(shards.captions) == list(loose.captions)
    )
    assert overlap(shards, loose) == overlap(loose, shards) == {"speakers": 1.0, "images": 1.0, "scenes": 1.0}
    assert (
        shards.shard_of_image.shape == (N,)
        and np.array_equal(shards.shard_of_caption, shards.shard_of_image[shards.image_of_caption])
        and shards.shard_of_caption.max() > 1
    )


def test_the_same_media(loose, shards):
    for i in [*range(N), -1]:
        assert np.array_equal(shards.image(i), loose.image(i)) and np.array_equal(
            shards.image(i, 40), loose.image(i, 40)
        )
    for j in [*range(len(loose)), -1]:
        for seconds in (None, 0.04, 0.5, 2.00003, 100):
            assert (
                np.array_equal(a := shards.audio(j, max_seconds=seconds), loose.audio(j, max_seconds=seconds))
                and a.dtype == np.float32
            )
    with pytest.raises(IndexError):
        shards.image(N)
    with pytest.raises(IndexError):
        shards.audio(len(loose))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches(loose, shards, workers):
    transform = eval_transform(64, 72, normalised=False)

    def batches(corpus):
        pairs = Pairs(measure(corpus, progress=False), max_seconds=1.5, transform=transform, speed=0.1)
        return list(train_loader(pairs, Order(pairs.lengths, 6, 5, seed=3), workers=workers)) + list(
            eval_loader(pairs, 8)
        )

    one, two = batches(loose), batches(shards)
    assert len(one) == len(two) > 5
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys() >= {"image", "audio", "audio_len", "image_id", "index"}
        for k in a:
            assert torch.equal(a[k], b[k]), k


def test_nearly_the_same_batches_from_smaller_images(loose, tmp_path):
    _to_arrays(loose, tmp_path, size=72)
    small = open_shards(tmp_path, "train")
    transform = eval_transform(64, 72, normalised=False)
    pairs = [Pairs(measure(c, progress=False), transform=transform) for c in (loose, small)]
    for a, b in zip(*(train_loader(p, Order(p.lengths, 6, 4, seed=3)) for p in pairs), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in ("audio", "audio_len", "image_id", "index"))
        assert (
            a["image"] - b["image"]
        ).abs().mean() < 0.06  # in deviations of ImageNet: some three steps of 255
    assert (
        small.fingerprint == loose.fingerprint
        and small.settings["size"] == 72
        and "up to 72 px" in repr(small)
    )


# ---- pictures


def test_any_picture(tmp_path):
    rng, root = np.random.default_rng(0), tmp_path
    photo = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize(
        (360, 240), Image.Resampling.BICUBIC
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(root / "large.jpg", quality=95)
    photo.resize((90, 60)).save(root / "small.jpg", quality=70)
    photo.resize((90, 60)).save(root / "turned.jpg", quality=95, exif=exif)
    photo.resize((90, 60)).convert("L").save(root / "grey.jpg", quality=95)
    photo.resize((90, 60)).convert("CMYK").save(root / "cmyk.jpg", quality=95)
    photo.resize((90, 60)).save(root / "really_a_png.jpg", "PNG")
    photo.convert("RGBA").save(root / "alpha.png")
    photo.convert("P").save(root / "palette.gif")
    names = sorted(p.name for p in root.iterdir())
    for k in range(len(names)):
        soundfile.write(root / f"{k}.wav", tone(), 16_000)
    c = corpus_of(root, names, [f"{k}.wav" for k in range(len(names))])
    _to_arrays(c, root / "s100", size=100)
    s = open_shards(root / "s100", "all")
    for i, name in enumerate(names):
        blob, there = s.image_bytes(i), c.image(i)
        assert (blob == (root / name).read_bytes()) == (name == "small.jpg"), name
        with Image.open(io.BytesIO(blob)) as im:
            assert im.format == "JPEG" and im.mode == "RGB" and not im.getexif()
        wanted = np.asarray(_shrink(Image.fromarray(there), 100)).astype(int)
        assert (
            s.image(i).shape == wanted.shape
            and min(wanted.shape[:2]) == min(100, *there.shape[:2])
            and np.abs(s.image(i) - wanted).mean() < 3
        ), name
    _to_arrays(c, root / "all", size=None)
    s = open_shards(root / "all", "all")
    for i, name in enumerate(names):
        assert (
            s.image_bytes(i) == (root / name).read_bytes()
            and np.array_equal(s.image(i), c.image(i))
            and np.array_equal(s.image(i, 50), c.image(i, 50))
        )
    with tarfile.open(root / "all/all-00000.tar") as t:
        suffixes = {m.name.split(".", 1)[1] for m in t}
    assert suffixes == {"jpg", "png", "gif", "0.flac", "json"}


def test_large_jpegs_are_decoded_at_reduced_size_first(tmp_path):
    "Twice the size that is needed is enough: no visible difference to the long way."
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).resize(
        (1500, 1000), Image.Resampling.BICUBIC
    ).save(tmp_path / "a.jpg", quality=95)
    c = corpus_of(tmp_path, ["a.jpg"], ["a.wav"])
    got = _decode_image(_image_member(c, 0, 128)[1]).astype(int)
    assert (
        got.shape == (128, 192, 3)
        and np.abs(got - np.asarray(_shrink(Image.open(tmp_path / "a.jpg"), 128))).mean() < 2
    )


# ---- sound


def test_any_recording(tmp_path):
    rng = np.random.default_rng(0)
    full = rng.integers(-32768, 32768, 8000).astype(np.int16)
    full[:4] = -32768, 32767, 32767, -32768
    # every step of 16 bit, as loud as can be
    soundfile.write(tmp_path / "full.wav", full, 16_000, subtype="PCM_16")
    soundfile.write(tmp_path / "stereo.wav", tone(0.5, 44_100, 2), 44_100)
    soundfile.write(tmp_path / "deep.flac", tone(0.5), 16_000, subtype="PCM_24")
    soundfile.write(tmp_path / "vorbis.ogg", tone(0.5, 22_050), 22_050)
    # louder than 16 bit can say
    soundfile.write(tmp_path / "float.wav", tone(0.5, loud=1.4), 16_000, subtype="FLOAT")
    names = sorted(p.name for p in tmp_path.iterdir())
    Image.new("RGB", (20, 20)).save(tmp_path / "i.jpg")
    c = corpus_of(tmp_path, ["i.jpg"], names, [0] * len(names))
    for kind in ("flac", "wav"):
        _to_arrays(c, tmp_path / kind, audio=kind)
        s = open_shards(tmp_path / kind, "all")
        for j, name in enumerate(names):
            # what is louder is divided by its peak, not clipped
            want = np.clip(c.audio(j) / max(1.0, np.abs(c.audio(j)).max()), -1, 32767 / 32768)
            assert s.samples[j] == len(want) and np.abs(s.audio(j) - want).max() <= 0.5 / 32768 + 1e-7, name
            assert np.array_equal(s.audio(j, max_seconds=0.2), s.audio(j)[:3200])
        assert np.array_equal(s.audio(names.index("full.wav")) * 32768, full)
    _to_arrays(c, tmp_path / "cut", max_seconds=0.25)
    s = open_shards(tmp_path / "cut", "all")
    assert s.samples.tolist() == [4000] * len(names) and all(
        np.array_equal(s.audio(j), open_shards(tmp_path / "flac", "all").audio(j)[:4000]) for j in range(3)
    )


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_only_what_is_needed_is_read(tmp_path, monkeypatch, kind):
    rng = np.random.default_rng(0)
    even = rng.normal(0, 0.05, 160_000)
    front = np.concatenate([rng.normal(0, 0.3, 48_000), np.zeros(112_000)])
    for name, wave in (("even", even), ("front", front)):
        soundfile.write(tmp_path / f"{name}.wav", wave, 16_000, subtype="PCM_16")
    Image.new("RGB", (20, 20)).save(tmp_path / "i.jpg")
    c = corpus_of(tmp_path, ["i.jpg"], ["even.wav", "front.wav"], [0, 0])
    _to_arrays(c, tmp_path / "s", audio=kind)
    s, sizes, read = open_shards(tmp_path / "s", "all"), [], _Reader.read
    monkeypatch.setattr(
        _Reader, "read", lambda self, k, at, size: sizes.append(size) or read(self, k, at, size)
    )
    assert (
        np.array_equal(s.audio(0, 2.0), c.audio(0, 2.0))
        and len(sizes) == 1
        and sizes[0] < 0.35 * len(s.sound_bytes(0))
    )
    sizes.clear()
    # all its bytes are at the front: a share of them is too few, and it is read again
    assert np.array_equal(s.audio(1, 2.0), c.audio(1, 2.0))
    assert len(sizes) == (2 if kind == "flac" else 1)


# ---- other corpora


def test_scenes_go_in_as_they_are(made, tmp_path):
    result = _to_arrays(made, tmp_path, size=None)
    s = open_shards(tmp_path, "dev")
    assert (
        result["source_fingerprint"]
        == s.source_fingerprint
        == made.fingerprint
        != s.fingerprint
        == result["fingerprint"]
    )
    for i in range(N):
        assert np.array_equal(s.image(i), made.image(i))
    for j, c in enumerate(made.captions):
        assert np.array_equal(s.audio(j), made.audio(j)) and (
            s.captions[j].text,
            s.captions[j].speaker,
            s.captions[j].samples,
            s.captions[j].image,
        ) == (c.text, c.speaker, c.samples, c.image)
        assert [w[0] for w in s.captions[j].words] == [
            "_".join(w[0].split()) for w in c.words
        ] and np.allclose([w[1:] for w in s.captions[j].words], [w[1:] for w in c.words], atol=1e-4)


def test_a_corpus_without_texts_or_names(tmp_path):
    class Plain(Toy):
        fingerprint = None

    toy = Plain(9, captions=2)
    _to_arrays(toy, tmp_path, split="toys", size=None, shard_mb=0.02)
    s = open_shards(tmp_path, "toys")
    assert s.name == "plain" and len(s) == 18 and s.source_fingerprint == s.fingerprint
    for j in range(18):
        assert np.abs(s.audio(j) - np.clip(toy.waves[j], -1, 1)).max() < 1e-4 and np.array_equal(
            s.image(j // 2), toy.images[j // 2]
        )


def test_captions_in_any_order_and_images_without_any(exported, tmp_path):
    loose, rng = build(exported), random.Random(0)
    js = list(range(len(loose)))
    rng.shuffle(js)
    js = [j for j in js if loose.image_of_caption[j] != 4]
    mixed = Corpus(
        "mixed",
        "train",
        exported,
        exported,
        Columns(
            list(loose.image_names),
            loose.image_of_caption[js],
            [loose.audio_names[j] for j in js],
            [loose.uttids[j] for j in js],
            ["s"] * len(js),
        ),
    )
    _to_arrays(mixed, tmp_path)
    s = open_shards(tmp_path, "train")
    assert (
        s.fingerprint == mixed.fingerprint
        and s.n_images == N
        and list(s.uttids) == list(mixed.uttids)
        and s.texts is s.alignments is s.labels is None
    )
    assert np.array_equal(s.image(4), loose.image(4)) and all(
        np.array_equal(s.audio(j), mixed.audio(j)) for j in range(len(s))
    )


def test_shards_of_shards(shards, loose, tmp_path):
    part = shards.select(loose.image_of_caption >= 4)
    assert (
        part.n_images == N - 4
        and part.fingerprint
        == corpus_module.select(loose, loose.image_of_caption >= 4).fingerprint
        != part.source_fingerprint
    )
    _to_arrays(part, tmp_path)
    again = open_shards(tmp_path, "train")
    assert again.source_fingerprint == part.fingerprint == again.fingerprint and np.array_equal(
        again.samples, part.samples
    )
    for i in range(N - 4):
        assert again.image_bytes(i) == loose.image_path(i + 4).read_bytes()
    for j in range(len(part)):
        assert np.array_equal(again.audio(j), part.audio(j))


# ---- the rest of what a corpus offers


def test_parts(shards, loose):
    keep = np.arange(len(loose)) % 4 == 1
    part, plain = shards.select(keep), corpus_module.select(loose, keep)
    assert (
        list(part.uttids) == list(plain.uttids)
        and list(part.image_names) == list(plain.image_names)
        and part.samples.tolist() == shards.samples[keep].tolist()
    )
    for j in range(len(part)):
        assert (
            np.array_equal(part.audio(j), plain.audio(j))
            and part.shard_of_caption[j] == shards.shard_of_caption[keep][j]
        )
    for i in range(part.n_images):
        assert np.array_equal(part.image(i), plain.image(i))
    assert shards.present() is shards and part.present(strict=True) is part
    with pytest.raises(DataError, match="keep has shape"):
        shards.select([True])


def test_functions_of_the_corpus_page_work_or_say_why_not(shards):
    for work, want in (
        (lambda: len(corpus_module.select(shards, np.arange(len(shards)) < 5)), 5),
        (lambda: len(corpus_module.present(shards)), len(shards)),
    ):
        try:
            assert work() == want
        except DataError as e:
            assert "shards.select(keep)" in str(e)
    for path in (shards.image_path, shards.audio_path):
        with pytest.raises(DataError, match=r"read them with image\(i\)"):
            path(0)


def test_groups_of_shards_in_an_order(shards):
    order = Order(shards.samples, 4, len(shards) // 4, seed=0, groups=shards.shard_of_caption, window=1)
    places = np.concatenate([shards.shard_of_caption[order[k]] for k in range(len(order))])
    assert (np.diff(places) != 0).sum() < shards.shard_of_caption.max() + 1  # one shard after the other


# ---- processes and threads


def test_pickles_small_and_opens_its_own_files(shards, loose):
    shards.image(0)
    again = pickle.loads(pickle.dumps(shards))
    assert shards.reader._files and not again.reader._files and np.array_equal(again.image(0), loose.image(0))
    assert len(ForkingPickler.dumps(shards)) < 10_000


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes(shards, loose, method):
    shards.audio(0)  # its file is open here
    with torch.multiprocessing.get_context(method).Pool(1) as pool:
        for j in (0, len(loose) - 1):
            assert np.array_equal(pool.apply(shards.audio, (j,)), loose.audio(j))
        assert np.array_equal(pool.apply(shards.image, (1,)), loose.image(1))
    assert np.array_equal(shards.audio(0), loose.audio(0))


def test_a_forked_process_opens_anew(shards):
    shards.image(0)
    read, write = os.pipe()
    if not (child := os.fork()):
        before = dict(shards.reader._files)
        shards.image(0)
        os.write(
            write,
            b"y"
            if shards.reader._files.keys() == before.keys() and shards.reader._files[0] is not before[0]
            else b"n",
        )
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"y"
    for fd in (read, write):
        os.close(fd)


@pytest.mark.slow
@pytest.mark.parametrize("positioned", [True, False])
def test_threads_few_files_and_systems_without_pread(written, loose, monkeypatch, positioned):
    if not positioned:
        for name in ("pread", "posix_fadvise"):
            monkeypatch.delattr(os, name)
    monkeypatch.setattr(_Reader, "FILES", 1)
    s, js = open_shards(written, "train"), list(range(len(loose))) * 3
    random.Random(0).shuffle(js)
    with ThreadPoolExecutor(4) as pool:
        for j, wave in zip(js, pool.map(s.audio, js), strict=True):
            assert np.array_equal(wave, loose.audio(j))
    assert len(s.reader._files) == 1
    s.reader.close()
    assert np.array_equal(s.image(0), loose.image(0))


@pytest.mark.slow
def test_the_system_is_told_once_what_will_be_needed(written, monkeypatch):
    told = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *a: told.append(a), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    s = open_shards(written, "train")
    for _ in range(3):
        for i in range(N):
            s.image(i)
    assert len(told) == s.shard_of_image.max() + 1
    monkeypatch.setattr(_Reader, "FORGOTTEN", 0.0)
    s.image(0), s.image(0)
    assert len(told) == s.shard_of_image.max() + 3
    for i in range(N):
        open_shards(written, "train", readahead=False).image(i)
    assert len(told) == s.shard_of_image.max() + 3


# ---- interrupted, finished, mended


class Stops(Corpus):
    "A corpus whose `k`-th recording ends the writing."

    def audio(self, j, max_seconds=None):
        if j == self.stop_at:
            raise KeyboardInterrupt
        return super().audio(j, max_seconds)


def stopping(corpus, j):
    c = Stops.__new__(Stops)
    vars(c).update(vars(corpus), stop_at=j)
    return c


@pytest.mark.slow
@pytest.mark.parametrize("j", [0, 13, N * PER - 2])
def test_goes_on_after_an_interruption(loose, written, tmp_path, j):
    j = min(j, len(loose) - 1)
    with pytest.raises(KeyboardInterrupt):
        _to_arrays(stopping(loose, j), tmp_path)
    there = sorted(p.name for p in tmp_path.iterdir())
    whole = [n for n in there if n.endswith(".tar")]
    assert (
        len(whole) == open_shards(written, "train").shard_of_caption[j]
        and "shards-train.json" not in there
        and not [n for n in there if n.startswith(".")]
    )
    assert all((tmp_path / n).read_bytes() == (written / n).read_bytes() for n in whole)
    with pytest.raises(DataError, match="was interrupted. The same call of write_shards goes on"):
        open_shards(tmp_path, "train")
    times = {n: (tmp_path / n).stat().st_mtime_ns for n in whole}
    (tmp_path / ".train-00007.tar.ab12_3cd.part").write_bytes(b"left by a process that was killed")
    result = _to_arrays(loose, tmp_path)
    assert result["written"] == len(list(written.glob("*.tar"))) - len(whole) and listing(
        tmp_path
    ) == listing(written)
    assert {n: (tmp_path / n).stat().st_mtime_ns for n in whole} == times


@pytest.mark.slow
def test_interrupted_and_then_called_otherwise(loose, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _to_arrays(stopping(loose, len(loose) - 1), tmp_path)
    with pytest.raises(DataError, match="size is 256 there and 128 here.*overwrite=True"):
        _to_arrays(loose, tmp_path, size=128)
    (tmp_path / "train-00000.tar").unlink()  # and one was lost meanwhile
    assert _to_arrays(loose, tmp_path)["written"] >= 2
    verify_shards(tmp_path)


def test_finished_returns_at_once(loose, copy, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in copy.iterdir()}
    monkeypatch.setattr(shards_module, "_encoded", None)
    result = _to_arrays(loose, copy)
    assert (
        result["written"] == 0
        and result["captions"] == len(loose)
        and result["left_out"] == {}
        and result["bytes"] == sum(p.stat().st_size for p in copy.iterdir() if p.suffix != ".json")
    )
    assert before == {p: p.stat().st_mtime_ns for p in copy.iterdir()}


def test_makes_lost_shards_again(loose, copy, written):
    (copy / "train-00000.tar").unlink()
    (copy / "train-00002.tar").write_bytes(b"short")
    assert _to_arrays(loose, copy)["written"] == 2 and listing(copy) == listing(written)


def test_changed_files_are_no_way_to_mend(own, copy):
    Image.new("RGB", (50, 50)).save(own.image_path(0))
    (copy / "train-00000.tar").unlink()
    with pytest.raises(DataError, match="have changed since. Write all shards again"):
        _to_arrays(own, copy)
    assert not (copy / "train-00000.tar").exists() and not list(copy.glob(".*"))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"size": None}, "size is 256 there and None here"),
        ({"jpeg_quality": 80}, "jpeg_quality is 92"),
        ({"audio": "wav"}, "audio is 'flac'"),
        ({"shard_mb": 1}, "shard_mb is 0.3"),
        ({"max_seconds": 2.0}, "max_seconds is None"),
    ],
)
def test_other_settings_are_refused(loose, copy, written, change, said):
    with pytest.raises(DataError, match=re.escape(said)):
        _to_arrays(loose, copy, **change)
    assert listing(copy) == listing(written)


def test_another_corpus_is_refused_or_takes_the_place(loose, copy, written):
    other = corpus_module.select(loose, np.arange(len(loose)) < 6)
    with pytest.raises(DataError, match="source fingerprint is.*source captions is.*Give another folder"):
        _to_arrays(other, copy)
    assert listing(copy) == listing(written)
    result = _to_arrays(other, copy, overwrite=True)
    assert result["captions"] == 6 and len(list(copy.glob("*.tar"))) == result["shards"] < len(
        list(written.glob("*.tar"))
    )
    assert np.array_equal(open_shards(copy, "train", verify=True).audio(5), loose.audio(5))


def test_overwrite_writes_the_same_anew(loose, copy, written):
    assert _to_arrays(loose, copy, overwrite=True)["written"] == len(list(written.glob("*.tar"))) and listing(
        copy
    ) == listing(written)


def test_files_of_somebody_else_are_left_alone(loose, tmp_path):
    (tmp_path / "train-00000.tar").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is there already, and no index says what it is"):
        _to_arrays(loose, tmp_path)
    assert (tmp_path / "train-00000.tar").read_bytes() == b"mine"
    _to_arrays(loose, tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine" and len(open_shards(tmp_path, "train")) == len(
        loose
    )


def test_splits_share_a_folder(loose, tmp_path):
    few = corpus_module.select(loose, np.arange(len(loose)) < 4)
    for name in ("dev", "dev-2", "dev.x", "dev_seen"):
        _to_arrays(few, tmp_path, split=name)
    before = listing(tmp_path)
    _to_arrays(few, tmp_path, split="dev", overwrite=True)
    assert listing(tmp_path) == before and set(verify_shards(tmp_path)) == {
        "dev",
        "dev-2",
        "dev.x",
        "dev_seen",
    }
    s = open_shards(tmp_path, "dev-2")
    # the name of the split is part of it
    assert s.split == "dev-2" and s.fingerprint != s.source_fingerprint == few.fingerprint
    with pytest.raises(DataError, match="no shards of a split train; there are dev, dev-2, dev.x, dev_seen"):
        open_shards(tmp_path, "train")


@pytest.mark.parametrize(
    "kw",
    [
        {"split": "a/b"},
        {"split": "../x"},
        {"split": "é"},
        {"split": ".x"},
        {"size": 0},
        {"shard_mb": 0},
        {"audio": "mp3"},
        {"jpeg_quality": 0},
        {"max_seconds": 0},
        {"max_unreadable": 2},
    ],
)
def test_impossible_settings(loose, tmp_path, kw):
    with pytest.raises(ConfigError):
        _to_arrays(loose, tmp_path / "out", **kw)
    assert not (tmp_path / "out").exists()


def test_no_room(loose, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SgmimError, match="cannot write"):
        _to_arrays(loose, tmp_path / "file" / "out")


# ---- what cannot be read


def spoil(c):
    "Faults of four kinds; the captions that they cost."
    c.image_path(2).unlink()
    blob = c.image_path(5).read_bytes()
    c.image_path(5).write_bytes(blob[: len(blob) // 2])
    js = [np.flatnonzero(c.image_of_caption == i) for i in range(N)]
    c.audio_path(js[0][0]).write_bytes(b"")
    c.audio_path(js[3][-1]).write_bytes(b"RIFF nonsense")
    for j in js[7]:
        c.audio_path(j).write_bytes(c.audio_path(j).read_bytes()[:44])
    return np.isin(np.arange(len(c)), [*js[2], *js[5], js[0][0], js[3][-1], *js[7]])


def test_unreadable_files_are_left_out_and_listed(own, loose, tmp_path):
    lost = spoil(own)
    result = _to_arrays(own, tmp_path / "s", max_unreadable=0.9)
    s, plain = open_shards(tmp_path / "s", "train"), corpus_module.select(loose, ~lost)
    assert (
        list(s.uttids) == list(plain.uttids)
        and list(s.image_names) == list(plain.image_names)
        and s.n_images == N - 3
        and s.fingerprint == plain.fingerprint != s.source_fingerprint == loose.fingerprint
    )
    for j in range(len(s)):
        assert np.array_equal(s.audio(j), plain.audio(j)) and np.array_equal(
            s.image(s.image_of_caption[j]), plain.image(plain.image_of_caption[j])
        )
    assert (
        result["left_out"]
        == s.skipped.counts
        == {"unreadable recording": 2 + int((loose.image_of_caption == 7).sum()), "unreadable image": 2}
    )
    whys = {k.where: k.why for k in s.skipped}
    assert (
        "does not exist" in whys[loose.image_names[2]]
        and "truncated" in whys[loose.image_names[5]]
        and "empty" in whys[loose.uttids[0]]
    )
    assert str(tmp_path) not in (tmp_path / "s/shards-train.json").read_text()
    for path in sorted((tmp_path / "s").glob("*.tar")):
        with tarfile.open(path) as t:
            for m in t:  # recordings are counted without gaps, and the JSON agrees with them
                if m.name.endswith("json"):
                    assert len(json.load(t.extractfile(m))["samples"]) == sum(
                        n.startswith(m.name[:9]) and n.endswith("flac") for n in t.getnames()
                    )
    with pytest.raises(DataError, match="sample 00000009"):  # the number of the source, as in the file
        monkey = s.reader.read
        s.reader.read = lambda k, at, size: b"\0" * size
        try:
            s.image(s.n_images - 1)
        finally:
            s.reader.read = monkey


def test_too_much_unreadable(own, tmp_path):
    lost = int(spoil(own).sum())
    with pytest.raises(
        DataError, match=r"captions are lost, and max_unreadable allows 0: .*left out.*overwrite=True"
    ):
        _to_arrays(own, tmp_path / "s", shard_mb=0.05)
    with pytest.raises(DataError, match="was interrupted"):
        open_shards(tmp_path / "s", "train")
    with pytest.raises(DataError, match="max_unreadable allows"):
        _to_arrays(own, tmp_path / "s", shard_mb=0.05, max_unreadable=(lost - 1) / len(own))
    before = len(list((tmp_path / "s").glob("*.tar")))
    with pytest.raises(DataError, match=r"[1-9]\d* captions are lost, and max_unreadable allows 0:"):
        _to_arrays(own, tmp_path / "s", shard_mb=0.05)  # those of the shards that are there count
    result = _to_arrays(own, tmp_path / "s", shard_mb=0.05, max_unreadable=lost / len(own))  # goes on
    assert result["written"] == result["shards"] - before < result["shards"] and before
    assert result["captions"] == len(own) - lost and sum(result["left_out"].values()) == len(
        read_json(tmp_path / "s/shards-train.json")["skipped"]
    )
    _to_arrays(own, tmp_path / "at once", shard_mb=0.05, max_unreadable=0.9)
    assert listing(tmp_path / "at once") == listing(tmp_path / "s")


def test_nothing_readable(own, tmp_path):
    shutil.rmtree(own.audio_root / "wavs")
    with pytest.raises(DataError, match="max_unreadable"):
        _to_arrays(own, tmp_path / "s")
    with pytest.raises(DataError, match="not one usable caption"):
        _to_arrays(own, tmp_path / "s", max_unreadable=1)


def test_what_was_left_out_before_is_remembered(own, tmp_path):
    own.audio_path(3).unlink()
    with pytest.warns(UserWarning):
        found = corpus_module.present(own)
    own.audio_path(4).write_bytes(b"")
    _to_arrays(found, tmp_path / "s", max_unreadable=0.1)
    assert open_shards(tmp_path / "s", "train").skipped.counts == {
        "missing recording": 1,
        "unreadable recording": 1,
    }


# ---- damage


def test_missing_and_truncated_shards(copy):
    (copy / "train-00001.tar").rename(copy / "elsewhere.tar")
    with pytest.raises(
        DataError,
        match=r"1 of \d+ shards cannot be used: .*train-00001.tar does not exist.*write_shards again",
    ):
        open_shards(copy, "train")
    (copy / "train-00001.tar").write_bytes((copy / "elsewhere.tar").read_bytes()[:-512])
    with pytest.raises(DataError, match=r"train-00001.tar has [\d,]+ bytes, and [\d,]+ are listed"):
        open_shards(copy, "train")


def test_changed_bytes(copy, loose):
    s, path = open_shards(copy, "train", verify=True), copy / "train-00000.tar"
    k, at, size, _ = s._image_at[0].tolist()
    good = path.read_bytes()

    def spoilt(where):
        path.write_bytes(good[:where] + bytes([good[where] ^ 1]) + good[where + 1 :])

    spoilt(at + size // 2)
    opened = open_shards(copy, "train")
    with pytest.raises(
        DataError, match=r"train-00000.tar in .*, sample 00000000, image: its bytes have changed \(CRC\)"
    ):
        opened.image(0)
    with pytest.raises(DataError, match="its bytes have changed"):
        opened.image_bytes(0)
    assert np.array_equal(opened.audio(0), loose.audio(0))
    for f in (
        lambda: open_shards(copy, "train", verify=True),
        lambda: verify_shards(copy),
        lambda: verify_shards(copy, "train"),
    ):
        with pytest.raises(DataError, match="train-00000.tar has changed: its digest"):
            f()
    k, at, size, _ = s._sound_at[0].tolist()
    spoilt(at + size // 4)
    for seconds in (None, 1.0):
        with pytest.raises(
            DataError, match=f"sample 00000000, recording {loose.uttids[0]}: its bytes have changed"
        ):
            open_shards(copy, "train").audio(0, seconds)
    path.write_bytes(good)
    assert set(verify_shards(copy)) == {"train"}


def test_a_shard_that_goes_while_it_is_used(copy):
    s = open_shards(copy, "train")
    s.image(0)
    os.truncate(copy / "train-00000.tar", 1000)
    with pytest.raises(DataError, match="sample 00000000, image: .*train-00000.tar ends before byte"):
        s.image(0)
    (copy / "train-00001.tar").unlink()
    with pytest.raises(DataError, match="train-00001.tar cannot be read: No such file"):
        s.image(int(np.flatnonzero(s.shard_of_image == 1)[0]))
    pairs = Pairs(s, skip=True)
    assert "unreadable" in pairs[0]


def test_nothing_there(tmp_path):
    for folder in (tmp_path, tmp_path / "no such folder"):
        with pytest.raises(DataError, match="has no shards of a split train. Is that the folder"):
            open_shards(folder, "train")
        with pytest.raises(DataError, match="has no shards"):
            verify_shards(folder)


def test_newer_index(copy):
    meta = read_json(copy / "shards-train.json")
    write_json(copy / "shards-train.json", {**meta, "format": 2})
    with pytest.raises(DataError, match="has format 2.*update sgmim"):
        open_shards(copy, "train")


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda m: [],
        lambda m: {},
        lambda m: {**m, "format": "one"},
        lambda m: {**m, "split": "dev"},
        lambda m: {**m, "shards": [{**m["shards"][0], "file": "../train-00000.tar"}]},
        lambda m: {**m, "shards": 3},
        lambda m: {k: v for k, v in m.items() if k != "columns"},
        lambda m: {**m, "captions": "7"},
        lambda m: {**m, "skipped": [1]},
        lambda m: {**m, "source": None},
    ],
)
def test_malformed_index(copy, change):
    write_json(copy / "shards-train.json", change(read_json(copy / "shards-train.json")))
    with pytest.raises(DataError, match="is not an index that write_shards wrote"):
        open_shards(copy, "train")


def test_truncated_index(copy):
    path = copy / "shards-train.json"
    path.write_text(path.read_text()[:300])
    with pytest.raises(DataError, match="not valid JSON"):
        open_shards(copy, "train")


def test_columns_that_do_not_belong(copy, loose):
    path = copy / "shards-train.npz"
    good = path.read_bytes()
    for bad in (good[:-10], good[:500] + b"x" + good[501:]):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="is not the one of shards-train.json"):
            open_shards(copy, "train")
        with pytest.raises(DataError, match="is not the one of shards-train.json"):
            _to_arrays(loose, copy)
    path.unlink()
    with pytest.raises(DataError, match="shards-train.npz cannot be read"):
        open_shards(copy, "train")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, row, value",
    [
        ("image_at", (0, 1), 10**9),
        ("sound_at", (2, 0), 99),
        ("sound_at", (0, 2), -5),
        ("_image_of_caption", (0,), 1000),
        ("image_at", None, None),
        ("_samples", None, None),
    ],
)
def test_columns_that_lie(copy, name, row, value):
    "An index whose digests agree and whose content does not."
    with np.load(copy / "shards-train.npz") as z:
        columns = {k: z[k] for k in z.files}
    if row is None:
        columns[name] = columns[name][:-1]
    else:
        columns[name][row] = value
    np.savez_compressed(copy / "shards-train.npz", **columns)
    blob, meta = (copy / "shards-train.npz").read_bytes(), read_json(copy / "shards-train.json")
    write_json(
        copy / "shards-train.json",
        {
            **meta,
            "columns": {"bytes": len(blob), "blake2b": hashlib.blake2b(blob, digest_size=16).hexdigest()},
        },
    )
    with pytest.raises(DataError, match="is not what write_shards writes"):
        open_shards(copy, "train")
