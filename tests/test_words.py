"""Word discovery, 27: are segments, boundaries and scores what they claim to be, and does what knows
nothing score like chance?"""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from conftest import Toy, micro

from sgmim.apps.commands import run_command
from sgmim.core import ConfigError, DataError, read_json, write_json
from sgmim.data.corpora import load_corpus
from sgmim.data.corpus import select
from sgmim.evaluation.words import (
    Heard,
    _boundary_counts,
    _boundary_scores,
    _choose_quantile,
    _content_class,
    _even_boundaries,
    _exchanged_boundaries,
    _found_boundaries,
    _matches,
    _quantile_table,
    _random_boundaries,
    _scores_of_counts,
    _scores_with_chance,
    _segmentation_scores,
    _true_boundaries,
    _with_words,
    attention_share,
    before_training,
    boundaries,
    class_shares,
    cls_attention_of,
    discovery_figure,
    discovery_record,
    discovery_table,
    favour,
    frame_times,
    segments,
    word_discovery,
    word_of_frames,
)
from sgmim.models.audio_encoder import AudioEncoder, hubert_config
from sgmim.models.pretrained import shipped
from sgmim.models.sgmim import SGMIM, build_audio_encoder, load_model
from sgmim.scenes.corpus import export_facc, export_spokencoco, load_scenes


@pytest.fixture(scope="module")
def corpus(cache):
    return load_scenes("test-seen", 200, cache=cache, progress=False)


@pytest.fixture(scope="module")
def model():
    return load_model(shipped("scenes-tiny"), device="cpu")


@pytest.fixture(scope="module")
def heard(model, corpus):
    return cls_attention_of(model, corpus, layer=[2, 3])


def truth(heard):
    return [_true_boundaries(h.words, h.duration) for h in heard]


# ---- the attention


@pytest.mark.slow
def test_the_last_layer_is_the_models_own(model, corpus, heard):
    for j in (0, 17, 199):
        wave = torch.from_numpy(corpus.audio(j))
        with torch.no_grad():
            out = model.audio_encoder(wave[None])
        h = heard[3][j]
        # alone, or in a batch with longer ones
        np.testing.assert_allclose(h.attention, out.attention[0], atol=1e-5)
        assert (h.caption, h.image, h.words) == (j, corpus.image_of_caption[j], corpus.captions[j].words)
        assert abs(h.duration - len(wave) / 16000) < 1e-9


def test_an_inner_layer_is_the_last_of_a_shorter_network(model, corpus, heard):
    shorter = build_audio_encoder(replace(model.config, audio_depth=3)).eval()
    weights = {k: v for k, v in model.audio_encoder.state_dict().items() if ".layers.3." not in k}
    shorter.load_state_dict(weights)
    for a, b in zip(cls_attention_of(shorter, corpus, [3, 1]), (heard[2][3], heard[2][1]), strict=True):
        np.testing.assert_allclose(a.attention, b.attention, atol=1e-5)


def test_it_is_read_in_evaluation_mode_and_the_mode_comes_back():
    noisy, toy = SGMIM(micro(dropout=0.5, attention_dropout=0.5)), worded(Toy(5))
    noisy.train()
    a, b = cls_attention_of(noisy, toy), cls_attention_of(noisy, toy)
    assert (
        all((x.attention == y.attention).all() for x, y in zip(a, b, strict=True))
        and noisy.audio_encoder.training
    )
    assert not noisy.audio_encoder.hubert.encoder.layers[0]._forward_pre_hooks  # nothing is left behind


def worded(toy):
    "The toy corpus with two words a caption."
    for c in toy.captions:
        c.words = (("A", 0.0, 0.1), ("cat", 0.1, c.samples / 16000))
    return toy


def test_hubert_base_hears_each_caption_alone():
    "Where the first convolution normalises over the whole recording, padding would change what is heard."
    torch.manual_seed(0)
    config = hubert_config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(8,) * 5,
        conv_kernel=(20, 4, 4, 4, 4),
        conv_stride=(10, 4, 4, 2, 2),
        conv_bias=True,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=4,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    encoder, toy = AudioEncoder(config).eval(), worded(Toy(6))
    alone = cls_attention_of(encoder, toy)
    for j, h in enumerate(alone):
        with torch.no_grad():
            np.testing.assert_allclose(
                h.attention, encoder(torch.from_numpy(toy.waves[j])[None]).attention[0], atol=1e-6
            )
    together = cls_attention_of(encoder, toy, batch_size=6)
    assert any(
        a.attention.shape != b.attention.shape or np.abs(a.attention - b.attention).max() > 1e-5
        for a, b in zip(alone, together, strict=True)
    )


