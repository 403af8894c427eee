"""How kernels are laid out for the device that a run computes on."""

import pytest
import torch

from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.tasks.config import RunConfig
from timegrain.tasks.switches import set_layout


@pytest.mark.parametrize(
    ("device", "options", "is_last"),
    [
        ("cpu", {}, True),
        ("cpu", {"compile": True}, False),
        ("cpu", {"precision": "bf16-mixed"}, False),
        ("cuda", {}, False),
        ("cuda", {"channels_last": True}, True),
    ],
)
def test_kernels_are_channels_last_where_the_network_computes_so(device, options, is_last):
    encoder = VideoEncoder(EncoderConfig(backbone="r3d_tiny", head_hidden=8))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    set_layout(encoder, RunConfig(**options), torch.device(device))
    kernel = encoder.backbone.stages["2"][0].first_conv.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last_3d) == is_last
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
