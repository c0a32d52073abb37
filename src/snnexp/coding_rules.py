"""Which encoder fits which data, which decoder and loss fit which neuron: checked without torch, before any work."""

from __future__ import annotations

from snnexp.config import DecoderConf, EncoderConf, NeuronConf
from snnexp.errors import unknown_choice
from snnexp.registry import ENCODERS, LOSSES

# The losses that train what the decoder reads out; the first one is what we suggest.
DECODER_LOSSES: dict[str, tuple[str, ...]] = {
    "rate": ("cross_entropy", "mse", "mse_step", "ce_step", "tet"),
    "vote": ("cross_entropy", "mse", "mse_step", "ce_step", "tet"),
    "membrane": ("cross_entropy", "mse", "mse_step", "ce_step", "tet"),
    "first_spike": ("ce_temporal", "mse_temporal"),
    "temporal_weight": ("cross_entropy", "mse"),
}


def check_encoder(encoder: EncoderConf, kind: str, normalize: bool = False) -> list[str]:
    """Return one message for each reason why `encoder` does not fit data of this kind (image or events)."""
    name = encoder.name
    errors = []
    if encoder.kwargs and name in ENCODERS.ours:
        errors.append(f"encoder.kwargs: encoder={name} has keys of its own; only an encoder of yours takes these.")
    if kind == "events" and name != "none":
        errors.append(f"encoder={name}: event recordings are spikes already and take encoder=none.")
    if kind == "image" and name == "none":
        errors.append("encoder=none: images have no time. Use encoder=direct, rate, latency or delta.")
    if kind == "image" and normalize and name not in ("direct", "none"):
        errors.append(
            f"dataset.normalize=true with encoder={name}: it needs grey levels from 0 to 1, normalised ones go below 0."
            " Use dataset.normalize=false or encoder=direct."
        )
    threshold = getattr(encoder, "threshold", None)
    if name == "latency" and not getattr(encoder, "linear", True) and threshold == 0:
        errors.append(
            "encoder.threshold=0 with encoder.linear=false: t = tau ln(x / (x - threshold)) is 0 for every pixel."
            " Use a positive encoder.threshold (0.01, say) or encoder.linear=true."
        )
    return errors


def check_decoder(decoder: DecoderConf, neuron: NeuronConf, num_steps: int | None = None) -> list[str]:
    """Return one message for each reason why `decoder`, its loss and `neuron` do not fit together."""
    name, loss = decoder.name, decoder.loss
    if name not in DECODER_LOSSES:
        return [unknown_choice("decoder", name, DECODER_LOSSES)]
    errors = []
    if loss in LOSSES.ours and loss not in DECODER_LOSSES[name]:
        errors.append(
            f"decoder.loss={loss}: decoder={name} does not read out what this loss trains."
            f" Use decoder.loss={' or '.join(DECODER_LOSSES[name])}."
        )
    if name == "rate" and neuron.fire_once:
        errors.append(
            "decoder=rate with neuron.fire_once=true: a neuron that spikes once has no rate, so all classes that fire"
            " score the same. Use decoder=temporal_weight, first_spike or membrane, or neuron.fire_once=false."
        )
    if name == "vote" and neuron.fire_once and decoder.votes == 1:
        errors.append(
            "decoder=vote with neuron.fire_once=true needs several neurons per class, else all classes that fire score"
            " the same. Use decoder.votes=10, say, or decoder=temporal_weight."
        )
    if name == "temporal_weight" and decoder.weights == "exponential" and decoder.gamma <= 1:
        errors.append(
            f"decoder.gamma={decoder.gamma:g}: weights gamma^-t reward early spikes only if gamma > 1. Use 1.5, say,"
            " or decoder.weights=linear."
        )
    if name != "vote" and decoder.votes != 1:
        errors.append(f"decoder.votes={decoder.votes} has no effect with decoder={name}. Use decoder=vote.")
    if loss in ("mse", "mse_step") and decoder.correct_rate <= decoder.incorrect_rate:
        errors.append(
            f"decoder.correct_rate={decoder.correct_rate:g} must be larger than"
            f" decoder.incorrect_rate={decoder.incorrect_rate:g}: the right class should fire more."
        )
    if loss == "mse_temporal":
        errors += _check_targets(decoder, num_steps)
    return errors


def _check_targets(decoder: DecoderConf, num_steps: int | None) -> list[str]:
    errors = []
    if num_steps is not None:
        for key, step in (("on_target", decoder.on_target), ("off_target", decoder.off_target)):
            if step is not None and step >= num_steps:
                errors.append(
                    f"decoder.{key}={step}: there is no such step, dataset.num_steps={num_steps}."
                    f" Use 0 to {num_steps - 1}."
                )
    last = decoder.off_target if decoder.off_target is not None else (num_steps or decoder.on_target + 2) - 1
    if decoder.on_target >= last:
        errors.append(
            f"decoder.on_target={decoder.on_target} must be earlier than the step of the wrong classes ({last})."
            " Lower it, or raise decoder.off_target or dataset.num_steps."
        )
    return errors
