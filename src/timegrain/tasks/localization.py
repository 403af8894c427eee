"""``timegrain localize``: who does what in AVA-Kinetics (Table 3c): train on annotated boxes, score detected people.

The way: :mod:`timegrain.data.key_frames` → :mod:`timegrain.models.localizer` → :mod:`timegrain.metrics.frame_map`.
"""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning import seed_everything
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from timegrain.callbacks import FailedVideos, run_record
from timegrain.data.clip_dataset import collate
from timegrain.data.key_frame_clips import AroundKeyFrames, boxes_in_crops
from timegrain.data.key_frames import class_names, key_frames, truth_of
from timegrain.data.labelled_clips import CROP_AND_FLIP, LabelledClips
from timegrain.data.manifest import Manifest
from timegrain.data.transforms import AugmentConfig, apply_augmentation
from timegrain.files import atomic_path
from timegrain.models.hub import EncoderConfig, VideoEncoder
from timegrain.models.localizer import ActionLocalizer
from timegrain.models.people import person_detector
from timegrain.models.weights import choose_device, find_encoder
from timegrain.optim import OptimConfig
from timegrain.report.results import Result, Row, method_name, write_result
from timegrain.sampling import ClipSpec
from timegrain.tasks.config import TrainingConfig
from timegrain.tasks.floor_rows import ava_rows
from timegrain.tasks.labelled_runs import check_options
from timegrain.tasks.localization_scoring import PEOPLE, LocalizationData, Scored, ToScore, score_localizer
from timegrain.tasks.resuming import go_on
from timegrain.tasks.run_folder import Scoring, open_run
from timegrain.tasks.setup import Schedule, build_loader, is_first_process, plan
from timegrain.tasks.switches import compiled
from timegrain.tasks.training import TrainingTask, fit, quieten

SCORINGS = (
    Scoring(
        frozenset(
            {"data.split_test", "data.people", "data.detector_weights", "data.min_person_score", "data.short_side"}
        ),
        ("detections.csv", "result.json"),
    ),
    Scoring(frozenset({"data.split_test", "data.detector_weights"}), (PEOPLE,)),
)
_NOT_PROTOCOL = ("manifest", "people", "detector_weights", "workers", "max_failure_share")


