"""The command `geoseg`: options in, sentences and exit status out."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import version

import click

from geoseg.cli.archives import catalog, merge, plan_, run, status, verify
from geoseg.cli.changing import change, series
from geoseg.cli.evaluating import evaluate, seams
from geoseg.cli.scenes import models, sample, segment
from geoseg.cli.seeing import report, serve
from geoseg.cli.terminal import INTERRUPTED, Ordered, say
from geoseg.cli.training import train
from geoseg.cli.vectors import check, convert, vectorize
from geoseg.errors import GeosegError, InputError


@click.group(cls=Ordered, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(None, "--version", package_name="geoseg", message="geoseg %(version)s")
def cli() -> None:
    r"""Turn satellite, aerial and drone scenes into maps.

    \b
    Begin with a sample scene:
      geoseg sample amsterdam                        fetch it, print where it is
      geoseg segment SCENE.tif buildings --out maps  map its buildings
      geoseg change OLD.tif NEW.tif buildings --out maps
                                                     what was built, and what is gone
      geoseg series maps/2015 maps/2019 maps/2024 --out maps/all
                                                     when it was built, and when it was gone
      geoseg run workflows/buildings.yaml            map an archive, here or on a cluster
      geoseg report maps                             a page that shows what came out
      geoseg serve maps --data imagery               the same in full resolution
      geoseg merge maps                              each building once, where scenes overlap or meet
      geoseg vectorize LABELS.tif --out map.gpkg     any raster of classes as polygons
      geoseg convert footprints.parquet town.pmtiles bring polygons into another format
      geoseg check delivered.gpkg                    what is wrong with polygons
      geoseg catalog imagery                         make a STAC catalog of a folder of scenes
      geoseg models                                  which models there are
      geoseg evaluate maps/SCENE drawn.gpkg          how well a map agrees with a reference
      geoseg seams SCENE.tif buildings               what the overlap of patches is worth
    """


for each in (
    *(
        segment,
        change,
        series,
        report,
        serve,
        run,
        plan_,
        status,
        verify,
        merge,
        vectorize,
        convert,
        check,
        catalog,
        evaluate,
        seams,
        models,
        sample,
        train,
    ),
):
    cli.add_command(each)


def main() -> None:
    """Run the command; its status: 0 done, 2 the user's error, 3 done in part, 1 our error, 130 stopped with Ctrl-C."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        say("Stopped. What was computed is kept: the same command, without --overwrite, goes on from there.")
        sys.exit(INTERRUPTED)
    except GeosegError as error:
        say(f"Error: {error}")
        sys.exit(2 if isinstance(error, InputError) else 1)
    except Exception as error:
        logging.getLogger("geoseg").debug("", exc_info=True)
        say(f"Error: a defect of geoseg {version('geoseg')}: {type(error).__name__}: {error}")
        say("Please report it with the output of the same command with -vv. What was computed is kept.")
        sys.exit(1)
