"""How far the text lags behind the audio: what the checkpoint says, or what is known of it (family.md 1.1)."""

from __future__ import annotations

from ..config.description import CheckpointConfig, SttConfig

# Width and layers of the published models, for configurations that leave `stt_config` out.
_KNOWN = {(2048, 16): SttConfig(0.5, 0.0), (2048, 48): SttConfig(2.5, 1.0)}


def delays_of(config: CheckpointConfig) -> SttConfig | None:
    """Delay and silence to be heard first, in seconds; None if nobody says."""
    trunk = config.lm.transformer
    return config.stt or _KNOWN.get((trunk.d_model, trunk.num_layers))
