"""Files of weights: what they are, reading them safely, and the names in them."""
