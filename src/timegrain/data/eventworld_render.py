"""EventWorld's renderer: a video with known events as a pure function of (seed, split, index).

A video shows a troupe of ellipses on a textured ground. Three things in it have names:

* **scene** (one per video): the ground's texture, a kind (stripes, checks, blobs) times a scale (fine, medium, coarse).
  Rotation, position and light of the ground wander all the time, so nothing else about it lasts as long as the video.
* **posture** (one per event): the ellipses' build (slim, stout) times the direction of their long axis. All ellipses share
  it, or, with ``individual_postures``, each takes its own: who does what.
* **motion** (one per event): what the ellipses do, swing along one of four directions or circle one of two ways.

Every boundary between events changes the posture *and* the motion, each drawn without regard to the other. So one list
of boundaries is right for both label spaces, and neither label tells the other.

No label can be read from a single pixel statistic: all postures cover the same area with the same profile (an ellipse
is the image of a disc under an area-preserving map), all motions have the same speed and a uniform phase, all textures
have the same grey values in every frame.

This module imports only numpy, because every worker process imports it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Indices = NDArray[np.int64]

GENERATOR = "eventworld/1"
"""Part of every identity and of a world's record; raised whenever the same arguments would draw other frames."""

WAVES = {"stripes": 1, "checks": 2, "blobs": 7}  # plane waves of one length that are added up, evenly spread over 180°
CYCLES = {"coarse": 2.5, "medium": 3.9, "fine": 6.1}  # over the frame; ratio 1.56 > the 1.41 of a half-area crop
BUILDS = {"slim": 1.2, "stout": 0.5}  # log of the axes' ratio: 3.3 : 1 and 1.6 : 1
DIRECTIONS = {"horizontal": 0.0, "falling": np.pi / 4, "vertical": np.pi / 2, "rising": 3 * np.pi / 4}  # y points down

GROUND_LEVEL = 0.34  # mean grey of the ground
ACTOR_RADIUS = 0.094  # of the disc that has an ellipse's area; lengths are in widths of the frame
CIRCLE_RADIUS = 0.055  # of the circling motions
CORNERS = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]], np.float32) * 0.22  # around which the ellipses stay

SCENES = tuple(f"{kind}-{scale}" for kind, scale in product(WAVES, CYCLES))
POSTURES = tuple(f"{build}-{direction}" for build, direction in product(BUILDS, DIRECTIONS))
MOTIONS = (*(f"swing-{direction}" for direction in DIRECTIONS), "circle-clockwise", "circle-anticlockwise")


@dataclass(frozen=True)
class EventWorldConfig:
    """What a world looks like; the defaults are the difficulty "medium".

    Contrasts are fractions of the grey range; lengths on the picture scale with ``size``.

    Args:
        num_frames: Frames of every video.
        size: Height and width in pixels, even.
        fps: Frames per second.
        min_events: Fewest events of a video.
        max_events: Most events of a video; their number is uniform between the two.
        min_event_frames: Shortest event; what is left of the video is shared out by a Dirichlet(1.5) draw.
        transition_frames: Frames over which one event turns into the next; the boundary is in the middle.
        actor_contrast: How much lighter the ellipses are than the ground's mean.
        texture_contrast: Amplitude of the ground's texture.
        nuisance: Strength of what changes smoothly inside a video and means nothing: a light blob, a gradient, a gain.
        wander: How far the ground turns, moves and deforms inside a video; 1 turns it by about 50 degrees either way.
        individual_postures: Each ellipse takes a posture of its own in every event, instead of all the same; the event's
            label is the first ellipse's.
    """

    num_frames: int = 120
    size: int = 32
    fps: float = 25.0
    min_events: int = 2
    max_events: int = 8
    min_event_frames: int = 9
    transition_frames: int = 6
    actor_contrast: float = 0.44
    texture_contrast: float = 0.20
    nuisance: float = 0.25
    wander: float = 1.0
    individual_postures: bool = False

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 2:
            raise ValueError(f"size must be even and at least 16 (H.264 halves the colour planes), got {self.size}")
        if not 1 <= self.min_events <= self.max_events:
            raise ValueError(f"need 1 <= min_events <= max_events, got {self.min_events} and {self.max_events}")
        if not 1 <= self.transition_frames <= self.min_event_frames:
            raise ValueError(
                f"an event must be at least as long as a transition: min_event_frames={self.min_event_frames}, "
                f"transition_frames={self.transition_frames}"
            )
        if self.max_events * self.min_event_frames > self.num_frames:
            raise ValueError(
                f"{self.max_events} events of at least {self.min_event_frames} frames do not fit in {self.num_frames} "
                "frames; raise num_frames or lower max_events or min_event_frames"
            )
        if self.fps <= 0:
            raise ValueError(f"fps must be positive, got {self.fps}")


