"Do the scores of grounding say that a word points where it points, and only then?"

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Toy, micro

from sgmim.core import ConfigError, DataError, read_json, write_json
from sgmim.evaluation.dependence import patch_shares
from sgmim.evaluation.figures import save_figure
from sgmim.evaluation.grounding import (
    _CHANCE,
    _SPEECH,
    DEFAULT_VARIANT,
    SpokenWord,
    _best_threshold,
    _boxes_on_patches,
    _chance_maps,
    _choice,
    _choose_variant,
    _cut_out,
    _frames_of_words,
    _ground,
    _grounding_scores,
    _iou,
    _pointing,
    _scored_words,
    _scores,
    _standardised,
    _unrelated,
    _without,
    caption_figure,
    caption_maps,
    grounding_figure,
    grounding_record,
    heat_maps,
    patch_features,
    spoken_words,
    word_features,
)
from sgmim.models.inputs import corpus_pairs
from sgmim.models.pretrained import shipped
from sgmim.models.sgmim import SGMIM, load_model
from sgmim.scenes.pictures import Scene, Thing


@pytest.fixture(scope="module")
def trained():
    return load_model(shipped("scenes-tiny"), device="cpu")


@pytest.fixture(scope="module")
def dev(scenes):
    return scenes["dev"]


@pytest.fixture(scope="module")
def grounded(trained, dev):
    return _ground(trained, dev)


@pytest.fixture(scope="module")
def batch(trained, dev):
    pairs = corpus_pairs(dev, 10.0, trained.config)
    return pairs.collate([pairs[j] for j in range(6)])


class Dealt:
    """A corpus that says whose words its captions are, while they sound like those of the next: the truth
    stays, the sound is another's."""

    def __init__(self, corpus):
        self.corpus = corpus
        self.image = corpus.image
        self.scene = corpus.scene
        self.image_of_caption = corpus.image_of_caption
        self.captions = corpus.captions

    def __len__(self):
        return len(self.corpus)

    def audio(self, j):
        return np.resize(self.corpus.audio((j + 1) % len(self)), self.captions[j].samples)


# ---- words


def test_words_say_everything_once_and_know_their_thing(dev):
    for j, c in enumerate(dev.captions):
        words = spoken_words(dev, j)
        assert " ".join(w.word for w in words) == c.text.lower().replace(",", "")
        assert (
            words[0].start == 0
            and all(a.end == b.start for a, b in zip(words, words[1:], strict=False))
            and {w.image for w in words} == {c.image}
        )
        things = dev.scene(c.image).things
        for w in words:
            assert (w.thing >= 0) == (w.kind in ("thing", "colour", "size"))
            if w.kind == "colour":
                assert things[w.thing].colour == w.word
        assert sorted(w.thing for w in words if w.kind == "thing") == list(range(len(things)))


def test_words_beside_are_those_just_before_the_words_of_a_thing(dev):
    for j in range(40):
        words, scored = spoken_words(dev, j), _scored_words(dev, j)
        beside = [w for w in scored if w.kind == "beside"]
        assert (
            {w.kind for w in scored} <= {"thing", "colour", "size", "beside"}
            and all(w.word in ("a", "an") for w in beside)
            and len(beside) == len(dev.scene(words[0].image).things)
        )
        for w in beside:
            after = next(x for x in words if x.start == w.end)
            assert (after.thing, w.thing >= 0) == (w.thing, True)


def test_captions_of_other_corpora():
    corpus = Toy(4)
    corpus.captions[2].words = (("RED", 0.0, 0.1), ("CAR", 0.1, 0.3))
    assert spoken_words(corpus, 2) == [
        SpokenWord(2, 2, "red", "colour", 0.0, 0.1),
        SpokenWord(2, 2, "car", "thing", 0.1, 0.3),
    ]
    with pytest.raises(DataError, match="caption 1 has no word times"):
        spoken_words(corpus, 1)
    with pytest.raises(DataError, match="has no boxes.*caption_maps"):
        _ground(None, corpus)


