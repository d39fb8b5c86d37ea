"""OpenAI's interface over HTTP, for a model that is served here."""
