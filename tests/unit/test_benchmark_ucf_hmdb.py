"""The split files of UCF101 and HMDB51, as published and wrong."""

from __future__ import annotations

from collections import Counter

import pytest

from timegrain.data.benchmarks.ucf_hmdb import read_hmdb51, read_ucf101


@pytest.mark.parametrize(("fold", "counts"), [(1, (9537, 3783)), (2, (9586, 3734)), (3, (9624, 3696))])
def test_the_published_ucf101_splits(shared, fold, counts):
    benchmark = read_ucf101(shared / "data" / "annotations" / "ucf101", fold)
    splits = Counter(video.split for video in benchmark.listed)
    assert (splits["train"], splits["test"]) == counts
    assert len(benchmark.listed) == 13320
    assert len(benchmark.facts["classes"]) == 101
    video = next(video for video in benchmark.listed if video.video_id.endswith("v_YoYo_g01_c02.avi"))
    assert (video.label, video.group, video.stems) == ("YoYo", "v_YoYo_g01", ("v_YoYo_g01_c02",))
    assert video.extra == {"split1": "test", "split2": "train", "split3": "train"}
    groups = {"train": set(), "test": set()}
    for video in benchmark.listed:
        groups[video.split].add(video.group)
    assert not groups["train"] & groups["test"]


def ucf(folder, train="A/v_A_g01_c01.avi 1\n", test="B/v_B_g02_c01.avi\n", classes="1 A\n2 B\n"):
    (folder / "classInd.txt").write_bytes(classes.encode())
    (folder / "trainlist01.txt").write_bytes(train.encode())
    (folder / "testlist01.txt").write_bytes(test.encode())
    return read_ucf101(folder)


def test_one_split_with_mixed_line_ends(tmp_path):
    benchmark = ucf(tmp_path, "A/v_A_g01_c01.avi 1\r\nB/v_B_g01_c01.avi 2\n\n")
    assert [(video.video_id, video.split) for video in benchmark.listed] == [
        ("A/v_A_g01_c01.avi", "train"),
        ("B/v_B_g01_c01.avi", "train"),
        ("B/v_B_g02_c01.avi", "test"),
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"classes": "A\n"}, r"classInd.txt, line 1: 'A' isn't a number and a class"),
        ({"classes": "1 A\n2 A\n"}, r"classInd.txt, line 2: A is listed in line 1 already"),
        (
            {"train": "C/v_C_g01_c01.avi 1\n"},
            r"trainlist01.txt, line 1: 'C/v_C_g01_c01.avi 1' isn't a video of a class",
        ),
        ({"train": "v_A_g01_c01.avi 1\n"}, "line 1: .* isn't a video of a class"),
        ({"train": "A/v_A_g01_c01.avi 2\n"}, "line 1: A is class 1, not 2"),
        ({"train": 2 * "A/v_A_g01_c01.avi 1\n"}, "line 2: A/v_A_g01_c01.avi is listed in line 1 already"),
        ({"test": "A/v_A_g01_c01.avi\n"}, r"testlist01.txt, line 1: .* is in the other list of split 1 too"),
        ({"train": "", "test": ""}, "split 1 lists no video"),
    ],
)
def test_a_wrong_ucf101_line_is_named(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        ucf(tmp_path, **files)


def test_missing_ucf101_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"classInd.txt; give the folder that holds"):
        read_ucf101(tmp_path)
    ucf(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no .*trainlist02.txt"):
        read_ucf101(tmp_path, 2)
    with pytest.raises(ValueError, match="--fold 4: the official splits are 1, 2 and 3"):
        read_ucf101(tmp_path, 4)
    (tmp_path / "testlist03.txt").write_text("B/v_B_g02_c01.avi\n")
    with pytest.raises(FileNotFoundError, match=r"no .*trainlist03.txt"):
        read_ucf101(tmp_path)


def official_hmdb51(shared, folder):
    """The official layout of split 1 from a list of (name, class number)."""
    source = shared / "data" / "annotations" / "hmdb51"
    classes = source.joinpath("label_map.txt").read_text().split()
    lines = {name: [] for name in classes}
    for kind, code in (("train", 1), ("test", 2)):
        for line in source.joinpath(f"{kind}list01.txt").read_text().splitlines():
            video, number = line.split()
            lines[classes[int(number) - 1]].append(f"{video}.avi {code} ")
    for name, content in lines.items():
        content.append(f"not_used_{name}.avi 0 ")
        (folder / f"{name}_test_split1.txt").write_text("\n".join(content) + "\n")


def test_the_hmdb51_split(shared, tmp_path):
    official_hmdb51(shared, tmp_path)
    benchmark = read_hmdb51(tmp_path)
    assert Counter(video.split for video in benchmark.listed) == {"train": 3570, "test": 1530, None: 51}
    assert len(benchmark.facts["classes"]) == 51
    video = benchmark.listed[0]
    assert video.label == "brush_hair"
    assert video.stems[0] + ".avi" == video.video_id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.avi 3\n", r"jump_test_split1.txt, line 1: 'a.avi 3' isn't a video and 0, 1 or 2"),
        ("a.avi\n", "line 1: 'a.avi' isn't a video"),
        ("a.avi 1\nb.avi 2\na.avi 2\n", "line 3: a.avi is listed in line 1 already"),
        ("a.avi 0\n", "split 1 lists no video"),
    ],
)
def test_a_wrong_hmdb51_line_is_named(tmp_path, text, message):
    (tmp_path / "jump_test_split1.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_hmdb51(tmp_path)


def test_missing_hmdb51_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no CLASS_test_split2.txt in"):
        read_hmdb51(tmp_path, 2)
    (tmp_path / "jump_test_split1.txt").write_text("a.avi 1\n")
    (tmp_path / "jump_test_split2.txt").write_text("a.avi 1\n")
    (tmp_path / "bend_test_split2.txt").write_text("b.avi 1\n")
    with pytest.raises(ValueError, match="split 1 lacks the file of bend"):
        read_hmdb51(tmp_path)
