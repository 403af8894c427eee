"""`timegrain doctor`: sound here, and every broken thing a finding with advice, never a traceback."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

from timegrain import machine
from timegrain.cli import main
from timegrain.tasks import doctor


def findings(**options) -> dict[str, doctor.Finding]:
    looked = doctor.examine(options.get("video"), options.get("folder", Path(".")), options.get("workers"))
    return {finding.name: finding for finding in looked}


def test_this_environment_decodes_and_says_its_versions():
    found = findings()
    assert found["torch"].state == "ok"
    assert found["torch"].found.split("+")[0] == torch.__version__.split("+")[0]
    assert "torch and torchvision" not in found
    assert found["a decoded frame"].state == "ok"
    assert "(3, 48, 64)" in found["a decoded frame"].found


def test_json_and_exit_code_of_a_broken_video(tmp_path: Path, capsys):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--video", str(broken), "--folder", str(tmp_path), "--json"])
    assert stop.value.code == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["problems"] >= 1
    frame = next(finding for finding in answer["findings"] if finding["name"] == "a decoded frame")
    assert frame["state"] == "problem"
    assert "broken.mp4" in frame["found"]
    assert "manifest check" in frame["advice"]


def test_a_library_that_does_not_import_is_reported(monkeypatch: pytest.MonkeyPatch):
    def broken(name: str):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return import_module(name)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    found = findings()["torchvision"]
    assert found.state == "problem"
    assert "nms does not exist" in found.found
    assert "belong together" in found.advice


def test_known_misconfigurations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    version, which = doctor._version, shutil.which
    changed = {"lightning": "2.6.2", "torch": "2.0.0+cpu", "opencv-python": "4.9", "opencv-python-headless": "4.9"}
    monkeypatch.setattr(doctor, "_version", lambda name: changed.get(name) or version(name))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/nvidia-smi" if name == "nvidia-smi" else which(name))
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(doctor, "_MIN_FREE", float("inf"))
    imported: list[str] = []
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: imported.append(name) or import_module(name))
    found = findings(folder=tmp_path)
    assert "malicious" in found["lightning"].found
    assert "lightning" not in imported
    assert found["torch and torchvision"].state == "problem"
    assert "overwrite each other" in found["opencv"].found
    assert "torch sees no GPU" in found["GPU"].found
    assert (found["cores"].state, found["folder"].state) == ("warning", "warning")
    assert all(finding.advice for finding in found.values() if finding.state != "ok")


def loading_found(workers: int | None) -> dict[str, doctor.Finding]:
    looked = [*doctor._workers(workers), *doctor._memory(workers)]
    return {finding.name: finding for finding in looked}


def test_workers_threads_shared_memory_and_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(doctor, "num_cores", lambda: 8)
    monkeypatch.setattr(doctor, "memory_bytes", lambda: 64e6)
    monkeypatch.setattr(doctor, "_SHARED", tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(64 * 2**20, 0, 64 * 2**20))
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    found = loading_found(16)
    assert {finding.state for finding in found.values()} == {"warning"}
    assert "--data.workers 8 at most" in found["workers"].advice
    assert "68 threads" in found["threads"].found
    assert "--shm-size=" in found["shared memory"].advice
    assert "--data.workers 0" in found["shared memory"].advice
    assert found["memory"].found.startswith("limited to 0.1 of ")
    assert "docker run --memory" in found["memory"].advice
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(doctor, "memory_bytes", lambda: 64e9)
    monkeypatch.setattr(doctor, "present_memory_bytes", lambda: 64e9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(2**40, 0, 2**40))
    monkeypatch.setattr("resource.getrlimit", lambda which: (256, 256))
    found = loading_found(7)
    assert (found["workers"].state, found["shared memory"].state) == ("ok", "ok")
    assert found["memory"] == ("memory", "ok", "64.0 GB", "")
    assert "threads" not in found
    assert "ulimit" in found["open files"].advice


def test_a_containers_share_of_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "own").write_text("0::/\n")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = next(iter(doctor._devices()))
    assert (cores.state, cores.found) == ("warning", "limited to 2.5 of 64 cores by the container")
    assert "OMP_NUM_THREADS=2" in cores.advice
    assert "1 (what training takes here), 2 cores" in loading_found(None)["workers"].found
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert next(iter(doctor._devices())).state == "ok"


def test_torchcodec_without_ffmpeg_says_so(monkeypatch: pytest.MonkeyPatch):
    def broken(name: str):
        if name.startswith("torchcodec"):
            raise RuntimeError("Could not load libtorchcodec")
        return import_module(name)

    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "0.17" if name == "torchcodec" else version(name))
    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = {finding.name: finding for finding in doctor._decoders(None)}["torchcodec"]
    assert found.state == "warning"
    assert "no FFmpeg" in found.found
    assert "apt install ffmpeg" in found.advice
    assert "PyAV serves" in found.advice


def test_a_folder_that_is_not_there(tmp_path: Path):
    assert findings(folder=tmp_path / "none")["folder"].state == "problem"