def test_frame_times_follow_the_receptive_field():
    """A click moves exactly those frames whose stretch of sound holds it, and lies within half that
    stretch of their middles."""
    encoder = SGMIM(micro()).audio_encoder.eval()
    quiet = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    frames, _ = encoder.cnn(quiet)
    first, hop = frame_times(encoder)
    middles = first + hop * np.arange(frames.shape[1])
    for at in (0, 805, 7000, 7001, 15000):
        loud = quiet.clone()
        loud[0, at] += 1
        moved = ((encoder.cnn(loud)[0] - frames).abs().amax((0, 2)) > 0).numpy()
        near = np.abs(middles - (at + 0.5) / 16000) <= encoder.shortest / 2 / 16000
        assert (moved == near).all()


def test_long_captions_are_cut(model, corpus):
    [h] = cls_attention_of(model, corpus, [0], max_seconds=0.5)
    assert h.duration == 0.5 and _true_boundaries(h.words, h.duration).max() <= 0.5 and h.middles[-1] < 0.5


@pytest.mark.parametrize("layer", [4, -5])
def test_no_such_layer(model, corpus, layer):
    with pytest.raises(ConfigError, match="numbered 0 to 3"):
        cls_attention_of(model, corpus, [0], layer=layer)


# ---- segments and boundaries


def plain(attention, quantile):
    kept = set()
    for row in torch.as_tensor(attention, dtype=torch.float64):
        kept |= set((row >= row.quantile(quantile) * (1 - 1e-6)).nonzero().flatten().tolist())
    runs = [[t for t in kept if (t - 1) not in kept], [t + 1 for t in kept if (t + 1) not in kept]]
    runs = list(zip(*map(sorted, runs), strict=True))
    return [r for r in runs if r[1] - r[0] > 1] or runs


def test_segments_are_runs_of_kept_frames():
    rng = np.random.default_rng(0)
    for _ in range(500):
        w = rng.random((rng.integers(1, 13), rng.integers(1, 60)))
        if rng.random() < 0.3:
            w = w.round(1)  # ties
        q = rng.choice([0, 0.2, 0.5, 0.7, 0.75, 0.9, 0.99, 1])
        np.testing.assert_allclose(segments(w, q, 1.0), plain(w, q))


def test_segments_at_the_limits():
    one = np.ones((4, 30))
    np.testing.assert_allclose(segments(one, 0.9, 0.02), [[0, 0.6]])  # all alike: all kept
    # only single frames: they stay
    np.testing.assert_allclose(segments(np.eye(1, 9, 4), 1.0, 0.02), [[0.08, 0.10]])
    np.testing.assert_allclose(segments([[0.3]], 0.7, 0.02), [[0, 0.02]])
    # two heads, side by side
    np.testing.assert_allclose(
        segments(np.eye(2, 10, 4) + np.eye(2, 10, 8), 1.0, 0.02), [[0.08, 0.12], [0.16, 0.20]]
    )
    np.testing.assert_allclose(segments([[0, 1, 1, 0]], 0.5, 0.04, first=0.05), [[0.07, 0.15]])


@pytest.mark.parametrize(
    "attention, quantile, error",
    [
        (np.ones(5), 0.5, DataError),
        (np.ones((2, 0)), 0.5, DataError),
        ([[1.0, np.nan]], 0.5, DataError),
        (np.ones((1, 2, 3)), 0.5, DataError),
        ([[1.0, 2.0]], 70, ConfigError),
        ([[1.0, 2.0]], -0.1, ConfigError),
    ],
)
def test_bad_attention(attention, quantile, error):
    with pytest.raises(error):
        segments(attention, quantile)


def test_boundaries():
    np.testing.assert_allclose(boundaries([[0.2, 0.4], [0.6, 0.9]], 1.0), [0.1, 0.5, 0.95])
    np.testing.assert_allclose(boundaries([[0.2, 0.4]], 1.0), [0.1, 0.7])
    assert len(boundaries(np.zeros((0, 2)), 1.0)) == 0
    np.testing.assert_allclose(boundaries([[0.2, 0.4]], 1.0, "edges"), [0, 0.2, 0.4, 1])
    np.testing.assert_allclose(boundaries([], 1.0, "edges"), [0, 1])
    with pytest.raises(ConfigError, match="edges"):
        boundaries([[0.2, 0.4]], 1.0, "ends")


