"""`fer verify`: face verification with a backbone, on people that it was not trained on."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Weights, dataset of identities, number of pairs."""
    parser.add_argument(
        "weights",
        type=Path,
        metavar="WEIGHTS",
        help="a .safetensors file of an arcface model, or the folder of its run",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a folder of data/shards, of identities")
    parser.add_argument("--pairs", type=int, default=3000, metavar="N", help="matched pairs, and mismatched (3000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draw of pairs (0)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (1)")


def main(args: argparse.Namespace) -> None:
    """LFW's protocol on the test split, and the same for the network with random weights."""
    import torch

    from fer import params
    from fer.commands.shards import shards_folder
    from fer.evaluation.predict import embed_split
    from fer.evaluation.verification import verify
    from fer.labels import is_identities
    from fer.models import create_model
    from fer.models.arcface import ArcFace
    from fer.shards.read import ShardSet
    from fer.weights.store import WEIGHTS_NAME, load_model

    path = args.weights / WEIGHTS_NAME if args.weights.is_dir() else args.weights
    model, info = load_model(path)
    if not isinstance(model, ArcFace):
        raise ValueError(f"{path}: weights of {info.model}, which embeds no faces; give those of an arcface model")
    shards = ShardSet.open(shards_folder(params.load(), args.dataset))
    if not is_identities(shards.label_space):
        raise ValueError(
            f"{args.dataset}: its labels are {shards.label_space}, not people: give a dataset of identities"
        )
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    untrained = create_model(info.model, len(info.labels), **info.options).eval()
    split = shards.split("test")
    print(f"{'':<12}{'AUC':>8}{'accuracy':>20}{'TAR at FAR 10 %':>18}{'1 %':>8}")
    for name, one in (("trained", model), ("untrained", untrained)):
        assert isinstance(one, ArcFace)
        embeddings, labels = embed_split(one, split, threads=args.threads)
        found = verify(embeddings, labels, pairs=args.pairs, seed=args.seed)
        print(
            f"{name:<12}{found.auc:>8.4f}{found.accuracy:>12.4f} ± {found.accuracy_error:.4f} "
            f"{found.tar[0.1]:>16.4f}{found.tar[0.01]:>8.4f}"
        )
    print(f"{found.people} people of the test split, none of them trained on; {found.pairs} pairs in ten folds")
    if info.label_space != shards.label_space:
        print("note: the weights were trained on other people than this dataset's train split")