def test_maps_without_boxes(trained, dev):
    """A corpus that knows words but no boxes: maps and a figure, the same as those of the corpus that
    knows both; no scores."""

    class Plain:
        def __init__(self):
            self.captions = [
                SimpleNamespace(words=c.words, samples=c.samples, text=c.text) for c in dev.captions
            ]

        image = staticmethod(dev.image)
        audio = staticmethod(dev.audio)
        image_of_caption = dev.image_of_caption

        def __len__(self):
            return len(dev)

    plain = Plain()
    # names of one word
    j = next(j for j in range(40) if not {"pine", "cloud", "banana"} & {t[0] for t in dev.captions[j].things})
    (words, maps), (own, same) = caption_maps(trained, plain, j), caption_maps(trained, dev, j)
    assert [w.word for w in words] == [w.word for w in own] and np.allclose(maps, same, atol=1e-4)
    assert caption_figure(trained, plain, j).axes
    with pytest.raises(DataError, match="has no boxes"):
        _ground(trained, plain)


def test_captions_that_speak_of_what_is_not_there_have_no_scores(trained, dev):
    class Elsewhere(Dealt):
        def __init__(self, corpus):
            super().__init__(corpus)
            self.captions = [corpus.captions[0]] * len(corpus)
            self.scene = lambda i: Scene("sea", (Thing("hat", "red", None, (0, 0, 0.5, 0.5)),), 0)

    with pytest.raises(DataError, match="no caption has a word about a thing"):
        _ground(trained, Elsewhere(dev), 4, ("frames",))


# ---- features


def test_frames_of_a_word():
    encoder = SimpleNamespace(hop=640, shortest=1600)  # middles at .05, .09, .13, … s
    words = [
        SpokenWord(0, 0, "a", "other", *t)
        for t in ((0.0, 0.1), (0.1, 0.14), (0.091, 0.092), (0.0, 0.0), (5.0, 6.0))
    ]
    within = _frames_of_words(encoder, words, 5)
    # a word between two frames takes the nearest
    assert [np.flatnonzero(w).tolist() for w in within] == [[0, 1], [2], [1], [0], [4]]


def test_cutting_and_silencing(trained, dev, batch):
    whole = int(batch["audio_len"][1])
    words = [
        SpokenWord(1, 1, "x", "other", *t)
        for t in ((0.0, 0.01), (0.2, 0.5), (whole / 16000 - 0.01, whole / 16000))
    ]
    audio, length = _cut_out(batch, [1, 1, 1], words, 2000)
    assert length.tolist() == [2000, 4800, 2000]
    for row, n, at in zip(audio, length, (0, 3200, whole - 2000), strict=True):
        assert torch.equal(row[:n], batch["audio"][1, at : at + n]) and (row[n:] == 0).all()
    before = batch["audio"].clone()
    quiet = _without(batch, torch.tensor([1, 1, 0]), words)
    assert (
        torch.equal(batch["audio"], before)
        and (quiet[1, 3200:8000] == 0).all()
        and torch.equal(quiet[1, 8000:], before[1, 8000:])
        and torch.equal(quiet[1, :3200], before[1, :3200])
    )


def test_features_are_what_their_names_say(trained, dev, batch):
    words = [w for j in range(6) for w in spoken_words(dev, j)]
    rows = [w.caption for w in words]
    found = word_features(trained, batch, rows, words, chunk=5)
    encoder = trained.audio_encoder
    with torch.no_grad():
        heard = encoder(batch["audio"], batch["audio_len"])
        for q in (0, 7, len(words) - 1):
            r, w = rows[q], words[q]
            n = int((~heard.frame_mask[r]).sum())
            within = torch.from_numpy(_frames_of_words(encoder, [w], n)[0])
            z, weight = heard.frames[r, :n][within], heard.attention[r].mean(0)[:n][within]
            wave = batch["audio"][r : r + 1, : batch["audio_len"][r]]
            a, least = round(w.start * 16000), encoder.shortest + encoder.hop
            a = max(0, min(a, wave.shape[1] - least))
            alone = wave[:, a : min(wave.shape[1], max(round(w.end * 16000), a + least))]
            without = wave.clone()
            without[:, round(w.start * 16000) : round(w.end * 16000)] = 0
            right = {
                "frames": trained.audio_proj(z.mean(0)),
                "attention": trained.audio_proj((weight[:, None] * z).sum(0) / weight.sum()),
                "cut": trained.embed_audio(alone)[0],
                "without": (trained.embed_audio(wave) - trained.embed_audio(without))[0],
            }
            for way in _SPEECH:
                torch.testing.assert_close(found[way][q], right[way], atol=1e-4, rtol=1e-3)
    with pytest.raises(ConfigError, match="not 'loudness'"):
        word_features(trained, batch, rows, words, ("loudness",))


