"""Sources become shards: listed, planned, checked, written, committed by a manifest."""
