"""What the commands print when asked for help."""

from samovar.measure.catalog import CATALOG

HELP = """\
samovar trains ViT, MLP-Mixer and ResNet from scratch into flat minima.

usage: samovar VERB ...

  demo                     train a small ViT with and without SAM on embedded images
  train RECIPE [--flags]   train; `samovar train RECIPE --help` shows every flag
  tune RECIPE --rho A,B,C  find the best rho, learning rate or decay by short runs
  measure RUN|MODEL [NAMES] curvature, flatness, landscapes, robustness and more, with error bars
  corrupt DATA OUT         write corrupted copies of a folder of images
  report RUN...            one HTML page that works offline, or figures for a paper
  compare RECIPE           SAM and its cheaper or stronger relatives: cost, gain, Pareto figure
  reproduce WHAT           a table or figure of the paper: runs, numbers beside the paper's, verdicts
  export RUN --format F    a copy for timm, ONNX or plain torch, checked before it is kept
  predict RUN IMAGES...    classes of image files, as a table, JSON or CSV
  list [recipes|models|sources]
  show RECIPE|RUN|MODEL    settings of a recipe or run, facts of a model

examples:
  samovar demo
  samovar train vit-cifar10-sam --seed 1
  samovar train photos --data.source folder:my/photos
  samovar train --config runs/NAME/config.json --sam.rho 0.1
  samovar train --resume runs/NAME
  samovar tune vit-digits-sam --rho 0.02,0.05,0.1,0.2,0.35
  samovar measure runs/NAME hessian flatness
  samovar report runs/* -o report.html
  samovar compare vit-digits --sam quarter,late,gsam
  samovar reproduce table1 --scale digits
  torchrun --nproc-per-node 8 -m samovar train vit-b16-imagenet-sam --data.source imagenet:/data/imagenet
"""


TRAIN_HELP = """\
usage: samovar train RECIPE [--flags]
       samovar train --config RUN/config.json [--flags]   replay a run's settings, changed by the flags
       samovar train --resume RUN [--flags]               continue a run bit for bit
       samovar train RECIPE --dry-run [--ranks N]         schedule, ascent groups, memory, FLOPs, 3 steps on made data

RECIPE is a name of `samovar list recipes`; `samovar train RECIPE --help` shows every flag with its value there.
"""


TUNE_HELP = """\
usage: samovar tune RECIPE --rho A,B,... [--lr A,B,...] [--weight-decay A,B,...] [--flags]
       samovar tune --config RUN/config.json --rho A,B,... [--flags]

  --rho, --lr, --weight-decay  values to try, with commas between them; of several lists, all combinations
  --seeds N                    runs per setting, compared by their mean; without it 1
  --full                       train every setting at full length; without it, short runs of all and longer ones of
                               the better half, each with a complete schedule of its length
  --share S                    share of each training class to compare on; without it 0.1, or, where a source has no
                               validation split of its own, the images that --data.val-share holds out
  --jobs N                     runs at a time, in processes that share the cores and take the GPUs in turn
  --output DIR, --name NAME    folder of the search; the same command with the same name goes on where it was

Every other flag is one of the recipe. Settings are compared by accuracy on images held out of training, ties by loss;
a validation split that comes with the source is never looked at. Prints what it will cost before it starts, and at the
end a table and the best recipe as a command; writes a report with the curve. `samovar tune RECIPE --help` shows every
flag.
"""


_MEASUREMENTS = "\n".join(f"  {each.name:<11}  {each.help}" for each in CATALOG.values())
MEASURE_HELP = f"""\
usage: samovar measure RUN|MODEL [NAMES] [--flags]

{_MEASUREMENTS}

Without names: hessian flatness. A run is measured at its best checkpoint, in eval mode, without augmentation, with
softmax cross-entropy: on its training images, and from `predictions` on down on those held out. Flags change each of
these, and every record states them. An interrupted command goes on where it was. `samovar measure RUN --help` shows
every flag.
"""


CORRUPT_HELP = """\
usage: samovar corrupt DATA OUT [--flags]

Writes OUT/CORRUPTION/SEVERITY/... as PNG for every image below the folder DATA: the 19 corruptions of ImageNet-C at 5
severities, made here (frost and other textures procedurally), the same for the same image and --seed. Copies that
are there stay, so an interrupted command goes on where it was. `samovar corrupt DATA OUT --help` shows every flag.
"""


REPORT_HELP = """\
usage: samovar report RUN... [-o FILE]
       samovar report RUN... --figures DIR [--format svg|pdf|png]

  -o, --output FILE  the page; without it RUN/report.html of a single run, report.html of several
  --figures DIR      figures for a two-column paper, below DIR; the page is then written only if -o asks for it
  --format FORMAT    of the figures, may be given again; without it pdf and png

The page is one file: accuracy, sharpness and cost of the runs side by side, training curves, loss surfaces, spectra,
attention, predictions, settings that differ. It needs no network. What was not measured is missing with the command
that adds it. Writes over a report that is there.
"""


DEMO_HELP = """\
usage: samovar demo [--output DIR] [--seed N]

Trains a small ViT on scikit-learn's digits twice, with AdamW and with AdamW + SAM, everything else the same, measures
both and prints them side by side; a report with pictures is written below DIR. Takes under 5 minutes on 2 cores;
nothing is downloaded.
"""
