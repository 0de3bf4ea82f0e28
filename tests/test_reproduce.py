"The runs of a table: planned, made, interrupted, resumed, found again, stale."

import os
import signal
from dataclasses import fields, replace

import pytest
from conftest import ROOT

from sgmim import train as T
from sgmim.apps.commands import run_command
from sgmim.core import SgmimError, read_json, write_json
from sgmim.paper import records as R
from sgmim.paper import runs as P
from sgmim.paper import statistics as S
from sgmim.scenes.corpus import export_facc, export_places, load_scenes

MICRO = (
    "image_size=32",
    "patch_size=8",
    "image_width=32",
    "image_depth=1",
    "image_heads=2",
    "audio_width=32",
    "audio_depth=1",
    "audio_heads=2",
    "audio_hidden=64",
    "conv_dim=(8,8,8,8,8)",
    "pos_kernel=4",
    "pos_groups=4",
    "embed_dim=16",
    "decoder_heads=2",
    "mim_onset=0.",
    "dropout=.1",
    "epochs=2.",
    "batch_size=8",
    "bucket=0",
    "curriculum=0.",
    "save_every=1000",
)
SIZES = P.DemoData(train=32, captions=1, dev=10, test=14)
TWO = ("VG-HuBERT (M)", "+ Summary")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(autouse=True)
def cost(monkeypatch):
    "A step takes 90 seconds; to measure that takes many."
    cost = P.planner.Cost("measured here", 90.0, *[0.0] * 7)
    monkeypatch.setattr(P.planner, "measured", lambda *args, **kwargs: cost)


@pytest.fixture
def plan(tmp_path, cache, monkeypatch):
    "A plan of two rows and two seeds, of a model of some thousand parameters, and what was said."
    said = []
    monkeypatch.setattr(T, "save_figure", lambda *args: None)  # half the time of so small a run
    monkeypatch.setattr(T, "curves_figure", lambda *args: None)
    return dict(
        table=4,
        rows=TWO,
        seeds=2,
        label="mini",
        changes=MICRO,
        sizes=SIZES,
        weights="random",
        results=tmp_path / "results",
        runs=tmp_path / "runs",
        cache=cache,
        device="cpu",
        progress=False,
        show=said.append,
    ), said


def split(asked):
    "The plan and the options of what is asked for in one dict."
    plan = {f.name: asked[f.name] for f in fields(P.TablePlan) if f.name in asked}
    options = {f.name: asked[f.name] for f in fields(P.RunOptions) if f.name in asked}
    assert set(plan) | set(options) == set(asked)
    return P.TablePlan(**plan), P.RunOptions(**options)


def run(dry_run=False, **asked):
    return P.run_table(*split(asked), dry_run)


def never(*args, **kwargs):
    raise AssertionError("this must not be called")


def interrupt_at(step, monkeypatch):
    "Press Ctrl-C in the `step`-th training step from now on, once."
    real, count = T.train_step, [0]

    def pressed(*args):
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(T, "train_step", pressed)


def numbers(record):
    return {k: record["metrics"][k] for k in ("tests", "best", "oracle")}


