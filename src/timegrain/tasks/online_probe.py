"""``timegrain probe linear`` and ``probe attentive``: classifiers on frozen features of augmented clips, trained by SGD."""

from __future__ import annotations

from timegrain.data.labelled_clips import CROP_AND_FLIP
from timegrain.data.transforms import AugmentConfig
from timegrain.optim import OptimConfig
from timegrain.tasks.classifier_config import BackboneConfig, ClassifierConfig, EvaluationConfig, LabelledDataConfig
from timegrain.tasks.config import TrainingConfig
from timegrain.tasks.labelled_runs import Settings, run_splits


def probe_linear(
    *,
    weights: str,
    split: list[int] | None = None,
    data: LabelledDataConfig = LabelledDataConfig(),  # noqa: B008  (jsonargparse shows the defaults; never mutated)
    classifier: ClassifierConfig = ClassifierConfig(normalise=True),  # noqa: B008
    augment: AugmentConfig = CROP_AND_FLIP,
    optim: OptimConfig = OptimConfig(name="reference_sgd", learning_rate=1.0, weight_decay=0.0),  # noqa: B008
    run: TrainingConfig = TrainingConfig(epochs=100),  # noqa: B008
    test: EvaluationConfig = EvaluationConfig(),  # noqa: B008
    json: bool = False,
) -> None:
    """Train a linear layer on frozen, L2-normalised features of augmented clips; test it on whole videos.

    The linear evaluation of the paper's family: backbone frozen and in evaluation mode, SGD with a cosine and five
    epochs of warm-up, random crops and flips; 10 clips x 3 crops in the test. The learning rate goes with the batch: the
    family has 32 at 1024 clips, so 1 at 32. `timegrain probe` is the quick and exact route on cached features.

    Examples::

        timegrain probe linear --weights runs/VIDEOS-a0/weights.safetensors --data.manifest m.parquet
        timegrain probe linear --config configs/probe/k400_teg_ps.yaml --weights W --data.manifest k400.parquet

    Args:
        weights: A .safetensors file, the folder of a pre-training run, or OWNER/NAME on the Hugging Face Hub.
        split: Which of the benchmark's own divisions to train and test on, such as 1 2 3; their mean is the result.
        data: Which videos and clips.
        classifier: What stands on the features; num_blocks and num_heads are those of `probe attentive`.
        augment: How training clips are changed; crop and flip by default.
        optim: Optimiser; learning rates are in the mean-loss convention.
        run: How long, on what, where to.
        test: How test videos are seen.
        json: Print one JSON object.
    """
    settings = Settings(weights, BackboneConfig(), data, classifier, augment, optim, run, test, split)
    run_splits("linear probe", settings, json)


def probe_attentive(
    *,
    weights: str,
    split: list[int] | None = None,
    data: LabelledDataConfig = LabelledDataConfig(),  # noqa: B008
    classifier: ClassifierConfig = ClassifierConfig(),  # noqa: B008
    augment: AugmentConfig = CROP_AND_FLIP,
    optim: OptimConfig = OptimConfig(name="adamw", learning_rate=1e-3, weight_decay=0.01),  # noqa: B008
    run: TrainingConfig = TrainingConfig(epochs=20, warmup_epochs=0.0),  # noqa: B008
    test: EvaluationConfig = EvaluationConfig(num_clips=8, num_crops=3),  # noqa: B008
    json: bool = False,
) -> None:
    """Train a learned query that attends to frozen features of each time step; test it on whole videos.

    The protocol of today's frozen-encoder papers (V-JEPA 2): three blocks of self-attention, one of cross-attention from
    a learned query, a linear layer; 20 epochs; 8 clips x 3 crops in the test. They take the best of 20 learning rates
    and weight decays; here one is given.

    Examples::

        timegrain probe attentive --weights runs/VIDEOS-a0.9/weights.safetensors --data.manifest m.parquet
        timegrain probe attentive --weights W --data.manifest m.parquet --classifier.num_blocks 0

    Args:
        weights: A .safetensors file, the folder of a pre-training run, or OWNER/NAME on the Hugging Face Hub.
        split: Which of the benchmark's own divisions to train and test on, such as 1 2 3; their mean is the result.
        data: Which videos and clips.
        classifier: What stands on the features; normalise is that of `probe linear`.
        augment: How training clips are changed; crop and flip by default.
        optim: Optimiser; learning rates are in the mean-loss convention.
        run: How long, on what, where to.
        test: How test videos are seen.
        json: Print one JSON object.
    """
    settings = Settings(weights, BackboneConfig(), data, classifier, augment, optim, run, test, split)
    run_splits("attentive probe", settings, json)
