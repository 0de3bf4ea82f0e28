"""What does each kind of voice add? python benchmarks/voices.py --people FOLDER → results/bench-voices.json

Trains the shipped weights on captions of `scenes-2-full`, first by espeak-ng alone, then by more and more
synthesisers, and at last with sound effects; every run has as many steps. Then single words are searched,
spoken by people and by synthesisers that no run was trained on. With --encoders it also compares two starts
from the small encoders: the shipped ones, and those of that folder (`tiny-mae`, `tiny-hubert`), whose HuBERT
was pre-trained on recordings of people too. FOLDER contains the unpacked recordings (see
nbs/scenes/05_recordings.ipynb). The corpus needs the extra `voices`, flite and Festival. Runs that are done
are kept in --out and not repeated.
"""

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import torch

from sgmim.core import code_version, read_json, run_record, write_json
from sgmim.evaluation.spoken_words import human_queries, search_words, voice_queries
from sgmim.models.pretrained import load_tiny_backbones, open_checkpoint, shipped
from sgmim.models.sgmim import SGMIM, scenes_tiny
from sgmim.scenes.corpus import load_scenes
from sgmim.train import fit, recipe

RECIPE = "scenes-2-full"
KINDS = ("espeak-ng", "hibari", "flite", "kokoro")
WEIGHTS = shipped("tiny-hubert").parent
SETTINGS = {"freeze_cnn": False, "temperature": 0.05}
UNSEEN = ("festival-slt", "kokoro-jf_gongitsune", "kokoro-jf_tebukuro", "piper-joe")


def spoken_by(scenes, kinds):
    "The captions of a split that these kinds of synthesiser speak."
    chosen = [j for j, caption in enumerate(scenes.captions) if caption.kind in kinds]
    part = copy.copy(scenes)
    part.captions = [scenes.captions[j] for j in chosen]
    part._audio_at = [scenes._audio_at[j] for j in chosen]
    part.image_of_caption = scenes.image_of_caption[chosen]
    return part


def start_from(encoders):
    "The shipped weights, with other settings; or a new model that starts from the encoders in a folder."
    if encoders is None:
        old = open_checkpoint(shipped("scenes-tiny"))
        model = SGMIM(replace(old.config, **SETTINGS))
        model.load_state_dict(old.state_dict())
        return model
    torch.manual_seed(0)
    return load_tiny_backbones(SGMIM(replace(scenes_tiny(), **SETTINGS)), encoders)


def train_row(model, train, steps, effects, out):
    "Train `model` for `steps`; the result, and what it took in seconds."
    if not (out / "record.json").is_file():
        base = recipe("scenes-tiny")
        config = replace(base, epochs=steps * base.batch_size / len(train), lr=5e-4, warmup=0.05)
        config = replace(config, curriculum=0.0, speed=0.0, effects=effects, effects_ramp=0.2, save_every=100)
        # a step whose gradient is not finite in bfloat16 is skipped
        fit(model, train, None, replace(config, amp="bf16", max_skipped=50), out=out)
    return open_checkpoint(out / "best"), read_json(out / "record.json")["wall_seconds"]


p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--people", type=Path, required=True)
p.add_argument("--encoders", type=Path)
p.add_argument("--images", type=int, default=8000)
p.add_argument("--steps", type=int, default=750)
p.add_argument("--out", type=Path, default=Path("runs/bench-voices"))
a = p.parse_args()
code = code_version()
train, test = load_scenes("train", a.images, 2, recipe=RECIPE), load_scenes("test-seen", 1000, recipe=RECIPE)
queries = {"people": human_queries(test, a.people), **{name: voice_queries(test, name) for name in UNSEEN}}
# (name, kinds of voices, sound effects, encoders to start from, folder)
rows = [(" + ".join(KINDS[:n]), KINDS[:n], "", None, f"{n}-none") for n in range(1, len(KINDS) + 1)]
rows.append(("all four, with sound effects", KINDS, "all", None, "4-all"))
if a.encoders:
    for name, folder in (("tiny-hubert", WEIGHTS), ("tiny-hubert with people", a.encoders)):
        rows.append((f"from {name}", KINDS, "all", folder, name.replace(" ", "-")))
scores = {"shipped weights": search_words(open_checkpoint(shipped("scenes-tiny")), test, queries)}
seconds = 0.0
for name, kinds, effects, encoders, folder in rows:
    part = spoken_by(train, kinds)
    model, took = train_row(start_from(encoders), part, a.steps, effects, a.out / folder)
    scores[name], seconds = search_words(model, test, queries), seconds + took
    print(name, len(part), {voice: s["best"] for voice, s in scores[name].items()}, flush=True)
for by_voice in scores.values():
    for s in by_voice.values():
        del s["hits"]
config = {"images": a.images, "steps": a.steps, "recipe": RECIPE}
data = {"train": train.fingerprint, "test-seen": test.fingerprint}
record = run_record("benchmark", config, 0, data, scores, seconds, torch.device("cpu"), code)
write_json(Path(__file__).parents[1] / "results/bench-voices.json", record)
