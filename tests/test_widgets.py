"The widgets: their controls in Python, and the whole in JupyterLab in a browser."

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, chromium

from sgmim.apps.widgets import (
    AttentionExplorer,
    MaskingExplorer,
    Monitor,
    RetrievalExplorer,
    _figure_html,
    _Scores,
    _table_html,
)
from sgmim.core import DataError
from sgmim.models.pretrained import shipped
from sgmim.models.sgmim import load_model
from sgmim.scenes.corpus import load_scenes


@pytest.fixture(scope="module")
def model():
    return load_model(shipped("scenes-tiny"), device="cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return load_scenes("test-seen", 40, cache=tmp_path_factory.mktemp("cache"), progress=False)


class Plain:
    "A corpus that knows neither words nor scenes."

    def __init__(self, corpus):
        from types import SimpleNamespace

        self.corpus, self.image_of_caption = corpus, corpus.image_of_caption
        self.captions = [SimpleNamespace(samples=c.samples, words=()) for c in corpus.captions]

    def __len__(self):
        return len(self.corpus)

    def image(self, i):
        return self.corpus.image(i)

    def audio(self, j):
        return self.corpus.audio(j)


def upload(explorer, content):
    explorer.upload.value = (
        {
            "name": "../<b>.wav",
            "type": "audio/wav",
            "size": len(content),
            "content": memoryview(content),
            "last_modified": datetime.now(timezone.utc),
        },
    )


def test_nothing_from_outside_becomes_markup():
    assert "<script" not in _table_html(["<script>"], [["<script>"]], "<script>")
    from sgmim.evaluation.figures import Picture

    assert '"><' not in _figure_html(Picture(1, 1), '"><b>').split("src=")[0]


def test_every_control_has_a_name(model, corpus):
    for explorer in (
        AttentionExplorer(model, corpus),
        MaskingExplorer(model, corpus),
        RetrievalExplorer(model, corpus),
    ):
        assert all(c.description for c in explorer.controls.values())
        assert "<img" in explorer.shown.value and 'alt=""' not in explorer.shown.value


def test_a_recording_of_ones_own(model, corpus):
    import io

    import soundfile

    explorer, file = AttentionExplorer(model, corpus), io.BytesIO()
    was = explorer.shown.value
    soundfile.write(file, corpus.audio(7), 16_000, format="WAV")
    upload(explorer, file.getvalue())
    assert explorer.said.value == "" and explorer.shown.value != was and not explorer.words.children
    mine = explorer.shown.value
    explorer.controls["threshold"].value = 0.9  # still one's own
    assert explorer.shown.value != mine and explorer.own is not None
    for bad in (b"x", b"RIFF1234WAVE", b""):
        upload(explorer, bad)
        assert (
            'role="alert"' in explorer.said.value
            and "<b>" not in explorer.said.value
            and explorer.own is not None
        )
    explorer.controls["caption"].value = 3  # back to the corpus
    assert explorer.own is None and explorer.words.children and explorer.said.value == ""


@pytest.mark.slow
def test_photographs_are_seen_as_the_model_sees_them(model, corpus):
    """Pictures of any shape: the square that the encoder is given, under its patches; a file that cannot
    be read is said."""
    from sgmim.evaluation.grounding import model_view

    wide = Plain(corpus)
    wide.image = lambda i: np.pad(corpus.image(i), ((0, 0), (48, 48), (0, 0)))
    assert wide.image(0).shape == (96, 192, 3) and np.array_equal(
        model_view(model, wide, 3), corpus.image(int(corpus.image_of_caption[3]))
    )
    assert (
        MaskingExplorer(model, wide).draw(3).split("alt=")[1][:80]
        == MaskingExplorer(model, corpus).draw(3).split("alt=")[1][:80]
    )
    gone = _Scores(model, corpus)
    gone.captions = np.where(gone.captions == 5, 999, gone.captions)
    with pytest.raises(DataError, match="caption 5 could not be read"):
        gone.ranked(5, "caption")


def test_back_from_a_recording(model, corpus):
    explorer = AttentionExplorer(model, corpus)
    was, drawn, draw = explorer.shown.value, [], explorer.draw
    explorer.draw = lambda **state: drawn.append(state) or draw(**state)
    explorer.own = corpus.audio(9)
    explorer.back.click()
    assert (
        explorer.own is None and explorer.shown.value == was and explorer.words.children and len(drawn) == 1
    )
    explorer.controls["caption"].value = 2
    assert len(drawn) == 2  # once for each change


def test_closing_leaves_other_explorers_alone(model, corpus):
    kept, closed = MaskingExplorer(model, corpus), MaskingExplorer(model, corpus)
    was = kept.shown.value
    closed.close()
    assert (
        closed.box.comm is None
        and all(c.comm is None for c in closed.controls.values())
        and kept.box.comm is not None
    )
    kept.controls["seed"].value = 7
    assert kept.shown.value != was and kept.said.value == ""


@pytest.mark.slow
def test_each_layer_is_another_picture(model, corpus):
    explorer = AttentionExplorer(model, corpus)
    seen = set()
    for _, k in explorer.controls["layer"].options:
        explorer.controls["layer"].value = k
        seen.add(explorer.shown.value)
    assert len(seen) == len(explorer.controls["layer"].options)


def test_a_corpus_without_words(model, corpus):
    plain = Plain(corpus)
    explorer, finder = AttentionExplorer(model, plain), RetrievalExplorer(model, plain)
    assert not explorer.words.children and "<img" in explorer.shown.value and "<img" in finder.shown.value
    assert "only the embedded corpus" in finder.box.children[-1].value


@pytest.mark.slow
def test_the_right_caption_helps_on_the_whole(model, corpus):
    """The errors that the masking explorer shows are those of the dependence notebook: over images the right
    caption has the smallest."""
    import re

    explorer = MaskingExplorer(model, corpus)
    errors = np.array(
        [
            [
                float(x)
                for x in re.search(
                    r"error at the hidden patches ([\d.]+) with right caption, ([\d.]+) with another caption,"
                    r" ([\d.]+)",
                    explorer.draw(j),
                ).groups()
            ]
            for j in range(12)
        ]
    )
    assert errors.mean(0)[0] < errors.mean(0)[1:].min()


def test_ranks_are_those_of_the_protocol(model, corpus):
    from sgmim.evaluation.retrieval import embed, pool, retrieval_metrics

    found, e = _Scores(model, corpus), embed(model, pool(model.config, corpus))
    want = retrieval_metrics(e.z_image, e.z_audio, e.image_of_caption, model.config.similarity)
    assert [found.ranked(int(j), "caption")[3] for j in found.captions] == list(want.audio_to_image.ranks)
    assert [found.ranked(int(i), "image")[3] for i in found.images] == list(want.image_to_audio.ranks)


def test_a_monitor_outlives_a_broken_history():
    monitor = Monitor(every=0.0, show=False)
    monitor([{"step": 1, "loss_nce": 2.0, "lr": 1e-3}])
    assert "<img" in monitor.shown.value
    for broken in ([], [{"step": 1}], [{"step": "x", "loss_nce": object()}]):
        monitor(broken)
        assert 'role="alert"' in monitor.shown.value
    monitor.every, monitor.history = 60.0, None
    monitor([{"step": 5, "loss_nce": 2.0}])  # too soon: kept, not drawn
    assert monitor.history[0]["step"] == 5 and "step 5" not in monitor.shown.value
    monitor.close()
    assert "step 5" in monitor.shown.value


# --- in a browser

CELLS = [
    """
from sgmim.scenes.corpus import load_scenes
from sgmim.models.sgmim import load_model, scenes_tiny
from sgmim.models.pretrained import shipped
from sgmim.train import fit, recipe
from sgmim.apps.widgets import AttentionExplorer, MaskingExplorer, Monitor, RetrievalExplorer
from dataclasses import replace
corpus = load_scenes('test-seen', 40, progress=False)
model = load_model(shipped('scenes-tiny'), device='cpu')""",
    "explorer = AttentionExplorer(model, corpus); explorer",
    "hiding = MaskingExplorer(model, corpus); hiding",
    "finding = RetrievalExplorer(model, corpus); finding",
    (
        "monitor = Monitor(every=0.)\nfitted = fit(replace(scenes_tiny(), image_depth=1, audio_depth=1,"
        " mim_onset=0.), corpus, config=replace(recipe('scenes-tiny'), batch_size=8, epochs=1.6,"
        " log_every=2), device='cpu', progress=monitor)"
    ),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab on this computer alone, with the notebook of `CELLS`."
    home, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(8)
    (home / "notes").mkdir()

    def cell(source):
        return {
            "cell_type": "code",
            "id": secrets.token_hex(4),
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }

    kernel = {"name": "sgmim-test", "display_name": "sgmim", "language": "python"}
    (home / "notes/widgets.ipynb").write_text(
        json.dumps(
            {
                "cells": [cell(c) for c in CELLS],
                "metadata": {"kernelspec": kernel},
                "nbformat": 4,
                "nbformat_minor": 5,
            }
        )
    )
    book = json.loads((ROOT / "nbs/tutorials/explore.ipynb").read_text())
    for c in book["cells"]:
        c |= {"outputs": [], "execution_count": None} if c["cell_type"] == "code" else {}
    (home / "notes/explore.ipynb").write_text(json.dumps(book | {"metadata": {"kernelspec": kernel}}))
    whole = home / "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    whole.parent.mkdir(parents=True)
    # all cells are in the page, not only those in view
    whole.write_text(json.dumps({"windowingMode": "none"}))
    spec = home / "data/kernels/sgmim-test"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps(
            {
                "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                "display_name": "sgmim",
                "language": "python",
            }
        )
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folders = {f"JUPYTER_{k}_DIR": str(home / k.lower()) for k in ("CONFIG", "RUNTIME", "DATA")} | {
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    with open(home / "log", "w") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--ip=127.0.0.1",
                f"--port={port}",
                f"--IdentityProvider.token={token}",
                f"--ServerApp.root_dir={home / 'notes'}",
                "--LabApp.extension_manager=readonly",
                "--LabApp.news_url=",
                "--LabApp.expose_app_in_browser=True",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home,
            env={
                **os.environ,
                **folders,
                "PYTHONPATH": str(ROOT),
                "SGMIM_CACHE": str(home / "cache"),
                "OMP_NUM_THREADS": "1",
            },
        )
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
        try:
            while True:
                try:
                    urllib.request.urlopen(f"{address}/api?token={token}", timeout=2)
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < end, (home / "log").read_text()[
                        -2000:
                    ]
                    time.sleep(0.3)
            yield f"{address}/lab/tree/widgets.ipynb?token={token}&reset"
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture
def browser(tmp_path):
    with chromium(tmp_path / "chromium", (1280, 3600)) as driver:
        yield driver


def wait_for(browser, test, seconds=90):
    """What `test()` returns, once that is true. Jupyter may replace an element while `test` reads it: it
    is then asked again."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, 0.2, ignored_exceptions=[StaleElementReferenceException]).until(
        lambda _: test()
    )


def ready(browser):
    return browser.execute_script(
        "return !!document.querySelector('.jp-Toolbar-kernelName') &&"
        " document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status == 'idle'"
    )


@pytest.mark.slow
def test_widgets_outlive_run_all(lab, browser):
    """All cells of the tutorial on widgets are run; then a slider of each explorer still changes its
    picture."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def until(test):
        return wait_for(browser, test)

    def pictures(cell):
        # in one call: a picture may be replaced at any time
        return browser.execute_script(
            "return [...arguments[0].querySelectorAll('.jp-OutputArea img')].map(i => i.src)", cell
        )

    browser.get(lab.replace("widgets.ipynb", "explore.ipynb"))
    until(lambda: browser.find_elements(By.CSS_SELECTOR, ".jp-CodeCell") and ready(browser))
    browser.execute_script(
        """
        const {commands, shell} = window.jupyterapp
        shell.currentWidget.sessionContext.ready
            .then(() => commands.execute('notebook:run-all-cells')).then(() => { window.allRun = true })"""
    )
    until(lambda: browser.execute_script("return window.allRun") and ready(browser))
    errors = browser.execute_script(
        """
        const errors = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"], '
            + '.jp-RenderedText[data-mime-type*="error"]'
        return [...document.querySelectorAll(errors)].map(e => e.textContent)"""
    )
    assert not [text for text in errors if "Error" in text]
    explorers = [
        c
        for c in browser.find_elements(By.CSS_SELECTOR, ".jp-CodeCell")
        if c.find_elements(By.CSS_SELECTOR, ".noUi-handle")
    ]
    assert len(explorers) == 3
    for cell in explorers:
        was = until(lambda cell=cell: pictures(cell))
        handle = cell.find_element(By.CSS_SELECTOR, ".noUi-handle")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
        handle.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
        until(lambda cell=cell, was=was: pictures(cell) not in ([], was))
        assert not cell.find_elements(By.CSS_SELECTOR, "[role=alert]")


@pytest.mark.slow
def test_in_jupyterlab(lab, browser, corpus, tmp_path):
    """All cells are run; sliders are moved with the keyboard, a word is pressed, the direction is changed;
    each time something else is shown. Every picture says what it is."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    shots = Path(os.environ.get("SGMIM_SHOTS", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)

    def until(test, seconds=90):
        try:
            return wait_for(browser, test, seconds)
        except Exception:
            browser.save_screenshot(str(shots / "failed.png"))
            raise

    browser.get(lab)
    until(
        lambda: (
            browser.execute_script("return document.querySelectorAll('.jp-CodeCell').length") == len(CELLS)
        )
    )
    until(lambda: ready(browser))
    until(lambda: browser.find_elements(By.CSS_SELECTOR, ".jp-CodeCell .cm-content"))[0].click()
    for _ in CELLS:
        browser.switch_to.active_element.send_keys(Keys.SHIFT, Keys.ENTER)

    def output(n):
        return browser.find_elements(By.CSS_SELECTOR, ".jp-CodeCell")[n]

    def alts(n):
        return browser.execute_script(
            "return [...arguments[0].querySelectorAll('.jp-OutputArea img')].map(i => i.alt)", output(n)
        )

    def sources(n):
        return browser.execute_script(
            "return [...arguments[0].querySelectorAll('.jp-OutputArea img')].map(i => i.src.length +"
            " i.src.slice(-200))",
            output(n),
        )

    for n in (1, 2, 3):
        until(lambda n=n: len(alts(n)) == 1)

    def moves(n, act):
        "`act()` changes the picture of cell `n`."
        was = sources(n)
        act()
        until(lambda: sources(n) and sources(n) != was)

    def handle(n, k):
        return output(n).find_elements(By.CSS_SELECTOR, ".noUi-handle")[k]

    def said():
        return next(line for line in output(1).text.splitlines() if " segments (s)" in line)

    first = said()
    moves(1, lambda: handle(1, 0).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT))
    assert said() != first  # other segments above another threshold
    words = [
        b
        for b in output(1).find_elements(By.CSS_SELECTOR, "button")
        if "hear" in (b.get_attribute("title") or "")
    ]
    moves(1, words[1].click)
    until(lambda: len(alts(1)) == 2 and words[1].text in alts(1)[1])
    until(
        lambda: browser.execute_script(
            "return arguments[0].querySelectorAll('audio')[1].duration > .05", output(1)
        )
    )
    assert "mod-info" in words[1].get_attribute("class") and "mod-info" not in words[0].get_attribute("class")
    browser.save_screenshot(str(shots / "widgets-attention.png"))

    import soundfile

    soundfile.write(tmp_path / "mine.wav", corpus.audio(7), 16_000)
    # instead of the system's window to choose a file
    browser.execute_script("HTMLInputElement.prototype.click = function () { document.body.append(this) }")
    next(b for b in output(1).find_elements(By.CSS_SELECTOR, "button") if b.text.startswith("Upload")).click()
    moves(
        1,
        lambda: browser.find_element(By.CSS_SELECTOR, "body > input[type=file]").send_keys(
            str(tmp_path / "mine.wav")
        ),
    )
    until(lambda: len(alts(1)) == 1)  # the words of the caption are gone: nobody says what is in a recording
    until(lambda: "Threshold (quantile)" == handle(1, 0).accessible_name)

    moves(2, lambda: handle(2, 1).send_keys(Keys.ARROW_RIGHT))  # the seed of the mask
    hidden = alts(2)[0].split(" patches")[0]
    moves(2, lambda: handle(2, 0).send_keys(Keys.ARROW_LEFT))  # the share
    assert alts(2)[0].split(" patches")[0] != hidden
    output(2).screenshot(str(shots / "widgets-masking.png"))

    (other,) = [b for b in output(3).find_elements(By.CSS_SELECTOR, "button") if "an image finds" in b.text]
    moves(3, other.click)
    assert (
        alts(3)[0].startswith("image ")
        and "Hardest negatives" in output(3).text
        and "colour" in output(3).text
    )
    output(3).screenshot(str(shots / "widgets-retrieval.png"))

    until(lambda: alts(4) == ["losses and recalls up to step 8"])
    output(4).screenshot(str(shots / "widgets-monitor.png"))
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('.jp-OutputArea button, .jp-OutputArea select, .jp-OutputArea"
        " audio, .jp-OutputArea img')].filter(e => !(e.textContent.trim() || e.alt || e.title ||"
        " e.getAttribute('aria-label') || (e.labels && e.labels.length))).map(e => e.outerHTML.slice(0, 200))"
    )
    assert not nameless, nameless
    assert [handle(2, k).accessible_name for k in (0, 1)] == ["Share hidden", "Seed of the mask"] and handle(
        3, 0
    ).accessible_name == "How many"
    assert "Traceback" not in browser.find_element(By.TAG_NAME, "body").text
