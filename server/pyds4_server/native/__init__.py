"""What no vendor's protocol has: tokens, health, metrics, the documents and the page."""
