"Retrieval against the protocol written as a loop: ties, several captions, blocks, devices, faults."

import json

import numpy as np
import pytest
import torch

from sgmim.core import ConfigError, DataError
from sgmim.evaluation.retrieval import (
    Direction,
    RetrievalResult,
    bootstrap,
    embed,
    format_table,
    retrieval_metrics,
    top_k,
)


def by_the_protocol(zi, za, owner):
    s = za.double() @ zi.double().T
    a2i = [
        1 + sum(bool(s[c, i] >= s[c, owner[c]]) for i in range(len(zi)) if i != owner[c])
        for c in range(len(za))
    ]
    i2a = []
    for i in range(len(zi)):
        best = max(s[c, i] for c in range(len(za)) if owner[c] == i)
        i2a.append(1 + sum(bool(s[c, i] >= best) for c in range(len(za)) if owner[c] != i))
    return a2i, i2a


def pool(seed, n, extra, D=4, whole=False):
    g = torch.Generator().manual_seed(seed)
    owner = torch.cat([torch.arange(n), torch.randint(0, n, (extra,), generator=g)])[
        torch.randperm(n + extra, generator=g)
    ]
    draw = (
        (lambda m: torch.randint(-2, 3, (m, D), generator=g).float())
        if whole
        else (lambda m: torch.randn(m, D, generator=g))
    )
    return draw(n), draw(n + extra), owner


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("n, extra", [(1, 0), (1, 5), (2, 0), (7, 0), (7, 20), (30, 100)])
@pytest.mark.parametrize("seed", range(4))
def test_against_the_loop(seed, n, extra, whole):
    zi, za, owner = pool(seed, n, extra, whole=whole)
    a2i, i2a = by_the_protocol(zi, za, owner)
    for block in (1, 4, 10_000):
        r = retrieval_metrics(zi, za, owner, block=block)
        assert r.audio_to_image.ranks.tolist() == a2i and r.image_to_audio.ranks.tolist() == i2a
    for name, ranks in (("audio_to_image", a2i), ("image_to_audio", i2a)):
        d = getattr(r, name)
        for k in (1, 5, 10):
            assert getattr(d, f"recall_at_{k}") == pytest.approx(100 * np.mean(np.array(ranks) <= k))
        assert d.median_rank == np.median(ranks) and d.n_queries == len(ranks)


def test_hand_made():
    zi, za = torch.eye(2), torch.tensor([[1.0, 0], [0.2, 0.9], [0.8, 0.7]])
    r = retrieval_metrics(zi, za, [0, 1, 1])
    assert r.audio_to_image.ranks.tolist() == [1, 1, 2]  # caption 2 prefers image 0
    assert r.image_to_audio.ranks.tolist() == [1, 1]  # image 1: its first caption wins
    assert r.row == pytest.approx((200 / 3, 100, 100, 100, 100, 100)) and r.mean[0] == pytest.approx(
        (200 / 3 + 100) / 2
    )


def test_any_caption_is_a_hit():
    zi, za = torch.eye(2), torch.tensor([[9.0, 0], [-9, 0], [-9, 0], [0, 1]])
    assert retrieval_metrics(zi, za, [0, 0, 0, 1]).image_to_audio.ranks.tolist() == [1, 1]


def test_directions_are_not_swapped():
    zi, za = torch.tensor([[1.0, 0], [2, 0]]), torch.tensor([[1.0, 0], [1, 0], [1, 1]])
    r = retrieval_metrics(zi, za, [0, 0, 1])
    assert (
        r.audio_to_image.n_queries,
        r.audio_to_image.n_items,
        r.image_to_audio.n_queries,
        r.image_to_audio.n_items,
    ) == (3, 2, 2, 3)
    assert r.audio_to_image.ranks.tolist() == [2, 2, 1]  # image 1 is longer and wins everything


