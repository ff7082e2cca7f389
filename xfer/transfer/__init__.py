"""From a pretrained model to the data of another task."""
