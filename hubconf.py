"""torch.hub's door: ``torch.hub.load(REPO, "ekd_student", ckpt=..., source="local")``."""

dependencies = ["torch", "safetensors", "yaml"]

from s3prl_ekd.upstream import ekd_student, ekd_student_mini  # noqa: E402

__all__ = ["ekd_student", "ekd_student_mini"]
