"""Figures leave nothing behind, and the same numbers give the same file."""

import importlib

import matplotlib

from xfer import figures

ROWS = [{"step": 1, "losses": [2.0, 1.0]}, {"step": 2, "accuracy": {"a$b$": 0.5}}]


def test_drawing_leaves_rcparams_as_they_were():
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        default = dict(matplotlib.rcParams)
        importlib.reload(figures)
        assert dict(matplotlib.rcParams) == default
    pages = [figures.loss_curve(ROWS) for _ in range(2)]
    figures.accuracy_curve(ROWS)
    figures.accuracy_bars({"float32": {"a": (0.5, 0.4, 0.6)}})
    figures.weight_bars({"fine": 0.5, "coarse": 0.5})
    figures.front_scatter([(1e6, 0.5)], [(1e6, 0.5)], (1e6, 0.5), (2e6, 0.6))
    assert dict(matplotlib.rcParams) == before
    assert pages[0] == pages[1]
