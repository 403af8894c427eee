"""Frames by index are the frames that playing the whole file shows: on real odd files, on made ones, on broken ones."""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import os
import pickle
import re
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from unittest import mock

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import make_video, moving_square, same_priority
from timegrain.data import pixels, torchcodec_reader
from timegrain.data.decoding import Crop, VideoError, open_video, probe, short_reason
from timegrain.data.pyav_reader import PyAVReader
from timegrain.data.streams.known import KNOWN
from timegrain.data.streams.mpeg import MPEG12
from timegrain.data.streams.source import PacketSource

# ---- the plainest possible way to the same frames -------------------------------------------------------------------


def play(path: Path) -> Iterator[np.ndarray]:
    """Every frame shown, (H, W, 3), as displayed, at the size of the first one."""
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        size = None
        for frame in container.decode(stream):
            size = size or (frame.width, frame.height)
            rgb = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
            yield np.rot90(rgb, round(frame.rotation / 90))


def checksum(picture: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(picture))


def pictures(frames) -> np.ndarray:
    """(T, C, H, W) tensor as (T, H, W, C) array."""
    assert frames.permute(0, 2, 3, 1).is_contiguous()
    return frames.permute(0, 2, 3, 1).numpy()


# ---- real files -----------------------------------------------------------------------------------------------------


