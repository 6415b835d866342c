"""OpenAI's requests over HTTP → a checkpoint's answers, with images in and images out (`being-vl serve`)."""