@pytest.mark.slow
def test_a_table_from_nothing_to_its_last_record(plan, monkeypatch, tmp_path):
    plan, said = plan
    with monkeypatch.context() as m:  # eight steps a run: this is in the middle of the second
        interrupt_at(12, m)
        with pytest.raises(KeyboardInterrupt):
            run(**plan)
    assert sorted(f.name for f in plan["results"].rglob("*.json")) == ["vg-hubert-m-seed0.json"]
    said.clear()
    with (
        monkeypatch.context() as m
    ):  # goes on where it was: 4 of 8 steps of the second run, then two runs of 8
        steps, real = [], T.train_step
        m.setattr(T, "train_step", lambda *a: steps.append(a[3]) or real(*a))
        found = run(**plan)
    assert steps == [4, 5, 6, 7, *range(8), *range(8)] and ": 1 with a record, 3 to run" in said[0]
    assert set(found.records) == {(row, seed) for row in TWO for seed in (0, 1)} and not found.stale
    for record in found.records.values():
        assert R.check_record(record) == [] and record["steps"] == 8 and record["pairs_seen"] == 64
        assert set(record["data"]) == {"train", "dev", "test-seen", "test-unseen", "test-novel"} and set(
            record["metrics"]["oracle"]
        ) == set(record["metrics"]["tests"])
        for test in record["metrics"]["tests"].values():
            for side in R.SIDES:
                ranks = R.unpack_ranks(test[side]["ranks"])
                assert len(ranks) == 14 and 100 * (ranks <= 5).mean() == pytest.approx(
                    test[side]["recall_at_5"]
                )
    assert not list(plan["runs"].rglob("checkpoints")) and len(list(plan["runs"].glob("*/best"))) == 4
    assert (
        found.records["+ Summary", 0]["metrics"]["tests"] != found.records["+ Summary", 1]["metrics"]["tests"]
    )

    # the interrupted run is the run that nobody interrupted
    whole = run(
        **{
            **plan,
            "rows": ("+ Summary",),
            "seeds": 1,
            "results": tmp_path / "again",
            "runs": tmp_path / "elsewhere",
        }
    )
    assert numbers(whole.records["+ Summary", 0]) == numbers(found.records["+ Summary", 0])

    # a second call runs nothing, and opens nothing
    said.clear()
    with monkeypatch.context() as m:
        for name in ("run_spec", "open_data"):
            m.setattr(P, name, never)
        assert set(run(**plan).records) == set(found.records)
    assert (
        "4 with a record, 0 to run" in said[0]
        and "| + Summary | 2 seeds |" in said[1]
        and "| + Recon | no record |" in said[1]
        and "**The paper's numbers.**" in said[1]
    )

    # another setting: stale, and said why; more seeds: only they are missing
    said.clear()
    run(**{**plan, "changes": (*MICRO, "lr=.002")}, dry_run=True)
    assert "0 with a record, 4 to run" in said[0] and said[0].count("train.lr: 0.001, now 0.002") == 4
    assert said[1].startswith("+ Summary:")
    assert "4 runs like this, one after the other: 0.8 hours" in said[1]
    assert "scenes-tiny needs\n  image weights: tiny-mae: shipped" in said[1]
    run(**{**plan, "seeds": 5}, dry_run=True)
    assert ": 4 with a record, 6 to run" in said[3] and "6 runs like this" in said[4]
    run(**{**plan, "changes": (*MICRO, "log_every=7")}, dry_run=True)  # decides no number
    assert "4 with a record, 0 to run" in said[6] and "runs like this" not in said[7]

    # a record that is gone is a gap, and filled by the same call
    (plan["results"] / "table_4/mini/summary-seed1.json").unlink()
    assert P.records_of_table(4, "scenes", label="mini", results=plan["results"]).seeds("+ Summary") == [0]
    for f in plan["results"].rglob("summary*.json"):
        f.unlink()
    assert "| + Summary | no record |" in S.results_table(
        P.records_of_table(4, "scenes", label="mini", results=plan["results"])
    )
    # a broken one too
    (plan["results"] / "table_4/mini/summary-seed0.json").write_text('{"kind": "repro')
    said.clear()
    run(**plan, dry_run=True)
    assert "2 to run" in said[0] and "not valid JSON" in said[0] and "**Stale or broken**" in said[2]


@pytest.mark.slow
def test_under_a_standard_label_other_settings_are_stale(plan):
    plan, _ = plan
    found = run(**{**plan, "label": None, "rows": TWO[:1], "seeds": 1})
    assert not found and "model.image_size: 32, now 96" in found.stale["VG-HuBERT (M)", 0]
    text = S.results_table(found)
    assert "| + Recon | no record |" in text and "**Stale or broken**" in text


