"""A server that answers as the Hugging Face Hub does, for tests; see README.md."""
