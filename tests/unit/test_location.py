"""One text says where a video lies; credentials in it stay unprinted."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timegrain.data.location import (
    Location,
    absolute,
    cache_key,
    file_name,
    file_state,
    is_plain,
    is_url,
    masked,
    relative,
    shown,
)
from timegrain.data.manifest import Manifest
from timegrain.data.video import VideoError, short_reason

PLAIN = [
    "a.mp4",
    "/data/a.mp4",
    "c++/a#1.mp4",
    "odd@1+2",
    "x#@1+2",
    "C:/a.mp4",
    "a:b/c.mp4",
    "#1@2",
    ".hidden",
    "http:a",
]
URLS = ["https://host/a.mp4", "s3://bucket/a b.mp4", "memory://x/a.mp4", "simplecache::s3://bucket/a.mp4"]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda name: "\0" not in name)


@pytest.mark.parametrize("path", PLAIN)
def test_paths_of_files_stay_what_they_are(path):
    assert is_plain(path)
    assert Location.parse(path) == Location(path)
    assert shown(path) == masked(path) == path
    assert absolute(path, "/folder") == os.path.normpath(Path("/folder") / path)
    assert file_name(path) == Path(path).name


@pytest.mark.parametrize("url", URLS)
def test_urls(url):
    assert is_url(url)
    assert not is_plain(url)
    assert absolute(url, "/folder") == relative(url, Path("/folder")) == url
    assert file_name(url).endswith(".mp4")
    assert Location.parse(url + "#m/b.mp4@512+7") == Location(url, "m/b.mp4", 512, 7)
    assert file_state(url) == (None, None)


@given(st.sampled_from([*PLAIN, *URLS]), NAMES, st.integers(0, 1 << 50), st.integers(0, 1 << 50))
def test_parts_come_back(source, member, offset, size):
    location = Location(source, member, offset, size)
    text = str(location)
    assert Location.parse(text) == location
    assert not is_plain(text)
    assert text.isprintable() or not member.isprintable()
    assert "\n" not in text
    assert "\r" not in text


def test_names_that_are_not_utf8_come_back():
    name = os.fsdecode(b"caf\xe9/\xff.mp4")
    text = str(Location("a.tar", name, 0, 1))
    assert text == "a.tar#caf%E9/%FF.mp4@0+1"
    assert Location.parse(text).member == name


def test_parts_are_relative_and_absolute_by_their_file():
    part = "shards/../x#1.tar#./a/../b.mp4@512+9"
    assert absolute(part, "/f") == "/f/x#1.tar#./a/../b.mp4@512+9"
    assert relative("/f/s/x.tar#./a/../b.mp4@512+9", Path("/f")) == "s/x.tar#./a/../b.mp4@512+9"
    assert relative("/g/x.tar#b@0+1", Path("/f")) == "/g/x.tar#b@0+1"
    assert file_name("/g/x.tar#a/b.frames@0+1") == "b.frames"


def test_state_of_a_part(tmp_path):
    (tmp_path / "x.tar").write_bytes(bytes(9000))
    stamp = (tmp_path / "x.tar").stat().st_mtime_ns
    assert file_state(f"{tmp_path}/x.tar#a@512+7") == (7, stamp)
    assert file_state(f"{tmp_path}/x.tar") == (9000, stamp)
    with pytest.raises(FileNotFoundError):
        file_state(f"{tmp_path}/y.tar#a@512+7")


SECRETS = {
    "https://user:hunter2@host/a.tar#m.mp4@512+7": "https://***@host/a.tar#m.mp4@512+7",
    "https://host/a.tar?X-Amz-Signature=hunter2&b=1#m.mp4@512+7": "https://host/a.tar?***~83c8dc27#m.mp4@512+7",
    "https://host/a.tar?X-Amz-Signature=hunter2&X-Amz-Expires=9#m.mp4@512+7": "https://host/a.tar?***#m.mp4@512+7",
    "https://host/a.mp4?sv=2022&se=2026-01-01&sp=r&sig=hunter2": "https://host/a.mp4?***",
    "s3://AKIA:hun/ter2+x@bucket/a.mp4": "s3://***@bucket/a.mp4",
    "https://host:8080/a@b.mp4": "https://host:8080/a@b.mp4",
    "https://host/a@b.mp4": "https://host/a@b.mp4",
    "https://hunter2@host:80/a?x#token=hunter2": "https://***@host:80/a?***~94e61ceb",
    "simplecache::https://host/a?hunter2": "simplecache::https://host/a?***~e8ff252e",
}


@pytest.mark.parametrize("url", SECRETS)
def test_credentials_are_masked(url):
    assert shown(url) == SECRETS[url]
    assert masked(f"403, url='{url}': no") == f"403, url='{SECRETS[url]}': no"
    error = VideoError(url, f"got 403 of {url}")
    for text in (
        str(error),
        error.path,
        error.reason,
        str(pickle.loads(pickle.dumps(error))),
        short_reason(OSError(url)),
    ):
        assert "hunter2" not in text
        assert "hun/ter2" not in text


def test_videos_that_differ_in_what_is_not_shown_are_kept_apart():
    shapes = [shown(f"https://host/get?id={number}&sig={number}") for number in (1, 2)]
    assert len(set(shapes)) == 2
    assert all(re.fullmatch(r"https://host/get\?\*\*\*~[0-9a-f]{8}", text) for text in shapes)
    assert [shown(text) for text in shapes] == shapes  # an error's path is shown again where the error is
    assert shown("https://host/get?id=1&sig=other") == shapes[0]
    assert shown("https://other/get?id=1&sig=1").split("~")[1] != shapes[0].split("~")[1]
    assert masked(f"no {shapes[0]}, nor {shapes[1]}") == f"no {shapes[0]}, nor {shapes[1]}"
    keys = [cache_key(f"https://host/get?id={number}") for number in (1, 2)]
    assert len(set(keys)) == 2
    assert not any("id=" in key for key in keys)
    assert cache_key("/videos/a.mp4") == "/videos/a.mp4"


def facts(path):
    return {"path": path, "num_frames": 9, "fps": 25.0, "duration_seconds": 1.0, "width": 8, "height": 8}


def test_a_manifest_keeps_every_kind_of_location(tmp_path):
    stored = ["a.mp4", "s/x.tar#./a/../b.mp4@512+9", "https://host/x.tar?sign=1#a%23.mp4@1024+5", "s3://b/c.mp4"]
    (tmp_path / "f").mkdir()
    manifest = Manifest.from_rows([facts(path) for path in stored], tmp_path / "f")
    there = [f"{tmp_path}/f/a.mp4", f"{tmp_path}/f/{stored[1]}", *stored[2:]]
    assert manifest.column("path").to_pylist() == [row.path for row in manifest] == there
    again = Manifest.open(manifest.write(tmp_path / "f" / "m.parquet"))
    assert again._all_rows["path"].to_pylist() == stored
    assert [row.path for row in again] == there
    elsewhere = Manifest.open(again.write(tmp_path / "m.parquet"))
    assert elsewhere._all_rows["path"].to_pylist() == ["f/a.mp4", f"f/{stored[1]}", *stored[2:]]
    assert [row.path for row in elsewhere] == there
    broken = again.with_errors({there[1]: "gone", there[2]: "403"})
    assert [row.error for row in broken] == [None, "gone", "403", None]
