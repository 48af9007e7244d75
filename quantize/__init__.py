"""Checkpoints with fewer bits: which layer how (`moshi_mlx.checkpoint.recipes`, `recipe_files`, `mixed`), written tensor by tensor (`command`), and what it costs (`report`).

A layer's packing is data, a `Quantization` per path; methods that calibrate on activations can make the same table, or another
rounding of the same layers, without anything else changing.
"""
