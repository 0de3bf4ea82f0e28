"Run records, the paper's tables, staleness, and what is concluded from records."

import ast
import copy
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from sgmim.core import DataError, read_json, run_record, write_json
from sgmim.paper import published as N
from sgmim.paper import records as R
from sgmim.paper import runs
from sgmim.paper import statistics as S

# --- the committed records


def committed():
    return sorted((ROOT / "results").rglob("*.json")) + sorted((ROOT / "sgmim/weights").glob("*/record.json"))


@pytest.mark.parametrize("path", committed(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_committed_record_is_complete(path):
    root = ROOT / "results" if ROOT / "results" in path.parents else ROOT / "sgmim/weights"
    assert R.check_file(path, root) == []


def demo():
    return read_json(ROOT / "sgmim/weights/scenes-tiny/record.json")


def edit(record, path, value):
    "The record with the value at a dotted path replaced (removed: None as `del`)."
    record = copy.deepcopy(record)
    *way, last = path.split(".")
    target = record
    for part in way:
        target = target[part]
    if value is KeyError:
        del target[last]
    else:
        target[last] = value
    return record


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("kind", KeyError, "kind is missing"),
        ("kind", "", "kind is empty"),
        ("seed", KeyError, "seed is missing"),
        ("seed", "0", "seed is '0', not int"),
        ("seed", True, "seed is True"),
        ("config", {}, "config is empty"),
        ("config.model", KeyError, "config.model is missing"),
        ("code", KeyError, "code.sgmim is missing"),
        ("code.commit", 7, "code.commit is 7"),
        ("hardware", {}, "hardware.processor is missing"),
        ("hardware.torch", None, "hardware.torch is None"),
        ("data", None, "data is None"),
        ("metrics", {}, "metrics is empty"),
        ("wall_seconds", float("nan"), "wall_seconds is nan"),
        ("steps", 10.5, "steps is 10.5"),
        ("finished", 20261123, "finished is 20261123"),
        ("command", "sgmim_demo --out /home/ann/runs", "a path of the machine"),
        ("data.train.name", "Corpus in /mnt/disk1/places", "a path of the machine"),
        ("metrics.test-seen.audio_to_image.recall_at_1", 95.0, "recalls fall"),
        ("metrics.test-seen.audio_to_image.recall_at_10", 120.0, "not numbers from 0 to 100"),
        ("metrics.test-seen.mean.recall_at_5", None, "not numbers"),
        ("metrics.training.losses.loss", float("inf"), "loss is inf"),
    ],
)
def test_a_faulty_record_is_found(path, value, words):
    assert R.check_record(demo()) == []
    problems = R.check_record(edit(demo(), path, value), "here")
    assert any(words in p for p in problems), problems
    assert all(p.startswith("here: ") for p in problems)


def test_files_that_are_no_records(tmp_path):
    for name, text in (
        ("cut.json", '{"kind": '),
        ("list.json", "[]"),
        ("nan.json", '{"kind": "settings", "why": "", "from": [], "set": {"lr": NaN}}'),
        ("from.json", '{"kind": "settings", "why": "", "from": ["gone.json"]}'),
        ("bare.json", '{"kind": "settings"}'),
        ("timings.json", '{"measured_on": "x", "log": "/home/ann/x"}'),
        ("fine.json", '{"measured_on": "x"}'),
    ):
        (tmp_path / name).write_text(text)
    problems = R.check_results(tmp_path)
    for words in (
        "not valid JSON",
        "list.json: not an object",
        "set.lr is nan",
        "chosen from gone.json",
        '"why" is missing',
        '"from" is missing',
        "log holds a path",
    ):
        assert any(words in p for p in problems), words
    assert not any("fine.json" in p for p in problems) and len(problems) == 7


# --- records that contradict themselves

SUMMARY = "table_4/scenes/summary-seed1.json"


def real(name=SUMMARY):
    return read_json(ROOT / "results" / name)


A2I, I2A = "metrics.tests.test-seen.audio_to_image", "metrics.tests.test-unseen.image_to_audio"


@pytest.mark.parametrize(
    "path, value, words",
    [
        (f"{A2I}.ranks", R.pack_ranks([1] * 1000), f"{A2I}.recall_at_1 is"),
        (f"{A2I}.ranks", R.pack_ranks([1] * 999), "not 1000 integers from 1"),
        (f"{A2I}.ranks", R.pack_ranks([1001] * 1000), "n_items = 1000"),
        (f"{A2I}.ranks", R.pack_ranks([0] * 1000), "not 1000 integers from 1"),
        (f"{A2I}.ranks", "1.5 " * 1000, "not 1000 integers from 1"),
        (f"{A2I}.ranks", KeyError, f"{A2I}.ranks is missing"),
        (f"{A2I}.ranks", None, "malformed"),
        (f"{A2I}.recall_at_1", 29.0, "its ranks give"),
        (f"{I2A}.recall_at_5", 50.0, f"{I2A}.recall_at_5 is 50.0"),
        (f"{I2A}.recall_at_10", 60.0, "its ranks give"),
        (f"{I2A}.median_rank", 3.0, "median_rank is 3.0"),
        (f"{A2I}.interval.recall_at_1", [20.0, 40.0], "interval.recall_at_1.0 is 20.0"),
        (f"{A2I}.interval.recall_at_10", 3.0, "its ranks give"),
        (f"{A2I}.n_queries", 500, "not 500 integers from 1"),
        (f"{A2I}.n_items", 2000, "is not the number of items of the other"),
        (f"{I2A}.n_items", 2000, "is not the number of items of the other"),
        (f"{A2I}.groups", R.pack_ranks([*range(999), 998]), "interval.recall_at_1."),
        (f"{A2I}.groups", R.pack_ranks(range(1, 1001)), "interval.recall_at_1."),
        (f"{A2I}.groups", R.pack_ranks(range(999)), "malformed"),
        ("metrics.tests.test-novel.mean.recall_at_1", 30.0, "mean.recall_at_1 is 30.0"),
        ("seed", 7, "seed is 7, but config.train.seed is 1"),
        ("spec.row", "+ Recon", "but config.model.reconstruction is"),
        (f"{I2A}.interval.recall_at_1", [20.0, 10.0], "the lower end must come first"),
        ("spec.budget", "compute", "summary-seed1-compute.json"),
        ("spec.label", "places", "table_4/places/"),
        ("spec.table", 1, "this is the record of table_1/"),
        ("metrics.best", {"step": 983}, "metrics.best.score is missing"),
        ("config.data", "scenes", "config.data is"),
        ("metrics.tests.test-seen", 5, "malformed"),
    ],
)
def test_a_falsified_record_is_found(path, value, words, tmp_path):
    target = tmp_path / SUMMARY
    target.parent.mkdir(parents=True)
    record = real()
    *way, last = path.split(".")
    *way, last = [int(p) if p.isdigit() else p for p in (*way, last)]
    part = record
    for p in way:
        part = part[p]
    if value is KeyError:
        del part[last]
    else:
        part[last] = value
    target.write_text(json.dumps(record))
    problems = R.check_results(tmp_path)
    assert any(words in p for p in problems) and all(p.startswith(SUMMARY + ": ") for p in problems), problems
    found = runs.records_of_table(4, "scenes", results=tmp_path)
    assert not found and problems[0] in found.stale["+ Summary", 1]


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("config.train.epochs", 9.0, "train.epochs: 9.0, now 2.25"),
        ("config.weights", "random", "weights: random, now missing"),
        ("config.protocol", 0, "protocol: 0, now 1"),
    ],
)
def test_a_record_of_another_configuration_does_not_count(path, value, words, tmp_path):
    write_json(tmp_path / "tuning/scenes.json", {**real("tuning/scenes.json"), "from": []})
    put(tmp_path, real())
    assert list(runs.records_of_table(4, "scenes", results=tmp_path).records) == [("+ Summary", 1)]
    put(tmp_path, edit(real(), path, value))
    assert R.check_results(tmp_path) == []
    found = runs.records_of_table(4, "scenes", results=tmp_path)
    assert not found and words in found.stale["+ Summary", 1]


