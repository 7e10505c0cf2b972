"""The `notan` command. Its flags and help are read from the methods' text; torch is imported only to do work."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from notan import __version__, catalogue
from notan.errors import NotanError, did_you_mean

COMMANDS = {
    "list": "every method: what it needs, what it claims, what we measured",
    "compare": "which of these methods helps on my data? equal budgets, several seeds, one protocol",
    "train": "one method -> a run folder",
    "probe": "how good is an encoder: ridge, k-NN, logistic, few-shot, regression, retrieval, zero-shot, fine-tuning, ...",
    "embed": "a table of embeddings, or an index to search, from a run or any Hugging Face encoder",
    "search": "what in an index is nearest to words, to a picture, or to one of its own rows",
    "view": "an index as a map in the browser, with a search box and neighbours",
    "decode": "contrastive decoding on any Hugging Face model of words, or words and pictures, beside greedy",
    "inspect": "what is inside a model: a paper's measure of it, as numbers and figures",
    "export": "take the encoder and leave: safetensors, transformers, ONNX",
    "doctor": "what is wrong with this data, this run, or this index",
    "claim": "a paper's claim, re-tested small and honest",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 1 an error a user can mend, 130 interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = parser(argv).parse_args(argv)
        return globals()[f"_{args.command}"](args) or 0
    except NotanError as error:
        _complain(error)
        return 1
    except KeyboardInterrupt as stopped:
        print(f"\n{stopped or 'Interrupted: the same command goes on from the last saved state'}.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def parser(argv: list[str]) -> argparse.ArgumentParser:
    """The whole command line. The flags of one method are added when `argv` names it."""
    top = argparse.ArgumentParser(
        prog="notan", description="Learn from data without labels, by hiding and by contrast, and believe the number.",
        epilog="`notan COMMAND --help` says more; start with: notan compare simclr mae --data FOLDER")
    top.add_argument("--version", action="version", version=f"notan {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parts = {name: commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
             for name, text in COMMANDS.items()}
    _list_flags(parts["list"])
    _compare_flags(parts["compare"])
    _train_flags(parts["train"], argv)
    _probe_flags(parts["probe"])
    _embed_flags(parts["embed"])
    _search_flags(parts["search"])
    _view_flags(parts["view"])
    _decode_flags(parts["decode"], argv)
    _inspect_flags(parts["inspect"], argv)
    _export_flags(parts["export"])
    parts["doctor"].add_argument("what", metavar="RUN|DATA", help="a run folder, an index, or anything --data takes")
    parts["doctor"].add_argument("--stream", action="store_true", help="open the data as one that does not fit: look at the rows "
                                                                       "that a run with --stream keeps at hand")
    parts["doctor"].add_argument("--column", action="append", default=[], metavar="THEIRS=OURS",
                                 help="rename a column of the data, e.g. photo=image")
    parts["doctor"].add_argument("--cache-side", type=int, metavar="PX", help="side of the cached pictures of the data")
    _claim_flags(parts["claim"])
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise NotanError(f"there is no command {argv[0]!r}", "one of " + ", ".join(COMMANDS),
                         did_you_mean(argv[0], COMMANDS))
    return top


# ------------------------------------------------------------------------------------------------------------- flags

DATA_HELP = ("a folder (images by class, with texts beside them or not; parquet, csv, jsonl, WebDataset tars), such a file, "
             "shards-{000..009}.tar, a `datasets` name or folder, or a built-in source")


def _data_flags(p: argparse.ArgumentParser, default: str | None = "fashion-mnist", stream: bool = True) -> None:
    g = p.add_argument_group("data")
    g.add_argument("--data", default=default, help=f"{DATA_HELP} (default: {default or 'what the run was trained on'})")
    g.add_argument("--column", action="append", default=[], metavar="THEIRS=OURS", help="rename a column, e.g. photo=image")
    g.add_argument("--cache-side", type=int, metavar="PX",
                   help="side of the cached pictures (default: the side that a trained encoder reads, else 96; never above their "
                        "median side)")
    g.add_argument("--fit", choices=["crop", "pad", "squash"], default="crop", help="how pictures become square")
    g.add_argument("--cache-limit-gb", type=float, default=8.0, help="beyond it pictures are decoded on the fly")
    g.add_argument("--limit-bad", type=float, default=0.01, metavar="SHARE",
                   help="share of unreadable pictures to skip and name; beyond it nothing starts (default: %(default)s)")
    if stream:
        g.add_argument("--stream", action="store_true",
                       help="read the rows as they are needed: for folders, table files, tars and hub names that do not fit")


def _budget_flags(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("budget").add_mutually_exclusive_group()
    g.add_argument("--steps", type=int, help="optimiser steps")
    g.add_argument("--epochs", type=float, help="passes over the training rows")
    g.add_argument("--minutes", type=float, help="wall-clock; becomes a step count once, after a timed warm-up")


def _machine_flags(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("machine")
    g.add_argument("--batch", type=int, help="rows of the global batch (default: the recipe's)")
    g.add_argument("--recipe", choices=["small", "paper", "table", "series"], default="small",
                   help="settings for this machine, the paper's own, or, of some methods, those for tables or series")
    g.add_argument("--encoder", help="e.g. vit:dim=192,depth=6 | resnet18:width=32 | hf:NAME | a run folder; of texts "
                                     "gpt2:dim=256,depth=4 | hf:NAME")
    g.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    g.add_argument("--threads", type=int, help="torch threads (default: measured once)")


def _train_flags(p: argparse.ArgumentParser, argv: list[str]) -> None:
    p.add_argument("method", nargs="?", metavar="METHOD", help="one of: " + ", ".join(catalogue.methods()))
    p.add_argument("--out", type=Path, help="the run folder (default: runs/METHOD-DATA-SEED)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--config", type=Path, help="re-run the config.yaml of a run")
    p.add_argument("--fresh", action="store_true", help="start again even if the run folder holds a state to resume")
    _data_flags(p)
    _budget_flags(p)
    _machine_flags(p)
    g = p.add_argument_group("optimiser")
    g.add_argument("--lr", type=float, help="peak learning rate (default: the recipe's)")
    g.add_argument("--clip", type=float, help="clip the gradient's norm")
    g.add_argument("--micro-batch", type=int, metavar="ROWS", help="rows that go through the encoder at a time; the loss sees "
                                                                   "the whole batch, and the gradient is the same")
    g.add_argument("--accumulate", type=int, default=1, help="micro-steps per step; refused for losses that contrast rows")
    g.add_argument("--compile", action="store_true", help="torch.compile the step")
    g.add_argument("--probe-every", type=int, metavar="STEPS", help="online probe")
    _named_flags(p, argv, "train", catalogue.methods())
    entry = _named(argv, "train", catalogue.methods())
    for tower in entry.towers if entry is not None else ():
        if tower.name != "encoder":
            p.add_argument(f"--{tower.name.replace('_', '-')}", dest=f"tower_{tower.name}", metavar=tower.annotation,
                           help="as --encoder, of this part of the method" + (
                               "; text:dim=256,depth=4 | hf:NAME | a folder" if tower.annotation == "TextEncoder" else ""))


def _named(argv: list[str], command: str, entries: dict[str, catalogue.Entry]) -> catalogue.Entry | None:
    """The method or strategy that `argv` names, when it is `command`'s."""
    return next((entries[a] for a in argv[1:] if a in entries), None) if argv[:1] == [command] else None


