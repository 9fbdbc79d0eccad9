"""The data sets of s3prl's ``-d ctc`` that its wheel leaves out, written anew: PR and character ASR on LibriSpeech.

:mod:`s3prl_ekd.s3prl_compat.patches` shows this package to s3prl as ``s3prl.downstream.ctc.corpus``.
"""
