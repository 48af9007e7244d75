"""Import path of version 1.0.0; the code is in `session/codec_rust.py`."""

from .session.codec_rust import RustMimi, RustSession

__all__ = ["RustMimi", "RustSession"]
