"""The HuBERT family's encoder without waste: one network for students and teachers.

Padding is never computed: utterances are packed one behind the other. Only where operations are recorded, as by
torch.export, the padded batch is computed as it is, to the same features. Nothing here knows what a teacher is.
"""
