"""What a user chooses by name, and what is taken where nothing is said: each value once, for arguments and for the rooms that act on it.

Data alone, so that `--help` answers at once.
"""

from __future__ import annotations

# Types of activations and dense weights, as MLX calls them.
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
# Samples of headerless sound, mono, as numpy calls them.
RAW_FORMATS = {"s16le": "<i2", "f32le": "<f4"}
ECHO_MODES = ("off", "aec", "mute")

# How long a recording is followed by silence until the answer to it is over: a pause within an answer is shorter than QUIET_SECONDS.
QUIET_SECONDS = 2.0
MOST_SECONDS = 10.0
# How long the end of a translation is waited for; translations lag behind their source by a few seconds.
TRANSLATION_SECONDS = 30.0

# Transcripts: kinds of files, and the rules for the times of words.
TRANSCRIPTS = ("txt", "json", "srt", "vtt")
TIMINGS = ("offline", "streaming")
# Ends of turns. The head for a pause of 2 s; lower heads (0.5 and 1 s) are more eager, the next one (3 s) less.
PAUSE_HEAD = 2
PAUSE_THRESHOLD = 0.5

# Short names of the models that the commands for speech run: English and French, the first with the heads that tell ends of turns.
STT_MODEL = "stt-1b"
TTS_MODEL = "tts-1.6b"
TTS_GUIDANCE = 2.0
# Of text and sound, whatever a checkpoint says: the one its authors speak with.
TTS_TEMPERATURE = 0.6
VOICE_REPO = "kyutai/tts-voices"
VOICE = "expresso/ex03-ex01_happy_001_channel1_334s.wav"
# Codebooks of Mimi that Moshi speaks.
CODEBOOKS = 8
# Layouts that a converted checkpoint can have.
LAYOUTS = ("mlx", "pytorch", "transformers")