def _named_flags(p: argparse.ArgumentParser, argv: list[str], command: str, entries: dict[str, catalogue.Entry]) -> None:
    """The page and the flags of the method or strategy that `argv` names, when it is `command`'s."""
    entry = _named(argv, command, entries)
    if entry is None:
        return
    p.description = entry.doc
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    group = p.add_argument_group(f"{entry.slug}: {entry.title}")
    for f in entry.flags:
        choice = catalogue.choices(f.annotation)
        text = entry.helps.get(f.name, "").replace("%", "%%")
        group.add_argument(f"--{f.name.replace('_', '-')}", dest=f"set_{f.name}", default=None,
                           metavar="|".join(choice) or f.annotation.replace(" ", ""),
                           help=f"{text} (default: {f.default})".strip())


def _compare_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("arms", nargs="+", metavar="METHOD[:flag=value,...]",
                   help="methods to compare: " + ", ".join(catalogue.methods()) + "; with --decode, strategies: "
                   + ", ".join(catalogue.strategies()))
    p.add_argument("--out", type=Path, default=Path("compare"),
                   help="where runs, encoders and report.html go (default: %(default)s)")
    p.add_argument("--seeds", type=int, default=2, help="how many seeds (default: %(default)s)")
    p.add_argument("--baseline", help="the arm that differences are taken to (default: the first)")
    p.add_argument("--no-supervised", action="store_true", help="leave out the supervised reference")
    p.add_argument("--across", action="store_true", help="rank across architectures too")
    p.add_argument("--probe-rows", type=int, default=10_000, help="most labelled rows the probes use (default: %(default)s)")
    _data_flags(p)
    _budget_flags(p)
    _machine_flags(p)
    g = p.add_argument_group("strategies (--decode)", "on a benchmark file, --data FILE, beside the model alone, the plausible "
                             "head alone, and the head at the strategy's temperature")
    g.add_argument("--decode", action="store_true", help="compare decoding strategies instead of methods")
    g.add_argument("--model", help="the model that decodes: a folder, a hub name or a .gguf file")
    g.add_argument("--amateur", help="the model to set it against")
    g.add_argument("--images", type=Path, help="the folder that the file's pictures are relative to (default: its own)")
    g.add_argument("--before", type=Path, help="for TruthfulQA: a text file that prompts start with (demonstrations)")
    g.add_argument("--judge", help="for open text: a model that says how likely it finds what was written")
    g.add_argument("--limit", type=int, help="only so many items, from the beginning")
    g.add_argument("--max-new-tokens", type=int, default=64, help="for open text (default: %(default)s)")
    g.add_argument("--raw", action="store_true", help="prompts as they are, not through the chat template")


