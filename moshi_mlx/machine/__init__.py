"""What is known of the computer: its memory, its chip, the bytes a frame moves."""