DIFFICULTIES: dict[str, dict[str, float]] = {
    # Little else than the events changes inside a video; in the others much does, and fine-grained features tell that, too.
    "calm": {"actor_contrast": 0.44, "texture_contrast": 0.20, "nuisance": 0.05, "wander": 1 / 3},
    "easy": {"actor_contrast": 0.50, "texture_contrast": 0.12, "nuisance": 0.10, "wander": 1.0},
    "medium": {"actor_contrast": 0.44, "texture_contrast": 0.20, "nuisance": 0.25, "wander": 1.0},
    "hard": {"actor_contrast": 0.32, "texture_contrast": 0.26, "nuisance": 0.45, "wander": 1.0},
}


@dataclass(frozen=True)
class Event:
    """One event of a video: ``start_seconds`` inclusive, ``end_seconds`` exclusive."""

    start_seconds: float
    end_seconds: float
    posture: str
    motion: str


@dataclass(frozen=True)
class Script:
    """What happens in a video.

    Attributes:
        events: In order, without gaps, covering the whole video.
        boundaries_seconds: Where one event turns into the next: the start of every event but the first.
        scene: The video's own class, one of ``SCENES``.
        identity: 32 hexadecimal digits that name (seed, split, index) and no other video.
        postures: (num_events, num_actors) places in ``POSTURES``.
    """

    events: tuple[Event, ...]
    boundaries_seconds: tuple[float, ...]
    scene: str
    identity: str
    postures: Indices


@dataclass(frozen=True)
class Video(Script):
    """A generated video.

    Attributes:
        frames: uint8 (T, H, W, 3), grey in three equal channels.
        places: float32 (num_actors, 2, T), x and y of each ellipse's centre in widths of the frame, 0 in the middle.
    """

    frames: NDArray[np.uint8]
    places: FloatArray


def identity(seed: int, split: str, index: int) -> str:
    """The name of a video, from which all its randomness comes.

    A 128-bit mixing hash of generator, split, seed and index. Two different triples give the same name, and so the same
    video, with a chance below 1e-26 even for a million videos: train and test never share one, whatever their seeds.
    """
    key = f"{GENERATOR}|{split}|{seed}|{index}"
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def write_script(config: EventWorldConfig, seed: int, split: str, index: int) -> Script:
    """What ``generate`` shows for the same arguments, without rendering it."""
    return _draw(config, identity(seed, split, index))[0]


def generate(config: EventWorldConfig, seed: int, split: str, index: int) -> Video:
    """Draw and render one video.

    Args:
        config: What the world looks like. Contrasts and size scale what is drawn and do not change it: at the same
            seed, split and index two difficulties show the same events in the same places.
        seed: The world's seed.
        split: Any word, such as "train" or "test"; part of the key.
        index: The video's position in its split.

    Returns:
        The video with its events, boundaries and scene.
    """
    script, (starts, motions), rng = _draw(config, identity(seed, split, index))
    weights = _event_weights(starts, config)
    picture = config.texture_contrast * _ground(rng, config, script.scene)
    places = _places(rng, config, motions, weights)
    mask = _troupe(rng, config, script.postures, weights, places)
    picture += mask * (config.actor_contrast - picture)
    light, gain = _lighting(rng, config)
    grey = np.clip(255 * (GROUND_LEVEL + picture * gain + light) + 0.5, 0, 255).astype(np.uint8)
    return Video(**vars(script), frames=np.repeat(grey[..., None], 3, axis=-1), places=places)


