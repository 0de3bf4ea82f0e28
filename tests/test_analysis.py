"Does the measure of listening, 18, tell a decoder that listens from one that does not?"
from types import SimpleNamespace

import pytest
import torch
from conftest import Toy, exchanged, micro
from torch import nn

from sgmim.analysis import CAPTIONS, caption_dependence, reconstruct_with, wrong_captions
from sgmim.core import ConfigError
from sgmim.data.loaders import Pairs
from sgmim.models.sgmim import SGMIM
from sgmim.patches import random_mask


# ---- wrong captions

def test_wrong_captions_are_of_other_images():
    g = torch.Generator().manual_seed(0)
    for _ in range(300):
        B = int(torch.randint(2, 20, (1,), generator=g))
        ids = torch.randint(0, int(torch.randint(2, 8, (1,), generator=g)), (B,), generator=g)*7 - 3
        if len(ids.unique()) == 1: continue
        other = wrong_captions(ids)
        assert other.dtype == torch.int64 and other.shape == (B,) and (ids[other] != ids).all()
        for i in range(B):      # the next one: all between are of the same image
            steps = (int(other[i]) - i) % B
            assert all(ids[(i + k) % B] == ids[i] for k in range(1, steps))


def test_with_different_images_the_wrong_caption_is_the_next():
    assert wrong_captions(torch.arange(5)).tolist() == [1, 2, 3, 4, 0]
    assert wrong_captions(torch.tensor([4, 4, 4, 9])).tolist() == [3, 3, 3, 0]


@pytest.mark.parametrize('ids', [[3], [3, 3, 3]])
def test_no_wrong_caption(ids):
    with pytest.raises(ConfigError, match='one image'): wrong_captions(torch.tensor(ids))


# ---- the measure, on a model whose answers are known

class Signed(Toy):
    "Image i is filled with one grey value, and its captions are constant at a level that names the same value."
    def __init__(self, n=48, captions=1):
        super().__init__(n, captions)
        self.value = torch.linspace(-1, 1, n)[torch.randperm(n, generator=torch.Generator().manual_seed(0))].numpy()
        for i in range(n): self.images[i] = round(128 + 100*float(self.value[i]))
        for j, i in enumerate(self.image_of_caption): self.waves[j][:] = .5*self.value[i]


class Parrot(nn.Module):
    "A 'model' whose target is the grey value of the image, and whose decoder repeats the level of what it hears (`share` of it)."
    def __init__(self, share=1.):
        super().__init__()
        self.config = SimpleNamespace(reconstruction='summary', image_size=32, conv_norm='layer', mim_normalise_target=False)
        self.share, self.zero = share, nn.Parameter(torch.zeros(1))

    def draw_mask(self, image, generator=None): return random_mask(len(image), 16, .75, generator)
    def hear(self, batch): return 2*batch['audio'][:, 0]
    def context(self, heard): return heard[:, None, None], None
    def image_encoder(self, image, mask=None): return image
    def momentum_encoder(self, image): return ((image[:, :1, 0, 0]*.229 + .485)*255/100 - 1.28)[:, :, None].expand(-1, 17, 4)
    def decoder(self, visible, mask, context, padding): return (self.share*context).expand(-1, 16, 4)


def expected_wrong(corpus, batches=1):
    v = torch.tensor(corpus.value)[corpus.image_of_caption].double()
    rows = [v[s::batches] for s in range(batches)]
    return float(torch.cat([(r - r.roll(-1)).square() for r in rows]).mean()/v.var(unbiased=False))


def test_a_decoder_that_repeats_what_it_hears():
    corpus = Signed()
    r = caption_dependence(Parrot(), corpus)
    assert set(r) == {*CAPTIONS, 'right_over_wrong', 'pairs'} and r['pairs'] == 48
    assert r['right'] < 1e-3 and abs(r['wrong'] - expected_wrong(corpus)) < .02 and abs(r['none'] - 1) < .05 and r['right_over_wrong'] < 1e-3
    assert abs(r['wrong'] - 2) < .6     # two independent draws differ by twice the variance


def test_a_decoder_that_half_listens():
    "The error is worked out by hand: (v - v/2)² for the right caption."
    r = caption_dependence(Parrot(.5), Signed())
    assert abs(r['right'] - .25) < .02 and r['right'] < r['none'] < r['wrong']


def test_a_decoder_that_does_not_listen():
    r = caption_dependence(Parrot(0.), Signed())
    assert r['right'] == r['wrong'] == r['none'] and r['right_over_wrong'] == 1


def test_captions_exchanged_in_the_data_are_no_better_than_wrong():
    "The falsified case: the decoder listens well, but what it is told belongs to other images."
    r = caption_dependence(Parrot(), exchanged(Signed()))
    assert r['right'] > 1.4 and .6 < r['right_over_wrong'] < 1.6


