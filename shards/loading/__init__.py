"""From places in data sets to batches: subsets, readers, transforms, training and evaluation streams, their state."""
