"""How kernels are laid out for the device that a run computes on, and what becomes of memory that it gives back."""

import os
import subprocess
import sys

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


# New pages that the same large tensor needs, over and over, before and after.
PAGES = """
import resource, torch
from timegrain.tasks.switches import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert not keep_freed_memory(torch.device("cuda"))
before = new_pages()
is_kept = keep_freed_memory(torch.device("cpu"))
new_pages()
print(is_kept, before, new_pages())
"""


def pages(**variables: str) -> tuple[bool, int, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PAGES], env=environment | variables, capture_output=True, text=True, check=True
    )
    is_kept, before, after = done.stdout.split()
    return is_kept == "True", int(before), int(after)


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()), reason="glibc's own setting")
def test_memory_that_is_given_back_is_taken_again():
    is_kept, before, after = pages()
    assert is_kept
    assert after < before / 4


@pytest.mark.parametrize(
    "variables", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=2"}]
)
def test_the_users_own_settings_stand(variables: dict[str, str]):
    is_kept, before, after = pages(**variables)
    assert not is_kept
    assert after > before / 4
