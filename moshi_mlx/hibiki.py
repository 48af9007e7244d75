"""Import path of version 1.0.0; the code is in `session/hibiki.py`."""

from .session.hibiki import Ending, is_translation, lead_in

__all__ = ["Ending", "is_translation", "lead_in"]
