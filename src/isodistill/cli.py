"""The verbs; nothing heavy is imported before a verb needs it, so that --help answers at once."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from isodistill.errors import UserError

__all__ = ["app", "main"]


class _Verbs(TyperGroup):
    """The verbs, with one clear paragraph for what the user can mend and a traceback only with --debug."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; what it raises is shown here, for typer would end Ctrl-C without a word."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            if ctx.params["debug"]:
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        except Exception as error:
            if ctx.params["debug"] or hasattr(error, "exit_code"):  # typer's own, which it shows well
                raise
            kind = type(error).__name__
            typer.echo(f"error: {kind}: {error}\nRun the command with --debug for the traceback.", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt as stop:
            typer.echo(f"\n{str(stop) or 'Stopped; the same command goes on from here.'}", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="isodistill",
    cls=_Verbs,
    help="Distil reasoning into small LoRA students so that it holds when the surface of a problem changes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
isomers = typer.Typer(help="Make, check and import isomer sets.", no_args_is_help=True)
app.add_typer(isomers, name="isomers")

RecipeArg = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
RunArg = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set alignment.tau=3.")]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub id of a text encoder, of CLIP, or open_clip:MODEL@PRETRAINED; "
        "default all-MiniLM-L6-v2, for images CLIP ViT-B/32, from the hub."
    ),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/NAME of the recipe.")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Read by ``_Verbs``, which shows the errors."""


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A tiny student made on the spot, in about a minute.")] = False,
    out: OutOption = None,
    overrides: SetOption = None,
) -> None:
    """The whole way on a built-in example: isomers, ERM and IGA from the same start, evaluation, report."""
    from isodistill.pipeline import demo_recipe, run_recipe

    folder = out or Path("runs") / ("demo-quick" if quick else "demo")
    _done(run_recipe(demo_recipe(quick=quick, overrides=overrides or []), folder, _command()))


@app.command()
def run(recipe: RecipeArg, out: OutOption = None, overrides: SetOption = None) -> None:
    """Walk the whole way of a recipe; finished steps are skipped, interrupted ones go on."""
    from isodistill.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from isodistill.pipeline import run_recipe  # takes seconds; a slip in the recipe is told at once

    _done(run_recipe(loaded, out or Path("runs") / recipe.stem, _command()))


@app.command()
def train(recipe: RecipeArg, out: OutOption = None, overrides: SetOption = None) -> None:
    """Problems and training only; the adapter is in RUN/student."""
    from isodistill.recipe import load_recipe

    loaded, folder = load_recipe(recipe, overrides or []), out or Path("runs") / recipe.stem
    from isodistill.pipeline import train_run

    typer.echo(f"student: {train_run(loaded, folder)}")


@app.command()
def teach(
    recipe: RecipeArg,
    out: OutOption = None,
    overrides: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask nothing; say how much would be asked.")] = False,
) -> None:
    """Let teachers solve the problems, verify their traces, and keep the rows to train on in RUN/taught."""
    from isodistill.recipe import load_recipe

    loaded, folder = load_recipe(recipe, overrides or []), out or Path("runs") / recipe.stem
    from isodistill.pipeline import teach_run

    for line in teach_run(loaded, folder, dry=dry_run):
        typer.echo(line)


@app.command()
def evaluate(run: RunArg, overrides: SetOption = None) -> None:
    """Answer the test problems of a run folder before and after training, and write results.json."""
    from isodistill.recipe import load_recipe

    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} is no run folder: it has no recipe.yaml. `isodistill train recipe.yaml` makes one.")
    recipe = load_recipe(run / "recipe.yaml", overrides or [])
    from isodistill.pipeline import evaluate_run, write_results

    evaluate_run(recipe, run)
    results = write_results(recipe, run)
    for split, numbers in results["splits"].items():
        low, high = numbers["acc_macro_ci95"]
        typer.echo(
            f"{split}: accuracy {numbers['acc_macro']:.3f} [{low:.3f}, {high:.3f}] on {numbers['n_items']} items"
        )