def test_true_boundaries():
    words = (("A", 0.1, 0.2), ("red", 0.2, 0.4), ("car", 0.5, 0.9))
    np.testing.assert_allclose(_true_boundaries(words), [0.1, 0.2, 0.4, 0.5, 0.9])
    np.testing.assert_allclose(_true_boundaries(words, 0.45), [0.1, 0.2, 0.4])
    np.testing.assert_allclose(_true_boundaries(words, 0.6), [0.1, 0.2, 0.4, 0.5, 0.6])
    assert len(_true_boundaries(())) == 0


# ---- scores


def most(found, true, tolerance):
    "The largest number of pairs, by trying."
    if not len(found) or not len(true):
        return 0
    rest = most(found[1:], true, tolerance)
    return max(
        [
            rest,
            *(
                1 + most(found[1:], np.delete(true, j), tolerance)
                for j, t in enumerate(true)
                if abs(found[0] - t) <= tolerance
            ),
        ]
    )


def test_no_pairing_finds_more():
    rng = np.random.default_rng(0)
    for _ in range(300):
        found, true = (np.sort(rng.random(rng.integers(0, 6))) for _ in range(2))
        pairs = _matches(found, true, 0.1)
        assert len(pairs) == most(found, true, 0.1)
        assert all(abs(found[i] - true[j]) <= 0.1 + 1e-9 for i, j in pairs)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)


def test_rounding_does_not_decide():
    assert _matches([0.1], [0.12], 0.02) and _matches([0.3], [0.28], 0.02) and _matches([1.14], [1.12], 0.02)
    assert not _matches([0.1], [0.1201], 0.02)


@pytest.mark.parametrize("tolerance", [0.02, 0.06, 0.125, 0.5])
def test_the_tolerance_itself_is_within(tolerance):
    "A boundary exactly `tolerance` off is right, on both sides; a thousandth of a second more is wrong."
    for true in (0.0, 1.0, 0.75):
        for off in (tolerance, -tolerance):
            assert len(_matches([true + off], [true], tolerance)) == 1
            assert not _matches([true + off * (1 + 0.001 / tolerance)], [true], tolerance)
    assert _boundary_counts([[0, 0.5 + tolerance, 2]], [[0, 0.5, 2]], tolerance).tolist() == [[1, 1, 1]]


def test_the_ends_do_not_count():
    assert _boundary_counts([[0, 0.5, 1]], [[0, 0.5, 1]]).tolist() == [[1, 1, 1]]
    assert _boundary_counts(
        [[], [0.3], [0.1, 0.9], [0, 0.2, 0.5, 1]], [[0, 0.4, 1], [0, 1], [0, 0.5, 1], []]
    ).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 1], [0, 2, 0]]
    assert _boundary_counts([], []).shape == (0, 3)
    with pytest.raises(ValueError):
        _boundary_counts([[0, 1]], [])


@pytest.mark.parametrize(
    "p, r, over, value",
    [
        (0.3619, 0.3222, -0.1097, 0.4558),
        (0.3619, 0.2721, -0.2481, 0.4459),
        (0.3590, 0.2703, -0.2472, 0.4442),
        (0.2839, 0.2564, -0.0970, 0.3964),
        (0.1831, 0.1890, 0.0326, 0.2960),
    ],
)
def test_golden_scores(p, r, over, value):
    "The numbers that VG-HuBERT's authors publish, of three models."
    s = _segmentation_scores(p, r)
    assert s["over_segmentation"] == pytest.approx(over, abs=5e-4) and s["r_value"] == pytest.approx(
        value, abs=1.5e-4
    )
    assert s["f1"] == pytest.approx(2 * p * r / (p + r))


def test_golden_f1():
    assert _segmentation_scores(0.3590, 0.2703)["f1"] == pytest.approx(0.3084, abs=5e-5)


def test_scores_from_counts_are_those_from_shares():
    rng = np.random.default_rng(0)
    counts = np.stack([rng.integers(1, 50, 20), rng.integers(50, 90, 20), rng.integers(50, 90, 20)], 1)
    a = _scores_of_counts(counts)
    b = _segmentation_scores(counts[:, 0] / counts[:, 1], counts[:, 0] / counts[:, 2])
    for k in a:
        np.testing.assert_allclose(a[k], b[k])


def test_scores_are_pooled_over_captions():
    found, true = [[0, 0.1, 0.2, 0.3, 1], [0, 0.5, 1]], [[0, 0.1, 1], [0, 0.5, 0.7, 0.9, 1]]
    s = _boundary_scores(found, true)
    assert (s["precision"], s["recall"]) == (2 / 4, 2 / 4) and s["over_segmentation"] == 0


