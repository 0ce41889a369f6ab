"""The command that serves a model to clients of the OpenAI API."""
