"""Gaussian diffusion and flow matching: paths from data to noise, what networks predict, times, guidance and samplers.

A path mixes an image x and noise e ~ N(0, I): x_t = scale(t) x + sigma(t) e. Time t grows with the noise, from 0 (the image).
"""