def test_maps_of_without_split_the_loss_of_similarity(trained, dev, batch):
    "Σ over tokens of the map, over their number, is what the inner product of caption and image loses."
    words = spoken_words(dev, 3)
    a = word_features(trained, batch, [3] * len(words), words, ("without",))["without"]
    with torch.no_grad():
        lost = a @ trained.embed_image(batch["image"][3:4])[0]
        tokens = trained.image_proj(trained.image_encoder(batch["image"][3:4]))[0]
    torch.testing.assert_close(heat_maps(tokens, a).mean(1), lost, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        heat_maps(tokens[1:], a), heat_maps(patch_features(trained, batch["image"][3:4])[0], a)
    )


def test_maps_by_both_similarities():
    p, w = torch.randn(3, 16, 8), torch.randn(3, 8)
    dot, cosine = heat_maps(p, w), heat_maps(p, w, "cosine")
    for q in range(3):
        for n in range(16):
            assert dot[q, n] == pytest.approx(float(p[q, n] @ w[q]), abs=1e-4)
            assert cosine[q, n] == pytest.approx(
                float(torch.cosine_similarity(p[q, n], w[q], dim=0)), abs=1e-4
            )
    assert torch.allclose(heat_maps(p[0], w)[0], dot[0], atol=1e-5)
    with pytest.raises(ConfigError, match="not 'l2'"):
        heat_maps(p, w, "l2")


@pytest.mark.parametrize(
    "change",
    [
        dict(reconstruction="none"),
        dict(reconstruction="plain"),
        dict(reconstruction="frames"),
        dict(conv_norm="group", conv_bias=False),
        dict(image_feature="cls", projection="mlp"),
    ],
)
def test_any_model_can_be_asked(dev, change):
    torch.manual_seed(0)
    model = SGMIM(micro(image_size=96, patch_size=12, **change))
    g = _ground(model, dev, 6)
    assert set(g.features) == set(_SPEECH) and all(
        f.isfinite().all() and len(f) == len(g.words) for f in g.features.values()
    )
    words, maps = caption_maps(model, dev, 0, ("cut", "cosine"))
    assert maps.shape == (len(words), 64) and np.isfinite(maps).all()


# ---- scores


def test_scores_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(20):
        maps, inside = rng.integers(0, 4, (5, 9)).astype(float), rng.random((5, 9)) < 0.4
        shares = [rng.random((rng.integers(1, 4), 9)) for _ in range(5)]
        thing = [int(rng.integers(len(s))) for s in shares]
        for q in range(5):
            best = [n for n in range(9) if maps[q, n] == max(maps[q])]
            assert _pointing(maps, inside)[q] == pytest.approx(np.mean([inside[q, n] for n in best]))
            z = (maps[q] - maps[q].mean()) / maps[q].std()
            for t in (-0.5, 0.0, 1.0):
                a, b = {n for n in range(9) if z[n] >= t}, set(np.flatnonzero(inside[q]))
                assert _iou(maps, inside, t)[q] == pytest.approx(len(a & b) / max(len(a | b), 1))
            value = [sum(s * z) / sum(s) for s in shares[q]]
            assert (
                np.isnan(_choice(maps, shares, thing)[q])
                if len(value) < 2
                else _choice(maps, shares, thing)[q] == (np.argmax(value) == thing[q])
            )
    flat = np.ones((1, 9))
    assert _standardised(flat).tolist() == [[0] * 9] and _choice(flat, [np.eye(9)[:3]], [1])[
        0
    ] == pytest.approx(1 / 3)


