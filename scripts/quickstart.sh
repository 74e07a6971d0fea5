#!/usr/bin/env bash
# From a fresh clone to a trained GAN: makes a virtual environment, installs genimg and trains a small DCGAN on drawn
# shapes, with evaluation, in about two minutes on two CPU cores. Arguments pass on to genimg-train.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
prepare_environment
run_dir=outputs/quickstart-$(date +%Y%m%d-%H%M%S)
case " $* " in *" run_dir="* | *" resume="* | *" -m "* | *" --multirun "* | *" --cfg "* | *" --help "*) own=1 ;; *) own=0 ;; esac
if [ $own = 1 ]; then exec "$VENV/bin/genimg-train" "$@"; fi
"$VENV/bin/genimg-train" "$@" run_dir="$run_dir"
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
