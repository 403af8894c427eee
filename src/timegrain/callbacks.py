"""What watches a training run: progress, metrics on disk, data wait, broken videos, the quality of the features."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from timegrain.data.clips import VideoClips, half_views
from timegrain.data.decoding import VideoError
from timegrain.data.transforms import stack_clips, to_model_input
from timegrain.files import appended, atomic_path
from timegrain.models.hub import VideoEncoder
from timegrain.monitors import knn_leave_one_out, same_video_retrieval
from timegrain.provenance import provenance

_RETRIEVAL, _KNN = "monitor/same_video_retrieval", "monitor/knn_accuracy"


class ProgressLine(Callback):
    """One line: steps, loss, samples per second, share of time waiting for data, time left.

    Args:
        description: The words before it.
    """

    def __init__(self, description: str = "training") -> None:
        self.description = description
        self.bar: tqdm[Any] | None = None
        self.waited = self.trained = 0.0
        self._mark = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the line at the step where training goes on."""
        self._mark = time.perf_counter()
        if trainer.is_global_zero:
            total = trainer.estimated_stepping_batches
            self.bar = tqdm(
                total=int(total),
                initial=trainer.global_step,
                desc=self.description,
                dynamic_ncols=True,
                mininterval=0.5,
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The time since the last batch ended was spent waiting for this one."""
        now = time.perf_counter()
        self.waited += now - self._mark
        self._mark = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the line."""
        now = time.perf_counter()
        self.trained += now - self._mark
        self._mark = now
        wait = 100 * self.waited / (self.waited + self.trained)
        pl_module.log("data_wait_percent", wait)
        if self.bar is not None and trainer.global_step > self.bar.n:
            self.bar.update(trainer.global_step - self.bar.n)
            # Reading a loss makes the host wait for a GPU: there, the numbers change every few steps.
            every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # the engine sets it
            if pl_module.device.type != "cpu" and trainer.global_step % every:
                return
            rate = (self.bar.format_dict["rate"] or 0.0) * len(batch["index"]) * trainer.world_size
            rate *= trainer.accumulate_grad_batches
            parts = {
                key.split("/")[0]: f"{float(value):.2f}"
                for key, value in trainer.callback_metrics.items()
                if key.endswith("/loss")
            }
            loss = float(trainer.callback_metrics.get("loss", torch.nan))
            self.bar.set_postfix({"loss": f"{loss:.3f}", **parts, "samples/s": f"{rate:.3g}", "wait": f"{wait:.0f}%"})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the line."""
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the line before the error is printed."""
        if self.bar is not None:
            self.bar.close()


class MetricsCsv(Callback):
    """``metrics.csv``: one row per logged step, continued (not begun anew) when the run is resumed.

    Args:
        path: The file.
        every_steps: Optimiser steps between rows.
    """

    def __init__(self, path: Path, every_steps: int) -> None:
        self.path, self.every_steps = path, every_steps
        self.rows: list[dict[str, float]] = []
        self.columns: list[str] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the rows of the steps before the one training goes on from."""
        if not trainer.is_global_zero or not self.path.exists() or trainer.global_step == 0:
            return
        self.rows = [row for row in _whole_rows(self.path) if row["step"] <= trainer.global_step]
        self._write_all()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the values of this step."""
        step = trainer.global_step
        if not trainer.is_global_zero or (self.rows and self.rows[-1]["step"] == step):
            return
        if step == 1 or (step and step % self.every_steps == 0):  # 0: batches of the first step, before it is done
            values = {key: float(value) for key, value in trainer.callback_metrics.items() if "monitor" not in key}
            self._add({"step": float(step), "epoch": float(trainer.current_epoch), **values})

    def note(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Add values that belong to the present step, such as a monitor's."""
        if trainer.is_global_zero:
            self._add({"step": float(trainer.global_step), "epoch": float(trainer.current_epoch), **values})

    def _add(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        if set(row) <= set(self.columns):
            with appended(self.path) as file:
                csv.DictWriter(file, self.columns).writerow(row)
        else:
            self._write_all()

    def _write_all(self) -> None:
        self.columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)


def _whole_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv, without one that a full disk or a power cut left unfinished."""
    rows: list[dict[str, float]] = []
    with path.open(newline="", errors="replace") as file:
        lines = [line for line in file if line.endswith("\n")]
    for row in csv.DictReader(line.replace("\0", "") for line in lines):
        if None in row or None in row.values():  # more or fewer cells than columns
            continue
        with suppress(ValueError):
            rows.append({key: float(value) for key, value in row.items() if value})
    return [row for row in rows if "step" in row]


class StepSeed(Callback):
    """Makes what a step draws on the device (dropout) a function of (seed, step, process), so that resuming is exact.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed torch's generators anew."""
        key = [self.seed, trainer.global_step, batch_idx % trainer.accumulate_grad_batches, trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


class FailedVideos(Callback):
    """Writes down every video that could not be decoded and stops the run when they are too many.

    Args:
        path: Where the list goes (csv: path, reason, step).
        num_videos: Videos in the data set.
        max_share: Share of distinct failed videos that stops the run.
    """

    def __init__(self, path: Path, num_videos: int, max_share: float) -> None:
        self.path, self.num_videos, self.max_share = path, num_videos, max_share
        self.failed: dict[str, str] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at what the workers reported with this batch."""
        self.note(batch["failures"], trainer.global_step)

    def note(self, failures: Iterable[tuple[str, str]], step: int) -> None:
        """Write down videos (path, reason) that failed at a step, those that are new.

        Raises:
            VideoError: They are too many now.
        """
        news = {path: reason for path, reason in failures if path not in self.failed}
        if not news:
            return
        self.failed.update(news)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with appended(self.path) as file:
            csv.writer(file).writerows((path, reason, step) for path, reason in news.items())
        for path, reason in news.items():
            tqdm.write(f"could not decode {path}: {reason} (listed in {self.path})", file=sys.stderr)
        if len(self.failed) > self.max_share * self.num_videos:
            path, reason = next(iter(news.items()))
            raise VideoError(
                path,
                f"{reason}. With it {len(self.failed)} of {self.num_videos} videos failed to decode, more than "
                f"the allowed share of {self.max_share:.1%} (--data.max_failure_share). All are listed in {self.path}; "
                "`timegrain manifest check` finds them before training",
            )


class FeatureMonitor(Callback):
    """How good the features are, without touching training: kNN where videos have labels, else same-video retrieval.

    Two clips of each of some training videos are encoded, one from its first half and one from its second. Retrieval:
    how often the other clip of the same video is the nearest, among the videos that are longer than a clip (of the others
    both clips would be the same). kNN: how often the label is guessed from other videos. A video that cannot be decoded is
    looked at no more, and said to be: it is training that decides how many may be broken.

    Args:
        clips: The training data.
        every_epochs: Epochs between looks.
        max_videos: Videos to look at.
        csv_log: Where the values go, too.
    """

    def __init__(self, clips: VideoClips, every_epochs: int, max_videos: int, csv_log: MetricsCsv) -> None:
        self.clips, self.every_epochs, self.csv_log = clips, every_epochs, csv_log
        self.videos = monitored_videos(clips, max_videos)
        self.num_short = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, on the first process only; every process gets the value so that checkpoints agree."""
        if (trainer.current_epoch + 1) % self.every_epochs:
            return
        value = torch.full((1,), torch.nan, device=pl_module.device)
        if trainer.is_global_zero:
            values = self.measure(cast(VideoEncoder, pl_module.encoder), pl_module.device)
            value[0] = values.get(_KNN, values.get(_RETRIEVAL, torch.nan))
            self.csv_log.note(trainer, values)
            shown = ", ".join(f"{name.removeprefix('monitor/')} {share:.3f}" for name, share in values.items())
            if self.num_short:
                shown += (
                    f" (retrieval leaves out {self.num_short} of {len(self.videos)} videos, not longer than a clip)"
                )
            tqdm.write(f"epoch {trainer.current_epoch + 1}: {shown}", file=sys.stderr)
        value = trainer.strategy.broadcast(value)
        pl_module.log("monitor", value[0], rank_zero_only=True)

    def measure(self, encoder: VideoEncoder, device: torch.device) -> dict[str, float]:
        """The monitor's values for an encoder, its mode and statistics left as they were.

        Retrieval is not among them where it would have fewer than two videos, kNN where videos have no labels.
        """
        was_training = encoder.training
        encoder.eval()
        features: list[Tensor] = []
        counts: list[int] = []
        try:
            with torch.inference_mode():
                features.extend(
                    encoder(to_model_input(batch.to(device))).mean(1).float().cpu() for batch in self._batches(counts)
                )
        finally:
            encoder.train(was_training)
        table = torch.cat(features)  # one row, or two in a row, of each video
        last = torch.tensor(counts).cumsum(0) - 1
        is_pair = torch.tensor(counts) == 2
        first, second = table[last - is_pair.long()], table[last]
        self.num_short = int((~is_pair).sum())
        values: dict[str, float] = {}
        if is_pair.sum() > 1:
            values[_RETRIEVAL] = same_video_retrieval(first[is_pair], second[is_pair])
        labels = labels_to_guess(self.clips, self.videos)
        if labels is not None:
            groups = [self.clips.manifest[video].group for video in self.videos]
            values[_KNN] = knn_leave_one_out((first + second) / 2, labels, groups)
        return values

    def _batches(self, counts: list[int]) -> Iterator[Tensor]:
        """Clips of every video, about 32 at a time, and how many of each; ``videos`` keeps those that could be decoded."""
        pending: list[Tensor] = []
        for video in list(self.videos):
            try:
                views = half_views(self.clips, video)
            except VideoError as error:
                if len(self.videos) == 1:
                    raise
                self.videos.remove(video)
                tqdm.write(f"the monitor leaves out {error}", file=sys.stderr)
                continue
            counts.append(len(views))
            pending += views
            if len(pending) >= 32:
                yield stack_clips(pending)
                pending = []
        if pending:
            yield stack_clips(pending)


def monitored_videos(clips: VideoClips, max_videos: int) -> list[int]:
    """Which videos a monitor looks at: evenly spread, at most so many."""
    count = min(max_videos, len(clips))
    return [round(i * (len(clips) - 1) / max(1, count - 1)) for i in range(count)]


def can_be_monitored(clips: VideoClips, max_videos: int) -> bool:
    """Whether there are labels to guess, or two videos long enough for two clips."""
    videos = monitored_videos(clips, max_videos)
    num_long = sum(clips.manifest[video].num_frames > clips.specs[0].span for video in videos)
    return num_long > 1 or labels_to_guess(clips, videos) is not None


def labels_to_guess(clips: VideoClips, videos: Sequence[int]) -> Tensor | None:
    """Class numbers of the videos; None where one has no label, or all have the same."""
    labels = [clips.manifest[video].label for video in videos]
    names = sorted({str(label) for label in labels})
    return torch.tensor([names.index(str(label)) for label in labels]) if all(labels) and len(names) > 1 else None


def run_record(out: Path, facts: dict[str, Any]) -> None:
    """Write ``run.json``: what ran, from which code, with which versions, on which machine.

    Args:
        out: Folder of the run.
        facts: What else to note; keys of an earlier record are kept where not given anew. One that was damaged is
            written anew: a run does not depend on it.
    """
    path = out / "run.json"
    before: dict[str, Any] = {}
    with suppress(FileNotFoundError, ValueError, TypeError):
        before = dict(json.loads(path.read_text()))
    record = {**before, **provenance(), **facts}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
