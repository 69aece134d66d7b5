"""`modegpt bench`: seconds, bytes and tokens per second, measured on published shapes with random weights."""
