"""Files written by ``write_gguf``, read back with PyPI gguf's reader."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyds4.errors import InvalidArgumentError
from pyds4.synth import Tensor, Typed, write_gguf

F32, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0

U32 = st.integers(0, 2**32 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)
VALUES = st.one_of(
    st.text(),
    st.booleans(),
    U32,
    st.integers(-(2**63), -1),
    FLOAT32,
    st.lists(st.text(), min_size=1),
    st.lists(FLOAT32, min_size=1),
    st.lists(st.booleans(), min_size=1),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(st.integers(0, 2**64 - 1), min_size=1),
)
KEYS = st.from_regex(r"[a-z]{1,8}(\.[a-z_]{1,8}){0,3}", fullmatch=True).filter(
    lambda key: key != "general.alignment"
)


def contents(path: Path, key: str) -> Any:
    return gguf.GGUFReader(path).fields[key].contents()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=st.dictionaries(KEYS, VALUES, max_size=6))
def test_metadata_comes_back_as_written(tmp_path: Path, metadata: dict[str, Any]) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata, [])
    fields = gguf.GGUFReader(path).fields
    read = {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}
    assert read == metadata
    assert list(read) == list(metadata)


@pytest.mark.parametrize(
    ("type", "value"),
    [
        (GGUFValueType.UINT8, 255),
        (GGUFValueType.INT8, -128),
        (GGUFValueType.UINT16, 65535),
        (GGUFValueType.INT16, -32768),
        (GGUFValueType.UINT32, 2**32 - 1),
        (GGUFValueType.INT32, -(2**31)),
        (GGUFValueType.UINT64, 2**64 - 1),
        (GGUFValueType.INT64, -(2**63)),
        (GGUFValueType.FLOAT32, 0.5),
        (GGUFValueType.FLOAT64, math.pi),
        (GGUFValueType.BOOL, True),
        (GGUFValueType.STRING, "｜DSML｜"),
    ],
)
def test_typed_value_keeps_its_type(tmp_path: Path, type: GGUFValueType, value: Any) -> None:
    write_gguf(tmp_path / "m.gguf", {"one": Typed(type, value)}, [])
    field = gguf.GGUFReader(tmp_path / "m.gguf").fields["one"]
    assert field.types == [type]
    assert field.contents() == value
    write_gguf(tmp_path / "m.gguf", {"many": Typed.array(type, [value, value])}, [])
    field = gguf.GGUFReader(tmp_path / "m.gguf").fields["many"]
    assert field.types[-1] == type
    assert field.contents() == [value, value]


@pytest.mark.parametrize(
    ("value", "type"),
    [
        (0, GGUFValueType.UINT32),
        (2**32, GGUFValueType.INT64),
        (2**63, GGUFValueType.UINT64),
        (-1, GGUFValueType.INT32),
        (-(2**31) - 1, GGUFValueType.INT64),
        (True, GGUFValueType.BOOL),
        (1.0, GGUFValueType.FLOAT32),
    ],
)
def test_plain_number_gets_the_narrowest_usual_type(value: Any, type: GGUFValueType) -> None:
    assert Typed.infer("key", value).type is type


@pytest.mark.parametrize("value", [[], None, {"a": 1}, [1, "a"], [1, 2.0], [[1]], object()])
def test_value_without_a_plain_type_is_refused_by_key(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=r"'some\.key'"):
        write_gguf(tmp_path / "m.gguf", {"some.key": value}, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value", [Typed(GGUFValueType.UINT8, 256), Typed(GGUFValueType.ARRAY, [1]), 2**64]
)
def test_value_that_its_type_cannot_hold_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError):
        write_gguf(tmp_path / "m.gguf", {"key": value}, [])


def test_layout_is_that_of_the_gguf_package(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((3, 5)).astype(np.float32)
    halves = rng.standard_normal((2, 3, 7)).astype(np.float16)
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "deepseek4")
    writer.add_uint32("number", 7)
    writer.add_array("list", [1, 2, 3])
    writer.add_array("words", ["a", "bc"])
    writer.add_tensor("floats", floats)
    writer.add_tensor("halves", halves)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_gguf(
        tmp_path / "ours.gguf",
        {
            "general.architecture": "deepseek4",
            "number": 7,
            "list": [1, 2, 3],
            "words": ["a", "bc"],
        },
        [
            Tensor("floats", (5, 3), F32, floats),
            Tensor("halves", (7, 3, 2), GGMLQuantizationType.F16, halves),
        ],
    )
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("alignment", [32, 64, 4096])
def test_tensors_stand_at_multiples_of_the_alignment(tmp_path: Path, alignment: int) -> None:
    tensors = [Tensor(f"t{n}", (n,), F32, np.full(n, n, "<f4")) for n in (1, 9, 3)]
    path = tmp_path / "m.gguf"
    assert write_gguf(path, {}, tensors, alignment=alignment) == path.stat().st_size
    reader = gguf.GGUFReader(path)
    for tensor, written in zip(reader.tensors, tensors, strict=True):
        assert tensor.data_offset % alignment == 0
        np.testing.assert_array_equal(tensor.data, written.data)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_large_tensor_is_pieced_together_from_chunks(tmp_path: Path, threads: int) -> None:
    # 20 MB of Q8_0 whose every byte depends on its block, so that a chunk in a wrong place shows.
    blocks = 600_011
    seen: list[int] = []

    def part(start: int, count: int) -> Any:
        index = np.arange(start, start + count, dtype=np.uint32)[:, None]
        return (index * np.uint32(2654435761) >> np.arange(34, dtype=np.uint32) % 24).astype("u1")

    tensors = [Tensor("before", (1,), F32, b"1234"), Tensor("t", (32, blocks), Q8_0, part)]
    path = tmp_path / "m.gguf"
    total = write_gguf(
        path, {}, tensors, threads=threads, progress=lambda done, total: seen.append(done)
    )
    data = gguf.GGUFReader(path).get_tensor(1).data
    np.testing.assert_array_equal(data.reshape(blocks, 34), part(0, blocks))
    assert seen == sorted(seen)
    assert 4 + blocks * 34 == seen[-1] <= total


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (Tensor("t", (), F32, b""), "impossible shape"),
        (Tensor("t", (4, 0), F32, b""), "impossible shape"),
        (Tensor("t", (1, 1, 1, 1, 1), F32, b"1234"), "impossible shape"),
        (Tensor("t", (48,), Q8_0, b""), "not whole blocks of 32"),
        (Tensor("t", (32,), Q8_0, b"short"), "has 34 bytes, 5 were given"),
        (Tensor("t", (3,), F32, np.zeros(3)), "has 12 bytes, 24 were given"),
        (Tensor("t", (3,), F32, lambda start, count: b"1234"), "4 bytes for 3 blocks"),
    ],
)
def test_tensor_that_does_not_fit_is_named_and_leaves_no_file(
    tmp_path: Path, tensor: Tensor, complaint: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"'t'.*{complaint}"):
        write_gguf(tmp_path / "m.gguf", {}, [tensor])
    assert list(tmp_path.iterdir()) == []


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    tensor = Tensor("t", (1,), F32, b"1234")
    with pytest.raises(InvalidArgumentError, match="two tensors are called 't'"):
        write_gguf(tmp_path / "m.gguf", {}, [tensor, tensor])


def test_disk_too_small_is_told_before_anything_is_written(tmp_path: Path) -> None:
    tensor = Tensor("t", (1 << 50,), F32, lambda start, count: b"")
    with pytest.raises(OSError, match=r"needs 4194304\.00 GiB, the disk has"):
        write_gguf(tmp_path / "m.gguf", {}, [tensor])
    assert list(tmp_path.iterdir()) == []


def test_failure_half_way_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")

    def fail(start: int, count: int) -> Any:
        if start:
            raise RuntimeError("no more")
        return np.zeros(count, "<f4")

    with pytest.raises(RuntimeError, match="no more"):
        write_gguf(path, {}, [Tensor("t", (8 << 20,), F32, fail)])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
