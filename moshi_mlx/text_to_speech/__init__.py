"""Text-to-speech with delayed streams: script, text machine, voices, generation (family.md section 2)."""