def _probe_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN", help="a run folder, an encoder folder, or hf:NAME")
    p.add_argument("--protocol", action="append",
                   help="repeatable (default: ridge and knn; regression of targets; of pictures with texts retrieval, "
                        "zeroshot and ridge)",
                   choices=["ridge", "knn", "logistic", "fewshot", "regression", "attributes", "retrieval", "zeroshot",
                            "basetonovel", "conditional", "captions", "finetune", "segmentation"])
    p.add_argument("--prompt", action="append", metavar="'a picture of {}'",
                   help="repeatable: for zeroshot and basetonovel, {} is a class's name")
    p.add_argument("--instruction", action="append", metavar="'which colour is it?'",
                   help="repeatable: for conditional on data with attributes, one for each; triples bring theirs")
    p.add_argument("--rows", type=int, default=10_000, help="most labelled rows (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _data_flags(p, None)


def _embed_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN", help="a run folder, an encoder folder, or hf:NAME")
    p.add_argument("--out", type=Path, required=True, help="e.g. embeddings.parquet; or a folder: an index for search and view, "
                                                           "which the same command brings up to date")
    p.add_argument("--split", choices=["train", "test"], help="(default: train; of an index both)")
    p.add_argument("--instruction", metavar="'which colour is it?'",
                   help="what is asked of all pictures, of a run that reads one (focallens, focallens_mllm)")
    g = p.add_argument_group("index", "when --out is a folder")
    g.add_argument("--dtype", choices=["float16", "float32"], help="of the vectors (default: float16)")
    g.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto",
                   help="of the model (default: bf16 where the machine multiplies it natively)")
    g.add_argument("--vector", metavar="NAME", help="which one, of a method that gives several, e.g. common")
    g.add_argument("--approximate", action="store_true", help="build the graph for approximate search, too (pip install "
                                                              "'notan[search]')")
    _data_flags(p, None, stream=False)


