"""What several test files share: a small embedded corpus, made once a session, and things small enough to
train in seconds."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

# before torch: steps of milliseconds gain nothing from more threads, and lose much where cores are busy
os.environ.setdefault("OMP_NUM_THREADS", "1")
TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def run_python(code, *args, timeout=240, **env):
    "Run `code` in a new Python process that finds the library and this file; returns the finished process."
    path = os.pathsep.join([str(ROOT), str(TESTS)])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": path, **env},
    )


@contextlib.contextmanager
def chromium(home, size, *flags, log=()):
    """A headless Chromium of its own profile in `home`, (width, height) `size`, that asks nobody for
    anything; skips where there is none. `log`: kinds of messages to keep."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = (
        next(filter(None, map(shutil.which, names)), None)
        for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
    )
    if not binary or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={home}",
        f"--window-size={size[0]},{size[1]}",
        *flags,
    ):
        options.add_argument(flag)
    if log:
        options.set_capability("goog:loggingPrefs", {kind: "ALL" for kind in log})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield driver
    finally:
        driver.quit()


def listing(folder):
    "{name: bytes} of all files under a folder."
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()
    }


def micro(**changes):
    """A model of some 30,000 parameters for 32-pixel images; dropout is on, so that a step depends on its
    random numbers."""
    from sgmim.models.sgmim import scenes_tiny

    small = dict(
        image_size=32,
        patch_size=8,
        image_width=32,
        image_depth=1,
        image_heads=2,
        audio_width=32,
        audio_depth=1,
        audio_heads=2,
        audio_hidden=64,
        conv_dim=(8,) * 5,
        embed_dim=16,
        pos_kernel=4,
        pos_groups=4,
        decoder_heads=2,
        dropout=0.1,
        mim_onset=0.0,
        similarity="cosine",
        temperature=0.07,
        momentum_start=0.99,
    )
    return replace(scenes_tiny(), **{**small, **changes})


class Toy:
    """A corpus of noise in memory: `n` images with `captions` captions each. `hook(k)` is called before
    the k-th reading of a waveform."""

    def __init__(self, n=40, captions=1, size=32, seed=0, hook=None):
        rng = np.random.default_rng(seed)
        self.images = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
        self.image_of_caption = np.repeat(np.arange(n), captions)
        self.waves = [
            rng.normal(0, 0.1, rng.integers(2000, 6000)).astype(np.float32) for _ in self.image_of_caption
        ]
        self.captions = [SimpleNamespace(samples=len(w)) for w in self.waves]
        self.hook, self.read = hook, 0

    def __len__(self):
        return len(self.waves)

    def __repr__(self):
        return f"Toy({len(self)})"

    def image(self, i):
        return self.images[i]

    @property
    def fingerprint(self):
        "Without it a training would read samples, and `hook` would count these."
        return hashlib.blake2b(
            self.images.tobytes()
            + self.image_of_caption.tobytes()
            + b"".join(w.tobytes() for w in self.waves),
            digest_size=8,
        ).hexdigest()

    def audio(self, j):
        self.read += 1
        if self.hook:
            self.hook(self.read)
        return self.waves[j]


class View:
    """A corpus with other captions: caption `j` sounds like caption `sound[j]` of `corpus`, and its image
    stays."""

    def __init__(self, corpus, sound):
        self.corpus = corpus
        self.sound = np.asarray(sound)
        self.image_of_caption = corpus.image_of_caption[: len(sound)]
        self.captions = [corpus.captions[j] for j in self.sound]
        self.image = corpus.image

    def __len__(self):
        return len(self.sound)

    def audio(self, j):
        return self.corpus.audio(self.sound[j])


def first(corpus, n):
    return View(corpus, range(n))


def exchanged(corpus, seed=0):
    "The corpus with speech dealt out anew: no image keeps its own caption."
    order = np.random.default_rng(seed).permutation(len(corpus))
    sound = np.empty(len(corpus), int)
    sound[order] = np.roll(order, 1)
    assert (corpus.image_of_caption[sound] != corpus.image_of_caption).all()
    return View(corpus, sound)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def scenes(cache):
    "{'train': 130 images, 'dev': 120 images} with a caption each, as any user gets them."
    from sgmim.scenes.corpus import load_scenes

    return {
        name: load_scenes(name, n, cache=cache, progress=False) for name, n in (("train", 130), ("dev", 120))
    }
