"""A teacher answers a prompt: local model, OpenAI-compatible server, replay of stored traces."""
