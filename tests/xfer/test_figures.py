"""Figures leave nothing behind, and the same numbers give the same file."""

import importlib
import re

import matplotlib

from xfer import figures

ROWS = [{"step": 1, "losses": [2.0, 1.0]}, {"step": 2, "accuracy": {"a$b$": 0.5}}]

PAIR = {"source": "a$b$", "target": "a", "knn": 0.5, "log_evidence": -0.25, "h_score": 1.5}


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
    figures.transfer_maps([PAIR, PAIR | {"target": "b", "knn": None}])
    assert dict(matplotlib.rcParams) == before
    assert pages[0] == pages[1]


def test_transfer_maps_show_every_value_and_none_where_no_class_is_shared():
    page = figures.transfer_maps([PAIR, PAIR | {"source": "c", "knn": None, "h_score": 0.75}])
    shown = re.findall("<!-- (.*?) -->", page)
    assert shown.count("50") == 1
    assert {"k-NN accuracy (%)", "LogME", "H-score", "-0.25", "1.50", "0.75", "a$b$", "c"} <= set(shown)