def _search_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("index", metavar="INDEX", type=Path, help="a folder that `notan embed RUN --data DATA --out FOLDER` wrote")
    p.add_argument("query", nargs="?", help="what to look for, in words")
    p.add_argument("--picture", type=Path, metavar="FILE", help="look for what is like this picture")
    p.add_argument("--like", type=int, metavar="ROW", help="look for what is like this row of the index")
    p.add_argument("--top", type=int, default=10, help="how many (default: %(default)s)")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    p.add_argument("--page", type=Path, metavar="FILE.html", help="write the results as one page, thumbnails inside")
    g = p.add_mutually_exclusive_group()
    g.add_argument("--exact", dest="how", action="store_const", const="exact", help="a pass over all vectors (default up to "
                                                                                    "500,000 rows, or without a graph)")
    g.add_argument("--approximate", dest="how", action="store_const", const="approximate",
                   help="through the graph of `notan embed --approximate` (pip install 'notan[search]')")
    p.add_argument("--model", help="where the index's model is, if it has moved")


def _view_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("index", metavar="INDEX", type=Path, help="a folder that `notan embed RUN --data DATA --out FOLDER` wrote")
    p.add_argument("--host", default="127.0.0.1", help="who can see it: this machine alone (%(default)s), or e.g. 0.0.0.0, "
                                                       "everyone who reaches it")
    p.add_argument("--port", type=int, default=8765, help="0: any that is free (default: %(default)s)")
    p.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    p.add_argument("--model", help="where the index's model is, if it has moved")


def _decode_flags(p: argparse.ArgumentParser, argv: list[str]) -> None:
    p.add_argument("strategy", metavar="STRATEGY", help="list, or one of: " + ", ".join(catalogue.strategies()))
    p.add_argument("--model", help="a folder, a hub name or a .gguf file with a language model, or one that sees")
    p.add_argument("--amateur", help="the model to set it against: of the same vocabulary")
    g = p.add_mutually_exclusive_group()
    g.add_argument("--prompt", help="what to go on from")
    g.add_argument("--file", type=Path, help="many of them: one {\"prompt\": ..., \"image\": FILE} a line (jsonl), image or not")
    p.add_argument("--image", help="the picture that the prompt asks about")
    p.add_argument("--out", type=Path, help="with --file: answers as jsonl; lines it has already are not asked again")
    p.add_argument("--max-new-tokens", type=int, default=128, help="(default: %(default)s)")
    p.add_argument("--raw", action="store_true", help="the prompt as it is, not through the tokenizer's chat template")
    p.add_argument("--sample", action="store_true", help="draw tokens instead of taking the best")
    p.add_argument("--temperature", type=float, default=1.0, help="of the draw (default: %(default)s)")
    p.add_argument("--top-p", type=float, default=1.0, help="draw within this probability (default: %(default)s)")
    p.add_argument("--top-k", type=int, default=0, help="draw among this many tokens (default: all)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--compile", action="store_true", help="a static cache and compiled steps, on a GPU")
    _named_flags(p, argv, "decode", catalogue.strategies())


def _inspect_flags(p: argparse.ArgumentParser, argv: list[str]) -> None:
    p.add_argument("inspector", metavar="INSPECTOR", help="list, or one of: " + ", ".join(catalogue.inspectors()))
    p.add_argument("model", nargs="?", metavar="MODEL", help="a language model (folder, hub name, .gguf), or for inspectors of "
                   "encoders a run folder, an encoder folder or hf:NAME")
    p.add_argument("--out", type=Path, default=Path("inspect"), help="where numbers and figures go (default: %(default)s)")
    p.add_argument("--rows", type=int, default=2_000, help="most rows it looks at (default: %(default)s)")
    p.add_argument("--tokens", type=int, default=512, help="most tokens of a text (default: %(default)s)")
    _data_flags(p, None, stream=False)
    _named_flags(p, argv, "inspect", catalogue.inspectors())


def _export_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN")
    p.add_argument("--to", choices=["safetensors", "hf", "onnx"], default="safetensors")
    p.add_argument("--out", type=Path, help="where to (default: RUN/export-TO)")


def _claim_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("method", metavar="METHOD", help="one of: " + ", ".join(catalogue.claims()))
    p.add_argument("--quick", action="store_true", help="at most 20 s: checks the pipeline, not the verdict")
    p.add_argument("--out", type=Path, help="write the result here (default: the package's results/)")


# ---------------------------------------------------------------------------------------------------------- commands

def _list(args: argparse.Namespace) -> None:
    from notan.runs.listing import print_list

    print_list(args.what)


