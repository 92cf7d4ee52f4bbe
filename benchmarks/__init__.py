"""What the performance claims rest on: `make bench`. Every figure is a ratio to a baseline measured in the same run."""
