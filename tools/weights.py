"""Make the shipped weights `scenes-voices`, which have heard many voices: train, store in half precision,
calibrate the app's threshold, and test with recordings of people.

    python tools/weights.py FOLDER     (or: make weights PEOPLE=FOLDER)

FOLDER contains the unpacked recordings (see nbs/scenes/05_recordings.ipynb). The corpus needs the extra
`voices`, flite and Festival, and takes some hours to make; the training takes two to three hours on two
cores. The same command resumes it.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "sgmim/weights/scenes-voices"
RECIPE = "scenes-2-full"
# The front end is trained too. Steps whose gradient is not finite in bfloat16 are skipped.
COMMON = f"--threads 2 --data recipe={RECIPE} train=8000 unseen_kinds=True"
COMMON += " --model temperature=.05 freeze_cnn=False"
COMMON += " --set lr=5e-4 warmup=.05 effects=all eval_every=1 save_every=200 amp=bf16 max_skipped=50"
# The first stage makes sound effects more frequent step by step; the second has all of them from the start.
STAGES = {
    "runs/voices": "--start scenes-tiny {} epochs=7 effects_ramp=.2 curriculum=.1",
    "runs/voices2": "--start runs/voices/best {} epochs=13 effects_ramp=.01 curriculum=.01 seed=1",
}


def call(name, *arguments):
    from sgmim.apps.commands import run_command

    if status := run_command(name, [str(a) for a in arguments]):
        sys.exit(status)


def main(people):
    from sgmim.core import load_checkpoint, read_json, save_checkpoint, write_json
    from sgmim.evaluation.threshold import calibrate_threshold

    for out, options in STAGES.items():
        if not Path(out, "demo.json").is_file():
            call("sgmim_demo", "--out", out, *options.format(COMMON).split())
    last = Path(list(STAGES)[-1])
    tensors, meta = load_checkpoint(last / "best")
    save_checkpoint(TARGET, {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}, meta)
    write_json(TARGET / "record.json", read_json(last / "demo.json"))
    calibrate_threshold(TARGET)
    words = TARGET / "spoken_words.json"
    call("sgmim_eval", TARGET, "--data", f"human={people}", "--recipe", RECIPE, "--record", words)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
