"""Published checkpoints as data: what `registry` makes short names, sizes and licences of.

`repositories` lists, per precision, the repository, its weights file and that file's bytes; `forms` are repositories of the same
weights in other layouts. Sizes are those of the published files; `about` marks ones computed from the model's shape. `window` is (layers, key/value width, positions) of
the temporal transformer, from which the memory of a full conversation follows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

DEFAULT_NAME = "moshiko"
# The small models inside the package, wherever a checkpoint is named.
DEMO_NAME, DEMO_STT_NAME, DEMO_TTS_NAME = "demo", "demo-stt", "demo-tts"
DEMO_FOLDER = Path(__file__).parents[1] / "demo"
DEMOS = {
    DEMO_NAME: DEMO_FOLDER,
    DEMO_STT_NAME: DEMO_FOLDER.with_name("demo_stt"),
    DEMO_TTS_NAME: DEMO_FOLDER.with_name("demo_tts"),
}
# Which of them takes the place of a published checkpoint of a kind.
DEMO_OF = {"moshi": DEMO_NAME, "stt": DEMO_STT_NAME, "tts": DEMO_TTS_NAME}
# Their one codec lies with the first.
DEMO_CODEC = ("mimi.safetensors", "mimi.json")

MIMI_BYTES = 384_644_900
_MIMI_PYTORCH = "mimi-pytorch-e351c8d8@125.safetensors"
_MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"
_TEXT_32K, _TEXT_48K = "tokenizer_spm_32k_3.model", "tokenizer_spm_48k_multi6_2.model"
_TEXT_TTS = "tokenizer_spm_8k_en_fr_audio.model"

CC_BY = "CC-BY 4.0"
# Temperature of audio and of text, then top-k of each.
_TALK = {"temp": 0.8, "temp_text": 0.7, "top_k": 250, "top_k_text": 25}
_TRANSLATE = {"temp": 0.8, "temp_text": 0.4, "top_k": 250, "top_k_text": 25}
_GREEDY = {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50}
_READ = {"temp": 0.6, "temp_text": 0.6, "top_k": 250, "top_k_text": 25}
_WRITE = {"temp": 0.8, "top_p": 0.95}


def _moshi(name: str, what: str) -> dict[str, Any]:
    return {
        "name": name, "kind": "moshi", "what": what, "parameters": 7.69e9, "licence": CC_BY, "page": "moshi",
        "sampling": _TALK, "window": (32, 4096, 3000), "codec": _MIMI, "tokenizer": _TEXT_32K,
        "repositories": {
            None: (f"kyutai/{name}-mlx-bf16", "model.safetensors", 15_375_630_336),
            8: (f"kyutai/{name}-mlx-q8", "model.q8.safetensors", 8_168_645_376),
            4: (f"kyutai/{name}-mlx-q4", "model.q4.safetensors", 4_805_385_728),
        },
        "forms": [f"kyutai/{name}-pytorch-bf16"],
    }  # fmt: skip


def _personaplex(name: str, repo: str, what: str, licence: str) -> dict[str, Any]:
    return {
        "name": name, "kind": "personaplex", "what": what, "parameters": 8.37e9, "licence": licence, "gated": True,
        "page": "personaplex", "sampling": _TALK, "window": (32, 4096, 3000), "codec": _MIMI, "tokenizer": _TEXT_32K,
        "repositories": {None: (repo, "model.safetensors", 16_743_186_432)},
        # The depth steps that predict the user are not loaded.
        "loaded_bytes": 15_375_630_336,
    }  # fmt: skip


PUBLISHED: list[dict[str, Any]] = [
    _moshi("moshiko", "spoken dialogue, male voice, English"),
    _moshi("moshika", "spoken dialogue, female voice, English"),
    {
        "name": "moshika-rl", "kind": "moshi", "what": "moshika post-trained for turn-taking", "parameters": 7.69e9,
        "licence": "CC-BY-NC 4.0", "gated": True, "page": "moshi", "sampling": _TALK, "window": (32, 4096, 3000),
        "codec": _MIMI, "tokenizer": _TEXT_32K,
        "repositories": {None: ("kyutai/moshika-rl-seamless", "model.safetensors", 15_375_630_336)},
    },
    _personaplex(
        "personaplex", "nvidia/personaplex-7b-v1", "spoken dialogue with a chosen voice and role, English",
        "NVIDIA Open Model License",
    ),
    _personaplex(
        "personaplex-rl", "kyutai/personaplex-rl-seamless", "personaplex post-trained for turn-taking",
        "CC-BY-NC 4.0 and NVIDIA Open Model License",
    ),
    {
        "name": "hibiki-1b", "kind": "hibiki", "what": "speech translation, French to English, for phones", "parameters": 1.80e9,
        "licence": CC_BY, "page": "hibiki", "sampling": _TRANSLATE, "window": (16, 2048, 3000), "about": True,
        "codec": _MIMI, "tokenizer": _TEXT_48K,
        "repositories": {None: ("kyutai/hibiki-1b-mlx-bf16", "model.safetensors", 3_599_917_056)},
        "forms": ["kyutai/hibiki-1b-pytorch-bf16"],
    },
    {
        "name": "hibiki-2b", "kind": "hibiki", "what": "speech translation, French to English", "parameters": 2.7e9,
        "licence": CC_BY, "page": "hibiki", "sampling": _TRANSLATE, "window": (24, 2560, 3000), "about": True,
        "codec": _MIMI, "tokenizer": _TEXT_48K,
        "repositories": {None: ("kyutai/hibiki-2b-mlx-bf16", "model.safetensors", 6_000_000_000)},
        "forms": ["kyutai/hibiki-2b-pytorch-bf16"],
    },
    {
        "name": "hibiki-zero", "aliases": ["hibiki-zero-3b"], "kind": "hibiki",
        "what": "speech translation, French, Spanish, Portuguese, German to English", "parameters": 3.13e9,
        "licence": "CC-BY-NC-SA 4.0", "page": "hibiki", "sampling": _TRANSLATE, "window": (28, 1024, 3000),
        "codec": _MIMI_PYTORCH, "tokenizer": _TEXT_48K,
        "repositories": {None: ("kyutai/hibiki-zero-3b-pytorch-bf16", "hibiki-pytorch-77f82164@110.safetensors", 6_260_000_000)},
    },
    {
        "name": "stt-1b", "aliases": ["stt-1b-en_fr"], "kind": "stt",
        "what": "speech to text with end-of-turn detection, English and French", "parameters": 0.99e9,
        "licence": CC_BY, "page": "stt", "sampling": _GREEDY, "window": (16, 2048, 750), "codec": _MIMI_PYTORCH,
        "tokenizer": "tokenizer_en_fr_audio_8000.model",
        "repositories": {None: ("kyutai/stt-1b-en_fr-candle", "model.safetensors", 1_978_522_200)},
        "forms": ["kyutai/stt-1b-en_fr", "kyutai/stt-1b-en_fr-mlx", "kyutai/stt-1b-en_fr-trfs"],
    },
    {
        "name": "stt-2.6b", "aliases": ["stt-2.6b-en"], "kind": "stt", "what": "speech to text, English, most accurate",
        "parameters": 2.62e9, "licence": CC_BY, "page": "stt", "sampling": _GREEDY, "window": (48, 2048, 375),
        "codec": _MIMI_PYTORCH, "tokenizer": "tokenizer_en_audio_4000.model",
        "repositories": {None: ("kyutai/stt-2.6b-en", "model.safetensors", 5_234_275_128)},
        "forms": ["kyutai/stt-2.6b-en-candle", "kyutai/stt-2.6b-en-mlx", "kyutai/stt-2.6b-en-trfs"],
    },
    {
        "name": "tts-1.6b", "aliases": ["tts-1.6b-en_fr"], "kind": "tts", "what": "text to speech, English and French, many voices",
        "parameters": 1.84e9, "licence": CC_BY, "page": "tts", "sampling": _READ, "window": (16, 2048, 500),
        "codec": _MIMI, "tokenizer": _TEXT_TTS,
        "repositories": {None: ("kyutai/tts-1.6b-en_fr", "dsm_tts_1e68beda@240.safetensors", 3_683_719_712)},
    },
    {
        "name": "tts-0.75b", "aliases": ["tts-0.75b-en"], "kind": "tts", "what": "text to speech, English, voice from a recording",
        "parameters": 0.78e9, "licence": CC_BY, "page": "tts", "sampling": _READ, "window": (24, 1024, 500),
        "codec": _MIMI, "tokenizer": _TEXT_TTS,
        "repositories": {None: ("kyutai/tts-0.75b-en-public", "dsm_tts_d6ef30c7@1000.safetensors", 1_560_040_168)},
    },
    {
        "name": "helium-1-2b", "aliases": ["helium"], "kind": "helium", "what": "text model, 24 European languages",
        "parameters": 2.0e9, "licence": "CC-BY-SA 4.0 and Gemma terms", "page": "helium", "sampling": _WRITE,
        "window": (28, 1024, 4096), "about": True, "codec": None, "tokenizer": "tokenizer.json",
        "repositories": {None: ("kyutai/helium-1-2b", "model.safetensors", 4_000_000_000)},
    },
    {
        "name": "helium-1-preview", "aliases": ["helium-1-preview-2b"], "kind": "helium",
        "what": "text model, English, French, German, Italian, Portuguese, Spanish", "parameters": 2.17e9,
        "licence": CC_BY, "page": "helium", "sampling": _WRITE, "window": (24, 2560, 4096), "about": True, "codec": None,
        "tokenizer": _TEXT_48K,
        "repositories": {
            None: ("kyutai/helium-1-preview-2b-mlx", "helium-1-preview-2b-bf16.safetensors", 4_345_287_680),
        },
        "forms": ["kyutai/helium-1-preview-2b"],
    },
]  # fmt: skip
