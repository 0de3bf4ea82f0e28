"""How long does it take, and how much memory, to read the metadata of a corpus of full size? `python
benchmarks/parse_metadata.py`, about two minutes, 1.5 GB of disk.

Writes metadata of the size and shape of SpokenCOCO's (123,287 images, 616,435 captions) and of Places
Audio's (400,000) to a temporary folder, and loads each layout in a process of its own. Memory is the peak
of that process, and what the imports alone had taken. The record goes to results/bench-parse.json.
"""

import argparse
import json
import random
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sgmim.core import code_version, run_record, write_json

# images of SpokenCOCO's own splits; of Karpathy's restval; captions of Places Audio
TRAIN, VAL, RESTVAL, PLACES = 118_287, 5_000, 30_504, 400_000
SPEAKERS = 2_352

LOAD = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from sgmim.core import peak_memory_mb
from sgmim.data.corpora import places_audio, spokencoco
kind, folder, options = sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
before, start = peak_memory_mb(), time.perf_counter()
if kind == 'json.load':
    with open(folder) as f: n = len(json.load(f)['data'])
    used = {'seconds': time.perf_counter() - start, 'peak_mb': peak_memory_mb(), 'imports_mb': before}
    print(json.dumps({**used, 'entries': n}))
else:
    corpus = {'places': places_audio, 'spokencoco': spokencoco}[kind](folder, 'train', strict=True, **options)
    used = {'seconds': time.perf_counter() - start, 'peak_mb': peak_memory_mb(), 'imports_mb': before}
    print(json.dumps({**used, 'captions': len(corpus), 'images': corpus.n_images,
                      'speakers': len(corpus.speakers), 'word_times': corpus.alignments is not None}))
