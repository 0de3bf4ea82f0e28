"""The floor, 00: files that are whole or absent, strict configurations, checkpoints that are checked,
seeds, run records."""

import contextlib
import dataclasses
import json
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, listing, micro, run_python
from safetensors.torch import save as safetensors_bytes
from torch import nn

import sgmim
from sgmim.core import (
    CheckpointError,
    ConfigError,
    DataError,
    SgmimError,
    atomic_write,
    config_from_dict,
    config_to_dict,
    load_checkpoint,
    load_state,
    pick_device,
    read_json,
    rng_for,
    run_record,
    save_checkpoint,
    set_seed,
    stable_hash,
    write_json,
)
from sgmim.models.sgmim import SGMIM, SGMIMConfig, load_model, paper, save_model, scenes_tiny
from sgmim.train import TrainConfig
from sgmim.training.pretrain import HubertPretraining, MaePretraining

# ---- files


def fault(path, content=b"new"):
    with pytest.raises(SgmimError) as e:
        with atomic_write(path) as f:
            f.write(content)
    assert str(path) in str(e.value) and "Check the permissions" in str(e.value)
    return str(e.value)


def test_write_below_a_file(tmp_path):
    (tmp_path / "file").write_text("in the way")
    fault(tmp_path / "file" / "folder" / "result.json")
    assert listing(tmp_path) == {"file": b"in the way"}


def test_write_over_a_folder(tmp_path):
    (tmp_path / "result.json").mkdir()
    fault(tmp_path / "result.json")
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"] and not list(
        (tmp_path / "result.json").iterdir()
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_write_where_it_is_forbidden(tmp_path):
    tmp_path.chmod(0o555)
    try:
        assert "Permission denied" in fault(tmp_path / "result.json")
    finally:
        tmp_path.chmod(0o755)
    assert not list(tmp_path.iterdir())


