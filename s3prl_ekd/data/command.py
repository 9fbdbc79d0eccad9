"""``s3prl-ekd data``: cut manifests, which ``data.cuts`` of a recipe names, from corpora on disk."""

from __future__ import annotations

import argparse
from collections.abc import Callable

_CORPORA = {
    "librispeech": "a corpus in LibriSpeech's layout: one manifest for each part",
    "musan": "MUSAN's music, speech and noise",
    "rirs": "RIRS_NOISES' impulse responses and noises",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, summary in _CORPORA.items():
        sub = kinds.add_parser(kind, help=summary, description=summary)
        sub.add_argument("corpus", metavar="CORPUS", help="its folder, unpacked")
        sub.add_argument("out", metavar="OUT", help="folder for the manifests")
        sub.add_argument("--parts", nargs="+", metavar="PART", help="which parts (default: all that are there)")
    summary = "all audio files below a folder"
    sub = kinds.add_parser("folder", help=summary, description=summary)
    sub.add_argument("folder", metavar="FOLDER", help="searched through all its subfolders")
    sub.add_argument("out", metavar="OUT.jsonl.gz", help="the manifest to write")
    summary = "fairseq's manifest: a root folder, then lines of path<tab>samples"
    sub = kinds.add_parser("tsv", help=summary, description=summary)
    sub.add_argument("tsv", metavar="MANIFEST.tsv", help="fairseq's manifest")
    sub.add_argument("out", metavar="OUT.jsonl.gz", help="the manifest to write")
    sub.add_argument("--rate", type=int, default=16000, help="sampling rate of the recordings (default: %(default)s)")
    summary = "copy cuts and audio into a Shar folder of numbered tars, for object stores"
    sub = kinds.add_parser("shar", help=summary, description=summary)
    sub.add_argument("cuts", nargs="+", metavar="CUTS", help="manifests, as in data.cuts")
    sub.add_argument("out", metavar="OUT", help="new folder")
    sub.add_argument("--shard-size", type=int, default=1000, help="cuts of a tar (default: %(default)s)")
    sub.add_argument("--audio", default="flac", choices=["flac", "wav", "mp3", "opus"], help="(default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write the manifests and print what they hold."""
    written = _ACTIONS.get(args.kind, _corpus)(args)
    for one in written:
        bad = f", {one.bad} bad recordings left out" if one.bad else ""
        print(f"{one.path}: {one.cuts} cuts, {one.hours:.2f} h{bad}")
    return 0


def _corpus(args: argparse.Namespace) -> list:
    from s3prl_ekd.data.manifests import CORPORA, write_corpus

    return write_corpus(CORPORA[args.kind], args.corpus, args.out, args.parts)


def _folder(args: argparse.Namespace) -> list:
    from s3prl_ekd.data.manifests import folder_recordings, write_manifest

    return [write_manifest(args.out, folder_recordings(args.folder))]


def _tsv(args: argparse.Namespace) -> list:
    from s3prl_ekd.data.manifests import tsv_recordings, write_manifest

    return [write_manifest(args.out, tsv_recordings(args.tsv, args.rate))]


def _shar(args: argparse.Namespace) -> list:
    from s3prl_ekd.data.manifests import write_shar

    return [write_shar(args.cuts, args.out, shard_size=args.shard_size, audio=args.audio)]


_ACTIONS: dict[str, Callable[[argparse.Namespace], list]] = {"folder": _folder, "tsv": _tsv, "shar": _shar}
