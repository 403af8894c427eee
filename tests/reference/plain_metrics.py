"""The benchmarks' rules written as plainly as they are described: loops, one video and one frame at a time.

Slow, independent of the package, and short enough to check by eye. The tests and `benchmarks/metrics_scale.py`
compare the package's metrics with these.
"""

import itertools
import math
from collections import defaultdict
from fractions import Fraction

import numpy as np


def boundary_f1(videos, predictions, missing, threshold):
    """`videos`: id -> (length, last, boundaries per annotator, consistency); gives recall, precision, f1, counts."""
    tp_all = positives_all = detections_all = 0
    for key, (length, last, annotations, consistency) in videos.items():
        if consistency < 0.3:
            continue
        if key not in predictions and missing == "notebook":
            continue
        kept = [t for t in predictions.get(key, []) if 0 <= t <= last]
        if not kept:
            positives_all += len(annotations[0])
            continue
        detections_all += len(kept)
        best = None
        for boundaries in annotations:
            distance = np.zeros((len(boundaries), len(kept)))
            for i, boundary in enumerate(boundaries):
                for j, detection in enumerate(kept):
                    distance[i, j] = abs(boundary - detection)
            tp = 0
            for i in range(len(boundaries)):
                if distance.shape[1] == 0:
                    break
                nearest = np.argmin(distance[i])
                if distance[i, nearest] <= threshold * length:
                    tp += 1
                    distance = np.delete(distance, nearest, 1)
            recall = tp / len(boundaries) if boundaries else 1
            precision = tp / len(kept)
            f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0
            if best is None or f1 > best[0]:
                best = (f1, tp, len(boundaries))
        tp_all += best[1]
        positives_all += best[2]
    recall = tp_all / positives_all if positives_all else 1
    precision = tp_all / detections_all if detections_all else 0
    f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0
    return recall, precision, f1, (tp_all, positives_all, detections_all)


def verb_scores(predicted, annotated):
    """Lists over videos of five lists of verbs -> acc@k, vid@k, recall by limit."""
    result = {}
    for k in range(1, 6):
        right = [
            [bool(set(p[:k]) & set(a[:10])) for p, a in zip(ps, annotations, strict=True)]
            for ps, annotations in zip(predicted, annotated, strict=True)
        ]
        result[f"acc@{k}"] = sum(map(sum, right)) / (5 * len(right))
        result[f"vid@{k}"] = sum(map(all, right)) / len(right)
    recalled = defaultdict(list)
    for ps, annotations in zip(predicted, annotated, strict=True):
        for p, a in zip(ps, annotations, strict=True):
            for verb in set(a[:10]):
                if a[:10].count(verb) >= 2:
                    recalled[verb].append(verb in p[:5])
    for limit in range(10):
        means = [sum(hits) / len(hits) for hits in recalled.values() if len(hits) > limit]
        result[f"recall {limit}"] = sum(means) / len(means) if means else 0.0
    return result


def matching_accuracy(predicted, annotated):
    """Mean over videos of the share of fixed points, averaged over all best assignments; exact."""
    total = Fraction()
    for ps, annotations in zip(predicted, annotated, strict=True):
        size = len(ps)

        def affinity(p, a):
            seen = []
            value = Fraction()
            for rank, verb in enumerate(p[:5], start=1):
                if verb not in seen:
                    value += Fraction(a[:10].count(verb), len(a[:10])) / rank
                    seen.append(verb)
            return value

        table = [[affinity(p, a) for a in annotations] for p in ps]
        sums = {s: sum(table[i][s[i]] for i in range(size)) for s in itertools.permutations(range(size))}
        best = [s for s, value in sums.items() if value == max(sums.values())]
        total += sum(Fraction(sum(s[i] == i for i in range(size)), size) for s in best) / len(best)
    return total / len(predicted)


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[3] - a[1]) * (a[2] - a[0]) + (b[3] - b[1]) * (b[2] - b[0]) - shared
    return shared / union if union else 0.0


def frame_map(truth, found, names, limit=50):
    """`truth`: rows (frame, box, class), or (frame,); `found`: (frame, box, class, score); gives map, AP by class."""
    frames = {row[0] for row in truth}
    boxes = defaultdict(list)
    for row in truth:
        if len(row) > 1 and row[2] in names:
            boxes[row[0], row[2]].append(row[1])
    by_frame = defaultdict(list)
    for frame, box, number, score in found:
        if frame in frames and number in names:
            by_frame[frame].append((score, box, number))
    outcomes = defaultdict(list)  # class -> (score, right)
    for frame, rows in by_frame.items():
        rows.sort(key=lambda row: -row[0])
        taken = set()
        for score, box, number in rows[:limit]:
            if box[0] >= box[2] or box[1] >= box[3]:
                continue
            right = False
            candidates = boxes[frame, number]
            if candidates:
                overlaps = [overlap(box, other) for other in candidates]
                nearest = max(range(len(overlaps)), key=overlaps.__getitem__)
                right = overlaps[nearest] >= 0.5 and (number, nearest) not in taken
                if right:
                    taken.add((number, nearest))
            outcomes[number].append((score, right))
    precision = {}
    for number in names:
        num_boxes = sum(len(group) for (_, own), group in boxes.items() if own == number)
        if num_boxes == 0:
            precision[number] = math.nan
            continue
        rows = sorted(outcomes[number], key=lambda row: -row[0])
        recalls, precisions, right = [0.0], [0.0], 0
        for rank, (_, is_right) in enumerate(rows, start=1):
            right += is_right
            recalls.append(right / num_boxes)
            precisions.append(right / rank)
        recalls.append(1.0)
        precisions.append(0.0)
        for i in range(len(precisions) - 2, -1, -1):
            precisions[i] = max(precisions[i], precisions[i + 1])
        steps = range(1, len(recalls))
        precision[number] = sum((recalls[i] - recalls[i - 1]) * precisions[i] for i in steps)
    values = [value for value in precision.values() if not math.isnan(value)]
    return (sum(values) / len(values) if values else math.nan), precision


def retrieval(gallery, gallery_labels, query, query_labels, ranks, centre):
    """Recall at k by sorting the whole gallery for each query."""
    gallery, query = np.asarray(gallery, float), np.asarray(query, float)
    if centre:
        gallery, query = gallery - gallery.mean(0), query - query.mean(0)
    gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    query = query / np.linalg.norm(query, axis=1, keepdims=True)
    result = {}
    for k in ranks:
        right = 0
        for feature, label in zip(query, query_labels, strict=True):
            nearest = sorted(range(len(gallery)), key=lambda i: -float(feature @ gallery[i]))[:k]
            right += any(gallery_labels[i] == label for i in nearest)
        result[str(k)] = right / len(query)
    return result


def top_k(labels, num_classes, views, clips, logits):
    """(top-1 %, top-5 %, mean class accuracy)."""
    sums = [[0.0] * num_classes for _ in labels]
    for clip, row in zip(clips, logits, strict=True):
        weights = [math.exp(x - max(row)) for x in row]
        for c, weight in enumerate(weights):
            sums[clip // views][c] += weight / sum(weights)
    orders = [sorted(range(num_classes), key=lambda c: -row[c]) for row in sums]
    tops = [100 * sum(label in o[:k] for label, o in zip(labels, orders, strict=True)) / len(labels) for k in (1, 5)]
    recalls = []
    for c in sorted(set(labels) | {order[0] for order in orders}):
        own = [order[0] == c for label, order in zip(labels, orders, strict=True) if label == c]
        recalls.append(sum(own) / len(own) if own else 0.0)
    return tops[0], tops[1], sum(recalls) / len(recalls)
