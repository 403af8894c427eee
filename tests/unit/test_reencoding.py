"""Videos written anew: same frames, same times, another size and codec."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from conftest import make_video, moving_square
from timegrain.data import reencoding
from timegrain.data.decoding import open_video
from timegrain.data.isolated import Failure
from timegrain.data.reencoding import Conversion, Encoding, convert, convert_files


@pytest.mark.parametrize(
    ("size", "encoding", "expected"),
    [
        ((256, 340), Encoding(128), (128, 170)),
        ((544, 1280), Encoding(128), (128, 302)),
        ((544, 1280), Encoding(128, kind="frames"), (128, 301)),
        ((1920, 1080), Encoding(256), (456, 256)),
        ((121, 161), Encoding(256), (120, 160)),  # never larger; even
        ((121, 161), Encoding(256, kind="frames"), (121, 161)),
        ((1, 1), Encoding(256), (2, 2)),
    ],
)
def test_sizes(size, encoding, expected):
    assert encoding.size(*size) == expected


@pytest.mark.parametrize("values", [{"short_side": 8}, {"gop": 0}, {"crf": 60}])
def test_impossible_settings(values):
    with pytest.raises(ValueError, match="--"):
        Encoding(**values)


def irregular_video(path: Path) -> Path:
    steps = np.array([40, 40, 80, 33, 33, 120, 17] * 6)
    return make_video(
        path, moving_square(42, 96, 128), pts=[0, *np.cumsum(steps)[:41].tolist()], time_base=Fraction(1, 1000)
    )


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_frames_and_irregular_times_stay(tmp_path, kind):
    source = irregular_video(tmp_path / "a.mkv")
    target = tmp_path / ("a.mp4" if kind == "video" else "a.frames")
    row = convert(Conversion(str(source), str(target), Encoding(48, 12, 18, kind)))
    assert row["path"] == str(target)
    assert (row["num_frames"], row["height"], row["width"]) == (42, 48, 64)
    assert row["size_bytes"] == target.stat().st_size
    with open_video(source) as before, open_video(target) as after:
        np.testing.assert_allclose(after.timestamps, before.timestamps, atol=1e-6)
        assert after.info.duration_seconds == pytest.approx(before.info.duration_seconds, abs=0.13)  # the last frame's
        old, new = before.frames(np.arange(42)), after.frames(np.arange(42))
    small = np.stack(
        [cv2.resize(picture, (64, 48), interpolation=cv2.INTER_AREA) for picture in old.permute(0, 2, 3, 1).numpy()]
    )
    distance = np.abs(small[:, None].astype(int) - new.permute(0, 2, 3, 1).numpy()[None]).mean((2, 3, 4))
    assert (distance.argmin(1) == np.arange(42)).all()  # every frame is nearest to itself
    assert distance.diagonal().max() < 6
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_key_frames_are_near(tmp_path):
    source = make_video(tmp_path / "a.mp4", moving_square(60), options={"g": "250"})
    convert(Conversion(str(source), str(tmp_path / "b.mp4"), Encoding(48, 12)))
    with av.open(str(tmp_path / "b.mp4")) as container:
        keys = [number for number, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
        assert [stream.type for stream in container.streams] == ["video"]
    assert max(np.diff([*keys, 60])) <= 12


def test_a_broken_source_leaves_nothing(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"a.mp4: "):
        convert(Conversion(str(tmp_path / "a.mp4"), str(tmp_path / "out" / "a.mp4"), Encoding()))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.multiprocess
def test_many_files_are_written_once(tmp_path, capsys):
    folder, media = tmp_path / "videos", tmp_path / "media"
    paths = [make_video(folder / "x" / f"{name}.mp4", moving_square(20, seed=seed)) for seed, name in enumerate("ab")]
    paths.append(make_video(folder / "x" / "a.mkv", moving_square(21)))
    broken = folder / "broken.mp4"
    broken.write_bytes(b"no video")
    rows = convert_files([*paths, broken], folder, media, Encoding(32), 2)
    places = [str(Path(row["path"]).relative_to(media)) for row in rows[:3]]
    assert places == ["x/a.mp4.mp4", "x/b.mp4", "x/a.mkv.mp4"]
    assert [row["num_frames"] for row in rows[:3]] == [20, 20, 21]
    assert [row["source_path"] for row in rows] == [str(path) for path in [*paths, broken]]
    assert rows[3]["path"] == str(broken)
    assert "video" in rows[3]["error"]
    written = {path: path.stat().st_mtime_ns for path in media.rglob("*.mp4")}
    (media / "x" / ".c.123.part.mp4").write_bytes(b"left by a killed worker")
    make_video(paths[1], moving_square(25, seed=5))  # changed
    Path(rows[2]["path"]).unlink()  # lost
    assert "done before" not in capsys.readouterr().err
    again = convert_files(paths, folder, media, Encoding(32), 1)
    assert "1 of 3 videos were done before" in capsys.readouterr().err
    assert [row["num_frames"] for row in again] == [20, 25, 21]
    kept = [path for path, time in written.items() if path.stat().st_mtime_ns == time]
    assert kept == [media / "x" / "a.mp4.mp4"]
    assert not list(media.rglob(".*.part*"))
    assert again[0] == rows[0]


def test_a_full_disk_stops_with_one_message(tmp_path, monkeypatch):
    source = make_video(tmp_path / "videos" / "a.mp4", moving_square(5))
    full = [(0, Failure("No space left on device"))]
    monkeypatch.setattr(reencoding, "run_isolated", lambda *_: iter(full))
    with pytest.raises(OSError, match="make room and give the command again"):
        convert_files([source], tmp_path / "videos", tmp_path / "media", Encoding(32))
