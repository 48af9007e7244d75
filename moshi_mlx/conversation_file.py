"""Import path of version 1.0.0; the code is in `session/conversation_file.py`."""

from .session.conversation_file import load_conversation, save_conversation

__all__ = ["load_conversation", "save_conversation"]
