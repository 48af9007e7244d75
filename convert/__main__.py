"""python -m moshi_mlx.convert"""

from moshi_mlx.convert.command import main

from moshi_mlx import commands

if __name__ == "__main__":
    commands.run(main)
