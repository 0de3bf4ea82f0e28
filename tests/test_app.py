"""The search app: what is refused and what is answered, without a browser, by real requests, and once in a
browser with a microphone that plays a sentence."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, chromium
from PIL import Image

from sgmim.apps import app
from sgmim.apps.app import Searcher, _how_well_people_are_understood, _parts_of, _status, known_words
from sgmim.apps.commands import run_command
from sgmim.apps.search import Hit, Index, update_index
from sgmim.core import ConfigError
from sgmim.data.audio import RATE, write_audio
from sgmim.data.image import normalise
from sgmim.data.uploads import MAX_BYTES, Refusal, decode_upload
from sgmim.evaluation.grounding import SpokenWord, heat_maps, patch_features, word_features
from sgmim.models.pretrained import open_checkpoint, shipped
from sgmim.scenes.corpus import RECIPES, load_scenes
from sgmim.scenes.voices import SPEAKERS, speak

VOICE = "en-us-m3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache):
    "An index of 60 pictures of the embedded corpus, with a name that is meant badly among them."
    folder = tmp_path_factory.mktemp("app")
    corpus = load_scenes("test-seen", 60, cache=cache, progress=False)
    (folder / "photos/deep").mkdir(parents=True)
    for i in range(60):
        place = folder / "photos" / ("deep" if i % 4 == 0 else ".")
        Image.fromarray(corpus.image(i)).save(place / f"{i:03d}.png")
    shutil.copy(folder / "photos/001.png", folder / "photos/<img src=x onerror=document.title=1>.png")
    model, weights = open_checkpoint(shipped("scenes-tiny")), shipped("scenes-tiny")
    update_index(folder / "index", folder / "photos", model, checkpoint=weights, progress=False)
    write_audio(folder / "speech.wav", np.clip(corpus.audio(0), -1, 1))
    (folder / "text").write_text(corpus.captions[0].text)
    return folder


@pytest.fixture(scope="module")
def searcher(folder):
    return Searcher(Index.open(folder / "index"), open_checkpoint(shipped("scenes-tiny")), top=12)


def encoded(folder, wave, suffix, rate=RATE):
    write_audio(folder / f"x.{suffix}", wave, rate)
    return (folder / f"x.{suffix}").read_bytes()


# --- searching


def test_a_sentence_has_words_and_maps(searcher, folder):
    "The words of a sentence are its parts; the maps are those of the grounding notebook."
    text = (folder / "text").read_text()
    said, query = speak(text, SPEAKERS[VOICE]), searcher.say(text)
    assert [w for w, _, _ in query.parts] == [w for w, _, _ in said.words]
    assert [h.row for h in query.hits] == [h.row for h in searcher.index.search(query.z, 12)]
    row, model = query.hits[2].row, searcher.model
    words = [SpokenWord(0, 0, w, "", s, e) for w, s, e in said.words]
    z = word_features(model, query.batch, [0] * len(words), words, ("without",))["without"]
    picture = np.asarray(Image.open(folder / "photos" / searcher.index.files[row].path).convert("RGB"))
    right = heat_maps(patch_features(model, normalise(picture[None]))[0], z, "dot").numpy()
    assert np.allclose(searcher.maps(query, row), right, atol=2e-3 * abs(right).max() + 1e-4)
    assert searcher.picture(row).size == (320, 320)


def test_a_recording_has_parts(searcher, folder):
    sound, seconds = decode_upload((folder / "speech.wav").read_bytes(), 10.0)
    query = searcher.ask(sound)
    assert query.parts[0][1] == 0 and query.parts[-1][2] == pytest.approx(seconds)
    assert searcher.maps(query, 0).shape == (len(query.parts), 64)
    long = searcher.ask(np.random.default_rng(0).normal(0, 0.1, 20 * RATE).astype(np.float32))
    assert len(long.wave) == 10 * RATE and "Only the first 10 seconds" in _status(searcher, long, 20.0)


def test_parts():
    "Parts cover the sound, in order, and are few, whatever the attention."
    for T in (1, 2, 5, 400):
        for seed in range(5):
            W = np.random.default_rng(seed).random((4, T))
            parts = _parts_of(W, 0.05, 0.04, T * 0.04 + 0.06)
            assert 1 <= len(parts) <= 24 and parts[0][1] == 0 and all(a < b for _, a, b in parts)
            assert all(x[2] == y[1] for x, y in zip(parts, parts[1:], strict=False))


@pytest.mark.parametrize("text,voice", [("", VOICE), ("...!", VOICE), ("a " * 200, VOICE), ("a\0b", VOICE)])
def test_sentences_that_cannot_be_said(searcher, text, voice):
    with pytest.raises(Refusal, match="Type at least one word|at most 300 letters"):
        searcher.say(text, voice)
    with pytest.raises(Refusal, match="Choose a voice"):
        searcher.say("a boat", "../../etc/passwd")


def test_odd_sentences(searcher):
    texts = ["<script>alert(1)</script> boat", "[[DROP TABLE]] & ; `reboot` boat", "ein Bööt \ud83d"]
    for text in [*texts, "a" + "\u0301" * 50, '<speak><audio src="file:///etc/passwd"/></speak>']:
        assert searcher.say(text).hits, text


def test_files_that_went(folder, tmp_path):
    "A picture that is gone, broken, or has become a link out of its folder since it was indexed."
    shutil.copytree(folder / "photos", tmp_path / "photos")
    model = open_checkpoint(shipped("scenes-tiny"))
    update_index(tmp_path / "index", tmp_path / "photos", model, progress=False)
    searcher = Searcher(Index.open(tmp_path / "index"), model)
    paths = [tmp_path / "photos" / f.path for f in searcher.index.files]
    paths[5].unlink()
    paths[6].write_bytes(b"junk")
    paths[7].unlink()
    paths[7].symlink_to("/etc/hostname")
    query = searcher.say("a boat")
    for row, says in ((5, "no longer exists"), (6, "no image"), (7, "leads out of")):
        query.hits = [Hit(1, 0.5, "x", row)]
        drawn, sentence = app._point(searcher, query, 0, 0)
        assert drawn is None and says in sentence and str(tmp_path) not in sentence
        assert app._thumbnail(searcher, row).size == (320, 320)


def test_an_index_of_recordings_is_refused(folder, searcher):
    (folder / "sounds").mkdir()
    shutil.copy(folder / "speech.wav", folder / "sounds")
    update_index(folder / "spoken", folder / "sounds", searcher.model, kind="audio", progress=False)
    with pytest.raises(ConfigError, match="holds recordings"):
        Searcher(Index.open(folder / "spoken"), searcher.model)


# --- what the page says


def test_probably_nothing_fits(searcher):
    "Below the calibrated threshold, and only with the weights that it was calibrated for."
    query, found = searcher.say("a boat"), searcher.threshold
    for shift, says in ((-0.01, True), (0.01, False)):
        query.hits = [Hit(1, found["threshold"] + shift, "x", 0)]
        assert ("Probably nothing fits" in _status(searcher, query, 0)) == says
    assert "95 % of the sentences with a fitting" in _status(searcher, query, 0) or not says
    other = Searcher(searcher.index, searcher.model, checkpoint=shipped("tiny-mae"))
    query.hits = [Hit(1, -1.0, "x", 0)]
    assert other.threshold == {} and "Probably" not in _status(other, query, 0)


def test_known_words(tmp_path):
    "The list is that of the recipe in the record of the training."
    known = known_words(shipped("scenes-tiny"))
    assert "pine tree" in known["things"] and len(known["things"]) == 30 and "meadow" in known["places"]
    for data, n in (({"recipe": "scenes-2-full"}, 62), ({}, 30)):
        (tmp_path / "record.json").write_text(json.dumps({"kind": "demo", "config": {"data": data}}))
        assert len(known_words(tmp_path)["things"]) == n
    assert len(RECIPES["scenes-2-full"].categories) == 62
    (tmp_path / "record.json").write_text(json.dumps({"kind": "train", "config": {}}))
    assert known_words(tmp_path) == {}


def test_the_page_says_how_well_people_are_understood(tmp_path):
    assert _how_well_people_are_understood(tmp_path) == ""
    people = {"queries": 54, "best": {"value": 0.1111, "chance": 0.0619}}
    (tmp_path / "spoken_words.json").write_text(json.dumps({"metrics": {"people": people}}))
    assert "54 recordings of people" in _how_well_people_are_understood(tmp_path)
    assert "in 11 % of the cases (chance: 6 %)" in _how_well_people_are_understood(tmp_path)


def test_without_gradio(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run_command("sgmim_app", []) == 1
    assert re.fullmatch(r"sgmim_app: .*pip install -e '\.\[app\]'.*\n", capsys.readouterr().err)


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
    "{name: bytes}"
    good, rng = (folder / "speech.wav").read_bytes(), np.random.default_rng(0)
    flac = encoded(folder, np.clip(rng.normal(0, 0.1, RATE), -1, 1), "flac")
    return {
        "empty": b"",
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(500),
        "a page": b"<html><script>alert(1)</script>",
        "a program": b"\x7fELF" + bytes(500),
        "a zip": b"PK\3\4" + bytes(500),
        "aiff": b"FORM\0\0\1\0AIFF" + bytes(500),
        "text": b"this is no sound",
        "noise as mp3": b"ID3" + rng.bytes(5000),
        "noise as flac": b"fLaC" + rng.bytes(5000),
        "noise as ogg": b"OggS" + rng.bytes(5000),
        "noise as wav": b"RIFF\0\0\0\0WAVE" + rng.bytes(5000),
        "truncated wav": good[: len(good) // 2],
        "header alone": good[:44],
        "half a header": good[:20],
        "truncated flac": flac[: len(flac) // 2],
        "an hour of flac": encoded(folder, np.full(RATE * 3600, 0.001, np.float32), "flac"),
        "flac that claims years": flac_that_claims(flac, 2**36 - 1),
        "flac that claims more than it has": flac_that_claims(flac, 50 * RATE),
        "too long": encoded(folder, np.full(RATE * 61, 0.01, np.float32), "flac"),
        "wav of ten hours, cut": wav_that_claims(said=10 * 3600 * RATE * 2),
        "no rate": wav_that_claims(rate=0),
        "absurd rate": wav_that_claims(rate=2**31 - 1),
        "low rate": wav_that_claims(rate=1),
        "many channels": wav_that_claims(channels=500),
        "no channels": wav_that_claims(channels=0),
        "no samples": wav_that_claims(data=0),
        "silence": wav_that_claims(data=32_000)[:44] + bytes(32_000),
        "a click": encoded(folder, np.full(100, 0.5, np.float32), "wav"),
        "too large": bytes(MAX_BYTES + 1),
    }


def test_hostile_uploads(folder):
    "Each is refused with a sentence that names no path, and takes little memory."
    for name, blob in hostile(folder).items():
        tracemalloc.start()
        with pytest.raises(Refusal) as e:
            decode_upload(blob, 10.0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 20 < len(str(e.value)) < 400 and "/tmp" not in str(e.value) and peak < 20e6, (
            name,
            str(e.value),
        )


def test_a_claim_of_four_gigabytes():
    "This length also means that the end is not marked: what there is, is read."
    sound, seconds = decode_upload(wav_that_claims(said=2**32 - 1), 10.0)
    assert len(sound) == 500 and seconds < 1


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats(folder, suffix):
    stereo = np.clip(np.random.default_rng(0).normal(0, 0.1, (44_100, 2)), -1, 1)
    sound, seconds = decode_upload(encoded(folder, stereo, suffix, 44_100), 10.0)
    assert abs(seconds - 1) < 0.1 and abs(len(sound) / RATE - 1) < 0.1


# --- by real requests


@pytest.fixture(scope="module")
def server(searcher, tmp_path_factory):
    "A served page; `server.kept` is the folder of Gradio's files."
    pytest.importorskip("gradio", reason="needs the extra app")
    kept = tmp_path_factory.mktemp("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(kept))
        page = app.build_page(searcher)
        app.serve(page, names=["MyPC"])
        page.kept = kept
        yield page
        page.close(verbose=False)


@pytest.fixture
def client(server):
    from gradio_client import Client

    return Client(server.local_url, verbose=False)


def request(server, method, path, body=None, **headers):
    "(status, headers, content) of a request; '_' in the name of a header is '-'."
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, reply.headers, content


def form(blob, name="a.wav"):
    "Body and headers of an upload."
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + blob + b"\r\n--x--\r\n", {"Content_Type": "multipart/form-data; boundary=x"}


def upload(server, blob, name="a.wav"):
    body, headers = form(blob, name)
    status, _, content = request(server, "POST", "/gradio_api/upload", body, **headers)
    assert status == 200, content
    return {"path": json.loads(content)[0], "meta": {"_type": "gradio.FileData"}}


def sounds(server):
    return [p for p in server.kept.rglob("*") if p.suffix in (".wav", ".flac", ".mp3", ".ogg")]


def test_page(server):
    "Nothing is loaded from elsewhere, and headers see to it."
    status, headers, page = request(server, "GET", "/")
    loaded = re.findall(rb"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["']?(https?:)?//""", page)
    assert status == 200 and not loaded and "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'self' http://localhost:*" in headers["content-security-policy"]
    config = json.loads(request(server, "GET", "/config")[2])
    assert not config["analytics_enabled"] and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_origin(server):
    "Another name for this address, another page's request: refused."
    good = f"127.0.0.1:{server.server_port}"
    for host in ("evil.example", f"evil.example:{server.server_port}", good + ".evil.example", ""):
        assert request(server, "GET", "/", Host=host)[0] in (400, 403), host
    for host in (good, f"localhost:{server.server_port}", f"MyPC:{server.server_port}"):
        assert request(server, "GET", "/config", Host=host, Origin=f"http://{host}")[0] == 200
    cross = {"Sec_Fetch_Site": "cross-site"}
    for origin in ("http://evil.example", "null", f"http://{good}.evil.example", "http://127.0.0.1:1"):
        assert request(server, "GET", "/config", Origin=origin)[0] == 403
        body, headers = form(b"RIFF")
        assert request(server, "POST", "/gradio_api/upload", body, Origin=origin, **headers)[0] == 403
    assert request(server, "GET", "/config", Sec_Fetch_Mode="no-cors", **cross)[0] == 403
    assert request(server, "GET", "/", Sec_Fetch_Mode="navigate", **cross)[0] == 200  # a link to the page