class LocalizationTask(TrainingTask):
    """Wires the localizer to the engine.

    Args:
        localizer: Encoder and classifier.
        optim: Optimiser and its settings.
        length: Of the run.
        weights: Where encoder and classifier are written.
        freeze: Leave the backbone as it is, its batch statistics too.
        channels_last: Whether clips are laid out channels-last.
    """

    def __init__(
        self,
        localizer: ActionLocalizer,
        optim: OptimConfig,
        length: Schedule,
        weights: Path,
        freeze: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__(optim, length, weights, channels_last)
        self.localizer, self.freeze_encoder = localizer, freeze
        localizer.encoder.requires_grad_(not freeze)

    @property
    def encoder(self) -> VideoEncoder:
        """The localizer's encoder."""
        return self.localizer.encoder

    def compile_network(self) -> None:
        """Compile the way to the feature maps, which is all that is called of the backbone."""
        backbone: Any = self.localizer.encoder.backbone
        backbone.feature_maps = compiled(backbone.feature_maps)

    def train(self, mode: bool = True) -> LocalizationTask:
        """As usual, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.freeze_encoder:
            self.localizer.encoder.eval()
        return self

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Pixels to floats, boxes into the crops."""
        clips = apply_augmentation(batch["clip"], batch.pop("augmentation"))
        size = clips.shape[-1]
        boxes, actions = boxes_in_crops(batch["target"], batch["crop"].float(), batch["flipped"].float(), size)
        return {
            **batch,
            "clip": clips.to(self.dtype, memory_format=self.memory_format),
            "boxes": boxes,
            "actions": actions,
        }

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Binary cross-entropy of every action, summed over actions and averaged over people."""
        logits = self.localizer(batch["clip"], batch["boxes"])
        people = max(len(logits), 1)  # crops can miss all people of a batch
        loss = F.binary_cross_entropy_with_logits(logits, batch["actions"], reduction="sum") / people
        return self.report({"loss": loss, "people": loss.new_tensor(len(logits))}, batch)

    def write_weights(self) -> None:
        """Encoder and classifier in one file."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.localizer.state_dict().items()}
        with atomic_path(self.weights) as temporary:
            save_file(tensors, temporary)


def localize(
    *,
    data: LocalizationData,
    weights: str | None = None,
    backbone: str | None = None,
    backbone_options: dict[str, Any] | None = None,
    freeze: bool = False,
    dropout: float = 0.5,
    augment: AugmentConfig = replace(CROP_AND_FLIP, crop_area=(0.5, 1.0), crop_aspect=(0.75, 1.333)),  # noqa: B008
    optim: OptimConfig = OptimConfig(name="sgd", learning_rate=0.1, weight_decay=1e-5),  # noqa: B008
    run: TrainingConfig = TrainingConfig(epochs=10, warmup_epochs=2),  # noqa: B008
    json: bool = False,
) -> None:
    r"""Train and score action localization on AVA-Kinetics (frame-mAP at an overlap of 0.5).

    Trains on annotated boxes; scores detected people (action probability x person score) and, as the ceiling of any
    detector, annotated boxes. Writes OUT/detections.csv in the official form (`timegrain score ava` reads it),
    result.json and localizer.safetensors. The same command again continues, or scores a finished run anew.

    Examples::

        timegrain localize --config configs/localization/ava_kinetics_teg_ps.yaml --data.manifest ava.parquet \
            --weights runs/k400-a0 --data.people people.csv

    Args:
        data: Which key frames, and who is in them.
        weights: Encoder to start from: a .safetensors file, a run's folder, or OWNER/NAME on the Hub. Without it the
            backbone starts from random weights.
        backbone: Without `weights`: which backbone, by default r3d50. With them it is theirs.
        backbone_options: Without `weights`: its options.
        freeze: Train the classifier only.
        dropout: Before the classifier.
        augment: How training clips are changed.
        optim: Optimiser; learning rates are in the mean-loss convention.
        run: How long, on what, where to.
        json: Print one JSON object.
    """
    quieten()
    started = time.time()
    manifest = Manifest.open(data.manifest)
    names = class_names(manifest)
    tested = ToScore.of(manifest, data, names)
    run = replace(run, out=run.out or Path("runs") / f"{data.manifest.stem}-localization")
    out = run.out
    assert out is not None
    if tested.people is None and is_first_process() and (run.restart or not (out / PEOPLE).exists()):
        person_detector(data.detector_weights)  # what is wrong with it is said here, not after the training
    trained = find_encoder(weights) if weights else None
    network = _network(weights, trained, backbone, backbone_options or {})
    options = {
        "backbone": network.backbone, "backbone_options": dict(network.backbone_options), "freeze": freeze,
        "dropout": dropout,
    }  # fmt: skip
    known = {"data": data, "weights": weights, **options, "augment": augment, "optim": optim, "run": run}
    resume = open_run(out, known, "localize", SCORINGS)
    seed_everything(run.seed, verbose=False)
    encoder = trained or VideoEncoder(network)
    localizer = ActionLocalizer(encoder, len(names), dropout=dropout)
    train = manifest.select(split=data.split_train)
    spec = ClipSpec(data.num_frames, data.stride)
    known_frames = key_frames(train, list(names))
    frames = [frame for frame in known_frames if frame.actions.any()]
    if not frames:
        raise ValueError(f"{data.manifest} has no key frame with a person and a known action in {data.split_train!r}")
    clips = LabelledClips(
        train, len(frames), AroundKeyFrames(train, spec, frames, data.max_people), data.crop_size, augment, run.seed
    )
    length = go_on(plan(data, run, len(clips)), run, resume)
    if is_first_process():
        run_record(out, {"started": started, "schedule": length.__dict__})
    task = LocalizationTask(localizer, optim, length, out / "localizer.safetensors", freeze, run.channels_last)
    fit(
        task,
        run,
        length,
        lambda trainer: build_loader(clips, collate, data, run, trainer),
        failures=FailedVideos(out / "failed_videos.csv", len(train), data.max_failure_share),
        resume=resume,
        description="localization",
    )
    if is_first_process():
        localizer.load_state_dict(load_file(out / "localizer.safetensors"))
        device = choose_device("cpu" if run.accelerator == "cpu" else "auto")
        found = score_localizer(localizer, tested, data, names, out, device)
        floors = ava_rows(found.truth, found.people, truth_of(known_frames, list(names)), names)
        result = _result(found, floors, method_name(encoder.config.extra), data, run, manifest, options, weights)
        result = replace(result, seconds=time.time() - started)
        write_result(out, result)
        print(
            json_module.dumps({"result": asdict(result), "ap": found.scores["ap"]}) if json else found.said(result, out)
        )


def _network(
    weights: str | None, trained: VideoEncoder | None, backbone: str | None, options: dict[str, Any]
) -> EncoderConfig:
    """Which network: that of the weights, which nothing may contradict, or the one asked for."""
    if weights is None or trained is None:
        return EncoderConfig(backbone or "r3d50", options, heads=())
    config = trained.config
    if backbone not in (None, config.backbone):
        raise ValueError(
            f"{weights} has the backbone {config.backbone}, not {backbone}: leave out --backbone, or --weights to begin "
            "with random ones"
        )
    check_options(weights, config, options, "--backbone-options")
    return config


def _result(
    found: Scored,
    floors: Sequence[Mapping[str, Any]],
    method: str,
    data: LocalizationData,
    run: TrainingConfig,
    manifest: Manifest,
    options: Mapping[str, Any],
    weights: str | None,
) -> Result:
    name = method if weights else f"from scratch ({options['backbone']})"
    rows = [
        Row(name, {"map": found.scores["map"] or 0.0}, "trained", run.seed),
        *(Row(str(row["name"]), {"map": float(row["map"])}, "floor") for row in floors),
        Row(f"{name}, annotated boxes", {"map": found.ceiling["map"] or 0.0}, "ceiling", run.seed),
    ]
    protocol = {
        **{key: value for key, value in asdict(data).items() if key not in _NOT_PROTOCOL},
        "people": "file" if data.people else "torchvision Faster R-CNN R50 FPN v2",
        "freeze": options["freeze"],
        "metric": "frame-mAP at overlap 0.5, official rules, at most 50 detections per frame",
    }
    benchmark = str((manifest.coverage or {}).get("benchmark", data.manifest.stem))
    return Result(benchmark, "localization", {"map": "frame-mAP"}, rows, protocol, manifest.coverage, found.num_frames)