"""


class Words:
    "Names and sentences of about the length of the real ones."

    def __init__(self, seed=0):
        self.rng = random.Random(seed)
        self.words = [self.name(self.rng.randint(2, 8), string.ascii_lowercase) for _ in range(2000)]
        self.speakers = ["m" + self.name(13, string.ascii_lowercase + string.digits) for _ in range(SPEAKERS)]

    def name(self, n, letters):
        return "".join(self.rng.choices(letters, k=n))

    def sentence(self, n):
        return self.rng.choices(self.words, k=n)

    def times(self, sentence):
        return " ".join(f"{0.31 * k:.2f}__{w.upper()}__{0.31 * (k + 1):.2f}" for k, w in enumerate(sentence))


class Array:
    "A JSON file with a list under `key`, written entry by entry."

    def __init__(self, path, key="data"):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.comma = open(path, "w", encoding="utf-8"), ""
        self.file.write(f'{{"{key}": [')

    def add(self, entry):
        self.file.write(self.comma + json.dumps(entry))
        self.comma = ", "

    def close(self):
        self.file.write("]}")
        self.file.close()


def write_spokencoco(folder):
    """SpokenCOCO's own two files, dataset_coco.json, and the training split unrolled, without and with
    word times."""
    make, names = Words(), {"own": "own", "plain": "unrolled", "aligned": "aligned"}
    plain, aligned = (
        Array(folder / f / f"SpokenCOCO_train_unrolled_karpathy{tail}.json")
        for f, tail in ((names["plain"], ""), (names["aligned"], "_with_alignments"))
    )
    listing, number = Array(folder / names["own"] / "dataset_coco.json", "images"), 0
    for split, n in (("train", TRAIN), ("val", VAL)):
        own = Array(folder / names["own"] / f"SpokenCOCO_{split}.json")
        for i in range(n):
            number += 1
            # the first 82,783 images are COCO's train2014, as in the original; of the others Karpathy takes
            # 5,000 each for validation and test
            role = (
                "train"
                if number <= 82_783
                else "restval"
                if number <= 82_783 + RESTVAL
                else "val"
                if number % 2
                else "test"
            )
            year = "train2014" if role == "train" else "val2014"
            image, said = f"{year}/COCO_{year}_{number:012d}.jpg", []
            for k in range(5):
                words, speaker = make.sentence(10), make.rng.choice(make.speakers)
                code = make.name(30, string.ascii_uppercase + string.digits)
                uttid = f"{speaker}-{code}_{number}_{5 * number + k}"
                said.append(
                    {
                        "text": " ".join(words),
                        "speaker": speaker,
                        "uttid": uttid,
                        "wav": f"wavs/{split}/{i % 64}/{uttid}.wav",
                    }
                )
                if role in ("train", "restval"):
                    plain.add({"image": image, "caption": said[-1]})
                    aligned.add({"image": image, "caption": said[-1], "text_alignment": make.times(words)})
            own.add({"image": image, "captions": said})
            listing.add(
                {
                    "filepath": year,
                    "sentids": [5 * number + k for k in range(5)],
                    "filename": image.partition("/")[2],
                    "imgid": number,
                    "split": role,
                    "cocoid": number,
                    "sentences": [
                        {
                            "tokens": s["text"].split(),
                            "raw": s["text"],
                            "imgid": number,
                            "sentid": 5 * number + k,
                        }
                        for k, s in enumerate(said)
                    ],
                }
            )
        own.close()
    for f in (plain, aligned, listing):
        f.close()


def write_places(folder):
    "The training file of Places Audio, without and with word times."
    make = Words(1)
    plain, aligned = (Array(folder / f / "metadata/train_2020.json") for f in ("places", "places-aligned"))
    for i in range(PLACES):
        words, speaker, label = make.sentence(20), make.rng.choice(make.speakers).upper(), make.words[i % 205]
        record = {
            "uttid": f"{speaker}-GSUN_{make.name(32, string.hexdigits)}",
            "speaker": speaker,
            "asr_text": " ".join(words),
            "wav": f"wavs/{i // 1000}/utterance_{i}.wav",
            "image": f"{label[0]}/{label}/gsun_{make.name(32, '0123456789abcdef')}.jpg",
            "scenelabel": label,
        }
        plain.add(record)
        aligned.add({**record, "text_alignment": make.times(words)})
    for f in (plain, aligned):
        f.close()


def measure(kind, folder, repeats, **options):
    runs = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(ROOT), kind, str(folder), json.dumps(options)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(done.stderr)
        runs.append(json.loads(done.stdout))
    return {
        **min(runs, key=lambda r: r["seconds"]),
        "seconds_of_each": [round(r["seconds"], 2) for r in runs],
    }


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--repeats", type=int, default=3, help="the fastest of so many processes counts")
    p.add_argument("--folder", help="where to write the temporary files")
    p.add_argument("--out", default=ROOT / "results/bench-parse.json")
    a = p.parse_args()
    start, code, found = time.perf_counter(), code_version(), {}
    with tempfile.TemporaryDirectory(dir=a.folder) as tmp:
        folder = Path(tmp)
        write_spokencoco(folder)
        write_places(folder)
        megabytes = {
            str(f.relative_to(folder)): round(f.stat().st_size / 1e6) for f in sorted(folder.rglob("*.json"))
        }
        for name, kind, where, options in (
            ("SpokenCOCO, own splits, an entry an image", "spokencoco", "own", {"karpathy": "none"}),
            ("SpokenCOCO, unrolled, an entry a caption", "spokencoco", "unrolled", {}),
            ("SpokenCOCO, unrolled, with word times", "spokencoco", "aligned", {}),
            (
                "SpokenCOCO, own files joined with dataset_coco.json",
                "spokencoco",
                "own",
                {"karpathy": "dataset"},
            ),
            ("Places Audio", "places", "places", {}),
            ("Places Audio, with word times", "places", "places-aligned", {}),
            (
                "json.load of the unrolled file, for comparison",
                "json.load",
                "unrolled/SpokenCOCO_train_unrolled_karpathy.json",
                {},
            ),
        ):
            found[name] = r = measure(kind, folder / where, a.repeats, **options)
            print(
                f"{name:52} {r['seconds']:5.1f} s, peak {r['peak_mb']:5} MB, of which imports"
                f" {r['imports_mb']} MB;"
                f" { ({k: v for k, v in r.items() if k in ('captions', 'images', 'entries')}) }",
                flush=True,
            )
    write_json(
        a.out,
        run_record(
            "benchmark",
            {"repeats": a.repeats, "files_mb": megabytes},
            0,
            "generated metadata",
            found,
            time.perf_counter() - start,
            code=code,
        ),
    )


if __name__ == "__main__":
    main()
