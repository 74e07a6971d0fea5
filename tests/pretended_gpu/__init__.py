"""A pretended GPU: it finds faults of the CUDA code on a machine that has none.

``build.py`` compiles ``stub.c``, which is preloaded in place of CUDA's runtime. ``device.py`` computes CUDA operations on the
CPU and reports what a GPU would object to, by ``rules.py``; ``graphs.py`` does so for CUDA graphs. ``checks.py`` shows that
these reports are right. ``transfers.py`` checks the code that copies to the GPU and back beside the training. ``walk.py`` runs
commands of genimg and prints what happened. By hand, with the checkout and its tests/ in PYTHONPATH:

    LD_PRELOAD=$(python -m pretended_gpu.build) python -m pretended_gpu.walk <<< '[["train", "model=dcgan_small", ...]]'
"""