def test_addresses(server, folder):
    "No file of this computer can be read."
    private = [f"/gradio_api/file={p}" for p in ("/etc/passwd", "../../etc/passwd", "..%2f..%2fetc%2fpasswd")]
    private += [f"/gradio_api/file={folder}/{p}" for p in ("text", "photos/001.png", "index/index.json")]
    private += [f"/gradio_api/file={server.kept}/../../../../etc/passwd", "/static/../../../../etc/passwd"]
    private += ["/../../etc/passwd", "//etc/passwd", f"/gradio_api/file={ROOT}/settings.ini"]
    for path in private:
        status, _, content = request(server, "GET", path)
        assert status in (400, 403, 404) and b"root:" not in content, (path, status)


def test_search_by_text(client, searcher, folder):
    text = (folder / "text").read_text()
    status, words, sound, _, pointing, pictures = client.predict(text, VOICE, api_name="/by_text")
    right = searcher.say(text).hits
    assert [p["caption"] for p in pictures["value"]] == [f"{h.rank} · {h.score:.2f}" for h in right]
    assert "12 of 61 pictures" in status and "data:audio/wav" in sound and "points most to" in pointing
    assert [label for label, _ in words["choices"]][0] == text.split()[0]
    assert "Type at least one word" in client.predict("...", VOICE, api_name="/by_text")[0]