def _draw(config: EventWorldConfig, name: str) -> tuple[Script, tuple[Indices, Indices], np.random.Generator]:
    """The script of a video, starts and motions of its events as numbers, and the generator of all the rest."""
    rng = np.random.default_rng(int(name, 16))
    scene = SCENES[rng.integers(len(SCENES))]
    starts, postures, motions = _draw_events(rng, config)
    edges = [*(starts / config.fps).tolist(), config.num_frames / config.fps]
    events = tuple(
        Event(edges[i], edges[i + 1], POSTURES[postures[i]], MOTIONS[motions[i]]) for i in range(len(starts))
    )
    by_actor = np.repeat(postures[:, None], len(CORNERS), 1)
    if config.individual_postures:
        # a generator of its own: places, grounds and light are those of the world whose ellipses agree
        offsets = np.random.default_rng([int(name, 16), 1]).integers(len(POSTURES), size=len(CORNERS))
        offsets[0] = 0
        by_actor = (by_actor + offsets) % len(POSTURES)
    return Script(events, tuple(edges[1:-1]), scene, name, by_actor), (starts, motions), rng


def _draw_events(rng: np.random.Generator, config: EventWorldConfig) -> tuple[Indices, Indices, Indices]:
    """First frame, posture and motion of every event; neighbours differ in both."""
    num_events = int(rng.integers(config.min_events, config.max_events + 1))
    spare = config.num_frames - num_events * config.min_event_frames
    lengths = config.min_event_frames + spare * rng.dirichlet(np.full(num_events, 1.5))
    starts = np.floor(np.concatenate([[0.0], np.cumsum(lengths)[:-1]]) + 0.5).astype(np.int64)

    def draw(num_kinds: int) -> Indices:
        steps = rng.integers(1, num_kinds, size=num_events)  # never 0: every boundary changes the kind
        return (rng.integers(num_kinds) + np.cumsum(steps)) % num_kinds

    return starts, draw(len(POSTURES)), draw(len(MOTIONS))


