"""Sliding windows: right frames, right times, bounded memory; and what happens with files that are no videos."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import timegrain
from conftest import make_video, moving_square
from timegrain.data.decoding import VideoError, open_video
from timegrain.data.transforms import center_view, to_model_input
from timegrain.inference import Embedder, VideoFeatures, ViewSettings, load
from timegrain.models.hub import EncoderConfig, VideoEncoder, save_weights
from timegrain.models.weights import choose_device, find_encoder, fingerprint
from timegrain.sampling import ClipSpec
from timegrain.windows import plan_windows


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = EncoderConfig(
        backbone="r3d_tiny",
        head_hidden=16,
        head_num_hidden=1,
        head_out=8,
        clip_num_frames=8,
        clip_stride=2,
        crop_size=32,
    )
    made = VideoEncoder(config).eval()
    for module in made.modules():  # statistics that differ from a fresh network's, as after training
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm3d):
            module.running_mean.uniform_(-0.1, 0.1)
    return made


@pytest.fixture(scope="module")
def embedder(encoder):
    return load(encoder, device="cpu", batch_size=3)


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("long") / "long.mp4", moving_square(75), fps=25)


def direct(encoder, path, frames):
    """Features (T', D) of one clip of the given source frames, without any of the machinery."""
    with open_video(path) as reader:
        clip = center_view(reader.frames(frames), encoder.config.crop_size, rounding="nearest")
    with torch.inference_mode():
        return encoder(to_model_input(clip[None]))[0].numpy()


# ---- plans --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("num_frames", [1, 5, 15, 16, 17, 31, 32, 33, 100, 101])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_windows_cover_every_time_step(num_frames, stride, overlap):
    plan = plan_windows(np.arange(num_frames), ClipSpec(8, stride), 4, overlap)
    timestamps = np.arange(num_frames) / 25
    covered = np.concatenate([plan.time_steps(start) for start in plan.starts])
    assert set(range(plan.num_time_steps)) <= set(covered.tolist())
    assert plan.num_time_steps == int(np.ceil(np.ceil(num_frames / stride) / 2))
    for start in plan.starts:
        frames = plan.window_frames(start)
        assert len(frames) == 8
        assert frames.min() >= 0
        assert frames.max() < num_frames
    seconds = plan.step_seconds(timestamps)
    assert (np.diff(seconds) > 0).all()
    begins, ends = plan.step_spans(timestamps, num_frames / 25)
    assert (begins <= seconds).all()
    assert (seconds <= ends).all()
    assert ends[-1] == num_frames / 25
    clip_begins, clip_ends = plan.clip_spans(timestamps, num_frames / 25)
    assert clip_begins[0] == 0
    assert (clip_ends > clip_begins).all()
    assert clip_ends[-1] <= num_frames / 25


def test_short_video_loops_as_in_training():
    plan = plan_windows(np.arange(5), ClipSpec(8, 2), 4)
    assert plan.window_frames(0).tolist() == [0, 2, 4, 1, 3, 0, 2, 4]
    assert plan.num_time_steps == 2
    np.testing.assert_allclose(plan.step_seconds(np.arange(5.0)), [1, 4])


def test_end_of_a_long_video_stands_still_for_less_than_a_time_step():
    plan = plan_windows(np.arange(11), ClipSpec(8, 1), 4)
    assert plan.starts.tolist() == [0, 4]
    assert plan.window_frames(4).tolist() == [4, 5, 6, 7, 8, 9, 10, 10]


def test_impossible_overlap_and_empty_video():
    with pytest.raises(ValueError, match="overlap"):
        plan_windows(np.arange(9), ClipSpec(4, 1), 2, 1.0)
    with pytest.raises(ValueError, match="no frame"):
        plan_windows(np.arange(0), ClipSpec(4, 1), 2)


# ---- features -----------------------------------------------------------------------------------------------------


def test_aligned_windows_equal_direct_clips(embedder, encoder, long_video):
    found = embedder.embed(long_video)
    steps = encoder.backbone.num_time_steps(8)
    # 75 frames at stride 2 are 38 positions: windows from 0, 8, 16, 24, and the last from 30
    for number, start in enumerate([0, 8, 16, 24]):
        clip = direct(encoder, long_video, np.arange(8) * 2 + 2 * start)
        np.testing.assert_allclose(found.clip_features[number], clip.mean(0), atol=1e-5)
        first = start * steps // 8
        last = min(first + steps, 30 * steps // 8)  # from there on the last window takes part
        np.testing.assert_allclose(found.features[first:last], clip[: last - first], atol=1e-5)
    np.testing.assert_allclose(found.video_feature, found.clip_features.mean(0), atol=1e-6)
    assert found.features.dtype == np.float32
    assert len(found.clip_features) == 5
    assert found.duration_seconds == pytest.approx(3.0)
    np.testing.assert_allclose(found.clip_start_seconds, np.array([0, 8, 16, 24, 30]) * 2 / 25, atol=1e-6)
    np.testing.assert_allclose(found.clip_end_seconds[:4], (np.array([0, 8, 16, 24]) * 2 + 15) / 25, atol=1e-6)


def test_overlapping_windows_are_averaged(embedder, encoder, long_video):
    found = embedder.embed(long_video, overlap=0.5)
    steps = encoder.backbone.num_time_steps(8)
    half = steps // 2
    first, second = (direct(encoder, long_video, np.arange(8) * 2 + 2 * start) for start in (4, 8))
    # from the middle of the first window to its end, from the beginning of the second to its middle
    down, up = (np.arange(half)[::-1, None] + 1, np.arange(half)[:, None] + 1)
    expected = (first[half:] * down + second[:half] * up) / (down + up)
    np.testing.assert_allclose(found.features[steps : steps + half], expected, atol=1e-5)


def test_batch_size_does_not_matter(encoder, embedder, long_video):
    one = Embedder(encoder, torch.device("cpu"), batch_size=1).embed(long_video, overlap=0.25)
    three = embedder.embed(long_video, overlap=0.25)
    np.testing.assert_allclose(one.features, three.features, atol=1e-5)


def test_short_video_has_only_its_own_time_steps(embedder, encoder, tmp_path):
    path = make_video(tmp_path / "short.mp4", moving_square(9), fps=10)
    found = embedder.embed(path)
    clip = direct(encoder, path, np.arange(8) * 2 % 9)
    assert len(found.features) == encoder.backbone.num_time_steps(5)
    np.testing.assert_allclose(found.features, clip[: len(found.features)], atol=1e-5)
    np.testing.assert_allclose(found.clip_features[0], clip.mean(0), atol=1e-5)
    assert found.timestamps_seconds.max() <= found.duration_seconds
    assert found.end_seconds[-1] == pytest.approx(0.9)


def test_one_frame_is_a_video(embedder, tmp_path):
    found = embedder.embed(make_video(tmp_path / "one.mp4", moving_square(1)))
    assert found.features.shape == (1, found.video_feature.shape[0])
    assert found.timestamps_seconds.tolist() == [0]


def test_heads_give_unit_embeddings(embedder, encoder, long_video):
    plain, found = embedder.embed(long_video), embedder.embed(long_video, head="fine")
    assert found.features.shape[1] == 8
    for rows in (found.features, found.clip_features, found.video_feature[None]):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    with torch.inference_mode():
        expected = encoder.embed(torch.from_numpy(plain.features[None, :8]), "fine")[0]
    np.testing.assert_allclose(found.features[:8], torch.nn.functional.normalize(expected, dim=1).numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="no head 'coarse'"):
        embedder.embed(long_video, head="coarse")


def test_three_crops_are_averaged(embedder, long_video):
    one, three = embedder.embed(long_video), embedder.embed(long_video, num_crops=3)
    assert one.features.shape == three.features.shape
    assert not np.allclose(one.features, three.features)


def test_irregular_frame_rate_keeps_true_times(embedder, tmp_path):
    ticks = np.cumsum([0] + [40] * 20 + [200] * 10 + [20] * 20)  # milliseconds
    path = make_video(tmp_path / "vfr.mkv", moving_square(51), pts=[int(t) for t in ticks], time_base=Fraction(1, 1000))
    found = embedder.embed(path)
    seconds = ticks / 1000
    read = seconds[::2]
    step = -(-len(read) // len(found.features))
    expected = [read[i : i + step].mean() for i in range(0, len(read), step)]
    np.testing.assert_allclose(found.timestamps_seconds, expected, atol=2e-3)
    even = embedder.embed(path, fps=25, stride=1)
    assert len(even.features) == pytest.approx(found.duration_seconds * 25 / step, abs=1)
    assert np.diff(even.timestamps_seconds).min() >= 0
    assert np.abs(even.timestamps_seconds - (np.arange(len(even.features)) * step + (step - 1) / 2) / 25).max() <= 0.2


def test_frame_rate_makes_two_speeds_of_one_video_alike(embedder, tmp_path):
    frames = moving_square(48)
    slow = make_video(tmp_path / "slow.mp4", frames, fps=12, options={"qp": "4"})
    fast = make_video(tmp_path / "fast.mp4", frames.repeat(2, 0), fps=24, options={"qp": "4"})
    one = embedder.embed(slow).features
    np.testing.assert_allclose(embedder.embed(fast, fps=12).features, one, atol=0.1 * np.abs(one).max())
    assert embedder.embed(fast).features.shape[0] == 2 * one.shape[0]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_video(encoder, tmp_path):
    picture = np.repeat(moving_square(25, 270, 480)[:, None], 24, 1).reshape(-1, 270, 480, 3)[:600]
    path = make_video(tmp_path / "long.mp4", picture, options={"preset": "ultrafast"})
    decoded_bytes = picture.nbytes
    del picture
    embedder = Embedder(encoder, torch.device("cpu"), batch_size=2)
    embedder.embed(path, num_frames=8, stride=70)  # what is allocated once
    resident = []
    original = embedder.encode

    def measure(clips):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
        return original(clips)

    embedder.encode = measure
    embedder.embed(path, stride=1)
    assert len(resident) > 30
    assert decoded_bytes > 200e6
    # The decoder fills its pools at first; the frames themselves would be three times the bound.
    assert max(resident) - resident[0] < 80e6
    assert max(resident) - resident[len(resident) // 2] < 20e6


# ---- what users do ------------------------------------------------------------------------------------------------


def test_public_functions(encoder, long_video, tmp_path):
    save_weights(encoder, tmp_path / "weights.safetensors")
    for weights in (tmp_path / "weights.safetensors", str(tmp_path)):
        found = timegrain.load(weights, device="cpu").embed(long_video)
        assert isinstance(found, VideoFeatures)
    again = timegrain.embed(long_video, tmp_path, device="cpu")
    np.testing.assert_array_equal(found.features, again.features)
    similarity = timegrain.self_similarity(found)
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-5)
    np.testing.assert_allclose(similarity, similarity.T, atol=1e-6)
    np.testing.assert_allclose(timegrain.self_similarity(long_video, tmp_path, device="cpu"), similarity, atol=1e-6)
    with pytest.raises(ValueError, match="weights are needed"):
        timegrain.self_similarity(long_video)


def test_broken_video_says_why(embedder, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"not a video at all" * 10)
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        embedder.embed(path)
    with pytest.raises((VideoError, FileNotFoundError), match=r"missing\.mp4"):
        embedder.embed(tmp_path / "missing.mp4")


def test_weights_that_are_none(encoder, tmp_path):
    good = tmp_path / "good.safetensors"
    save_weights(encoder, good)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load(cut)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "none.safetensors")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors"):
        load(tmp_path / "run")
    with pytest.raises(ValueError, match="cannot use device"):
        load(good, device="quantum")
    assert fingerprint(find_encoder(good)) == fingerprint(encoder)
    assert choose_device("cpu").type == "cpu"


def test_fingerprint_sees_weights_and_settings(encoder):
    torch.manual_seed(0)
    other = VideoEncoder(EncoderConfig(backbone="r3d_tiny"))
    before = fingerprint(other)
    assert before != fingerprint(encoder)
    other.config.extra["note"] = "trained on a Tuesday"
    assert fingerprint(other) == before
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1
    assert fingerprint(other) != before


@pytest.mark.parametrize(
    "settings",
    [
        {"overlap": 1.0},
        {"overlap": -0.1},
        {"num_crops": 2},
        {"fps": 0.0},
        {"fps": np.inf},
        {"stride": 0},
        {"num_frames": 0},
    ],
)
def test_impossible_settings(embedder, long_video, settings):
    with pytest.raises(ValueError):
        embedder.embed(long_video, **settings)
    with pytest.raises(ValueError, match="batch_size"):
        Embedder(embedder.encoder, torch.device("cpu"), 0)


def test_clip_length_is_rounded_up_to_whole_time_steps(embedder):
    clip, steps = embedder.clip_shape(ViewSettings(num_frames=7))
    assert clip.num_frames % steps == 0
    assert clip.num_frames >= 7
