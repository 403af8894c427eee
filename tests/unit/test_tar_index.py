"""Members of tar files are found where Python's tarfile finds them; damage is told."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timegrain.data.location import Location
from timegrain.data.shards import read_shard
from timegrain.data.tar_index import Member, read_index, why_not_header_of


def index(data: bytes):
    return read_index(io.BytesIO(data), len(data))


def expected(data: bytes) -> list[tuple[str, int, int]]:
    """What Python's reader says of regular files."""
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        return [(member.name, member.offset_data, member.size) for member in archive if member.isreg()]


def found(data: bytes) -> list[tuple[str, int, int]]:
    return [(member.name, member.offset, member.size) for member in index(data).members if not member.problem]


PART = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
NAME = st.lists(PART, min_size=1, max_size=8).map("/".join).filter(lambda name: name.strip("/") == name)
ENTRY = st.tuples(NAME, st.integers(0, 2000), st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE,
    tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]))  # fmt: skip


@settings(max_examples=25)
@given(
    st.lists(ENTRY, min_size=1, max_size=6),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.dictionaries(st.sampled_from(["comment", "mtime", "gname"]), st.just("7"), max_size=2),
)
def test_members_lie_where_tarfile_finds_them(entries, kind, headers):
    file = io.BytesIO()
    more: dict[str, Any] = {"pax_headers": headers} if kind == tarfile.PAX_FORMAT else {}
    with tarfile.open(fileobj=file, mode="w", format=kind, **more) as archive:
        for name, size, type_ in entries:
            info = tarfile.TarInfo(name)
            # Archives from before 1988 have no long names; Python's reader takes such a member for a folder if the part of
            # the name that fits ends with a slash.
            info.type = tarfile.REGTYPE if type_ == tarfile.AREGTYPE and len(name.encode()) > 99 else type_
            has_data = info.isreg()
            info.size = size if has_data else 0
            info.mtime = 1.5 if size % 2 else 7
            info.linkname = "x" * size if type_ in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            archive.addfile(info, io.BytesIO(bytes(size)) if has_data else None)
    data = file.getvalue()
    there = expected(data)
    assert found(data) == there
    links = [name for name, _, type_ in entries if type_ in (tarfile.SYMTYPE, tarfile.LNKTYPE)]
    assert [member.name for member in index(data).members if member.problem] == links
    if there or links:
        assert index(data).damage == ""
    for name, offset, size in there:
        assert why_not_header_of(data[offset - 512 : offset], name, size) == ""
    # Without the archive's end, and with the file padded to a tape's blocks
    if there and there[-1][0] == entries[-1][0]:
        end = there[-1][1] + -(-there[-1][2] // 512) * 512
        assert found(data[:end]) == there


def small(*names: str, size: int = 700) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, io.BytesIO(b"v" * size))
    return file.getvalue()


def test_a_size_beyond_8_gb_is_read_from_both_kinds_of_header():
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("a.mp4")
        info.size = 9 << 30
        header = info.tobuf(kind)
        listed = read_index(io.BytesIO(header), len(header))
        assert "inside the member 'a.mp4'" in listed.damage
        assert listed.members == (Member("a.mp4", len(header), 9 << 30, "the shard ends inside it"),)
        assert why_not_header_of(header[-512:], "a.mp4", 9 << 30) == ""


def test_the_names_of_ustar_prefixes_and_other_encodings():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as archive:
        for name in ("d" * 90 + "/" + "e" * 90 + ".mp4", "café.mp4"):
            archive.addfile(tarfile.TarInfo(name))
    data = file.getvalue()
    names = [member.name for member in index(data).members]
    assert names == ["d" * 90 + "/" + "e" * 90 + ".mp4", "caf\udce9.mp4"]
    assert names == [name for name, _, _ in expected(data)]


@pytest.mark.parametrize("format_", ["gnu", "posix"])
def test_sparse_members_are_refused(tmp_path, format_):
    if shutil.which("tar") is None:
        pytest.skip("no tar program")
    with (tmp_path / "holes.mp4").open("wb") as file:
        for place in range(12):  # more holes than a GNU header has room for
            file.seek(place * 200_000)
            file.write(b"x" * 5000)
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"y" * 900)
    command = ["tar", f"--format={format_}", "--sparse", "-cf", "x.tar", "a.mp4", "holes.mp4", "b.mp4"]
    subprocess.run(command, cwd=tmp_path, check=True)
    data = (tmp_path / "x.tar").read_bytes()
    if b"GNU.sparse" not in data and data[1024 + 512 + 156 : 1024 + 512 + 157] != b"S":
        pytest.skip("the disk keeps no holes")
    listed = index(data)
    assert listed.damage == ""
    assert [(member.name, bool(member.problem)) for member in listed.members] == [
        ("a.mp4", False), ("holes.mp4", True), ("b.mp4", False),
    ]  # fmt: skip
    assert "sparse" in listed.members[1].problem
    plain = listed.members[2]
    assert data[plain.offset : plain.offset + plain.size] == b"y" * 900


def test_damage_is_told_and_what_comes_before_it_is_listed():
    data = small("a.mp4", "b.mp4", "c.mp4")
    for cut, count, words in [
        (3072 + 100, 2, "inside a header"),
        (2048 + 100, 2, "inside the member 'b.mp4'"),
        (512 + 100, 1, "inside the member 'a.mp4'"),
        (0, 0, "empty"),
        (300, 0, "inside a header"),
    ]:
        listed = index(data[:cut])
        assert len(listed.members) == count
        assert words in listed.damage
        assert [member.name for member in listed.members if member.problem] == re.findall(
            r"member '(.*)'", listed.damage
        )
    broken = bytearray(data)
    broken[1536 + 3] ^= 1
    assert len(index(bytes(broken)).members) == 1
    assert "byte 1,536: no tar header" in index(bytes(broken)).damage
    assert "compressed" in index(b"\x1f\x8b" + bytes(600)).damage
    assert "no tar header" in index(b"<html>" * 200).damage


@given(st.binary(min_size=1, max_size=40), st.integers(0, 3000), st.integers(0, 4000))
def test_no_damage_does_more_than_being_told(noise, place, cut):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", pax_headers={"comment": "é"}) as archive:
        for name in ("é" * 80, "b.mp4"):
            archive.addfile(tarfile.TarInfo(name))
    data = bytearray(file.getvalue())
    data[place : place + len(noise)] = noise
    index(bytes(data[: max(1, cut)]))


def test_what_lies_at_the_place_of_a_member():
    data = small("a.mp4")
    assert why_not_header_of(data[:512], "a.mp4", 700) == ""
    assert "of 700 bytes lies" in why_not_header_of(data[:512], "a.mp4", 701)
    assert "'a.mp4' lies" in why_not_header_of(data[:512], "b.mp4", 700)
    assert "no member begins" in why_not_header_of(data[512:1024], "a.mp4", 700)
    assert "no member begins" in why_not_header_of(b"", "a.mp4", 700)


def test_archives_that_were_joined_are_told():
    first, second = small("a.mp4"), small("b.mp4")
    joined = index(first + second)
    assert [member.name for member in joined.members] == ["a.mp4"]
    assert "more lies behind it, as where tar files are joined by cat" in joined.damage
    assert not index(first + bytes(100_000)).damage


def test_hidden_members_are_no_videos(tmp_path):
    shard = tmp_path / "s.tar"
    shard.write_bytes(small("./left/v0.mp4", "left/._v0.mp4", ".cache/v1.mp4"))
    assert [Location.parse(row["path"]).member for row in read_shard(str(shard))] == ["./left/v0.mp4"]
