"""Reading TensorFlow's files and mapping the reference's names, on a checkpoint that the tests write themselves."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from timegrain.cli import main
from timegrain.models.convert import encoder_from_tf_tensors, from_tf_tensors
from timegrain.models.hub import load_encoder
from timegrain.models.tf_checkpoint import _masked_crc32c, read_tf_checkpoint

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def reference_variables(head: bool = True, width: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Variables named and shaped as the reference's R3D-50 has them, of a small width."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance"):
            shapes[f"{name}/{leaf}"] = (channels,)

    prefix = "backbone/layer_with_weights-"
    shapes[f"{prefix}0/kernel"] = (5, 7, 7, 3, 6)
    norm(f"{prefix}1", 6)
    layer, channels = 2, 6
    for stage, num_blocks in enumerate((3, 4, 6, 3)):
        inner = width * 2**stage
        for block in range(num_blocks):
            name = f"{prefix}{layer}"
            if block == 0:
                shapes[f"{name}/_shortcut_conv/kernel"] = (1, 1, 1, channels, 4 * inner)
                norm(f"{name}/_norm0", 4 * inner)
            shapes[f"{name}/_temporal_conv/kernel"] = (1 if stage < 2 else 3, 1, 1, channels, inner)
            shapes[f"{name}/_spatial_conv/kernel"] = (1, 3, 3, inner, inner)
            shapes[f"{name}/_expand_conv/kernel"] = (1, 1, 1, inner, 4 * inner)
            norm(f"{name}/_norm1", inner)
            norm(f"{name}/_norm2", inner)
            norm(f"{name}/_norm3", 4 * inner)
            layer, channels = layer + 1, 4 * inner
    if head:
        for index, (rows, columns) in enumerate([(channels, 5), (5, 5), (5, 5), (5, 3)]):
            shapes[f"model/layer_with_weights-{2 * index + 1}/kernel"] = (rows, columns)
            shapes[f"model/layer_with_weights-{2 * index + 1}/bias"] = (columns,)
            if index < 3:
                norm(f"model/layer_with_weights-{2 * index + 2}", 5)
    return {name: rng.uniform(0.5, 1, shape).astype(np.float32) for name, shape in shapes.items()}


# --- a writer of TensorFlow's format, as small as it gets ---


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    out, last = b"", b""
    for key, value in entries:
        shared = 0
        while shared < min(len(last), len(key)) and last[shared] == key[shared]:
            shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return out + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")


def write_checkpoint(prefix: Path, tensors: dict[str, tuple[int, tuple[int, ...], bytes]], num_shards: int = 1) -> None:
    """Tensors as (TensorFlow's data type, shape, bytes), dealt out to the data files in turn."""
    data = [b""] * num_shards
    entries = [(b"", number(1, num_shards) + message(3, number(1, 1)))]
    for index, (name, (dtype, shape, raw)) in enumerate(sorted(tensors.items())):
        shard = index % num_shards
        dimensions = b"".join(message(2, number(1, size)) for size in shape)
        place = number(3, shard) + number(4, len(data[shard])) + number(5, len(raw))
        checksum = varint(6 << 3 | 5) + b"\1\2\3\4"
        entries.append((name.encode(), number(1, dtype) + message(2, dimensions) + place + checksum))
        data[shard] += raw
    table, index = b"", []

    def append(content: bytes) -> bytes:
        nonlocal table
        handle = varint(len(table)) + varint(len(content))
        table += content + b"\0" + _masked_crc32c(content + b"\0").to_bytes(4, "little")
        return handle

    for start in range(0, len(entries), 40):
        part = entries[start : start + 40]
        index.append((part[-1][0], append(block(part))))
    footer = append(block([])) + append(block(index))
    table += footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")
    Path(f"{prefix}.index").write_bytes(table)
    for shard, content in enumerate(data):
        Path(f"{prefix}.data-{shard:05d}-of-{num_shards:05d}").write_bytes(content)


def write_reference(prefix: Path, variables: dict[str, np.ndarray], num_shards: int = 1) -> None:
    tensors = {name + SUFFIX: (1, value.shape, value.tobytes()) for name, value in variables.items()}
    tensors["_CHECKPOINTABLE_OBJECT_GRAPH"] = (7, (), b"\4\0\0\0\0graph")
    tensors["save_counter" + SUFFIX] = (9, (), np.int64(1).tobytes())
    write_checkpoint(prefix, tensors, num_shards)


# --- reading ---


def test_the_checksum_is_crc32c() -> None:
    crc = 0xE3069283  # of b"123456789", the check value of CRC-32C
    assert _masked_crc32c(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize("num_shards", [1, 3])
def test_tensors_come_back(tmp_path: Path, num_shards: int) -> None:
    variables = reference_variables()
    write_reference(tmp_path / "ckpt-5", variables, num_shards)
    for prefix in (tmp_path / "ckpt-5", tmp_path / "ckpt-5.index"):
        read = read_tf_checkpoint(prefix)
        assert set(read) == {name + SUFFIX for name in (*variables, "save_counter")}
        for name, value in variables.items():
            np.testing.assert_array_equal(read[name + SUFFIX], value)
        assert read["save_counter" + SUFFIX] == 1


def test_data_types(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0, 3.25]], np.float32)
    raw = (values.view("<u4") >> 16).astype("<u2").tobytes()
    write_checkpoint(
        tmp_path / "t",
        {"bfloat16": (14, (1, 3), raw), "double": (2, (1,), np.float64([0.1]).tobytes()), "empty": (1, (0, 4), b"")},
    )
    read = read_tf_checkpoint(tmp_path / "t")
    np.testing.assert_array_equal(read["bfloat16"], values)
    assert read["bfloat16"].dtype == np.float32
    assert read["double"].dtype == np.float64
    assert read["empty"].shape == (0, 4)
    write_checkpoint(tmp_path / "t", {"quantised": (11, (1,), b"\0")})
    with pytest.raises(ValueError, match="quantised has TensorFlow's data type 11"):
        read_tf_checkpoint(tmp_path / "t")


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    prefix = tmp_path / "ckpt-5"
    write_reference(prefix, reference_variables())
    index, data = Path(f"{prefix}.index"), Path(f"{prefix}.data-00000-of-00001")
    whole, raw = index.read_bytes(), data.read_bytes()
    with pytest.raises(FileNotFoundError, match=r"ckpt-6\.index does not exist; there are .*ckpt-5"):
        read_tf_checkpoint(tmp_path / "ckpt-6")
    data.write_bytes(raw[:-4])
    with pytest.raises(ValueError, match="outside its data file"):
        read_tf_checkpoint(prefix)
    data.unlink()
    with pytest.raises(FileNotFoundError, match="lacks its data file"):
        read_tf_checkpoint(prefix)
    data.write_bytes(raw)
    for cut in (0, 20, len(whole) // 2, len(whole) - 1):
        index.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cut"):
            read_tf_checkpoint(prefix)
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 40):
        broken = bytearray(whole)
        broken[position] ^= 0x55
        index.write_bytes(broken)
        # Without an error the byte was one that nothing depends on: the metaindex or the padding of the footer.
        with contextlib.suppress(ValueError):
            assert len(read_tf_checkpoint(prefix)) == 286


