"""Parts of files and of what is behind URLs are read as the bytes they are; trouble is waited out or told."""

from __future__ import annotations

import io
import multiprocessing
import socket
import tarfile
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_video, moving_square
from shard_server import ShardServer, serve
from timegrain.data import byte_access, byte_ranges, torchcodec_reader
from timegrain.data.byte_ranges import open_bytes
from timegrain.data.decoding import VideoError, open_video, probe
from timegrain.data.frame_store import FrameStoreWriter
from timegrain.data.location import Location
from timegrain.data.streams import source
from timegrain.data.tar_index import read_index


def pack(path: Path, *files: Path) -> dict[str, Location]:
    """A shard of files, and where each lies."""
    with tarfile.open(path, "w") as archive:
        for file in files:
            info = archive.gettarinfo(file, file.name)
            with file.open("rb") as content:
                archive.addfile(info, content)
    with path.open("rb") as file:
        members = read_index(file, path.stat().st_size).members
    return {member.name: Location(str(path), member.name, member.offset, member.size) for member in members}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video with its table at the end, one in Matroska, JPEG frames, and one of many bytes, alone and in a shard."""
    root = tmp_path_factory.mktemp("served")
    make_video(root / "a.mp4", moving_square(90), options={"g": "12"})
    make_video(root / "b.mkv", moving_square(60, seed=1))
    with FrameStoreWriter(root / "c.frames", np.arange(5) / 25, 0.2, 90) as store:
        for picture in moving_square(5, seed=2):
            store.add(picture)
        store.finish()
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    make_video(root / "d.mp4", noise, options={"g": "10"})
    pack(root / "x.tar", *(root / name for name in ("a.mp4", "b.mkv", "c.frames", "d.mp4")))
    return root


@pytest.fixture
def parts(folder):
    with (folder / "x.tar").open("rb") as file:
        members = read_index(file, (folder / "x.tar").stat().st_size).members
    return {member.name: (member.offset, member.size) for member in members}


@pytest.fixture
def web(folder, monkeypatch):
    monkeypatch.setattr(byte_ranges, "_PAUSES", (0.0, 0.0, 0.0, 0.0))
    with serve(folder) as server:
        yield server


def remote(web: ShardServer, parts, name: str) -> str:
    return str(Location(f"{web.url}/x.tar", name, *parts[name]))


def everything(path: str, decoder: str = "pyav") -> tuple[bytes, np.ndarray]:
    with open_video(path, decoder=decoder) as reader:
        return reader.frames(np.arange(reader.num_frames)).numpy().tobytes(), reader.timestamps


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.frames"])
def test_frames_are_the_same_from_everywhere(folder, parts, web, name):
    frames, times = everything(str(folder / name))
    fsspec.filesystem("memory").pipe("/box/x.tar", (folder / "x.tar").read_bytes())
    for path in (
        str(Location(str(folder / "x.tar"), name, *parts[name])),
        remote(web, parts, name),
        f"{web.url}/{name}?signature=1",
        str(Location("memory://box/x.tar", name, *parts[name])),
        (folder / name).as_uri(),
    ):
        assert everything(path)[0] == frames
        assert (everything(path)[1] == times).all()
    with open_video(remote(web, parts, name)) as reader:
        assert b"".join(frame.numpy().tobytes() for frame in reader.stream()) == frames
        assert reader.info.num_frames == len(times)


@pytest.mark.parametrize("where", ["shard", "web"])
def test_torchcodec_reads_from_everywhere(folder, parts, web, where):
    try:
        torchcodec_reader._decoder_class()
    except ValueError as error:
        pytest.skip(str(error))
    path = remote(web, parts, "a.mp4") if where == "web" else str(Location(f"{folder}/x.tar", "a.mp4", *parts["a.mp4"]))
    assert everything(path, "torchcodec")[0] == everything(str(folder / "a.mp4"))[0]
    web.every["x.tar"] = 503
    if where == "web":
        with pytest.raises(VideoError, match="503"):
            open_video(path, decoder="torchcodec")


def test_a_small_video_costs_one_request_and_only_its_bytes(web, parts):
    everything(remote(web, parts, "a.mp4"))
    offset, size = parts["a.mp4"]
    assert web.asked == [("/x.tar", offset - 512, offset + size - 1)]
    web.asked.clear()
    with open_video(remote(web, parts, "b.mkv")) as reader:
        for _ in reader.stream():
            pass
        reader.frames([50, 3, 20])
    assert len(web.asked) == 1


@given(st.data())
def test_bytes_of_a_large_file_whatever_is_read(data):
    content = np.random.default_rng(0).bytes(5000)
    fsspec.filesystem("memory").pipe("/box/large", content)
    block = data.draw(st.integers(1, 700))
    with open_bytes("memory://box/large", block=block, request=block * data.draw(st.integers(1, 9))) as file:
        plain = io.BytesIO(content)
        for _ in range(data.draw(st.integers(1, 12))):
            place, count = data.draw(st.integers(0, 5200)), data.draw(st.integers(-1, 1500))
            assert file.seek(place) == plain.seek(place)
            assert file.read(count) == plain.read(count)
            assert file.tell() == plain.tell()
        assert file.seek(-3, 2) == 4997
        assert file.read() == content[-3:]


def test_reading_on_asks_for_more_and_more_and_little_is_kept(monkeypatch):
    asked: list[int] = []

    class Counting(byte_access._AnyFile):
        def read(self, start: int, end: int, into: bytearray) -> None:
            asked.append(end - start)
            super().read(start, end, into)

    monkeypatch.setattr(byte_access, "_AnyFile", Counting)
    monkeypatch.setattr(byte_ranges, "_KEPT", 300)
    fsspec.filesystem("memory").pipe("/box/large", bytes(1000))
    with open_bytes("memory://box/large", block=10, request=80) as file:
        while file.read(7):
            pass
        assert asked[:5] == [10, 20, 40, 80, 80]
        assert len(asked) < 20
        assert len(file._content._blocks) == 30
        asked.clear()
        file.seek(0)
        file.read(1)
        file.seek(990)
        file.read(10)  # still there
        file.seek(500)
        file.read(1)
        assert asked == [10, 10]


# ---- what goes wrong, and passes ------------------------------------------------------------------------------------


def test_a_connection_that_breaks_is_taken_up_where_it_broke(folder, web, parts):
    web.answers.extend([-1000, 503, -1, None])
    path, offset = remote(web, parts, "a.mp4"), parts["a.mp4"][0] - 512
    assert everything(path)[0] == everything(str(folder / "a.mp4"))[0]
    assert [start for _, start, _ in web.asked] == [offset, offset + 1000, offset + 1001]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_answers_are_asked_again(web, parts, status):
    web.answers.extend([status] * 4)
    assert everything(remote(web, parts, "a.mp4"))
    web.answers.extend([status] * 5)
    with pytest.raises(VideoError, match=rf"answered {status} \(the last of 5 tries in 0 s\)"):
        everything(remote(web, parts, "a.mp4"))


def test_nobody_listens(folder, web, parts):
    path = remote(web, parts, "a.mp4").replace(web.url, "http://127.0.0.1:9")
    with pytest.raises(VideoError, match=r"a.mp4@\d+\+\d+: no connection: .*the last of 5 tries"):
        everything(path)


def test_a_file_that_changes_between_two_answers_is_not_mixed(web, parts):
    web.versions.extend(["1", "1", "2"])
    web.answers.extend([-1000, -2000])
    with pytest.raises(VideoError, match="changed while it was read"):
        everything(remote(web, parts, "a.mp4"))


def test_pauses_grow_and_end(web, parts, monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(byte_ranges, "_PAUSES", (0.5, 1.0))
    monkeypatch.setattr(byte_ranges.time, "sleep", waited.append)
    web.every["x.tar"] = 500
    with pytest.raises(VideoError, match="the last of 3 tries"):
        everything(remote(web, parts, "a.mp4"))
    assert waited == [0.5, 1.0]


def test_a_silent_server_is_not_waited_for(web, parts, monkeypatch):
    monkeypatch.setattr(byte_access, "_SILENCE_SECONDS", 0.05)
    monkeypatch.setattr(byte_ranges, "_PAUSES", (0.0,))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        path = remote(web, parts, "a.mp4").replace(web.url, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(VideoError, match="silent for"):
            everything(path)


# ---- what goes wrong for good ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words"), [(404, "file not found"), (403, "access denied"), (401, "credentials"), (418, "answered 418")]
)
def test_refusals_are_told_at_once_and_without_credentials(web, parts, status, words):
    web.answers.append(status)
    path = remote(web, parts, "a.mp4").replace("x.tar#", "x.tar?signature=hunter2#").replace("http://", "http://u:pw@")
    with pytest.raises(VideoError, match=words) as caught:
        everything(path)
    assert web.asked == []
    assert "a.mp4@" in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in str(error)
        assert "u:pw" not in str(error)
        error = error.__cause__


def test_a_server_without_ranges_is_told_apart(web, parts):
    web.has_ranges = False
    for path in (remote(web, parts, "a.mp4"), f"{web.url}/a.mp4"):
        with pytest.raises(VideoError, match="does not serve parts of files"):
            everything(path)


@pytest.mark.parametrize("where", ["disk", "web"])
def test_a_shard_that_is_not_what_it_was(tmp_path, folder, where, monkeypatch):
    monkeypatch.setattr(byte_ranges, "_PAUSES", ())
    place = pack(tmp_path / "x.tar", folder / "a.mp4", folder / "b.mkv")["b.mkv"]
    whole = (tmp_path / "x.tar").read_bytes()
    with serve(tmp_path) as server:
        path = str(place) if where == "disk" else str(place).replace(str(tmp_path), server.url)
        probe(path)
        for content, words in {
            b"": "cut off",
            whole[: place.offset + place.size - 100]: "cut off",
            bytes(len(whole)): "no member begins at the place",
            whole[: place.offset - 512] + tarfile.TarInfo("z.mkv").tobuf() + whole[place.offset :]: "of 0 bytes lies",
        }.items():
            (tmp_path / "x.tar").write_bytes(content)
            with pytest.raises(VideoError, match=words):
                probe(path)
        (tmp_path / "x.tar").unlink()
        with pytest.raises(VideoError, match="file not found"):
            probe(path)


def test_members_that_are_no_videos(tmp_path, folder):
    (tmp_path / "t.mp4").write_bytes(b"this is a text" * 100)
    (tmp_path / "e.mp4").write_bytes(b"")
    (tmp_path / "half.mp4").write_bytes((folder / "a.mp4").read_bytes()[:3000])
    (tmp_path / "f.frames").write_bytes(b"TGFRAMES" * 9)
    places = pack(tmp_path / "x.tar", *sorted(tmp_path.iterdir()))
    for name, words in {
        "t.mp4": "its content is not", "e.mp4": "the file is empty", "half.mp4": "without its table of contents",
        "f.frames": "not a whole frame store",
    }.items():  # fmt: skip
        with pytest.raises(VideoError, match=words) as caught:
            probe(str(places[name]))
        assert caught.value.path == str(places[name])
        with pytest.raises(VideoError, match=words):
            probe(str(tmp_path / name))


_FIVE_TRIES = "the server answered 500 (the last of 5 tries in 0 s)"


def test_reads_that_fail_are_no_end_of_the_file(web, parts, monkeypatch):
    """In the middle of decoding, too: the reason is the connection's, and the video is not decoded another way."""
    monkeypatch.setattr(source, "open_bytes", partial(open_bytes, block=8192, request=8192))
    monkeypatch.setattr(byte_ranges, "_KEPT", 16_384)
    monkeypatch.setattr(source, "_MAX_KEPT", 0)
    path, failed_after, opened = remote(web, parts, "d.mp4"), [], 0
    for good in range(0, 60, 10):
        web.answers.clear()
        web.answers.extend([*[None] * good, *[500] * 5])
        reason = ""
        try:
            with open_video(path) as reader:
                opened += 1
                reader.frames([35, 5])
        except VideoError as error:
            reason = error.reason
            failed_after.append(good)
        # All five tries, and nothing more was asked for after that
        assert (reason, len(web.answers)) == (_FIVE_TRIES, 0) or (not reason and len(web.answers) >= 5)
    assert opened > 6 - len(failed_after) > 0  # some failed in the walk, some in decoding, some not at all


def test_what_the_walk_read_is_not_asked_for_again(web, parts):
    with open_video(remote(web, parts, "d.mp4")) as reader:
        web.asked.clear()
        first = reader.frames([35, 5])
        assert web.asked == []
        reader._source._kept = ()  # as after a walk through more than is kept
        assert reader.frames([35, 5]).equal(first)


def test_other_protocols(tmp_path):
    for url, words in {
        "nothing://x/a.mp4": "nothing:// cannot be read",
        "memory://box/absent.mp4": "file not found",
        f"file://{tmp_path}/absent.mp4": "file not found",
    }.items():
        with pytest.raises(VideoError, match=words):
            probe(url)


def _frames(path: str) -> bytes:
    return everything(path)[0]


@pytest.mark.multiprocess
def test_a_forked_worker_reads_after_its_parent_did(folder, web, parts):
    path = remote(web, parts, "a.mp4")
    assert _frames(path)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_frames, (path,)).get(timeout=60) == _frames(str(folder / "a.mp4"))
