"""`mote assemble`: parts to one dense vision-language checkpoint."""

from mote.cli.options import AsJson, Debug, Force, Out, RecipeFile, Seed, Settings, Threads

EXAMPLE = "mote assemble --recipe recipes/small.yaml --out runs/assembled"


def run(
    out: Out,
    recipe: RecipeFile = None,
    set_: Settings = None,
    seed: Seed = None,
    threads: Threads = 0,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a dense model of parts.

    Puts a vision tower, a connector that starts at random and a language model into one checkpoint.
    """
    from mote.assemble import AssembleConfig, assemble
    from mote.cli.info import print_summary
    from mote.cli.settings import resolve

    config = resolve(AssembleConfig, "assemble", recipe, set_, seed)
    assemble(out, config, force=force)
    print_summary(out, as_json=as_json)
