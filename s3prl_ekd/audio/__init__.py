"""Recordings: reading, distorting, the text beside them, and the batches made of them."""
