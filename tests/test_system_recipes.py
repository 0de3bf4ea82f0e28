"""The other systems by their own protocols: lengths of captions, padding, training from random weights."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from sgmim.apps.commands import _evaluation_seconds
from sgmim.core import ConfigError
from sgmim.evaluation.retrieval import pool
from sgmim.models.systems import PRESETS, new_model
from sgmim.paper.runs import TablePlan, plan_runs
from sgmim.train import TrainConfig, from_scratch, recipe
from sgmim.training.feed import prepare_data


def test_speechclip_pads_to_the_longest_caption_of_a_batch_and_vg_hubert_to_the_maximum(scenes):
    "Both depend on padding (GroupNorm), and each pads as its code does."
    for preset, full in (("speechclip", False), ("vg-hubert", True)):
        config = PRESETS[preset]()
        assert config.padding_matters
        batch = next(iter(pool(config, scenes["dev"], 60.0, batch_size=3).loaders[1]))
        assert batch["audio"].shape[1] == (60 * 16_000 if full else batch["audio_len"].max())


def test_fast_vgs_has_the_lengths_and_batches_of_each_corpus():
    def settings(table, data):
        plan = TablePlan(table, data, rows=("FaST-VGS",))
        spec = plan_runs(plan)[0]
        lengths = spec.train.max_seconds, spec.train.eval_seconds, spec.train.batch_size
        assert lengths[:2] == (spec.model.train_seconds, spec.model.eval_seconds)
        return lengths

    assert settings(1, "places") == (18, 25, 48)
    assert settings(2, "spokencoco") == (8, 10, 64)
    assert settings(3, "facc") == (8, 10, 96)


@pytest.mark.parametrize("name, own", (("max_seconds", "train_seconds"), ("eval_seconds", "eval_seconds")))
def test_a_model_that_cuts_captions_is_not_given_longer_ones(name, own):
    model = SimpleNamespace(config=PRESETS["fast-vgs-tiny"]())
    feed = SimpleNamespace(config=replace(recipe("fast-vgs-tiny"), **{name: 6.0}))
    with pytest.raises(ConfigError, match=f"{name} is 6, but the model reads only 4 s .*{own}"):
        prepare_data(model, feed, {})


def test_captions_are_evaluated_at_the_lengths_of_their_systems():
    places, other = SimpleNamespace(name="places"), SimpleNamespace(name="spokencoco")

    def seconds(preset, corpus, asked=None):
        net = SimpleNamespace(config=PRESETS[preset]())
        found = _evaluation_seconds(net, {"test": corpus}, asked)
        assert getattr(net.config, "eval_seconds", found) == found
        return found

    assert seconds("resdavenet", other) == 20.48 and seconds("speechclip", other) == 60
    assert [seconds("fast-vgs", c) for c in (other, places)] == [10, 25]
    assert [seconds("paper-places", c) for c in (other, places)] == [10, 25]
    assert seconds("resdavenet", other, 3.0) == seconds("fast-vgs", places, 3.0) == 3


def test_front_end_frames_are_kept_for_sg_mim_alone(scenes):
    net = new_model(PRESETS["fast-vgs-tiny"]())
    config = replace(recipe("fast-vgs-tiny"), cache_frames=True, speed=0.0)
    feed = SimpleNamespace(corpus=scenes["dev"], config=config)
    with pytest.raises(ConfigError, match="not for fast-vgs"):
        prepare_data(net, feed, {})


@pytest.mark.parametrize("preset", ("fast-vgs-tiny", "speechclip-tiny", "scenes-tiny"))
def test_from_scratch_everything_is_trained(preset):
    model, train = from_scratch(PRESETS[preset](), TrainConfig(cache_frames=True))
    net = new_model(model)
    assert not train.cache_frames and not net.frozen_parts
    frozen = [n for n, p in net.named_parameters() if not p.requires_grad]
    assert all("momentum" in n or "target" in n for n in frozen), frozen[:3]


def test_a_row_from_scratch_is_planned_as_the_command_trains_it():
    spec = plan_runs(TablePlan(3, "scenes", rows=("SpeechCLIP",), weights="random"))[0]
    assert spec.model.train_image and spec.model.train_audio
