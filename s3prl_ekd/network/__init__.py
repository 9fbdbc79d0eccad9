"""The HuBERT family's encoder without waste: one network for students and teachers.

Padding is never computed: utterances are packed one behind the other. Nothing here knows what a teacher is.
"""