FULL_DISK = """
import resource, sys
from pathlib import Path
from sgmim.core import SgmimError, atomic_write, write_json
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))    # from here on no file can grow beyond 4 KiB
def big():
    with atomic_write(folder/'old.bin') as f:
        for _ in range(64): f.write(bytes(1024))
for write, name in ((big, 'old.bin'), (lambda: write_json(folder/'new.json', list(range(5000))), 'new.json')):
    try: write()
    except SgmimError as e: assert str(folder/name) in str(e) and 'free disk space' in str(e), e
    else: sys.exit(f'{name} was written')
write_json(folder/'small.json', 'what fits is written')
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_write_to_a_full_disk(tmp_path):
    (tmp_path / "old.bin").write_bytes(b"old content")
    done = run_python(FULL_DISK, tmp_path)
    assert done.returncode == 0, done.stderr
    assert listing(tmp_path) == {"old.bin": b"old content", "small.json": b'"what fits is written"\n'}


@pytest.mark.parametrize("error", [ValueError("oops"), KeyboardInterrupt()])
def test_write_that_is_broken_off(tmp_path, error):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(type(error)) as e:
        with atomic_write(tmp_path / "a") as f:
            f.write(b"half")
            raise error
    assert e.value is error  # an error of the writer is not ours to reword
    assert listing(tmp_path) == {"a": b"old"}


def test_write_that_is_whole(tmp_path):
    with atomic_write(tmp_path / "deep" / "er" / "a.txt", "w") as f:
        f.write("größer")
        assert not (tmp_path / "deep" / "er" / "a.txt").exists()  # not before the block ends
    assert listing(tmp_path) == {"deep/er/a.txt": "größer".encode()}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a umask")
@pytest.mark.parametrize("mask", ["022", "077"])
def test_results_are_as_readable_as_other_files(tmp_path, mask):
    code = (
        "import os, sys; os.umask(int(sys.argv[2], 8)); from sgmim.core import write_json;"
        ' write_json(sys.argv[1] + "/a", 1); open(sys.argv[1] + "/b", "w").close()'
    )
    assert run_python(code, tmp_path, mask).returncode == 0
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize(
    "content,said",
    [
        (None, "does not exist"),
        (b"", "line 1, column 1"),
        (b'{"a": 1,\n "b": [2, 3', "line 2"),
        (b'{"a": 1} x', "column 10"),
        ('{"ä": 1}'.encode("latin1"), "cannot read"),
    ],
)
def test_unreadable_json(tmp_path, content, said):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as e:
        read_json(path)
    assert str(path) in str(e.value) and said in str(e.value)


def test_a_folder_is_no_json(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_json(tmp_path)


def test_json_round_trip(tmp_path):
    write_json(
        tmp_path / "a",
        {
            "array": np.arange(3),
            "number": np.float32(0.5),
            "tensor": torch.eye(2),
            "path": tmp_path,
            "nan": float("nan"),
            "inf": [np.inf],
            "config": TrainConfig(),
            3: (1, 2),
            "ü": "ü",
        },
    )
    assert read_json(tmp_path / "a") == {
        "array": [0, 1, 2],
        "number": 0.5,
        "tensor": [[1, 0], [0, 1]],
        "path": str(tmp_path),
        "nan": None,
        "inf": [None],
        "config": config_to_dict(TrainConfig()),
        "3": [1, 2],
        "ü": "ü",
    }
    before = listing(tmp_path)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a", object())
    assert listing(tmp_path) == before


# ---- configurations


@dataclasses.dataclass(frozen=True)
class Settings:
    needed: int
    also: str
    share: float = 0.5
    sizes: tuple = (1, (2, 3))
    on: bool = True
    count: int = 3
    name: str = "a"


GOOD = {"needed": 1, "also": "x"}


def test_config_accepts_what_json_makes_of_it():
    c = config_from_dict(Settings, json.loads(json.dumps({**GOOD, "share": 1, "sizes": [4, [5, 6]]})))
    assert c == Settings(1, "x", 1.0, (4, (5, 6))) and type(c.share) is float


@pytest.mark.parametrize(
    "bad,said",
    [
        ({"shares": 0.1}, "no field 'shares'; did you mean 'share'?"),
        ({"colour": 1}, "no field 'colour'; it has: needed, also, share"),
        ({"share": "0.1"}, "'share' must be float, got str"),
        ({"share": None}, "'share' must be float"),
        ({"share": True}, "'share' must be float"),
        ({"count": 2.5}, "'count' must be int"),
        ({"count": True}, "'count' must be int"),
        ({"count": None}, "'count' must be int"),
        ({"on": 1}, "'on' must be bool"),
        ({"on": "no"}, "'on' must be bool"),
        ({"name": 3}, "'name' must be str"),
        ({"sizes": 3}, "'sizes' must be tuple"),
        ({"sizes": "34"}, "'sizes' must be tuple"),
    ],
)
def test_config_refuses(bad, said):
    with pytest.raises(ConfigError) as e:
        config_from_dict(Settings, {**GOOD, **bad}, where="my.json")
    assert str(e.value).startswith("my.json") and said in str(e.value)


def test_config_names_what_is_missing():
    with pytest.raises(ConfigError, match="needs needed, also"):
        config_from_dict(Settings, {})
    with pytest.raises(ConfigError, match="mapping"):
        config_from_dict(Settings, [("needed", 1)])


REAL = [TrainConfig(), paper(), scenes_tiny(), HubertPretraining(), MaePretraining()]


@pytest.mark.parametrize("config", REAL, ids=lambda c: type(c).__name__)
def test_real_configs_survive_json(config, tmp_path):
    write_json(tmp_path / "c.json", config)
    back = config_from_dict(type(config), read_json(tmp_path / "c.json"))
    assert back == config and [type(v) for v in vars(back).values()] == [
        type(v) for v in vars(config).values()
    ]


@pytest.mark.parametrize(
    "cls,field", [(c, f.name) for c in (SGMIMConfig, TrainConfig) for f in dataclasses.fields(c)]
)
def test_no_real_field_takes_anything(cls, field):
    with pytest.raises(ConfigError, match=field):
        config_from_dict(cls, {field: {"not": "a value"}})


# ---- checkpoints

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b.c": torch.tensor(3),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "bits": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
    "nan": torch.tensor([float("nan"), -0.0]),
}


@pytest.fixture
def checkpoint(tmp_path):
    save_checkpoint(tmp_path / "ckpt", TENSORS, {"step": 3, "seen": {"pairs": 7}})
    return tmp_path / "ckpt"


def refused(folder, said=""):
    with pytest.raises(CheckpointError) as e:
        load_checkpoint(folder)
    assert str(folder) in str(e.value) and said in str(e.value)


def test_checkpoint_round_trip(checkpoint):
    tensors, meta = load_checkpoint(checkpoint)
    assert set(tensors) == set(TENSORS) and meta["step"] == 3 and meta["seen"] == {"pairs": 7}
    for k, v in TENSORS.items():
        assert tensors[k].dtype == v.dtype and tensors[k].shape == v.shape
        assert (
            tensors[k].contiguous().view(torch.uint8).tolist() == v.contiguous().view(torch.uint8).tolist()
            if v.numel() and v.ndim
            else torch.equal(tensors[k], v)
        )


def test_checkpoint_of_shared_and_strided_tensors(tmp_path):
    x = torch.arange(12.0).reshape(3, 4)
    save_checkpoint(
        tmp_path, {"whole": x, "same": x, "turned": x.T, "part": x[:, 1], "wide": torch.ones(1).expand(5)}, {}
    )
    back, _ = load_checkpoint(tmp_path)
    assert all(
        torch.equal(back[k], v)
        for k, v in {"whole": x, "same": x, "turned": x.T, "part": x[:, 1], "wide": torch.ones(5)}.items()
    )


def test_truncated_at_any_byte(checkpoint):
    path = checkpoint / "weights.safetensors"
    whole = path.read_bytes()
    for n in [0, 1, 7, 8, 20, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:n])
        refused(checkpoint, "truncated")
    path.write_bytes(whole)
    load_checkpoint(checkpoint)


def test_changed_in_any_byte(checkpoint):
    path = checkpoint / "weights.safetensors"
    whole = path.read_bytes()
    for at in [0, 9, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refused(checkpoint, "does not match")


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json"])
def test_half_a_checkpoint(checkpoint, name):
    (checkpoint / name).unlink()
    refused(checkpoint, f"{name} is missing")


def test_no_checkpoint(tmp_path):
    refused(tmp_path / "nowhere", "does not exist")
    refused(tmp_path)


def test_weights_of_another_checkpoint(checkpoint, tmp_path):
    # the same size to the byte
    save_checkpoint(tmp_path / "other", {**TENSORS, "a": TENSORS["a"] + 1}, {"step": 4})
    (checkpoint / "config.json").write_bytes((tmp_path / "other" / "config.json").read_bytes())
    refused(checkpoint, "of another checkpoint")


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"step": 3',
        "null",
        "[]",
        "{}",
        '{"weights": 1}',
        '{"weights": "x"}',
        '{"weights": []}',
        '{"weights": {}}',
        '{"weights": {"bytes": null}}',
    ],
)
def test_foreign_config(checkpoint, text):
    (checkpoint / "config.json").write_text(text)
    refused(checkpoint)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("signed", [False, True])
def test_a_pickle_is_never_opened(checkpoint, tmp_path, signed):
    "Neither a pickle under the name of the weights, nor one with a matching config.json, is run."
    torch.save({"a": Bomb(tmp_path / "boom")}, tmp_path / "made_by_torch")
    for blob in (pickle.dumps(Bomb(tmp_path / "boom")), (tmp_path / "made_by_torch").read_bytes()):
        (checkpoint / "weights.safetensors").write_bytes(blob)
        if signed:
            from hashlib import blake2b

            write_json(
                checkpoint / "config.json",
                {"weights": {"bytes": len(blob), "blake2b": blake2b(blob, digest_size=16).hexdigest()}},
            )
        refused(checkpoint, "not a safetensors file" if signed else "does not match")
        assert not (tmp_path / "boom").exists()
    with contextlib.suppress(Exception):
        torch.load(tmp_path / "made_by_torch", weights_only=False)
    assert (tmp_path / "boom").exists()  # it was live


def test_safetensors_alone_is_no_checkpoint(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(safetensors_bytes({"a": torch.ones(2)}))
    refused(tmp_path, "config.json is missing")


def test_full_disk_leaves_the_old_checkpoint(checkpoint, monkeypatch):
    before = listing(checkpoint)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SgmimError, match="No space left"):
        save_checkpoint(checkpoint, {"a": torch.ones(3)}, {})
    assert listing(checkpoint) == before


def test_model_of_another_configuration(tmp_path):
    torch.manual_seed(0)
    model = SGMIM(micro())
    save_model(model, tmp_path)
    assert load_model(tmp_path, "cpu").config == model.config
    save_checkpoint(tmp_path, {}, {"config": {**config_to_dict(model.config), "embed_dims": 3}})
    with pytest.raises(CheckpointError, match="did you mean 'embed_dim'"):
        load_model(tmp_path, device="cpu")


def net():
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))


def test_load_state_tells_all_at_once():
    torch.manual_seed(0)
    model, other = net(), net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = other.state_dict()
    load_state(model, state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and not torch.equal(
        before["0.weight"], state["0.weight"]
    )
    bad = {
        **{k: v + 1 for k, v in state.items() if k != "0.bias"},
        "1.weight": torch.ones(4),
        "head.weight": torch.ones(1),
        "extra": torch.ones(1),
    }
    with pytest.raises(CheckpointError) as e:
        load_state(model, bad, what="my weights")
    for said in (
        "my weights",
        "Sequential",
        "1 missing: 0.bias",
        "2 unexpected: head.weight, extra",
        "1.weight (4,) where the model has (3,)",
    ):
        assert said in str(e.value)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())  # unchanged


def test_load_state_ignores_what_it_is_told_to():
    torch.manual_seed(0)
    model, state = net(), {k: v + 1 for k, v in net().state_dict().items()}
    load_state(
        model,
        {**{k: v for k, v in state.items() if k != "1.bias"}, "head.weight": torch.ones(1)},
        ignore=("head.", "1.b"),
    )
    assert torch.equal(model[0].weight, state["0.weight"]) and model[1].bias.eq(0).all()
    with pytest.raises(CheckpointError, match="missing: 0.bias"):
        load_state(model, {k: v for k, v in state.items() if k != "0.bias"}, ignore=("head.",))


def test_load_state_counts_long_lists():
    with pytest.raises(CheckpointError, match="12 unexpected: x0, .*, …"):
        load_state(net(), {**net().state_dict(), **{f"x{i}": torch.ones(1) for i in range(12)}})


# ---- seeds and devices


def test_random_numbers_are_the_same_in_every_process():
    code = (
        "from sgmim.core import rng_for, stable_hash; print(rng_for('a', 3, 'ü').integers(0, 10**9,"
        " 4).tolist(), stable_hash('b', 4))"
    )
    here = f"{rng_for('a', 3, 'ü').integers(0, 10**9, 4).tolist()} {stable_hash('b', 4)}"
    for seed in ("0", "1", "random"):
        assert run_python(code, PYTHONHASHSEED=seed).stdout.strip() == here
    assert here == HERE  # and in every version: the splits of the embedded corpus rest on it


HERE = "[856042154, 724287091, 394452125, 879796321] 12609074551769945565"


def test_keys_do_not_run_together():
    keys = [
        (1, 23),
        (12, 3),
        (123,),
        ("1", "2", "3"),
        (1, "2 3"),
        (0, 1, 23),
        (1, 23, 0),
        ("a", "b"),
        ("ab",),
        (),
    ]
    assert len({stable_hash(*k) for k in keys}) == len(keys)
    assert stable_hash(np.int64(3), "a") == stable_hash(3, "a")  # an index may come from an array


def test_set_seed():
    import random

    def draw(seed):
        set_seed(seed)
        return random.random(), np.random.rand(), torch.rand(1).item()

    a, b, c = draw(3), draw(3), draw(2**40 + 4)  # NumPy takes no seed beyond 2**32
    assert a == b and all(x != y for x, y in zip(a, c, strict=True))


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        pick_device("gpu")
    if torch.cuda.is_available():
        assert pick_device().type == "cuda"
    else:
        assert pick_device().type == "cpu"
        with pytest.raises(ConfigError, match="use device='cpu'"):
            pick_device("cuda:0")


# ---- run records, and what an import costs


def test_run_record(tmp_path):
    before = time.time()
    record = run_record(
        "train",
        TrainConfig(),
        3,
        {"name": "toy"},
        {"loss": float("nan"), "ranks": np.array([1, 2])},
        12.345,
        "cpu",
        steps=7,
    )
    write_json(tmp_path / "record.json", record)

    def never(x):
        raise AssertionError(f"{x} is no JSON")

    r = json.loads((tmp_path / "record.json").read_text(), parse_constant=never)
    assert (r["kind"], r["seed"], r["steps"], r["wall_seconds"], r["data"], r["metrics"]) == (
        "train",
        3,
        7,
        12.3,
        {"name": "toy"},
        {"loss": None, "ranks": [1, 2]},
    )
    assert config_from_dict(TrainConfig, r["config"]) == TrainConfig()
    assert (
        r["code"]["sgmim"] == sgmim.__version__
        and r["hardware"]["device"] == "cpu"
        and r["hardware"]["torch"] == torch.__version__
    )
    assert r["hardware"]["cores"] == os.cpu_count() and r["hardware"]["threads"] == torch.get_num_threads()
    finished = time.mktime(time.strptime(r["finished"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert before - 2 < finished < time.time() + 2
    assert 50 < r["peak_memory_mb"] < 10**6  # torch alone takes more than 50 MiB: the unit is right
    assert "/" not in r["command"].split()[0]


def test_run_record_names_the_commit():
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    commit = run_record("x", {}, 0, {}, {}, 0.0)["code"]["commit"]
    if git.returncode:
        assert commit is None
    else:
        assert commit.removesuffix("+changes") == git.stdout.strip()


@pytest.mark.parametrize("module", ["sgmim", "sgmim.core"])
def test_import_without_torch(module):
    done = run_python(f"import sys, {module}; print(*sys.modules)")
    assert "sgmim" in done.stdout.split(), done.stderr
    assert not {"torch", "transformers", "timm", "matplotlib", "PIL", "soundfile"} & set(done.stdout.split())


# ---- tensors that are no weights


@pytest.mark.parametrize(
    "dtype,own,fits",
    [
        ("float16", "float32", True),
        ("bfloat16", "float32", True),
        ("float64", "float32", True),
        ("int8", "float32", False),
        ("complex64", "float32", False),
        ("bool", "float32", False),
        ("int64", "int64", True),
        ("float32", "int64", False),
        ("int32", "int64", False),
    ],
)
def test_load_state_takes_floats_for_floats_alone(dtype, own, fits):
    module = torch.nn.Module()
    module.register_buffer("w", torch.zeros(2, dtype=getattr(torch, own)))
    value = torch.tensor([0, 1]).to(getattr(torch, dtype))
    if fits:
        load_state(module, {"w": value})
        assert module.w.tolist() == [0, 1] and module.w.dtype == getattr(torch, own)
    else:
        with pytest.raises(CheckpointError, match=f"1 of another type: w {dtype}"):
            load_state(module, {"w": value})
        assert module.w.tolist() == [0, 0]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_json_that_python_refuses(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match="x.json: JSON that cannot be read"):
        read_json(tmp_path / "x.json")


def test_header_of_safetensors_that_lies(tmp_path):
    from hashlib import blake2b

    save_checkpoint(tmp_path, {"a": torch.ones(1)}, {})
    blob = (2**30).to_bytes(8, "little") + (tmp_path / "weights.safetensors").read_bytes()[8:]
    (tmp_path / "weights.safetensors").write_bytes(blob)
    write_json(
        tmp_path / "config.json",
        {"weights": {"bytes": len(blob), "blake2b": blake2b(blob, digest_size=16).hexdigest()}},
    )
    refused(tmp_path, "its header has 1,073,741,824 bytes")
