"""What is there more than once, across sources and splits."""
