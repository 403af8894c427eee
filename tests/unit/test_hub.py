"""Saving and loading encoders: what comes back is what went in, and damaged files say so."""

from __future__ import annotations

import copy
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from timegrain.models.hub import EncoderConfig, VideoEncoder, build_backbone, load_encoder, save_weights


@pytest.fixture
def config() -> EncoderConfig:
    return EncoderConfig(
        backbone="r3d_tiny",
        backbone_options={"width": 4, "stem_width": 4, "stem_kernel": (3, 5, 5)},
        head_hidden=8,
        head_num_hidden=1,
        head_out=4,
        head_norm_momentum=0.1,
        clip_num_frames=16,
        clip_stride=2,
        crop_size=32,
        extra={"alpha": 0.9, "levels": [{"n": 1}]},
    )


@pytest.fixture
def encoder(config: EncoderConfig) -> VideoEncoder:
    torch.manual_seed(0)
    encoder = VideoEncoder(config)
    encoder(torch.rand(2, 3, 4, 16, 16))  # running statistics that are not the initial ones
    return encoder.eval()


@pytest.fixture
def weights(encoder: VideoEncoder, tmp_path: Path) -> Path:
    save_weights(encoder, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def same(one: VideoEncoder, other: VideoEncoder) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def plain(config: EncoderConfig) -> Any:
    return json.loads(json.dumps(vars(config)))


def test_round_trip(encoder: VideoEncoder, weights: Path) -> None:
    state = torch.random.get_rng_state()
    loaded = load_encoder(weights)
    assert torch.equal(torch.random.get_rng_state(), state)  # loading draws nothing
    assert same(encoder, loaded)
    assert plain(loaded.config) == plain(encoder.config)
    assert loaded.config.heads == ("fine", "persistent")
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.heads["fine"].layers[1].momentum == 0.1
    x = torch.rand(1, 3, 8, 24, 24)
    features = loaded(x)
    assert torch.equal(features, encoder(x))
    assert features.shape == (1, loaded.backbone.num_time_steps(8), 32)
    assert torch.equal(loaded.embed(features, "fine"), encoder.embed(features, "fine"))
    assert not torch.equal(loaded.embed(features, "fine"), loaded.embed(features, "persistent"))
    with pytest.raises(ValueError, match="no head 'f'; it has fine, persistent"):
        loaded.embed(features, "f")


def test_channels_last_and_half_precision_weights_are_saved_plainly(encoder: VideoEncoder, tmp_path: Path) -> None:
    expected = copy.deepcopy(encoder)
    save_weights(encoder.to(memory_format=torch.channels_last_3d), tmp_path / "a.safetensors")
    assert same(expected, load_encoder(tmp_path / "a.safetensors"))
    save_weights(encoder.bfloat16(), tmp_path / "b.safetensors")
    loaded = load_encoder(tmp_path / "b.safetensors")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_failed_write_leaves_the_older_file(encoder: VideoEncoder, weights: Path) -> None:
    before = weights.read_bytes()
    encoder.config.extra = {"what": object()}
    with pytest.raises(ValueError, match="not plain JSON"):
        save_weights(encoder, weights)
    encoder.config.extra = {"loss": float("nan")}
    with pytest.raises(ValueError, match="not plain JSON"):
        save_weights(encoder, weights)
    assert weights.read_bytes() == before
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]


