"""The commands, from an exported corpus to a table: every official layout, and shards, by what the README
says."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from sgmim.apps import commands
from sgmim.apps.commands import run_command
from sgmim.core import read_json
from sgmim.data.corpora import load_corpus
from sgmim.evaluation.retrieval import evaluate
from sgmim.models.pretrained import shipped
from sgmim.models.sgmim import SGMIM, load_model
from sgmim.scenes.corpus import export_facc, export_places, export_spokencoco, load_scenes

SIZES = {"train": 24, "dev": 12, "test-seen": 14, "test-unseen": 12}
STEPS = ["--set", "epochs=.5", "batch_size=8", "log_every=1", "eval_every=.5", "max_unreadable=.2"]


@pytest.fixture(scope="module")
def made(cache):
    return {s: load_scenes(s, n, 2, cache=cache, progress=False) for s, n in SIZES.items()}


@pytest.fixture(scope="module")
def layouts(made, cache, tmp_path_factory):
    "{layout: folder} of the embedded corpus in every official layout."
    root = tmp_path_factory.mktemp("layouts")
    other = load_scenes("test-unseen", 10, 2, seed=1, cache=cache, progress=False)
    export_places(
        {
            "train": made["train"],
            "dev_seen": made["dev"],
            "dev_unseen": other,
            "test_seen": made["test-seen"],
            "test_unseen": made["test-unseen"],
        },
        root / "places",
    )
    export_spokencoco(
        {"train": made["train"], "val": made["dev"], "test": made["test-seen"]}, root / "spokencoco"
    )
    export_facc({"train": made["train"], "dev": made["dev"], "test": made["test-seen"]}, root / "facc")
    return {name: root / name for name in ("places", "spokencoco", "facc")}


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("SGMIM_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def ok(command, *args):
    "Run a command; it has to succeed."
    assert run_command(command, [str(a) for a in args]) == 0, args


@pytest.mark.slow
@pytest.mark.parametrize("layout,test", [("places", "test_seen"), ("spokencoco", "test"), ("facc", "test")])
def test_check_train_evaluate(layouts, made, layout, test, tmp_path, capsys):
    "The three commands of the README; and the numbers are those of the embedded corpus itself."
    folder, run = layouts[layout], tmp_path / "run"
    ok("sgmim_check_data", folder, "--json", tmp_path / "report.json")
    assert read_json(tmp_path / "report.json")["ok"] and "ready to use" in capsys.readouterr().out
    ok("sgmim_train", "--data", folder, "--out", run, "--device", "cpu", "--workers", 0, *STEPS)
    said = capsys.readouterr().out
    assert "Not as printed" in said and "memory: " in said and "best at step" in said
    record = read_json(run / "record.json")
    assert (
        record["preset"] == "scenes-tiny"
        and record["pretrained"] == {"image": "tiny-mae, shipped", "audio": "tiny-hubert, shipped"}
        and record["steps"] == round(0.5 * (48 // 8))
        and layout in record["data"]["name"]
    )
    ok(
        "sgmim_eval",
        run / "best",
        "--data",
        folder,
        "--split",
        test,
        "--record",
        tmp_path / "eval.json",
        "--device",
        "cpu",
    )
    out, found = capsys.readouterr().out, read_json(tmp_path / "eval.json")
    n = len(made["test-seen"])
    assert f"{SIZES['test-seen']} images × {n} captions" in out and found["config"]["max_seconds"] == (
        25.0 if layout == "places" else 10.0
    )
    if layout != "places":
        assert "so do not compare these numbers with published ones" in out
    direct = evaluate(load_model(run / "best", device="cpu"), made["test-seen"])
    assert found["metrics"][test] == json.loads(json.dumps(direct.to_dict())), (
        "another table than that of the embedded corpus"
    )


def test_places_says_who_was_seen(layouts, tmp_path, capsys):
    "The lists of the training split are enough: its recordings may be missing."
    import shutil

    shutil.copytree(layouts["places"], tmp_path / "places")
    for path in (tmp_path / "places" / "wavs").rglob("utterance_train_*.wav"):
        path.unlink()
    ok("sgmim_eval", "--data", tmp_path / "places", "--device", "cpu")
    out = capsys.readouterr().out
    seen, unseen = (
        next(line for line in out.splitlines() if line.startswith(s)) for s in ("test_seen:", "test_unseen:")
    )
    assert (
        "100% of the captions are by speakers of the training split" in seen
        and " 0% of the captions" in unseen
    )


def test_several_dev_splits_choose_the_checkpoint(layouts, tmp_path):
    ok(
        "sgmim_train",
        "--data",
        layouts["places"],
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        "--workers",
        0,
        "--no-calibration",
        *STEPS,
    )
    assert set(read_json(tmp_path / "run" / "best" / "config.json")["dev"]) == {"dev_seen", "dev_unseen"}


@pytest.mark.slow
def test_shards_train_and_evaluate_like_loose_files(layouts, tmp_path, capsys):
    "Same seed, same weights, from loose files and from shards; recordings are equal, images are copied."
    ok("sgmim_shard", layouts["facc"], tmp_path / "shards", "--size", 0, "--workers", 1)
    ok("sgmim_check_data", tmp_path / "shards")
    for data, out in ((layouts["facc"], "loose"), (tmp_path / "shards", "packed")):
        ok(
            "sgmim_train",
            "--data",
            data,
            "--out",
            tmp_path / out,
            "--device",
            "cpu",
            "--workers",
            0,
            "--no-calibration",
            *STEPS,
        )
    a, b = (load_model(tmp_path / out / "best", device="cpu").state_dict() for out in ("loose", "packed"))
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)
    capsys.readouterr()
    for data in (layouts["facc"], tmp_path / "shards"):
        ok("sgmim_eval", tmp_path / "loose" / "best", "--data", data, "--device", "cpu")
    tables = [line for line in capsys.readouterr().out.splitlines() if line.startswith("test ")]
    assert len(tables) == 2 and tables[0] == tables[1]


@pytest.mark.slow
def test_a_dry_run_trains_nothing(layouts, tmp_path, capsys):
    ok(
        "sgmim_train",
        "--data",
        layouts["facc"],
        "--out",
        tmp_path / "run",
        "--dry-run",
        "--device",
        "cpu",
        "--workers",
        0,
    )
    out = capsys.readouterr().out
    assert not (tmp_path / "run").exists() and "parameters" in out and "minutes" in out or "seconds" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset,corpus", [("paper-places", "places"), ("paper-spokencoco", "spokencoco"), ("paper-facc", "facc")]
)
def test_the_papers_presets_say_what_they_are(layouts, tmp_path, capsys, preset, corpus):
    """Each field stands where it comes from; the two that the presets take otherwise than the equations
    are named, and so is the rate."""
    ok(
        "sgmim_train",
        "--preset",
        preset,
        "--data",
        layouts[corpus],
        "--out",
        tmp_path / "run",
        "--dry-run",
        "--no-calibration",
        "--from-scratch",
        "--device",
        "cpu",
        "--set",
        "batch_size=8",
    )
    out = capsys.readouterr().out

    def part(title, end):
        return [line.strip() for line in out[out.index(title + "\n") : out.index(end)].splitlines()[1:]]

    batch = 80 if corpus == "places" else 100
    assert part("Not as printed", "Note") == [
        "mask_same_image = True: VG-HuBERT's code; printed: False",
        "mim_reduction = mean: ours; printed: sum",
        f"batch_size = 8: ours; printed: {batch}",
    ]
    assert "a tenth of the rate" in part("Note", "Data")[0]
    vg, ours = (
        " ".join(part(*titles))
        for titles in (
            ("Not printed, from VG-HuBERT's code", "Not printed, ours"),
            ("Not printed, ours", "Not as printed"),
        )
    )
    for field in (
        "input_dropout=0.1",
        "zero_padded_frames=False",
        "valid_frames=any_sample",
        f"max_seconds={18.0 if corpus == 'places' else 8.0}",
    ):
        assert field in vg
    assert "freeze_cnn=False" in ours and "277,196,416 parameters, 191,397,760 of them trained" in out


@pytest.mark.slow
def test_the_equations_as_printed_are_no_departure(layouts, tmp_path, capsys):
    ok(
        "sgmim_train",
        "--preset",
        "paper-facc",
        "--data",
        layouts["facc"],
        "--out",
        tmp_path / "run",
        "--dry-run",
        "--no-calibration",
        "--device",
        "cpu",
        "--set",
        "batch_size=8",
        "--model",
        "mask_same_image=False",
        "mim_reduction=sum",
    )
    out = capsys.readouterr().out
    assert (
        out[out.index("Not as printed\n") : out.index("Note")].split()
        == "Not as printed batch_size = 8: ours; printed: 100".split()
    )


@pytest.mark.slow
def test_without_weights_the_message_helps(layouts, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert (
        run_command(
            "sgmim_train",
            [
                "--preset",
                "paper-facc",
                "--data",
                str(layouts["facc"]),
                "--out",
                str(tmp_path / "run"),
                "--set",
                "batch_size=8",
            ],
        )
        == 1
    )
    said = capsys.readouterr().err
    assert "vit_base_patch16_224.mae" in said and "--download" in said and len(said.splitlines()) <= 3


def test_embeddings_are_used_again(layouts, tmp_path, capsys, monkeypatch):
    args = ["--data", str(layouts["facc"]), "--embeddings", str(tmp_path / "emb"), "--device", "cpu"]
    ok("sgmim_eval", *args)
    first = capsys.readouterr().out
    monkeypatch.setattr(SGMIM, "embed_audio", None)
    ok("sgmim_eval", *args)
    assert capsys.readouterr().out == first
    assert (
        run_command("sgmim_eval", [*args, "--max-seconds", "2"]) == 1
        and "max_seconds is 10.0, not 2.0" in capsys.readouterr().err
    )


def test_other_roots_instead_of_edited_files(layouts, tmp_path, capsys):
    "Images moved elsewhere: the check says which option to give, and the option works."
    import shutil

    shutil.copytree(layouts["facc"], tmp_path / "corpus")
    (tmp_path / "corpus" / "Flicker8k_Dataset").rename(tmp_path / "pictures")
    assert run_command("sgmim_check_data", [str(tmp_path / "corpus")]) == 1
    assert "--image-root" in capsys.readouterr().out
    ok("sgmim_check_data", tmp_path / "corpus", "--image-root", tmp_path / "pictures")
    assert len(load_corpus(tmp_path / "corpus", "test", image_root=tmp_path / "pictures").image(0).shape) == 3
    ok("sgmim_eval", "--data", tmp_path / "corpus", "--image-root", tmp_path / "pictures", "--device", "cpu")


@pytest.mark.slow
def test_own_pairs(layouts, made, tmp_path, capsys):
    "A table of one's own, with a column of splits."
    corpora = {s: load_corpus(layouts["facc"], s) for s in ("train", "dev", "test")}
    rows = [
        f"{c.image_path(c.image_of_caption[j])},{c.audio_path(j)},{s}"
        for s, c in corpora.items()
        for j in range(len(c))
    ]
    root = str(layouts["facc"]) + "/"
    (tmp_path / "mine.csv").write_text("image,audio,split\n" + "\n".join(rows).replace(root, ""))
    roots = ["--image-root", layouts["facc"], "--audio-root", layouts["facc"]]
    ok("sgmim_check_data", tmp_path / "mine.csv", *roots)
    ok(
        "sgmim_train",
        "--data",
        tmp_path / "mine.csv",
        *roots,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        "--workers",
        0,
        "--no-calibration",
        *STEPS,
    )
    ok("sgmim_eval", tmp_path / "run" / "best", "--data", tmp_path / "mine.csv", *roots, "--device", "cpu")
    assert f"{SIZES['test-seen']} images × {len(made['test-seen'])} captions" in capsys.readouterr().out


def test_export_and_back(tmp_path, capsys):
    ok("sgmim_export", shipped("scenes-tiny"), tmp_path / "hub")
    assert {"model.safetensors", "config.json", "README.md"} <= {p.name for p in (tmp_path / "hub").iterdir()}
    a = load_model(shipped("scenes-tiny"), device="cpu")
    b = SGMIM.from_pretrained(tmp_path / "hub", device="cpu")
    assert all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_the_shipped_weights_know_their_crop():
    assert load_model(shipped("scenes-tiny"), device="cpu").config.crop_pct == 1.0


def test_a_corpus_that_lacks_many_files_is_refused(layouts, tmp_path, capsys):
    import shutil

    shutil.copytree(layouts["facc"], tmp_path / "corpus")
    for path in sorted((tmp_path / "corpus" / "flickr_audio" / "wavs").iterdir())[::3]:
        path.unlink()
    for command in (
        ("sgmim_eval", ["--data", str(tmp_path / "corpus")]),
        ("sgmim_train", ["--data", str(tmp_path / "corpus"), "--out", str(tmp_path / "run")]),
    ):
        assert run_command(command[0], [*command[1], "--device", "cpu"]) == 1
        error = capsys.readouterr().err
        assert "are missing or empty" in error and "more than 1.0%" in error
    ok("sgmim_eval", "--data", tmp_path / "corpus", "--max-unreadable", 0.5, "--device", "cpu")
    assert "left out" in capsys.readouterr().out


def test_embeddings_of_another_model_or_other_files_are_refused(layouts, tmp_path, capsys):
    import shutil
    from dataclasses import replace

    from sgmim.models.sgmim import save_model

    args = ["--data", str(layouts["facc"]), "--embeddings", str(tmp_path / "emb"), "--device", "cpu"]
    ok("sgmim_eval", *args)
    model = load_model(shipped("scenes-tiny"), device="cpu")
    model.config = replace(model.config, pool_cls=False)  # equal weights, another model
    save_model(model, tmp_path / "other")
    assert (
        run_command("sgmim_eval", [str(tmp_path / "other"), *args]) == 1
        and "are of something else: model is" in capsys.readouterr().err
    )
    shutil.copytree(layouts["facc"], tmp_path / "corpus")
    wavs = sorted((tmp_path / "corpus" / "flickr_audio" / "wavs").glob("test*"))
    wavs[0].write_bytes(wavs[1].read_bytes() + b"\0\0")
    assert (
        run_command("sgmim_eval", ["--data", str(tmp_path / "corpus"), *args[2:]]) == 1
        and "files is" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "command,args",
    [
        ("sgmim_eval", ["--batch-size", "0"]),
        ("sgmim_eval", ["--workers", "-1"]),
        ("sgmim_eval", ["--max-seconds", "nan"]),
        ("sgmim_eval", ["--max-seconds", "0"]),
        ("sgmim_eval", ["--max-seconds", "inf"]),
        ("sgmim_train", ["--out", "x", "--threads", "-1"]),
    ],
)
def test_numbers_that_cannot_be(command, args, capsys):
    with pytest.raises(SystemExit):
        run_command(command, args)
    assert "invalid number" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args,said",
    [
        (["--device", "meta"], "is not supported"),
        (["--set", "epochs={[]:1}"], "epochs"),
        (["--from-scratch", "--image-weights", "x"], "excludes"),
        (["--data", "/nowhere"], "does not exist"),
        (["--karpathy", "none"], "are for SpokenCOCO"),
    ],
)
def test_arguments_that_cannot_be(layouts, tmp_path, capsys, args, said):
    data = [] if "--data" in args else ["--data", str(layouts["facc"])]
    assert (
        run_command(
            "sgmim_train",
            [*data, "--out", str(tmp_path / "run"), "--no-calibration", "--set", "batch_size=8", *args]
            if "--set" not in args
            else [*data, "--out", str(tmp_path / "run"), *args],
        )
        == 1
    )
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_a_preset_of_a_real_corpus_needs_the_corpus(tmp_path, capsys):
    assert run_command("sgmim_train", ["--preset", "paper-facc", "--out", str(tmp_path / "run")]) == 1
    assert "add --data FOLDER, with the folder of FACC" in capsys.readouterr().err


@pytest.mark.slow
def test_one_encoder_of_ones_own_and_the_other_shipped(layouts, tmp_path, capsys):
    ok(
        "sgmim_train",
        "--data",
        layouts["facc"],
        "--out",
        tmp_path / "run",
        "--image-weights",
        shipped("tiny-mae"),
        "--device",
        "cpu",
        "--workers",
        0,
        "--no-calibration",
        *STEPS,
    )
    record = read_json(tmp_path / "run" / "record.json")["pretrained"]
    assert record["audio"] == "tiny-hubert, shipped" and record["image"]["tensors"] > 10


@pytest.mark.slow
def test_other_weights_do_not_go_on_with_a_run(layouts, tmp_path, capsys, monkeypatch):
    """Begun with the default weights, stopped, and begun again with others: refused, and nothing in the
    folder is changed. The same command goes on."""
    from conftest import listing

    import sgmim.train as T
    from sgmim.core import load_checkpoint, save_checkpoint

    tensors, meta = load_checkpoint(shipped("tiny-mae"))
    save_checkpoint(
        tmp_path / "other",
        {k: v * 1.02 if k == "blocks.0.attn.qkv.weight" else v for k, v in tensors.items()},
        meta,
    )
    args = [
        "--data",
        layouts["facc"],
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        "--workers",
        0,
        "--no-calibration",
        *STEPS[:-1],
        "max_unreadable=.2",
        "save_every=1",
    ]
    real = T.train_step

    def stopping(*a, **k):
        if a[3] == 2:
            raise KeyboardInterrupt
        return real(*a, **k)

    with monkeypatch.context() as m:
        m.setattr(T, "train_step", stopping)
        assert run_command("sgmim_train", [str(a) for a in args]) == 130
    before = listing(tmp_path / "run")
    assert "checkpoints/step-00000002/config.json" in before
    assert run_command("sgmim_train", [str(a) for a in [*args, "--image-weights", tmp_path / "other"]]) == 1
    assert (
        "its initial weights differ (all else, image_encoder)" in capsys.readouterr().err
        and listing(tmp_path / "run") == before
    )
    ok("sgmim_train", *args)
    assert read_json(tmp_path / "run" / "record.json")["pretrained"]["image"] == "tiny-mae, shipped"


@pytest.mark.parametrize("what", ["words", pytest.param("grounding", marks=pytest.mark.slow), "dependence"])
def test_analyses_by_command(cache, tmp_path, monkeypatch, capsys, what):
    monkeypatch.setenv("SGMIM_CACHE", str(cache))
    ok("sgmim_analyse", what, "--images", 24, "--record", tmp_path / "r.json", "--device", "cpu")
    record = read_json(tmp_path / "r.json")
    assert (
        record["kind"] == what
        and set(record["metrics"]) == {"test-seen"}
        and record["config"]["checkpoint"] == "scenes-tiny"
        and capsys.readouterr().out.strip()
    )


def test_a_table_is_planned_by_command(tmp_path, capsys):
    ok("sgmim_reproduce", "--table", 4, "--data", "scenes", "--seeds", 2, "--dry-run", "--rows", "+ Summary")
    assert "+ Summary" in capsys.readouterr().out


@pytest.mark.slow
def test_dependence_beside_a_model_of_the_recon_row(cache, tmp_path, monkeypatch, capsys):
    from dataclasses import replace

    from sgmim.models.sgmim import save_model, scenes_tiny

    monkeypatch.setenv("SGMIM_CACHE", str(cache))
    for name, changes in {
        "summary": {},
        "recon": {"reconstruction": "plain"},
        "hides-less": {"reconstruction": "plain", "mask_ratio": 0.5},
    }.items():
        save_model(SGMIM(replace(scenes_tiny(), **changes)), tmp_path / name)
    args = ["dependence", tmp_path / "summary", "--images", 24, "--device", "cpu", "--recon"]
    ok("sgmim_analyse", *args, tmp_path / "recon", "--record", tmp_path / "r.json")
    record, out = read_json(tmp_path / "r.json"), capsys.readouterr().out
    assert (
        record["config"]["with_recon"]
        and record["config"]["recon"] == "recon"
        and record["config"]["recon_model"] != record["config"]["model"]
    )
    assert {"right", "alone", "alone_minus_right"} <= set(
        record["metrics"]["test-seen"]["overall"]
    ) and "alone" in out
    for other, said in (
        ("summary", "a model of the row + Recon (reconstruction='plain'), not 'summary'"),
        ("hides-less", "mask_ratio of the + Recon model is 0.5, not 0.75"),
        ("nowhere", "does not exist"),
    ):
        assert (
            run_command("sgmim_analyse", [str(a) for a in (*args, tmp_path / other)]) == 1
            and said in capsys.readouterr().err
        )
    assert (
        run_command("sgmim_analyse", ["words", "--recon", str(tmp_path / "recon")]) == 1
        and "omit it" in capsys.readouterr().err
    )


def test_data_with_its_kind(layouts, tmp_path, capsys):
    ok("sgmim_eval", "--data", f"facc={layouts['facc']}", "--device", "cpu")
    assert run_command("sgmim_eval", ["--data", f"places={layouts['facc']}", "--device", "cpu"]) == 1
    assert "holds no split of a corpus of kind 'places'" in capsys.readouterr().err


@pytest.mark.parametrize("what", [pytest.param("gradients", marks=pytest.mark.slow), "mistakes"])
def test_analyses_of_several_checkpoints(cache, tmp_path, monkeypatch, capsys, what):
    from sgmim.models.sgmim import save_model

    monkeypatch.setenv("SGMIM_CACHE", str(cache))
    model = load_model(shipped("scenes-tiny"), device="cpu")
    for name in ("one", "two"):
        save_model(model, tmp_path / name / "best")
    ok(
        "sgmim_analyse",
        what,
        tmp_path / "one",
        tmp_path / "two" / "best",
        "--images",
        24,
        "--record",
        tmp_path / "r.json",
        "--device",
        "cpu",
    )
    record = read_json(tmp_path / "r.json")
    assert (
        record["kind"] == what
        and list(record["config"]["models"]) == ["one", "two"] == list(record["metrics"]["test-seen"])
        and "| two" in capsys.readouterr().out
    )
    assert (
        run_command("sgmim_analyse", ["words", "a", "b"]) == 1
        and "takes one checkpoint" in capsys.readouterr().err
    )
    assert (
        run_command("sgmim_analyse", [what, "--runs-of", "nobody", "--runs", str(tmp_path)]) == 1
        and "no run of nobody" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_analyses_of_the_runs_behind_the_records(cache, tmp_path, monkeypatch, capsys):
    """The seeds of a row count as one model; the first row is what others are compared with; what has no
    record that counts is left out."""
    from test_results import as_planned, fake, put

    from sgmim.core import write_json
    from sgmim.models.sgmim import save_model
    from sgmim.paper.runs import TablePlan, plan_runs

    monkeypatch.setenv("SGMIM_CACHE", str(cache))
    monkeypatch.setenv("SGMIM_RESULTS", str(tmp_path / "results"))
    plan = TablePlan(4, rows=("VG-HuBERT (M)", "+ Summary"), seeds=2)
    for s in plan_runs(plan, tmp_path / "results"):
        if (s.row, s.seed) != ("+ Summary", 1):
            put(tmp_path / "results", as_planned(fake(s.row, s.seed, 0.0), s))
        torch.manual_seed(s.seed)
        save_model(SGMIM(s.model), tmp_path / "runs" / s.folder / "best")
        write_json(
            tmp_path / "runs" / s.folder / "record.json",
            {"config": {k: s.config[k] for k in ("model", "train")}},
        )
    ok(
        "sgmim_analyse",
        "mistakes",
        "--runs-of",
        "scenes",
        "--runs",
        tmp_path / "runs",
        "--images",
        24,
        "--record",
        tmp_path / "r.json",
        "--device",
        "cpu",
    )
    record = read_json(tmp_path / "r.json")
    assert {n: len(m) for n, m in record["config"]["models"].items()} == {
        "VG-HuBERT (M)": 2,
        "+ Summary": 1,
    } == record["config"]["seeds"] and "of_all_less_base" in record["metrics"]["test-seen"]["+ Summary"][
        "thing"
    ]
    ok(
        "sgmim_analyse",
        "gradients",
        "--runs-of",
        "scenes",
        "--runs",
        tmp_path / "runs",
        "--images",
        24,
        "--device",
        "cpu",
    )
    assert "| audio encoder | " in capsys.readouterr().out


def test_splits_are_named_only_with_data(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run"), "--dry-run"]
    assert run_command("sgmim_train", [*out, "--dev-split", "dev"]) == 1
    assert "name splits of a corpus: give --data too" in capsys.readouterr().err


def test_shipped_weights_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert commands._model_folder(None) == shipped("scenes-tiny")
    assert commands._model_folder("scenes-voices") == shipped("scenes-voices")
    (tmp_path / "scenes-voices").mkdir()
    assert commands._model_folder("scenes-voices") == Path(
        "scenes-voices"
    )  # a folder of one's own comes first