def test_nothing_found_nothing_true_and_one_word():
    nothing = _boundary_scores([[], [0.1, 0.9]], [[0, 0.5, 1], [0, 0.4, 0.8, 1]])
    assert (nothing["precision"], nothing["recall"], nothing["f1"], nothing["over_segmentation"]) == (
        0,
        0,
        0,
        -1,
    ) and nothing["r_value"] == pytest.approx(1 - 2**0.5 / 2)
    missed = _boundary_scores([[0, 0.2, 1]], [[0, 0.5, 1]])
    assert missed["f1"] == missed["precision"] == missed["over_segmentation"] == 0
    for one_word in ([[0, 1]], [[]], []):
        with pytest.raises(DataError, match="inner word boundary"):
            _boundary_scores([[0, 0.5, 1]][: len(one_word)], one_word)


# ---- chance


def test_baselines_have_as_many():
    rng = np.random.default_rng(0)
    durations = [1.0, 2.0, 3.0, 0.5]
    found = [
        np.array([0, 0.2, 0.7, 1]),
        np.array([0.1, 1.9]),
        np.array([]),
        np.array([0, 0.1, 0.2, 0.3, 0.5]),
    ]
    for made in (_random_boundaries(found, durations, rng), _even_boundaries(found, durations)):
        assert [len(b) - 2 for b in made] == [2, 0, 0, 3]
        assert all(
            (np.diff(b) > 0).all() and b[0] == 0 and b[-1] == d for b, d in zip(made, durations, strict=True)
        )
    np.testing.assert_allclose(_even_boundaries(found, durations)[0], [0, 1 / 3, 2 / 3, 1])


