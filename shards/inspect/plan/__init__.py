"""What a run will do with its data, from manifests alone."""
