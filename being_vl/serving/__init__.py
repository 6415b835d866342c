"""checkpoint → other people's engines: plain export, GGUF for llama.cpp."""
