"""To be filled by the checkpoint tools."""
