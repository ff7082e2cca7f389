"""A Study (a Job + a search space): fusion weights and bit-widths searched with Ray Tune."""
