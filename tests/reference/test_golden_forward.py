"""R3D-50 and its head against the reference's own outputs, layer by layer (a narrow copy: width 8, head 48 -> 16)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from timegrain.models.convert import encoder_from_tf_tensors, from_tf_tensors
from timegrain.models.hub import VideoEncoder
from timegrain.models.tf_checkpoint import read_tf_checkpoint


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden" / "reference-code"


@pytest.fixture(scope="module")
def weights(golden: Path) -> dict[str, np.ndarray]:
    return dict(np.load(golden / "weights_narrow.npz"))


def video(path: Path, dtype: torch.dtype) -> Tensor:
    return rearrange(torch.from_numpy(np.load(path)["x"]).to(dtype), "b t h w c -> b c t h w")


def watch(encoder: VideoEncoder, x: Tensor) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Every value that the reference recorded, under its name there, and how many values each batch norm saw."""
    seen: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    backbone, head = encoder.backbone, encoder.heads["persistent"]
    names: dict[nn.Module, str] = {backbone.stem_conv: "bb|stem_conv", backbone.stem_pool: "bb|pool"}
    names |= {stage: f"endpoint|{name}" for name, stage in backbone.stages.items()}
    blocks = [block for stage in backbone.stages.values() for block in stage]
    names |= {block: f"bb|block{index:02d}" for index, block in enumerate(blocks)}
    names |= {layer: f"head|{index + 1:02d}" for index, layer in enumerate(head.layers)}
    for module, name in names.items():
        module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out.detach().clone()))
    for name, module in encoder.named_modules():
        if isinstance(module, nn.BatchNorm3d | nn.BatchNorm1d):
            module.register_forward_hook(
                lambda m, _, out, name=name: counts.__setitem__(name, out.numel() // m.num_features)
            )
    backbone.stem_norm.register_forward_hook(lambda _, __, out: seen.__setitem__("bb|stem", torch.relu(out.detach())))
    features = encoder(x)
    seen["head|00"] = features.mean(1)  # the reference averages over time and space at once
    encoder.embed(features.mean(1, keepdim=True), "persistent")
    return seen, counts


def difference(ours: Tensor, theirs: np.ndarray) -> float:
    if ours.ndim == 5:
        ours = rearrange(ours, "b c t h w -> b t h w c")
    assert tuple(ours.shape) == theirs.shape
    return float(np.abs(ours.numpy() - theirs).max() / max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize(
    ("name", "clip", "tolerance"),
    [
        ("even_float64_infer", "input_even_infer", 1e-9),
        ("odd_float64_infer", "input_odd", 1e-9),
        ("even_float64_train_sync", "input_even_train", 1e-9),
        ("even_float32_infer", "input_even_infer", 1e-5),
        ("even_float32_train_nosync", "input_even_train", 3e-4),
    ],
)
def test_every_layer_and_the_moving_statistics_equal_the_reference(
    golden: Path, weights: dict[str, np.ndarray], name: str, clip: str, tolerance: float
) -> None:
    expected = dict(np.load(golden / f"fwd_narrow_{name}.npz"))
    dtype = torch.float64 if "float64" in name else torch.float32
    training = "train" in name
    encoder = encoder_from_tf_tensors(weights).to(dtype).train(training)
    with torch.no_grad():
        seen, counts = watch(encoder, video(golden / f"{clip}.npz", dtype))
    recorded = [key for key in expected if key.startswith(("bb|", "endpoint|", "head|"))]
    assert len(recorded) >= 15
    worst = {key: difference(seen[key if key[:4] != "head" else key[:7]], expected[key]) for key in recorded}
    assert {key: value for key, value in worst.items() if value > tolerance} == {}

    # TensorFlow's synchronised norm puts the biased variance of the batch into the moving one, and so does its
    # unsynchronised norm on 2-D inputs; PyTorch's always puts the unbiased one, n / (n - 1) as much.
    after = {key.removeprefix("stats_after|"): value for key, value in expected.items() if key.startswith("stats_")}
    assert bool(after) is training
    if not training:
        return
    before = from_tf_tensors(weights)
    updated = encoder.state_dict()
    checked = 0
    for key, target in from_tf_names(weights).items():
        if key not in after:
            continue
        ours = updated[target]
        norm = target.rpartition(".")[0]
        if target.endswith("running_var") and ("sync" in name.split("_") or "heads" in target):
            momentum = 0.003 if "heads" in target else 0.1
            kept = (1 - momentum) * before[target].to(dtype)
            ours = kept + (ours - kept) * (counts[norm] - 1) / counts[norm]
        # TensorFlow holds 1 - momentum in float32: 2e-8 is its own rounding.
        np.testing.assert_allclose(
            ours.numpy(), after[key], rtol=0, atol=5e-8 if dtype == torch.float64 else 1e-4, err_msg=key
        )
        checked += 1
    assert checked == len(after) == 112


def from_tf_names(weights: dict[str, np.ndarray]) -> dict[str, str]:
    """The reference's name of each variable -> ours, found by converting arrays that are filled with their number."""
    numbered = {key: np.full_like(value, index) for index, (key, value) in enumerate(weights.items())}
    ours = {int(t.flatten()[0]): name for name, t in from_tf_tensors(numbered).items() if "num_batches" not in name}
    return {key: ours[index] for index, key in enumerate(weights)}


def test_features_keep_the_time_steps_apart(golden: Path, weights: dict[str, np.ndarray]) -> None:
    encoder = encoder_from_tf_tensors(weights).double()
    expected = np.load(golden / "fwd_narrow_even_float64_infer.npz")["endpoint|5"]
    with torch.no_grad():
        features = encoder(video(golden / "input_even_infer.npz", torch.float64))
    np.testing.assert_allclose(features.numpy(), expected.mean((2, 3)), atol=1e-12)


def test_symmetric_padding_is_another_function(golden: Path, weights: dict[str, np.ndarray]) -> None:
    """Guards the parity test: imported weights with the wrong padding look almost right."""
    encoder = encoder_from_tf_tensors(weights)
    encoder.config.backbone_options["padding"] = "symmetric"
    other = VideoEncoder(encoder.config).eval()
    other.load_state_dict(encoder.state_dict())
    x = video(golden / "input_even_infer.npz", torch.float32)
    with torch.no_grad():
        assert (encoder(x) - other(x)).abs().max() > 1e-2


@pytest.mark.parametrize("prefix", ["pretrain/ckpt-5", "backbone/r3d_narrow_backbone-1"])
def test_checkpoints_of_the_reference_read_as_tensorflow_reads_them(golden: Path, prefix: str) -> None:
    tensors = read_tf_checkpoint(golden / "ckpt" / prefix)
    expected = np.load(golden / "ckpt" / "expected_narrow.npz")
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    weights = {key.removesuffix(suffix).replace("/", "|"): value for key, value in tensors.items()}
    compared = [key for key in expected.files if key in weights]
    assert len(compared) == (285 if prefix.startswith("pretrain") else 265)
    for key in compared:
        np.testing.assert_array_equal(weights[key], expected[key], err_msg=key)
    encoder = encoder_from_tf_tensors(tensors)
    assert encoder.config.heads == (("persistent",) if prefix.startswith("pretrain") else ())
