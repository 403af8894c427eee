"""``timegrain finetune``: train a whole network on labelled videos, from weights or from scratch, and test it."""

from __future__ import annotations

from timegrain.data.labelled_clips import CROP_AND_FLIP
from timegrain.data.transforms import AugmentConfig
from timegrain.optim import OptimConfig
from timegrain.tasks.classifier_config import BackboneConfig, ClassifierConfig, EvaluationConfig, LabelledDataConfig
from timegrain.tasks.config import TrainingConfig
from timegrain.tasks.labelled_runs import Settings, run_splits


def finetune(
    *,
    weights: str | None = None,
    split: list[int] | None = None,
    data: LabelledDataConfig = LabelledDataConfig(),  # noqa: B008  (jsonargparse shows the defaults; never mutated)
    model: BackboneConfig = BackboneConfig(),  # noqa: B008
    classifier: ClassifierConfig = ClassifierConfig(dropout=0.5),  # noqa: B008
    augment: AugmentConfig = CROP_AND_FLIP,
    optim: OptimConfig = OptimConfig(learning_rate=0.025, weight_decay=0.0),  # noqa: B008
    run: TrainingConfig = TrainingConfig(epochs=50),  # noqa: B008
    test: EvaluationConfig = EvaluationConfig(),  # noqa: B008
    json: bool = False,
) -> None:
    """Train a whole network on labelled videos, from weights or from scratch, and test it on whole videos.

    Without --weights (or with --weights none) the network begins with random weights: the supervised rows of the
    paper's tables. The same command again continues a run that was stopped, bit for bit. The run's folder gets
    weights.safetensors and classifier.safetensors, result.json (scores beside the majority class), clips.pkl (what
    `timegrain score topk` reads), config.yaml, metrics.csv and checkpoints.

    Examples::

        timegrain finetune --weights runs/VIDEOS-a0/weights.safetensors --data.manifest m.parquet
        timegrain finetune --weights none --model.backbone i3d_r50 --data.manifest m.parquet
        timegrain finetune --config configs/finetune/ucf101_teg_ps.yaml --weights W --data.manifest ucf101.parquet

    Args:
        weights: A .safetensors file, the folder of a pre-training run, or OWNER/NAME on the Hugging Face Hub; none
            trains from scratch.
        split: Which of the benchmark's own divisions to train and test on, such as 1 2 3; their mean is the result.
        data: Which videos and clips.
        model: Which network, without weights.
        classifier: What stands on the features.
        augment: How training clips are changed; crop and flip by default.
        optim: Optimiser; learning rates are in the mean-loss convention.
        run: How long, on what, where to.
        test: How test videos are seen.
        json: Print one JSON object.
    """
    settings = Settings(weights, model, data, classifier, augment, optim, run, test, split)
    run_splits("fine-tune", settings, json)