@app.command()
def compare(
    recipe: RecipeArg,
    methods: Annotated[str, typer.Option(help="Presets, by commas; the baseline is always among them.")],
    seeds: Annotated[str, typer.Option(help="Training seeds, by commas.")] = "0,1,2",
    search: Annotated[int, typer.Option(help="Draws per method; the first is the recipe's own settings.")] = 1,
    leave_one_out: Annotated[bool, typer.Option(help="Select by that rule, too: K times the runs.")] = False,
    jobs: Annotated[int | None, typer.Option(help="Runs side by side; default one per core.", min=1)] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default runs/compare-NAME.")] = None,
    overrides: SetOption = None,
) -> None:
    """Train methods with the same budget from the same starts, select, and compare them with the baseline."""
    from isodistill.recipe import load_recipe

    loaded, folder = load_recipe(recipe, overrides or []), out or Path("runs") / f"compare-{recipe.stem}"
    numbers = _listed(seeds)
    if not all(number.isdecimal() for number in numbers):
        raise UserError(f"--seeds takes whole numbers by commas, as in --seeds 0,1,2; got {seeds!r}.")
    from isodistill.pipeline import Plan, compare_methods

    plan = Plan(_listed(methods), [int(number) for number in numbers], search, leave_one_out)
    _done(compare_methods(loaded, plan, folder, _command(), jobs))


@app.command()
def report(
    run: RunArg,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="Run folder to compare with.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default RUN/report.html.")] = None,
) -> None:
    """Compare a run with its baseline (RUN/baseline where it exists) and write report.html, from the records alone."""
    from isodistill.pipeline import report_runs

    _done(report_runs(run, baseline, out or run / "report.html", _command()))


