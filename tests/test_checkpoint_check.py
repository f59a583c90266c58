"""A checkpoint is looked at before torch reads it: what could run code, or is no checkpoint, is refused unread."""

from __future__ import annotations

import collections
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from popi_edge.errors import ModelError
from popi_training import train
from popi_training.checkpoint_check import check


@pytest.fixture
def good(tmp_path: Path) -> Path:
    adapter = collections.OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(2, 2).half())
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "on": True, "none": None}}, "groups": [1, 2.5, -7]}
    state: dict[str, Any] = {"step": 3, "made_from": {"recipe": "x" * 64}, "best": (0.5, 2), "optimizer": optimizer}
    state["adapters"] = {"infer": adapter}
    torch.save(state, tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


def repacked(path: Path, data: bytes, **more: bytes) -> Path:
    """The checkpoint with another pickle and more members."""
    with zipfile.ZipFile(path) as old:
        parts = {i.filename: old.read(i) for i in old.infolist()}
    top = next(iter(parts)).split("/")[0]
    parts |= {f"{top}/data.pkl": data, **{f"{top}/{k}": v for k, v in more.items()}}
    with zipfile.ZipFile(path, "w") as new:
        for name, value in parts.items():
            new.writestr(name, value)
    return path


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/never",)


def test_what_torch_saved_passes_and_reads(good: Path) -> None:
    check(good)
    assert train.read_checkpoint(good)["step"] == 3


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_something_is_refused(protocol: int, good: Path, tmp_path: Path) -> None:
    for value in (Evil(), {"step": Evil()}, [print], pickle.Pickler, bytearray(b"x"), collections.Counter()):
        data = pickle.dumps(value, protocol)
        with pytest.raises(ModelError, match="not a checkpoint") as e:
            train.read_checkpoint(repacked(good, data))
        assert "\n" not in str(e.value)
        (tmp_path / "bare.pt").write_bytes(data)
        with pytest.raises(ModelError, match="no whole zip"):
            train.read_checkpoint(tmp_path / "bare.pt")


def test_members_that_no_checkpoint_has_are_refused(good: Path) -> None:
    with zipfile.ZipFile(good) as old:
        data = next(old.read(i) for i in old.infolist() if i.filename.endswith("data.pkl"))
    for name in ("code/x.py", "constants.pkl", "../x", "data/x"):
        with pytest.raises(ModelError, match="the part"):
            check(repacked(good, data, **{name: b"x"}))
        good.unlink()
        torch.save({}, good)
    with zipfile.ZipFile(good, "a", zipfile.ZIP_DEFLATED) as more:
        more.writestr("checkpoint/data/9", bytes(1 << 20))
    with pytest.raises(ModelError, match="is packed"):
        check(good)


def test_any_bit_changed_or_cut_is_refused_or_reads_the_same(good: Path, tmp_path: Path) -> None:
    data, r, refused = good.read_bytes(), random.Random(0), 0
    want = train.read_checkpoint(good)["adapters"]["infer"]
    path = tmp_path / "x.pt"
    for i in range(400):
        changed = bytearray(data)
        if i % 4:
            changed[r.randrange(len(data))] ^= 1 << r.randrange(8)
        else:
            changed = changed[: r.randrange(len(data))]
        path.write_bytes(changed)
        try:
            found = train.read_checkpoint(path)["adapters"]["infer"]
        except ModelError as e:
            assert "\n" not in str(e)
            refused += 1
            continue
        assert all((found[n] == want[n]).all() for n in want)
    assert refused > 200
