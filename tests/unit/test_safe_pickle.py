"""Plain data comes through; anything else is refused before it can run."""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import pickle
import pickletools
import subprocess
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timegrain.safe_pickle import Record, load_pickle


def write(folder: Path, value: object, protocol: int = 4) -> Path:
    path = folder / "data.pkl"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


ARRAYS = [
    np.arange(6, dtype=np.int64).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    np.array(["a", "bc"]),
    np.array([b"a", b"bc"]),
    np.array([1.5, 2.5], dtype=">f4"),
    np.array([True, False]),
    np.zeros((0, 4), dtype=np.float32),
    np.array(3.5),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_and_numpy_come_through(tmp_path, protocol):
    value = {
        "id": [1, 2.5, "text", b"bytes", None, True, (1, 2), {3, 4}, frozenset([5]), 2 + 3j, bytearray(b"x")],
        "scalars": [np.float64(1.25), np.int32(-4), np.bool_(True), np.float32(0.1), np.str_("s")],
        "arrays": ARRAYS,
        "ordered": OrderedDict(a=1),
    }
    read = load_pickle(write(tmp_path, value, protocol))
    assert read["id"] == value["id"]
    assert read["ordered"] == value["ordered"]
    for got, expected in zip(read["scalars"], value["scalars"], strict=True):
        assert got == expected
        assert got.dtype == expected.dtype
    for got, expected in zip(read["arrays"], ARRAYS, strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
        got.flags.writeable = True


def test_object_arrays_shared_and_circular_references(tmp_path):
    shared = np.arange(3)
    ragged = np.empty(2, dtype=object)
    ragged[0], ragged[1] = [[1.0, shared], [3.0]], np.array([2.0])
    value: dict = {"a": (shared, [shared]), "ragged": ragged}
    value["self"] = value
    read = load_pickle(write(tmp_path, value))
    assert read["self"] is read
    assert read["a"][0] is read["a"][1][0]
    np.testing.assert_array_equal(read["ragged"][0][0][1], [0, 1, 2])
    np.testing.assert_array_equal(read["ragged"][1], [2.0])


class RunsOnLoad:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {target}",), "system"),
        (subprocess.check_output, (["touch", "{target}"],), "subprocess.check_output"),
        (eval, ("open('{target}', 'w')",), "builtins.eval"),
        (exec, ("open('{target}', 'w')",), "builtins.exec"),
        (getattr, ("", "join"), "builtins.getattr"),
        (np.load, ("{target}",), "numpy.load"),
        (datetime.date, (2020, 1, 1), "datetime.date"),
    ],
)
def test_a_pickle_that_tries_to_run_code_is_refused(tmp_path, function, arguments, named):
    target = tmp_path / "executed"
    arguments = tuple(
        part.format(target=target)
        if isinstance(part, str)
        else [p.format(target=target) for p in part]
        if isinstance(part, list)
        else part
        for part in arguments
    )
    path = write(tmp_path, {"gt": [RunsOnLoad(function, *arguments)]})
    with pytest.raises(ValueError, match=r"data\.pkl") as caught:
        load_pickle(path)
    assert named in str(caught.value)
    assert not target.exists()


def test_forged_numpy_types_are_refused(tmp_path):
    element = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8I00\nI01\ntR"
    huge_fields = b"(I3\nX\x01\x00\x00\x00<NX\x01\x00\x00\x00a}I-5\nI1\nI0\ntb."
    path = tmp_path / "forged.pkl"
    path.write_bytes(element + huge_fields)
    pickletools.dis(path.read_bytes(), out=io.StringIO())  # well formed as a pickle
    with pytest.raises(ValueError, match="structured element type"):
        load_pickle(path)
    for value in (np.zeros(2, dtype=[("a", "f8")]), np.zeros(2, dtype="V8"), np.zeros(2, dtype="M8[D]")):
        with pytest.raises(ValueError, match="only plain numbers and text"):
            load_pickle(write(tmp_path, value))
    path.write_bytes(b"cbuiltins\nbytearray\n(I1000000000000\ntR.")
    with pytest.raises(ValueError, match="memoryview"):
        load_pickle(path)


def test_a_pickle_cannot_change_the_reader(tmp_path):
    for name in (b"cnumpy.core.multiarray\nscalar\n", b"cnumpy\ndtype\n", b"cbuiltins\nset\n", b"cnumpy\nndarray\n"):
        path = tmp_path / "poison.pkl"
        path.write_bytes(name + b"N}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b.")  # setattr(x, "__defaults__", (1,))
        with contextlib.suppress(ValueError):
            load_pickle(path)
    value = [np.float64(2.0), np.arange(3), {1}]
    read = load_pickle(write(tmp_path, value))
    assert read[0] == 2.0
    np.testing.assert_array_equal(read[1], value[1])


def test_not_a_pickle_cut_short_and_missing(tmp_path):
    path = tmp_path / "x.pkl"
    for content in (b"", b"hello", pickle.dumps({"a": list(range(100))})[:-5], b"\x80\xff", b"["):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.pkl"):
            load_pickle(path)
    with pytest.raises(FileNotFoundError):
        load_pickle(tmp_path / "absent.pkl")


class Vocabulary:
    def __init__(self):
        self.symbols = ["<pad>", "speak.01"]
        self.indices = {"speak.01": 1}
        self.counts = np.array([0, 7])


def test_a_named_class_is_read_as_a_bare_record(tmp_path):
    name = f"{Vocabulary.__module__}.Vocabulary"
    for protocol in (2, 4):
        path = write(tmp_path, Vocabulary(), protocol)
        with pytest.raises(ValueError, match="Vocabulary"):
            load_pickle(path)
        record = load_pickle(path, records={name})
        assert isinstance(record, Record)
        assert not isinstance(record, Vocabulary)
        assert record.symbols == ["<pad>", "speak.01"]
        assert record.counts.tolist() == [0, 7]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=15,
)


@settings(max_examples=60, deadline=None)
@given(value=PLAIN, protocol=st.integers(0, 5))
def test_any_plain_value_survives(tmp_path_factory, value, protocol):
    assert load_pickle(write(tmp_path_factory.mktemp("plain"), value, protocol)) == value


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes_never_do_more_than_fail(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("noise") / "n.pkl"
    path.write_bytes(data)
    outcome: object = None
    try:
        outcome = load_pickle(path)
    except ValueError as error:
        outcome = str(error).startswith(str(path))
    assert outcome is not False


def test_official_files(shared):
    folder = shared / "data" / "annotations"
    tapos = load_pickle(folder / "gebd" / "tapos_gt_val.pkl")
    assert len(tapos) == 1755
    assert len(load_pickle(folder / "vidsitu" / "vb_eg.pkl")) == 30
    case = shared / "golden" / "gebd" / "case1"
    assert load_pickle(case / "gt.pkl") == pickle.loads((case / "gt.pkl").read_bytes())
