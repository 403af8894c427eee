"""What the numbers of a demo say: differences world by world, and sentences made from them, whatever they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from statistics import mean, stdev

PERSISTENT, MIDDLE, FINE = "TeG-PS (α = 0)", "TeG (α = 0.5)", "TeG-FG (α = 0.9)"
PYRAMID = "pyramid (m = 1, 2, 4, 8)"
INSIDE_CEILING, VIDEO_CEILING = "supervised, events", "supervised, videos"
RANDOM, PIXELS = "random weights", "raw pixels"
LEARNED, CEILINGS, FLOORS = (PERSISTENT, MIDDLE, FINE, PYRAMID), (INSIDE_CEILING, VIDEO_CEILING), (RANDOM, PIXELS)


@dataclass(frozen=True)
class Score:
    """One way to measure features.

    Args:
        key: As :func:`timegrain.tasks.eventworld_eval.evaluate` names it.
        name: As the page names it.
        inside: Whether it asks about moments inside a video; else about the video as a whole.
    """

    key: str
    name: str
    inside: bool


SCORES = (
    Score("event", "event class", True),
    Score("boundary_auc", "boundary AUC", True),
    Score("boundary_f1", "boundary F1@0.05", True),
    Score("clip", "video class, one clip", False),
    Score("video", "video class, averaged", False),
    Score("knn", "video class, kNN", False),
)

Results = Mapping[str, Mapping[str, Sequence[float]]]
"""By score and method, one value per world, worlds in the same order everywhere."""


@dataclass(frozen=True)
class Difference:
    """One method minus another, world by world.

    Args:
        values: One per world.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the worlds."""
        return mean(self.values)

    @property
    def clear(self) -> bool:
        """Whether there is a spread, every world has the same sign, and the mean is larger than the spread."""
        signs = {value > 0 for value in self.values if value != 0}
        return len(self.values) > 1 and len(signs) == 1 and abs(self.mean) > stdev(self.values)

    def __str__(self) -> str:
        text = signed(self.mean)
        if len(self.values) > 1:
            agree = sum(value * self.mean > 0 for value in self.values)
            text += f" ± {stdev(self.values):.3f}, {agree} of {len(self.values)} worlds"
        return text


def signed(value: float) -> str:
    """With its sign, and a minus as long as a plus."""
    return f"{value:+.3f}".replace("-", "−")


def difference(results: Results, score: str, method: str, other: str) -> Difference:
    """``method`` minus ``other``."""
    pairs = zip(results[score][method], results[score][other], strict=True)
    return Difference(tuple(a - b for a, b in pairs))


def summary(results: Results) -> str:
    """The page's first sentence: which tasks prefer which features."""
    if len(results["event"][FINE]) == 1:
        return "One world only: numbers to look at, with nothing to judge a difference by."
    inside = _prefer(results, inside=True)
    whole = _prefer(results, inside=False)
    verdict = {
        ("FG", "PS"): "That is the paper's finding.",
        ("FG", ""): "The first half of the paper's finding is there, the second is not settled.",
        ("", "PS"): "The second half of the paper's finding is there, the first is not settled.",
        ("", ""): "This run settles nothing about the paper's finding.",
    }.get((inside, whole), "That disagrees with the paper.")
    return f"{_says('Inside a video', inside)} {_says('About the whole video', whole)} {verdict}"


def _prefer(results: Results, *, inside: bool) -> str:
    """FG or PS if one is clearly ahead in most scores of the group and the other in none, else an empty string."""
    found = [difference(results, score.key, FINE, PERSISTENT) for score in SCORES if score.inside == inside]
    for name, sign in (("FG", 1), ("PS", -1)):
        ahead = sum(d.clear and d.mean * sign > 0 for d in found)
        behind = sum(d.clear and d.mean * sign < 0 for d in found)
        if ahead > len(found) / 2 and not behind:
            return name
    return ""


def _says(where: str, winner: str) -> str:
    names = {"FG": "fine-grained features (TeG-FG) win", "PS": "persistent features (TeG-PS) win"}
    says = names.get(winner, "neither TeG-FG nor TeG-PS is clearly ahead in most scores")
    return f"{where}, {says}."


def comparisons(results: Results) -> list[str]:
    """One sentence a score: FG against PS, and whether either has learned something."""
    return [_comparison(results, score) for score in SCORES]


def _comparison(results: Results, score: Score) -> str:
    gap = difference(results, score.key, FINE, PERSISTENT)
    fine, persistent = (mean(results[score.key][name]) for name in (FINE, PERSISTENT))
    text = f"{_capital(score.name)}: TeG-FG {fine:.3f}, TeG-PS {persistent:.3f}; FG minus PS {gap}."
    expected = 1 if score.inside else -1
    if len(gap.values) > 1:
        if not gap.clear:
            text += " Not settled: the worlds disagree, or the difference is within its spread."
        elif gap.mean * expected > 0:
            text += " As the paper finds."
        else:
            text += " Against what the paper finds."
    best = FINE if fine >= persistent else PERSISTENT
    above = difference(results, score.key, best, RANDOM)
    words = "above" if above.mean > 0 else "not above"
    doubt = "" if above.clear or len(above.values) == 1 else ", which is within the spread"
    text += f" The better one is {words} random weights ({signed(above.mean)}{doubt})"
    pixels = mean(results[score.key][PIXELS])
    text += f" and not above raw pixels ({pixels:.3f})." if pixels >= max(fine, persistent) else "."
    ceiling = mean(results[score.key][INSIDE_CEILING if score.inside else VIDEO_CEILING])
    if max(fine, persistent) >= ceiling:
        text += f" It reaches the network trained with labels ({ceiling:.3f}), which is no ceiling here."
    return text


def pyramid_sentence(results: Results) -> str:
    """How far one model for all granularities falls behind the better of FG and PS; empty without a pyramid."""
    if PYRAMID not in results["event"]:
        return ""
    parts = []
    for score in SCORES:
        values = results[score.key]
        best = max((FINE, PERSISTENT), key=lambda name: mean(values[name]))
        parts.append(f"{score.name} {signed(mean(values[PYRAMID]) - mean(values[best]))}")
    return (
        "One model for all granularities: the pyramid (four levels of equal weight) against the better of FG and PS in "
        "each score, " + ", ".join(parts) + "."
    )


def cuts_sentence(results: Results, even_cuts: Sequence[float]) -> str:
    """Whether any method finds boundaries better than evenly spaced ones."""
    values = {name: mean(found) for name, found in results["boundary_f1"].items() if name in LEARNED}
    best = max(values, key=lambda name: values[name])
    cuts = mean(even_cuts)
    relation = (
        "equals" if isclose(values[best], cuts, abs_tol=5e-4) else "beats" if values[best] > cuts else "stays below"
    )
    return (
        f"Evenly spaced cuts, as many as score best on the training videos, reach a boundary F1 of {cuts:.3f}; the best "
        f"features without labels ({best}, {values[best]:.3f}) {'' if relation != 'equals' else 'just '}{relation} that."
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