@pytest.mark.slow
def test_a_settings_file_is_the_plan(plan):
    plan, said = plan
    write_json(
        plan["results"] / "tuning/mini.json",
        {
            "kind": "settings",
            "why": "a test",
            "from": [],
            "set": {"lr": 0.003},
            "rows": {"+ Summary": {"lam": 1.0}},
            "sizes": {"train": 32},
        },
    )
    found = run(**{**plan, "seeds": 1})
    assert [found.records[row, 0]["config"]["train"]["lr"] for row in TWO] == [0.003, 0.003] and [
        found.records[row, 0]["config"]["model"]["lam"] for row in TWO
    ] == [2.0, 1.0]
    write_json(
        plan["results"] / "tuning/mini.json",
        {"kind": "settings", "why": "another", "from": [], "set": {"lr": 0.004}},
    )
    assert len(P.records_of_table(4, "scenes", label="mini", results=plan["results"]).stale) == 2


def test_a_variant_stands_on_the_settings_of_its_data(plan):
    """A label without a file of its own has the settings of its data, for planning and for judging; with a
    file, its own alone."""
    plan, said = plan
    plan |= {"rows": TWO[1:], "seeds": 1, "label": "scenes-other", "sizes": None}
    sizes = {"train": 32, "captions": 1, "dev": 10, "test": 14}

    def settle(label, lr, sizes=sizes):
        write_json(
            plan["results"] / f"tuning/{label}.json",
            {
                "kind": "settings",
                "why": "a test",
                "from": [],
                "set": {"lr": lr},
                "rows": {"+ Summary": {"lam": 1.0}},
                "sizes": sizes,
            },
        )

    def stale():
        return (
            f := P.records_of_table(4, "scenes", label="scenes-other", results=plan["results"])
        ).stale.get(("+ Summary", 0)) or sorted(f.records)

    settle("scenes", 0.003)
    config = run(**plan).records["+ Summary", 0]["config"]
    assert (
        config["train"]["lr"],
        config["model"]["lam"],
        config["data"]["train"],
        config["model"]["image_width"],
    ) == (0.003, 1.0, 32, 32)
    assert stale() == [("+ Summary", 0)]
    said.clear()
    settle("scenes", 0.004)
    assert stale() == ["train.lr: 0.003, now 0.004"]  # what it stands on has changed
    run(**plan, dry_run=True)
    assert "0 with a record, 1 to run" in said[0] and "train.lr: 0.003, now 0.004" in said[0]
    settle("scenes", 0.003, {**sizes, "dev": 11})
    assert stale() == ["data.dev: 10, now 11"]  # sizes that nobody asked for are read anew too
    settle("scenes-other", 0.003)
    assert stale() == [("+ Summary", 0)]  # its own file comes first, and nothing of the other is mixed in
    write_json(
        plan["results"] / "tuning/scenes-other.json",
        {"kind": "settings", "why": "a test", "from": [], "sizes": sizes},
    )
    assert stale() == ["model.lam: 1.0, now 2.0", "train.lr: 0.003, now 0.001"]


def test_a_variant_is_what_it_says(plan):
    plan, _ = plan
    run(
        **{**plan, "rows": TWO[1:], "seeds": 1, "label": "scenes-other", "changes": (*MICRO, "mask_ratio=.5")}
    )
    asked, _ = split({**plan, "rows": TWO[1:], "label": "scenes-other"})
    right = replace(asked, changes=(*MICRO, "mask_ratio=.5"))
    wrong = replace(asked, changes=(*MICRO, "mask_ratio=0.75"))
    pretrained = replace(right, weights="pretrained")
    found, stale, other_start = (
        P.records_of_table(4, "scenes", results=plan["results"], label="scenes-other", plan=p)
        for p in (right, wrong, pretrained)
    )
    assert found.seeds("+ Summary") == [0] and not found.stale and found.asked == ("+ Summary",)
    assert stale.stale == {("+ Summary", 0): ["model.mask_ratio: 0.5, now 0.75"]}
    assert any("weights" in why for why in other_start.stale["+ Summary", 0])
    folders = P.checkpoints(found, plan["runs"])["+ Summary"]
    assert folders[0].name.startswith("scenes-other-summary-seed0-")
    assert P.checkpoints(stale, plan["runs"]) == {}
    record = found.records["+ Summary", 0]
    other = record | {"config": {**record["config"], "model": {}}}
    # another run below the same name
    assert P.checkpoints(replace(found, records={("+ Summary", 0): other}), plan["runs"]) == {}


