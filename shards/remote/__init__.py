"""Shards in stores become local files: fetched ahead of use, verified, kept in a shared cache."""