@pytest.mark.parametrize('n,captions,pairs,batch', [(48, 1, 33, 32), (48, 1, 48, 47), (20, 5, 100, 33), (48, 1, 1000, 16), (30, 2, 7, 64)])
def test_any_number_of_pairs(n, captions, pairs, batch):
    "No batch is left with a single pair, or with captions of one image alone."
    r = caption_dependence(Parrot(), Signed(n, captions), pairs=pairs, batch_size=batch)
    assert r['pairs'] == min(pairs, n*captions) and r['right'] < 1e-3 < r['wrong']


# ---- on the model itself

@pytest.fixture(scope='module', params=['summary', 'frames'])
def model(request):
    torch.manual_seed(0)
    return SGMIM(micro(reconstruction=request.param))


def batch_of(corpus, n):
    pairs = Pairs(corpus)
    return pairs.collate([pairs[j] for j in range(n)])


def test_only_the_caption_is_exchanged(model):
    model.eval()
    batch = batch_of(Toy(), 6)
    mask = model.draw_mask(batch['image'], torch.Generator().manual_seed(1))
    right, wrong, none = (reconstruct_with(model, batch, c, mask) for c in CAPTIONS)
    for other in (wrong, none):
        assert torch.equal(right['target'], other['target']) and torch.equal(right['mask'], other['mask']) and not torch.equal(right['predicted'], other['predicted'])
    same = model.reconstruct(batch, mask)
    for k in ('predicted', 'target'): torch.testing.assert_close(right[k], same[k].detach())
    # the wrong caption is that of the next pair: a batch whose sound is rolled gives the same, as its right one
    rolled = {**batch, 'audio': batch['audio'].roll(-1, 0), 'audio_len': batch['audio_len'].roll(-1, 0)}
    torch.testing.assert_close(wrong['predicted'], reconstruct_with(model, rolled, 'right', mask)['predicted'], atol=1e-5, rtol=1e-5)


def test_silence_carries_nothing(model):
    model.eval()
    batch, other = batch_of(Toy(), 4), batch_of(Toy(seed=1), 4)
    mask = model.draw_mask(batch['image'], torch.Generator().manual_seed(1))
    a, b = (reconstruct_with(model, {**x, 'image': batch['image']}, 'none', mask)['predicted'] for x in (batch, other))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_same_seed_draws_the_same_masks(model):
    a, b, c = (caption_dependence(model, Toy(), seed=s) for s in (0, 0, 1))
    assert a == b != c
    assert .8 < a['right_over_wrong'] < 1.25     # noise cannot help, whatever the decoder does


def test_normalised_targets_are_what_the_loss_sees():
    torch.manual_seed(0)
    plain = SGMIM(micro(mim_normalise_target=True)).eval()
    target = reconstruct_with(plain, batch_of(Toy(), 3))['target']
    torch.testing.assert_close(target.mean(-1), torch.zeros(3, 16), atol=1e-4, rtol=0)
    torch.testing.assert_close(target.var(-1, unbiased=False), torch.ones(3, 16), atol=1e-2, rtol=0)


def test_learning_to_listen_shows():
    "A decoder that is trained where only the caption can help comes to depend on it; the measure shows it, and not for exchanged captions."
    torch.manual_seed(0)
    corpus, model = Signed(16), SGMIM(micro(dropout=0., mask_ratio=.9)).eval()
    see = model.image_encoder.forward
    model.image_encoder.requires_grad_(False).forward = lambda image, mask=None: see(torch.zeros_like(image), mask)     # blind: what it predicts, it heard
    before = caption_dependence(model, corpus)['right_over_wrong']
    batch = batch_of(corpus, 16)
    with torch.no_grad(): target = model.momentum_encoder(batch['image'])[:, 1:]
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(120):
        mask = model.draw_mask(batch['image'])
        predicted = model.decoder(model.image_encoder(batch['image'], mask), mask, *model.context(model.hear(batch)))
        optimiser.zero_grad()
        (predicted - target).square().mean().backward()
        optimiser.step()
    after, falsified = caption_dependence(model, corpus), caption_dependence(model, exchanged(corpus))
    assert .9 < before < 1.1 and after['right_over_wrong'] < .5 and after['right'] < after['none']
    assert .7 < falsified['right_over_wrong'] < 1.4


def test_models_that_hear_nothing():
    for row in ('none', 'plain'):
        torch.manual_seed(0)
        model = SGMIM(micro(reconstruction=row))
        with pytest.raises(ConfigError, match='hears nothing'): reconstruct_with(model, batch_of(Toy(), 3))
        with pytest.raises(ConfigError, match='hears nothing'): caption_dependence(model, Toy())
    with pytest.raises(ConfigError, match="got 'silence'"): reconstruct_with(SGMIM(micro()), batch_of(Toy(), 3), 'silence')
