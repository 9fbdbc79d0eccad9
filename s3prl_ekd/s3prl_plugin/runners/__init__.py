"""s3prl's stock runners, with what they get wrong arranged around them."""
