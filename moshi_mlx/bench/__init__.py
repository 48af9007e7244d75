"""`python -m moshi_mlx.bench`: a frame measured on this machine, part by part, beside others' and with other settings."""
