"""Streaming speech-to-text: listening, words with times, ends of turns, transcripts (family.md section 1)."""