@pytest.mark.slow
def test_equal_compute_is_beside_equal_steps(plan):
    plan, said = plan
    plan |= {"seeds": 1}
    run(**{**plan, "rows": TWO})
    found = run(**{**plan, "rows": TWO}, budget="compute")
    # '+ Summary' sets the budget: it is the run that there is
    assert ": 1 with a record, 1 to run" in said[-4]
    record = found.records["VG-HuBERT (M)", 0]
    assert (
        record["steps"] > 8
        and (plan["results"] / "table_4/mini/vg-hubert-m-seed0-compute.json").is_file()
        and record["command"].count("--budget compute") == 1
    )
    assert (
        found.seeds(*TWO) == [0]
        and not (plan["results"] / "table_4/mini/summary-seed0-compute.json").exists()
    )
    assert (
        P.records_of_table(4, "scenes", label="mini", results=plan["results"]).records["VG-HuBERT (M)", 0][
            "steps"
        ]
        == 8
    )


@pytest.mark.slow
def test_the_plan_itself_in_small(plan):
    "The preset as it is, from the shipped encoders: what a user gets, on a few pictures."
    plan, _ = plan
    found = run(
        **{
            **plan,
            "rows": ("+ Summary",),
            "seeds": 1,
            "weights": "pretrained",
            "changes": ("batch_size=8", "epochs=1."),
            "sizes": P.DemoData(train=16, captions=1, dev=6, test=6),
            "label": "few",
        }
    )
    record = found.records["+ Summary", 0]
    assert (
        R.check_record(record) == []
        and set(record["config"]["weights"]) == {"tiny-mae", "tiny-hubert"}
        and record["pretrained"] == {"image": "tiny-mae, shipped", "audio": "tiny-hubert, shipped"}
        and record["steps"] == 2
    )


def test_two_processes_share_a_plan(plan):
    plan, said = plan
    plan |= {"seeds": 1}
    first = P.plan_runs(split(plan)[0], plan["results"])[0]
    with P.alone(plan["runs"] / first.folder) as mine:
        assert mine
        found = run(**plan)
    assert list(found.records) == [("+ Summary", 0)] and any(
        "running in other processes: VG-HuBERT (M) seed 0" in s for s in said
    )
    assert len(run(**plan).records) == 2


def test_a_run_that_fails_does_not_stop_the_others(plan, monkeypatch):
    plan, said = plan
    real = P.fit

    def fail(model, *args, **kwargs):
        if model.config.reconstruction == "none":
            raise SgmimError("the loss is nan at step 3")
        return real(model, *args, **kwargs)

    monkeypatch.setattr(P, "fit", fail)
    with pytest.raises(SgmimError, match="1 of the runs failed: VG-HuBERT .M., seed 0: the loss is nan"):
        run(**{**plan, "seeds": 1})
    assert len(P.records_of_table(4, "scenes", label="mini", results=plan["results"]).records) == 1 and any(
        "FAILED" in s for s in said
    )


