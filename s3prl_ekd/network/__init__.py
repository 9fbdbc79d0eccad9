"""The HuBERT family's encoder: one network for students and teachers, neither of which this room imports.

Padding is never computed: the frames of all utterances are packed, one utterance behind the other. Only where
operations are recorded, as by torch.export, the padded batch is computed, to the same features.
"""