def _event_weights(starts: Indices, config: EventWorldConfig) -> FloatArray:
    """How much of each event every frame shows, (num_events, T), summing to 1; smooth steps about the boundaries."""
    middles = np.arange(config.num_frames) + 0.5
    ramp = np.clip((middles - starts[1:, None]) / config.transition_frames + 0.5, 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    ones, zeros = np.ones((1, config.num_frames)), np.zeros((1, config.num_frames))
    begun = np.concatenate([ones, ramp, zeros])
    return np.asarray(begun[:-1] - begun[1:], np.float32)


def _wander(rng: np.random.Generator, num: int, num_frames: int, period_frames: float) -> FloatArray:
    """Smooth stationary noise of mean 0 and variance 1, (num, T): sinusoids, none faster than the period."""
    num_waves = 6
    frequency = rng.uniform(0.2, 1.0, (num, num_waves, 1)) / period_frames
    phase = rng.uniform(0, 1, (num, num_waves, 1))
    waves = np.cos(2 * np.pi * (frequency * np.arange(num_frames) + phase))
    return np.asarray(waves.sum(1) * np.sqrt(2 / num_waves), np.float32)


def _axis(config: EventWorldConfig) -> FloatArray:
    """Pixel centres along one side, in widths of the frame, 0 in the middle."""
    return ((np.arange(config.size) + 0.5) / config.size - 0.5).astype(np.float32)


def _ground(rng: np.random.Generator, config: EventWorldConfig, scene: str) -> FloatArray:
    """The ground's texture, (T, H, W) in [-1, 1], uniform in every frame."""
    kind, scale = scene.split("-")
    num_waves, cycles = WAVES[kind], CYCLES[scale]
    num_frames = config.num_frames
    turn = rng.uniform(0, 2 * np.pi) + 0.9 * config.wander * _wander(rng, 1, num_frames, 60)[0]
    pan = 0.20 * config.wander * _wander(rng, 2, num_frames, 60)
    # seven phases are drawn for every kind, so that what follows does not depend on the scene
    drift = (rng.uniform(0, 1, (7, 1)) + 0.20 * config.wander * _wander(rng, 7, num_frames, 60))[:num_waves]

    angle = turn + np.pi * np.arange(num_waves)[:, None] / num_waves
    wave_x, wave_y = 2 * np.pi * cycles * np.cos(angle), 2 * np.pi * cycles * np.sin(angle)  # (num_waves, T)
    phase = 2 * np.pi * drift + wave_x * pan[0] + wave_y * pan[1]
    axis = _axis(config)
    along_x = np.exp(1j * (wave_x[..., None] * axis)).astype(np.complex64)  # (num_waves, T, W)
    along_y = np.exp(1j * (wave_y[..., None] * axis + phase[..., None])).astype(np.complex64)
    total = np.zeros((num_frames, config.size, config.size), np.float32)
    for x, y in zip(along_x[:, :, None, :], along_y[..., None], strict=True):  # cos(a + b) without a cosine per pixel
        total += x.real * y.real - x.imag * y.imag

    # by rank: every frame of every texture has exactly the same grey values, in other places
    flat = total.reshape(num_frames, -1)
    levels = np.linspace(-1, 1, flat.shape[1], dtype=np.float32)
    picture = np.empty_like(flat)
    np.put_along_axis(picture, np.argsort(flat, axis=1), levels[None], axis=1)
    return picture.reshape(total.shape)


def _places(rng: np.random.Generator, config: EventWorldConfig, motions: Indices, weights: FloatArray) -> FloatArray:
    """Centre of each ellipse, (num_actors, 2, T): a corner of a square, plus wandering alone and together, plus motion.

    The wandering is wider than the motion and slower: a place says little about the motion, and no arrangement lasts.
    """
    num_actors, num_frames = len(CORNERS), config.num_frames
    alone = 0.06 * _wander(rng, 2 * num_actors, num_frames, 50).reshape(num_actors, 2, num_frames)
    together = 0.05 * _wander(rng, 2, num_frames, 50)
    moved = np.einsum("et,eact->act", weights, _steps(rng, motions, num_actors, num_frames))
    return np.asarray(CORNERS[:, :, None] + alone + together + moved, np.float32)


def _troupe(
    rng: np.random.Generator, config: EventWorldConfig, postures: Indices, weights: FloatArray, places: FloatArray
) -> FloatArray:
    """How much of every pixel the ellipses cover, (T, H, W) in [0, 1].

    A posture is a point q = log(ratio) (cos 2a, sin 2a) of a plane, the ellipse its map exp(-M(q)) of determinant 1; a
    transition is a straight line in that plane, so the area never changes.
    """
    ratio, angle = _shapes()
    points = np.stack([ratio * np.cos(2 * angle), ratio * np.sin(2 * angle)], 1)[postures]
    q = np.einsum("et,eac->cat", weights, points)  # (2, num_actors, T)
    sway = 2 * 0.20 * _wander(rng, len(places), config.num_frames, 25)  # each ellipse leans by some 11 degrees
    q1 = (q[0] * np.cos(sway) - q[1] * np.sin(sway))[..., None, None]  # (num_actors, T, 1, 1)
    q2 = (q[0] * np.sin(sway) + q[1] * np.cos(sway))[..., None, None]
    strength = np.hypot(q1, q2) + 1e-6
    even, odd = np.cosh(strength), np.sinh(strength) / strength

    axis = _axis(config)
    dx = (axis - places[:, 0, :, None])[:, :, None, :]  # (num_actors, T, 1, W)
    dy = (axis - places[:, 1, :, None])[:, :, :, None]
    even, q1, q2 = (a.astype(np.float32) for a in (even, odd * q1, odd * q2))
    squared = ((even - q1) * dx * dx + (even + q1) * dy * dy - (2 * q2 * dx) * dy) / ACTOR_RADIUS**2
    return np.asarray(np.clip(1.5 - squared.min(0), 0, 1), np.float32)


def _shapes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log of the axes' ratio and angle of the long axis of every posture."""
    ratio, angle = np.array([(r, a) for r, a in product(BUILDS.values(), DIRECTIONS.values())]).T
    return ratio, angle


def boxes_around(video: Video, event: int, frame: int) -> NDArray[np.float64]:
    """Boxes around the ellipses at one frame, (num_actors, 4): x1, y1, x2, y2 as fractions of the picture.

    Their leaning (some 11 degrees) is left out, and what lies outside the picture cut off.
    """
    ratio, angle = (values[video.postures[event]] for values in _shapes())
    long, short = ACTOR_RADIUS * np.exp(ratio / 2), ACTOR_RADIUS * np.exp(-ratio / 2)
    half = np.stack([np.hypot(long * np.cos(angle), short * np.sin(angle)),
                     np.hypot(long * np.sin(angle), short * np.cos(angle))], 1)  # fmt: skip
    centres = video.places[:, :, frame] + 0.5
    return np.asarray(np.clip(np.concatenate([centres - half, centres + half], 1), 0, 1), np.float64)


def _steps(rng: np.random.Generator, motions: Indices, num_actors: int, num_frames: int) -> FloatArray:
    """Where each motion has taken each ellipse from its place, (num_events, num_actors, 2, T).

    Circle and swing have one period and one speed: a swing's reach is pi / 2 radii of the circle.
    """
    num_events = len(motions)
    tempo = rng.uniform(1 / 19, 1 / 14, (num_events, 1, 1))  # turns per frame
    turns = tempo * np.arange(num_frames) + rng.uniform(0, 1, (num_events, num_actors, 1))
    circle = CIRCLE_RADIUS * np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], 2)
    swing = CIRCLE_RADIUS * np.pi / 2 * (np.abs(4 * (turns % 1) - 2) - 1)  # a triangle wave: constant speed
    angles = np.array(list(DIRECTIONS.values()))[np.minimum(motions, len(DIRECTIONS) - 1)]
    direction = np.stack([np.cos(angles), np.sin(angles)], 1)[:, None, :, None]
    circle[motions == MOTIONS.index("circle-anticlockwise"), :, 1] *= -1  # y points down: without it, clockwise
    is_circle = (motions >= len(DIRECTIONS))[:, None, None, None]
    return np.where(is_circle, circle, swing[:, :, None] * direction).astype(np.float32)


def _lighting(rng: np.random.Generator, config: EventWorldConfig) -> tuple[FloatArray, FloatArray]:
    """Light added to every pixel, (T, H, W), and the contrast's gain, (T, 1, 1); both change smoothly."""
    num_frames = config.num_frames
    place, slope = 0.25 * _wander(rng, 2, num_frames, 40), _wander(rng, 2, num_frames, 40)
    level, gain = _wander(rng, 2, num_frames, 40)[..., None, None]
    axis = _axis(config)
    spot_x = np.exp(-((axis - place[0, :, None]) ** 2) / (2 * 0.22**2))[:, None, :]
    spot_y = np.exp(-((axis - place[1, :, None]) ** 2) / (2 * 0.22**2))[:, :, None]
    gradient = slope[0, :, None, None] * axis + slope[1, :, None, None] * axis[:, None]
    light = config.nuisance * (0.5 * spot_x * spot_y + 0.4 * gradient + 0.15 * level)
    return light.astype(np.float32), (1 + 0.4 * config.nuisance * gain).astype(np.float32)