@app.command()
def audit(
    pairs: Annotated[Path, typer.Argument(help='Rows {"a": text, "b": text} or {"image": path, "caption": text}.')],
    queries: Annotated[Path, typer.Option(help="Clean pairs that judge them; none may be among them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    model: EncoderOption = None,
    remove: Annotated[float, typer.Option(help="Share of pairs that get keep = false; nothing is deleted.")] = 0.1,
    explain: Annotated[
        str | None, typer.Option(help="Id of the query to trace back; default the worst mistake.")
    ] = None,
    parameters: Annotated[
        str,
        typer.Option(
            help="What is fitted: heads over the frozen encoder; lora, in the encoder; or patterns of names of its "
            "parameters, by commas."
        ),
    ] = "heads",
    curve_pairs: Annotated[
        int | None,
        typer.Option(
            help="Most pairs that the removal curve is fitted to, 0: no curve; default 4000, and 0 with --parameters.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Rank pairs by how much each harms a contrastive model (ECIF), trace a mistake back, and write audit.html."""
    from isodistill.pipeline import audit_pairs

    _done(audit_pairs(pairs, queries, model, out, _command(), remove, explain, parameters, curve_pairs))


@app.command()
def env() -> None:
    """Versions and hardware, to paste into a bug report."""
    from isodistill.pipeline import describe_environment

    for name, value in describe_environment().items():
        typer.echo(f"{name}: {value}")


@isomers.command("make")
def isomers_make(
    out: Annotated[Path, typer.Argument(help="The .jsonl file to write.")],
    n_sets: Annotated[int, typer.Option(help="Isomer sets.")] = 100,
    families: Annotated[str, typer.Option(help="Structure families, by commas; default all.")] = "",
    domains: Annotated[str, typer.Option(help="Domains, by commas; default all.")] = "",
    difficulty: Annotated[str, typer.Option(help="Levels 1 to 3, by commas.")] = "1,2",
    seed: Annotated[int, typer.Option(help="Seed of the values and words.")] = 0,
) -> None:
    """Generate isomer sets: one structure and its values told in every domain."""
    from isodistill.data.load import write_rows
    from isodistill.isomers import DOMAINS, generate_sets

    rows = generate_sets(
        n_sets=n_sets,
        families=_listed(families) or None,
        domains=_listed(domains) or DOMAINS,
        difficulty=[_level(text) for text in _listed(difficulty)],
        seed=seed,
    )
    write_rows(out, rows)
    typer.echo(f"{len(rows)} rows of {n_sets} sets: {out}")


@isomers.command("check")
def isomers_check(
    file: Annotated[Path, typer.Argument(help="Rows with set_id and domain.")],
    keep: Annotated[
        Path | None, typer.Option(help="Write the rows of accepted sets here; with --audit, see the page on isomers.")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(help="Folder: look for members unlike their set with a contrastive head, too.")
    ] = None,
    model: EncoderOption = None,
    flag: Annotated[float, typer.Option(help="Share of the members that --audit flags.")] = 0.1,
) -> None:
    """Read structure and answer back out of every text and say which sets really are sets."""
    from isodistill.data.load import load_rows, write_rows
    from isodistill.isomers import check_sets

    rows = load_rows(file).rows
    verdict = check_sets(rows)
    typer.echo(f"{verdict.n_sets} sets, {len(verdict.accepted)} accepted, rejection rate {verdict.rejection_rate:.1%}")
    for family, (n_accepted, n_sets) in verdict.by_family.items():
        typer.echo(f"  {family}: {n_accepted} of {n_sets} accepted")
    for reason, rejection in verdict.reasons.items():
        typer.echo(f"  {reason}: {rejection.count} sets, such as {rejection.example}")
    if verdict.n_without_set:
        typer.echo(f"  {verdict.n_without_set} rows have no set_id and were not judged")
    accepted = set(verdict.accepted)
    kept = [row for row in rows if row.set_id in accepted]
    if audit is not None:
        from isodistill.pipeline import audit_sets

        found = audit_sets(rows, verdict, model, audit, _command(), flag)
        typer.echo(f"{found.n_members} members compared with their sets, {len(found.flagged)} flagged: {found.page}")
        if found.n_longer:
            typer.echo(f"  {found.n_longer} texts are longer than the encoder reads and were cut")
        for row in found.flagged[:5]:
            typer.echo(f"  {row.id} ({row.domain}) is unlike the others of set {row.set_id}")
        kept = found.kept
    if keep is not None:
        write_rows(keep, kept)
        typer.echo(f"{'accepted sets' if audit is None else 'rows to keep'}: {keep}")


@isomers.command("rewrite")
def isomers_rewrite(
    recipe: RecipeArg,
    out: OutOption = None,
    overrides: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask nothing; say how much would be asked.")] = False,
) -> None:
    """Let a teacher tell the recipe's problems in other domains, read every text back, and keep the sets that hold."""
    from isodistill.recipe import load_recipe

    loaded, folder = load_recipe(recipe, overrides or []), out or Path("runs") / f"rewrite-{recipe.stem}"
    from isodistill.pipeline import rewrite_plan, rewrite_run

    if dry_run:
        for line in rewrite_plan(loaded, folder):
            typer.echo(line)
        return
    made = rewrite_run(loaded, folder, _command())
    n_accepted = made.n_problems - len(made.rejected)
    typer.echo(f"{made.n_problems} problems, {n_accepted} sets accepted, rejection rate {made.rejection_rate:.1%}")
    for reason, rejection in made.reasons.items():
        typer.echo(f"  {reason}: {rejection.count} sets, such as {rejection.example}")
    typer.echo(f"rows: {folder / 'rows.jsonl'}")
    _done(folder / "report.html")


@isomers.command("perturb")
def isomers_perturb(
    file: Annotated[Path, typer.Argument(help="Rows whose completions work the answer out in equations.")],
    out: Annotated[Path, typer.Argument(help="The .jsonl file to write.")],
    n: Annotated[int, typer.Option(help="New problems from each row.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the numbers.")] = 0,
) -> None:
    """The same problems with other numbers, each answer worked out anew; no teacher is asked."""
    from isodistill.data.load import load_rows, write_refusals, write_rows
    from isodistill.isomers.perturb import perturb_rows

    made = perturb_rows(load_rows(file).rows, n=n, seed=seed)
    if not made.rows:
        raise UserError(f"No row of {file} gives a template, the first one because: {made.refused[0]}.")
    write_rows(out, made.rows)
    typer.echo(f"{len(made.rows)} rows from {made.n_templates} templates: {out}")
    if made.refused:
        refused = out.with_suffix(".refused.jsonl")
        write_refusals(refused, made.refused)
        typer.echo(f"{len(made.refused)} rows gave none, or too few; they are listed in {refused}")


@isomers.command("import")
def isomers_import(
    name: Annotated[str, typer.Argument(help="prontoqa_isomers, gsm_symbolic or coin_flip.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the real data sets.")],
    out: Annotated[Path, typer.Argument(help="The .jsonl file to write.")],
) -> None:
    """Bring isomer groups of a real data set into our rows."""
    from isodistill.data.load import write_rows
    from isodistill.isomers import import_groups

    rows = import_groups(name, folder)
    write_rows(out, rows)
    typer.echo(f"{len(rows)} rows: {out}")


def main() -> None:
    """Entry point; --debug may stand before or after the verb."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    app(args=["--debug", *arguments] if "--debug" in sys.argv[1:] else arguments)


def _level(text: str) -> int:
    if not text.isdigit():
        raise UserError(f"--difficulty takes levels 1 to 3, as in --difficulty 1,2; got {text!r}.")
    return int(text)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _command() -> str:
    return shlex.join(["isodistill", *sys.argv[1:]])


def _done(path: Path) -> None:
    typer.echo(f"report: {path.resolve()}")