@pytest.mark.slow
def test_choosing_on_dev_leaves_the_tests_alone(plan, monkeypatch):
    plan, _ = plan
    real = P.load_scenes
    monkeypatch.setattr(
        P, "load_scenes", lambda split, *a, **k: never() if split.startswith("test") else real(split, *a, **k)
    )
    P.tune(["lr=1e-3,2e-3"], *split({**plan, "rows": TWO[:1], "seeds": 1}))
    made = sorted((plan["results"] / "tuning/mini").glob("*.json"))
    assert (
        len(made) == 2
        and all("tests" not in read_json(f)["metrics"] and read_json(f)["kind"] == "tune" for f in made)
        and R.check_results(plan["results"]) == []
    )
    text = P.tuning_table("mini", plan["results"])
    assert text.count("| VG-HuBERT (M) |") == 2 and "lr=2e-3" in text
    assert not P.records_of_table(4, "scenes", label="mini", results=plan["results"])
    with monkeypatch.context() as m:
        m.setattr(P, "run_spec", never)
        P.tune(["lr=1e-3,2e-3"], *split({**plan, "rows": TWO[:1], "seeds": 1}))


@pytest.mark.slow
def test_a_corpus_on_disk(plan, cache, tmp_path, monkeypatch):
    plan, said = plan

    def some(split, n):
        return load_scenes(split, n, size=32, cache=cache, progress=False)

    export_places(
        {
            "train": some("train", 32),
            "dev_seen": some("dev", 10),
            "dev_unseen": some("dev", 10),
            "test_seen": some("test-seen", 14),
            "test_unseen": some("test-unseen", 14),
        },
        tmp_path / "places",
    )
    plan |= dict(
        table=1,
        data="places",
        path=tmp_path / "places",
        rows=TWO,
        seeds=1,
        preset="scenes-tiny",
        sizes=None,
        label="small",
    )
    found = run(**plan)
    assert set(found.records) == {(row, 0) for row in TWO} and found.tests == ["test-seen", "test-unseen"]
    record = found.records["+ Summary", 0]
    assert (
        R.check_record(record) == []
        and set(record["data"]) == {"train", "dev_seen", "dev_unseen", "test-seen", "test-unseen"}
        and str(tmp_path) not in str(record)
        and "places=FOLDER" in record["command"]
    )
    # the same runs are those of Table 4
    said.clear()
    run(**{**plan, "table": 4, "rows": TWO}, dry_run=True)
    assert "2 with a record, 0 to run" in said[0]
    # other data under the same name
    meta = tmp_path / "places/metadata/test_seen_2020.json"
    write_json(meta, {**read_json(meta), "data": read_json(meta)["data"][:-1]})
    said.clear()
    run(**plan, dry_run=True)
    assert "2 to run" in said[0] and "data of test-seen: " in said[0]


@pytest.mark.slow
def test_the_papers_page_with_records_of_its_corpus(plan, cache, tmp_path):
    "On FACC itself every system keeps its row, and ours stands under the paper's."
    plan, said = plan

    def some(split, n, k):
        return load_scenes(split, n, captions=k, size=32, cache=cache, progress=False)

    export_facc(
        {"train": some("train", 20, 2), "dev": some("dev", 10, 1), "test": some("test-seen", 12, 2)},
        tmp_path / "facc",
    )
    plan |= dict(
        table=3,
        data="facc",
        path=tmp_path / "facc",
        rows=("VG-HuBERT (M)", "+ Summary"),
        seeds=1,
        preset="scenes-tiny",
        sizes=None,
        label="small",
    )
    found = replace(run(**plan), label="facc")
    [test] = {
        id(r["metrics"]["tests"]["test"]): r["metrics"]["tests"]["test"]
        for r in [found.records["+ Summary", 0]]
    }.values()
    assert (
        test["audio_to_image"]["n_queries"] > test["image_to_audio"]["n_queries"] == 12
        and len(R.unpack_ranks(test["audio_to_image"]["groups"])) == test["audio_to_image"]["n_queries"]
    )
    text = S.results_table(found)
    assert (
        text.count("| the paper |") == 4
        and text.count(" | 1 seed |") == 2
        and text.count("| no record |") == 2
    )


