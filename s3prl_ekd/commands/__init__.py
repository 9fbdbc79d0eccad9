"""One module per ``s3prl-ekd COMMAND``: its arguments, and one call."""
