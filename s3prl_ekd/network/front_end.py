"""What every front end is: waveforms to features, a frame every 320 samples."""

from __future__ import annotations

from torch import Tensor, nn

from s3prl_ekd.network.frames import Layout


class FrontEnd(nn.Module):
    """Waveforms to the features of frames. In eval mode an utterance's frames depend on its own samples alone.

    Attributes:
        channels: width C of the features.
        min_samples: the shortest utterance that yields a frame.
    """

    channels: int
    min_samples: int

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device that waveforms must have."""
        raise NotImplementedError

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Samples to frames, any integer shape."""
        raise NotImplementedError

    def forward(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor, Layout]:
        """Waveforms (B, S) to the features of their real frames, (N, C), with N's packing.

        Args:
            waveforms: zero-padded.
            lengths: (B,) samples, on the CPU. In a recorded graph, where the features are (B, F, C), on the waveforms'
                device, and None if all are S long.
        """
        raise NotImplementedError
