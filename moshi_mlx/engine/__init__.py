"""The 80 ms step: token clock, language model, codec, and the state that they pass on."""
