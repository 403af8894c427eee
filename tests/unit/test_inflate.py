"""Inflation: a video that stands still has the features of its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from timegrain.cli import main
from timegrain.models.hub import EncoderConfig, VideoEncoder, load_encoder, save_weights
from timegrain.models.inflate import inflate

FLAT = {"stem_kernel": [1, 3, 3], "stem_temporal_stride": 1, "temporal_kernels": [1, 1, 1, 1]}


def pictures(**options: Any) -> VideoEncoder:
    torch.manual_seed(0)
    config = EncoderConfig(
        "r3d_tiny", FLAT | options, ("persistent",), head_hidden=8, head_out=4, clip_num_frames=1, clip_stride=1
    )
    encoder = VideoEncoder(config).double().train()
    encoder(torch.rand(4, 3, 1, 32, 32, dtype=torch.float64))  # statistics of norms that are not 0 and 1
    return encoder.eval()


@pytest.mark.parametrize("options", [{}, {"padding": "same", "width": 8}])
def test_a_still_video_gives_the_features_of_its_picture(options: dict[str, Any]) -> None:
    flat = pictures(**options)
    deep = inflate(flat, {}, num_frames=24, stride=2).double()
    assert deep.config.clip_num_frames == 24
    assert deep.backbone.stem_conv.weight.shape[2] == 3
    picture = torch.rand(2, 3, 1, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected, ours = flat(picture), deep(picture.expand(-1, -1, 24, -1, -1))
    assert ours.shape[1] == 12
    middle = ours[:, 4:8]  # away from both ends, where padding stands for frames
    torch.testing.assert_close(middle, expected.expand_as(middle), rtol=0, atol=1e-6)
    torch.testing.assert_close(flat.heads.state_dict(), deep.heads.state_dict(), check_dtype=False)


def test_only_kernels_of_one_become_longer(tmp_path: Path) -> None:
    flat = pictures()
    with pytest.raises(ValueError, match="only kernels of 1 along time become longer"):
        inflate(inflate(flat, {}, 8, 2), {"stem_kernel": [5, 3, 3]}, 8, 2)
    with pytest.raises(ValueError, match="in only one of them"):
        inflate(flat, {"blocks": [1, 1, 1, 2]}, 8, 2)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(pictures().float(), tmp_path / "flat.safetensors")
    out = tmp_path / "deep.safetensors"
    assert main(["inflate-weights", str(tmp_path / "flat.safetensors"), "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "backbone.stem_conv.weight" in report["inflated"]
    assert load_encoder(out).config.clip_num_frames == 32
    assert load_encoder(out).config.extra["inflated"] is True
    assert main(["inflate-weights", str(out), "--out", str(out), "--options", '{"stem_kernel": [5, 3, 3]}']) == 2
    assert "cannot be inflated" in capsys.readouterr().err
