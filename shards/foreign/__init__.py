"""Tars of others become data sets where they lie: found, scanned, indexed."""