# --- names ---


def test_names_in_every_form_give_the_same_state() -> None:
    variables = reference_variables()
    state = from_tf_tensors(variables)
    assert len(state) == 285 + 53 + 3  # each norm also counts batches
    kernel = variables["backbone/layer_with_weights-9/_temporal_conv/kernel"]
    assert torch.equal(
        state["backbone.stages.4.0.temporal_conv.weight"], torch.from_numpy(kernel).permute(4, 3, 0, 1, 2)
    )
    dense = variables["model/layer_with_weights-7/kernel"]
    assert torch.equal(state["heads.persistent.layers.9.weight"], torch.from_numpy(dense).T)
    statistics = variables["backbone/layer_with_weights-17/_norm2/moving_variance"]
    assert np.array_equal(state["backbone.stages.5.2.spatial_norm.running_var"].numpy(), statistics)
    forms = [
        {name + SUFFIX: value for name, value in variables.items()},
        {name.replace("/", "|"): value for name, value in variables.items()},
        {name.replace("backbone/", "model/layer_with_weights-0/"): value for name, value in variables.items()},
        dict(reversed(variables.items())),
        variables
        | {
            "backbone/layer_with_weights-0/kernel/.OPTIMIZER_SLOT/optimizer/momentum" + SUFFIX: np.zeros(3),
            "optimizer/iter" + SUFFIX: np.zeros(()),
            "global_step": np.zeros(()),
        },
    ]
    for form in forms:
        other = from_tf_tensors(form)
        assert other.keys() == state.keys()
        assert all(torch.equal(other[name], value) for name, value in state.items())


