#!/usr/bin/env bash
# From a fresh clone to a trained GAN: makes a virtual environment, installs genimg and trains a small DCGAN on drawn
# shapes, with evaluation, for as many steps as fit into 100 seconds on this machine. Arguments are passed to genimg-train.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
prepare_environment
run_dir=outputs/quickstart-$(date +%Y%m%d-%H%M%S)
chosen=(run_dir="$run_dir")
# Settings of the first run, which is evaluated only at its end. Arguments that set the same, or a recipe, replace them.
settings=(trainer.duration='100 seconds' evaluation.interval='100 epochs')
pictures=(trainer.preview_seconds=10)
for argument in "$@"; do
  case "$argument" in
    run_dir=*) run_dir=${argument#run_dir=} chosen=() ;;
    # These set their own directories, or train nothing: pass them on unchanged.
    resume=* | -m | --multirun | --cfg | -c | --help | -h) exec "$VENV/bin/genimg-train" "$@" ;;
    experiment=* | trainer=* | trainer.duration=* | evaluation=* | evaluation.interval=* | debug=* | dry_run=*) settings=() pictures=() ;;
    trainer.preview_seconds=*) pictures=() ;;
  esac
done
if [ ${#settings[@]} -gt 0 ]; then
  echo "training for about 100 seconds, after 15 seconds of preparation and measurements (more if the machine is busy)"
  echo "generated images: $run_dir/samples, a new grid every 10 seconds; shapes are recognisable from the second or third on"
fi
"$VENV/bin/genimg-train" "$@" ${settings[@]+"${settings[@]}"} ${pictures[@]+"${pictures[@]}"} ${chosen[@]+"${chosen[@]}"}
cat <<END

Next:
  . ${VENV#"$PWD/"}/bin/activate                    # puts the commands on your PATH
  genimg-sample ckpt=$run_dir num_images=100 seed=1
  genimg-eval ckpt=$run_dir
  genimg-train model=vae_small                  # another family
  genimg-train data=mnist                       # real digits (downloads 11 MB once)
  genimg-train data=folder data.root=DIR data.image_size=64 evaluation=none
  tensorboard --logdir outputs
END
