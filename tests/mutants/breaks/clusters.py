"""Breaks of Ray sessions, workers, studies and reports."""

from tests.mutants.broken import Break

DAMAGED = ("tests/xfer/test_damaged_runs.py",)
REPORT = ("tests/xfer/test_report.py",)

BREAKS = (
    Break(
        "capacity-of-all",
        "capacity counts what others hold",
        "cluster/capacity.py",
        "while room(free(), config.resources)",
        "while room(total(), config.resources)",
        ("tests/cluster/test_session.py",),
    ),
    Break(
        "dashboard-taken",
        "a dashboard is taken for the head of a cluster",
        "cluster/address.py",
        'return link.recv(5) == b"HTTP/"',
        'return link.recv(5) == b""',
        ("tests/cluster/test_address.py",),
    ),
    Break(
        "address-unasked",
        "Ray is asked for a cluster where nothing listens",
        "cluster/session.py",
        "        check_listens(address)\n",
        "",
        ("tests/cluster/test_address.py",),
    ),
    Break(
        "stale-shown",
        "the report shows scores of an earlier checkpoint as those of the run",
        "xfer/records.py",
        "return weights is not None and",
        "return False and",
        DAMAGED,
    ),
    Break(
        "other-image-shown",
        "the report shows another image than the one that was named wrongly",
        "xfer/report/mistakes.py",
        "read_sample(replace(subset, filters=()), row)",
        "read_sample(subset, 0)",
        REPORT,
    ),
    Break(
        "failed-on-front",
        "a failed trial can be on the front",
        "tuning/pareto.py",
        "for r in rows if r.error is None)",
        "for r in rows)",
        ("tests/tuning/test_pareto.py",),
    ),
    Break(
        "tolerance-ignored",
        "search.tolerance changes nothing",
        "tuning/pareto.py",
        "accuracy - tolerance - ROUNDING",
        "accuracy - ROUNDING",
        ("tests/tuning/test_pareto.py",),
    ),
    Break(
        "refit-off",
        "the head is not fitted to new fusion weights",
        "tuning/trial.py",
        "        refit_head(model, shared)\n",
        "        pass\n",
        ("tests/tuning/test_trial.py",),
    ),
    Break(
        "study-in-two-rounds",
        "a study tells the faults of its job only when its space has none",
        "tuning/study.py",
        "    faults = space_faults(study.job, study.space)\n",
        "    faults = space_faults(study.job, study.space)\n    if faults:\n        raise ConfigError(faults)\n",
        ("tests/tuning/test_faults.py",),
    ),
    Break(
        "one-fault-hides-the-next",
        "a section with one faulty value is not looked at further",
        "shards/faults.py",
        "        gone = _take_out(content, faults[-1][0])\n",
        "        gone = ()\n",
        ("tests/tuning/test_faults.py", "tests/shards/test_settings.py"),
    ),
    Break(
        "ray-answers-sigterm",
        "Ray answers SIGTERM, with a trace of its own",
        "cluster/session.py",
        "        signal.signal(signal.SIGTERM, answer)\n",
        "        pass\n",
        ("tests/cluster/test_train.py::test_sigterm_then_ctrl_c_then_the_same_command",),
    ),
    Break(
        "mistakes-of-the-run-alone",
        "the report shows no mistakes on sources that were left out",
        "xfer/report/mistakes.py",
        '("train", name): row for name, row',
        '("test", name): row for name, row',
        REPORT,
    ),
)
