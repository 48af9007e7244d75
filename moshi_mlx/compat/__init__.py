"""The models with what scripts of the published package call on them. Code of our own uses the models and loads from above."""
