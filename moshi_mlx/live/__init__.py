"""The live loop: microphone and loudspeaker (or files) around a session's 80 ms step, in real time."""