def test_all_ties_count_against_the_model():
    r = retrieval_metrics(torch.ones(11, 3), torch.ones(22, 3), torch.arange(22) // 2)
    assert r.row == (0,) * 6 and set(r.audio_to_image.ranks) == {11} and set(r.image_to_audio.ranks) == {21}


def test_duplicate_images_are_ties():
    r = retrieval_metrics(torch.eye(3)[[0, 0, 1]], torch.eye(3)[[0, 0, 1]], [0, 1, 2])
    assert r.audio_to_image.ranks.tolist() == [2, 2, 1]


def test_ties_among_an_images_own_captions_cost_nothing():
    r = retrieval_metrics(torch.eye(2), torch.eye(2)[[0, 0, 0, 1]], [0, 0, 0, 1])
    assert r.image_to_audio.ranks.tolist() == [1, 1]


def test_random_is_near_chance():
    zi, za, owner = pool(0, 1000, 0, D=32)
    r = retrieval_metrics(zi, za, owner)
    for got, k in zip(r.row, (1, 5, 10) * 2, strict=True):
        assert got == pytest.approx(k / 10, abs=1)
    assert 400 < r.audio_to_image.median_rank < 600


def test_cosine_is_the_dot_of_unit_vectors():
    zi, za, owner = pool(3, 20, 30)
    unit = torch.nn.functional.normalize
    assert (
        retrieval_metrics(zi, za, owner, similarity="cosine").row
        == retrieval_metrics(unit(zi), unit(za), owner).row
    )
    assert (
        retrieval_metrics(zi, za * 7, owner, similarity="cosine").row
        == retrieval_metrics(zi, za, owner, similarity="cosine").row
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions(dtype):
    zi, za, owner = pool(1, 9, 9, whole=True)  # whole numbers: exact in all of them
    assert retrieval_metrics(zi.to(dtype), za.to(dtype), owner).row == retrieval_metrics(zi, za, owner).row


def test_arrays_lists_and_gradients():
    zi, za, owner = pool(1, 9, 9)
    want = retrieval_metrics(zi, za, owner).row
    assert retrieval_metrics(zi.numpy(), za.numpy(), owner.numpy()).row == want
    assert retrieval_metrics(zi.tolist(), za.tolist(), owner.tolist()).row == want
    assert retrieval_metrics(zi.requires_grad_(), za.requires_grad_(), owner.int()).row == want


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_the_gpu():
    zi, za, owner = pool(1, 50, 100, whole=True)
    want = retrieval_metrics(zi, za, owner)
    for got in (
        retrieval_metrics(zi.cuda(), za.cuda(), owner.cuda()),
        retrieval_metrics(zi.cuda(), za, owner),
    ):
        assert got.audio_to_image.ranks.tolist() == want.audio_to_image.ranks.tolist()
        assert got.image_to_audio.ranks.tolist() == want.image_to_audio.ranks.tolist()


def spoil(z, value):
    z = z.clone()
    z[2, 1] = value
    return z


ZI, ZA, OWNER = pool(0, 4, 4)


@pytest.mark.parametrize(
    "zi, za, owner, text",
    [
        (
            spoil(ZI, torch.nan),
            ZA,
            OWNER,
            "z_image has NaN or infinite values in 1 of 4 rows, first in row 2",
        ),
        (ZI, spoil(ZA, torch.inf), OWNER, "z_audio has NaN"),
        (ZI[:, :2], ZA, OWNER, "z_image and z_audio differ: 2 and 4"),
        (ZI, ZA, OWNER[:-1], "image_of_caption must have 8"),
        (ZI, ZA, OWNER.float(), "torch.float32"),
        (ZI, ZA, OWNER + 1, "there are 4 images"),
        (ZI, ZA, OWNER - 1, "ranges from -1"),
        (ZI[0], ZA, OWNER, "z_image must be a matrix"),
        (ZI[:0], ZA, OWNER, "n >= 1"),
        (ZI, ZA[:0], OWNER[:0], "z_audio must be a matrix"),
        (ZI * 1e30, ZA * 1e30, OWNER, "overflow"),
    ],
)
def test_faults_are_named(zi, za, owner, text):
    with pytest.raises(DataError) as e:
        retrieval_metrics(zi, za, owner)
    assert text in str(e.value)


@pytest.mark.parametrize("kwargs", [dict(similarity="euclid"), dict(block=0)])
def test_bad_arguments(kwargs):
    with pytest.raises(ConfigError):
        retrieval_metrics(ZI, ZA, OWNER, **kwargs)


def test_images_without_captions():
    zi, za, owner = pool(0, 6, 6, whole=True)
    keep = owner != 2
    with pytest.raises(DataError, match="1 of 6 images have no caption, the first is row 2"):
        retrieval_metrics(zi, za[keep], owner[keep])
    r = retrieval_metrics(zi, za[keep], owner[keep], without_caption="drop")
    rest = torch.tensor([0, 1, 3, 4, 5])
    a2i, i2a = by_the_protocol(zi[rest], za[keep], torch.searchsorted(rest, owner[keep]))
    assert r.images_dropped == 1 and r.audio_to_image.n_items == 5
    assert r.audio_to_image.ranks.tolist() == a2i and r.image_to_audio.ranks.tolist() == i2a


def test_to_dict_is_json_and_text_is_a_table():
    r = retrieval_metrics(ZI, ZA, OWNER)
    d = json.loads(json.dumps(r.to_dict()))
    assert d["audio_to_image"]["recall_at_1"] == r.row[0] and d["image_to_audio"]["recall_at_10"] == r.row[5]
    assert (
        d["mean"]["recall_at_1"] == r.mean[0]
        and d["audio_to_image"]["n_queries"] == 8
        and "ranks" not in d["audio_to_image"]
    )
    assert "A → I" in str(r) and "ranks" not in repr(r)


# ---- bootstrap ---------------------------------------------------------------------------------------------


def test_bootstrap_covers_the_truth():
    rng, inside = np.random.default_rng(0), 0
    for trial in range(100):
        low, high = bootstrap(np.where(rng.random(300) < 0.6, 1, 9), ks=(1,), n=200, seed=trial)[1]
        inside += low <= 60 <= high
    assert 88 <= inside <= 100


def test_bootstrap_edges():
    assert bootstrap([1]) == {1: (100, 100), 5: (100, 100), 10: (100, 100)}
    assert bootstrap([7, 7])[5] == (0, 0) and bootstrap([7, 7])[10] == (100, 100)
    a, b = bootstrap(np.arange(50), seed=0), bootstrap(np.arange(50), seed=1)
    assert a == bootstrap(np.arange(50), seed=0) and a != b
    narrow, wide = (bootstrap(np.arange(200) % 3, ks=(1,), level=v)[1] for v in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_bootstrap_groups_are_wider_when_captions_move_together():
    ranks = np.where(np.arange(200) < 100, 1, 50).repeat(5)
    alone, together = bootstrap(ranks)[1], bootstrap(ranks, groups=np.arange(200).repeat(5))[1]
    assert together[1] - together[0] > 1.8 * (alone[1] - alone[0])


def test_bootstrap_paired_difference():
    a, b = np.array([1, 1, 1, 9] * 50), np.array([1, 1, 9, 9] * 50)
    low, high = bootstrap(a, minus=b)[1]
    assert low < 25 < high and low > 10
    assert bootstrap(a, minus=a)[1] == (0, 0)


def test_bootstrap_faults():
    with pytest.raises(DataError, match="no ranks"):
        bootstrap([])
    with pytest.raises(DataError, match="same queries"):
        bootstrap([1, 2], minus=[1])


# ---- embedding ---------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.encoded = torch.nn.Parameter(torch.ones(1)), 0

    def embed_image(self, image):
        assert not self.training
        self.encoded += len(image)
        return self.w * image.mean((2, 3))

    def embed_audio(self, audio=None, audio_len=None, frames=None, frames_len=None):
        return self.w * (audio[:, :3] if frames is None else frames.mean(1)[:, :3])


def batches(ids, index, size, frames=False):
    out = []
    for s in range(0, len(ids), size):
        i = torch.tensor(ids[s : s + size])
        sound = torch.nn.functional.one_hot(i % 3, 3).float()
        sound = (
            dict(frames=sound[:, None].repeat(1, 4, 1), frames_len=torch.full_like(i, 4))
            if frames
            else dict(audio=sound, audio_len=torch.full_like(i, 3))
        )
        image = torch.nn.functional.one_hot(i % 3, 3).float()[..., None, None].expand(-1, 3, 2, 2)
        out.append(
            dict(
                image=image, image_id=i, index=torch.tensor(index[s : s + size]), **sound, text=["x"] * len(i)
            )
        )
    return out


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_embed(size, frames, training):
    model = Model().train(training)
    e = embed(model, batches([12, 10, 12, 11, 12, 10], [5, 4, 3, 2, 1, 0], size, frames))
    assert (
        e.image_id.tolist() == [12, 10, 11]
        and e.image_of_caption.tolist() == [0, 1, 0, 2, 0, 1]
        and e.index.tolist() == [5, 4, 3, 2, 1, 0]
    )
    assert model.encoded == 3 and model.training is training and not e.z_image.requires_grad
    assert e.metrics().row == (100,) * 6


def test_embed_faults_put_the_mode_back():
    model = Model().train()
    with pytest.raises(DataError, match="has no batches"):
        embed(model, [])
    with pytest.raises(DataError, match="1 captions are repeated"):
        embed(model, batches([1, 2, 1], [0, 1, 0], 2))
    with pytest.raises(KeyError):
        embed(model, [dict()])
    assert model.training


# ---- top k and tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 99])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_top_k(k, similarity):
    q, z, _ = pool(0, 7, 6)
    s = (
        q @ z.T
        if similarity == "dot"
        else torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(z).T
    )
    want = s.argsort(1, descending=True)[:, :k]
    for block in (1, 3, 99):
        rows, scores = top_k(q, z, k, similarity, block)
        assert rows.tolist() == want.tolist()
        np.testing.assert_allclose(scores, s.gather(1, want), rtol=1e-5)


def test_tables():
    r = RetrievalResult(Direction.from_ranks([1], 1), Direction.from_ranks([1], 1))
    plain = format_table([("short", (1, 2, 3, 4, 5, 6)), ("a long name", r)]).splitlines()
    assert (
        len(plain) == 4
        and len({len(x) for x in plain[1:]}) == 1
        and plain[3].split() == "a long name 100.0 100.0 100.0 | 100.0 100.0 100.0".split()
    )
    marked = format_table([("x", r)], markdown=True).splitlines()
    assert len({x.count("|") for x in marked}) == 1 and marked[1].startswith("|---|---:|")
    with pytest.raises(DataError, match="'x' needs six numbers"):
        format_table([("x", (1, 2, 3))])
    assert format_table([]).count("\n") == 1
