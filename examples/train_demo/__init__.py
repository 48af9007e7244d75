"""Recipe of the demo model: from text to a checkpoint in Kyutai's published format."""