def _list_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("what", nargs="?", choices=["methods", "data", "claims"], default="methods")


def _towers(args: argparse.Namespace) -> str | dict[str, str] | None:
    """What is asked for the towers: of a method with several a dict, as far as they are named."""
    named = {name.removeprefix("tower_"): spec for name, spec in vars(args).items() if name.startswith("tower_") and spec}
    return {**named, **({"encoder": args.encoder} if args.encoder else {})} if named else args.encoder


def _train(args: argparse.Namespace) -> None:
    from notan.runs.train import train, train_config

    if args.config:
        run = train_config(args.config, out=args.out)
    else:
        if not args.method:
            raise NotanError("no method was named", "notan train METHOD --data DATA", "see `notan list`")
        entry = catalogue.method(args.method)
        run = train(args.method, args.data, out=args.out, seed=args.seed, steps=args.steps, epochs=args.epochs,
                    minutes=args.minutes, batch=args.batch, lr=args.lr, encoder=_towers(args), recipe=args.recipe,
                    precision=args.precision, micro_batch=args.micro_batch, accumulate=args.accumulate,
                    clip=args.clip, compile=args.compile, threads=args.threads, resume=not args.fresh,
                    probe_every=args.probe_every, settings=_settings(args, entry), data_options=_data_options(args),
                    console=_console())
    if not (run.path / "report.html").exists():
        from notan.runs.report import write_single

        write_single(run)
    print(f"run: {run.path}   report: {run.path / 'report.html'}   {run.towers[0]}: {run.path / run.towers[0]}")


def _compare(args: argparse.Namespace) -> None:
    if args.decode:
        _compare_decoding(args)
        return
    from notan.runs.compare import compare

    compare(args.arms, args.data, out=args.out, seeds=args.seeds, baseline=args.baseline, steps=args.steps,
            epochs=args.epochs, minutes=args.minutes, batch=args.batch, recipe=args.recipe, encoder=args.encoder,
            precision=args.precision, threads=args.threads, supervised=not args.no_supervised, across=args.across,
            probe_rows=args.probe_rows, data_options=_data_options(args), console=_console())


def _compare_decoding(args: argparse.Namespace) -> None:
    from notan.runs.checkpoint import read_text
    from notan.runs.side_by_side import compare_decoding

    if not args.model:
        raise NotanError("--decode was given and no model", "notan compare --decode STRATEGY ... --model M --data FILE",
                         "--model FOLDER|NAME|FILE.gguf")
    compare_decoding(args.arms, args.data, args.model, out=args.out, amateur=args.amateur, images=args.images, judge=args.judge,
                     limit=args.limit, batch=8 if args.batch is None else args.batch, max_new_tokens=args.max_new_tokens,
                     before=read_text(args.before) if args.before else "", chat=False if args.raw else None, console=_console())
    print(f"answers and figures: {args.out}")


def _probe(args: argparse.Namespace) -> None:
    from notan.runs.probe import print_results, probe

    prompts: dict[str, Any] = {"prompts": args.prompt} if args.prompt else {}
    prompts |= {"instructions": args.instruction} if args.instruction else {}
    results = probe(args.run, args.data, protocols=args.protocol, rows=args.rows, seed=args.seed,
                    data_options=_data_options(args), **prompts)
    print(json.dumps(results, indent=2)) if args.json else print_results(results, _console())


def _embed(args: argparse.Namespace) -> None:
    from notan.runs.embed import embed

    out = embed(args.run, args.data, out=args.out, split=args.split, data_options=_data_options(args),
                instruction=args.instruction, vector=args.vector, dtype=args.dtype, approximate=args.approximate,
                precision=args.precision, console=_console())
    print(f"Embeddings: {out}" if out.suffix == ".parquet" else f"Look into it: notan search {out} ... | notan view {out}")


def _search(args: argparse.Namespace) -> None:
    from notan.runs.search import search_and_print

    search_and_print(args.index, args.query, picture=args.picture, like=args.like, top=args.top, how=args.how, model=args.model,
                     as_json=args.json, page=args.page, console=_console())


def _view(args: argparse.Namespace) -> None:
    from notan.runs.view import view

    view(args.index, host=args.host, port=args.port, browser=not args.no_browser, model=args.model)


