"""Does the measure of listening, tell a decoder that listens from one that does not, and at which
patches and to which words?"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import Toy, exchanged, first, micro
from torch import nn

from sgmim.core import ConfigError, DataError, read_json, write_json
from sgmim.data.batches import Pairs
from sgmim.evaluation.analysis import Resamples, ratio_estimate
from sgmim.evaluation.dependence import (
    _BACKGROUND,
    _EDGE,
    _TAKEN,
    CAPTIONS,
    _compare,
    _patch_errors,
    _patch_owner,
    _PatchTruth,
    _remove_words,
    _taken_spans,
    _word_spans,
    _wrong_captions,
    caption_dependence,
    dependence_figure,
    dependence_record,
    dependence_tables,
    mentions,
    patch_shares,
    reconstruct_with,
    speech_dependence,
)
from sgmim.evaluation.figures import save_figure
from sgmim.evaluation.gradients import _loss_gradients, _part_of, gradient_split, gradient_table
from sgmim.evaluation.mistakes import (
    _MISTAKES,
    _retrieved,
    contradicted_words,
    mistake_shares,
    mistakes_figure,
    mistakes_record,
    mistakes_tables,
)
from sgmim.models.patches import patchify, random_mask
from sgmim.models.pretrained import shipped
from sgmim.models.sgmim import SGMIM, load_model, scenes_tiny
from sgmim.scenes.captions import thing_names
from sgmim.scenes.corpus import LADDER, _may_fit
from sgmim.scenes.pictures import CATEGORIES, content, draw_masks


@pytest.fixture(scope="module")
def trained():
    return load_model(shipped("scenes-tiny"), device="cpu")


def _above_0(difference):
    return difference["interval"][0] > 0


# ---- wrong captions


def test_wrong_captions_are_of_other_images():
    g = torch.Generator().manual_seed(0)
    for _ in range(300):
        B = int(torch.randint(2, 20, (1,), generator=g))
        ids = torch.randint(0, int(torch.randint(2, 8, (1,), generator=g)), (B,), generator=g) * 7 - 3
        if len(ids.unique()) == 1:
            continue
        other = _wrong_captions(ids)
        assert other.dtype == torch.int64 and other.shape == (B,) and (ids[other] != ids).all()
        for i in range(B):  # the next one: all between are of the same image
            steps = (int(other[i]) - i) % B
            assert all(ids[(i + k) % B] == ids[i] for k in range(1, steps))


def test_with_different_images_the_wrong_caption_is_the_next():
    assert _wrong_captions(torch.arange(5)).tolist() == [1, 2, 3, 4, 0]
    assert _wrong_captions(torch.tensor([4, 4, 4, 9])).tolist() == [3, 3, 3, 0]


@pytest.mark.parametrize("ids", [[3], [3, 3, 3]])
def test_no_wrong_caption(ids):
    with pytest.raises(ConfigError, match="same image"):
        _wrong_captions(torch.tensor(ids))


# ---- the measure, on a model whose answers are known


class Signed(Toy):
    """Image i is filled with one grey value, and its captions are constant at a level that names the same
    value."""

    def __init__(self, n=48, captions=1):
        super().__init__(n, captions)
        self.value = torch.linspace(-1, 1, n)[
            torch.randperm(n, generator=torch.Generator().manual_seed(0))
        ].numpy()
        for i in range(n):
            self.images[i] = round(128 + 100 * float(self.value[i]))
        for j, i in enumerate(self.image_of_caption):
            self.waves[j][:] = 0.5 * self.value[i]


class Parrot(nn.Module):
    """A 'model' whose target is the grey value of the image, and whose decoder repeats the level of what
    it hears (`share` of it)."""

    def __init__(self, share=1.0):
        super().__init__()
        self.config = SimpleNamespace(
            reconstruction="summary",
            image_size=32,
            crop_pct=1.0,
            conv_kernel=(),
            conv_stride=(),
            padding_matters=False,
            mim_normalise_target=False,
        )
        self.share, self.zero = share, nn.Parameter(torch.zeros(1))

    def draw_mask(self, image, generator=None):
        return random_mask(len(image), 16, 0.75, generator)

    def hear(self, batch):
        return 2 * batch["audio"][:, 0]

    def context(self, heard):
        return heard[:, None, None], None

    def image_encoder(self, image, mask=None):
        return image

    def target(self, image):
        return ((image[:, :1, 0, 0] * 0.229 + 0.485) * 255 / 100 - 1.28)[:, :, None].expand(-1, 16, 4)

    def decoder(self, visible, mask, context, padding):
        return (self.share * context).expand(-1, 16, 4)


def expected_wrong(corpus, batches=1):
    v = torch.tensor(corpus.value)[corpus.image_of_caption].double()
    rows = [v[s::batches] for s in range(batches)]
    return float(torch.cat([(r - r.roll(-1)).square() for r in rows]).mean() / v.var(unbiased=False))


def test_a_decoder_that_repeats_what_it_hears():
    corpus = Signed()
    r = caption_dependence(Parrot(), corpus)
    assert set(r) == {*CAPTIONS, "right_over_wrong", "pairs"} and r["pairs"] == 48
    assert (
        r["right"] < 1e-3
        and abs(r["wrong"] - expected_wrong(corpus)) < 0.02
        and abs(r["none"] - 1) < 0.05
        and r["right_over_wrong"] < 1e-3
    )
    assert abs(r["wrong"] - 2) < 0.6  # two independent draws differ by twice the variance


def test_a_decoder_that_half_listens():
    "The error is worked out by hand: (v - v/2)² for the right caption."
    r = caption_dependence(Parrot(0.5), Signed())
    assert abs(r["right"] - 0.25) < 0.02 and r["right"] < r["none"] < r["wrong"]


def test_a_decoder_that_does_not_listen():
    r = caption_dependence(Parrot(0.0), Signed())
    assert r["right"] == r["wrong"] == r["none"] and r["right_over_wrong"] == 1


def test_captions_exchanged_in_the_data_are_no_better_than_wrong():
    "The falsified case: the decoder listens well, but what it is told belongs to other images."
    r = caption_dependence(Parrot(), exchanged(Signed()))
    assert r["right"] > 1.4 and 0.6 < r["right_over_wrong"] < 1.6


@pytest.mark.parametrize(
    "n,captions,pairs,batch",
    [(48, 1, 33, 32), (48, 1, 48, 47), (20, 5, 100, 33), (48, 1, 1000, 16), (30, 2, 7, 64)],
)
def test_any_number_of_pairs(n, captions, pairs, batch):
    "No batch is left with a single pair, or with captions of one image alone."
    r = caption_dependence(Parrot(), Signed(n, captions), pairs=pairs, batch_size=batch)
    assert r["pairs"] == min(pairs, n * captions) and r["right"] < 1e-3 < r["wrong"]


# ---- on the model itself


@pytest.fixture(scope="module", params=["summary", "frames"])
def model(request):
    torch.manual_seed(0)
    return SGMIM(micro(reconstruction=request.param))


def batch_of(corpus, n):
    pairs = Pairs(corpus)
    return pairs.collate([pairs[j] for j in range(n)])


def test_only_the_caption_is_exchanged(model):
    model.eval()
    batch = batch_of(Toy(), 6)
    mask = model.draw_mask(batch["image"], torch.Generator().manual_seed(1))
    right, wrong, none = (reconstruct_with(model, batch, c, mask) for c in CAPTIONS)
    for other in (wrong, none):
        assert (
            torch.equal(right["target"], other["target"])
            and torch.equal(right["mask"], other["mask"])
            and not torch.equal(right["predicted"], other["predicted"])
        )
    same = model.reconstruct(batch, mask)
    for k in ("predicted", "target"):
        torch.testing.assert_close(right[k], same[k].detach())
    # the wrong caption is that of the next pair: a batch whose sound is rolled gives the same, as its right
    # one
    rolled = {**batch, "audio": batch["audio"].roll(-1, 0), "audio_len": batch["audio_len"].roll(-1, 0)}
    torch.testing.assert_close(
        wrong["predicted"], reconstruct_with(model, rolled, "right", mask)["predicted"], atol=1e-5, rtol=1e-5
    )


def test_silence_carries_nothing(model):
    model.eval()
    batch, other = batch_of(Toy(), 4), batch_of(Toy(seed=1), 4)
    mask = model.draw_mask(batch["image"], torch.Generator().manual_seed(1))
    a, b = (
        reconstruct_with(model, {**x, "image": batch["image"]}, "none", mask)["predicted"]
        for x in (batch, other)
    )
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_same_seed_draws_the_same_masks(model):
    a, b, c = (caption_dependence(model, Toy(), seed=s) for s in (0, 0, 1))
    assert a == b != c
    assert 0.8 < a["right_over_wrong"] < 1.25  # noise cannot help, whatever the decoder does


def test_normalised_targets_are_what_the_loss_sees():
    torch.manual_seed(0)
    plain = SGMIM(micro(mim_normalise_target=True)).eval()
    target = reconstruct_with(plain, batch_of(Toy(), 3))["target"]
    torch.testing.assert_close(target.mean(-1), torch.zeros(3, 16), atol=1e-4, rtol=0)
    torch.testing.assert_close(target.var(-1, unbiased=False), torch.ones(3, 16), atol=1e-2, rtol=0)


@pytest.mark.slow
def test_learning_to_listen_shows():
    """A decoder that is trained where only the caption can help comes to depend on it; the measure shows
    it, and not for exchanged captions."""
    torch.manual_seed(0)
    corpus, model = Signed(16), SGMIM(micro(dropout=0.0, mask_ratio=0.9)).eval()
    see = model.image_encoder.forward
    # blind: what it predicts, it heard
    model.image_encoder.requires_grad_(False).forward = lambda image, mask=None: see(
        torch.zeros_like(image), mask
    )
    before = caption_dependence(model, corpus)["right_over_wrong"]
    batch = batch_of(corpus, 16)
    with torch.no_grad():
        target = model.momentum_encoder(batch["image"])[:, 1:]
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(120):
        mask = model.draw_mask(batch["image"])
        predicted = model.decoder(
            model.image_encoder(batch["image"], mask), mask, *model.context(model.hear(batch))
        )
        optimiser.zero_grad()
        (predicted - target).square().mean().backward()
        optimiser.step()
    after, falsified = caption_dependence(model, corpus), caption_dependence(model, exchanged(corpus))
    assert 0.9 < before < 1.1 and after["right_over_wrong"] < 0.5 and after["right"] < after["none"]
    assert 0.7 < falsified["right_over_wrong"] < 1.4


def test_models_that_hear_nothing():
    for row in ("none", "plain"):
        torch.manual_seed(0)
        model = SGMIM(micro(reconstruction=row))
        with pytest.raises(ConfigError, match="does not use speech"):
            reconstruct_with(model, batch_of(Toy(), 3))
        with pytest.raises(ConfigError, match="does not use speech"):
            caption_dependence(model, Toy())
    with pytest.raises(ConfigError, match="got 'silence'"):
        reconstruct_with(SGMIM(micro()), batch_of(Toy(), 3), "silence")


# ---- estimates and their intervals


def test_an_estimate_is_the_ratio_of_sums_and_its_interval_that_of_resamples():
    rng = np.random.default_rng(0)
    total, count, groups = rng.normal(2, 1, 60), rng.integers(0, 4, 60), np.repeat(np.arange(20), 3)
    draws = Resamples(groups, 400, seed=3)
    w = draws.sums(np.eye(60))  # how often each item is drawn
    # groups stay together
    assert (
        w.shape == (400, 60)
        and (w.sum(1) == 60).all()
        and (w[:, ::3] == w[:, 1::3]).all()
        and (w[:, ::3] == w[:, 2::3]).all()
    )
    e = ratio_estimate(draws, total, count)
    drawn = [
        sum(x * t for x, t in zip(r, total, strict=True)) / sum(x * c for x, c in zip(r, count, strict=True))
        for r in w
    ]
    assert e["value"] == pytest.approx(total.sum() / count.sum(), abs=1e-5) and e["n"] == count.sum()
    assert e["interval"] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1e-5)
    assert (
        ratio_estimate(draws, total, count * 0) is None
        and ratio_estimate(draws, total, count, minus=(total, count * 0)) is None
    )
    a, b, c = (Resamples(groups, 5, s).counts for s in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_differences_are_paired():
    "Two series that move together: the interval of their difference is far narrower than either's own."
    rng = np.random.default_rng(1)
    shared, n = rng.normal(0, 1, 200), np.ones(200)
    a, b = shared + rng.normal(0.1, 0.05, 200), shared + rng.normal(0, 0.05, 200)
    w = Resamples(np.arange(200))
    wide, paired = ratio_estimate(w, a, n)["interval"], ratio_estimate(w, a, n, minus=(b, n))["interval"]
    assert paired[0] > 0 and (paired[1] - paired[0]) < 0.2 * (wide[1] - wide[0])


def test_a_rare_kind_that_some_resamples_miss_has_an_interval():
    count = np.zeros(50)
    count[7] = 3
    e = ratio_estimate(Resamples(np.arange(50)), count * 0.5, count)
    assert e == {"value": 0.5, "interval": [0.5, 0.5], "n": 3}


# ---- words and patches


@pytest.mark.slow
def test_every_thing_that_is_said_is_found_in_its_caption(scenes):
    for split in scenes.values():
        for c in split.captions:
            found = mentions(c)
            named = [m for m in found if m.kind == "thing"]
            assert [m.thing for m in named] == [t[0] for t in c.things] and [
                m.start for m in found
            ] == sorted(m.start for m in found)
            for (category, colour, size), m in zip(c.things, named, strict=True):
                own = [x for x in found if x.thing == category]
                assert m.word in thing_names(category)
                assert [x.word for x in own if x.kind == "colour"] == [colour] * (colour is not None) and len(
                    [x for x in own if x.kind == "size"]
                ) == (size is not None)


def test_word_spans_fill_the_caption_and_do_not_overlap(scenes):
    for c in scenes["dev"].captions:
        spans = sorted(t for times in _word_spans(c).values() for t in times)
        assert [(s, e) for _, s, e in c.words] == spans
        assert bool(_word_spans(c)["place"]) == (c.place is not None)


def test_mentions_of_what_is_no_caption_of_this_corpus():
    with pytest.raises(DataError, match="only captions of the embedded corpus"):
        mentions(SimpleNamespace(words=(("A", 0, 1),)))
    with pytest.raises(DataError, match="do not name the boat"):
        mentions(SimpleNamespace(words=(("A", 0, 1), ("tree", 1, 2)), things=(("boat", None, None),)))


def test_merged_and_repeated_words():
    "espeak-ng may report two words as one event; a pine tree beside a tree holds the word tree twice."
    c = SimpleNamespace(
        words=(("A fir", 0, 0.5), ("tree", 0.5, 1.0), ("and a", 1.0, 1.2), ("small tree", 1.2, 2.0)),
        things=(("pine", None, None), ("tree", None, "small")),
    )
    assert [(m.thing, m.kind, m.word, m.start, m.end) for m in mentions(c)] == [
        ("pine", "thing", "fir tree", 0, 1.0),
        ("tree", "size", "small", 1.2, 2.0),
        ("tree", "thing", "tree", 1.2, 2.0),
    ]
    assert {k: v for k, v in _word_spans(c).items() if v} == {
        "thing": [(0, 0.5), (0.5, 1.0), (1.2, 2.0)],
        "other": [(1.0, 1.2)],
    }


@pytest.mark.parametrize("crop", [1.0, 0.875, 0.5])
def test_shares_of_patches_pixel_by_pixel(scenes, crop):
    config = micro(image_size=24, patch_size=6, crop_pct=crop)
    for scene in scenes["dev"].scenes[:5]:
        whole = round(24 / crop)
        masks, cut = draw_masks(scene, whole), (whole - 24) // 2
        shares = patch_shares(scene, config)
        assert shares.shape == (len(scene.things), 16)
        for k in range(len(scene.things)):
            for n in range(16):
                y, x = cut + 6 * (n // 4), cut + 6 * (n % 4)
                assert shares[k, n] == pytest.approx(
                    sum(masks[k, y + i, x + j] for i in range(6) for j in range(6)) / 36
                )


def test_owner_of_a_patch():
    shares = np.array([[1.0, 0.5, 0.3, 0, 0.2], [0, 0.5, 0.3, 0, 0.8]])
    assert _patch_owner(shares).tolist() == [0, 0, _EDGE, _BACKGROUND, 1]
    assert _patch_owner(np.zeros((0, 3))).tolist() == [_BACKGROUND] * 3


# ---- errors, sorted


class Heard(NamedTuple):
    weight: torch.Tensor


class Ear:
    """A 'model' that hears exactly the names of things: at the patches of a thing it predicts the target
    if the name is audible, and 0 if not; elsewhere it is always right."""

    def __init__(self, corpus, config):
        self.corpus, self.config, self.zero = corpus, config, nn.Parameter(torch.zeros(1))
        self.target = lambda image: patchify(image, config.patch_size)

    def eval(self):
        return self

    def parameters(self):
        return iter([self.zero])

    def draw_mask(self, image, generator=None):
        return random_mask(len(image), 64, 0.75, generator)

    def hear(self, batch):
        weight = torch.ones(len(batch["index"]), 64, 1)
        for row, wave, j in zip(weight, batch["audio"], batch["index"].tolist(), strict=True):
            scene = self.corpus.scene(self.corpus.captions[j].image)
            owner = _patch_owner(patch_shares(scene, self.config))
            for m in mentions(self.corpus.captions[j]):
                if m.kind == "thing" and wave[round(m.start * 16000) : round(m.end * 16000)].abs().max() == 0:
                    row[owner == [t.category for t in scene.things].index(m.thing)] = 0
        return Heard(weight)

    def context(self, heard):
        return heard.weight, None

    def image_encoder(self, image, mask):
        return self.target(image)

    def decoder(self, visible, mask, context, padding):
        return visible * context


def test_a_model_that_hears_names_alone_is_found_out(scenes):
    corpus = scenes["dev"]
    found = speech_dependence(Ear(corpus, scenes_tiny()), corpus, resamples=100)
    assert found["pairs"] == 120 and found["overall"]["right"]["value"] == 0
    names = found["silenced"]["thing"]
    assert (
        names["own"]["interval"][0] > 0.1
        and names["other_things"] is None
        and names["background"]["interval"] == [0, 0]
        and names["own_minus_background"]["interval"][0] > 0.1
    )
    assert names["captions"] == 120 and names["own"]["n"] == found["patch"]["thing"]["right"]["n"]
    first = found["silenced"]["first thing"]  # its own patches, and nobody else's
    assert (
        first["own"]["interval"][0] > 0.1
        and first["other_things"]["interval"] == [0, 0] == first["background"]["interval"]
        and first["captions"] == 120
    )
    for kind in ("colour", "size", "place", "other"):
        for part in ("own", "other_things", "background", "all", "own_minus_other_things"):
            if found["silenced"][kind][part]:
                assert found["silenced"][kind][part]["interval"] == [0, 0]


def test_sorted_errors_add_up(scenes, trained):
    corpus = scenes["dev"]
    errors = _patch_errors(trained, corpus)
    truth, weights = _PatchTruth(corpus, errors, trained.config), Resamples(errors.image, 50)
    parts = [_compare(errors, weights, w) for w in (truth.thing, truth.edge, truth.background)]
    whole = _compare(errors, weights)
    assert sum(p["wrong"]["n"] for p in parts) == whole["wrong"]["n"] == errors.hidden.sum() == 120 * 48
    assert sum(p["wrong"]["n"] * p["wrong"]["value"] for p in parts) == pytest.approx(
        whole["wrong"]["n"] * whole["wrong"]["value"], rel=1e-4
    )
    assert (truth.spoken_of("colour") & ~truth.thing).sum() == 0 and np.array_equal(
        truth.spoken_of("place"), truth.background & truth.spoken_of("place")
    )


@pytest.mark.slow
def test_the_shipped_model_depends_on_names_where_things_are(scenes, trained):
    found = speech_dependence(trained, scenes["dev"], resamples=200)
    for part in (found["overall"], *found["patch"].values()):
        assert _above_0(part["wrong_minus_right"]) and _above_0(part["none_minus_right"])
    assert _above_0(found["silenced"]["thing"]["own"]) and _above_0(
        found["silenced"]["first thing"]["own_minus_other_things"]
    )
    assert found["silenced"]["thing"]["own"]["value"] > found["silenced"]["other"]["other_things"]["value"]


@pytest.mark.parametrize("row", ["summary", "frames"])
def test_a_decoder_that_speech_does_not_reach_depends_on_nothing(scenes, row):
    torch.manual_seed(0)
    model = SGMIM(micro(image_size=96, patch_size=12, reconstruction=row))
    for layer in model.decoder.layers:
        nn.init.zeros_(layer.cross.out.weight)
        nn.init.zeros_(layer.cross.out.bias)
    found = speech_dependence(model, scenes["dev"], pairs=40, resamples=50)
    gaps = [
        d[f"{c}_minus_right"]
        for d in (found["overall"], *found["patch"].values(), *found["category"].values())
        for c in ("wrong", "none")
    ]
    gaps += [
        d[k]
        for d in found["silenced"].values()
        for k in (
            "own",
            "other_things",
            "background",
            "all",
            "own_minus_other_things",
            "own_minus_background",
        )
    ]
    for g in gaps:
        assert g is None or g["interval"] == [0, 0], g
    assert not _above_0(found["overall"]["wrong_minus_right"])


def test_captions_dealt_out_anew_leave_no_dependence(scenes, trained):
    "The falsified case, class by class."
    dealt = exchanged(scenes["dev"])
    dealt.scene = scenes["dev"].scene
    errors = _patch_errors(trained, dealt)
    truth, weights = _PatchTruth(dealt, errors, trained.config), Resamples(errors.image)

    def holds_0(where):
        return (lambda e: e is None or e["interval"][0] <= 0 <= e["interval"][1])(
            _compare(errors, weights, where).get("wrong_minus_right")
        )

    assert holds_0(None) and holds_0(truth.thing) and holds_0(truth.edge) and holds_0(truth.background)
    missed = [c for c in CATEGORIES if not holds_0(truth.things(lambda thing, _, c=c: thing.category == c))]
    assert len(missed) <= 6, missed  # of 30 intervals of 95 %, each on a few patches of a few images


def test_taking_words_out(scenes, trained):
    corpus = scenes["dev"]
    batch = batch_of(corpus, 10)
    with torch.no_grad():
        heard = trained.hear(batch)
        for kind in _TAKEN:
            spans = [_taken_spans(corpus.captions[j], kind) for j in range(10)]
            audio = batch["audio"].clone()
            for wave, times in zip(audio, spans, strict=True):
                for s, e in times:
                    wave[round(s * 16000) : round(e * 16000)] = 0
            plain = trained.hear({**batch, "audio": audio})
            ours = _remove_words(trained, corpus, batch, heard, kind)
            for a, b in zip(plain, ours, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_with_the_recon_row(scenes):
    torch.manual_seed(0)
    guided, recon = (
        SGMIM(micro(image_size=96, patch_size=12, reconstruction=r)) for r in ("summary", "plain")
    )
    found = speech_dependence(guided, scenes["dev"], pairs=30, resamples=50, recon=recon)
    alone = _patch_errors(recon, scenes["dev"], ("alone",), 30)
    assert found["overall"]["alone"]["value"] == pytest.approx(
        alone.error["alone"].sum() / alone.hidden.sum(), abs=1e-5
    )
    assert found["overall"]["alone_minus_right"]["value"] == pytest.approx(
        found["overall"]["alone"]["value"] - found["overall"]["right"]["value"], abs=2e-5
    )
    assert {"alone", "alone_minus_right"} <= found["patch"]["thing"].keys()
    with pytest.raises(ConfigError, match="the errors cannot be compared"):
        speech_dependence(
            guided,
            scenes["dev"],
            30,
            recon=SGMIM(micro(image_size=96, patch_size=12, reconstruction="plain", mask_ratio=0.5)),
        )
    with pytest.raises(ConfigError, match="'alone' is for a model"):
        _patch_errors(guided, scenes["dev"], ("alone",), 30)
    for row in ("none", "plain"):
        with pytest.raises(ConfigError, match="does not use speech"):
            speech_dependence(SGMIM(micro(image_size=96, patch_size=12, reconstruction=row)), scenes["dev"])


def test_a_corpus_without_scenes_has_the_first_answer_only(model):
    found = speech_dependence(model, Toy(captions=2), resamples=50)
    assert set(found) == {"overall", "pairs"} and found["pairs"] == 80
    assert found["overall"]["wrong_minus_right"]["interval"][0] <= 0


def test_records_and_figures(scenes, trained, tmp_path):
    made = dependence_record(
        trained,
        {"dev": scenes["dev"], "train": first(scenes["train"], 30)},
        pairs=20,
        resamples=20,
        about={"checkpoint": "x"},
    )
    write_json(tmp_path / "r.json", made)
    assert (
        read_json(tmp_path / "r.json")["metrics"] == made["metrics"]
        and set(made["metrics"]) == {"dev", "train"}
        and set(made["metrics"]["train"]) == {"overall", "pairs"}
    )
    assert (
        made["kind"] == "dependence"
        and made["config"]["checkpoint"] == "x"
        and made["data"]["dev"]["fingerprint"] == scenes["dev"].fingerprint
    )
    again = dependence_record(trained, {"dev": scenes["dev"]}, pairs=20, resamples=20)
    assert again["metrics"]["dev"] == made["metrics"]["dev"]
    for name, figure in (
        ("a", dependence_figure(made["metrics"]["dev"], "title")),
        ("b", dependence_figure(made["metrics"]["train"])),
    ):
        save_figure(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert set(dependence_tables(made["metrics"]["dev"])) == {"patches", "categories", "silenced"}
    assert set(dependence_tables(made["metrics"]["train"])) == {"patches"}


# ---- whose gradient


def test_every_parameter_is_of_one_part():
    model = SGMIM(micro(audio_depth=2, freeze_cnn=False, decoder_depth=2))
    parts = {n: _part_of(n) for n, p in model.named_parameters() if p.requires_grad}
    assert set(parts.values()) == {
        "image front",
        "image layer 0",
        "audio front",
        "audio layer 0",
        "audio layer 1",
        "projections",
        "decoder",
    }
    assert {
        p
        for n, p in parts.items()
        if "feature_extractor" in n or "pos_conv" in n or n == "audio_encoder.cls_token"
    } == {"audio front"} and parts["image_proj.weight"] == parts["audio_proj.bias"] == "projections"
    assert {p for n, p in parts.items() if n.startswith("decoder.layers")} == {"decoder"}


@pytest.mark.parametrize("row", ["plain", "frames", "summary"])
def test_the_gradients_of_both_losses_are_those_of_training(row):
    torch.manual_seed(0)
    model = SGMIM(micro(reconstruction=row, dropout=0.0, lam=3.0))
    batch = batch_of(Toy(), 8)
    found = _loss_gradients(model, batch, torch.Generator().manual_seed(1))
    out = model(batch, generator=torch.Generator().manual_seed(1))
    out["loss"].backward()
    for part, (nce, mim) in found.items():
        if part.endswith("encoder"):
            continue
        whole = torch.cat(
            [
                p.grad.flatten() if p.grad is not None else torch.zeros(p.numel())
                for n, p in model.named_parameters()
                if p.requires_grad and _part_of(n) == part
            ]
        )
        torch.testing.assert_close(nce + mim, whole, atol=1e-5, rtol=1e-4)
    assert (
        (found["audio encoder"][1] == 0).all() == (row == "plain")
        and (found["decoder"][0] == 0).all()
        and (found["projections"][1] == 0).all()
    )
    assert all(found["image encoder"][k].norm() > 0 for k in (0, 1)) and found["audio encoder"][0].norm() > 0
    assert model.training and not any(p.grad is not None for p in model.momentum_encoder.parameters())


def test_without_weight_there_is_no_gradient():
    torch.manual_seed(0)
    found = gradient_split(SGMIM(micro(lam=0.0)), Toy(), 2, 8, resamples=10)
    assert (
        all(d["mim"]["interval"] == [0, 0] and d["cosine"] is None for d in found["parts"].values())
        and found["parts"]["audio encoder"]["ratio"]["value"] == 0
    )
    with pytest.raises(ConfigError, match="no decoder"):
        gradient_split(SGMIM(micro(reconstruction="none")), Toy(), 2, 8)


def test_pixels_as_target_have_gradients_too():
    torch.manual_seed(0)
    found = gradient_split(SGMIM(micro(mim_target="pixels")), Toy(), 1, 8, resamples=10)["parts"]
    assert found["audio encoder"]["mim"]["value"] > 0 and found["decoder"]["ratio"] is None


class Twin(nn.Module):
    "Two losses of known gradients: the second is `a` times the first, plus something at a right angle to it."

    def __init__(self, a, b):
        super().__init__()
        self.config = SimpleNamespace(
            lam=2.0, padding_matters=False, conv_kernel=(), conv_stride=(), image_size=32, crop_pct=1.0
        )
        self.decoder = True
        self.a = a
        self.b = b
        self.image_proj, self.audio_proj = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, batch, generator=None):
        x, y = self.image_proj.sum(), self.audio_proj.sum()
        return {"loss_nce": 4 * x, "loss_mim": self.a * x + self.b * y}


@pytest.mark.parametrize("a,b,cosine", [(1.0, 0.0, 1.0), (-1.0, 0.0, -1.0), (0.0, 3.0, 0.0), (3.0, 4.0, 0.6)])
def test_norms_and_cosines_of_known_gradients(a, b, cosine):
    d = gradient_split([Twin(a, b)] * 2, Toy(), 3, 8, resamples=10)["parts"]["projections"]
    assert (
        d["nce"]["value"] == 4
        and d["mim"]["value"] == pytest.approx(2 * (a * a + b * b) ** 0.5, abs=1e-4)
        and d["cosine"]["value"] == pytest.approx(cosine, abs=1e-5)
        and d["ratio"]["value"] == pytest.approx((a * a + b * b) ** 0.5 / 2, abs=1e-4)
    )


def test_gradients_as_a_table():
    torch.manual_seed(0)
    split = gradient_split(SGMIM(micro()), Toy(n=9), 5, 8, resamples=10)
    assert (
        split["batches"] == 1
        and "| audio layer 0 | " in gradient_table({"one": split})
        and "| decoder | b | 0.000" in gradient_table({"a": split, "b": split})
    )


# ---- which words are missed


def test_contradictions_one_by_one(scenes):
    "Every caption against every picture, by plain loops."
    corpus = scenes["dev"]
    found = contradicted_words(corpus)
    for j, c in enumerate(corpus.captions[:40]):
        for i, s in enumerate(corpus.scenes):
            shown = {t.category: t for t in s.things}
            there = [t for t in c.things if t[0] in shown]
            expected = {
                "place": c.place not in (None, s.place),
                "thing": len(there) < len(c.things),
                "extra": bool(set(shown) - {t[0] for t in c.things}),
                "colour": any(t[1] and shown[t[0]].colour != t[1] for t in there),
                "size": any(t[2] and shown[t[0]].size != t[2] for t in there),
            }
            can = {
                "place": c.place is not None,
                "thing": True,
                "extra": True,
                "colour": any(t[1] for t in there),
                "size": any(t[2] for t in there),
            }
            for kind in expected:
                assert (found[kind][0][j, i], found[kind][1][j, i]) == (expected[kind], can[kind]), (
                    kind,
                    j,
                    i,
                )
            assert (
                found["nothing"][0][j, i]
                == (not any(expected.values()))
                == _may_fit(c.place, c.things, content(s), len(LADDER) - 1)
            )


def test_random_answers_make_random_mistakes(scenes):
    "The falsified case: embeddings that know nothing."
    corpus, rng = scenes["dev"], np.random.default_rng(1)
    found = mistake_shares(corpus, rng.integers(0, 120, (400, 120)), resamples=50)
    for kind in _MISTAKES:
        # five standard deviations of a share of a half
        assert abs(found[kind]["less_chance"]["value"]) < 2.5 / found[kind]["of_wrong"]["n"] ** 0.5, (
            kind,
            found[kind],
        )
    z = rng.normal(size=(2, 120, 16))
    one = mistake_shares(corpus, (z[0] @ z[1].T).argmax(1))
    # of colours and sizes there are too few cases to resample
    off = [
        kind
        for kind in ("place", "thing", "extra", "nothing")
        if not (e := one[kind]["less_chance"]["interval"])[0] <= 0 <= e[1]
    ]
    assert len(off) <= 1 and one["wrong"]["value"] > 0.9, off


@pytest.mark.parametrize("heard", ["place", "thing", "colour"])
def test_a_listener_of_one_kind_is_found_out(scenes, heard):
    corpus, rng = scenes["dev"], np.random.default_rng(2)
    differs, _ = contradicted_words(corpus)[heard]
    found = mistake_shares(
        corpus, [[rng.choice(np.flatnonzero(~d)) for d in differs] for _ in range(60)], resamples=100
    )
    assert found[heard]["of_wrong"]["value"] == 0 and found[heard]["less_chance"]["interval"][1] < 0
    if heard == "place":
        for other in ("thing", "extra"):
            assert abs(found[other]["less_chance"]["value"]) < 0.03


def test_who_is_always_right_has_nothing_to_show(scenes):
    corpus = scenes["dev"]
    found = mistake_shares(
        corpus, corpus.image_of_caption, base=(corpus.image_of_caption + 1) % 120, resamples=50
    )
    assert (
        found["wrong"]["value"] == 0
        and found["thing"]["of_wrong"] is None
        and found["thing"]["of_all"]["value"] == 0
        and found["thing"]["of_all_less_base"]["interval"][1] < 0
    )
    assert "–" in mistakes_tables({"all right": found})["wrong"]


def test_several_models_are_their_mean(scenes):
    corpus, rng = scenes["dev"], np.random.default_rng(3)
    some = rng.integers(0, 120, (3, 120))
    each = [mistake_shares(corpus, c, resamples=20) for c in some]
    all_of = mistake_shares(corpus, some, resamples=20)
    assert all_of["wrong"]["value"] == pytest.approx(
        np.mean([e["wrong"]["value"] for e in each]), abs=1e-5
    ) and all_of["thing"]["of_wrong"]["n"] == sum(e["thing"]["of_wrong"]["n"] for e in each)


@pytest.mark.slow
def test_the_shipped_model_hears_places_and_things(scenes, trained, tmp_path):
    corpus = scenes["dev"]
    assert (_retrieved(trained, corpus) == corpus.image_of_caption).mean() > 0.2
    dealt = exchanged(corpus)
    # what was said is not what is heard
    dealt.scene, dealt.scenes, dealt.captions = (corpus.scene, corpus.scenes, corpus.captions)
    torch.manual_seed(0)
    made = mistakes_record(
        {"untrained": [SGMIM(scenes_tiny()).eval()], "trained": [trained]},
        {"dev": corpus},
    )
    write_json(tmp_path / "r.json", made)
    found = read_json(tmp_path / "r.json")["metrics"]["dev"]
    assert (
        found == made["metrics"]["dev"]
        and all(found["trained"][k]["less_chance"]["interval"][1] < 0 for k in ("place", "thing", "extra"))
        and found["trained"]["thing"]["of_all_less_base"]["interval"][1] < 0
    )
    dealt = mistake_shares(dealt, _retrieved(trained, dealt))
    off = [
        k
        for k in ("place", "thing", "extra", "nothing")
        if not (e := dealt[k]["less_chance"]["interval"])[0] <= 0 <= e[1]
    ]
    assert len(off) <= 1, off
    save_figure(mistakes_figure(found), tmp_path / "m.png")
    with pytest.raises(DataError, match="only the embedded corpus"):
        mistake_shares(Toy(), np.zeros(40, int))
