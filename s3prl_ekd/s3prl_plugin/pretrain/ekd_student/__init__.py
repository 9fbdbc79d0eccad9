"""``run_pretrain.py -u ekd_student``: s3prl's runner imports this as ``pretrain.ekd_student``."""
