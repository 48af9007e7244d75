"""The clock everything shares."""

SAMPLE_RATE = 24_000
FRAME_SIZE = 1920  # samples per column of codes: 80 ms
FRAME_RATE = SAMPLE_RATE / FRAME_SIZE
