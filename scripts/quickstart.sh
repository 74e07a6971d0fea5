#!/usr/bin/env bash
# From a fresh clone to a trained GAN: makes a virtual environment, installs genimg and trains a small DCGAN on drawn
# shapes, with evaluation, in about two minutes on two CPU cores. Arguments are passed to genimg-train.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
prepare_environment
run_dir=outputs/quickstart-$(date +%Y%m%d-%H%M%S)
chosen=(run_dir="$run_dir")
for argument in "$@"; do
  case "$argument" in
    run_dir=*) run_dir=${argument#run_dir=} chosen=() ;;
    # These set their own directories, or train nothing: pass them on unchanged.
    resume=* | -m | --multirun | --cfg | -c | --help | -h) exec "$VENV/bin/genimg-train" "$@" ;;
  esac
done
"$VENV/bin/genimg-train" "$@" ${chosen[@]+"${chosen[@]}"}
cat <<END

Next:
  . ${VENV#"$PWD/"}/bin/activate                    # puts the commands on your PATH
  genimg-sample ckpt=$run_dir num_images=100 seed=1
  genimg-eval ckpt=$run_dir/checkpoints/best.pt
  genimg-train model=vae_small                  # another family
  genimg-train data=mnist                       # real digits (downloads 11 MB once)
  genimg-train data=folder data.root=DIR data.image_size=64 evaluation=none
  tensorboard --logdir outputs
END