# --- the command


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--table", "4", "--set", "lr=1"], "add --label NAME"),
        (["--table", "4", "--sizes", "train=10"], "add --label NAME"),
        (["--table", "4", "--dry-run", "--set", "lrr=1"], "did you mean 'lr'"),
        (["--table", "4", "--dry-run", "--sizes", "trian=1"], "did you mean 'train'"),
        (["--table", "1", "--rows", "+ Recon", "--dry-run"], "no row '+ Recon'"),
        (["--table", "1", "--data", "coco", "--dry-run"], "data is one of"),
        (["--table", "4", "--seeds", "two", "--dry-run"], "seeds is a number"),
        (["--table", "2", "--data", "spokencoco"], "SpokenCOCO needs its folder"),
        (["--table", "1", "--data", "places=/nowhere/at/all"], "does not exist"),
        (["--table", "4", "--tune", "lr", "--dry-run"], "write field=value,value"),
    ],
)
def test_what_the_command_refuses(argv, words, tmp_path, capsys):
    where = ["--results", str(tmp_path / "r"), "--runs", str(tmp_path / "x")]
    assert run_command("sgmim_reproduce", [*argv, *where]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists() and not (tmp_path / "r").exists()


@pytest.mark.parametrize("argv", (["--table", "5"], [], ["--table", "4", "--budget", "time"]))
def test_what_argparse_refuses(argv):
    with pytest.raises(SystemExit):
        run_command("sgmim_reproduce", argv)


@pytest.mark.slow
def test_the_command_from_end_to_end(tmp_path, cache, capsys, monkeypatch):
    monkeypatch.setenv("SGMIM_CACHE", str(cache))
    argv = [
        "--table",
        "4",
        "--data",
        "scenes",
        "--label",
        "ci",
        "--rows",
        *TWO,
        "--sizes",
        "train=32",
        "captions=1",
        "dev=10",
        "test=14",
        "--set",
        *MICRO,
        "--from-scratch",
        "--results",
        str(tmp_path / "r"),
        "--runs",
        str(tmp_path / "x"),
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    assert run_command("sgmim_reproduce", [*argv, "--dry-run"]) == 0
    assert not (tmp_path / "r").exists() and "2 to run" in capsys.readouterr().out
    assert run_command("sgmim_reproduce", argv) == 0
    out = capsys.readouterr().out
    assert (
        out.count("minutes; table_4/ci/") == 2
        and "| + Summary | 1 seed |" in out
        and "too few seeds (1 of 4)" in out
    )
    assert R.check_results(tmp_path / "r") == []
    command = read_json(tmp_path / "r/table_4/ci/summary-seed0.json")["command"]
    assert (
        "--label ci --rows '+ Summary' --set image_size=32" in command
        and "--sizes train=32 captions=1 dev=10 test=14 --from-scratch --seeds 0," in command
    )


def test_equal_compute_is_equal_within_what_counts():
    """PyTorch's releases count operations a little differently: epochs that differ by less than `_NEAR` are
    the same run at equal compute, and at equal steps they are not."""

    def spec(budget):
        return P.plan_runs(P.TablePlan(4, rows=TWO[:1], budget=budget))[0]

    def why(budget, by):
        s = spec(budget)
        config = {**s.config, "train": {**s.config["train"], "epochs": s.train.epochs * (1 + by)}}
        return P._spec_stale_reasons(s, {"config": config})

    assert why("compute", 0.0) == why("compute", P._NEAR / 2) == why("compute", -P._NEAR / 2) == []
    assert "train.epochs" in why("compute", 2 * P._NEAR)[0] and "train.epochs" in why("steps", P._NEAR / 2)[0]


def test_a_falsified_record_is_run_again(tmp_path):
    name = "table_4/scenes/summary-seed1.json"
    record = read_json(ROOT / "results" / name)
    record["metrics"]["tests"]["test-seen"]["audio_to_image"]["recall_at_1"] = 40.0
    write_json(tmp_path / name, record)
    spec = P.plan_runs(P.TablePlan(4, rows=("+ Summary",), seeds=[1]), ROOT / "results")[0]
    kind, why = P._state_of(spec, tmp_path)
    assert kind == "stale" and any("its ranks give" in w for w in why)
