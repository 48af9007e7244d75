"""One frame of a model as a folder of graphs and weights that runs without Python: `python -m moshi_mlx.export`."""
