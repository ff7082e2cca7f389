"""Named breaks of the four packages, each of which the tests must catch: `make mutants`."""