@pytest.mark.parametrize("crop", [1.0, 0.8])
def test_boxes_patch_by_patch(crop):
    scene = Scene(
        "sea",
        (
            Thing("hat", "red", None, (0.1, 0.2, 0.5, 0.9)),
            Thing("sun", None, None, (0.0, 0.0, 1.0, 1.0)),
            Thing("cup", "blue", None, (0.0, 0.0, 0.05, 0.05)),
        ),
        0,
    )
    config = micro(image_size=40, patch_size=10, crop_pct=crop)
    found, whole = _boxes_on_patches(scene, config), 40 / crop
    for k, t in enumerate(scene.things):
        for n in range(16):
            x = (((n % 4) * 10 + 5) + (whole - 40) / 2) / whole
            y = (((n // 4) * 10 + 5) + (whole - 40) / 2) / whole
            assert found[k, n] == (t.box[0] <= x < t.box[2] and t.box[1] <= y < t.box[3])


@pytest.mark.slow
def test_the_truth_of_a_split(grounded, dev, trained):
    g = grounded
    assert len(g.words) == len(g.row) == len(g.inside) and len(g.patches) == len(dev.scenes)
    for q in range(0, len(g.words), 17):
        w = g.words[q]
        assert torch.equal(g.patches[g.row[q]], g.patches[w.image])  # one caption an image, in order
        shares = patch_shares(dev.scene(w.image), trained.config)
        assert (
            np.array_equal(shares, g.shares[q])
            and (g.shown[q] == (shares[w.thing] >= min(0.5, shares[w.thing].max()))).all()
            and g.shown[q].any()
        )
        assert (
            g.inside[q] | ~g.shown[q]
        ).mean() > 0.9  # a thing is in its box, but for patches that only touch it
    two = _ground(trained, dev, 2, ("frames",))
    assert (
        [w.caption for w in two.words] == sorted(w.caption for w in two.words)
        and {w.caption for w in two.words} == {0, 1}
        and set(two.features) == {"frames"}
    )


def test_chance_maps(grounded, dev):
    g = grounded
    maps = _chance_maps(g)
    assert list(maps) == list(_CHANCE)
    assert np.allclose(_pointing(maps["uniform"], g.inside), g.inside.mean(1))
    middle = np.isin(np.arange(64), (27, 28, 35, 36))
    assert np.allclose(_pointing(maps["centre"], g.inside), g.inside[:, middle].mean(1))
    own, q = _standardised(g.maps(DEFAULT_VARIANT)), 11
    assert np.allclose(maps["mean_map"][q], own[g.row != g.row[q]].mean(0), atol=1e-8)
    for q, r in enumerate(_unrelated(g)):
        w, other = g.words[q], g.words[r]
        assert w.kind == other.kind and dev.scene(other.image).things[other.thing].category not in {
            t.category for t in dev.scene(w.image).things
        }
        assert other.word != w.word or w.kind == "beside" or other.image != w.image
        if w.kind == "colour":
            assert other.word not in {t.colour for t in dev.scene(w.image).things}
    assert np.array_equal(_unrelated(g), _unrelated(g)) and not np.array_equal(
        _unrelated(g), _unrelated(g, seed=1)
    )


# ---- perfect, and falsified


def oracle(g):
    """The same words with features that make the heat map of 'without' the truth: patch n is the n-th unit
    vector, the word the share of each patch that its thing fills."""
    own = torch.tensor(np.stack([s[w.thing] for s, w in zip(g.shares, g.words, strict=True)])).float()
    noise = torch.Generator().manual_seed(0)
    return g._replace(
        patches=torch.eye(64).expand(len(g.patches), 64, 64),
        features={**{way: torch.randn(len(own), 64, generator=noise) for way in _SPEECH}, "without": own},
    )


def test_a_map_that_is_the_truth_scores_one(grounded, dev):
    g = oracle(grounded)
    chosen = _choose_variant(g, resamples=50)
    assert chosen["variant"] == ("without", "dot") and chosen["variants"]["without, dot"]["mean"] == 1
    assert all(d["mean"] < 0.6 for v, d in chosen["variants"].items() if not v.startswith("without"))
    found = _grounding_scores(g, chosen, resamples=50)
    for kind in ("thing", "colour", "size"):
        assert found["kind"][kind]["pointing"]["model"] == {
            "value": 1.0,
            "interval": [1.0, 1.0],
            "n": found["kind"][kind]["pointing"]["model"]["n"],
        }
        assert (
            found["kind"][kind]["choice"]["model"]["value"] == 1
            and found["kind"][kind]["iou"]["model"]["value"] > 0.75
        )
        assert found["kind"][kind]["pointing"]["minus_another_word"]["interval"][0] > 0
    exact = g._replace(features={**g.features, "without": torch.tensor(g.shown).float()})
    maps = exact.maps(DEFAULT_VARIANT)
    assert _scores(exact, maps, _best_threshold(exact, maps))["iou"].mean() == 1


def chosen_by_hand():
    return {
        "variant": DEFAULT_VARIANT,
        "threshold": 0.75,
        "ways": {"without": "dot"},
        "chance_thresholds": dict(uniform=-0.5, centre=-0.25, mean_map=0.5, another_word=0.75),
    }


@pytest.mark.parametrize("seed", range(3))
def test_features_that_mean_nothing_score_like_chance(grounded, dev, seed):
    draw = torch.Generator().manual_seed(seed)
    blind = grounded._replace(
        features={"without": torch.randn(grounded.features["without"].shape, generator=draw)},
        patches=torch.randn(grounded.patches.shape, generator=draw),
    )
    found = _grounding_scores(blind, chosen_by_hand(), resamples=200)["kind"]["thing"]
    for score in ("pointing", "choice"):
        for who in ("uniform", "another_word"):
            low, high = found[score][f"minus_{who}"]["interval"]
            assert low <= 0.02 and high >= -0.02, (score, who, low, high)
    assert (
        found["iou"]["minus_another_word"]["interval"][0] <= 0.01
        and abs(found["choice"]["model"]["value"] - found["choice"]["uniform"]["value"]) < 0.1
    )


@pytest.mark.slow
def test_captions_dealt_out_anew_score_like_chance(trained, dev):
    dealt = _ground(trained, Dealt(dev), 70, ("without",))
    found = _grounding_scores(dealt, chosen_by_hand(), resamples=200)["kind"]["thing"]
    for score in found:
        assert found[score]["minus_another_word"]["interval"][0] <= 0, (score, found[score])
    assert abs(found["choice"]["model"]["value"] - found["choice"]["uniform"]["value"]) < 0.12


def test_the_shipped_model_points(grounded, dev):
    found = _grounding_scores(grounded, chosen_by_hand(), resamples=200)
    thing = found["kind"]["thing"]
    for score in ("pointing", "iou", "choice"):
        for who in (*_CHANCE, "beside"):
            assert thing[score][f"minus_{who}"]["interval"][0] > 0, (score, who)
    assert thing["choice"]["model"]["n"] == sum(len(s.things) for s in dev.scenes if len(s.things) > 1)
    assert found["words"] == len(grounded.words) and found["images"] == 120


def test_each_chance_map_is_scored_with_its_own_threshold(grounded):
    chosen = chosen_by_hand()
    found = _grounding_scores(grounded, chosen, resamples=10)["kind"]["thing"]["iou"]
    for name, maps in _chance_maps(grounded).items():
        iou = _iou(maps, grounded.shown, chosen["chance_thresholds"][name])
        assert found[name]["value"] == pytest.approx(iou[grounded.kind == "thing"].mean(), abs=1e-5)


def test_of_equal_variants_the_first_is_chosen(grounded):
    chosen = _choose_variant(grounded._replace(patches=torch.zeros_like(grounded.patches)), resamples=10)
    assert chosen["variant"] == ("frames", "dot") and set(chosen["ways"].values()) == {"dot"}


# ---- records and figures


def test_records_and_figures(trained, dev, scenes, tmp_path):
    made = grounding_record(trained, dev, {"dev": dev}, 12, 8, resamples=20, about={"checkpoint": "x"})
    write_json(tmp_path / "r.json", made)
    again = grounding_record(trained, dev, {"dev": dev}, 12, 8, resamples=20)
    assert (
        made["metrics"] == again["metrics"] and read_json(tmp_path / "r.json")["metrics"] == made["metrics"]
    )
    assert (
        made["kind"] == "grounding"
        and made["config"]["checkpoint"] == "x"
        and made["data"]["dev"]["fingerprint"] == dev.fingerprint
    )
    assert set(made["chosen_from"]) == {f"{way}, {s}" for way in _SPEECH for s in ("dot", "cosine")}
    best = max(made["chosen_from"], key=lambda v: made["chosen_from"][v]["mean"])
    assert ", ".join(made["config"]["variant"]) == best
    for name, figure in (
        ("b", caption_figure(trained, dev, 0)),
        ("c", caption_figure(trained, dev, 1, ("frames", "cosine"), kinds=None, title="t")),
    ):
        save_figure(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    with pytest.raises(DataError, match=r"need maps \(2, N\)"):
        grounding_figure(dev.image(0), ["a", "b"], np.zeros((2, 7)))
