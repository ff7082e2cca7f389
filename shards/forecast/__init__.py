"""What a run will do with its data, told by manifests alone."""