def test_a_file_under_another_name_is_found(tmp_path):
    for name in (
        "table_4/scenes/summary-seed2.json",
        "table_4/scenes-lam32/summary-seed1.json",
        "table_4/scenes/recon-seed1.json",
        "summary-seed1.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(tmp_path / name, real())
        assert f"{name}: this is the record of {SUMMARY}" in R.check_results(tmp_path)


@pytest.mark.parametrize(
    "name, path, value, words",
    [
        ("demo.json", "metrics.test-seen.image_to_audio.recall_at_1", 24.25, "not the mean"),
        ("demo.json", "pairs_seen", None, "pairs_seen is None, not int"),
        ("eval-scenes-tiny.json", "metrics.test-seen.mean.recall_at_5", 90.0, "not the mean"),
    ],
)
def test_another_falsified_record_is_found(name, path, value, words):
    assert R.check_record(real(name)) == []
    problems = R.check_record(edit(real(name), path, value))
    assert any(words in p for p in problems), problems


def test_a_tuning_record_belongs_to_its_file(tmp_path):
    name = "tuning/scenes/summary-seed0-lam=32-mim-onset=1..json"
    (tmp_path / "tuning/scenes").mkdir(parents=True)
    write_json(tmp_path / name, real(name))
    assert R.check_results(tmp_path) == []
    (tmp_path / name).rename(tmp_path / "tuning/scenes/summary-seed1-lam=32.json")
    assert "this is the record of tuning/scenes/summary-seed0" in R.check_results(tmp_path)[0]


# --- the paper's numbers: check sums of the print, made from the paper's text by another program: the sum,
# and the sum by place, in tenths

SUMS = {
    (1, "ResDAVEnet [2]"): (7055, 47430, []),
    (1, "MILAN [19]"): (9344, 62260, []),
    (1, "FaST-VGS [7] †"): (9645, 64319, [2, 3, 10, 11]),
    (1, "VG-HuBERT (M)"): (9699, 64658, [0, 1, 4, 5, 6, 7, 8, 9, 11]),
    (1, "Ours"): (9864, 65626, []),
    (2, "ResDAVEnet [2]"): (2520, 9983, []),
    (2, "VG-HuBERT [6]"): (3644, 14127, []),
    (2, "FaST-VGS [7] †"): (3704, 14297, [0, 1, 3, 5]),
    (2, "VG-HuBERT (M)"): (3642, 14136, [4]),
    (2, "Ours"): (3770, 14586, [2]),
    (3, "FaST-VGS [7] †"): (3306, 12801, []),
    (3, "SpeechCLIP [8] †"): (3532, 13908, []),
    (3, "VG-HuBERT (M)"): (3306, 12912, []),
    (3, "Ours"): (3376, 13115, [1, 2, 3, 4, 5]),
    (4, "VG-HuBERT (M)"): (4849, 17693, []),
    (4, "+ Recon"): (4875, 17781, []),
    (4, "+ Speech-Guided"): (4871, 17727, []),
    (4, "+ Summary (Ours)"): (4932, 17957, []),
}


def test_the_papers_numbers_are_the_papers():
    assert {
        (n, name + (" †" if name in t.prior else "")) for n, t in N.PAPER.items() for name in t.systems
    } == set(SUMS)
    for (n, name), (total, weighted, underlined) in SUMS.items():
        t, name = N.PAPER[n], name.removesuffix(" †")
        values = [v for s in t.splits for v in t.systems[name][s]]
        assert (round(10 * sum(values)), round(10 * sum(i * v for i, v in enumerate(values, 1)))) == (
            total,
            weighted,
        ), name
        width = len(t.systems[name][t.splits[0]])
        assert [
            t.splits.index(s) * width + i
            for s in t.splits
            for i in range(width)
            if (name, s, i) in t.underlined
        ] == underlined, name


def test_recalls_of_the_paper_rise():
    for t in N.PAPER.values():
        for by_split in t.systems.values():
            for v in by_split.values():
                for a in range(0, len(v), 3):
                    assert v[a] < v[a + 1] < v[a + 2]


@pytest.mark.parametrize("split", ("test-seen", "test-unseen"))
@pytest.mark.parametrize("one, four", (("VG-HuBERT (M)", "VG-HuBERT (M)"), ("Ours", "+ Summary (Ours)")))
@pytest.mark.parametrize("k", range(3))
def test_table_4_is_the_mean_of_table_1(split, one, four, k):
    """Twelve relations: two systems that both tables have, two tests, three recalls; each of Table 4 is
    the mean of two numbers of Table 1, to rounding."""
    v = N.PAPER[1].systems[one][split]
    assert abs((v[k] + v[k + 3]) / 2 - N.PAPER[4].systems[four][split][k]) <= 0.05 + 1e-9


def test_rows_that_can_be_run_are_rows_of_the_model():
    from sgmim.models.sgmim import ROWS
    from sgmim.models.systems import OTHER_ROWS

    for n, t in N.PAPER.items():
        assert len(N.rows_of(n)) == len(t.systems)  # every row of every table has a model
        assert set(N.rows_of(n)) <= {*ROWS, *OTHER_ROWS, "VG-HuBERT"}
        for name in t.systems:
            assert f"| {name}" in N.paper_table(n)


# --- from records to words: made-up records of known skill


def fake(
    row,
    seed,
    skill,
    queries=200,
    label="scenes",
    table=4,
    budget="steps",
    captions=1,
    tests=("test-seen", "test-unseen", "test-novel"),
    spread=0.0,
):
    """A record whose hits are drawn: a query is as hard for every model; a seed moves the skill by up to
    `spread`."""
    hard = np.random.default_rng(5).normal(size=(2, queries * captions))
    skill = skill + spread * np.random.default_rng([9, seed]).normal()

    def side(z, groups, items):
        ranks = np.clip(np.exp(1.2 * (z - skill) + 1), 1, items).astype(int)
        return {
            "ranks": R.pack_ranks(ranks),
            "groups": groups,
            "queries": "q",
            "n_queries": len(ranks),
            "n_items": items,
            **{f"recall_at_{k}": 100 * float((ranks <= k).mean()) for k in R.KS},
        }

    noise = np.random.default_rng([seed, sum(map(ord, row))]).normal(size=hard.shape) * 0.2
    test = {
        "audio_to_image": side(
            (hard + noise)[0],
            None if captions == 1 else R.pack_ranks(np.repeat(np.arange(queries), captions)),
            queries,
        ),
        "image_to_audio": side((hard + noise)[1, :queries], None, queries * captions),
    }
    config = {"model": {"lam": 2.0}, "train": {"lr": 0.1, "seed": seed}, "data": {"kind": "scenes"}}
    dev = {
        "best": {"step": 1, "score": [1.0, 2.0]},
        "dev": [{"step": 1, "recall_at_1": 1.0, "recall_at_10": 2.0}],
    }
    r = run_record(
        "reproduce",
        config,
        seed,
        {"train": {"name": "made up", "fingerprint": "f"}},
        {"tests": {t: test for t in tests}, **dev},
        1800.0,
        spec={"table": table, "row": row, "label": label, "budget": budget, "changes": []},
        steps=10,
        pairs_seen=100,
    )
    return r


def as_planned(record, spec):
    "The made-up record with the configuration of a planned run, and as many steps as that has."
    steps = round(spec.train.epochs * (spec.sizes.train * spec.sizes.captions // spec.train.batch_size))
    return {
        **record,
        "config": spec.config,
        "preset": spec.preset,
        "steps": steps,
        "pairs_seen": steps * spec.train.batch_size,
    }


def verdict(e):
    return S.verdicts({0: e})[0]


def pair_verdicts(found):
    words = S.effect_verdicts(S.pair_effects(found))
    return {tuple(name.split(" − ")): verdict for name, verdict in words.items()}


def found_of(*records):
    return S.TableRecords(4, "scenes", records={(r["spec"]["row"], r["seed"]): r for r in records})


def test_a_made_up_record_is_complete():
    assert R.check_record(fake("+ Recon", 0, 0.0)) == []


def test_an_estimate_is_the_mean_of_the_records():
    records = [fake("+ Recon", s, 0.2, captions=3, spread=0.1) for s in range(3)]
    e = S.estimate(found_of(*records), "test-seen", "+ Recon")
    for k in R.KS:
        each = [
            np.mean([r["metrics"]["tests"]["test-seen"][side][f"recall_at_{k}"] for side in R.SIDES])
            for r in records
        ]
        assert (
            np.allclose(e[k].each, each)
            and np.isclose(e[k].value, np.mean(each))
            and e[k].low < e[k].value < e[k].high
        )
        assert np.isclose(e[k].sd, np.std(each, ddof=1))


def test_captions_of_one_image_are_drawn_together():
    """With five captions that are all found or all not, the interval is that of the images, not of five
    times as many queries."""
    g, rng = np.repeat(np.arange(100), 5), np.random.default_rng(0)
    v = (rng.uniform(size=100) < 0.5)[g][:, None] * 100.0

    def width(groups):
        return np.diff(R.bootstrap_interval([(v, groups)], n=2000), axis=0)[0, 0]

    assert 1.8 < width(g) / width(np.arange(500)) < 2.7


def test_the_interval_covers_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    for i in range(200):
        v = (rng.uniform(size=150) < 0.3)[:, None] * 100.0
        low, high = R.bootstrap_interval([(v, np.arange(150))], n=300, seed=i)
        covered += low[0] <= 30 <= high[0]
    assert 180 <= covered <= 199


def test_a_difference_is_paired_and_over_common_seeds():
    f = found_of(
        *[fake("VG-HuBERT (M)", s, 0.0, spread=0.5) for s in range(3)],
        *[fake("+ Summary", s, 0.15, spread=0.5) for s in range(1, 5)],
    )
    d = S.estimate(f, "test-seen", "+ Summary", "VG-HuBERT (M)")[1]
    assert len(d.each) == 2 and d.high - d.low < 12
    # what a seed does to both is gone
    assert np.std(d.each) < np.std(S.estimate(f, "test-seen", "+ Summary")[1].each)


@pytest.mark.parametrize(
    "skill, spread, words",
    (
        (0.4, 0.02, "significantly higher"),
        (-0.4, 0.02, "significantly lower"),
        (0.0, 0.02, "not significant"),
        (0.1, 1.5, "not significant"),
    ),
)
def test_verdicts(skill, spread, words):
    base = [fake("VG-HuBERT (M)", s, 0.0) for s in range(4)]
    other = [fake("+ Summary", s, skill, spread=spread) for s in range(4)]
    f = found_of(*base, *other)
    assert verdict(S.estimate(f, "test-seen", "+ Summary", "VG-HuBERT (M)")[1]) == words


@pytest.mark.parametrize("seeds", (1, 2, 3))
def test_too_few_seeds_resolve_nothing(seeds):
    f = found_of(
        *[
            fake(row, s, skill)
            for s in range(seeds)
            for row, skill in (("VG-HuBERT (M)", 0.0), ("+ Summary", 1.0))
        ]
    )
    e = S.estimate(f, "test-seen", "+ Summary", "VG-HuBERT (M)")[1]
    assert verdict(e) == f"too few seeds ({seeds} of 4)" and (e.both, e.p) == (None, None)
    text = S.differences_table(f)
    assert f"too few seeds ({seeds} of 4)" in text and "significant" not in text


def test_equal_differences_have_an_interval():
    """Seeds that agree to the last digit, and queries that all agree: an interval of no width would
    resolve anything."""
    for e in (S.Estimate(0.8, 0.8, 0.8, (0.8,) * 4, 0.05), S.Estimate(0.8, -1.0, 2.6, (0.8,) * 4)):
        assert e.both[1] - e.both[0] > 0
    assert (
        verdict(S.Estimate(0.8, -1.0, 2.6, (0.8,) * 4))
        == verdict(S.Estimate(0.0, 0.0, 0.0, (0.0,) * 4))
        == "not significant"
    )
    base = [fake("VG-HuBERT (M)", s, 0.0) for s in range(4)]
    same = [fake("+ Summary", s, 0.0) for s in range(4)]
    for a, b in zip(base, same, strict=True):
        b["metrics"]["tests"] = copy.deepcopy(a["metrics"]["tests"])
        side = b["metrics"]["tests"]["test-seen"]["audio_to_image"]
        ranks = side["ranks"].split()
        # one query more, with every seed
        side["ranks"] = " ".join(["1" if i == ranks.index("2") else v for i, v in enumerate(ranks)])
    e = S.estimate(found_of(*base, *same), "test-seen", "+ Summary", "VG-HuBERT (M)")[1]
    assert (
        e.each == pytest.approx((0.25,) * 4) and e.both[0] < 0 < e.both[1] and verdict(e) == "not significant"
    )


def test_differences_are_judged_together():
    "Of twenty differences with p = .03 none is significant; one by itself is."
    e = S.Estimate(3.0, 3 - 1.96 * 0.8, 3 + 1.96 * 0.8, (3.0,) * 4)
    assert 0.02 < e.p < 0.05 and verdict(e) == "significantly higher"
    assert set(S.verdicts({i: e for i in range(20)}).values()) == {"not significant"}
    clear = S.Estimate(-30.0, -31.0, -29.0, (-30.0,) * 4)
    judged = S.verdicts({"a": e, "b": clear, "c": None, "d": S.Estimate(9.0, 8.0, 10.0, (9.0,) * 2)})
    assert judged == {
        "a": "significantly higher",
        "b": "significantly lower",
        "c": "no record",
        "d": "too few seeds (2 of 4)",
    }
    assert S.verdicts({"a": e, "x": e, "b": clear})["a"] == "not significant"


@pytest.mark.slow
def test_the_rule_holds_over_a_family():
    "Where nothing differs, a table of five rows calls anything significant at most once in twenty."
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(400):
        d = rng.normal(size=(5, 4))
        wrong += any(
            v.startswith("significantly")
            for v in S.verdicts(
                {
                    i: S.Estimate(float(x.mean()), float(x.mean()), float(x.mean()), tuple(x))
                    for i, x in enumerate(d)
                }
            ).values()
        )
    assert wrong <= 30


def test_verdicts_are_about_one_endpoint():
    f = found_of(
        *[
            fake(row, s, skill)
            for s in range(4)
            for row, skill in (("VG-HuBERT (M)", 0.0), ("+ Summary", 0.4))
        ]
    )
    text = S.differences_table(f)
    [line] = [line for line in text.splitlines() if line.endswith("| significantly higher |")]
    assert line.startswith("| + Summary − VG-HuBERT (M) | 4 | +2.0 |")
    assert pair_verdicts(f)["+ Summary", "VG-HuBERT (M)"] == "significantly higher"


def test_equal_compute_is_not_compared_with_the_paper():
    f = found_of(
        *[
            fake(row, s, skill)
            for s in range(4)
            for row, skill in (("VG-HuBERT (M)", 0.4), ("+ Summary", 0.0))
        ]
    )
    compute = replace(f, budget="compute")
    assert "+2.0" in S.differences_table(f) and "+2.0" not in S.differences_table(compute)
    assert "the paper |" not in S.differences_table(compute)
    assert pair_verdicts(f) == pair_verdicts(compute)


def test_exchanging_the_rows_exchanges_the_verdict():
    f = found_of(
        *[
            fake(row, s, skill)
            for s in range(4)
            for row, skill in (("VG-HuBERT (M)", 0.4), ("+ Summary", 0.0))
        ]
    )
    assert pair_verdicts(f)["+ Summary", "VG-HuBERT (M)"] == "significantly lower"


def test_other_queries_are_refused():
    a, b = fake("VG-HuBERT (M)", 0, 0.0), fake("+ Summary", 0, 0.0)
    b["metrics"]["tests"]["test-seen"]["image_to_audio"]["queries"] = "r"
    with pytest.raises(DataError, match="their queries of test-seen differ"):
        S.estimate(found_of(a, b), "test-seen", "+ Summary", "VG-HuBERT (M)")


# --- between labels


def between(a, row_a, b, row_b, split, sides=R.SIDES):
    "The difference of a row among the records `a` and a row among `b`."
    return S.contrast(split, [(1, a, row_a), (-1, b, row_b)], sides)


def labelled(label, *records):
    return replace(found_of(*records), label=label)


def test_between_labels_it_is_paired_over_common_seeds():
    a = labelled("scenes-x", *[fake("+ Summary", s, 0.3, spread=0.5) for s in (1, 2, 3)])
    b = found_of(*[fake("+ Summary", s, 0.0, spread=0.5) for s in (0, 1, 2)])
    d = between(a, "+ Summary", b, "+ Summary", "test-seen")
    both = [
        [
            np.mean(
                [
                    f.records["+ Summary", s]["metrics"]["tests"]["test-seen"][side]["recall_at_1"]
                    for side in R.SIDES
                ]
            )
            for s in (1, 2)
        ]
        for f in (a, b)
    ]
    assert np.allclose(d[1].each, np.subtract(*both)) and d[1].low < d[1].value < d[1].high
    assert between(b, "+ Summary", a, "+ Summary", "test-seen")[1].value == -d[1].value
    same = between(b, "+ Summary", b, "+ Summary", "test-seen")[10]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_within_a_label_it_is_the_same_as_before():
    f = found_of(
        *[
            fake(row, s, skill)
            for s in range(3)
            for row, skill in (("VG-HuBERT (M)", 0.0), ("+ Summary", 0.2))
        ]
    )
    for side in (R.SIDES, R.SIDES[:1]):
        assert S.estimate(f, "test-seen", "+ Summary", "VG-HuBERT (M)", side) == between(
            f, "+ Summary", f, "VG-HuBERT (M)", "test-seen", side
        )


def test_other_data_or_no_common_seed_or_test_is_refused():
    a, b = labelled("scenes-x", fake("+ Summary", 0, 0.0)), found_of(fake("+ Summary", 0, 0.0))
    # as many queries, with the same numbers, of other data
    a.records["+ Summary", 0]["data"]["test-seen"] = {"name": "x", "fingerprint": "other"}
    with pytest.raises(
        DataError,
        match=r"\+ Summary \(scenes-x\) and \+ Summary \(scenes\) cannot be compared: their queries of test-",
    ):
        between(a, "+ Summary", b, "+ Summary", "test-seen")
    between(a, "+ Summary", b, "+ Summary", "test-novel")
    with pytest.raises(
        DataError,
        match=r"\+ Summary \(scenes-x\) and \+ Recon \(scenes\) are missing or have no seed in common",
    ):
        between(a, "+ Summary", b, "+ Recon", "test-seen")
    with pytest.raises(DataError, match="do not all have the test test-other"):
        between(a, "+ Summary", b, "+ Summary", "test-other")


OURS, BOTH = ("+ Summary",), ("VG-HuBERT (M)", "+ Summary")


def test_an_ablation_with_a_baseline_of_its_own_is_held_against_it():
    """All has become better, the row no more than the baseline: a change, and no gain; and a gain of the
    base that is gone."""
    base = found_of(
        *[
            fake(row, s, skill)
            for s in range(4)
            for row, skill in (("VG-HuBERT (M)", 0.0), ("+ Summary", 0.4))
        ]
    )
    longer = labelled("scenes-x", *[fake(row, s, 0.8) for s in range(4) for row in BOTH])

    def effect(name, asked, found=longer):
        return S.ablation_effects(base, {"x": replace(found, asked=asked)}, name)["x"]["test-seen"]

    change, gain, more = (effect(name, BOTH) for name in ("change", "gain", "more"))
    assert [verdict(e) for e in (change, gain, more)] == [
        "significantly higher",
        "not significant",
        "significantly lower",
    ]
    assert verdict(effect("gain", OURS)) == "significantly higher"
    assert effect("more", OURS).each == pytest.approx(effect("change", OURS).each)
    assert np.isclose(more.value, gain.value - S.gains(base)["+ Summary"]["test-seen"].value)
    lacks = labelled("scenes-x", *[r for (row, _), r in longer.records.items() if row == "+ Summary"])
    # the base's baseline is no substitute
    assert effect("gain", BOTH, lacks) is None
    text = S.effects_table({"x: change": {"test-seen": change}, "x: gain": {"test-seen": gain}})
    lines = text.splitlines()
    assert lines[2].startswith("| x: change | 4 | +") and lines[2].endswith("| significantly higher |")
    assert lines[3].endswith("| not significant |")


def test_an_ablation_without_records_has_no_numbers():
    base = found_of(*[fake(row, s, 0.0) for s in range(2) for row in BOTH])
    stale = {("+ Summary", 0): ["train.lr: 0.1, now 0.2"]}
    none = {"half": S.TableRecords(4, "scenes-x", stale=stale, asked=OURS)}
    for effect in ("gain", "change", "more"):
        table = S.effects_table(S.ablation_effects(base, none, effect))
        assert table.endswith("| half | no record |  |  |  | no record |")
    assert S.excluded(base, *none.values()) == (
        "**Stale or broken** records, left out: scenes-x, + Summary, seed 0: train.lr: 0.1, now 0.2"
    )
    assert S.effect_verdicts({"a": {"test-seen": None}}) == {"a": "no record"}
    nothing = S.TableRecords(4, "scenes")
    assert S.gains(nothing) == {}
    effects = S.ablation_effects(nothing, none)
    assert effects == {"half": {"test-seen": None, "test-unseen": None}}
    with pytest.raises(DataError, match="no record of any of half"):
        S.forest_figure(effects)


def test_the_forest_marks_what_is_significant():
    up = S.Estimate(3.0, 2.5, 3.5, (2.9, 3.1) * 2)
    open_ = S.Estimate(1.0, -1.0, 3.0, (0.9, 1.1) * 2)
    one = S.Estimate(9.0, 7.0, 11.0, (9.0,))
    fig = S.forest_figure({"a": {"t": up, "u": open_}, "b": {"t": one, "u": None}})
    points = {
        (ax.get_title(), float(p.get_xdata()[0])): p.get_markerfacecolor()
        for ax in fig.axes
        for p in ax.lines
        if p.get_marker() == "o"
    }
    assert (
        set(points) == {("t", 3.0), ("t", 9.0), ("u", 1.0)}
        and points["u", 1.0] == points["t", 9.0] == "white" != points["t", 3.0]
    )
    assert [t.get_text() for ax in fig.axes for t in ax.texts] == ["no record"] and [
        t.get_text() for t in fig.axes[0].get_yticklabels()
    ] == ["a", "b"]


# --- folders


def put(folder, record):
    write_json(
        folder
        / f"table_{record['spec']['table']}"
        / record["spec"]["label"]
        / R.record_name(record["spec"]["row"], record["seed"], record["spec"]["budget"]),
        record,
    )


def planned(row, seed, skill=0.0, results="none", **plan):
    "A made-up record that the plan would make now."
    given = {"label": "scenes", **plan}
    spec = runs.plan_runs(runs.TablePlan(4, rows=(row,), seeds=[seed], **plan), results)[0]
    return as_planned(
        fake(row, seed, skill, **{k: given[k] for k in ("label", "budget") if k in given}), spec
    )


def test_the_records_of_a_folder(tmp_path):
    summary = planned("+ Summary", 0)
    summary["spec"]["table"] = 1  # the same run, made for another table
    other = edit(planned("+ Recon", 1), "config.train.lr", 0.1)
    near = planned("+ Speech-Guided", 0)  # near enough at equal compute, but made at equal steps
    near["config"]["train"]["epochs"] *= 1.01
    made = (planned("+ Recon", 0), other, planned("+ Recon", 0, budget="compute"), summary, near)
    for r in (*made, planned("+ Summary", 1, label="other")):
        put(tmp_path, r)

    def read(**given):
        return runs.records_of_table(4, "scenes", results=tmp_path, **given)

    (tmp_path / "table_4/scenes/summary-seed3.json").write_text('{"kind": "reproduce", "see')
    f = read()
    assert set(f.records) == {("+ Recon", 0), ("+ Summary", 0)}
    assert f.stale["+ Recon", 1] == ["train.lr: 0.1, now 0.001"]
    assert "not valid JSON" in f.stale["+ Summary", 3][0] and len(f.stale) == 3
    # a run that costs as much at equal steps is the run at equal compute
    assert set(read(budget="compute").records) == {("+ Recon", 0), ("+ Summary", 0)}
    assert set(runs.records_of_table(1, "scenes", results=tmp_path).records) == {("+ Summary", 0)}
    assert not read(label="nothing") and read(label="nothing").asked == f.asked
    text = S.results_table(f)
    assert (
        "**Stale or broken** records, left out: scenes, + Speech-Guided, seed 0: train.epochs" in text
        and "scenes, + Recon, seed 1: train.lr: 0.1" in text
        and "table_4/scenes/summary-seed3.json" in text
        and "| + Recon | 1 seed |" in text
    )


def test_the_picture_draws_every_row_and_seed():
    f = found_of(*[fake(row, s, 0.1) for s in range(3) for row in ("VG-HuBERT (M)", "+ Recon")])
    fig = S.forest_figure(S.recalls(f, k=10), xlabel="R@10", judge=False)
    assert [ax.get_title() for ax in fig.axes] == ["test-seen", "test-unseen", "test-novel"]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["VG-HuBERT (M)", "+ Recon"]
    for ax in fig.axes:
        assert [len(c.get_offsets()) for c in ax.collections] == [3, 3]
        assert [p.get_xdata()[0] for p in ax.lines if p.get_marker() == "o"] == [
            S.estimate(f, ax.get_title(), row)[10].value for row in f.rows
        ]


# --- the pages

PAGES = sorted((ROOT / "nbs/paper").glob("table_*.ipynb"))


def show(page, folder, monkeypatch):
    "What a page shows, cell by cell, with its records in `folder`."
    monkeypatch.setenv("SGMIM_RESULTS", str(folder))
    shown, names = [], {}
    for cell in json.loads(page.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse(source)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, page.name, "exec"), names)
        if last is not None:
            out = eval(compile(ast.Expression(last.value), page.name, "eval"), names)
            shown.append(getattr(out, "data", None) if isinstance(getattr(out, "data", None), str) else out)
    return shown


def text_of(shown):
    return "\n\n".join(s for s in shown if isinstance(s, str))


def test_there_are_four_pages():
    assert [p.stem for p in PAGES] == [f"table_{n}" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_without_records_a_page_says_so(page, tmp_path, monkeypatch):
    n, shown = int(page.stem[-1]), show(page, tmp_path, monkeypatch)
    text = text_of(shown)
    assert shown[0] == N.paper_table(n) and text.count("no record") >= 4
    papers = {f"{v:.1f}" for by in N.PAPER[n].systems.values() for row in by.values() for v in row}
    assert set(re.findall(r"\d+\.\d+", re.sub(r"<[^>]+>", "", text))) <= papers, (
        "a number that is neither measured nor the paper's"
    )
    for name in N.PAPER[n].systems:
        assert f"| {name}" in text
    assert not any(hasattr(s, "savefig") for s in shown)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_with_records_a_page_shows_them(page, tmp_path, monkeypatch):
    from sgmim.models.sgmim import ROWS

    for row, skill in zip(ROWS, (0.0, 0.0, 0.02, 0.5), strict=True):
        for seed in range(4):
            r = fake(row, seed, skill)
            plan = runs.TablePlan(4, rows=(row,), seeds=[seed])
            put(tmp_path, as_planned(r, runs.plan_runs(plan, tmp_path)[0]))
    shown = show(page, tmp_path, monkeypatch)
    text, n = text_of(shown), int(page.stem[-1])
    assert "| + Summary | 4 seeds |" in text and "| significantly higher |" in text
    assert any(hasattr(s, "savefig") for s in shown) == (n == 4)
    value = S.estimate(
        runs.records_of_table(4, "scenes", results=tmp_path),
        "test-novel",
        "+ Summary",
        sides=R.SIDES if n == 4 else R.SIDES[:1],
    )[1]
    assert S.plus_minus(value) in text
    for f in tmp_path.glob("table_4/scenes/*seed2.json"):  # another rate: the record is of another plan
        r = read_json(f)
        write_json(f, {**r, "config": {**r["config"], "train": {**r["config"]["train"], "lr": 0.5}}})
    text = text_of(show(page, tmp_path, monkeypatch))
    assert (
        "| + Summary | 3 seeds |" in text
        and "too few seeds (3 of 4)" in text
        and "**Stale or broken**" in text
        and "train.lr: 0.5, now 0.001" in text
    )


# --- the page about ablations

WHY = ROOT / "nbs/tutorials/what_reconstruction_adds.ipynb"


def test_without_records_the_page_about_ablations_says_so(tmp_path, monkeypatch):
    shown = show(WHY, tmp_path, monkeypatch)
    text = text_of(shown)
    assert (
        text.count("no record") + text.count("No record") >= 25
        and "sgmim_analyse mistakes --runs-of scenes" in text
        and not any(hasattr(s, "savefig") for s in shown)
    )
    for command in (
        "--label scenes-mask50 --rows '+ Summary' --set mask_ratio=.5 lam=32. --seeds 4\n",
        "--from-scratch --seeds 4\n",
        "--sizes train=1750 --seeds 4\n",
    ):
        assert command in text
    papers = shown[0]
    assert "+2.0 | +2.3 |" in papers
    assert not re.search(r"[+-]\d+\.\d|\[[+-]?\d", text.replace(papers, "")), "a number without a record"
    assert "The base has λ = 2, " in text and "**no record** of a choice on dev" in text


def test_with_records_the_page_about_ablations_shows_them(tmp_path, monkeypatch):
    def make(row, seed, skill, label="scenes", **plan):
        plan = runs.TablePlan(4, rows=(row,), seeds=[seed], label=label, **plan)
        r = fake(row, seed, skill, label=label, spread=0.01)
        put(tmp_path, as_planned(r, runs.plan_runs(plan, tmp_path)[0]))

    for seed in range(4):
        make("VG-HuBERT (M)", seed, 0.0)
        make("+ Recon", seed, 0.0)
        make("+ Summary", seed, -0.5)
        make("+ Summary", seed, 0.5, "scenes-mask90", changes=("mask_ratio=.9", "lam=32."))
        # not what the page is about
        make("+ Summary", seed, 0.5, "scenes-mask50", changes=("mask_ratio=.4", "lam=32."))
        for row in (S.BASELINE, "+ Summary"):
            make(
                row,
                seed,
                0.9,
                "scenes-few",
                changes=("epochs=9.", "mim_onset=4.", "eval_every=2.", "lam=32."),
                sizes=runs.DemoData(train=1750),
            )
    shown = show(WHY, tmp_path, monkeypatch)
    text = text_of(shown)
    assert sum(hasattr(s, "savefig") for s in shown) == 1
    [row] = [line for line in text.splitlines() if line.startswith("| + Summary | 4 | -")]
    assert row.endswith("| significantly lower |")
    assert "| nine tenths hidden: gain | 4 | +" in text and "| half hidden: gain | no record |" in text
    assert "model.mask_ratio: 0.4, now 0.5" in text
    assert "| a quarter of the data: gain minus the base's gain | 4 | +" in text


# --- what the pages say by hand

BASE, COMPUTE = S.BASELINE, "compute"
STEPS_OF = [("+ Recon", BASE), ("+ Speech-Guided", BASE), ("+ Summary", BASE)]
NEXT = [("+ Speech-Guided", "+ Recon"), ("+ Summary", "+ Speech-Guided")]
# page, what it says, budget of the records of Table 4 on the embedded corpus, pairs of rows, sign
CLAIMS = [
    ("index", "at equal steps no row is significantly better", "steps", STEPS_OF, 0),
    ("index", "At equal compute contrastive learning alone is significantly better", COMPUTE, STEPS_OF, -1),
    *(
        (
            f"paper/table_{n}",
            "*+ Summary* does not differ significantly from *VG-HuBERT (M)*",
            "steps",
            [STEPS_OF[2]],
            0,
        )
        for n in (1, 2, 3)
    ),
    ("paper/table_4", "no row differs significantly in R@1 on test-seen from", "steps", STEPS_OF + NEXT, 0),
    ("paper/table_4", "is significantly better in R@1 on test-seen than each row", COMPUTE, STEPS_OF, -1),
    ("paper/table_4", "No row with reconstruction differs significantly", COMPUTE, NEXT, 0),
    ("tutorials/reading_the_results", "At equal steps no row gains significantly", "steps", STEPS_OF, 0),
    (
        "tutorials/reading_the_results",
        "the baseline is significantly better than each",
        COMPUTE,
        STEPS_OF,
        -1,
    ),
    (
        "tutorials/what_reconstruction_adds",
        "No row gains significantly over the baseline",
        "steps",
        STEPS_OF,
        0,
    ),
    ("tutorials/what_reconstruction_adds", "do not gain significantly in R@1", "steps", STEPS_OF, 0),
]
SIGN = {"significantly higher": 1, "significantly lower": -1, "not significant": 0}


def prose(page):
    cells = json.loads((ROOT / f"nbs/{page}.ipynb").read_text())["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


@pytest.fixture(scope="module")
def verdicts_of():
    found = {b: runs.records_of_table(4, "scenes", b, ROOT / "results") for b in ("steps", COMPUTE)}
    return {b: pair_verdicts(f) for b, f in found.items()}


@pytest.mark.parametrize("page, words, budget, pairs, sign", CLAIMS)
def test_what_a_page_says_has_the_sign_of_its_records(page, words, budget, pairs, sign, verdicts_of):
    assert words in prose(page) and "2026-11-30" in prose(page)
    assert {SIGN[verdicts_of[budget][pair]] for pair in pairs} == {sign}


def interval_of(name, *path):
    value = read_json(ROOT / "results" / name)["metrics"]["test-seen"]
    for part in path:
        value = value[part]
    return value["interval"]


GUIDED = ("+ Speech-Guided", "+ Summary")
# what the page says; the record; the paths of numbers with intervals; the bounds within which they all lie
MEASURED = [
    (
        "The decoder uses the caption",
        "dependence-scenes-tiny",
        [("overall", f"{w}_minus_right") for w in ("wrong", "none")],
        0,
        9,
    ),
    ("*+ Summary* uses the caption here too", "dependence-scenes", [("overall", "wrong_minus_right")], 0, 9),
    ("significantly worse than *+ Recon*", "dependence-scenes", [("overall", "alone_minus_right")], -9, 0),
    (
        "less than 1 % of the norm",
        "gradients-scenes",
        [(row, "parts", f"{side} encoder", "ratio") for row in GUIDED for side in ("audio", "image")],
        0,
        0.01,
    ),
    (
        "the cosine is positive",
        "gradients-scenes",
        [(row, "parts", "audio encoder", "cosine") for row in GUIDED],
        0,
        1,
    ),
    (
        "the cosine is negative",
        "gradients-scenes",
        [(row, "parts", "image encoder", "cosine") for row in GUIDED],
        -1,
        0,
    ),
]


@pytest.mark.parametrize("words, name, paths, low, high", MEASURED)
def test_what_the_page_about_ablations_says_is_in_its_records(words, name, paths, low, high):
    assert words in prose("tutorials/what_reconstruction_adds")
    for path in paths:
        a, b = interval_of(f"{name}.json", *path)
        assert low < a <= b < high


def test_the_other_sentences_of_the_page_about_ablations():
    text = prose("tutorials/what_reconstruction_adds")
    assert "Each gain that the paper reports lies above the interval measured here" in text
    for row, of in S.gains(runs.records_of_table(4, "scenes", results=ROOT / "results")).items():
        for t in ("test-seen", "test-unseen"):
            assert of[t].both[1] < N.paper_difference(4, t, row, BASE)[1]
    assert "No row makes significantly fewer or more mistakes" in text
    rows = read_json(ROOT / "results/mistakes-scenes.json")["metrics"]["test-seen"]
    for of in list(rows.values())[1:]:
        assert (
            of["same"]["as_first"]["value"] >= 0.945 and 0.255 < of["same"]["between_seeds"]["value"] < 0.265
        )
        for kind in of.values():
            if e := kind.get("of_all_less_base"):
                assert e["interval"][0] <= 0 <= e["interval"][1]


@pytest.mark.parametrize("table", (1, 2, 3))
def test_what_the_pages_say_about_the_other_systems_is_in_their_records(table):
    text = prose(f"paper/table_{table}")
    assert "score above chance (an R@10 of 1 %) and far below *VG-HuBERT (M)*" in text
    found = runs.records_of_table(table, "scenes", results=ROOT / "results").records
    ten = {row: [] for row, _ in found}
    for (row, _), record in found.items():
        ten[row].append(record["metrics"]["tests"]["test-seen"]["mean"]["recall_at_10"])
    others = ten.keys() - {BASE, "+ Summary"}
    assert len(others) == (2 if table == 3 else 3) and {len(ten[row]) for row in others} == {3}
    for row in others - {"MILAN-style"}:
        assert 1.5 < min(ten[row]) and max(ten[row]) < np.mean(ten[BASE]) / 2
    if table == 1:
        assert "*MILAN-style* is hardly better than chance" in text and np.mean(ten["MILAN-style"]) < 3


def test_what_the_page_about_voices_says_is_in_its_records():
    text, weights = prose("evaluation/08_spoken_words"), ROOT / "sgmim/weights/scenes-voices"
    assert "significantly more often than by chance" in text and "about 5 points below" in text
    words, record = read_json(weights / "spoken_words.json"), read_json(weights / "record.json")
    for scores in words["metrics"].values():
        assert scores["best"]["interval"][0] > scores["best"]["chance"]
    first = read_json(ROOT / "results/spoken-words-voices.json")["metrics"]
    best = [scores["people"]["best"]["value"] for scores in (first, words["metrics"])]
    assert "in 43 % of the cases" in text and "it was 22 %" in text
    assert [round(100 * value) for value in best] == [22, 43]
    assert "the best picture shows it in 43 % of the cases" in prose("tutorials/first_run")
    assert f"{words['metrics']['people']['queries']} single-word recordings" in prose("index")
    steps = [read_json(ROOT / "results/tuning/voices.json")["steps"], record["steps"]]
    assert "two stages of {:,} and {:,} steps".format(*steps) in text
    ten = [record["metrics"][f"test-{name}"]["mean"]["recall_at_10"] for name in ("seen", "unseen-kind")]
    assert round(ten[0] - ten[1]) == 5
    tiny = read_json(ROOT / "sgmim/weights/scenes-tiny/spoken_words.json")["metrics"]
    found = {name for name, s in tiny.items() if s["best"]["interval"][0] > s["best"]["chance"]}
    assert "not right significantly more often than by chance" in text
    assert found == {"en-us-m3", "en-us-m8", "piper-joe"}


def test_the_records_beside_the_weights_are_of_these_weights():
    from sgmim.models.pretrained import open_checkpoint, state_digest

    for name in ("scenes-tiny", "scenes-voices"):
        folder = ROOT / "sgmim/weights" / name
        digest = state_digest(open_checkpoint(folder))
        for file in ("spoken_words.json", "search_threshold.json"):
            assert read_json(folder / file)["config"]["model"] == digest


@pytest.mark.slow
def test_without_benchmarks_the_page_about_scaling_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SGMIM_RESULTS", str(tmp_path))
    cells = {
        c["id"]: "".join(c["source"])
        for c in json.loads((ROOT / "nbs/tutorials/scaling_up.ipynb").read_text())["cells"]
    }
    names = {}
    for key in ("5145dc32", "80edddec", "a9444fbd", "26246fd9", "dd1de80f", "f3c32cbe"):
        exec(cells[key], names)
    said = capsys.readouterr().out
    assert (
        "No record: python benchmarks/shards.py" in said and "No record: python benchmarks/loader.py" in said
    )
    assert "kB per pair" not in said and "one process delivers" not in said and "10^9" in said


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda r: r.update(seed=7), "seed is 7, but config.train.seed is 0"),
        (lambda r: r["spec"].update(row="+ Recon"), "spec.row is '[+] Recon'"),
        (lambda r: r["metrics"]["best"].update(step=1), "metrics.best is"),
        (lambda r: r["metrics"]["best"]["score"].__setitem__(0, 99.0), "metrics.best is"),
    ],
)
def test_a_record_of_another_seed_row_or_best_model_is_refused(change, words):
    record = read_json(ROOT / "results/table_4/scenes/summary-seed0.json")
    assert R.check_record(record) == []
    change(record)
    assert re.search(words, "\n".join(R.check_record(record)))


def test_a_value_outside_its_interval_is_refused():
    record = read_json(ROOT / "results/grounding-scenes-tiny.json")
    estimate = record["metrics"]["test-seen"]["kind"]["thing"]["pointing"]["model"]
    estimate["value"] = estimate["interval"][1] + 1
    assert "outside of its interval" in "\n".join(R.check_record(record))


@pytest.mark.slow
def test_a_run_that_is_copied_to_another_seed_does_not_count(tmp_path):
    from sgmim.paper.runs import records_of_table

    shutil.copytree(ROOT / "results", tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "table_4/scenes"
    record = read_json(folder / "summary-seed0.json")
    record["seed"] = record["spec"]["seed"] = record["config"]["train"]["seed"] = 1
    write_json(folder / "summary-seed1.json", record)
    faults = R.check_results(tmp_path)
    assert faults and all("identical ranks in" in fault for fault in faults)
    found = records_of_table(4, "scenes", results=tmp_path)
    assert {seed for row, seed in found.stale if row == "+ Summary"} == {0, 1}
