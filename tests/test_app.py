"""The search app, by real HTTP requests: what it answers, what it refuses, that it stays up; and once in a
real browser, with a microphone that plays a sentence."""

import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, chromium
from PIL import Image

from sgmim.apps import app
from sgmim.apps.app import (
    MAX_BYTES,
    Refusal,
    Searcher,
    Server,
    _how_well_people_are_understood,
    _parts_of,
    decode_upload,
)
from sgmim.apps.commands import run_command
from sgmim.apps.search import Index, update_index
from sgmim.core import ConfigError
from sgmim.data.audio import RATE, write_audio
from sgmim.models.pretrained import shipped
from sgmim.models.sgmim import load_model
from sgmim.scenes.corpus import load_scenes
from sgmim.scenes.voices import SPEAKERS, speak


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache):
    "An index of 60 pictures of the embedded corpus, with names that are meant badly among them."
    folder = tmp_path_factory.mktemp("app")
    corpus = load_scenes("test-seen", 60, cache=cache, progress=False)
    (folder / "photos/deep").mkdir(parents=True)
    for i in range(60):
        Image.fromarray(corpus.image(i)).save(
            folder / "photos" / ("deep" if i % 4 == 0 else ".") / f"{i:03d}.png"
        )
    shutil.copy(folder / "photos/001.png", folder / "photos/<img src=x onerror=document.title=1>.png")
    update_index(
        folder / "index",
        folder / "photos",
        load_model(shipped("scenes-tiny"), device="cpu"),
        checkpoint=shipped("scenes-tiny"),
        progress=False,
    )
    write_audio(folder / "speech.wav", np.clip(corpus.audio(0), -1, 1))
    (folder / "text").write_text(corpus.captions[0].text)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    server = Server(
        Searcher(Index.open(folder / "index"), load_model(shipped("scenes-tiny"), device="cpu"), top=12),
        names=["MyPC"],
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class Answer:
    def __init__(self, reply):
        self.status, self.headers, self.body = reply.status, reply.headers, reply.read()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        assert 400 <= self.status < 600 and set(self.json) == {"error"}, (self.status, self.body)
        assert (
            "Traceback" not in self.json["error"]
            and "/tmp" not in self.json["error"]
            and 20 < len(self.json["error"]) < 400
        ), self.json
        return self.json["error"]


def request(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def raw(server, blob, wait=30):
    "Send bytes as they are; what comes back until the connection ends."
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=wait) as s:
        s.sendall(blob)
        s.shutdown(socket.SHUT_WR)
        got = b""
        while piece := s.recv(65_536):
            got += piece
    return got


def upload(server, blob, kind="audio/wav", **headers):
    return request(server, "POST", "/search", blob, {"Content-Type": kind, **headers})


def encoded(folder, wave, suffix, rate=RATE):
    write_audio(folder / f"x.{suffix}", wave, rate)
    return (folder / f"x.{suffix}").read_bytes()


# --- what it is for


def test_page(server):
    "Three files, nothing from elsewhere, and headers that see to it."
    for path, kind in (("/", "text/html"), ("/search.css", "text/css"), ("/search.js", "text/javascript")):
        got = request(server, "GET", path)
        assert (
            got.status == 200
            and got.headers["Content-Type"].startswith(kind)
            and b"http://" not in got.body
            and b"https://" not in got.body
        )
        assert (
            "default-src 'none'" in got.headers["Content-Security-Policy"]
            and got.headers["X-Content-Type-Options"] == "nosniff"
        )
    page = request(server, "GET", "/").body.decode()
    assert (
        '<html lang="en">' in page
        and "aria-live" in page
        and " on" not in "".join(page.split("<")[1:20]).replace(" one", "")
    )
    assert request(server, "HEAD", "/").body == b""
    about = request(server, "GET", "/about").json
    assert (
        about["items"] == 61
        and about["checkpoint"] == "scenes-tiny"
        and about["max_bytes"] == MAX_BYTES
        and len(about["colours"]) == 4
    )


def test_search_by_recording(server, folder):
    "What a recording finds is what `Index.search` finds; each picture can be fetched, each part has a map."
    got = upload(server, (folder / "speech.wav").read_bytes()).json
    index, searcher = server.searcher.index, server.searcher
    z = searcher.queries[got["query"]].z
    assert [h["row"] for h in got["hits"]] == [h.row for h in index.search(z, 12)] and got["hits"][0][
        "rank"
    ] == 1
    assert (
        0 < got["heard"] <= got["seconds"]
        and np.shape(got["attention"]["heads"])[0] == 4
        and got["parts"][0]["start"] == 0
    )
    picture = request(server, "GET", f"/image/{got['hits'][0]['row']}")
    assert picture.headers["Content-Type"] == "image/jpeg" and Image.open(io.BytesIO(picture.body)).size == (
        320,
        320,
    )
    found = request(server, "GET", f"/map?query={got['query']}&row={got['hits'][0]['row']}").json
    assert (
        found["grid"] == 8
        and np.shape(found["values"]) == (len(got["parts"]), 64)
        and found["low"] == pytest.approx(np.min(found["values"]), abs=1e-4)
        and found["high"] == pytest.approx(np.max(found["values"]), abs=1e-4)
    )


@pytest.mark.parametrize(
    "suffix,kind",
    [("wav", "audio/x-wav"), ("flac", "audio/flac"), ("ogg", "audio/ogg"), ("mp3", "audio/mpeg")],
)
def test_formats(server, folder, suffix, kind):
    rng = np.random.default_rng(0)
    stereo = np.clip(rng.normal(0, 0.1, (44_100, 2)), -1, 1)
    got = upload(server, encoded(folder, stereo, suffix, 44_100), kind)
    assert got.status == 200 and abs(got.json["seconds"] - 1) < 0.1


def test_search_by_text(server, folder):
    """A typed sentence is said, its words are the parts, and the sound comes along; the maps are those of
    the grounding notebook."""
    text = (folder / "text").read_text()
    got = request(
        server, "POST", "/say", json.dumps({"text": text}), {"Content-Type": "application/json"}
    ).json
    said = speak(text, SPEAKERS["en-us-m3"])
    assert (
        [p["word"] for p in got["parts"]] == [w for w, _, _ in said.words]
        and got["said"] == text
        and got["sound"].startswith("UklGR")
    )
    assert {"thing", "other"} <= {p["kind"] for p in got["parts"]}
    from sgmim.data.image import normalise
    from sgmim.evaluation.grounding import SpokenWord, heat_maps, patch_features, word_features

    s, row = server.searcher, got["hits"][2]["row"]
    batch = {"audio": torch.from_numpy(said.wave)[None], "audio_len": torch.tensor([len(said.wave)])}
    z = word_features(
        s.model,
        batch,
        [0] * len(said.words),
        [SpokenWord(0, 0, *w[:1], "", *w[1:]) for w in said.words],
        ("without",),
    )["without"]
    image = normalise(
        np.asarray(Image.open(folder / "photos" / s.index.files[row].path).convert("RGB"))[None]
    )
    right = heat_maps(patch_features(s.model, image)[0], z, "dot").numpy()
    assert np.allclose(
        request(server, "GET", f"/map?query={got['query']}&row={row}").json["values"],
        right,
        atol=2e-3 * abs(right).max() + 1e-4,
    )


def test_long_recordings_are_heard_in_part(server, folder):
    got = upload(
        server,
        encoded(folder, np.clip(np.random.default_rng(0).normal(0, 0.1, 20 * RATE), -1, 1), "flac"),
        "audio/flac",
    ).json
    assert got["seconds"] == pytest.approx(20) and got["heard"] == pytest.approx(10)


def test_questions_are_forgotten(server, folder):
    searcher = Searcher(server.searcher.index, server.searcher.model, keep=2)
    sound = speak("a boat", SPEAKERS["en-us-m3"]).wave
    names = [searcher.ask(sound, 1.0)["query"] for _ in range(4)]
    assert list(searcher.queries) == names[2:]
    searcher.maps(names[3], 0)
    for _ in range(3):
        searcher.ask(sound, 1.0)
    assert not searcher.features
    with pytest.raises(Refusal, match="no longer remembered"):
        searcher.maps(names[0], 0)


def test_parts():
    "Parts cover the sound, in order, and are few, whatever the attention."
    for T in (1, 2, 5, 400):
        for seed in range(5):
            W = np.random.default_rng(seed).random((4, T))
            parts = _parts_of(W, 0.05, 0.04, T * 0.04 + 0.06)
            assert (
                1 <= len(parts) <= 24
                and parts[0][1] == 0
                and all(a < b for _, a, b in parts)
                and all(x[2] == y[1] for x, y in zip(parts, parts[1:], strict=False))
            )


# --- hostile uploads


def flac_that_claims(blob, frames):
    "A FLAC file whose header claims so many frames (36 bits)."
    at = 8 + 10  # 'fLaC', block header, then 80 bits of sizes before rate, channels, bits and frames
    packed = int.from_bytes(blob[at : at + 8], "big") >> 36 << 36 | frames
    return blob[:at] + packed.to_bytes(8, "big") + blob[at + 8 :]


def wav_that_claims(rate=RATE, channels=1, bits=16, data=1000, said=None):
    body = bytes(range(256)) * (data // 256 + 1)
    step = channels * bits // 8
    return (
        b"RIFF"
        + struct.pack("<I", 36 + data)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * step & 0xFFFFFFFF, step, bits)
        + b"data"
        + struct.pack("<I", data if said is None else said)
        + body[:data]
    )


def hostile(folder):
    "{name: (bytes, content type, status)}"
    good, rng = (folder / "speech.wav").read_bytes(), np.random.default_rng(0)
    silence = encoded(folder, np.full(RATE * 600, 0.001, np.float32), "flac")
    silent = wav_that_claims(data=32_000)[:44] + bytes(32_000)
    short_flac = encoded(folder, np.clip(rng.normal(0, 0.1, RATE), -1, 1), "flac")
    return {
        "empty": (b"", "audio/wav", 400),
        "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(500), "audio/wav", 415),
        "a page": (b"<html><script>alert(1)</script>", "audio/wav", 415),
        "a program": (b"\x7fELF" + bytes(500), "audio/mpeg", 415),
        "a zip": (b"PK\3\4" + bytes(500), "audio/flac", 415),
        "aiff": (b"FORM\0\0\1\0AIFF" + bytes(500), "audio/wav", 415),
        "noise as mp3": (b"ID3" + rng.bytes(5000), "audio/mpeg", 422),
        "noise as flac": (b"fLaC" + rng.bytes(5000), "audio/flac", 422),
        "noise as ogg": (b"OggS" + rng.bytes(5000), "audio/ogg", 422),
        "noise as wav": (b"RIFF\0\0\0\0WAVE" + rng.bytes(5000), "audio/wav", 422),
        "truncated wav": (good[: len(good) // 2], "audio/wav", 422),
        "header alone": (good[:44], "audio/wav", 422),
        "half a header": (good[:20], "audio/wav", 422),
        "truncated flac": (short_flac[: len(short_flac) // 2], "audio/flac", 422),
        "flac bomb": (silence, "audio/flac", 413),
        "flac that claims years": (flac_that_claims(short_flac, 2**36 - 1), "audio/flac", 413),
        "flac that claims more than it has": (flac_that_claims(short_flac, 50 * RATE), "audio/flac", 422),
        "too long": (encoded(folder, np.full(RATE * 61, 0.01, np.float32), "flac"), "audio/flac", 413),
        "wav of ten hours, cut": (wav_that_claims(said=10 * 3600 * RATE * 2), "audio/wav", 422),
        "no rate": (wav_that_claims(rate=0), "audio/wav", 422),
        "absurd rate": (wav_that_claims(rate=2**31 - 1), "audio/wav", 422),
        "low rate": (wav_that_claims(rate=1), "audio/wav", 422),
        "many channels": (wav_that_claims(channels=500), "audio/wav", 422),
        "no channels": (wav_that_claims(channels=0), "audio/wav", 422),
        "no samples": (wav_that_claims(data=0), "audio/wav", 422),
        "silence": (silent, "audio/wav", 422),
        "a click": (encoded(folder, np.full(100, 0.5, np.float32), "wav"), "audio/wav", 422),
        "not sound": (good, "application/octet-stream", 415),
        "no type": (good, "", 415),
        "a form": (good, "multipart/form-data; boundary=x", 415),
    }


def test_hostile_uploads(server, folder, capsys):
    """Each gets its status and a sentence; nothing of it reaches the terminal as an error; and the server
    answers afterwards."""
    for name, (blob, kind, status) in hostile(folder).items():
        got = upload(
            server,
            blob,
            kind,
            **{
                "X-File-Name": "../../etc/passwd",
                "Content-Disposition": 'attachment; filename="/etc/passwd"',
            },
        )
        assert (got.status, bool(got.error)) == (status, True), (name, got.status, got.body)
    assert capsys.readouterr().err == ""
    assert upload(server, (folder / "speech.wav").read_bytes()).status == 200


def test_bombs_take_no_memory(folder):
    """A file that unpacks to 600 seconds is refused by its header; one that lies is read no further than
    it claims."""
    import tracemalloc

    all_of = hostile(folder)
    for name in ("flac bomb", "flac that claims years", "flac that claims more than it has"):
        tracemalloc.start()
        with pytest.raises(Refusal):
            decode_upload(all_of[name][0], 10.0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20e6, (name, peak)


def test_large_uploads(server, folder):
    "A body over the limit is refused by its size, also where it is ten hours of wav."
    got = upload(server, bytes(MAX_BYTES + 1))
    assert got.status == 413 and "at most 16 MiB" in got.error
    answer = raw(
        server,
        f"POST /search HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nContent-Type:"
        f" audio/wav\r\nContent-Length: {10 * 3600 * 32_000}\r\n\r\n".encode()
        + bytes(100_000),
    )
    assert b" 413 " in answer.split(b"\r\n")[0]


@pytest.mark.parametrize(
    "head,status",
    [
        ("Content-Type: audio/wav\r\nTransfer-Encoding: chunked", 411),
        ("Content-Type: audio/wav", 411),
        ("Content-Type: audio/wav\r\nContent-Length: -5", 411),
        ("Content-Type: audio/wav\r\nContent-Length: 1e3", 411),
        ("Content-Type: audio/wav\r\nContent-Length: 5000", 400),
    ],
)
def test_lengths(server, head, status):
    "No length, a length that is none, and a body that ends early."
    answer = raw(
        server, f"POST /search HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n{head}\r\n\r\nabc".encode()
    )
    assert (
        f" {status} ".encode() in answer.split(b"\r\n")[0]
        and b'"error"' in answer
        and answer.count(b"HTTP/1.1") == 1
    )


def test_slow_senders(server, monkeypatch):
    "A request that trickles is given up, and others are answered meanwhile."
    monkeypatch.setattr(app._Answers, "timeout", 0.4)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as s:
        s.sendall(
            f"POST /search HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nContent-Type:"
            " audio/wav\r\nContent-Length: 5000\r\n\r\n".encode()
        )
        assert request(server, "GET", "/about").status == 200
        assert s.recv(100) == b""
    read = app._read_body
    monkeypatch.setattr(app, "_read_body", lambda *a: read(*a, seconds=0))
    assert (
        b" 408 "
        in raw(
            server,
            f"POST /search HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nContent-Type:"
            " audio/wav\r\nContent-Length: 3\r\n\r\nabc".encode(),
        ).split(b"\r\n")[0]
    )


@pytest.mark.parametrize(
    "body,status",
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"text": 5}', 400),
        (b'{"text": ""}', 422),
        (b'{"text": "...!"}', 422),
        (json.dumps({"text": "a " * 200}).encode(), 413),
        (b'{"text": "a\\u0000b"}', 413),
        (b"[" * 2390, 400),
        (b"x" * 5000, 413),
        (b"\xff\xfe", 400),
    ],
)
def test_hostile_sentences(server, body, status):
    got = request(server, "POST", "/say", body, {"Content-Type": "application/json"})
    assert got.status == status and got.error


def test_odd_sentences(server):
    for text in (
        "<script>alert(1)</script> boat",
        "[[DROP TABLE]] & ; `reboot` boat",
        "ein Bööt \ud83d",
        "a" + "\u0301" * 50,
        '<speak><audio src="file:///etc/passwd"/></speak>',
    ):
        got = request(
            server, "POST", "/say", json.dumps({"text": text}), {"Content-Type": "application/json"}
        )
        assert got.status == 200 and got.json["said"], text


# --- who may ask, and for what


@pytest.mark.parametrize(
    "path",
    [
        "/image/61",
        "/image/-1",
        "/image/1e1",
        "/image/",
        "/image",
        "/image/999999999999",
        "/image/0/../1",
        "/image/..%2f..%2fetc%2fpasswd",
        "/../../etc/passwd",
        "/..%2f",
        "/search.js/..",
        "//etc/passwd",
        "/static/search.js",
        "/image/0%00",
        "/image/٣".encode().decode("latin-1"),
        "/photos/001.png",
        "/index.json",
        "/search",
        "/map",
        "/map?query=x",
        "/map?query=x&row=0",
        "/map?query=x&row=-1",
        "/map?query=x&row=0&more=1",
        "/about?x=1",
        "/" + "a" * 5000,
        "http://evil.example/about",
    ],
)
def test_addresses(server, path):
    "Pictures are named by their number; nothing else of the disk can be named at all."
    answer = raw(
        server,
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nConnection: close\r\n\r\n".encode(
            "latin-1"
        ),
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert (
        head.split()[1] in (b"400", b"404") and set(json.loads(body)) == {"error"} and b"root:" not in body
    ), answer[:300]


def test_origin(server):
    "Another name for this address, another page's request, a frame: refused."
    good = f"127.0.0.1:{server.server_port}"
    for host in (
        "evil.example",
        f"evil.example:{server.server_port}",
        "127.0.0.1",
        "127.0.0.1:1",
        good + ".evil.example",
        "",
    ):
        assert request(server, "GET", "/", headers={"Host": host}).status == 403
    assert (
        b" 403 "
        in raw(
            server,
            f"GET / HTTP/1.1\r\nHost: {good}\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode(),
        ).split(b"\r\n")[0]
    )
    assert b" 403 " in raw(server, b"GET / HTTP/1.0\r\n\r\n").split(b"\r\n")[0]
    for known in ("localhost", "MyPC", "mypc"):
        assert request(server, "GET", "/", headers={"Host": f"{known}:{server.server_port}"}).status == 200
    for origin in ("http://evil.example", "null", f"https://{good}", f"http://{good}.evil.example"):
        assert request(server, "GET", "/about", headers={"Origin": origin}).status == 403
    assert request(server, "GET", "/about", headers={"Origin": f"http://{good}"}).status == 200
    assert (
        request(
            server, "GET", "/image/0", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
        ).status
        == 403
    )
    # a link to the page
    assert (
        request(
            server, "GET", "/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        ).status
        == 200
    )


@pytest.mark.parametrize(
    "blob",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"PUT / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_http(server, blob, capfd):
    answer = raw(server, blob)
    assert b"Traceback" not in answer and (not answer.startswith(b"HTTP") or answer.split()[1][:1] == b"4"), (
        answer[:200]
    )
    assert "Traceback" not in capfd.readouterr().err and request(server, "GET", "/about").status == 200


def test_files_that_went(folder, tmp_path):
    "A picture that is gone, broken, or has become a link out of its folder since it was indexed."
    shutil.copytree(folder / "photos", tmp_path / "photos")
    model = load_model(shipped("scenes-tiny"), device="cpu")
    update_index(tmp_path / "index", tmp_path / "photos", model, progress=False)
    searcher = Searcher(Index.open(tmp_path / "index"), model)
    paths = [tmp_path / "photos" / f.path for f in searcher.index.files]
    paths[5].unlink()
    paths[6].write_bytes(b"junk")
    paths[7].unlink()
    paths[7].symlink_to("/etc/hostname")
    with Server(searcher) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for row, status, says in (
            (5, 404, "no longer exists"),
            (6, 422, "no image"),
            (7, 404, "leads out of"),
        ):
            got = request(server, "GET", f"/image/{row}")
            assert got.status == status and says in got.error and str(tmp_path) not in got.error
        server.shutdown()


def test_many_at_once(server, folder):
    "Questions from twenty threads: each is answered, or asked to come again; pictures always come."
    blob, found = (folder / "speech.wav").read_bytes(), []

    def one(k):
        found.append(upload(server, blob).status if k % 2 else request(server, "GET", f"/image/{k}").status)

    threads = [threading.Thread(target=one, args=(k,)) for k in range(20)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 20 and set(found) <= {200, 503} and found.count(200) >= 14
    assert upload(server, blob).status == 200


def test_loopback_only(server, folder, capsys):
    assert server.server_address[0] == "127.0.0.1"
    (folder / "sounds").mkdir(exist_ok=True)
    shutil.copy(folder / "speech.wav", folder / "sounds")
    update_index(folder / "spoken", folder / "sounds", server.searcher.model, kind="audio", progress=False)
    with pytest.raises(ConfigError, match="holds recordings"):
        Searcher(Index.open(folder / "spoken"), server.searcher.model)
    assert (
        run_command(
            "sgmim_app", [str(folder / "index"), "--port", str(server.server_port), "--device", "cpu"]
        )
        == 1
        and "another program may use it" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_the_command(folder):
    "Started as a user starts it; Ctrl-C ends it without a word of Python."
    code = "import sys; from sgmim.apps.commands import run_command; sys.exit(run_command('sgmim_app'))"
    # a job in the background is born deaf to Ctrl-C
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            str(folder / "index"),
            "--port",
            "0",
            "--device",
            "cpu",
            "--threads",
            "1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = process.stdout.readline()
        address = re.search(r"61 images at http://127.0.0.1:([0-9]+)/ ", line)
        assert address, (line, process.stderr.read() if process.poll() is not None else "")
        connection = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=30)
        connection.request("GET", "/about")
        assert json.loads(connection.getresponse().read())["items"] == 61
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0 and "Traceback" not in err
    finally:
        process.kill()


# --- in a browser


@pytest.fixture(scope="module")
def browser(folder, tmp_path_factory):
    with chromium(
        tmp_path_factory.mktemp("browser"),
        (1280, 1250),
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={folder / 'speech.wav'}",
        "--autoplay-policy=no-user-gesture-required",
        log=("browser", "performance"),
    ) as driver:
        yield driver


@pytest.mark.slow
def test_in_a_browser(server, folder, browser, tmp_path):
    """Record from a microphone, upload, type; press a word and a picture, with the mouse and the keyboard.
    Nothing is fetched from elsewhere, no script fails, no name becomes markup."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    shots = Path(os.environ.get("SGMIM_SHOTS", tmp_path))

    def one(css):
        return browser.find_element(By.CSS_SELECTOR, css)

    def all_of(css):
        return browser.find_elements(By.CSS_SELECTOR, css)

    def until(test):
        return WebDriverWait(browser, 40, 0.1).until(lambda _: test())

    def hottest():
        return browser.execute_script(
            "const c = document.getElementById('heat'); return Array.from(c.getContext('2d').getImageData(0,"
            " 0, c.width, c.height).data).reduce((a, b, i) => i % 4 == 3 && b ? a + 1 : a, 0)"
        )

    browser.get(server.address)
    until(lambda: one("body").get_attribute("data-ready") == "yes")
    assert "61 pictures" in one("#about").text and not one("#found").is_displayed()

    one("#text").send_keys((folder / "text").read_text(), Keys.ENTER)
    until(lambda: "points most to" in one("#pointing").text)
    assert (
        len(all_of("#results button")) == 12
        and "12 of 61 pictures" in one("#status").text
        and "001.png" not in one("h1").text
    )
    assert [b.text for b in all_of("#parts button")][0] == (folder / "text").read_text().split()[0]
    until(
        lambda: browser.execute_script(
            "return [...document.querySelectorAll('#results img')].every(i => i.loading == 'lazy' ||"
            " i.naturalWidth == 320)"
        )
    )
    assert hottest() == 320 * 320
    browser.save_screenshot(str(shots / "app-typed.png"))

    said = one("#pointing").text
    last = all_of("#parts button")[-1]
    last.send_keys(Keys.ENTER)  # by the keyboard
    until(lambda: last.get_attribute("aria-pressed") == "true")
    assert one("#pointing").text != said and last.text in one("#pointing").text
    all_of("#results button")[3].send_keys(Keys.SPACE)
    until(lambda: one("#caption").text.startswith("4. ") and "points most" in one("#pointing").text)
    one("#show").click()
    assert hottest() == 0
    one("#show").click()

    one("#file").send_keys(str(folder / "speech.wav"))
    until(lambda: "your recording" in one("#status").text)
    by_upload = [b.get_attribute("data-row") for b in all_of("#results button")]
    until(lambda: "Part" in one("#pointing").text)
    browser.save_screenshot(str(shots / "app-upload.png"))
    (tmp_path / "bad.wav").write_text("this is no sound")
    one("#file").send_keys(str(tmp_path / "bad.wav"))
    until(lambda: "no wav, flac, mp3 or ogg" in one("#status").text)
    assert "bad" in one("#status").get_attribute("class")

    browser.execute_script("document.getElementById('status').textContent = ''")
    one("#record").click()
    until(lambda: one("#record").get_attribute("aria-pressed") == "true")
    time.sleep(2.5)
    browser.save_screenshot(str(shots / "app-recording.png"))
    one("#record").click()
    until(lambda: "your recording" in one("#status").text)
    by_microphone = [b.get_attribute("data-row") for b in all_of("#results button")]
    # the microphone plays the same sentence, from somewhere on, round and round
    assert len(set(by_microphone) & set(by_upload)) >= 4
    until(lambda: "points most" in one("#pointing").text)
    browser.save_screenshot(str(shots / "app-recorded.png"))

    one("#text").clear()
    one("#text").send_keys("a picture", Keys.ENTER)
    until(lambda: "a picture" in one("#status").text)
    assert browser.title.startswith("Search pictures")  # the picture named like a tag ran nothing
    logs = [x for x in browser.get_log("browser") if x["level"] == "SEVERE" and "415" not in x["message"]]
    assert not logs, logs
    asked = {
        json.loads(x["message"])["message"]["params"]["request"]["url"]
        for x in browser.get_log("performance")
        if '"Network.requestWillBeSent"' in x["message"]
    }
    # the browser's own first page is made of chrome://
    asked = {u for u in asked if u.startswith(("http", "ws"))}
    assert asked and all(u.startswith(server.address) for u in asked), asked


@pytest.mark.slow
def test_in_a_narrow_dark_browser(server, folder, browser, tmp_path):
    "On a telephone, in the dark: nothing sticks out; every control has a name."
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    browser.set_window_size(500, 1100)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    browser.get(server.address)
    box = browser.find_element(By.ID, "text")
    WebDriverWait(browser, 20).until(
        lambda _: browser.find_element(By.TAG_NAME, "body").get_attribute("data-ready")
    )
    box.send_keys("a red boat", Keys.ENTER)
    WebDriverWait(browser, 40).until(lambda _: "points most" in browser.find_element(By.ID, "pointing").text)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('button, input, img, canvas, select')].filter(e =>"
        " e.getAttribute('aria-hidden') != 'true' && !(e.textContent.trim() || e.alt ||"
        " e.getAttribute('aria-label') || (e.labels && e.labels.length))).map(e => e.outerHTML)"
    )
    assert not nameless
    browser.save_screenshot(str(Path(os.environ.get("SGMIM_SHOTS", tmp_path)) / "app-narrow.png"))


def test_the_page_says_how_well_people_are_understood(tmp_path):
    assert _how_well_people_are_understood(tmp_path) == ""
    people = {"queries": 54, "best": {"value": 0.1111, "chance": 0.0619}}
    (tmp_path / "spoken_words.json").write_text(json.dumps({"metrics": {"people": people}}))
    assert "54 recordings of people" in _how_well_people_are_understood(tmp_path)
    assert "in 11 % of the cases (chance: 6 %)" in _how_well_people_are_understood(tmp_path)
