"""Pictures of samples, and numbers of splits."""
