"""`/v1/realtime`: conversations, transcription and translation as events over a WebSocket."""
