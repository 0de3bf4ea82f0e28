"The encoder for mteb: on loaders of its shapes, and, where mteb is installed, on a tiny task by mteb itself."

import numpy as np
import pytest
from PIL import Image

from sgmim.apps.mteb import MtebEncoder
from sgmim.core import ConfigError, DataError
from sgmim.models.pretrained import shipped
from sgmim.scenes.corpus import load_scenes


@pytest.fixture(scope="module")
def corpus(cache):
    return load_scenes("test-seen", 40, cache=cache, progress=False)


@pytest.fixture(scope="module")
def encoder():
    return MtebEncoder(shipped("scenes-tiny"), device="cpu")


def test_any_image_any_rate(encoder, corpus):
    "Modes and sizes of images, rates and channels of sound; every input gets a row, a short one too."
    from sgmim.data.audio import resample

    im = Image.fromarray(corpus.image(0))
    z = encoder.encode(
        [
            {
                "image": [
                    im,
                    im.convert("RGBA"),
                    im.convert("P"),
                    im.resize((200, 200)),
                    Image.new("L", (50, 90), 128),
                ]
            }
        ]
    )
    assert z.shape == (5, 128) and np.allclose(z[0], z[1], atol=1e-5) and z[0] @ z[3] > 0.9
    wave = corpus.audio(0)
    z = encoder.encode(
        [
            {
                "audio": [
                    {"array": wave, "sampling_rate": 16_000},
                    {"array": np.stack([resample(wave, 16_000, 44_100)] * 2), "sampling_rate": 44_100},
                ]
            },
            {"audio": [{"array": np.full(10, 0.1), "sampling_rate": 8000}]},
        ]
    )
    assert z.shape == (3, 128) and z[0] @ z[1] > 0.98 and np.isfinite(z).all()


def test_refusals(encoder):
    for batch in ({"text": ["a"]}, {"id": [1]}, {"image": [], "audio": []}):
        with pytest.raises(ConfigError, match="a2i and i2a"):
            encoder.encode([batch])
    with pytest.raises(DataError, match="finite samples"):
        encoder.encode([{"audio": [{"array": [np.inf] * 5000, "sampling_rate": 16_000}]}])


def test_by_mteb_itself(encoder, corpus, tmp_path):
    "`mteb.evaluate` on a task made here: its hit rate is ours."
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import EncoderProtocol

    from sgmim.evaluation.retrieval import embed, pool

    class Scenes(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="ScenesA2I",
            description="Spoken captions to pictures.",
            reference="https://arxiv.org/abs/2301.00000",
            dataset={"path": "none/none", "revision": "1"},
            type="Any2AnyRetrieval",
            category="a2i",
            modalities=["audio", "image"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="hit_rate_at_1",
            date=("2020-01-01", "2020-01-02"),
            domains=["Web"],
            task_subtypes=[],
            license="not specified",
            annotations_creators="derived",
            dialect=[],
            sample_creation="created",
            bibtex_citation="",
        )

        def load_data(self, **kwargs):
            pictures = Dataset.from_dict(
                {
                    "id": [f"d{i}" for i in range(40)],
                    "image": [Image.fromarray(corpus.image(i)) for i in range(40)],
                },
                features=Features({"id": Value("string"), "image": ImageColumn()}),
            )
            sounds = Dataset.from_dict(
                {
                    "id": [f"q{j}" for j in range(40)],
                    "audio": [{"array": corpus.audio(j), "sampling_rate": 16_000} for j in range(40)],
                }
            )
            self.corpus, self.queries = {"test": pictures}, {"test": sounds}
            self.relevant_docs = {
                "test": {f"q{j}": {f"d{int(corpus.image_of_caption[j])}": 1} for j in range(40)}
            }
            self.data_loaded = True

    assert isinstance(encoder, EncoderProtocol) and encoder.mteb_model_meta.name == "sgmim/scenes-tiny"
    found = mteb.evaluate(encoder, Scenes(), encode_kwargs={"batch_size": 8}, cache=None, co2_tracker=False)
    scores = found.task_results[0].scores["test"][0]
    ours = (
        embed(encoder.model, pool(encoder.model.config, corpus)).metrics(similarity="cosine").audio_to_image
    )
    assert scores["recall_at_1"] == pytest.approx(ours.recall_at_1 / 100) and scores[
        "recall_at_10"
    ] == pytest.approx(ours.recall_at_10 / 100)
