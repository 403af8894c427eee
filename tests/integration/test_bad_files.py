"""Every command that reads a benchmark's files, given each kind of bad file: one message, exit code 2, nothing else.

The message names the file, and the line, key or row in it. Nothing in a file is executed, nothing is printed as a
result, and no output is left behind.
"""

from __future__ import annotations

import json
import os
import pickle

import pytest

from timegrain.cli import main

GEBD = {
    key: {
        "num_frames": 300,
        "fps": 30.0,
        "video_duration": 10.0,
        "path_video": f"run/{key}_000000_000010.mp4",
        "f1_consis": [0.9, 0.8, 0.7],
        "f1_consis_avg": 0.8,
        "substages_timestamps": [[5.0], [5.1], [4.0, 8.0]],
    }
    for key in ("aaaaaaaaaaa", "bbbbbbbbbbb")
}
CHANGE = {"start_time": 5.0, "end_time": 5.2, "label": "EventChange (1): x"}
RAW = {key: record | {"substages_timestamps": [[CHANGE]] * 3} for key, record in GEBD.items()}
SEGMENTS = ["v_aaaaaaaaaaa_seg_0_10", "v_bbbbbbbbbbb_seg_0_10"]
EVENTS = {f"Ev{i}": ["run.01"] * 10 for i in range(1, 6)}
INFO = [{"vid_seg_int": segment, "vbid_lst": EVENTS} for segment in SEGMENTS]
VERBS = [{"ann_idx": i, "pred_vbs_ev": [["run.01"]] * 5, "pred_scores_ev": [[0.5]] * 5} for i in range(2)]
CLIPS = {"labels": [0, 1], "clip_ids": [0, 1], "logits_by_clip_id": [[1.0, 0.0], [0.0, 1.0]], "views_per_video": 1}
SETS = {
    "gallery_train": [[1.0, 0.0], [0.0, 1.0]],
    "gallery_labels": [0, 1],
    "query_test": [[1.0, 0.1]],
    "query_labels": [0],
}
BOX = "v,0902,0.1,0.1,0.5,0.5,12"
MAP = 'item {\n  name: "stand"\n  id: 12\n}\n'
KINETICS = "label,youtube_id,time_start,time_end,split\n"
CLIP = "run,aaaaaaaaaaa,0,10,val\n"
GOOD = {
    "gt.json": json.dumps(GEBD),
    "p.json": json.dumps({key: [5.0] for key in GEBD}),
    "vidsitu/split_files/vseg_split_valid_lb.json": json.dumps(SEGMENTS),
    "vidsitu/vinfo_files/vinfo_valid_lb.json": json.dumps(INFO),
    "verbs.json": json.dumps(VERBS),
    "gt.csv": f"{BOX},1\nv,0903\n",
    "det.csv": f"{BOX},0.9\n",
    "map.pbtxt": MAP,
    "topk.json": json.dumps(CLIPS),
    "retrieval.json": json.dumps(SETS),
    "kinetics/val.csv": KINETICS + CLIP,
    "ucf/classInd.txt": "1 Run\n",
    "ucf/trainlist01.txt": "Run/v_Run_g08_c01.avi 1\n",
    "ucf/testlist01.txt": "Run/v_Run_g01_c01.avi\n",
    "hmdb/run_test_split1.txt": "a_run_1.avi 1 \nb_run_2.avi 2 \n",
    "gebd/k400_val_raw_annotation.pkl": pickle.dumps(RAW),
    "ava/ava_action_list_v2.2_for_activitynet_2019.pbtxt": MAP,
    "ava/ava_val_v2.2.csv": f"{BOX},1\n",
    "ava/kinetics_val_v1.0.csv": "abcdefghijk,5.0,0.1,0.1,0.5,0.5,12\n",
}
COMMANDS = {
    "gebd": "score gebd --ground-truth gt.json --predictions p.json --missing challenge",
    "vidsitu": "score vidsitu --ground-truth vidsitu --predictions verbs.json",
    "ava": "score ava --ground-truth gt.csv --predictions det.csv --label-map map.pbtxt",
    "topk": "score topk --predictions topk.json",
    "retrieval": "score retrieval --predictions retrieval.json",
    "floors gebd": "floors gebd --ground-truth gt.json",
    "floors vidsitu": "floors vidsitu --ground-truth vidsitu",
    "floors kinetics": "floors kinetics --ground-truth kinetics/val.csv",
    "floors ava": "floors ava --ground-truth gt.csv --label-map map.pbtxt",
    **{
        f"prepare {name}": f"prepare {name} videos --annotations {folder} --out out/m.parquet"
        for name, folder in (
            ("kinetics400", "kinetics"),
            ("ucf101", "ucf"),
            ("hmdb51", "hmdb"),
            ("vidsitu", "vidsitu"),
            ("gebd", "gebd"),
            ("ava-kinetics", "ava"),
        )
    },
}