def test_huggingface_folder_round_trip(encoder: VideoEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    encoder.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert json.loads((folder / "config.json").read_text()) == plain(encoder.config)
    for loaded in (
        VideoEncoder.from_pretrained(folder),
        VideoEncoder.from_pretrained(str(folder)),
        load_encoder(folder),
        load_encoder(folder / "model.safetensors"),
    ):
        assert same(encoder, loaded)
        assert plain(loaded.config) == plain(encoder.config)
    with pytest.raises(ValueError, match="does not know width"):
        VideoEncoder.from_pretrained(folder, width=3)


def test_a_hub_folder_of_plain_tensors_loads_by_its_config(encoder: VideoEncoder, tmp_path: Path) -> None:
    """Tools of the hub may rewrite the tensors without our metadata; config.json is what counts there."""
    encoder.save_pretrained(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    assert same(encoder, VideoEncoder.from_pretrained(tmp_path))
    assert same(encoder, load_encoder(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_encoder(tmp_path)


def test_encoders_can_be_copied_and_pickled(encoder: VideoEncoder) -> None:
    assert same(encoder, copy.deepcopy(encoder))
    assert same(encoder, pickle.loads(pickle.dumps(encoder)))


def test_a_backbone_alone(tmp_path: Path) -> None:
    encoder = VideoEncoder(EncoderConfig(backbone="r3d_tiny", heads=()))
    save_weights(encoder, tmp_path / "w.safetensors")
    loaded = load_encoder(tmp_path / "w.safetensors")
    assert same(encoder, loaded)
    with pytest.raises(ValueError, match="it has none"):
        loaded.embed(torch.zeros(1, 2, 96), "fine")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors does not exist"):
        load_encoder(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="a folder without model"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"?" + data[9:],
        lambda data: b"PK\x03\x04" + data,
    ],
)
def test_damaged_files(weights: Path, damage: Callable[[bytes], bytes]) -> None:
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_encoder(weights)


def test_foreign_safetensors(tmp_path: Path) -> None:
    save_file({"layer.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="not TimeGrain weights"):
        load_encoder(tmp_path / "a.safetensors")


def rewrite(
    weights: Path, change: Callable[[dict[str, Any]], object], tensors: dict[str, torch.Tensor] | None = None
) -> None:
    with safe_open(weights, framework="pt") as file:
        metadata = dict(file.metadata())
    config = json.loads(metadata["timegrain_config"])
    change(config)
    metadata["timegrain_config"] = json.dumps(config)
    save_file(load_file(weights) if tensors is None else tensors, weights, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(backbone="r3d9000"), "unknown backbone 'r3d9000'"),
        (lambda c: c.update(backbone_options={"depth": 3}), "no option depth"),
        (lambda c: c.update(backbone_options={"width": "wide"}), "cannot be built"),
        (lambda c: c.update(head_norm=1), "head_norm in the encoder's configuration cannot be 1"),
        (lambda c: c.update(head_out=5), r"heads\.fine\.layers\.3\.\w+ has shape"),
        (lambda c: c.update(heads=["fine"]), "is unknown"),
        (lambda c: c.update(heads=["fine", "persistent", "other"]), "is missing"),
        (lambda c: c.update(heads=[3]), "heads"),
        (lambda c: c.update(heads="fine"), "heads"),
        (lambda c: c.update(head_hidden=2**40), "has shape"),  # nothing of that size is allocated
        (lambda c: c.update(head_hidden=2**62), "cannot be built|has shape"),
        (lambda c: c.update(backbone_options={"blocks": [10**9] * 4}), "blocks must be"),
        (lambda c: c.update(head_num_hidden=10**9), "hidden layers"),
        (lambda c: c.update(head_hidden=8.0), "head_hidden"),
        (lambda c: c.update(crop_size=True), "crop_size"),
        (lambda c: c.update(colour="red"), "unknown key 'colour'"),
    ],
)
def test_configurations_that_do_not_fit(
    weights: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite(weights, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_encoder(weights)
    assert str(weights) in str(caught.value)


def test_a_missing_tensor_is_named(weights: Path) -> None:
    tensors = load_file(weights)
    del tensors["backbone.stem_conv.weight"]
    rewrite(weights, lambda config: None, tensors)
    with pytest.raises(ValueError, match=r"backbone\.stem_conv\.weight is missing"):
        load_encoder(weights)


def test_metadata_that_is_not_json(weights: Path) -> None:
    save_file(load_file(weights), weights, metadata={"timegrain_config": "{"})
    with pytest.raises(ValueError, match="is not JSON"):
        load_encoder(weights)
    save_file(load_file(weights), weights, metadata={"timegrain_config": "[1]"})
    with pytest.raises(ValueError, match="cannot be built"):
        load_encoder(weights)


@pytest.mark.parametrize("name", ["coarse.1", "", "keys"])
def test_a_head_that_cannot_have_its_name(name: str) -> None:
    with pytest.raises(ValueError, match="a projection head cannot have this name"):
        VideoEncoder(EncoderConfig("r3d_tiny", heads=(name,), head_hidden=4, head_out=2))


def test_a_header_that_promises_too_much(weights: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}).encode()
    weights.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_encoder(weights)


def test_build_backbone_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="unknown backbone 'resnet'; there are r3d50, r3d18, r3d_tiny"):
        build_backbone("resnet")
    with pytest.raises(ValueError, match="r3d_tiny has no option depth; there are blocks"):
        build_backbone("r3d_tiny", depth=3)
    assert build_backbone("r3d_tiny", width=8).num_features == 64
