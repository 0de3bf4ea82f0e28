"""Data of one's own: what `fit` and `evaluate` take as a corpus or as batches, and what they say of
everything else."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Toy, micro
from PIL import Image

from sgmim.core import ConfigError, DataError
from sgmim.data.batches import Pairs, _as_picture, _as_waveform, check_batch, collate, is_corpus
from sgmim.data.image import normalise
from sgmim.evaluation.retrieval import evaluate
from sgmim.models.inputs import corpus_pairs
from sgmim.models.sgmim import SGMIM
from sgmim.train import TrainConfig, fit

QUICK = TrainConfig(
    epochs=1.0, batch_size=8, optimiser="adamw", lr=1e-3, max_seconds=4.0, augment="none", log_every=1
)


def quick(data, **kwargs):
    return fit(micro(), data, config=QUICK, device="cpu", progress=False, **kwargs)


def toy(**changes):
    "A corpus of 16 pairs, some attributes of it exchanged."
    corpus = Toy(16)
    for name, value in changes.items():
        setattr(corpus, name, value)
    return corpus


def without(name):
    keep = [k for k in ("captions", "image_of_caption", "image", "audio") if k != name]
    return SimpleNamespace(**{k: getattr(toy(), k) for k in keep})


def batches(n=2, size=8):
    pairs = Pairs(Toy(n * size), 4.0)
    return [pairs.collate([pairs[j] for j in range(k * size, (k + 1) * size)]) for k in range(n)]


def changed(**changes):
    return [{**batches(1)[0], **changes}]


def lacking(key):
    return [{k: v for k, v in batches(1)[0].items() if k != key}]


# ---- neither a corpus nor batches


class Singles(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, k):
        return torch.zeros(3, 32, 32), torch.zeros(4000)


@pytest.mark.parametrize(
    "data, said",
    [
        ("pairs.csv", r"path .pairs.csv.*load_corpus"),
        (Path("shards"), "load_corpus"),
        (Toy, r"the class Toy; give an instance"),
        (7, "of type int; give a corpus, or batches"),
        (None, "NoneType"),
        (Pairs(Toy(8)), r"\(Pairs\) is not a complete corpus"),
        ([Toy(8), Toy(8)], "a list of 2 corpora; give one corpus"),
        (without("captions"), r"Missing: captions \("),
        (without("image"), "Missing: image "),
        (without("audio"), "Missing: audio "),
        (without("image_of_caption"), "Missing: image_of_caption"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_is_no_data(data, said):
    with pytest.raises(ConfigError, match=said):
        quick(data)
    with pytest.raises(ConfigError, match=said):
        evaluate(SGMIM(micro()), data)


@pytest.mark.parametrize(
    "dev, said",
    [
        ([Toy(8), Toy(8)], "As dev, give a dict"),
        ("dev.csv", "load_corpus"),
        ({"a": Toy(8), "b": "x"}, "load_corpus"),
    ],
)
def test_what_is_no_dev(dev, said):
    with pytest.raises(ConfigError, match=said):
        quick(toy(), dev=dev)


# ---- the columns of a corpus


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            dict(captions=[{"samples": 3000}] * 16),
            r"captions\[0\] \(dict\) has no attribute `samples`.*SimpleNamespace",
        ),
        (dict(captions=["a dog"] * 16), r"captions\[0\] \(str\)"),
        (dict(captions=[SimpleNamespace(samples=9)] * 7 + [SimpleNamespace()] * 9), r"captions\[7\]"),
        (dict(captions=[SimpleNamespace(samples=None)] * 16), r"captions\[0\]"),
        (dict(captions=[SimpleNamespace(samples=2.5)] * 16), "must be integers.*float64"),
        (dict(captions=[SimpleNamespace(samples=-1)] * 16), "must be 0 or more"),
        (dict(captions=(c for c in [1])), "captions is of type generator"),
        (dict(captions=[]), "0 captions, and image_of_caption has 16"),
        (dict(image_of_caption=list(range(9))), "16 captions, and image_of_caption has 9"),
        (dict(image_of_caption=[], captions=[]), "no captions"),
        (dict(image_of_caption=np.arange(16.0)), "must be integers.*float64"),
        (dict(image_of_caption=np.ones(16, bool)), "must be integers.*bool"),
        (dict(image_of_caption=np.arange(16).reshape(4, 4)), r"shape \(4, 4\)"),
        (dict(image_of_caption=[*range(15), -1]), "-1 at caption 15"),
        (dict(image_of_caption=None), "NoneType"),
        (dict(image_of_caption=[None] * 16), "object"),
        (dict(image_of_caption=dict(enumerate(range(16)))), "of type dict"),
        (
            dict(image_of_caption=[*range(15), 16]),
            r"image 16 cannot be read: image\(16\) of Toy raised IndexError",
        ),
    ],
)
def test_columns_that_cannot_be(changes, said):
    corpus = toy(**changes)
    with pytest.raises(DataError, match=said):
        quick(corpus)
    with pytest.raises(DataError, match=said):
        evaluate(SGMIM(micro()), corpus)
    assert corpus.read == 0  # before the first recording is read


@pytest.mark.parametrize(
    "kind", [list, tuple, torch.tensor, lambda x: np.array(x, np.int32), lambda x: np.array(x, np.uint64)]
)
def test_indices_of_any_kind(kind):
    data = toy(image_of_caption=kind(list(range(16))))
    assert (
        is_corpus(data)
        and Pairs(data)[3]["image_id"] == 3
        and evaluate(SGMIM(micro()), data).audio_to_image.n_queries == 16
    )


# ---- pictures

RGB = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "picture",
    [
        RGB,
        RGB.copy()[::-1][::-1],
        torch.tensor(RGB),
        Image.fromarray(RGB),
        np.moveaxis(RGB, 2, 0),
        torch.tensor(RGB).movedim(2, 0),
    ],
)
def test_pictures_of_any_kind(picture):
    assert np.array_equal(_as_picture(picture), RGB) and _as_picture(picture).dtype == np.uint8


def test_pictures_that_are_not_rgb():
    grey, alpha = RGB[:, :, 0], np.concatenate([RGB, np.zeros((32, 32, 1), np.uint8)], 2)
    for picture in (grey, grey[:, :, None], grey[None], Image.fromarray(grey)):
        assert np.array_equal(_as_picture(picture), np.stack([grey] * 3, 2))
    for picture in (alpha, np.moveaxis(alpha, 2, 0), Image.fromarray(alpha)):
        assert (_as_picture(picture) == 255).all()  # laid over white, as in files
    assert _as_picture(RGB) is RGB  # no copy


@pytest.mark.parametrize(
    "picture, said",
    [
        (RGB / 255, "image 3 is float64.*give uint8, 0 to 255, not normalised"),
        (normalise(RGB), "image 3 is float32"),
        (RGB.astype(int), "image 3 is int64"),
        (RGB > 9, "image 3 is bool"),
        (RGB.tolist(), "image 3 is int64"),
        (RGB[:, :, :2], r"image 3 is of shape \(32, 32, 2\)"),
        (RGB[None], r"shape \(1, 32, 32, 3\)"),
        (RGB[:0], r"shape \(0, 32, 3\)"),
        (RGB[0, 0], r"shape \(3,\)"),
        ("x.png", "image 3 is of type str"),
        (None, "image 3 is of type NoneType"),
        ({"image": RGB}, "of type dict"),
        (Image.new("F", (32, 32)), "image 3 holds floating-point"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_pictures_that_cannot_be(picture, said):
    with pytest.raises(DataError, match=said):
        quick(toy(image=lambda i: picture if i == 3 else RGB))
    with pytest.raises(DataError, match=said):
        evaluate(SGMIM(micro()), toy(image=lambda i: picture if i == 3 else RGB))


def test_pictures_of_several_sizes():
    """The first fits the model, another does not: it is brought to size. Without a transform it is an
    error that names both."""
    corpus = toy(image=lambda i: RGB if i % 2 == 0 else np.pad(RGB, ((0, 8), (0, 0), (0, 0))))
    assert collate([corpus_pairs(corpus, 4.0, micro())[j] for j in (0, 1)])["image"].shape == (2, 3, 32, 32)
    with pytest.raises(
        DataError, match=r"one size, not \(32, 32, 3\) \(image 0\), \(40, 32, 3\) \(image 1\)"
    ):
        collate([Pairs(corpus)[j] for j in (0, 1)])


def test_pil_pictures_train_as_arrays_do():
    images = Toy(16).images
    a, b = (quick(c) for c in (toy(), toy(image=lambda i: Image.fromarray(images[i]))))
    assert [h["loss"] for h in a.history] == [h["loss"] for h in b.history]


# ---- recordings

WAVE = np.random.default_rng(0).normal(0, 0.1, 3000).astype(np.float32)


@pytest.mark.parametrize(
    "wave",
    [
        WAVE,
        WAVE.astype(np.float64),
        torch.tensor(WAVE),
        torch.tensor(WAVE).double().requires_grad_(),
        WAVE.tolist(),
        WAVE[None],
        WAVE[:, None],
        torch.tensor(WAVE)[None],
        np.stack([WAVE, WAVE]),
        np.stack([WAVE * 2, WAVE * 0], 1),
    ],
)
def test_recordings_of_any_kind(wave):
    found = _as_waveform(wave)
    assert found.dtype == np.float32 and found.shape == (3000,)
    np.testing.assert_allclose(found, WAVE, rtol=1e-6)


def test_a_recording_is_not_copied():
    assert _as_waveform(WAVE) is WAVE


def test_half_precision():
    for wave in (WAVE.astype(np.float16), torch.tensor(WAVE).bfloat16()):
        np.testing.assert_allclose(_as_waveform(wave), WAVE, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    "wave, said",
    [
        ((WAVE * 32767).astype(np.int16), "caption 3 holds int16 samples.*divide by 32768"),
        (torch.zeros(900, dtype=torch.int32), "int32"),
        (WAVE * 32768, "caption 3 has a peak of"),
        (np.where(np.arange(3000) == 7, np.nan, WAVE), "caption 3 is not finite"),
        (np.where(np.arange(3000) == 7, -np.inf, WAVE), "not finite"),
        (WAVE.astype(float) * 1e300, "not finite"),
        (WAVE[:0], "caption 3 has no samples"),
        ([], "no samples"),
        (WAVE[:5], "caption 3 has 5 samples, but one frame needs"),
        (WAVE.reshape(50, 60), r"caption 3 is of shape \(50, 60\)"),
        (WAVE + 0j, "complex"),
        (WAVE > 0, "bool"),
        (np.float32(0.5), r"shape \(\)"),
        (None, "caption 3 is of type NoneType"),
        ("x.wav", "of type str"),
        (b"RIFF", "caption 3"),
        ((WAVE, 16000), r"caption 3 \(tuple\) is not an array"),
        ({"array": WAVE, "sampling_rate": 16000}, "of type dict"),
        (object(), "caption 3 holds object"),
    ],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.filterwarnings("error", "ignore:the convolutional front end")
def test_recordings_that_cannot_be(wave, said):
    corpus = toy(audio=lambda j: wave if j == 3 else WAVE)
    with pytest.raises(DataError, match=said):
        quick(corpus)
    with pytest.raises(DataError, match=said):
        evaluate(SGMIM(micro()), corpus)


# ---- what it raises


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        KeyError("x"),
        RuntimeError("bad"),
        ValueError("odd"),
        ZeroDivisionError(),
        type("Own", (Exception,), {})("mine"),
    ],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("name, what", [("audio", "caption 3"), ("image", "image 3")])
def test_whatever_a_corpus_raises(error, name, what):
    good = getattr(toy(), name)

    def item(k):
        if k == 3:
            raise error
        return good(k)

    with pytest.raises(
        DataError, match=rf"{what} cannot be read: {name}\(3\) of Toy raised {type(error).__name__}"
    ) as e:
        quick(toy(**{name: item}))
    assert e.value.__cause__ is error
    pair = Pairs(toy(**{name: item}), skip=True)[3]
    assert pair["unreadable"][0] == "caption 3" and type(error).__name__ in pair["unreadable"][1]


def test_a_damaged_pil_picture(tmp_path):
    "PIL reads the pixels late."
    Image.fromarray(RGB).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:900])
    with pytest.raises(DataError, match="image 3 cannot be read"):
        quick(toy(image=lambda i: Image.open(tmp_path / "x.png") if i == 3 else RGB))


# ---- batches


@pytest.mark.parametrize(
    "data, said",
    [
        (
            [(torch.zeros(8, 3, 32, 32), torch.zeros(8, 4000))],
            "batch 0 is of type tuple; a batch is a dict of tensors",
        ),
        ([[torch.zeros(8, 3, 32, 32)]], "batch 0 is of type list"),
        ([None], "NoneType"),
        (Singles(), "batch 0 is of type tuple"),
        (torch.utils.data.DataLoader(Singles(), 8), "batch 0 is of type list"),
        ({"train": Toy(8)}, "batch 0 is of type str"),
        *(
            (lacking(k), f"batch 0 has no '{k}'")
            for k in ("image", "audio", "audio_len", "image_id", "index")
        ),
        (changed(audio=np.zeros((8, 4000), np.float32)), "a ndarray under 'audio'"),
        (changed(image=torch.zeros(8, 3, 32, 32, dtype=torch.uint8)), "torch.uint8 of shape.*normalise"),
        (changed(image=torch.zeros(8, 32, 32, 3)), r"'image' as torch.float32 of shape \(8, 32, 32, 3\)"),
        (changed(image=torch.zeros(3, 32, 32)), r"shape \(3, 32, 32\)"),
        (changed(audio=torch.zeros(8, 4000).double()), "'audio' as torch.float64"),
        (changed(audio=torch.zeros(8, 4000, dtype=torch.int16)), "int16"),
        (changed(audio=torch.zeros(8, 1, 4000)), r"shape \(8, 1, 4000\)"),
        (changed(audio_len=torch.full((8,), 4000.0)), "'audio_len' as torch.float32"),
        (changed(audio_len=torch.tensor(4000)), r"'audio_len' as torch.int64 of shape \(\)"),
        (changed(audio_len=[4000] * 8), "a list under 'audio_len'"),
        (
            changed(index=torch.arange(7)),
            r"8 pairs, but these entries have another length: \{'index': \(7,\)\}",
        ),
        (changed(extra=torch.tensor(1.0)), "extra"),
        (changed(image_id=torch.ones(8, dtype=torch.bool)), "torch.bool"),
        (changed(audio_len=torch.full((8,), 10**6)), "claim more samples"),
        (changed(audio_len=torch.full((8,), -1)), "too short"),
        (changed(unreadable=[]), "unreadable"),
        (changed(unreadable=["x"]), "unreadable"),
        ([{k: v[:1] for k, v in batches(1)[0].items()}], r"batch 0 has 1 pair\(s\).*drop_last=True"),
    ],
)
def test_batches_that_cannot_be(data, said):
    with pytest.raises(DataError, match=said):
        quick(data)


def test_the_number_of_a_bad_batch():
    good, bad = batches()
    del bad["index"]
    with pytest.raises(DataError, match="batch 1 has no 'index'"):
        quick([good, bad])
    with pytest.raises(DataError, match="batch 1 has no 'index'"):
        evaluate(SGMIM(micro()), [good, bad])
    with pytest.raises(DataError, match="first batch of dev set dev is of type tuple"):
        quick([good], dev=[(1, 2)])


def test_evaluation_takes_parts_of_a_batch():
    """Images and captions apart, a batch of one pair, a generator; but not a generator that is used up,
    and not nothing."""
    model, parts = SGMIM(micro()), []
    for b in batches():
        parts += [
            {k: b[k] for k in keys}
            for keys in (("image", "image_id"), ("audio", "audio_len", "image_id", "index"))
        ]
    assert (
        evaluate(model, parts).row
        == evaluate(model, batches()).row
        == evaluate(model, (b for b in batches())).row
    )
    assert (
        evaluate(
            model, [{k: v[j : j + 1] for k, v in b.items()} for b in batches() for j in range(8)]
        ).audio_to_image.n_queries
        == 16
    )
    used = (b for b in [])
    for nothing in (used, []):
        with pytest.raises(DataError, match="gave no batch"):
            evaluate(model, nothing)
    with pytest.raises(DataError, match="has no 'audio'"):
        evaluate(model, [{"image_id": torch.arange(8), "index": torch.arange(8)}])


def test_frames_instead_of_sound():
    b = batches(1)[0]
    sound = {k: b.pop(k) for k in ("audio", "audio_len")}
    check_batch({**b, "frames": torch.zeros(8, 9, 4), "frames_len": torch.full((8,), 9)})
    with pytest.raises(DataError, match="has no 'frames_len'"):
        check_batch({**b, "frames": torch.zeros(8, 9, 4), **sound})