def _decode(args: argparse.Namespace) -> int:
    if args.strategy == "list":
        from notan.runs.listing import print_list

        print_list("strategies")
        return 0
    from notan.runs.decode import decode_and_print

    entry = catalogue.strategy(args.strategy)
    if not args.model or not (args.prompt or args.file):
        raise NotanError("no model or no prompt was named", "notan decode STRATEGY --model M --prompt P",
                         "--model FOLDER|NAME|FILE.gguf and --prompt TEXT or --file PROMPTS.jsonl")
    if args.file and not args.file.is_file():
        raise NotanError(f"there is no file {args.file}", 'a jsonl file, one {"prompt": ...} a line', "check the path")
    if args.file and args.image:
        raise NotanError("--image was given beside --file", "pictures in the file", 'a line {"prompt": ..., "image": FILE}')
    if args.file and not args.out:
        raise NotanError("--file was given and no --out", "where the answers go", "--out answers.jsonl")
    how = {"max_new_tokens": args.max_new_tokens, "sample": args.sample, "temperature": args.temperature, "top_p": args.top_p,
           "top_k": args.top_k, "compile": args.compile, "seed": args.seed}
    return decode_and_print(args.strategy, args.model, args.prompt or args.file, image=args.image, out=args.out,
                            amateur=args.amateur, settings=_settings(args, entry), chat=False if args.raw else None, how=how,
                            console=_console())


def _inspect(args: argparse.Namespace) -> None:
    if args.inspector == "list":
        from notan.runs.listing import print_list

        return print_list("inspectors")
    entry = catalogue.inspector(args.inspector)
    if not args.model:
        raise NotanError("no model was named", "notan inspect INSPECTOR MODEL --data DATA", "see `notan inspect list`")
    from notan.runs.inspect import inspect, print_found

    found = inspect(args.inspector, args.model, args.data, out=args.out, rows=args.rows, tokens=args.tokens,
                    settings=_settings(args, entry), data_options=_data_options(args))
    print_found(args.inspector, found, args.out, _console())
    return None


def _export(args: argparse.Namespace) -> None:
    from notan.runs.export import export

    print(f"Exported: {export(args.run, to=args.to, out=args.out)}")
    if (both := Path(args.run) / "dual" / "config.json").exists():
        print(f"That is its picture encoder alone; both encoders with their heads are in {both.parent}.")


def _doctor(args: argparse.Namespace) -> int:
    from notan.runs.doctor import doctor

    return doctor(args.what, _console(), args.stream, _columns(args), args.cache_side)


def _claim(args: argparse.Namespace) -> None:
    from notan.claims import run_and_print

    run_and_print(args.method, quick=args.quick, out=args.out, console=_console())


# ------------------------------------------------------------------------------------------------------------- helpers

def _settings(args: argparse.Namespace, entry: catalogue.Entry) -> dict[str, Any]:
    """The method's own flags that were given, read as their annotations say."""
    found = {}
    for f in entry.flags:
        text = getattr(args, f"set_{f.name}", None)
        if text is not None:
            try:
                found[f.name] = catalogue.parse_value(f.annotation, text)
            except ValueError as error:
                raise NotanError(f"--{f.name.replace('_', '-')}: {error}", f.annotation, "correct the value") from None
    return found


def _columns(args: argparse.Namespace) -> dict[str, str] | None:
    from notan.data.columns import renames

    return renames(args.column)


def _data_options(args: argparse.Namespace) -> dict[str, Any]:
    return {"cache_side": args.cache_side, "fit": args.fit, "cache_limit_gb": args.cache_limit_gb,
            "columns": _columns(args), **({"limit_bad": args.limit_bad} if args.limit_bad != 0.01 else {}),
            **({"stream": True} if getattr(args, "stream", False) else {})}


def _console() -> Any:
    from rich.console import Console

    return Console()


def _complain(error: NotanError) -> None:
    for name, text in (("notan: ", error.seen), ("  wanted: ", error.wanted), ("  fix:    ", error.fix)):
        if text:
            print(name + text.rstrip(".") + ("" if text.endswith("?") else "."), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