def test_exchanged_boundaries_come_from_the_next_in_length():
    found = [[0, 0.5, 1], [0, 0.2, 2], [0, 0.3, 4]]
    made = _exchanged_boundaries(found, [1.0, 2.0, 4.0], 1)
    # the longest: from the one before
    np.testing.assert_allclose(made, [[0, 0.1, 1], [0, 0.15, 2], [0, 0.4, 4]])
    for n in range(2, 9):
        for shift in range(-(n // 2), n // 2 + 1):
            own = _exchanged_boundaries([[k] for k in range(n)], np.ones(n), shift)
            assert [int(b[0]) == k for k, b in enumerate(own)] == [shift == 0] * n


def test_a_perfect_ear_scores_one(heard):
    """Attention on exactly the words, of which each is a head's own, with a frame of silence on either
    side of a boundary."""
    ears = []
    for h in heard[3]:
        T, edge = h.attention.shape[1], h.first - h.hop / 2
        cuts = np.r_[np.arange(0, T - 5, 6), T]
        w = np.full((len(cuts) - 1, T), 0.01)
        for k, (a, b) in enumerate(itertools.pairwise(cuts)):
            w[k, a + 1 : b - 1] = 1
        ears.append(
            replace(
                h,
                attention=w,
                words=tuple(
                    (f"w{k}", edge + a * h.hop, edge + b * h.hop)
                    for k, (a, b) in enumerate(itertools.pairwise(cuts))
                ),
            )
        )
    found = [boundaries(segments(h.attention, 1.0, h.hop, h.first), h.duration) for h in ears]
    for tolerance in (0.001, 0.02, 0.06):
        s = _scores_with_chance(ears, found, tolerance, draws=3)
        assert [s["found"][k] for k in ("precision", "recall", "f1", "over_segmentation", "r_value")] == [
            1,
            1,
            1,
            0,
            1,
        ] and s["found"]["interval"]["f1"] == [1, 1]
        assert s["gain"]["random"]["interval"][0] > 0.2
    np.testing.assert_allclose(list(_boundary_scores(found, truth(ears)).values()), [1, 1, 1, 0, 1])


def gains(heard, quantile, at="middles"):
    return [
        _scores_with_chance(heard, _found_boundaries(heard, quantile, at), t, draws=10)["gain"]["exchanged"]
        for t in (0.02, 0.06)
    ]


def no_gain(heard, quantile, at="middles"):
    return all(g["interval"][0] < 0 < g["interval"][1] for g in gains(heard, quantile, at))


@pytest.mark.parametrize("at", ["middles", "edges"])
def test_random_attention_scores_like_chance(heard, at):
    """Not so against random boundaries: segments keep a distance, as words do, so noise beats them. That
    is why there is another baseline."""
    rng = np.random.default_rng(0)
    deaf = [
        replace(h, attention=rng.dirichlet(np.ones(h.attention.shape[1]), 4))
        for _ in range(4)
        for h in heard[2]
    ]
    gain = _scores_with_chance(deaf, _found_boundaries(deaf, 0.8, at), 0.06, draws=3)["gain"]
    assert (
        gain["exchanged"]["interval"][0] < 0 < gain["exchanged"]["interval"][1]
        and abs(gain["exchanged"]["f1"]) < 0.01
    )
    assert gain["random"]["interval"][0] > 0.03
    assert no_gain(deaf[: len(heard[2])], 0.8, at)


def exchanged(heard, step=7):
    "Each caption with the attention of another of nearly the same length, the words as they were."
    order = sorted(range(len(heard)), key=lambda j: heard[j].duration)
    made = list(heard)
    for a, b in zip(order, order[step:] + order[:step], strict=True):
        h, other = heard[a], heard[b]
        made[a] = replace(
            h,
            attention=other.attention,
            first=other.first * h.duration / other.duration,
            hop=other.hop * h.duration / other.duration,
        )
    return made


def test_the_attention_of_another_caption_scores_like_chance_and_ones_own_does_not(heard):
    assert no_gain(exchanged(heard[2], 23), 0.75) and no_gain(exchanged(heard[3], 23), 0.4)
    assert all(g["interval"][0] > 0 for g in gains(heard[2], 0.75)) and all(
        g["interval"][0] > 0 for g in gains(heard[3], 0.4)
    )


def test_shuffled_word_times_score_like_chance(heard):
    "The words of each caption in another order: as many, as long, elsewhere."
    rng, shuffled = np.random.default_rng(0), []
    for h in heard[2]:
        lengths = rng.permutation([e - s for _, s, e in h.words])
        ends = h.words[0][1] + np.cumsum(lengths)
        shuffled.append(
            replace(
                h,
                words=tuple((f"w{k}", e - d, e) for k, (d, e) in enumerate(zip(lengths, ends, strict=True))),
            )
        )
    found = _found_boundaries(shuffled, 0.75)
    own, mixed = (
        _scores_with_chance(x, found, 0.06, draws=5)["gain"]["exchanged"] for x in (heard[2], shuffled)
    )
    assert mixed["interval"][0] < 0 < mixed["interval"][1] < own["f1"]


def test_scores_with_chance_agree_with_the_plain_scores(heard):
    found = _found_boundaries(heard[3], 0.4)
    s = _scores_with_chance(heard[3], found, 0.06, draws=2)
    plain = _boundary_scores(found, truth(heard[3]), 0.06)
    assert all(s["found"][k] == pytest.approx(v, abs=1e-5) for k, v in plain.items())
    assert all(low <= s["found"][k] <= high for k, (low, high) in s["found"]["interval"].items())
    assert s["gain"]["random"]["f1"] == pytest.approx(s["found"]["f1"] - s["random"]["f1"], abs=2e-5)
    assert s["boundaries"] == {
        "matched": _boundary_counts(found, truth(heard[3]), 0.06)[:, 0].sum(),
        "found": sum(len(f) - 2 for f in found),
        "true": sum(len(t) - 2 for t in truth(heard[3])),
    }


def test_one_and_two_captions(heard):
    pair = [h for h in heard[3] if len(h.words) > 3][:2]
    assert "exchanged" in _scores_with_chance(pair, _found_boundaries(pair, 0.4), draws=2)["gain"]
    assert set(_scores_with_chance(pair[:1], _found_boundaries(pair[:1], 0.4), draws=2)["gain"]) == {
        "random",
        "even",
    }


# ---- classes of words


def test_every_frame_has_its_word(heard):
    for h in heard[3]:
        of = word_of_frames(h.words, h.middles)
        for t, i in zip(h.middles, of, strict=True):
            assert h.words[i][1] <= t < h.words[i][2]
    assert (word_of_frames((), np.arange(3.0)) == -1).all()


def toy_heard(attention, words):
    return [Heard(0, 0, np.asarray(attention, float), 0.05, 0.1, 0.1 * len(attention[0]), words)]


def test_favour_by_hand():
    words = (("a", 0, 0.2), ("red", 0.2, 0.3), ("car", 0.3, 0.5))  # then a pause of half a second
    w = np.array([[1, 1, 2, 3, 3, 0, 0, 0, 0, 0], [0, 0, 5, 0, 0, 1, 1, 1, 1, 1.0]])
    share = attention_share(toy_heard(w, words))
    assert set(share) == {"other", "colour", "thing"} and [
        share[k]["words"] for k in ("other", "colour", "thing")
    ] == [1, 1, 1]
    np.testing.assert_allclose([share[k]["time"] for k in ("other", "colour", "thing")], [0.2, 0.1, 0.2])
    np.testing.assert_allclose(share["colour"]["heads"], [2, 5])
    np.testing.assert_allclose(share["thing"]["heads"], [3, 0])
    assert share["thing"]["favour"] == 1.5 and share["other"]["attention"] == pytest.approx(0.1)


def test_random_and_exchanged_attention_favours_nothing(heard):
    rng = np.random.default_rng(0)
    flat = attention_share([replace(h, attention=rng.random(h.attention.shape)) for h in heard[3]])
    assert all(
        abs(s["favour"] - 1) < 0.1 and s["interval"][0] - 0.03 < 1 < s["interval"][1] + 0.03
        for s in flat.values()
    )
    own = attention_share(heard[3])
    assert own["thing"]["interval"][0] > 1.2 and own["other"]["interval"][1] < 0.6
    time, weight = class_shares(heard[3])
    np.testing.assert_allclose(
        [time.sum(1).max(), weight.sum(2).min(), (favour(time, weight) * time.mean(0)).sum(1).mean()],
        1,
        atol=1e-5,
    )


def test_content_and_function():
    assert {_content_class(w) for w in ("A", "OF", "is", "<SPOKEN_NOISE>", "<UNK>", "...")} == {"function"}
    assert {_content_class(w) for w in ("PICTURE", "car", "man's", "twenty")} == {"content"}


# ---- all of it


def test_choice_is_by_dev(model, scenes):
    table = _quantile_table(model, scenes["dev"], [1, -1], (0.5, 0.8))
    assert [(r["layer"], r["at"], r["quantile"]) for r in table] == [
        (k, at, q) for k in (1, 3) for at in ("middles", "edges") for q in (0.5, 0.8)
    ]
    best = _choose_quantile(table)
    assert best["r_value"] == max(r["r_value"] for r in table if r["at"] == "middles")
    assert _choose_quantile(table, layer=-1, at="edges")["layer"] == 3
    [h] = [h for h in [cls_attention_of(model, scenes["dev"], layer=1)]]
    row = next(r for r in table if r["layer"] == 1 and r["quantile"] == 0.8 and r["at"] == "edges")
    assert row["r_value"] == pytest.approx(
        _boundary_scores(_found_boundaries(h, 0.8, "edges"), truth(h))["r_value"]
    )


@pytest.mark.slow
def test_spokencocos_aligned_files(model, corpus, heard, tmp_path):
    """The same captions through the layout of a real corpus: times are rounded to 10 ms, everything else
    is the same."""
    part = load_scenes("test-seen", 60, 2, cache=corpus.folder.parent.parent, progress=False)
    export_spokencoco({"test": part}, tmp_path)
    aligned = load_corpus(tmp_path, "test")
    a, b = (word_discovery(model, c, 0.75, 2, draws=2) for c in (part, aligned))
    assert a["captions"] == b["captions"] == len(part)
    assert a["boundaries"]["60 ms"]["boundaries"]["true"] == b["boundaries"]["60 ms"]["boundaries"]["true"]
    assert abs(a["boundaries"]["60 ms"]["found"]["f1"] - b["boundaries"]["60 ms"]["found"]["f1"]) < 0.03
    assert set(b["attention"]) == {"content", "function"} and set(a["attention"]) == {
        "thing",
        "colour",
        "size",
        "place",
        "other",
    }
    some = select(aligned, np.arange(len(aligned)) < 10)
    some.alignments = type(some.alignments)([t if k % 2 else "" for k, t in enumerate(some.alignments)])
    half = word_discovery(model, some, 0.75, 2, draws=2)
    assert (half["captions"], half["without_words"]) == (5, 5)


def test_a_corpus_without_word_times_says_so(model, corpus, tmp_path):
    export_facc(
        {"test": load_scenes("test-seen", 3, cache=corpus.folder.parent.parent, progress=False)}, tmp_path
    )
    facc = load_corpus(tmp_path, "test")
    assert [h.words for h in cls_attention_of(model, facc)] == [(), (), ()]  # to draw, one needs none
    for run in (
        lambda: word_discovery(model, facc, 0.7),
        lambda: _quantile_table(model, facc),
        lambda: _with_words([], facc),
    ):
        with pytest.raises(DataError, match="has no word times.*aligned variants"):
            run()


@pytest.mark.slow
def test_record(model, corpus, scenes, tmp_path):
    first = load_scenes("test-seen", 30, cache=corpus.folder.parent.parent, progress=False)
    made = discovery_record(
        model,
        scenes["dev"],
        {"test-seen": first},
        {"checkpoint": "scenes-tiny"},
        draws=2,
        dev_captions=20,
    )
    write_json(tmp_path / "words.json", made)
    kept = read_json(tmp_path / "words.json")
    assert (
        kept["kind"] == "words"
        and kept["config"]["checkpoint"] == "scenes-tiny"
        and kept["data"]["test-seen"]["fingerprint"] == first.fingerprint
        and kept["data"]["dev"]["fingerprint"]
    )
    readings = kept["metrics"]["test-seen"]
    assert {n: (r["layer"], r["at"], r["quantile"]) for n, r in readings.items()} == {
        n: (r["layer"], r["at"], r["quantile"]) for n, r in kept["config"]["readings"].items()
    }
    assert readings["last layer"]["layer"] == 3 and readings["best layer, edges"]["at"] == "edges"
    best = kept["chosen_from"]["middles"]
    assert best[str(readings["best layer"]["layer"])][f"{readings['best layer']['quantile']:g}"] == max(
        v for row in best.values() for v in row.values()
    )
    assert discovery_table(made).count("\n") == discovery_table(made, "60 ms").count("\n") == 4
    assert len((tmp_path / "words.json").read_bytes()) < 30_000


def test_before_training_is_another_model_and_the_same_each_time(model):
    state = torch.get_rng_state()
    a, b, c = before_training(model), before_training(model), before_training(model, 1)
    assert torch.equal(a.audio_encoder.cls_token, b.audio_encoder.cls_token) and not torch.equal(
        a.audio_encoder.cls_token, c.audio_encoder.cls_token
    )
    assert torch.equal(
        a.audio_encoder.hubert.encoder.layers[0].attention.q_proj.weight,
        c.audio_encoder.hubert.encoder.layers[0].attention.q_proj.weight,
    )
    assert torch.equal(state, torch.get_rng_state()) and not a.training


# ---- figures


def test_discovery_figure_marks_what_is_right(corpus, heard):
    h = heard[2][0]
    fig = discovery_figure(corpus.audio(0), h, 0.75, 0.06)
    marks = [line for line in fig.axes[0].lines if line.get_marker() == "^"]
    found = _found_boundaries([h], 0.75)[0]
    np.testing.assert_allclose([m.get_xdata()[0] for m in marks], found[1:-1])
    assert (
        sum(m.get_markerfacecolor() != "white" for m in marks)
        == _boundary_counts([found], truth([h]), 0.06)[0, 0]
    )
    assert fig._repr_png_()[:4] == b"\x89PNG"
    discovery_figure(corpus.audio(0), replace(h, words=()), 0.75, at="edges")._repr_png_()


def test_it_needs_no_image(model):
    "Only sound is read: a corpus whose images are gone will do."
    toy = worded(Toy(4))
    toy.image = None
    assert len(word_discovery(SGMIM(micro()).eval(), toy, 0.7, draws=2)["boundaries"]) == 2


# ---- by the command, on files as SpokenCOCO has them


class Rounded:
    """A split of the embedded corpus whose word times are rounded as an export rounds them; `lost`:
    captions without word times."""

    def __init__(self, scenes, lost=()):
        self.audio, self.image_of_caption = scenes.audio, scenes.image_of_caption
        self.captions = [
            replace(c, words=() if j in lost else tuple((w, round(s, 2), round(e, 2)) for w, s, e in c.words))
            for j, c in enumerate(scenes.captions)
        ]

    def __len__(self):
        return len(self.captions)


@pytest.fixture(scope="module")
def coco(corpus, tmp_path_factory):
    """(folder in SpokenCOCO's layout with Karpathy's splits and word times, dev, test): several captions
    an image."""
    folder, cache = tmp_path_factory.mktemp("coco"), corpus.folder.parent.parent
    dev, test = (load_scenes(s, n, 5, cache=cache, progress=False) for s, n in (("dev", 8), ("test-seen", 9)))
    export_spokencoco(
        {"train": load_scenes("train", 2, 1, cache=cache, progress=False), "val": dev, "test": test}, folder
    )
    return folder, dev, test


def by_command(args, out):
    assert run_command("sgmim_analyse", [*map(str, args), "--record", str(out), "--device", "cpu"]) == 0
    return read_json(out)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command_on_spokencocos_files_gives_the_numbers_of_the_corpus_itself(
    model, coco, tmp_path, capsys
):
    folder, dev, test = coco
    assert len(test) > 2 * len(test.scenes)
    made = by_command(["words", "--data", f"spokencoco={folder}"], tmp_path / "a.json")
    direct = discovery_record(model, Rounded(dev), {"test": Rounded(test)})
    assert (
        made["metrics"] == json.loads(json.dumps(direct["metrics"]))
        and made["chosen_from"] == direct["chosen_from"]
    )
    assert f"| test | {len(test)} | {len(test)} | 0 | 0 | 0 | – |\n" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command_on_files_that_are_not_all_well(model, coco, tmp_path, capsys):
    """Images gone; alignments missing, in another order, or nonsense; recordings damaged, too short,
    silent, and longer than the cap: what is not scored is counted and said, the rest is scored as ever."""
    folder, dev, test = coco
    shutil.copytree(folder, tmp_path / "c")
    for images in (tmp_path / "c").glob("*2014"):
        shutil.rmtree(images)
    file = tmp_path / "c" / "SpokenCOCO_test_unrolled_karpathy_with_alignments.json"
    listed = read_json(file)
    entries, wav = listed["data"], lambda j: tmp_path / "c" / listed["data"][j]["caption"]["wav"]
    del entries[3]["text_alignment"]
    entries[4]["text_alignment"] = None
    entries[5]["text_alignment"] = "hello there"
    entries[6]["text_alignment"] = " ".join(reversed(entries[6]["text_alignment"].split()))
    file.write_text(json.dumps(listed))
    made = by_command(["words", "--data", tmp_path / "c"], tmp_path / "a.json")
    direct = discovery_record(model, Rounded(dev), {"test": Rounded(test, lost=(3, 4, 5))})
    assert made["metrics"] == json.loads(json.dumps(direct["metrics"]))
    line = f"| test | {len(test)} | {len(test) - 3} | 3 | 0 | 0 | 1 bad alignment |\n"
    assert line in capsys.readouterr().out

    wav(7).write_bytes(b"RIFF, and no more")
    soundfile.write(wav(8), np.zeros(900), 16000)
    soundfile.write(wav(9), np.zeros(30000), 16000)  # silence is heard, whatever is found in it
    soundfile.write(wav(10), np.tile(test.audio(10), 1 + 61 * 16000 // len(test.audio(10))), 16000)
    assert run_command("sgmim_analyse", ["words", "--data", str(tmp_path / "c"), "--device", "cpu"]) == 1
    assert f"test: 2 of {len(test)} captions could not be read, more than 1.0%" in capsys.readouterr().err
    made = by_command(["words", "--data", tmp_path / "c", "--max-unreadable", 0.5], tmp_path / "b.json")
    about = made["data"]["test"]
    assert (
        about["captions"],
        about["unread"],
        about["without_words"],
        about["cut"],
        set(about["unreadable"]),
    ) == (len(test), 2, 3, 1, {"7", "8"})
    assert {r["captions"] for r in made["metrics"]["test"].values()} == {len(test) - 5}
    assert f"| test | {len(test)} | {len(test) - 5} | 3 | 2 | 1 | " in capsys.readouterr().out


def test_nothing_can_be_read(model, corpus, tmp_path):
    part = load_scenes("test-seen", 3, cache=corpus.folder.parent.parent, progress=False)
    export_spokencoco({"test": part}, tmp_path / "coco")
    toy = load_corpus(tmp_path / "coco", "test")
    toy.audio_root = tmp_path / "nowhere"
    with pytest.raises(DataError, match="none of .* captions could be read"):
        discovery_record(model, toy, {"test": toy})
    with pytest.raises(DataError):
        cls_attention_of(model, toy, [0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_the_other_analyses_say_of_a_corpus_without_scenes(coco, tmp_path, capsys):
    assert run_command("sgmim_analyse", ["grounding", "--data", str(coco[0]), "--device", "cpu"]) == 1
    assert "has no boxes" in capsys.readouterr().err
    made = by_command(["dependence", "--data", coco[0]], tmp_path / "d.json")
    assert set(made["metrics"]["test"]) == {"overall", "pairs"} and set(made["data"]) == {"test"}
    export_facc({"test": coco[2]}, tmp_path / "facc")
    # it chooses nothing, so it needs no dev set
    by_command(["dependence", "--data", tmp_path / "facc"], tmp_path / "e.json")
    assert (
        run_command(
            "sgmim_analyse",
            ["words", "--data", str(tmp_path / "facc"), "--dev-split", "test", "--device", "cpu"],
        )
        == 1
    )
    assert "has no word times" in capsys.readouterr().err
