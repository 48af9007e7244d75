"""All that exists only for the CPU backend of MLX, which runs the tests on Linux. A GPU takes none of it."""
