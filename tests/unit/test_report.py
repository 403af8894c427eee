"""Pictures are pictures of what was given; the page stands alone."""

import io
import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt

from conftest import make_video, moving_square
from timegrain.report import figures
from timegrain.report.figures import Neighbours
from timegrain.report.frames import frames_at, sample_frames
from timegrain.report.page import Section, Table, render_page, score_cell


def pixels(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return plt.imread(io.BytesIO(png))


@pytest.fixture
def frames():
    return list(moving_square(6, 36, 64))


def blocks(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(len(sizes), 16))[np.repeat(np.arange(len(sizes)), sizes)]


def test_self_similarity_draws_blocks_at_their_times():
    features = blocks([4, 12])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    image = pixels(figures.self_similarity(unit @ unit.T, np.arange(16) * 0.5, 8.0))
    yellow = (image[..., 0] > 0.9) & (image[..., 1] > 0.85) & (image[..., 2] < 0.3)
    purple = (image[..., 0] < 0.35) & (image[..., 1] < 0.1) & (image[..., 2] < 0.4)
    # two squares of 1/4 and 3/4 of the side are alike: 10/16 of the matrix, the rest is not
    assert yellow.sum() / (yellow.sum() + purple.sum()) == pytest.approx(10 / 16, abs=0.04)


def test_self_similarity_with_frames_boundaries_and_irregular_times(frames):
    matrix = np.eye(3)
    plain = pixels(figures.self_similarity(matrix, np.array([0, 1, 5.0]), 6.0))
    dressed = pixels(
        figures.self_similarity(matrix, np.array([0, 1, 5.0]), 6.0, frames, boundaries_seconds=[1.0], title="a video")
    )
    assert dressed.shape[1] > plain.shape[1]  # the frames stand to the left and on top
    assert dressed.shape[0] > plain.shape[0]
    one = pixels(figures.self_similarity(np.ones((1, 1)), np.zeros(1), 1.0))
    assert one.size
    with pytest.raises(ValueError, match="does not fit"):
        figures.self_similarity(matrix, np.zeros(2), 1.0)


def test_cosine_matrix_is_that_of_the_differences_from_the_mean():
    features = np.random.default_rng(0).normal(size=(5, 3))
    centred = features - features.mean(0)
    expected = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in centred] for a in centred]
    np.testing.assert_allclose(figures.cosine_matrix(features), expected)
    assert np.isfinite(figures.cosine_matrix(np.ones((4, 2)))).all()


def test_neighbours_are_green_or_red():
    frames = [np.full((36, 64, 3), 150, np.uint8)] * 3
    right = figures.nearest_neighbours([Neighbours((frames[0], "a"), [(frames[1], "a"), (frames[2], "a")])])
    wrong = figures.nearest_neighbours([Neighbours((frames[0], "a"), [(frames[1], "b"), (frames[2], "b")])])
    green, red = mpl.colors.to_rgb(figures.RIGHT), mpl.colors.to_rgb(figures.WRONG)

    def count(png, colour):
        return int((np.abs(pixels(png)[..., :3] - colour).max(-1) < 0.02).sum())

    assert count(right, green) > 500
    assert count(right, red) == 0
    assert count(wrong, red) > 500
    assert count(wrong, green) == 0


def test_losses_of_runs_are_read_and_drawn(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").write_text(
        "step,fine/loss,fine/chance_loss,persistent/loss,persistent/chance_loss,monitor\n"
        "1,4.0,4.2,3.0,3.5,\n2,,,,,0.5\n3,2.0,4.2,1.5,3.5,\n"
    )
    curves = figures.run_losses({"a": run})
    assert list(curves) == ["a: fine", "a: persistent"]
    steps, loss, chance = curves["a: fine"]
    assert steps.tolist() == [1, 3]
    assert loss.tolist() == [4, 2]
    assert chance == 4.2
    many = {"long": (np.arange(300.0), np.exp(-np.arange(300) / 99), 1.0)}
    assert pixels(figures.loss_curves(curves | many)).size
    (run / "metrics.csv").write_text("step,epoch\n1,0\n")
    with pytest.raises(ValueError, match="holds no loss"):
        figures.run_losses({"a": run / "metrics.csv"})
    with pytest.raises(FileNotFoundError):
        figures.run_losses({"b": tmp_path / "none"})


def test_smoothing_keeps_length_and_level():
    values = np.full(200, 3.0)
    np.testing.assert_allclose(figures._smooth(values), values)
    assert len(figures._smooth(np.arange(173.0))) == 173


def test_the_other_pictures(frames):
    times = np.linspace(0, 4, 20)
    timelines = figures.boundary_timelines(
        [([1.0, 3.0], {"FG": (times, times / 4, [3.2]), "PS": (times, times, [])}, 4.0)]
    )
    points = figures.points({"FG": [0.7, 0.8, 0.75], "pixels": [0.5]}, "accuracy", {"guess": 0.25})
    for png in (timelines, points):
        assert pixels(png).shape[1] > 300
    assert not plt.get_fignums()  # nothing stays open


def test_frames_of_a_video_are_small_and_in_time(tmp_path):
    video = make_video(tmp_path / "a.mp4", moving_square(40, 96, 64), fps=20, options={"qp": "4"})
    found, seconds = sample_frames(video, 4, height=48)
    np.testing.assert_allclose(seconds, [0.25, 0.75, 1.25, 1.75])
    assert [frame.shape for frame in found] == [(48, 32, 3)] * 4
    full = frames_at(video, [0.5], height=500)[0].astype(int)
    assert full.shape == (96, 64, 3)
    assert np.abs(full - moving_square(40, 96, 64)[10]).mean() < 12


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources = [], [], []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_stands_alone(tmp_path):
    sections = [
        Section(paragraphs=["Beware."], note=True),
        Section("First", ["One <b> two & three"], bullets=["a point"]),
        Section("Table", table=Table(["", "x", "y"], [[("group", "")], [("name", ""), ("1", "small"), ("2", "")]])),
        Section("Picture", png=figures.points({"a": [1.0]}, "x"), caption='A "caption"'),
        Section("Part", ["."], level=3),
        Section("Last", ["."]),
        Section("Details", code="a < b", collapsed=True),
    ]
    out = render_page("Title <1>", sections, tmp_path / "sub" / "page.html", lead="lead", footer="foot")
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"https?://", text)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in page.sources)
    assert [source for source in page.sources if source[0] == "#"] == ["#first", "#table", "#picture", "#last"]
    for escaped in ("Title &lt;1&gt;", "One &lt;b&gt; two &amp; three", "a &lt; b", "&#34;caption&#34;"):
        assert escaped in text
    assert page.tags.count("details") == 1
    assert 'id="part"' in text
    assert list(tmp_path.glob("sub/*")) == [out]


def test_page_without_extras_has_none(tmp_path):
    text = render_page("T", [Section("A", ["b"])], tmp_path / "p.html").read_text()
    page = Page(text)
    assert not {"nav", "footer", "details", "table", "img"} & set(page.tags)


def test_tables_check_their_rows_and_scores_show_their_seeds():
    with pytest.raises(ValueError, match="2 cells under 3 columns"):
        Table(["a", "b", "c"], [[("x", ""), ("y", "")]])
    assert score_cell([0.5]) == ("0.500", "")
    assert score_cell([0.5, 0.7], digits=2) == ("0.60 ± 0.14", "0.50 0.70")
    assert score_cell([]) == ("", "")
