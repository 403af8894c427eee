"""Slow, I3D, SlowFast and non-local blocks: published sizes, what they see of time, and slow references."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from timegrain.models.blocks import Backbone
from timegrain.models.costs import stage_costs
from timegrain.models.hub import BACKBONES, EncoderConfig, VideoEncoder, build_backbone, load_encoder, save_weights
from timegrain.models.info import describe_backbone
from timegrain.models.non_local import NonLocalBlock
from timegrain.models.resnet3d import ResNet3D
from timegrain.models.slowfast import SlowFast

CLASSES = 400  # of the published networks' classifiers


@pytest.mark.parametrize(
    ("name", "frames", "parameters", "multiply_adds"),
    [
        # PyTorchVideo's model zoo, Kinetics-400, clips of 8 frames (32 for SlowFast) and 256 pixels
        ("slow_r50", 8, 32.45, 54.52),
        ("slowfast_r50", 32, 34.57, 65.71),
        # Its page says 37.53 G; its network has 37.106 G by torch's FlopCounterMode, 0.003 of them the classifier.
        ("i3d_r50", 8, 28.04, 37.103),
    ],
)
def test_published_sizes(name: str, frames: int, parameters: float, multiply_adds: float) -> None:
    report = describe_backbone(name, [(frames, 256, 256)], {})
    classifier = CLASSES * (report["num_features"] + 1)
    assert (report["num_parameters"] + classifier) / 1e6 == pytest.approx(parameters, abs=0.005)
    assert report["multiply_adds"] / 1e9 == pytest.approx(multiply_adds, abs=0.005)


def test_slow_at_the_papers_size() -> None:
    """83.5 G of Table 2 are two clips of 8 frames."""
    report = describe_backbone("slow_r50", [(8, 224, 224)] * 2, {})
    assert report["multiply_adds"] / 1e9 == pytest.approx(83.5, abs=0.05)


def test_five_non_local_blocks() -> None:
    """Four projections of C x C/2 with biases, and a norm, at two places of stage 3 and three of stage 4."""
    added = sum(n * (4 * c * (c // 2) + 3 * (c // 2) + c + 2 * c) for n, c in ((2, 512), (3, 1024)))
    for name in ("slow_r50", "i3d_r50"):
        plain, more = (describe_backbone(n, [(8, 224, 224)], {}) for n in (name, f"{name}_nl"))
        assert more["num_parameters"] - plain["num_parameters"] == added


@pytest.mark.parametrize("name", list(BACKBONES))
def test_every_backbone_keeps_time(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
        for frames in (1, 7, 16):
            x = torch.empty(2, 3, frames, 64, 48)
            features, maps = backbone(x), backbone.feature_maps(x)
            steps = backbone.num_time_steps(frames)
            assert features.shape == (2, steps, backbone.num_features)
            assert maps["5"].shape[:3] == (2, backbone.num_features, steps)
            assert list(maps) == ["2", "3", "4", "5"]
        with pytest.raises(ValueError, match="at least one frame"):
            backbone.num_time_steps(0)
        costs = stage_costs(backbone, 16, 64, 64)
    assert [cost.name for cost in costs] == list(backbone.parts())


def small(name: str) -> Backbone:
    torch.manual_seed(0)
    common = {"blocks": (2, 2, 2, 2), "width": 8}
    if name.startswith("slowfast"):
        return build_backbone(name, **common, beta=4, non_local=((), (1,), (0, 1), ())).double()
    return build_backbone(name, **common, stem_width=8, non_local=((), (1,), (0, 1), ())).double()


@pytest.mark.parametrize("name", ["slow_r50", "i3d_r50", "slowfast_r50", "slowfast_r50_nl"])
def test_counts_agree_with_torch_own_counter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The convolutions as they are defined: as products on a CPU they leave out what the padding is multiplied with.
    monkeypatch.setattr("timegrain.models.blocks.suits_cpu", lambda *_: False)
    backbone = small(name).float().eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        backbone(torch.zeros(1, 3, 8, 48, 40))
    assert 2 * sum(cost.multiply_adds for cost in stage_costs(backbone.to("meta"), 8, 48, 40)) == (
        counter.get_total_flops()
    )


@pytest.mark.parametrize("name", ["slow_r50_nl", "i3d_r50_nl", "slowfast_r50_nl"])
def test_gradients_reach_everything_and_checkpointing_is_exact(name: str) -> None:
    plain, saving = small(name), small(name)
    saving.checkpoint_stages = True
    for backbone in (plain, saving):  # blocks that start as their shortcut would hide what is before their last norm
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm3d):
                nn.init.ones_(module.weight)
    x = torch.rand(2, 3, 8, 32, 32, dtype=torch.float64)
    for backbone in (plain, saving):
        backbone(x).square().mean().backward()
    for (where, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert one.grad is not None, where
        if ".key.bias" not in where or "slowfast" in name:  # a softmax does not feel what all keys have in common
            assert one.grad.abs().max() > 0, where
        torch.testing.assert_close(one.grad, other.grad, msg=where)
    for one, other in zip(plain.buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_new_blocks_are_their_shortcuts() -> None:
    torch.manual_seed(0)
    block = build_backbone("i3d_r50", width=8, stem_width=8).stages["3"][1].eval()  # type: ignore[union-attr, index]
    x = torch.rand(1, 64, 4, 6, 6)
    torch.testing.assert_close(block(x), x)
    ours = build_backbone("r3d50", width=8, stem_width=8)
    assert all((m.weight == 1).all() for m in ours.modules() if isinstance(m, nn.BatchNorm3d))


def test_what_slowfast_sees() -> None:
    """The slow pathway sees every fourth frame; what happens between them changes the features by the fast one only."""
    torch.manual_seed(0)
    backbone = SlowFast(blocks=(1, 1, 1, 1), width=8, beta=4).eval()
    clip = torch.rand(1, 3, 16, 32, 32)
    other = clip.clone()
    other[:, :, 2] = 0
    with torch.no_grad():
        for fusion in backbone.fusions.values():
            fusion.norm.weight.zero_()  # type: ignore[union-attr]
        one, two = backbone(clip), backbone(other)
        slow = 4 * 8 * 8  # channels
        torch.testing.assert_close(one[..., :slow], two[..., :slow])
        assert not torch.allclose(one[..., slow:], two[..., slow:])
        other[:, :, 4] = 0
        assert not torch.allclose(one[..., :slow], backbone(other)[..., :slow])
        # features of the fast pathway: the mean over its four steps of each slow step
        fast = backbone.fast_stem(clip)
        for stage in backbone.fast_stages.values():
            fast = stage(fast)
        wanted = fast.mean((3, 4)).reshape(1, -1, 4, 4).mean(3).transpose(1, 2)
        torch.testing.assert_close(one[..., slow:], wanted)


def test_i3d_pools_time_after_the_first_stage() -> None:
    torch.manual_seed(0)
    maps = ResNet3D(blocks=(1, 1, 1, 1), width=4, stem_width=4, stem_temporal_stride=1, time_pool=True).feature_maps(
        torch.rand(1, 3, 7, 32, 32)
    )
    assert [maps[name].shape[2] for name in "2345"] == [7, 4, 4, 4]


@pytest.mark.parametrize("affinity", ["softmax", "dot_product"])
def test_non_local_block_by_loops(affinity: str) -> None:
    torch.manual_seed(1)
    block = NonLocalBlock(6, affinity).double().eval()  # type: ignore[arg-type]
    x = torch.randn(1, 6, 2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x), x)  # a new block changes nothing
    nn.init.ones_(block.norm.weight)
    for projection in (block.query, block.key, block.value, block.out):
        nn.init.normal_(projection.weight, std=0.5)

    def project(layer: nn.Conv3d, vector: torch.Tensor) -> torch.Tensor:
        return layer.weight[:, :, 0, 0, 0] @ vector + layer.bias

    pooled = [
        x[0, :, t, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax((1, 2))
        for t in range(2)
        for i in range(2)
        for j in range(2)
    ]
    expected = x.clone()
    for t in range(2):
        for h in range(4):
            for w in range(5):
                query = project(block.query, x[0, :, t, h, w])
                scores = torch.stack([query @ project(block.key, place) for place in pooled])
                weights = torch.softmax(scores / 3**0.5, 0) if affinity == "softmax" else scores / len(pooled)
                mean = sum(weight * project(block.value, place) for weight, place in zip(weights, pooled, strict=True))
                expected[0, :, t, h, w] += project(block.out, mean) / (1 + block.norm.eps) ** 0.5
    torch.testing.assert_close(block(x), expected)


def test_saved_and_loaded(tmp_path) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(
        backbone="slowfast_r50_nl",
        backbone_options={"width": 8, "blocks": [1, 2, 2, 1], "non_local": [[], [1], [], []]},
        heads=(),
    )
    encoder = VideoEncoder(config).eval()
    save_weights(encoder, tmp_path / "w.safetensors")
    again = load_encoder(tmp_path / "w.safetensors")
    x = torch.rand(1, 3, 8, 32, 32)
    torch.testing.assert_close(again(x), encoder(x))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "slowfast_r50",
            {"temporal_kernels": (1, 1, 3, 3)},
            "slowfast_r50 has no option temporal_kernels; there are blocks",
        ),
        ("slowfast_r50", {"beta": 7}, "multiple of beta"),
        ("slowfast_r50", {"fusion_kernel": 4}, "fusion_kernel must be a odd number"),
        ("slow_r50", {"non_local": ((), (4,), (), ())}, "non_local must name blocks that there are"),
        ("slow_r50", {"temporal_kernels": ((3, 2), 1, 1, 1)}, "temporal_kernels"),
        ("slow_r50", {"temporal_kernels": (1, 1, 1)}, "temporal_kernels must be 4"),
        ("slowfast_r50", {"non_local": ((), (), ())}, "non_local"),
        ("slow_r50", {"blocks": 3}, "'blocks': 3}: one is of another kind"),
        ("slowfast_r50", {"non_local": ((), (4,), (), ())}, "non_local must name blocks that there are"),
    ],
)
def test_impossible_settings(name: str, options: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_backbone(name, **options)
