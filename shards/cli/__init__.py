"""`xfer shards ...`: one verb a file.

A verb returns its exit status, or None for 0; what it says goes to stdout, progress to stderr. Heavy imports happen
inside the functions: `--help` must not wait for torch.
"""

import cyclopts
from cyclopts import Parameter

from shards.cli.build import build
from shards.cli.diff import diff
from shards.cli.dups import dups
from shards.cli.index import index
from shards.cli.plan import plan
from shards.cli.show import show
from shards.cli.stats import stats
from shards.cli.verify import verify

MAKE, LOOK = cyclopts.Group("Make data sets", sort_key=0), cyclopts.Group("Look at them", sort_key=1)

app = cyclopts.App(
    name="shards",
    help="""Turn data sets into shards, and look at them.

    From one folder for each class to data that a recipe can name:

        xfer shards build photos/ shards/photo
        xfer shards show shards/photo
        xfer shards stats shards/photo --out stats.png
    """,
    default_parameter=Parameter(negative=()),
)


for group, verbs in ((MAKE, (build, index)), (LOOK, (show, stats, verify, plan, dups, diff))):
    for place, verb in enumerate(verbs):
        app.command(verb, group=group, sort_key=place)
