"""Indexing a folder and searching it: what is kept in step, what is refused, what happens when it is
interrupted; and that exact search is exact."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
import torch
from conftest import micro, run_python
from PIL import Image

from sgmim.apps import search
from sgmim.apps.commands import run_command
from sgmim.apps.search import (
    EmbedOptions,
    File,
    Index,
    _best_rows,
    _write_part,
    _Writer,
    embed_pictures,
    update_index,
)
from sgmim.core import ConfigError, DataError, read_json, write_json
from sgmim.data.audio import write_audio
from sgmim.models.sgmim import SGMIM, save_model

KEY = ("kept", "added", "changed", "removed")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SGMIM(micro()).eval()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    save_model(model, folder := tmp_path_factory.mktemp("checkpoint"))
    return folder


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos/a/b").mkdir(parents=True)
    for i in range(30):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
            tmp_path / "photos" / ("a/b" if i % 3 else ".") / f"{i:02d}.png"
        )
    return tmp_path / "photos"


def update(tmp_path, photos, model, max_seconds=10.0, **more):
    options = EmbedOptions(max_seconds, batch_size=8)
    return update_index(tmp_path / "index", photos, model, options=options, progress=False, **more)


def numbers(done):
    return {k: getattr(done, k) for k in KEY}


def vectors(folder):
    return {
        f.path: z
        for f, z in zip(Index.open(folder).files, np.concatenate(Index.open(folder).parts), strict=True)
    }


def counted(model, monkeypatch):
    "How many pictures are embedded from here on, as a list of one number."
    n = [0]

    def embed(model, pictures):
        n[0] += len(pictures)
        return embed_pictures(model, pictures)

    monkeypatch.setattr(search, "embed_pictures", embed)
    return n


# --- exact search


@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_exact(block):
    "The order of 64-bit scores, ties in the order of rows, however the rows are cut into parts and blocks."
    rng = np.random.default_rng(block)
    z = rng.normal(size=(500, 12)).astype(np.float32)
    z[rng.integers(0, 500, 100)] = z[3]  # a hundred rows alike
    for trial in range(20):
        q = z[3] if trial % 2 else rng.normal(size=12).astype(np.float32)
        cut = int(rng.integers(0, 500))
        k = int(rng.integers(1, 120))
        rows, scores = _best_rows([z[:cut], z[cut:]], q, k, float(np.linalg.norm(z, axis=1).max()), block)
        right = z.astype(np.float64) @ q.astype(np.float64)
        assert (rows[np.lexsort((rows, -scores))][:k] == np.argsort(-right, kind="stable")[:k]).all()


def test_near_ties():
    "Scores that 32 bits cannot tell apart come in the order of 64 bits."
    q = np.ones(64, np.float32)
    z = np.ones((200, 64), np.float32) + np.float32(2**-23) * np.random.default_rng(0).integers(
        0, 3, (200, 64)
    ).astype(np.float32)
    rows, scores = _best_rows([z], q, 10, float(np.linalg.norm(z, axis=1).max()), 13)
    right = z.astype(np.float64) @ q.astype(np.float64)
    assert (rows[np.lexsort((rows, -scores))][:10] == np.argsort(-right, kind="stable")[:10]).all()


def test_ties_by_path_and_bad_queries(tmp_path):
    z = np.tile(np.array([[3.0, 4.0]]), (4, 1))
    files = [File(p, 1, 1) for p in ("d.png", "b.png", "c.png", "a.png")]
    entry = _write_part(tmp_path, z, files)
    index = Index(tmp_path, {"width": 2, "parts": [entry]}, [z.astype(np.float32)], files)
    assert [(h.rank, h.path, h.score) for h in index.search([1, 0], 3)] == [
        (1, "a.png", 3.0),
        (2, "b.png", 3.0),
        (3, "c.png", 3.0),
    ]
    assert len(index.search([1, 0], 99)) == 4
    for bad in ([1, 2, 3], [np.nan, 1], [[1, 2]]):
        with pytest.raises(DataError):
            index.search(bad)
    with pytest.raises(ConfigError):
        index.search([1, 0], 0)


# --- in step with a folder


def test_incremental(tmp_path, photos, model, monkeypatch):
    "Only what is new or changed is embedded, and the index is that of the folder as it is."
    n = counted(model, monkeypatch)
    assert numbers(update(tmp_path, photos, model)) == dict(kept=0, added=30, changed=0, removed=0) and n == [
        30
    ]
    before = vectors(tmp_path / "index")
    assert numbers(update(tmp_path, photos, model)) == dict(kept=30, added=0, changed=0, removed=0) and n == [
        30
    ]
    (photos / "00.png").unlink()
    shutil.copy(photos / "03.png", photos / "a/ü 3.png")
    Image.new("RGB", (32, 32), "red").save(photos / "06.png")
    os.utime(photos / "09.png", ns=(1, 1))  # touched: it may have changed
    assert numbers(update(tmp_path, photos, model)) == dict(kept=27, added=1, changed=2, removed=1) and n == [
        33
    ]
    after = vectors(tmp_path / "index")
    assert set(after) == set(before) - {"00.png"} | {"a/ü 3.png"}
    same = set(after) & set(before) - {"06.png"}
    assert all(np.allclose(after[p], before[p], atol=1e-5) for p in same) and not np.allclose(
        after["06.png"], before["06.png"], atol=1e-3
    )
    # parts are joined, what is old is deleted
    assert len(Index.open(tmp_path / "index").parts) == 1 and len(list((tmp_path / "index").iterdir())) == 3


def test_left_out(tmp_path, photos, model):
    "What is no picture, or not below the folder, is counted; mended, it is taken in."
    (photos / "half.png").write_bytes((photos / "00.png").read_bytes()[:700])
    (photos / "empty.jpg").touch()
    (photos / "strip.png").write_bytes(b"")
    Image.new("RGB", (4000, 10)).save(photos / "strip.png")
    (photos / "out.png").symlink_to("/etc/hostname")
    (photos / "gone.png").symlink_to("nowhere")
    (photos / "circle").symlink_to("..")
    os.mkfifo(photos / "pipe.png")
    (photos / ".hidden.png").write_bytes(b"x")
    (photos / "notes.txt").write_text("no picture")
    (photos / "alias.png").symlink_to("03.png")  # stays inside: a picture like any other
    with open(os.fsencode(photos) + b"/\xff.png", "wb") as f:
        f.write(b"x")
    done = update(tmp_path, photos, model)
    assert done.added == 31 and {p for p, _ in done.left_out} == {
        "half.png",
        "empty.jpg",
        "strip.png",
        "out.png",
        "gone.png",
        "circle",
        "pipe.png",
        "\\xff.png",
    }
    assert Index.open(tmp_path / "index").about["left_out_count"] == 8
    shutil.copy(photos / "00.png", photos / "half.png")
    assert update(tmp_path, photos, model).added == 1
    (photos / "half.png").write_bytes(b"broken")
    # a picture that broke is out
    assert numbers(update(tmp_path, photos, model)) == dict(kept=31, added=0, changed=0, removed=1)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 2])
def test_interrupted(tmp_path, photos, model, monkeypatch, after):
    """Stopped by Ctrl-C or killed, it goes on: nothing is embedded twice that was written, and until the
    end the old index is searched."""
    n, add = counted(model, monkeypatch), _Writer.add

    def stop(writer, *some):
        add(writer, *some, every=0)
        if len(writer.entries) > after:
            raise KeyboardInterrupt if after else RuntimeError("killed")

    monkeypatch.setattr(_Writer, "add", stop)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        update(tmp_path, photos, model)
    with pytest.raises(DataError, match="was interrupted: run sgmim_index again"):
        Index.open(tmp_path / "index")
    monkeypatch.setattr(_Writer, "add", add)
    assert update(tmp_path, photos, model).added == 30 - 8 * (after + 1) and n == [30]
    fresh = update_index(tmp_path / "fresh", photos, model, progress=False)
    assert fresh.added == 30 and all(
        np.allclose(z, vectors(tmp_path / "fresh")[p], atol=1e-5)
        for p, z in vectors(tmp_path / "index").items()
    )
    shutil.copy(photos / "03.png", photos / "new.png")
    monkeypatch.setattr(_Writer, "add", lambda *a: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError):
        update(tmp_path, photos, model)
    assert len(Index.open(tmp_path / "index")) == 30 and (tmp_path / "index/unfinished.json").exists()


def test_two_at_once(tmp_path, photos, model, monkeypatch):
    "Of two processes that write one index, one gives way."
    add = _Writer.add

    def other(writer, *some):
        monkeypatch.setattr(_Writer, "add", add)
        update(tmp_path, photos, model)
        add(writer, *some, every=0)

    monkeypatch.setattr(_Writer, "add", other)
    with pytest.raises(DataError, match="another sgmim_index is at work"):
        update(tmp_path, photos, model)
    assert len(Index.open(tmp_path / "index")) == 30


@pytest.mark.slow
def test_killed_process(tmp_path, photos, checkpoint):
    "kill -9 in the middle, in a process of its own."
    code = """if True:
        import os, sys
        from sgmim.apps.search import _Writer
        from sgmim.apps.commands import run_command
        add = _Writer.add
        def stop(writer, *some):
            add(writer, *some, every=0)
            if len(writer.entries) == 2: os.kill(os.getpid(), 9)
        _Writer.add = stop
        run_command("sgmim_index")"""
    arguments = [
        checkpoint,
        "--images",
        photos,
        "--out",
        tmp_path / "index",
        "--batch-size",
        8,
        "--device",
        "cpu",
    ]
    assert run_python(code, *arguments).returncode == -9
    assert (
        run_command("sgmim_index", [str(a) for a in arguments]) == 0
        and len(Index.open(tmp_path / "index")) == 30
    )


# --- refusals


def test_other_weights_kind_or_folder(tmp_path, photos, model):
    update(tmp_path, photos, model)
    other = SGMIM(micro()).eval()
    with pytest.raises(DataError, match="was made by the weights"):
        update(tmp_path, photos, other)
    with pytest.raises(DataError, match="hears so many seconds"):
        update(tmp_path, photos, model, max_seconds=25)
    (tmp_path / "sounds").mkdir()
    write_audio(tmp_path / "sounds/a.wav", np.zeros(20_000, np.float32))
    with pytest.raises(DataError, match="holds images, and this is audio"):
        update(tmp_path, tmp_path / "sounds", model, kind="audio")
    with pytest.raises(DataError, match="holds no images"):
        update(tmp_path, tmp_path / "sounds", model)
    for p in list(photos.rglob("*.png"))[:20]:
        p.unlink()
    with pytest.raises(DataError, match="20 of the 30 files.*--prune"):
        update(tmp_path, photos, model)
    assert update(tmp_path, photos, model, prune=True).removed == 20
    photos.rename(tmp_path / "moved")  # the same files elsewhere: nothing to embed
    assert (
        numbers(update(tmp_path, tmp_path / "moved", model)) == dict(kept=10, added=0, changed=0, removed=0)
        and Index.open(tmp_path / "index").root == tmp_path / "moved"
    )


def test_not_an_index(tmp_path, photos, model):
    for folder, match in ((tmp_path / "nothing", "holds no index"), (photos, "holds no index")):
        with pytest.raises(DataError, match=match):
            Index.open(folder)
    with pytest.raises(DataError, match="is not empty and no index"):
        update_index(photos, photos, model, progress=False)
    with pytest.raises(DataError, match="is a file"):
        update_index(photos / "00.png", photos, model, progress=False)
    write_json(tmp_path / "index/index.json", {"a": 1})
    for call in (lambda: Index.open(tmp_path / "index"), lambda: update(tmp_path, photos, model)):
        with pytest.raises(DataError, match="not of an index that sgmim_index made"):
            call()


def _edit(folder, **changes):
    write_json(folder / "index.json", {**read_json(folder / "index.json"), **changes})


DAMAGE = {
    "truncated json": (
        lambda f: (f / "index.json").write_bytes((f / "index.json").read_bytes()[:200]),
        "Delete the folder",
    ),
    "newer": (lambda f: _edit(f, version=9), "version 9"),
    "kind": (lambda f: _edit(f, kind="films"), "'kind'"),
    "parts": (lambda f: _edit(f, parts=[{"name": "../../x"}]), "'parts'"),
    "name": (
        lambda f: _edit(f, parts=[{**read_json(f / "index.json")["parts"][0], "name": "part-/../../x"}]),
        "'parts'",
    ),
    "rows": (
        lambda f: _edit(f, parts=[{**read_json(f / "index.json")["parts"][0], "rows": 7}]),
        "Run sgmim_index again",
    ),
    "width": (lambda f: _edit(f, width=17), "Run sgmim_index again"),
    "vectors cut": (lambda f: os.truncate(next(f.glob("*.npy")), 300), "Run sgmim_index again"),
    "vectors gone": (lambda f: next(f.glob("*.npy")).unlink(), "Run sgmim_index again"),
    "names cut": (lambda f: os.truncate(next(f.glob("part-*.json")), 100), "Run sgmim_index again"),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged(tmp_path, photos, model, damage):
    "Recognised, and what can be mended is mended by the same command."
    update(tmp_path, photos, model)
    change, match = DAMAGE[damage]
    change(tmp_path / "index")
    with pytest.raises(DataError, match=match):
        Index.open(tmp_path / "index")
    if "again" in match:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            update(tmp_path, photos, model)
        if damage != "width":
            assert len(Index.open(tmp_path / "index")) == 30


def test_one_bit(tmp_path, photos, model):
    update(tmp_path, photos, model)
    part = next((tmp_path / "index").glob("*.npy"))
    blob = bytearray(part.read_bytes())
    blob[-5] ^= 1
    part.write_bytes(blob)
    with pytest.raises(DataError, match="not what was written"):
        Index.open(tmp_path / "index")
    assert len(Index.open(tmp_path / "index", verify=False)) == 30


def test_pickles_are_not_opened(tmp_path, photos, model):
    update(tmp_path, photos, model)
    part = next((tmp_path / "index").glob("*.npy"))
    np.save(part, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="damaged"):
        Index.open(tmp_path / "index", verify=False)


# --- the commands


@pytest.fixture
def indexed(tmp_path, photos, checkpoint):
    assert (
        run_command(
            "sgmim_index",
            [str(checkpoint), "--images", str(photos), "--out", str(tmp_path / "index"), "--device", "cpu"],
        )
        == 0
    )
    return tmp_path / "index"


def test_commands(tmp_path, indexed, photos, checkpoint, model, capsys):
    "A recording finds what its vector finds; `--json` and text say the same."
    wave = np.random.default_rng(0).normal(0, 0.1, 30_000).clip(-1, 1).astype(np.float32)
    write_audio(tmp_path / "q.wav", wave)
    capsys.readouterr()
    assert (
        run_command(
            "sgmim_search", [str(indexed), str(tmp_path / "q.wav"), "--top", "4", "--json", "--device", "cpu"]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (
        found["items"] == 30
        and found["exact"]
        and found["similarity"] == "cosine"
        and len(found["hits"]) == 4
    )
    with torch.no_grad():
        q = torch.nn.functional.normalize(
            model.embed_audio(torch.from_numpy(wave)[None], torch.tensor([len(wave)])), dim=1
        ).numpy()[0]
    by_hand = sorted(((-float(z @ q), p) for p, z in vectors(indexed).items()))
    assert [h["path"] for h in found["hits"]] == [str(photos / p) for _, p in by_hand[:4]] and found["hits"][
        0
    ]["score"] == pytest.approx(-by_hand[0][0], abs=1e-3)
    (photos / by_hand[0][1]).unlink()
    assert (
        run_command("sgmim_search", [str(indexed), str(tmp_path / "q.wav"), "--top", "4", "--device", "cpu"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == [h["path"] for h in found["hits"]] and lines[0].endswith(
        "(gone)"
    )
    assert run_command("sgmim_search", [str(indexed), "--say", "a red boat", "--device", "cpu"]) == 0


def test_captions(tmp_path, photos, checkpoint, capsys):
    "An index of recordings, searched by a picture; a recording that is no sound is left out."
    (tmp_path / "sounds").mkdir()
    for j in range(5):
        write_audio(
            tmp_path / "sounds" / f"{j}.wav",
            np.random.default_rng(j).normal(0, 0.1, 8000 + 3000 * j).clip(-1, 1).astype(np.float32),
        )
    (tmp_path / "sounds/bad.wav").write_bytes(b"RIFF0000WAVE")
    write_audio(tmp_path / "sounds/short.wav", np.full(500, 0.1, np.float32))
    assert (
        run_command(
            "sgmim_index",
            [
                str(checkpoint),
                "--audio",
                str(tmp_path / "sounds"),
                "--out",
                str(tmp_path / "i"),
                "--device",
                "cpu",
            ],
        )
        == 0
    )
    assert "2 left out" in capsys.readouterr().out
    assert (
        run_command(
            "sgmim_search", [str(tmp_path / "i"), str(photos / "03.png"), "--json", "--device", "cpu"]
        )
        == 0
    )
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 5
    assert (
        run_command("sgmim_search", [str(tmp_path / "i"), "--say", "a boat", "--device", "cpu"]) == 1
        and "search it with a picture" in capsys.readouterr().err
    )


def test_refusals_of_the_commands(tmp_path, indexed, checkpoint, photos, capsys):
    def refused(*args):
        assert run_command("sgmim_search", [*map(str, args), "--device", "cpu"]) == 1
        return capsys.readouterr().err

    assert "sgmim_search: give the file of a query" in refused(indexed)
    assert "search it with speech" in refused(indexed, photos / "03.png")
    assert "does not exist" in refused(indexed, tmp_path / "none.wav")
    (tmp_path / "text.wav").write_text("hello")
    assert "cannot be read as sound" in refused(indexed, tmp_path / "text.wav")
    save_model(SGMIM(micro()), tmp_path / "other")
    assert "made by other weights" in refused(indexed, "--say", "a boat", "--checkpoint", tmp_path / "other")
    _edit(indexed, checkpoint=str(tmp_path / "moved"))
    assert "give its new place with --checkpoint" in refused(indexed, "--say", "a boat")
    assert (
        run_command(
            "sgmim_search",
            [str(indexed), "--say", "a boat", "--checkpoint", str(checkpoint), "--device", "cpu"],
        )
        == 0
    )


def test_hostile_names_are_printed_harmless():
    assert search.printable("a\x1b[31m\nb") == "a\ufffd[31m\ufffdb"


def test_faiss(indexed, photos, model, checkpoint, capsys):
    pytest.importorskip("faiss")
    index = Index.open(indexed)
    with pytest.raises(DataError, match="--approximate"):
        search.open_approximate(index)
    search.build_approximate(index, lists=4)
    grouped = search.open_approximate(index)
    q = np.random.default_rng(0).normal(size=16).astype(np.float32)
    # all groups: exact
    assert [h.path for h in search.search_approximate(index, grouped, q, 7, probes=4)] == [
        h.path for h in index.search(q, 7)
    ]
    assert (
        run_command("sgmim_search", [str(indexed), "--say", "a boat", "--approximate", "--device", "cpu"])
        == 0
    )
    (photos / "03.png").unlink()
    update_index(indexed, photos, model, progress=False)
    with pytest.raises(DataError, match="older than the index"):
        search.open_approximate(Index.open(indexed))
    assert not list(indexed.glob("*.faiss"))
    path = search.build_approximate(Index.open(indexed))
    path.write_bytes(b"junk")
    with pytest.raises(DataError, match="is damaged"):
        search.open_approximate(Index.open(indexed))
