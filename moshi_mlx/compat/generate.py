"""`LmGen`: the generator with what scripts of the published package read from it."""

from __future__ import annotations

from ..engine import generate
from ..errors import InputError


class LmGen(generate.LmGen):
    """Conversations by the published names."""

    @property
    def step_idx(self) -> int:
        """Steps so far; 0 begins anew."""
        return self.steps

    @step_idx.setter
    def step_idx(self, value: int) -> None:
        if value != 0:
            raise InputError(f"step_idx can be set to 0, to begin anew, found {value!r}.")
        self.reset()

    @property
    def num_codebooks(self) -> int:
        """Channels, text included."""
        return self.model.cfg.num_channels

    @property
    def main_codebooks(self) -> int:
        """Codebooks that the model generates."""
        return self.model.cfg.dep_q

    @property
    def audio_delays(self) -> list[int]:
        """Frames by which each codebook is late."""
        return self.model.cfg.audio_delays

    @property
    def max_delay(self) -> int:
        return max(self.audio_delays)

    @property
    def audio_padding_token(self) -> int:
        return self.model.cfg.audio_padding_token