def test_search_by_recording(server, client, folder):
    "A recording is answered and deleted, and the names of files mean nothing."
    blob = (folder / "speech.wav").read_bytes()
    for name in ("a.wav", "../../../etc/passwd.wav", "<img src=x>.wav"):
        status = client.predict(upload(server, blob, name), api_name="/by_recording")[0]
        assert "12 of 61 pictures" in status
    assert not sounds(server) and not list(Path("/etc").glob("passwd.wav"))


def test_hostile_requests(server, client, folder, capfd):
    "What is refused is said in a sentence, is deleted, and the server answers afterwards."
    for name, blob in hostile(folder).items():
        if name in ("too large", "empty"):
            continue
        status = client.predict(upload(server, blob), api_name="/by_recording")[0]
        assert "role=alert" in status and "/tmp" not in status, (name, status)
    assert not sounds(server) and "Traceback" not in capfd.readouterr().err
    body, headers = form(bytes(20_000_000))
    assert request(server, "POST", "/gradio_api/upload", body, **headers)[0] == 413
    assert "12 of 61" in client.predict("a boat", VOICE, api_name="/by_text")[0]


def test_files_and_addresses_as_recordings(server, folder, monkeypatch):
    "A request cannot name a file of this computer, and nothing is fetched for it."
    from gradio import processing_utils

    fetched = []
    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", lambda *a: fetched.append(a))
    for path in ("/etc/passwd", str(folder / "speech.wav"), "http://evil.example/a.wav"):
        data = json.dumps({"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]})
        call = "/gradio_api/call/by_recording"
        event = json.loads(request(server, "POST", call, data, Content_Type="application/json")[2])
        answer = request(server, "GET", f"{call}/{event['event_id']}")[2]
        assert b"event: error" in answer and b"root:" not in answer, answer
    assert not fetched and (folder / "speech.wav").exists()


def test_many_at_once(client):
    "Each of twenty searches is answered, one after another."
    jobs = [client.submit("a boat", VOICE, api_name="/by_text") for _ in range(20)]
    assert all("12 of 61 pictures" in job.result(timeout=120)[0] for job in jobs)


@pytest.mark.parametrize(
    "blob", [b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" + bytes(200), b"GET /" + b"a" * 70_000]
)
def test_what_is_no_http(server, blob):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as s:
        s.sendall(blob)
        s.shutdown(socket.SHUT_WR)
        assert b"Traceback" not in s.recv(65_536)
    assert request(server, "GET", "/config")[0] == 200


def test_ports(server, folder, capsys, monkeypatch):
    pytest.importorskip("gradio", reason="needs the extra app")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(server.kept))  # the command changes it; this sets it back
    arguments = [str(folder / "index"), "--port", str(server.server_port), "--device", "cpu"]
    assert run_command("sgmim_app", arguments) == 1 and "--port" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command():
    "Started as a user starts it, without an index; Ctrl-C ends it without a word of Python."
    pytest.importorskip("gradio", reason="needs the extra app")
    code = "import sys; from sgmim.apps.commands import run_command; sys.exit(run_command('sgmim_app'))"
    # a job in the background is born deaf to Ctrl-C
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--pictures", "20", "--device", "cpu", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = process.stdout.readline()
        address = re.search(r"20 pictures at http://127.0.0.1:([0-9]+)/ ", line)
        assert address, (line, process.stderr.read() if process.poll() is not None else "")
        connection = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=30)
        connection.request("GET", "/config")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0 and "Traceback" not in err
    finally:
        process.kill()


# --- in a browser


class Browser:
    "Short names for what the tests do."

    def __init__(self, driver, address):
        self.driver, self.address, self.shots = driver, address, os.environ.get("SGMIM_SHOTS")
        driver.get(address)
        self.until(lambda: self.all("#examples button"))

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def text(self, css):
        return self.all(css)[0].text

    def until(self, test):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        stale = [StaleElementReferenceException, IndexError]
        return WebDriverWait(self.driver, 60, 0.1, stale).until(lambda _: test())

    def press(self, css, k, where, text):
        "Click element `k` until `where` says `text`: a page that is being updated can lose a click."
        from selenium.common.exceptions import TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait

        def answered():
            self.all(css)[k].click()
            try:
                return WebDriverWait(self.driver, 10, 0.1).until(lambda _: text in self.text(where))
            except TimeoutException:
                return False

        self.until(answered)

    def says(self, css, text):
        self.until(lambda: text in self.text(css))

    def pictures(self):
        return [p.text for p in self.all("#pictures .grid-container button")]

    def shot(self, name):
        if self.shots:
            self.driver.save_screenshot(f"{self.shots}/app-{name}.png")


@pytest.fixture(scope="module")
def driver(folder, tmp_path_factory):
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
def test_in_a_browser(server, driver, folder, tmp_path):
    """Press an example, type, upload, record from a microphone; press a word and a picture, with the mouse
    and the keyboard. Nothing is fetched from elsewhere, no script fails, no name becomes markup."""
    from selenium.webdriver.common.keys import Keys

    page = Browser(driver, server.local_url)
    page.shot("start")
    page.all("#examples button")[0].click()
    page.says("#pointing", "“duck” points most to")
    assert page.all("textarea, input[type=text]")[0].get_property("value") == "A duck on the grass"
    assert len(page.pictures()) == 12 and "12 of 61 pictures" in page.text("#status")

    page.all("#words label")[3].click()
    page.says("#pointing", "“grass” points")
    page.all("#words input")[0].send_keys(Keys.SPACE)  # by the keyboard
    page.says("#pointing", "“A” points")
    page.press("#pictures .grid-container button", 3, "#pointing", "In picture 4, “A”")
    page.shot("pressed")

    box = page.all("textarea, input[type=text]")[0]
    box.clear()
    box.send_keys((folder / "text").read_text(), Keys.ENTER)
    first_word = (folder / "text").read_text().split()[0]
    page.until(lambda: page.text("#words label") == first_word)
    page.until(lambda: page.all("#pictures img")[0].get_property("naturalWidth") == 320)

    page.all("button[aria-label='Upload file']")[0].click()
    page.until(lambda: page.all("input[type=file]"))
    page.all("input[type=file]")[0].send_keys(str(folder / "speech.wav"))
    page.until(lambda: page.text("#words label") == "0.0 s")
    by_upload = page.pictures()
    (tmp_path / "bad.wav").write_text("this is no sound")
    page.until(lambda: page.all("input[type=file]"))
    page.all("input[type=file]")[0].send_keys(str(tmp_path / "bad.wav"))
    page.says("#status", "not a wav, flac, mp3 or ogg")
    page.shot("refused")

    page.all("button[aria-label='Record audio']")[0].click()
    page.until(lambda: page.all(".record-button"))
    page.all(".record-button")[0].click()
    page.until(lambda: page.all(".stop-button") and page.all(".stop-button")[0].is_displayed())
    time.sleep(2.5)
    page.all(".stop-button")[0].click()
    page.says("#status", "12 of 61 pictures")
    page.shot("recorded")
    assert len(page.pictures()) == 12 and by_upload
    assert not sounds(server)
    check_logs(page)


def check_logs(page):
    assert page.driver.title == "Search pictures by speech"  # the picture named like a tag ran nothing
    severe = [x["message"] for x in page.driver.get_log("browser") if x["level"] == "SEVERE"]
    # Gradio's player may ask for a recording that the server has read, and so deleted, a moment before
    gone = re.compile(r"Waveform load error|/file=\S+\.(wav|webm)\S* .* 403 \(Forbidden\)")
    assert not [m for m in severe if not gone.search(m)], severe
    sent = [x for x in page.driver.get_log("performance") if '"Network.requestWillBeSent"' in x["message"]]
    asked = {json.loads(x["message"])["message"]["params"]["request"]["url"] for x in sent}
    asked = {u for u in asked if u.startswith(("http", "ws"))}
    assert asked and all(u.startswith(page.address) for u in asked), asked


@pytest.mark.slow
def test_in_a_narrow_dark_browser(server, driver):
    "On a telephone, in the dark: nothing sticks out, and every control has a name."
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page = Browser(driver, server.local_url)
    page.all("#examples button")[0].click()
    page.says("#pointing", "points most to")
    page.all("#words label")[3].click()
    page.says("#pointing", "“grass” points")
    page.shot("narrow")
    assert driver.execute_script("return document.documentElement.scrollWidth") == 390
    nameless = driver.execute_script(
        "return [...document.querySelectorAll('button, input, textarea, img')].filter(e =>"
        " e.checkVisibility() && !(e.textContent.trim() || e.alt || e.ariaLabel || e.title ||"
        " e.querySelector('img[alt]') || (e.labels && e.labels.length)))"
        ".map(e => e.outerHTML)"
    )
    assert not nameless, nameless
