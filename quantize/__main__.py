"""python -m moshi_mlx.quantize"""

from moshi_mlx.quantize.command import main

from moshi_mlx import commands

if __name__ == "__main__":
    commands.run(main)
