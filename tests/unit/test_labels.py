"""Labels from folders and from csv files."""

from __future__ import annotations

import pytest

from timegrain.data.labels import VideoLabels, labels_from_folders, read_label_file


def from_folders(root, *names):
    labels = labels_from_folders(root, [root / name for name in names])
    return [labels[str(root / name)] for name in names]


def test_the_first_folder_is_the_label(tmp_path):
    found = from_folders(tmp_path, "jump/a.mp4", "jump/deeper/b.mp4", "c.mp4")
    assert found == [VideoLabels("jump"), VideoLabels("jump"), VideoLabels()]


def test_split_folders_come_first(tmp_path):
    found = from_folders(tmp_path, "train/jump/a.mp4", "test/bend/b.mp4", "val/c.mp4")
    assert found == [VideoLabels("jump", split="train"), VideoLabels("bend", split="test"), VideoLabels(split="val")]


def test_a_class_called_test_is_a_class_when_other_folders_are_no_splits(tmp_path):
    assert from_folders(tmp_path, "test/a.mp4", "jump/b.mp4") == [VideoLabels("test"), VideoLabels("jump")]


def read(tmp_path, text, *names, encoding="utf-8"):
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return read_label_file(path, tmp_path, [tmp_path / name for name in names])


def test_a_csv_with_all_columns(tmp_path):
    text = f"path,label,group,split,fps\na.mp4,jump,g1,train,25\n\n{tmp_path}/b c.mp4,bend,,test,30\n"
    content = read(tmp_path, text, "a.mp4", "b c.mp4", "unlisted.mp4")
    assert content.labels == {
        str(tmp_path / "a.mp4"): VideoLabels("jump", "g1", "train"),
        str(tmp_path / "b c.mp4"): VideoLabels("bend", None, "test"),
    }
    assert content.ignored_columns == ["fps"]
    assert content.absent == []


def test_a_csv_from_a_spreadsheet(tmp_path):
    content = read(tmp_path, '\ufefflabel,path\r\n"jump, high",./x/../a.mp4\r\n', "a.mp4")
    assert content.labels == {str(tmp_path / "a.mp4"): VideoLabels("jump, high")}


def test_absent_videos_are_listed_with_their_lines(tmp_path):
    content = read(tmp_path, "path,label\na.mp4,x\nb.mp4,y\nc.mp4,z\n", "b.mp4")
    assert content.absent == [(2, "a.mp4"), (4, "c.mp4")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header lacks the column path and label; it has nothing"),
        ("video,label\n", "line 1: the header lacks the column path; it has video, label"),
        ("path,label\n", "names no video"),
        ("path,label\na.mp4,x\na.mp4,y\n", "line 3: a.mp4 is named in line 2 too"),
        ("path,label\na.mp4,x\n./a.mp4,y\n", "line 3: ./a.mp4 is named in line 2 too"),
        ("path,label\na.mp4\n", "line 2: 1 values for 2 columns"),
        ("path,label\na.mp4,\n", "line 2: no label"),
        ("path,label\n,x\n", "line 2: no path"),
        ('path,label\na.mp4,"x\n', "line 2: unexpected end of data"),
    ],
)
def test_a_wrong_csv_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, text, "a.mp4")
    assert "labels.csv" in str(caught.value)


def test_files_that_are_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="no label file at"):
        read_label_file(tmp_path / "none.csv", tmp_path, [])
    with pytest.raises(ValueError, match="isn't UTF-8 text"):
        read(tmp_path, "path,label\nä.mp4,x\n", "a.mp4", encoding="latin-1")