def test_the_state_is_a_copy() -> None:
    variables = reference_variables(head=False)
    state = from_tf_tensors(variables)
    variables["backbone/layer_with_weights-1/gamma"][:] = 7
    assert not (state["backbone.stem_norm.weight"] == 7).any()


def test_what_does_not_fit_is_named() -> None:
    variables = reference_variables()
    with pytest.raises(ValueError, match=r"unknown variables.*: backbone/layer_with_weights-18/_norm1/gamma$"):
        from_tf_tensors(variables | {"backbone/layer_with_weights-18/_norm1/gamma": np.zeros(2)})
    missing = {name: value for name, value in variables.items() if "layer_with_weights-12/" not in name}
    with pytest.raises(
        ValueError, match=r"missing.*: backbone/layer_with_weights-12/_temporal_conv/kernel.*and 10 more"
    ):
        from_tf_tensors(missing)
    headless = {name: value for name, value in variables.items() if not name.startswith("model/layer_with_weights-4")}
    with pytest.raises(ValueError, match=r"missing.*model/layer_with_weights-4/gamma"):
        from_tf_tensors(headless)
    with pytest.raises(ValueError, match="there twice"):
        from_tf_tensors(variables | {"backbone|layer_with_weights-0|kernel": np.zeros(2)})
    with pytest.raises(ValueError, match="missing"):
        from_tf_tensors({})
    with pytest.raises(ValueError, match="5 axes were expected"):
        from_tf_tensors(variables | {"backbone/layer_with_weights-0/kernel": np.zeros((7, 7, 3, 6), np.float32)})
    with pytest.raises(ValueError, match=r"do not fit together.*stem_norm\.weight"):
        encoder_from_tf_tensors(variables | {"backbone/layer_with_weights-1/gamma": np.zeros(9, np.float32)})


def test_widths_are_read_off_the_tensors() -> None:
    encoder = encoder_from_tf_tensors(reference_variables())
    assert encoder.config.backbone_options == {"width": 2, "stem_width": 6}
    config = encoder.config
    assert (config.heads, config.head_num_hidden, config.head_hidden, config.head_out) == (("persistent",), 3, 5, 3)
    assert not encoder.training
    assert encoder_from_tf_tensors(reference_variables(), head="g").config.heads == ("g",)


def test_a_linear_evaluation_gives_a_classifier() -> None:
    variables = reference_variables(head=False)
    variables["model/layer_with_weights-1/kernel"] = np.ones((64, 10), np.float32)
    variables["model/layer_with_weights-1/bias"] = np.ones(10, np.float32)
    encoder = encoder_from_tf_tensors(variables)
    assert encoder.config.heads == ("classifier",)
    assert torch.equal(encoder.embed(torch.ones(1, 1, 64), "classifier"), torch.full((1, 1, 10), 65.0))


# --- the command ---


def test_convert_weights_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variables = reference_variables(head=False)
    write_reference(tmp_path / "r3d-1", variables)
    out = tmp_path / "w.safetensors"
    assert main(["convert-weights", str(tmp_path / "r3d-1"), "--out", str(out), "--json", "true"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["heads"] == []
    encoder = load_encoder(out)
    assert report["num_parameters"] == sum(parameter.numel() for parameter in encoder.parameters())
    assert encoder.config.extra == {"source": "r3d-1"}
    expected = from_tf_tensors(variables)
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())

    assert main(["convert-weights", str(tmp_path / "r3d-2"), "--out", str(out)]) == 2
    assert "r3d-2.index does not exist" in capsys.readouterr().err
    write_checkpoint(tmp_path / "other", {"w": (1, (1,), b"\0\0\0\0")})
    assert main(["convert-weights", str(tmp_path / "other"), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "unknown variables" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()