def edge_rows() -> list[tuple[str, int | None]]:
    """(path, number of frames or None where none can be decoded) of the odd files, where they are present."""
    root = Path(os.environ.get("TIMEGRAIN_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    index = root / "data" / "edge" / "INDEX.tsv"
    if not index.is_file():
        return []
    lines = [line.split("\t") for line in index.read_text().splitlines()]
    column = {name: position for position, name in enumerate(lines[0])}
    rows = []
    for line in lines[1:]:
        num_frames = int(line[column["frames_decoded"]] or 0) if not line[column["error"]] else 0
        rows.append((line[0], num_frames or None))
    return rows


# What the list says is undecodable because its metadata is not UTF-8; the pictures are fine.
BETTER = {"fate/svq3/svq3_watermark.mp4": 10}


@pytest.mark.parametrize(("name", "num_frames"), edge_rows() or [("", None)])
def test_odd_files(name: str, num_frames: int | None, shared: Path) -> None:
    path = shared / "data" / "edge" / name
    num_frames = BETTER.get(name, num_frames)
    started = time.process_time()
    if num_frames is None:
        with pytest.raises(VideoError) as caught:
            probe(path)
        assert caught.value.path == str(path)
        assert caught.value.reason
        assert "\n" not in str(caught.value)
        assert time.process_time() - started < 20
        return
    played, shape = [], None
    for picture in play(path):
        shape = shape or picture.shape
        played.append(checksum(picture))
    info = probe(path)
    assert (info.num_frames, (info.height, info.width, 3)) == (num_frames, shape)
    assert len(played) == num_frames
    assert info.duration_seconds > 0
    assert info.fps == pytest.approx(num_frames / info.duration_seconds)
    rng = np.random.default_rng(num_frames)
    indices = rng.integers(0, num_frames, 24)
    indices[:4] = [num_frames - 1, 0, num_frames // 2, num_frames - 1]
    with open_video(path) as reader:
        got = [checksum(picture) for picture in pictures(reader.frames(indices))]
        stamps = reader.timestamps
    assert got == [played[index] for index in indices]
    assert stamps.shape == (num_frames,)
    assert stamps[0] == 0
    assert (np.diff(stamps) >= 0).all()
    assert stamps[-1] < info.duration_seconds
    assert time.process_time() - started < 20


def test_listed_packets_of_real_files_are_those_of_a_walk(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_listed = 0
    for path in sorted((shared / "data").rglob("*.mp4")):
        KNOWN.clear()
        try:
            source = PacketSource(str(path))
        except VideoError:
            continue
        with contextlib.closing(source), monkeypatch.context() as patch:
            if source.index.is_listed:
                num_listed += 1
                patch.setattr("timegrain.data.streams.source.index_of", lambda *_: None)
                KNOWN.clear()
                with contextlib.closing(PacketSource(str(path))) as walking:
                    for each in fields(walking.index):
                        if each.name != "is_listed":
                            of_both = (getattr(one.index, each.name) for one in (source, walking))
                            np.testing.assert_array_equal(*of_both, f"{each.name} of {path}")
    assert num_listed > 100


def test_reasons_of_odd_files(shared: Path) -> None:
    edge = shared / "data" / "edge"
    for name, reason in {
        "mp4parse/short-cenc.mp4": "encrypted",
        "decord/corrupted.mp4": "frame 28 cannot be decoded",
        "small/mp4-with-audio.mp4": "no video stream in the file (only audio)",
        "fate/rv20/sipr_8k5.mp4": "cut off or damaged after packet 175",
        "mp4parse/bipbop_nonfragment_header.mp4": "no frame in its video stream",
    }.items():
        with pytest.raises(VideoError, match=reason.replace("(", r"\(").replace(")", r"\)")):
            probe(edge / name)


# ---- made files: one for every way through the reader ---------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    suffix: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    pix_fmt: str = "yuv420p"
    planned: bool = True  # the packets tell the frames; otherwise the whole file is decoded
    drops: bool = False  # some packets can be left out
    pts: list[int] | None = None
    container: dict[str, str] = field(default_factory=dict)
    num_frames: int = 90
    size: tuple[int, int] = (48, 64)


UNEVEN = np.cumsum(np.random.default_rng(3).integers(1, 9, 90)).tolist()
X265 = "log-level=none:pools=none:frame-threads=1:"
KINDS = {
    "h264": Kind("mp4", "libx264", drops=True),
    "h264, short groups": Kind("mp4", "libx264", {"g": "12"}, drops=True),
    "h264, open groups": Kind("mp4", "libx264", {"x264-params": "open-gop=1:keyint=12"}, drops=True),
    "h264, open groups, mkv": Kind("mkv", "libx264", {"x264-params": "open-gop=1:keyint=12"}, drops=True),
    "h264, open groups, ts": Kind("ts", "libx264", {"x264-params": "open-gop=1:keyint=12"}),
    "h264, mkv": Kind("mkv", "libx264", {"g": "12"}, drops=True),
    "h264, ts": Kind("ts", "libx264", {"g": "12"}),
    "h264, flv": Kind("flv", "libx264", {"g": "12"}, drops=True),
    "h264, avi": Kind("avi", "libx264", {"g": "12"}, planned=False),
    "h264, raw": Kind("h264", "libx264", {"g": "12"}, planned=False),
    "h264, pyramid": Kind(
        "mp4", "libx264", {"x264-params": "bframes=8:b-adapt=0:b-pyramid=normal:ref=5:keyint=40"}, drops=True
    ),
    "h264, strict pyramid": Kind(
        "mp4", "libx264", {"x264-params": "bframes=5:b-adapt=0:b-pyramid=strict:keyint=40"}, drops=True
    ),
    "h264, temporal direct": Kind(
        "mp4", "libx264", {"x264-params": "direct=temporal:bframes=4:b-adapt=0:weightp=2:keyint=40"}, drops=True
    ),
    "h264, no B": Kind("mp4", "libx264", {"bf": "0", "g": "20"}),
    "h264, interlaced": Kind("mp4", "libx264", {"x264-params": "tff=1:keyint=20"}),
    "h264, intra refresh": Kind("mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=20"}, drops=True),
    "h264, intra": Kind("mp4", "libx264", {"g": "1"}),
    "h264, slices": Kind("mp4", "libx264", {"x264-params": "slices=4:keyint=30"}, drops=True),
    "h264, 10 bit": Kind("mp4", "libx264", {"g": "30"}, "yuv420p10le", drops=True),
    "h264, 4:4:4, odd size": Kind("mp4", "libx264", {"g": "30"}, "yuv444p", drops=True, size=(47, 63)),
    "h264, uneven": Kind("mp4", "libx264", {"g": "30"}, drops=True, pts=UNEVEN),
    "h264, uneven, mkv": Kind("mkv", "libx264", {"g": "30"}, drops=True, pts=UNEVEN),
    "h264, fragments": Kind(
        "mp4", "libx264", {"g": "30"}, drops=True, container={"movflags": "frag_keyframe+empty_moov"}
    ),
    "h264, edit list": Kind(
        "mp4",
        "libx264",
        {"g": "30"},
        pts=list(range(-10, 80)),
        container={"avoid_negative_ts": "disabled"},
        num_frames=80,
    ),
    "hevc": Kind("mp4", "libx265", {"x265-params": X265 + "keyint=20:min-keyint=10"}, drops=True),
    "hevc, closed groups": Kind("mp4", "libx265", {"x265-params": X265 + "keyint=20:open-gop=0"}, drops=True),
    "hevc, pyramid": Kind("mp4", "libx265", {"x265-params": X265 + "bframes=8:b-adapt=0:ref=4"}, drops=True),
    "hevc, layers in time": Kind("mp4", "libx265", {"x265-params": X265 + "keyint=20:temporal-layers=3"}),
    "hevc, mkv, 10 bit": Kind("mkv", "libx265", {"x265-params": X265 + "keyint=20"}, "yuv420p10le", drops=True),
    "hevc, ts": Kind("ts", "libx265", {"x265-params": X265 + "keyint=20"}),
    "hevc, raw": Kind("hevc", "libx265", {"x265-params": X265 + "keyint=20"}, planned=False),
    "vp9": Kind("webm", "libvpx-vp9", {"g": "30", "lag-in-frames": "16", "deadline": "realtime", "cpu-used": "8"}),
    "vp8": Kind("webm", "libvpx", {"g": "30", "lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "5"}),
    "av1": Kind("mp4", "libsvtav1", {"g": "30", "preset": "12", "svtav1-params": "lp=1"}, size=(64, 64)),
    "mpeg4, avi": Kind("avi", "mpeg4", {"bf": "2", "g": "12"}, drops=True),
    "mpeg4, mp4": Kind("mp4", "mpeg4", {"bf": "2", "g": "12"}, drops=True),
    "mpeg4, mkv": Kind("mkv", "mpeg4", {"bf": "3", "g": "40", "flags": "+qpel"}, drops=True),
    "mpeg4, ts": Kind("ts", "mpeg4", {"bf": "2", "g": "12"}, drops=True),
    "mpeg4, no B": Kind("avi", "mpeg4", {"g": "12"}),
    "mpeg4, interlaced": Kind("avi", "mpeg4", {"bf": "2", "g": "12", "flags": "+ildct+ilme"}, planned=False),
    "mpeg2, ts": Kind("ts", "mpeg2video", {"bf": "2", "g": "12"}, drops=True),
    "mpeg2, ps": Kind("mpg", "mpeg2video", {"bf": "2", "g": "12"}, drops=True),
    "mpeg2, interlaced": Kind("mkv", "mpeg2video", {"bf": "2", "g": "12", "flags": "+ildct+ilme"}, drops=True),
    "mpeg1": Kind("mpg", "mpeg1video", {"bf": "2", "g": "12"}, drops=True),
    "mjpeg": Kind("avi", "mjpeg", {}, "yuvj420p"),
    "prores": Kind("mov", "prores_ks", {}, "yuv422p10le"),
    "png": Kind("mov", "png", {}, "rgb24"),
    "huffyuv": Kind("avi", "huffyuv", {}, "yuv422p"),
    "ffv1": Kind("mkv", "ffv1", planned=False),
    "gif": Kind("gif", "gif", {}, "rgb8", planned=False),
    "wmv": Kind("wmv", "wmv2", {"g": "12"}, planned=False),
}


def write(path: Path, kind: Kind) -> None:
    """One video of the kind: motion, a cut, and noise that makes every frame another."""
    rng = np.random.default_rng(0)
    frames = np.concatenate([moving_square(60, *kind.size), moving_square(30, *kind.size, seed=5)])
    frames = (frames.astype(int) + rng.integers(0, 30, frames.shape)).clip(0, 255).astype(np.uint8)
    ticks = Fraction(1, 25 if kind.pts is None or kind.pts[0] < 0 else 100)
    with same_priority(), av.open(str(path), "w", options=kind.container) as container:
        stream = container.add_stream(kind.codec, rate=25, options=kind.options)
        stream.height, stream.width = kind.size
        stream.pix_fmt = kind.pix_fmt
        stream.thread_count = 1
        stream.codec_context.time_base = ticks
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = kind.pts[number] if kind.pts else number
            frame.time_base = ticks
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


_MADE: dict[str, tuple[Path, np.ndarray]] = {}


def made(name: str, folder: Path) -> tuple[Path, np.ndarray]:
    """A video of the kind and all its frames, (T, H, W, 3); made once."""
    if name not in _MADE:
        if KINDS[name].codec not in av.codecs_available:
            pytest.skip(f"this FFmpeg has no encoder {KINDS[name].codec}")
        path = folder / f"{len(_MADE)}.{KINDS[name].suffix}"
        write(path, KINDS[name])
        _MADE[name] = path, np.stack(list(play(path)))
    return _MADE[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decoding")


def seek_from_now_on(reader: PyAVReader) -> None:
    """Packets are sought and read again, as of a long or a known file that does not list them."""
    reader._source._kept = ()
    reader._source._close_raw()


LISTED = {name for name, kind in KINDS.items() if (kind.codec, kind.suffix) == ("libx264", "mp4")} - {
    "h264, fragments",
    "h264, edit list",  # which hides packets
    "h264, interlaced",
    "h264, open groups",  # with key frames that are no beginnings, as the next one
    "h264, intra refresh",
}


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.suffix == "mp4"])
def test_listed_packets_are_those_of_a_walk(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, played = made(name, folder)
    with PyAVReader(str(path)) as reader, monkeypatch.context() as patch:
        KNOWN.clear()
        patch.setattr("timegrain.data.streams.source.index_of", lambda *_: None)
        with PyAVReader(str(path)) as walking:
            listed, walked = reader._index, walking._index
    assert (listed.is_listed, walked.is_listed) == (name in LISTED, False)
    for each in fields(walked):
        if each.name != "is_listed":
            np.testing.assert_array_equal(getattr(listed, each.name), getattr(walked, each.name), each.name)
    if listed.is_listed:
        with PyAVReader(str(path)) as reader:
            reader._source._content = None  # as of a known file, of which only what is needed is read
            for indices in ([89, 3, 50], [17, 18, 19, 20], [0]):
                np.testing.assert_array_equal(pictures(reader.frames(indices)), played[indices])
            assert reader._drop


@pytest.mark.parametrize("name", KINDS)
def test_frames_by_index(name: str, folder: Path) -> None:
    path, played = made(name, folder)
    kind = KINDS[name]
    assert len(played) == kind.num_frames
    with PyAVReader(str(path)) as reader, PyAVReader(str(path)) as seeking:
        seek_from_now_on(seeking)
        assert (reader._index.order is not None) == kind.planned, reader._index.reason
        assert reader._index.droppable.any() == kind.drops
        assert reader.num_frames == kind.num_frames

        @settings(max_examples=12)
        @given(
            st.lists(st.integers(0, kind.num_frames - 1), min_size=1, max_size=9)
            | st.builds(
                lambda start, step, count: [(start + step * k) % kind.num_frames for k in range(count)],
                st.integers(0, kind.num_frames - 1),
                st.integers(1, 5),
                st.integers(1, 32),
            ),
            st.booleans(),
        )
        def check(indices: list[int], seek: bool) -> None:
            np.testing.assert_array_equal(pictures((seeking if seek else reader).frames(indices)), played[indices])

        check()
        # A kind that is planned must not have needed the way out, which would hide a wrong plan.
        for one in (reader, seeking):
            assert (one._index.order is not None, one._drop) == (kind.planned, True)
        streamed = [frame.permute(1, 2, 0).numpy() for frame in reader.stream(3, 60, 7)]
        np.testing.assert_array_equal(np.stack(streamed), played[3:60:7])


@pytest.mark.parametrize("name", ["h264", "h264, pyramid", "hevc", "mpeg4, avi", "mpeg2, ps"])
def test_every_single_frame_with_packets_left_out(name: str, folder: Path) -> None:
    path, played = made(name, folder)
    with PyAVReader(str(path)) as reader:
        left_out = 0
        for index in range(0, len(played), 3):
            if index == len(played) // 2 // 3 * 3:
                seek_from_now_on(reader)
            (span,) = reader._index.plan(np.array([index]), drop=True)
            left_out += span.packets[-1] - span.packets[0] + 1 - len(span.packets)
            np.testing.assert_array_equal(pictures(reader.frames([index]))[0], played[index])
        assert left_out > 50
        assert reader._drop


def test_only_needed_groups_are_decoded(folder: Path) -> None:
    path, _ = made("h264, short groups", folder)
    with PyAVReader(str(path)) as reader:
        spans = reader._index.plan(np.array([2, 40, 41, 85]), drop=False)
        assert sum(len(span.packets) for span in spans) <= 4 * 12
        assert [span.packets[0] for span in spans] == [
            int(reader._index.starts[reader._index.starts <= reader._index.order[rank]].max()) for rank in (2, 40, 85)
        ]


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("libx264", "mkv"), ("libx265", "mp4")])
def test_parameters_that_change_on_the_way(codec: str, suffix: str, tmp_path: Path) -> None:
    """Two streams joined: the second one's picture parameters came with its first key frame and not with later ones."""
    path, frames, parts = tmp_path / f"joined.{suffix}", moving_square(48), []
    for number, quality in enumerate((20, 40)):
        extra = "cabac=0" if codec == "libx264" else f"cbqpoffs={number}:log-level=0"
        options = {f"{codec[3:]}-params": f"qp={quality}:keyint=8:bframes=0:{extra}"}
        part = make_video(tmp_path / f"{number}.mp4", frames[24 * number :][:24], codec=codec, options=options)
        with av.open(str(part)) as file:
            video = file.streams.video[0]
            parts.append((video.codec_context.extradata, [packet for packet in file.demux(video) if packet.size]))
    # In the configuration record: how many there are, the length, the parameters of H.264 or H.265.
    found = re.search(rb"\x01(\x00.)(?=\x68|\x44\x01)", parts[1][0], re.DOTALL)
    own = parts[1][0][found.start(1) : found.end(1) + found[1][1]]
    with av.open(str(tmp_path / "0.mp4")) as template, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(template.streams.video[0])
        for number, packet in enumerate(parts[0][1] + parts[1][1]):
            data = bytes(packet) if number != 24 else b"\0\0" + own + bytes(packet)
            new = av.Packet(data)
            new.pts = new.dts = number * packet.duration
            new.is_keyframe, new.stream, new.time_base = packet.is_keyframe, stream, packet.time_base
            out.mux(new)
    played = list(play(path))
    with open_video(path) as reader:
        assert reader._index.reason == "the stream changes its parameters"
        np.testing.assert_array_equal(pictures(reader.frames([40]))[0], played[40])


def test_pictures_that_bring_matrices_for_later_ones_are_not_left_out() -> None:
    """MPEG-2's quantiser matrices count up to the next sequence header, also those that come with a B picture."""
    for extension, may_drop in (0x80, True), (0x30, False):
        parser = MPEG12(b"")
        for kind, header in (
            (0x08, b"\0\0\1\xb3abcd"),
            (0x10, b""),
            (0x18, bytes([0, 0, 1, 0xB5, extension, 0, 3, 0])),
        ):
            parser.read(memoryview(header + bytes([0, 0, 1, 0, 0, kind, 255]) + b"\0\0\1\1"))
        assert parser.may_drop == may_drop


def test_wrong_order_is_noticed(folder: Path) -> None:
    """Were the packets' order of presentation misread, the frames would still be those that playing shows."""
    path, played = made("h264, pyramid", folder)
    with PyAVReader(str(path)) as reader:
        reader._index = replace(reader._index, order=np.arange(90), display=np.arange(90))
        np.testing.assert_array_equal(pictures(reader.frames([50, 3, 41, 42])), played[[50, 3, 41, 42]])
        assert reader._index.order is None
        streamed = [frame.permute(1, 2, 0).numpy() for frame in reader.stream(0, 30)]
        np.testing.assert_array_equal(np.stack(streamed), played[:30])


# ---- time, crops, orientation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["h264, uneven", "h264, uneven, mkv"])
def test_times(name: str, folder: Path) -> None:
    path, played = made(name, folder)
    expected = (np.array(UNEVEN) - UNEVEN[0]) / 100
    with open_video(path) as reader:
        np.testing.assert_allclose(reader.timestamps, expected, atol=1e-9)
        indices = [0, 17, 3, 89]
        np.testing.assert_array_equal(pictures(reader.frames_at(expected[indices])), played[indices])
        between = (expected[10] + expected[11]) / 2
        np.testing.assert_array_equal(pictures(reader.frames_at(between))[0], played[10])
        np.testing.assert_array_equal(pictures(reader.frames_at(reader.info.duration_seconds))[0], played[89])
        assert reader.info.fps == pytest.approx(90 / reader.info.duration_seconds)
        for outside in (-0.1, reader.info.duration_seconds + 0.1, np.nan):
            with pytest.raises(ValueError, match="outside the video"):
                reader.frames_at(outside)


def test_times_of_even_video(folder: Path) -> None:
    for name in ("h264", "mpeg4, avi", "h264, raw", "h264, edit list"):
        path, played = made(name, folder)
        with open_video(path) as reader:
            np.testing.assert_allclose(reader.timestamps, np.arange(len(played)) / 25, atol=1e-3)
            assert reader.info.fps == pytest.approx(25, rel=0.01)


@pytest.mark.parametrize(
    "name", ["h264", "h264, 10 bit", "h264, 4:4:4, odd size", "h264, interlaced", "mpeg4, avi", "mjpeg", "vp9"]
)
@settings(max_examples=25)
@given(data=st.data())
def test_crop_gives_the_pixels_of_the_whole(name: str, folder: Path, data: st.DataObject) -> None:
    path, played = made(name, folder)
    height, width = played.shape[1:3]
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    crop = Crop(top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    spared = data.draw(st.sampled_from([pixels._SPARED, -math.inf]))  # as with small pictures, and as with large ones
    with open_video(path) as reader, mock.patch.object(pixels, "_SPARED", spared):
        got = pictures(reader.frames([31, 4], crop=crop))
    rows, columns = slice(top, top + crop.height), slice(left, left + crop.width)
    np.testing.assert_array_equal(got, played[[31, 4], rows, columns])


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_orientation(degrees: int, hflip: bool, tmp_path: Path) -> None:
    upright, turned = tmp_path / "upright.mp4", tmp_path / "turned.mp4"
    picture = moving_square(3)
    make_video(upright, picture)
    with av.open(str(turned), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write an orientation")
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = 48, 64, "yuv420p", 1
        stream.set_display_rotation(degrees, hflip=hflip)
        for image in picture:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with open_video(upright) as reader:
        plain = pictures(reader.frames([0, 1, 2]))
    # FFmpeg's definition: turned counter-clockwise by the degrees, then mirrored.
    expected = np.rot90(plain, degrees // 90, axes=(1, 2))
    expected = expected[:, :, ::-1] if hflip else expected
    with open_video(turned) as reader:
        np.testing.assert_array_equal(pictures(reader.frames([0, 1, 2])), expected)
        info = reader.info
        assert (info.height, info.width) == expected.shape[1:3]
        assert info.rotation == (-degrees % 360 if not hflip else info.rotation)
        crop = Crop(5, 7, 30, 11)
        np.testing.assert_array_equal(pictures(reader.frames([1], crop=crop))[0], expected[1, 5:35, 7:18])


# ---- manners --------------------------------------------------------------------------------------------------------


def test_layout(folder: Path) -> None:
    path, played = made("h264", folder)
    with open_video(path) as reader:
        frames = reader.frames([5, 5, 2])
        assert frames.shape == (3, 3, 48, 64)
        assert str(frames.dtype) == "torch.uint8"
        assert frames.is_contiguous() is False
        assert reader.frames([]).shape == (0, 3, 48, 64)
        assert reader.frames([], crop=Crop(0, 0, 9, 8)).shape == (0, 3, 9, 8)
        one = next(reader.stream(7))
        np.testing.assert_array_equal(one.permute(1, 2, 0).numpy(), played[7])


def test_mistakes(folder: Path) -> None:
    path, _ = made("h264", folder)
    with open_video(path) as reader:
        for indices in ([0, 90], [-1]):
            with pytest.raises(ValueError, match="outside the video, which has frames 0 to 89"):
                reader.frames(indices)
        for indices in ([0.5], [[1, 2]]):
            with pytest.raises(ValueError, match="whole numbers"):
                reader.frames(indices)
        for crop in (Crop(0, 0, 49, 10), Crop(-1, 0, 4, 4), Crop(0, 60, 4, 5), Crop(0, 0, 0, 4)):
            with pytest.raises(ValueError, match="does not fit"):
                reader.frames([0], crop=crop)
        with pytest.raises(ValueError, match="streamed"):
            next(reader.stream(0, 5, 0))
        assert reader.frames([1]).shape[0] == 1  # still usable
    with pytest.raises(ValueError, match="closed"):
        reader.frames([0])
    reader.close()
    with pytest.raises(ValueError, match="no decoder 'opencv'; choose one of pyav, torchcodec"):
        open_video(path, decoder="opencv")


def test_streams_do_not_disturb_each_other(folder: Path) -> None:
    path, played = made("mpeg4, avi", folder)
    with open_video(path) as reader:
        for number, (first, second) in enumerate(zip(reader.stream(), reader.stream(20), strict=False)):
            np.testing.assert_array_equal(first.permute(1, 2, 0).numpy(), played[number])
            np.testing.assert_array_equal(second.permute(1, 2, 0).numpy(), played[20 + number])
            if number == 6:
                np.testing.assert_array_equal(pictures(reader.frames([80]))[0], played[80])
        assert number == 69


def fast_start(path: Path) -> bytes:
    """An MP4 file with its table of contents in front."""
    kind = Kind("mp4", "libx264", {"g": "12"}, container={"movflags": "faststart"})
    write(path, kind)
    return path.read_bytes()


def test_broken_files(tmp_path: Path) -> None:
    whole = fast_start(tmp_path / "whole.mp4")
    media = whole.index(b"mdat") + 4
    noise = bytearray(whole)
    middle = media + (len(whole) - media) // 2
    noise[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    cases = {
        "empty.mp4": (b"", "the file is empty"),
        "zeros.mp4": (bytes(9000), "not that of a video"),
        "text.mp4": (b"no such video\n" * 400, "not"),
        "page.avi": (b"<html>404</html>", "not that of a video"),
        "list.mp4": (b"ffconcat version 1.0\nfile whole.mp4\n", "not in a video format"),
        "hls.mp4": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nwhole.mp4\n#EXT-X-ENDLIST\n", "not"),
        "cut.mp4": (whole[:middle], "cut off or damaged at packet"),
        "bare.mp4": (whole[: media + 2], "no frame in its video stream|cut off"),
        "no_moov.mp4": (whole[:32] + whole[media - 8 :], "without its table of contents"),
        "noise.mp4": (bytes(noise), "frame [0-9]+ (cannot be decoded|is damaged)"),
        "sound.mp4": ((tmp_path / "sound.wav").read_bytes(), r"no video stream in the file \(only audio\)"),
    }
    for name, (content, reason) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(VideoError, match=reason) as caught, open_video(path) as reader:
            reader.frames(range(reader.num_frames))
        assert (caught.value.path, str(caught.value)) == (str(path), f"{path}: {caught.value.reason}")
    with pytest.raises(VideoError, match="file not found"):
        probe(tmp_path / "absent.mp4")
    with pytest.raises(VideoError, match="is a folder"):
        probe(tmp_path)


def test_damage_later_on_leaves_earlier_frames(tmp_path: Path) -> None:
    path = tmp_path / "noise.avi"
    write(path, Kind("avi", "mpeg4", {"g": "12", "bf": "2"}))
    played = np.stack(list(play(path)))
    with PyAVReader(str(path)) as reader:
        at, size = reader._index.positions[60], reader._index.sizes[60]
    content = bytearray(path.read_bytes())
    content[at + 20 : at + 8 + size] = b"\xa5" * (size - 12)
    path.write_bytes(content)
    with open_video(path) as reader:
        np.testing.assert_array_equal(pictures(reader.frames([40, 3])), played[[40, 3]])
        with pytest.raises(VideoError, match=r"frame (59|60|61) (is damaged|cannot be decoded)"):
            reader.frames([62, 61, 60, 59])


@pytest.mark.parametrize("name", ["h264", "hevc", "hevc, ts", "mpeg4, avi", "mpeg2, ps", "vp8", "vp9", "av1", "mjpeg"])
@settings(max_examples=15)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(name: str, folder: Path, data: st.DataObject) -> None:
    """Whatever happens to a file, it gives frames or a VideoError: no other error, no crash, no hang."""
    path, _ = made(name, folder)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    begin = data.draw(st.integers(0, len(content)))
    content[begin : begin + data.draw(st.sampled_from([0, 0, 3, 2000]))] = b""
    damaged = folder / f"damaged.{path.suffix}"
    damaged.write_bytes(content)
    try:
        with open_video(damaged) as reader:
            last = reader.num_frames - 1
            frames = reader.frames([last, 0, last // 2])
            assert frames.shape == (3, 3, reader.info.height, reader.info.width)
    except VideoError as error:
        assert error.reason  # noqa: PT017


def test_name_says_nothing(folder: Path, tmp_path: Path) -> None:
    path, played = made("vp9", folder)
    disguised = tmp_path / "clip 100%, a:b.mp4"
    disguised.write_bytes(path.read_bytes())
    assert probe(disguised).codec == "vp9"
    with open_video(disguised) as reader:
        np.testing.assert_array_equal(pictures(reader.frames([44]))[0], played[44])
    alias = tmp_path / "picture.png"
    alias.write_bytes(path.read_bytes())
    assert probe(alias).num_frames == 90


def fail(path: str) -> None:
    raise VideoError(path, "some\nreason  in two lines")


@pytest.mark.multiprocess
def test_error_comes_back_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(VideoError(Path("a.mp4"), "some\nreason")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "some reason", "a.mp4: some reason")
    gc.collect()  # decoders with threads that other tests left would keep the forked process waiting for those threads
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(VideoError) as caught:
        pool.map(fail, ["a.mp4"])
    assert caught.value.reason == "some reason in two lines"


def test_short_reason() -> None:
    assert short_reason(VideoError("a.mp4", "cut off")) == "cut off"
    assert short_reason(FileNotFoundError(2, "No such file or directory", "/a")) == "No such file or directory"
    assert short_reason(ValueError("one\ntwo")) == "one two"
    assert short_reason(KeyError()) == "KeyError"
    assert len(short_reason(ValueError("x" * 999))) == 200


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays(folder: Path) -> None:
    """2,000 clips read by one process, good and bad files in turn."""
    broken = folder / "memory.mp4"
    broken.write_bytes(fast_start(folder / "memory_whole.mp4")[:-300])
    names = ["h264", "h264, raw", "mpeg4, avi", "vp9"]
    paths = [made(name, folder)[0] for name in names]

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    rng = np.random.default_rng(0)
    for number in range(2000):
        if number == 200:
            before = resident_mb()
        with open_video(paths[number % len(paths)]) as reader:
            assert reader.frames(rng.integers(0, 70, 1) + np.arange(0, 16, 2)).shape[0] == 8
        if number % 4 == 0:
            with pytest.raises(VideoError):
                probe(broken)
    assert resident_mb() - before < 50


# ---- torchcodec -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("h264", ""),
        ("h264, short groups", ""),
        ("h264, uneven", ""),
        ("hevc", ""),
        ("mpeg4, mp4", ""),
        ("vp9", ""),
        ("mpeg4, avi", "no reliable times"),
        ("h264, ts", "no reliable times"),
        ("h264, open groups", "clean beginning"),
        ("h264, edit list", "show no frame"),
        ("mpeg4, interlaced", "no reliable times"),
    ],
)
def test_torchcodec_is_right_or_refuses(name: str, reason: str, folder: Path) -> None:
    try:
        torchcodec_reader._decoder_class()
    except ValueError as error:
        pytest.skip(str(error))
    path, played = made(name, folder)
    if reason:
        with pytest.raises(VideoError, match=reason):
            open_video(path, decoder="torchcodec")
        return
    with open_video(path, decoder="torchcodec") as reader, open_video(path) as other:
        assert reader.info == other.info
        indices = [80, 3, 3, 44, 45, 2, 89]
        np.testing.assert_array_equal(pictures(reader.frames(indices)), played[indices])
        crop = Crop(3, 5, 20, 31)
        np.testing.assert_array_equal(pictures(reader.frames([9], crop=crop))[0], played[9, 3:23, 5:36])
        np.testing.assert_array_equal(pictures(reader.frames_at(reader.timestamps[7]))[0], played[7])
        streamed = [frame.permute(1, 2, 0).numpy() for frame in reader.stream(5, 80, 4)]
        np.testing.assert_array_equal(np.stack(streamed), played[5:80:4])
        with pytest.raises(ValueError, match="outside the video"):
            reader.frames([90])
    with pytest.raises(ValueError, match="closed"):
        reader.frames([0])


def test_torchcodec_absent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = made("h264", folder)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.delitem(sys.modules, "torchcodec.decoders", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'timegrain\[torchcodec\]'"):
        open_video(path, decoder="torchcodec")

    def no_ffmpeg(name: str) -> None:
        raise RuntimeError("Could not load libtorchcodec")

    monkeypatch.setattr(torchcodec_reader.importlib, "import_module", no_ffmpeg)
    with pytest.raises(ValueError, match="no FFmpeg libraries"):
        open_video(path, decoder="torchcodec")
