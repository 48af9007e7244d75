"""Bricks the models are built from. Modules hold weights; whatever changes over time is a value passed in and out."""
