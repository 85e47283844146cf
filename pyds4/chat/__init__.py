"""Messages -> prompt, completion -> message."""
