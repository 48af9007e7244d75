"""Helium, the text model under Moshi."""
