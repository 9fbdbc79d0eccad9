"""``s3prl-ekd data``: cut manifests, which ``data.cuts`` of a recipe names, from corpora on disk."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from s3prl_ekd.command_line import whole_number
from s3prl_ekd.errors import UserError

if TYPE_CHECKING:
    from s3prl_ekd.cuts.manifests import Written

_CORPORA = {
    "librispeech": ("a corpus in LibriSpeech's layout: one manifest for each part", "/data/LibriSpeech cuts"),
    "musan": ("MUSAN's music, speech and noise", "/data/musan cuts"),
    "rirs": ("RIRS_NOISES' impulse responses and noises", "/data/RIRS_NOISES cuts"),
    "lengths": (
        "for run_pretrain: s3prl's len_for_bucket lists of a corpus in LibriSpeech's layout, one for each part",
        "/data/LibriSpeech len_for_bucket",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)

    def add(kind: str, summary: str, example: str, usage: str | None = None) -> argparse.ArgumentParser:
        epilog = f"example:\n  s3prl-ekd data {kind} {example}"
        return kinds.add_parser(kind, help=summary, description=summary, epilog=epilog, usage=usage)

    for kind, (summary, example) in _CORPORA.items():
        usage = f"s3prl-ekd data {kind} [-h] [--parts PART [PART ...]] CORPUS OUT"
        sub = add(kind, summary, example, usage)
        # Optional for argparse, since --parts may have taken them: see _corpus.
        sub.add_argument("corpus", nargs="?", metavar="CORPUS", help="its folder, unpacked")
        sub.add_argument("out", nargs="?", metavar="OUT", help="folder for what is written")
        sub.add_argument("--parts", nargs="+", metavar="PART", help="which parts (default: all that are there)")
    sub = add("folder", "all audio files below a folder", "/data/speech cuts/speech.jsonl.gz")
    sub.add_argument("folder", metavar="FOLDER", help="searched through all its subfolders")
    sub.add_argument("out", metavar="OUT.jsonl.gz", help="the manifest to write")
    sub = add(
        "tsv", "fairseq's manifest: a root folder, then lines of path<tab>samples", "train.tsv cuts/train.jsonl.gz"
    )
    sub.add_argument("tsv", metavar="MANIFEST.tsv", help="fairseq's manifest")
    sub.add_argument("out", metavar="OUT.jsonl.gz", help="the manifest to write")
    sub.add_argument("--rate", type=whole_number(1), default=16000, help="sampling rate of the recordings")
    summary = "copy cuts and audio into a Shar folder of numbered tars, for object stores"
    sub = add("shar", summary, "cuts/librispeech_cuts_train-clean-100.jsonl.gz shar")
    sub.add_argument("cuts", nargs="+", metavar="CUTS", help="manifests, as in data.cuts")
    sub.add_argument("out", metavar="OUT", help="new folder")
    sub.add_argument("--shard-size", type=whole_number(1), default=1000, help="cuts of a tar")
    sub.add_argument("--audio", default="flac", choices=["flac", "wav", "mp3", "opus"], help="format in the tars")


def run(args: argparse.Namespace) -> int:
    """Write the manifests and print what they hold."""
    from s3prl_ekd.cuts import manifests

    actions = {
        "folder": lambda: [manifests.write_manifest(args.out, manifests.folder_recordings(args.folder))],
        "tsv": lambda: [manifests.write_manifest(args.out, manifests.tsv_recordings(args.tsv, args.rate))],
        "shar": lambda: [manifests.write_shar(args.cuts, args.out, shard_size=args.shard_size, audio=args.audio)],
    }
    written = actions.get(args.kind, lambda: _corpus(args))()
    what = "recordings" if args.kind == "lengths" else "cuts"
    for one in written:
        bad = f", {one.bad} bad recordings left out" if one.bad else ""
        print(f"{one.path}: {one.cuts} {what}, {one.hours:.2f} h{bad}")
    return 0


def _corpus(args: argparse.Namespace) -> list[Written]:
    from s3prl_ekd.cuts.manifests import CORPORA, write_corpus, write_lists

    places = [place for place in (args.corpus, args.out) if place is not None]
    parts = args.parts or []
    missing = 2 - len(places)  # of `--parts A B CORPUS OUT`, argparse gives all to --parts
    if missing:
        places += parts[-missing:]
        parts = parts[:-missing]
    if len(places) < 2 or (args.parts and not parts):
        raise UserError(
            f"data {args.kind}: CORPUS and OUT are both needed; s3prl-ekd data {args.kind} --help shows how"
        )
    corpus, out = places
    if args.kind == "lengths":
        return write_lists(corpus, out, parts or None)
    return write_corpus(CORPORA[args.kind], corpus, out, parts or None)
