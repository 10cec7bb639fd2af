"""MixDistribution: give an image the pixel statistics of another, partly or fully."""

from __future__ import annotations

import torch
from torch import Tensor

from kd3.runtime.ranks import ALONE, Ranks

VARIANCE_FLOOR = 1e-6


def mix_statistics(
    images: Tensor,
    partner: Tensor,
    mix: Tensor,
    *,
    gamma_scale: float = 1.0,
    beta_scale: float = 1.0,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Return each image re-coloured with a mixture of its own and its partner's statistics.

    With the mean mu and deviation sigma = sqrt(var + 1e-6) of each image and channel over its
    pixels: gamma = mix * sigma_i + (1 - mix) * sigma_j, beta = mix * mu_i + (1 - mix) * mu_j, and
    x~ = gamma * (x - mu_i) / sigma_i + beta. `mix` = 1 leaves the image as it is, 0 gives it the
    partner's statistics whole. `gamma_scale` and `beta_scale` multiply gamma and beta (1: the paper's
    method); their useful strength is one of the paper's open questions.

    Shapes: images (B, C, H, W), normalised floats; partner (B,), indices into the batch, that of all
    `ranks` where there are several; mix (B,), in [0, 1] -> (B, C, H, W).

    Source: KD3 (arXiv 2307.11469), MixDistribution: gamma_mix and beta_mix; MixStyle
    (arXiv 2104.02008) does the same to feature maps. The variance is the biased one over pixels.
    """
    # Written out: torch.var over two dimensions is slow in channels_last.
    mean = images.mean(dim=(2, 3), keepdim=True)
    centred = images - mean
    deviation = (centred.square().mean(dim=(2, 3), keepdim=True) + VARIANCE_FLOOR).sqrt()
    own = mix.view(-1, 1, 1, 1).to(images.dtype)
    gamma = own * deviation + (1 - own) * ranks.gather(deviation)[partner]
    beta = own * mean + (1 - own) * ranks.gather(mean)[partner]
    return centred * (gamma_scale * gamma / deviation) + beta_scale * beta


def mix_distribution(
    images: Tensor,
    *,
    beta_parameter: float = 0.1,
    gamma_scale: float = 1.0,
    beta_scale: float = 1.0,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Return the MixDistribution view of a batch, with random partners and mixtures.

    The partner is a random permutation of the batch; the mixture of each image is drawn from
    Beta(beta_parameter, beta_parameter): with 0.1 about a third of the images hardly change and
    a third take their partner's statistics whole. The scales are those of `mix_statistics`.

    Shapes: (B, C, H, W), normalised floats -> the same. beta_parameter > 0. All randomness comes
    from `generator`, on the device of the images, the same on all `ranks`, whose parts make up the batch.
    """
    batch = images.shape[0] * ranks.count
    mine = ranks.part(batch)
    partner = torch.randperm(batch, generator=generator, device=images.device)[mine]
    mix = sample_beta(batch, beta_parameter, generator=generator)[mine]
    return mix_statistics(images, partner, mix, gamma_scale=gamma_scale, beta_scale=beta_scale, ranks=ranks)


def sample_beta(count: int, parameter: float, *, generator: torch.Generator) -> Tensor:
    """Return `count` draws from Beta(parameter, parameter), reproducible from the generator.

    Shapes: -> (count,), float32, in [0, 1].

    `torch.distributions.Beta` takes no generator. In logarithms, since a gamma variate with the
    shape 0.1 underflows float32 more often than not: log Gamma(a) = log Gamma(a + 1) + log(U) / a
    (Marsaglia and Tsang 2000, section 6).
    """
    shape = torch.full((2, count), parameter + 1.0, dtype=torch.float64, device=generator.device)
    boosted = torch._standard_gamma(shape, generator=generator).log()
    uniform = torch.rand((2, count), dtype=torch.float64, generator=generator, device=generator.device)
    log_gamma = boosted + uniform.clamp_min(1e-300).log() / parameter
    return torch.sigmoid(log_gamma[0] - log_gamma[1]).float()