class RunsOnLoad:
    def __reduce__(self):
        return os.system, ("touch executed",)


def changed(record, **fields):
    return json.dumps({"aaaaaaaaaaa": record | fields})


def without(record, name):
    return json.dumps({"aaaaaaaaaaa": {key: value for key, value in record.items() if key != name}})


EVIL = pickle.dumps({"aaaaaaaaaaa": RunsOnLoad()})
DEEP = "[" * 100_000
GT, INFO_FILE = "gt.json", "vidsitu/vinfo_files/vinfo_valid_lb.json"
SPLIT = "vidsitu/split_files/vseg_split_valid_lb.json"
RAW_FILE, LABEL_MAP = "gebd/k400_val_raw_annotation.pkl", "ava/ava_action_list_v2.2_for_activitynet_2019.pbtxt"


def raw(**fields):
    return pickle.dumps({"aaaaaaaaaaa": RAW["aaaaaaaaaaa"] | fields})


# (commands, file, its bad content, what the message must say)
BAD = {
    # ---- a field or column is missing
    "gebd field": (
        ["gebd", "floors gebd"],
        GT,
        without(GEBD["aaaaaaaaaaa"], "f1_consis_avg"),
        "'f1_consis_avg' is missing",
    ),
    "vidsitu field": (["vidsitu"], "verbs.json", json.dumps([{"ann_idx": 0}]), "entry 0: the field 'pred_vbs_ev'"),
    "vidsitu label field": (
        ["vidsitu", "floors vidsitu", "prepare vidsitu"],
        INFO_FILE,
        json.dumps([{"vid_seg_int": segment} for segment in SEGMENTS]),
        "seg_0_10': the field 'vbid_lst' is missing",
    ),
    "ava column": (["ava"], "det.csv", f"{BOX},0.9\n{BOX}\n", "det.csv, line 2: 7 columns"),
    "ava truth column": (["ava", "floors ava"], "gt.csv", f"{BOX},1\nv,0903,1\n", "gt.csv, line 2: 3 columns"),
    "label map field": (
        ["ava", "floors ava"],
        "map.pbtxt",
        MAP + "item {\n  id: 13\n}\n",
        "map.pbtxt, line 5: an item",
    ),
    "topk field": (["topk"], "topk.json", json.dumps({"labels": [0]}), "the field 'clip_ids' is missing"),
    "retrieval field": (["retrieval"], "retrieval.json", json.dumps({"labels": [0]}), "the field 'gallery_train' is"),
    "kinetics column": (["floors kinetics"], "kinetics/val.csv", "name,split\nrun,val\n", "line 1: no column 'label'"),
    "prepare kinetics column": (
        ["prepare kinetics400"],
        "kinetics/val.csv",
        "name,split\nrun,val\n",
        "no csv with the",
    ),
    "prepare kinetics value": (
        ["prepare kinetics400"],
        "kinetics/val.csv",
        KINETICS + "run,a\n",
        "line 2: 2 values for 5",
    ),
    "prepare ucf class": (["prepare ucf101"], "ucf/classInd.txt", "Run\n", "classInd.txt, line 1: 'Run' isn't"),
    "prepare hmdb code": (
        ["prepare hmdb51"],
        "hmdb/run_test_split1.txt",
        "a.avi\n",
        "split1.txt, line 1: 'a.avi' isn't",
    ),
    "prepare gebd field": (
        ["prepare gebd"],
        RAW_FILE,
        raw(f1_consis=[0.9]),
        "video 'aaaaaaaaaaa': f1_consis must hold",
    ),
    "prepare ava column": (
        ["prepare ava-kinetics"],
        "ava/ava_val_v2.2.csv",
        "m,0902,1\n",
        "v2.2.csv, line 1: 3 columns",
    ),
    # ---- ids that nothing knows
    "gebd ids": (["gebd"], "p.json", json.dumps({"zzz": [1.0]}), "no video of p.json is in the ground truth: 'zzz'"),
    "vidsitu id": (["vidsitu"], "verbs.json", json.dumps([VERBS[0] | {"ann_idx": 7}]), "entry 0: ann_idx 7 is not in"),
    "vidsitu absent": (["vidsitu"], "verbs.json", json.dumps(VERBS[:1]), "the first is 'v_bbbbbbbbbbb_seg_0_10'"),
    "vidsitu segment": (
        ["floors vidsitu"],
        SPLIT,
        json.dumps(["v_c_seg_0_10"]),
        "'v_c_seg_0_10': it is in the split but",
    ),
    "vidsitu name": (["prepare vidsitu"], SPLIT, json.dumps(["x"]), "segment 'x'"),
    "topk id": (["topk"], "topk.json", json.dumps(CLIPS | {"clip_ids": [0, 9]}), "clip_ids, row 1: clip 9 has no row"),
    "topk label": (["topk"], "topk.json", json.dumps(CLIPS | {"labels": [0, 5]}), "video 1 has label 5"),
    "kinetics split": (
        ["prepare kinetics400"],
        "kinetics/val.csv",
        KINETICS + "run,a,0,10,dev\n",
        "unknown split 'dev'",
    ),
    "ucf class": (["prepare ucf101"], "ucf/trainlist01.txt", "Hop/v_Hop_g08_c01.avi 1\n", "trainlist01.txt, line 1: "),
    # ---- numbers that are none
    "gebd nan": (["gebd"], "p.json", '{"aaaaaaaaaaa": [1.0, NaN]}', "video 'aaaaaaaaaaa': nan is not a finite number"),
    "gebd huge": (["gebd"], "p.json", '{"aaaaaaaaaaa": [1' + "0" * 400 + "]}", "'aaaaaaaaaaa': inf is not a finite"),
    "gebd truth nan": (
        ["gebd", "floors gebd"],
        GT,
        changed(GEBD["aaaaaaaaaaa"], video_duration=float("nan")),
        "'aaaaaaaaaaa', video_duration: nan is not a finite number",
    ),
    "vidsitu nan": (
        ["vidsitu"],
        "verbs.json",
        json.dumps([VERBS[0], VERBS[1] | {"pred_scores_ev": [[float("nan")]] * 5}]),
        "entry 1, pred_scores_ev: nan is not a finite number",
    ),
    "ava nan": (["ava"], "det.csv", f"{BOX},0.9\n{BOX},nan\n", "det.csv, line 2: score is not a finite number"),
    "ava text": (["ava", "floors ava"], "gt.csv", f"{BOX},1\n{BOX},x\n", "gt.csv, line 2: score 'x' is not a number"),
    "topk nan": (
        ["topk"],
        "topk.json",
        json.dumps(CLIPS | {"logits_by_clip_id": [[1.0, 0.0], [float("nan"), 1.0]]}),
        "logits_by_clip_id, row 1: a number is missing or not finite",
    ),
    "topk huge": (["topk"], "topk.json", json.dumps(CLIPS | {"labels": [0, 10**30]}), "labels, row 1: 1e+30 is not"),
    "retrieval nan": (
        ["retrieval"],
        "retrieval.json",
        json.dumps(SETS | {"query_test": [[1.0, float("inf")]]}),
        "query_test, row 0: a number is missing or not finite",
    ),
    "kinetics nan": (
        ["prepare kinetics400"],
        "kinetics/val.csv",
        KINETICS + "run,a,nan,10,val\n",
        "time_start 'nan' is",
    ),
    "gebd raw nan": (["prepare gebd"], RAW_FILE, raw(fps=float("nan")), "video 'aaaaaaaaaaa': fps = nan is not"),
    "prepare ava nan": (["prepare ava-kinetics"], "ava/ava_val_v2.2.csv", "m,0902,0,0,1,nan,12,1\n", "y2 'nan' is not"),
    # ---- the same thing twice
    "gebd twice": (["gebd"], "p.json", '{"aaaaaaaaaaa": [1.0], "aaaaaaaaaaa": [2.0]}', "'aaaaaaaaaaa' is given twice"),
    "vidsitu info twice": (["vidsitu"], INFO_FILE, json.dumps([*INFO, INFO[0]]), "entry 2: segment 'v_aaaaaaaaaaa_seg"),
    "vidsitu split twice": (
        ["vidsitu"],
        SPLIT,
        json.dumps([*SEGMENTS, SEGMENTS[0]]),
        "'v_aaaaaaaaaaa_seg_0_10' is listed",
    ),
    "topk twice": (["topk"], "topk.json", json.dumps(CLIPS | {"clip_ids": [1, 1]}), "clip id 1 is given twice"),
    "label map twice": (
        ["ava", "floors ava"],
        "map.pbtxt",
        MAP + MAP,
        "map.pbtxt, line 5: id 12 or name 'stand' occurs",
    ),
    "kinetics twice": (
        ["prepare kinetics400"],
        "kinetics/val.csv",
        KINETICS + CLIP + CLIP,
        "line 3: aaaaaaaaaaa_000000",
    ),
    "ucf twice": (
        ["prepare ucf101"],
        "ucf/testlist01.txt",
        "Run/v_Run_g08_c01.avi\n",
        "is in the other list of split 1",
    ),
    "hmdb twice": (
        ["prepare hmdb51"],
        "hmdb/run_test_split1.txt",
        "a.avi 1\na.avi 1\n",
        "line 2: a.avi is listed in line 1",
    ),
    "prepare ava twice": (["prepare ava-kinetics"], LABEL_MAP, MAP + MAP, "line 5: id 12 or name 'stand' occurs twice"),
    # ---- pickles that try to run code, under any name that is read as a pickle
    "gebd evil": (["gebd --predictions evil.pkl"], "evil.pkl", EVIL, "system"),
    "truth evil": (
        ["gebd --ground-truth evil.pkl", "floors gebd --ground-truth evil.pkl"],
        "evil.pkl",
        EVIL,
        "system",
    ),
    "vidsitu evil": (["vidsitu --predictions evil.pkl"], "evil.pkl", EVIL, "system"),
    "topk evil": (["topk --predictions evil.pkl"], "evil.pkl", EVIL, "system"),
    "retrieval evil": (["retrieval --predictions evil.pkl"], "evil.pkl", EVIL, "system"),
    "prepare gebd evil": (["prepare gebd"], RAW_FILE, EVIL, "system"),
    # ---- cut short, of another kind, empty, nested without end
    "json cut": (["gebd"], "p.json", '{"aaaaaaaaaaa": [1.0,', "p.json, line 1, column"),
    "json deep": (["gebd", "floors gebd"], GT, DEEP, "gt.json"),
    "topk deep": (["topk"], "topk.json", DEEP, "topk.json"),
    "vidsitu cut": (["vidsitu", "floors vidsitu", "prepare vidsitu"], INFO_FILE, "[{", "vinfo_valid_lb.json, line 1"),
    "pickle cut": (
        ["prepare gebd"],
        RAW_FILE,
        pickle.dumps(RAW)[:-9],
        "k400_val_raw_annotation.pkl: refused or unreadable",
    ),
    "gebd other": (["gebd", "floors gebd"], GT, "[1, 2]", "gt.json: a dict is needed, not list"),
    "retrieval other": (["retrieval"], "retrieval.json", "3", "retrieval.json: a dict is needed, not int"),
    "ava binary": (["ava"], "det.csv", b"\xff\xfe\x00", "det.csv, after line 0: not a text file of rows"),
    "ava one line": (["ava"], "det.csv", "x" * 200_000, "det.csv, after line"),
    "kinetics binary": (
        ["floors kinetics", "prepare kinetics400"],
        "kinetics/val.csv",
        b"\xff\xfe\x00",
        "val.csv, after line",
    ),
    "ucf binary": (["prepare ucf101"], "ucf/trainlist01.txt", b"\xff\xfe\x00", "trainlist01.txt: not a text file"),
    "hmdb binary": (["prepare hmdb51"], "hmdb/run_test_split1.txt", b"\xff\xfe\x00", "split1.txt: not a text file"),
    "prepare ava binary": (["prepare ava-kinetics"], "ava/ava_val_v2.2.csv", b"\xff\xfe\x00", "v2.2.csv, after line"),
    "ava empty": (["ava", "floors ava"], "gt.csv", "", "gt.csv: no row in it"),
    "gebd empty": (["gebd", "floors gebd"], GT, "{}", "gt.json: no video in it"),
    "kinetics empty": (["floors kinetics"], "kinetics/val.csv", KINETICS, "val.csv: no label in it"),
    "topk empty": (["topk"], "topk.json", "", "topk.json, line 1"),
    "retrieval empty": (["retrieval"], "retrieval.json", "", "retrieval.json, line 1"),
    "map empty": (["ava", "floors ava"], "map.pbtxt", "", "map.pbtxt: no item in it"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, content in GOOD.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "other.mp4").write_bytes(b"no video")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(command):
    """The words of a command of the table; options given after its name replace its own."""
    name, _, further = command.partition(" --")
    words = COMMANDS[name].split()
    for option, value in [pair.split() for pair in f"--{further}".split(" --")] if further else []:
        words[words.index(option) + 1] = value
    return words


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_gives_one_message_and_nothing_else(folder, capsys, kind):
    commands, name, content, message = BAD[kind]
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    before = sorted(folder.rglob("*"))
    for command in commands:
        code = main([*typed(command), "--json"])
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), command
        assert message in err
        assert err.count("error: ") == 1
        assert len(err) < 700
        assert "Traceback" not in err
        assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_files_are_good_with_any_line_ends_and_order(folder, capsys, name):
    def run():
        code = main([*typed(name), "--json"])
        out, err = capsys.readouterr()
        if name.startswith("prepare"):  # the files are read; only the videos aren't there
            assert code == 2
            assert "none of the" in err
            return err
        assert code == 0, err
        return json.loads(out)

    first = run()
    for path in folder.rglob("*"):
        if path.suffix in (".csv", ".txt", ".pbtxt", ".json"):
            lines = path.read_text().splitlines()
            ends = ["\r\n" if number % 2 else "\n" for number in range(len(lines))]
            path.write_bytes("".join(line + end for line, end in zip(lines, ends, strict=True)).encode() + b"\r\n")
    for path in (folder / "gt.csv", folder / "det.csv", folder / "ava/ava_val_v2.2.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + b"".join(reversed(path.read_bytes().splitlines(keepends=True))))
    assert run() == first


def test_the_line_is_named_in_a_large_file_too(folder, capsys):
    rows = [f"v,{902 + number % 800:04d},0.1,0.1,0.5,0.5,12,{number % 997 / 1000}" for number in range(60_000)]
    rows[59_998] = "v,0902,0.1,0.1,0.5,0.5,12,high"
    (folder / "det.csv").write_text("\n".join(rows))
    assert (folder / "det.csv").stat().st_size > 1_000_000
    assert main([*typed("ava"), "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "det.csv, line 59999: score 'high' is not a number" in err
